//! Clocks: the PIT, the ACPI power-management timer and the TSC.

use crate::cpu::rdtsc;
use crate::harness::Shared;
use crate::io::{inb, inl, outb};

/// Ticks of the PIT in a second.
pub const PIT_HZ: u64 = 1_193_182;
/// Ticks of the power-management timer in a second.
pub const PM_HZ: u64 = 3_579_545;
/// Its port.
pub const PM_TIMER: u16 = 0x608;

static TSC_HZ: Shared<u64> = Shared::new(0);

/// The power-management timer's 24 bits.
#[must_use]
pub fn pm_timer() -> u64 {
    u64::from(inl(PM_TIMER) & 0xff_ffff)
}

/// Waits until `ticks` of the power-management timer have passed; returns how many did.
pub fn pm_wait(ticks: u64) -> u64 {
    let (mut passed, mut last) = (0, pm_timer());
    while passed < ticks {
        let now = pm_timer();
        passed += now.wrapping_sub(last) & 0xff_ffff;
        last = now;
    }
    passed
}

/// Lets PIT channel 2 count down from `count` in mode 0 and waits for its
/// output: how many TSC ticks that took. `None` if it never came.
#[must_use]
pub fn pit_wait(count: u16) -> Option<u64> {
    let [low, high] = count.to_le_bytes();
    outb(0x61, inb(0x61) & !2 | 1);
    outb(0x43, 0xb0);
    outb(0x42, low);
    outb(0x42, high);
    let start = rdtsc();
    for _ in 0..20_000_000 {
        if inb(0x61) & 0x20 != 0 {
            return Some(rdtsc() - start);
        }
    }
    None
}

/// The TSC's frequency, measured once: by the power-management timer, or by
/// the PIT where that timer does not move.
pub fn tsc_hz() -> u64 {
    if TSC_HZ.get() == 0 {
        let first = pm_timer();
        let moves = (0..100_000).any(|_| pm_timer() != first);
        let hz = if moves {
            // A guest that loses the CPU at either end of the wait counts too much, never too
            // little.
            let measured = (0..3).map(|_| {
                let start = rdtsc();
                let ticks = pm_wait(PM_HZ / 50);
                (rdtsc() - start) * PM_HZ / ticks
            });
            measured.min().unwrap_or(0)
        } else {
            pit_wait(59_659).map_or(1_000_000_000, |ticks| ticks * 20)
        };
        TSC_HZ.set(hz.max(1));
    }
    TSC_HZ.get()
}

/// TSC ticks in so many microseconds.
pub fn micros(n: u64) -> u64 {
    tsc_hz() / 1000 * n / 1000
}

/// Spins for so many microseconds.
pub fn delay(n: u64) {
    let end = rdtsc() + micros(n);
    while rdtsc() < end {
        crate::cpu::pause();
    }
}

/// Spins until the condition holds, for at most so many milliseconds.
pub fn wait_for(milliseconds: u64, mut condition: impl FnMut() -> bool) -> bool {
    let end = rdtsc() + micros(milliseconds * 1000);
    loop {
        if condition() {
            return true;
        }
        if rdtsc() > end {
            return condition();
        }
        crate::cpu::pause();
    }
}

/// Whether `a` and `b` are within `percent` of each other.
#[must_use]
pub fn close(a: u64, b: u64, percent: u64) -> bool {
    a.abs_diff(b).saturating_mul(100) <= a.max(b).saturating_mul(percent)
}
