//! Port I/O.

use core::arch::asm;

macro_rules! port_functions {
    ($($read:ident $write:ident $ty:ty, $register:tt, $width:literal;)*) => {
        $(
            #[doc = concat!("IN of ", $width, " from `port`.")]
            #[must_use]
            pub fn $read(port: u16) -> $ty {
                let value: $ty;
                // SAFETY: port I/O touches no memory of ours.
                unsafe {
                    asm!(concat!("in ", $register, ", dx"), in("dx") port, out($register) value,
                        options(nomem, nostack, preserves_flags));
                }
                value
            }

            #[doc = concat!("OUT of ", $width, " to `port`.")]
            pub fn $write(port: u16, value: $ty) {
                // SAFETY: port I/O touches no memory of ours.
                unsafe {
                    asm!(concat!("out dx, ", $register), in("dx") port, in($register) value,
                        options(nostack, preserves_flags));
                }
            }
        )*
    };
}

port_functions! {
    inb outb u8, "al", "one byte";
    inw outw u16, "ax", "two bytes";
    inl outl u32, "eax", "four bytes";
}

/// Reads a device register of 32 bits in memory (identity-mapped).
#[must_use]
pub fn mmio_read32(address: u64) -> u32 {
    let value: u32;
    // SAFETY: a plain load; an address that is not mapped ends in the trap handler.
    unsafe { asm!("mov {v:e}, [{a}]", v = out(reg) value, a = in(reg) address, options(nostack)) };
    value
}

/// Writes a device register of 32 bits in memory (identity-mapped).
pub fn mmio_write32(address: u64, value: u32) {
    // SAFETY: addresses passed here are device registers, never Rust's memory.
    unsafe { asm!("mov [{a}], {v:e}", v = in(reg) value, a = in(reg) address, options(nostack)) };
}

/// Reads a device register of 64 bits in memory (identity-mapped).
#[must_use]
pub fn mmio_read64(address: u64) -> u64 {
    let value: u64;
    // SAFETY: a plain load; an address that is not mapped ends in the trap handler.
    unsafe { asm!("mov {v}, [{a}]", v = out(reg) value, a = in(reg) address, options(nostack)) };
    value
}

/// Writes a device register of 64 bits in memory (identity-mapped).
pub fn mmio_write64(address: u64, value: u64) {
    // SAFETY: addresses passed here are device registers, never Rust's memory.
    unsafe { asm!("mov [{a}], {v}", v = in(reg) value, a = in(reg) address, options(nostack)) };
}
