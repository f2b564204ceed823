//! The machine's own 8259 interrupt controllers: moved out of the exceptions'
//! way and masked, but for the lines that a driver asked for.

use super::asm::{inb, outb};
use super::vectors::LEGACY_VECTOR_BASE;

const PRIMARY: u16 = 0x20;
const SECONDARY: u16 = 0xa0;

fn out(port: u16, value: u8) {
    // SAFETY: the ports of the 8259 pair change interrupt routing only; every
    // vector they can raise has a handler.
    unsafe { outb(port, value) };
}

/// Puts both controllers in a known state: vectors 0x20 to 0x2f, all masked.
pub fn init() {
    out(PRIMARY, 0x11);
    out(SECONDARY, 0x11);
    out(PRIMARY + 1, LEGACY_VECTOR_BASE);
    out(SECONDARY + 1, LEGACY_VECTOR_BASE + 8);
    out(PRIMARY + 1, 4);
    out(SECONDARY + 1, 2);
    out(PRIMARY + 1, 1);
    out(SECONDARY + 1, 1);
    out(PRIMARY + 1, 0xff);
    out(SECONDARY + 1, 0xff);
}

/// Lets `line` (0 to 7) interrupt.
pub fn unmask(line: u8) {
    // SAFETY: reading the mask register has no effect.
    let mask = unsafe { inb(PRIMARY + 1) };
    out(PRIMARY + 1, mask & !(1 << (line & 7)));
}

/// Acknowledges `line` (0 to 15), unless it was spurious.
pub fn end_of_interrupt(line: u64) {
    let port = if line < 8 { PRIMARY } else { SECONDARY };
    // A spurious 7 or 15 has no in-service bit, and an EOI would end another.
    if line % 8 == 7 {
        out(port, 0x0b);
        // SAFETY: reading the in-service register has no effect.
        if unsafe { inb(port) } & 0x80 == 0 {
            return;
        }
    }
    if line >= 8 {
        out(SECONDARY, 0x20);
    }
    out(PRIMARY, 0x20);
}

/// Resets the machine: by the chip set's reset register, or the keyboard
/// controller's line where there is none.
pub fn reset() -> ! {
    for (port, value) in [(0xcf9, 0x02), (0xcf9, 0x06), (0x64, 0xfe)] {
        // SAFETY: nothing of the machine is needed any more.
        unsafe { outb(port, value) };
    }
    super::asm::stop()
}
