//! The PC's old devices: interrupt controllers, timer, real-time clock.

use crate::io::{inb, inl, outb, outl};

/// Configuration space of the PCI bus.
pub mod pci {
    use super::{inl, outl};

    fn choose(device: u32, function: u32, register: u32) {
        outl(0xcf8, 1 << 31 | device << 11 | function << 8 | register);
    }

    /// Reads a register of 32 bits.
    #[must_use]
    pub fn read(device: u32, function: u32, register: u32) -> u32 {
        choose(device, function, register);
        inl(0xcfc)
    }

    /// Writes a register of 32 bits.
    pub fn write(device: u32, function: u32, register: u32, value: u32) {
        choose(device, function, register);
        outl(0xcfc, value);
    }
}

/// The pair of 8259 interrupt controllers.
pub mod pic {
    use super::{inb, outb};
    /// The first controller's command port.
    pub const FIRST: u16 = 0x20;
    /// The second controller's command port.
    pub const SECOND: u16 = 0xa0;
    /// Vector of interrupt line 0.
    pub const VECTOR: u8 = 0x20;

    /// Initialises both: vectors from [`VECTOR`], every line masked.
    pub fn init() {
        for (port, vector, wiring) in [(FIRST, VECTOR, 4), (SECOND, VECTOR + 8, 2)] {
            outb(port, 0x11);
            outb(port + 1, vector);
            outb(port + 1, wiring);
            outb(port + 1, 1);
            outb(port + 1, 0xff);
        }
    }

    /// Masks every line but those whose bit is set (bit 2, the cascade, is
    /// added where the second controller needs it).
    pub fn unmask_only(lines: u16) {
        let lines = if lines & 0xff00 == 0 { lines } else { lines | 4 };
        let [first, second] = (!lines).to_le_bytes();
        outb(FIRST + 1, first);
        outb(SECOND + 1, second);
    }

    /// Ends the interrupt of a line (non-specific).
    pub fn eoi(line: u8) {
        if line >= 8 {
            outb(SECOND, 0x20);
        }
        outb(FIRST, 0x20);
    }

    /// Lines requested.
    #[must_use]
    pub fn requested() -> u16 {
        outb(FIRST, 0x0a);
        outb(SECOND, 0x0a);
        u16::from_le_bytes([inb(FIRST), inb(SECOND)])
    }

    /// Lines in service.
    #[must_use]
    pub fn in_service() -> u16 {
        outb(FIRST, 0x0b);
        outb(SECOND, 0x0b);
        u16::from_le_bytes([inb(FIRST), inb(SECOND)])
    }
}

/// The 8254 timer.
pub mod pit {
    use super::{inb, outb};

    /// Programs a channel: mode 0 to 5, both bytes of the count, binary.
    pub fn program(channel: u8, mode: u8, count: u16) {
        let [low, high] = count.to_le_bytes();
        outb(0x43, channel << 6 | 0x30 | mode << 1);
        outb(0x40 + u16::from(channel), low);
        outb(0x40 + u16::from(channel), high);
    }

    /// Latches and reads a channel's count.
    #[must_use]
    pub fn count(channel: u8) -> u16 {
        outb(0x43, channel << 6);
        let port = 0x40 + u16::from(channel);
        u16::from_le_bytes([inb(port), inb(port)])
    }

    /// Reads back a channel's status byte.
    #[must_use]
    pub fn status(channel: u8) -> u8 {
        outb(0x43, 0xe0 | 2 << channel);
        inb(0x40 + u16::from(channel))
    }

    /// Stops channel 0's interrupts: mode 0 with its count half written.
    pub fn stop() {
        outb(0x43, 0x30);
        outb(0x40, 0);
    }
}

/// The real-time clock and its memory.
pub mod rtc {
    use super::{inb, outb};

    /// Reads a register.
    #[must_use]
    pub fn read(index: u8) -> u8 {
        outb(0x70, index);
        inb(0x71)
    }

    /// Writes a register.
    pub fn write(index: u8, value: u8) {
        outb(0x70, index);
        outb(0x71, value);
    }
}
