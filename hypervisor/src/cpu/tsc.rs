//! How fast the time-stamp counter runs.
//!
//! CPUID's word for it is not taken: emulators and firmware have been wrong.
//! Channel 2 of the PIT, whose rate is the same in every PC, is the judge.

use super::asm::{inb, outb, rdtsc};
use crate::error::HostError;
use core::sync::atomic::{AtomicU64, Ordering};

const PIT_HZ: u64 = 1_193_182;
const PIT_CHANNEL2: u16 = 0x42;
const PIT_COMMAND: u16 = 0x43;
const GATE_PORT: u16 = 0x61;
/// About 20 ms.
const WINDOW_COUNTS: u16 = 23_864;

static KHZ: AtomicU64 = AtomicU64::new(0);

/// Ticks of the time-stamp counter in a millisecond; 0 before [`calibrate`].
#[must_use]
pub fn khz() -> u64 {
    KHZ.load(Ordering::Relaxed)
}

/// Waits for `us` microseconds. Only for the boot.
pub fn wait_us(us: u64) {
    let ticks = khz() * us / 1000;
    let start = rdtsc();
    while rdtsc().wrapping_sub(start) < ticks {
        core::hint::spin_loop();
    }
}

fn port_in(port: u16) -> u8 {
    // SAFETY: reading the PIT's ports and the gate port affects nothing else.
    unsafe { inb(port) }
}

fn port_out(port: u16, value: u8) {
    // SAFETY: channel 2 of the PIT drives the speaker only, which stays off.
    unsafe { outb(port, value) };
}

/// One measurement: TSC ticks while channel 2 counts [`WINDOW_COUNTS`] down.
fn measure() -> Option<u64> {
    let [low, high] = WINDOW_COUNTS.to_le_bytes();
    // Gate off, speaker off; mode 0 counts down once the gate opens and raises
    // its output, which port 0x61 shows, at zero.
    port_out(GATE_PORT, port_in(GATE_PORT) & !3);
    port_out(PIT_COMMAND, 0b1011_0000);
    port_out(PIT_CHANNEL2, low);
    port_out(PIT_CHANNEL2, high);
    let gate = port_in(GATE_PORT) & !2 | 1;
    // Before the gate opens: whatever comes between makes the measurement
    // longer, and the least of several is taken.
    let start = rdtsc();
    port_out(GATE_PORT, gate);
    // A second at 10 GHz and one step per tick: a stopped PIT must not hang us.
    for _ in 0..100_000_000u64 {
        if port_in(GATE_PORT) & 0x20 != 0 {
            let ticks = rdtsc().wrapping_sub(start);
            port_out(GATE_PORT, port_in(GATE_PORT) & !3);
            return Some(ticks);
        }
    }
    None
}

/// Measures the time-stamp counter and returns its rate in kHz.
///
/// # Errors
/// [`HostError::NoClock`] if it does not count, or the PIT does not.
pub fn calibrate() -> Result<u64, HostError> {
    // What disturbs a measurement makes it longer, so the least is the best.
    let mut best = u64::MAX;
    for _ in 0..5 {
        best = best.min(measure().ok_or(HostError::NoClock)?);
    }
    let khz = best * PIT_HZ / u64::from(WINDOW_COUNTS) / 1000;
    if khz == 0 {
        return Err(HostError::NoClock);
    }
    KHZ.store(khz, Ordering::Relaxed);
    Ok(khz)
}
