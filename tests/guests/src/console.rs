//! The first serial port, polled: `print!` and `println!`.

use crate::io::{inb, outb};
use core::fmt::{self, Write};

/// The first serial port.
pub const COM1: u16 = 0x3f8;
const LINE_STATUS: u16 = COM1 + 5;
const TRANSMITTER_EMPTY: u8 = 0x20;
const DATA_READY: u8 = 1;

/// Sets 115,200 baud, 8N1, FIFOs on, no interrupts.
pub fn init() {
    outb(COM1 + 1, 0);
    outb(COM1 + 3, 0x80);
    outb(COM1, 1);
    outb(COM1 + 1, 0);
    outb(COM1 + 3, 3);
    outb(COM1 + 2, 7);
    outb(COM1 + 4, 3);
}

/// Sends one byte; waits for room, though not for ever.
pub fn put(byte: u8) {
    for _ in 0..1_000_000 {
        if inb(LINE_STATUS) & TRANSMITTER_EMPTY != 0 {
            break;
        }
    }
    outb(COM1, byte);
}

/// The next byte received, if there is one.
#[must_use]
pub fn get() -> Option<u8> {
    (inb(LINE_STATUS) & DATA_READY != 0).then(|| inb(COM1))
}

/// Lets bytes that arrive interrupt, on the port's line (4) of the 8259s.
pub fn interrupt_on_input() {
    // OUT2 lets the line through to the interrupt controllers.
    outb(COM1 + 4, 0xb);
    outb(COM1 + 1, 1);
}

/// Writes to the serial port, a newline as CR LF.
pub struct Console;

impl Write for Console {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            if byte == b'\n' {
                put(b'\r');
            }
            put(byte);
        }
        Ok(())
    }
}

#[doc(hidden)]
pub fn print(arguments: fmt::Arguments<'_>) {
    // The console never reports an error.
    let _ = Console.write_fmt(arguments);
}

/// Prints on the serial port.
#[macro_export]
macro_rules! print {
    ($($t:tt)*) => { $crate::console::print(format_args!($($t)*)) };
}

/// Prints a line on the serial port.
#[macro_export]
macro_rules! println {
    () => { $crate::print!("\n") };
    ($($t:tt)*) => { $crate::console::print(format_args!("{}\n", format_args!($($t)*))) };
}
