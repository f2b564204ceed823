//! Devices of the real machine.

pub mod clocks;
pub mod framebuffer;
pub mod rtc;
pub mod serial;

use crate::cpu::asm::rdtsc;

/// How long to wait for a CPU that was told to stop to leave a lock, in ticks of the
/// TSC: a fraction of a second.
const PATIENCE: u64 = 1 << 29;

/// Waits, in a panic, for a lock that another CPU may be about to leave.
fn wait_in_panic(is_locked: impl Fn() -> bool) {
    let until = rdtsc().saturating_add(PATIENCE);
    while is_locked() && rdtsc() < until {
        core::hint::spin_loop();
    }
}
