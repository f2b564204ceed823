//! The model of CPU that guests see, beside what the host's CPU decides.

use super::xstate;
use x86defs::Xcr0;

/// Extended states that a guest may use: all that is saved and restored for it.
pub const XCR0: Xcr0 = xstate::KNOWN;
/// Rate at which the local APIC's timer counts before its divider, in Hz: nanoseconds.
pub const APIC_TIMER_HZ: u32 = 1_000_000_000;
/// Revision of the microcode that a guest reads.
pub const MICROCODE: u32 = 0x0100_0065;
