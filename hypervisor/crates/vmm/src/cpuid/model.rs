//! The model of CPU that guests see, beside what the host's CPU decides.

use super::FeatureBit;
use x86defs::Xcr0;

/// Extended states that a guest may use.
pub const XCR0: Xcr0 = Xcr0::X87.union(Xcr0::SSE).union(Xcr0::AVX);
/// Rate at which the local APIC's timer counts before its divider, in Hz: nanoseconds.
pub const APIC_TIMER_HZ: u32 = 1_000_000_000;
/// Revision of the microcode that a guest reads.
pub const MICROCODE: u32 = 0x0100_0065;
/// Features that no guest has, whatever the host's CPU offers.
pub const WITHHELD: [FeatureBit; 1] = [FeatureBit::PKU];
