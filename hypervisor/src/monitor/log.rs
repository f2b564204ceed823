//! Lines for the operator, on the serial port and on the screen.

use super::end::{self, Status};
use crate::drivers::{framebuffer, serial};
use core::fmt::{self, Write};
use core::panic::PanicInfo;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use log::{LevelFilter, Log, Metadata, Record};

struct Logger;

static LOGGER: Logger = Logger;
/// Lines that were shown.
static LINES: AtomicU64 = AtomicU64::new(0);
/// A panic is under way.
static PANICKED: AtomicBool = AtomicBool::new(false);

/// Both outputs.
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
        framebuffer::write(text);
        Ok(())
    }
}

/// Queues bytes; where the ring is full, the operator's lines wait for room.
fn send(bytes: &[u8]) {
    let sent = serial::CONSOLE.write(bytes);
    if sent < bytes.len() {
        serial::CONSOLE.flush();
        serial::CONSOLE.write(&bytes[sent..]);
    }
}

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            LINES.fetch_add(1, Ordering::Relaxed);
            // Neither output fails.
            let _ = writeln!(Out, "steward: {}: {}", record.level(), record.args());
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
    LINES.fetch_add(1, Ordering::Relaxed);
    // Neither output fails.
    let _ = writeln!(Out, "steward: {name}: {what}");
    serial::CONSOLE.flush();
}

/// How many lines were shown: whoever has a prompt on the screen shows it again.
#[must_use]
pub fn lines() -> u64 {
    LINES.load(Ordering::Relaxed)
}

/// Says something that the operator asked for.
pub fn note(what: fmt::Arguments<'_>) {
    LINES.fetch_add(1, Ordering::Relaxed);
    // Neither output fails.
    let _ = writeln!(Out, "\nsteward: {what}");
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
    // Neither output fails.
    let _ = writeln!(PanicOut, "\nsteward: internal error: {info}");
    end::leave(&mut PanicOut, Status::INTERNAL, format_args!("internal-error"))
}
