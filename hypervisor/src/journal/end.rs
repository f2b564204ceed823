//! How the machine's run ends: one line that a program can read, then the way
//! out that the bundle's settings name.

use super::log::{Out, guests_are_over};
use crate::cpu::asm::{outb, outl, stop};
use crate::cpu::{legacy, percpu, power};
use crate::drivers::serial;
use crate::error::HostError;
use config::{HostExit, Uuid};
use core::fmt::{self, Write};
use core::sync::atomic::{AtomicU8, Ordering};
use spin::Once;

/// The status of a run, 0 to 255.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Status(pub u8);

impl Status {
    /// All guests switched themselves off.
    pub const OK: Self = Self(0);
    /// The machine or the bundle was refused.
    pub const REFUSED: Self = Self(2);
    /// A guest crashed.
    pub const CRASHED: Self = Self(3);
    /// The hypervisor failed.
    pub const INTERNAL: Self = Self(4);
}

/// The way out, as a number; 0 is to halt.
static EXIT: AtomicU8 = AtomicU8::new(0);

/// Key that the last line names.
static KEY: Once<Uuid> = Once::new();

/// Sets what the last line names, so that it can be told from what guests write.
pub fn set_key(key: Uuid) {
    KEY.call_once(|| key);
}

/// Sets the way out.
pub fn set_exit(exit: HostExit) {
    let number = match exit {
        HostExit::Halt => 0,
        HostExit::IsaDebugExit => 1,
        HostExit::Bochs => 2,
    };
    EXIT.store(number, Ordering::Relaxed);
}

/// Ends the run.
pub fn end(status: Status, reason: fmt::Arguments<'_>) -> ! {
    guests_are_over();
    leave(&mut Out, status, reason)
}

/// Ends the run, and switches the machine off.
pub fn power_off() -> ! {
    guests_are_over();
    say(&mut Out, Status::OK, format_args!("switched off by the operator"));
    exit(Status::OK);
    power::off();
    // Neither output fails.
    let _ = writeln!(Out, "steward: this machine does not switch itself off: you can do it now");
    serial::CONSOLE.flush();
    stop()
}

/// Says what is wrong with the machine, the bundle or a guest.
pub fn refused(why: fmt::Arguments<'_>) {
    // Neither output fails.
    let _ = writeln!(Out, "steward: refused: {why}");
}

/// Ends the run because of the machine or the bundle.
pub fn refuse(error: &HostError) -> ! {
    refused(format_args!("{error}"));
    end(Status::REFUSED, format_args!("refused: {error}"))
}

/// Starts the machine again, with what it is booted from.
pub fn reboot() -> ! {
    percpu::stop_others();
    guests_are_over();
    // Neither output fails.
    let _ = writeln!(Out, "\nsteward: the machine starts again");
    serial::CONSOLE.flush();
    legacy::reset()
}

pub(super) fn leave(out: &mut dyn Write, status: Status, reason: fmt::Arguments<'_>) -> ! {
    say(out, status, reason);
    exit(status);
    stop()
}

/// The line that says how the run ended; only this CPU goes on.
fn say(out: &mut dyn Write, status: Status, reason: fmt::Arguments<'_>) {
    percpu::stop_others();
    // Bytes that wait in the ring must not keep the last line out.
    serial::CONSOLE.flush();
    // Neither output fails. A guest may have left its line unfinished.
    let _ = write!(out, "\nsteward: end: status={}", status.0);
    if let Some(key) = KEY.get() {
        // Neither output fails.
        let _ = write!(out, " key={key}");
    }
    // Neither output fails.
    let _ = writeln!(out, " reason={reason}");
    serial::CONSOLE.flush();
}

/// Ends the emulator, if the machine is one.
fn exit(status: Status) {
    match EXIT.load(Ordering::Relaxed) {
        1 => {
            // SAFETY: the bundle says that the machine has this device, which
            // ends the emulator.
            unsafe { outl(0xf4, status.0.into()) };
        }
        2 => {
            for byte in *b"Shutdown" {
                // SAFETY: the bundle says that the machine is Bochs, whose
                // port this is.
                unsafe { outb(0x8900, byte) };
            }
        }
        _ => {}
    }
}
