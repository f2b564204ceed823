//! Vectors of the machine's interrupts.

/// Vector of this CPU's timer.
pub const TIMER_VECTOR: u8 = 0xf0;
/// Vector of a kick from another CPU.
pub const KICK_VECTOR: u8 = 0xf1;
/// Vector for spurious interrupts of the local APIC.
pub const SPURIOUS_VECTOR: u8 = 0xff;
/// Vectors that drivers of the machine's devices get.
pub const FREE: core::ops::Range<u8> = 0x30..TIMER_VECTOR;
/// First vector of the machine's interrupt controllers of old.
pub const LEGACY_VECTOR_BASE: u8 = 0x20;
