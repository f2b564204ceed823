//! Devices of the real machine.

pub mod framebuffer;
pub mod rtc;
pub mod serial;

/// How often to look whether a CPU that was told to stop has left a lock: milliseconds.
const LOOKS: u32 = 1_000_000;

/// Waits, in a panic, for a lock that another CPU may be about to leave.
fn wait_in_panic(is_locked: impl Fn() -> bool) {
    for _ in (0..LOOKS).take_while(|_| is_locked()) {
        core::hint::spin_loop();
    }
}
