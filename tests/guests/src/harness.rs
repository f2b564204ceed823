//! Runs test cases and reports them.

use crate::io::{outb, outw};
use crate::{print, println};
use core::cell::UnsafeCell;
use core::fmt::{self, Write};

/// A value in a static that the one CPU and its interrupt handlers share.
/// Reads and writes are volatile copies.
pub struct Shared<T: Copy>(UnsafeCell<T>);

// SAFETY: there is one CPU; what interrupts a copy is a handler of the test that
// caused it, and no reference to the inside is ever handed out.
unsafe impl<T: Copy> Sync for Shared<T> {}

impl<T: Copy> Shared<T> {
    /// Wraps `value`.
    pub const fn new(value: T) -> Self {
        Self(UnsafeCell::new(value))
    }

    /// A copy of the value.
    pub fn get(&self) -> T {
        // SAFETY: the pointer is to a valid, initialised T; see `Sync` above.
        unsafe { self.0.get().read_volatile() }
    }

    /// Replaces the value.
    pub fn set(&self, value: T) {
        // SAFETY: as for `get`.
        unsafe { self.0.get().write_volatile(value) }
    }

    /// Address of the value.
    pub const fn address(&self) -> *mut T {
        self.0.get()
    }
}

/// A short message; what does not fit is cut off.
#[derive(Clone, Copy)]
pub struct Text {
    bytes: [u8; 200],
    length: usize,
}

impl Text {
    /// Formats a message.
    #[must_use]
    pub fn new(arguments: fmt::Arguments<'_>) -> Self {
        let mut text = Self { bytes: [0; 200], length: 0 };
        let _ = text.write_fmt(arguments);
        text
    }
}

impl Write for Text {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            if let Some(slot) = self.bytes.get_mut(self.length) {
                *slot = byte;
                self.length += 1;
            }
        }
        Ok(())
    }
}

impl fmt::Display for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(core::str::from_utf8(&self.bytes[..self.length]).unwrap_or("?"))
    }
}

/// Why a case did not pass; what to say about it waits until it is reported.
#[derive(Clone, Copy)]
pub enum Stop {
    /// It failed.
    Failed,
    /// It can't be tried on this machine.
    Skipped,
}

static WHY: Shared<Text> = Shared::new(Text { bytes: [0; 200], length: 0 });

impl Stop {
    /// The case failed.
    #[must_use]
    pub fn failed(why: fmt::Arguments<'_>) -> Self {
        WHY.set(Text::new(why));
        Self::Failed
    }

    /// The case can't be tried.
    #[must_use]
    pub fn skipped(why: fmt::Arguments<'_>) -> Self {
        WHY.set(Text::new(why));
        Self::Skipped
    }
}

/// Result of a case.
pub type Outcome = Result<(), Stop>;

/// Fails the case unless the condition holds.
#[macro_export]
macro_rules! check {
    ($condition:expr, $($message:tt)+) => {
        if !$condition {
            return Err($crate::harness::Stop::failed(format_args!($($message)+)));
        }
    };
}

/// Fails the case unless both are equal; says what it got and what it wanted, in hexadecimal.
#[macro_export]
macro_rules! check_eq {
    ($got:expr, $want:expr, $($message:tt)+) => {{
        let (got, want) = ($got, $want);
        $crate::check!(got == want, "{}: got {:x?}, expected {:x?}", format_args!($($message)+), got, want)
    }};
}

/// Skips the case, saying why.
#[macro_export]
macro_rules! skip {
    ($($message:tt)+) => {
        return Err($crate::harness::Stop::skipped(format_args!($($message)+)))
    };
}

static CURRENT: Shared<&'static str> = Shared::new("start");

/// The name of the case that runs.
pub fn current() -> &'static str {
    CURRENT.get()
}

/// Counts of a run.
#[derive(Default)]
pub struct Tests {
    passed: u32,
    failed: u32,
}

impl Tests {
    /// No cases yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Runs one case and prints its outcome. On the command line, `only=NAME`
    /// runs just the cases whose name begins so, and `trace` announces each.
    pub fn case(&mut self, name: &'static str, body: impl FnOnce() -> Outcome) {
        if crate::info::option("only").is_some_and(|only| !name.starts_with(only)) {
            return;
        }
        CURRENT.set(name);
        if crate::info::flag("trace") {
            println!("begin {name}");
        }
        match body() {
            Ok(()) => {
                self.passed += 1;
                println!("ok {name}");
            }
            Err(Stop::Skipped) => println!("skip {name}: {}", WHY.get()),
            Err(Stop::Failed) => {
                self.failed += 1;
                println!("FAILED {name}: {}", WHY.get());
            }
        }
        CURRENT.set("between cases");
    }

    /// Prints the summary and ends the guest.
    pub fn finish(self) -> ! {
        print!("{} passed, {} failed\n", self.passed, self.failed);
        exit(u8::from(self.failed != 0))
    }
}

/// Ends the guest with a value for port 0xf4; where there is no such port, by
/// switching the machine off.
pub fn exit(value: u8) -> ! {
    outb(0xf4, value);
    power_off()
}

/// ACPI soft-off through the PM1a control register, then a halt for ever. The
/// sleep type is 5, on bare QEMU 0.
pub fn power_off() -> ! {
    let sleep_type = if crate::cpu::on_bare_tcg() { 0 } else { 5 };
    outw(0x604, sleep_type << 10 | 1 << 13);
    halt()
}

/// Stops the CPU for good.
pub fn halt() -> ! {
    loop {
        // SAFETY: nothing goes on after this.
        unsafe { core::arch::asm!("cli", "hlt", options(nomem, nostack)) };
    }
}
