//! Lines for the operator, on the serial port and on the screen.

use super::end::{self, Status};
use crate::cpu::percpu;
use crate::drivers::{framebuffer, serial};
use core::fmt::{self, Write};
use core::panic::PanicInfo;
use core::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use log::{LevelFilter, Log, Metadata, Record};

struct Logger;

static LOGGER: Logger = Logger;
/// Lines that were shown.
static LINES: AtomicU64 = AtomicU64::new(0);
/// A panic is under way.
static PANICKED: AtomicBool = AtomicBool::new(false);
/// Guests run: nobody waits for an output any more.
static LIVE: AtomicBool = AtomicBool::new(false);
/// Bytes that had no room on the serial port since losses were last told.
static LOST: AtomicUsize = AtomicUsize::new(0);
/// Room on the serial port from which on losses are told.
const ENOUGH: usize = 4096;

/// The serial port and the screen together.
pub(super) struct Out;

impl Write for Out {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for line in text.split_inclusive('\n') {
            let (body, ends) = match line.strip_suffix('\n') {
                Some(body) => (body, true),
                None => (line, false),
            };
            send(body.as_bytes());
            if ends {
                send(b"\r\n");
            }
        }
        if LIVE.load(Ordering::Relaxed) {
            framebuffer::queue(text);
        } else {
            framebuffer::write(text);
        }
        Ok(())
    }
}

/// Queues bytes. If the ring is full they wait for room; once guests run they
/// are lost, and counted.
fn send(bytes: &[u8]) {
    let sent = serial::CONSOLE.write(bytes);
    let Some(rest) = bytes.get(sent..).filter(|rest| !rest.is_empty()) else { return };
    if LIVE.load(Ordering::Relaxed) {
        LOST.fetch_add(rest.len(), Ordering::Relaxed);
    } else {
        serial::CONSOLE.flush();
        serial::CONSOLE.write(rest);
    }
}

/// Guests run from now on: they do not wait for what is shown.
pub fn guests_run() {
    framebuffer::prepare();
    LIVE.store(true, Ordering::Relaxed);
}

/// No guest runs any more: all is shown as it comes, and what waited first.
pub(super) fn guests_are_over() {
    if LIVE.swap(false, Ordering::Relaxed) {
        framebuffer::draw_all();
    }
}

/// Shows one line.
pub fn line(what: fmt::Arguments<'_>) {
    LINES.fetch_add(1, Ordering::Relaxed);
    if LOST.load(Ordering::Relaxed) != 0 && serial::CONSOLE.room() > ENOUGH {
        let lost = LOST.swap(0, Ordering::Relaxed);
        // Neither output fails.
        let _ = writeln!(Out, "steward: {lost} bytes of messages had no room");
    }
    // Neither output fails.
    let _ = writeln!(Out, "{what}");
}

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            line(format_args!("steward: {}: {}", record.level(), record.args()));
        }
    }

    fn flush(&self) {}
}

/// Starts logging. It needs no memory.
pub fn init() {
    // It fails only where a logger is set already, and then there is one.
    let _ = log::set_logger(&LOGGER);
    log::set_max_level(LevelFilter::Info);
}

/// Sets how much is logged.
pub fn set_level(level: LevelFilter) {
    log::set_max_level(level);
}

/// Says that a stage of the boot is done. Always shown.
pub fn stage(name: &str, what: fmt::Arguments<'_>) {
    line(format_args!("steward: {name}: {what}"));
    if !LIVE.load(Ordering::Relaxed) {
        serial::CONSOLE.flush();
    }
}

/// How many lines were shown: whoever has a prompt on the screen shows it again.
#[must_use]
pub fn lines() -> u64 {
    LINES.load(Ordering::Relaxed)
}

/// Says something that the operator asked for.
pub fn note(what: fmt::Arguments<'_>) {
    line(format_args!("\nsteward: {what}"));
}

struct PanicOut;

impl Write for PanicOut {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for line in text.split_inclusive('\n') {
            serial::CONSOLE.write_in_panic(line.trim_end_matches('\n').as_bytes());
            if line.ends_with('\n') {
                serial::CONSOLE.write_in_panic(b"\r\n");
            }
        }
        framebuffer::write_in_panic(text);
        Ok(())
    }
}

/// The panic handler's work: says what happened and ends the machine's run.
pub fn panicked(info: &PanicInfo<'_>) -> ! {
    if PANICKED.swap(true, Ordering::Relaxed) {
        crate::cpu::asm::stop();
    }
    // Whoever has an output's lock now will not go on.
    percpu::stop_others();
    // Neither output fails.
    let _ = writeln!(PanicOut, "\nsteward: internal error: {info}");
    end::leave(&mut PanicOut, Status::INTERNAL, format_args!("internal-error"))
}
