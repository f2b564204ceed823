//! The time-stamp counter: its rate, and whether guests may rely on it.

use super::asm::rdtsc;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// CPUID leaf 8000_0007 EDX: the TSC's rate is the same in all power states.
const LEAF8000_0007_EDX_INVARIANT: u32 = 1 << 8;

static KHZ: AtomicU64 = AtomicU64::new(0);
/// All CPUs' counters were found to agree.
static TOGETHER: AtomicBool = AtomicBool::new(true);

/// Ticks of the time-stamp counter in a millisecond; 0 before it was measured.
#[must_use]
pub fn khz() -> u64 {
    KHZ.load(Ordering::Relaxed)
}

/// The counter was measured.
pub fn set_khz(khz: u64) {
    KHZ.store(khz, Ordering::Relaxed);
}

/// Waits for `us` microseconds. Only for the boot.
pub fn wait_us(us: u64) {
    let ticks = khz() * us / 1000;
    let start = rdtsc();
    while rdtsc().wrapping_sub(start) < ticks {
        core::hint::spin_loop();
    }
}

/// The CPUs' counters do not agree.
pub fn set_apart() {
    TOGETHER.store(false, Ordering::Relaxed);
}

/// Whether the rate never changes: the CPU promises it (SDM: "Invariant TSC"), or a
/// hypervisor makes the CPU. Hypervisors hide the promise from guests that may move to another
/// machine; what power states do to a counter they hide as well.
#[must_use]
pub fn is_invariant() -> bool {
    super::cpuid_checked(0x8000_0007, 0).edx & LEAF8000_0007_EDX_INVARIANT != 0
        || super::is_virtual_machine()
}

/// Whether guests can be promised that time read on any CPU is the same, and always runs at
/// the same rate.
#[must_use]
pub fn is_dependable() -> bool {
    TOGETHER.load(Ordering::Relaxed) && is_invariant()
}
