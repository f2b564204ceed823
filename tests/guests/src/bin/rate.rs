//! Says what the guest is told of its clock, in one line, and switches off:
//!
//! ```text
//! rate: KHZ kHz, invariant 0|1, stable 0|1
//! ```
//!
//! With `seconds=N` it first prints `second: S at T` when its real-time clock goes on to the
//! second S of a minute, N times; T is its TSC then.
#![no_std]
#![no_main]

use guests::cpu::{cpuid, rdtsc};
use guests::harness::power_off;
use guests::{info, pc, println};

guests::entry!(main);

/// The rate of the TSC, in kHz.
const TIMING: u32 = 0x4000_0010;
/// KVM's features; bit 24 says that its clock is stable.
const KVM_FEATURES: u32 = 0x4000_0101;
/// Advanced power management; bit 8 of EDX says that the TSC is invariant.
const POWER: u32 = 0x8000_0007;

fn main() -> ! {
    let mut shown = pc::rtc::read(0);
    for _ in 0..info::number("seconds").unwrap_or(0) {
        let before = shown;
        while shown == before {
            shown = pc::rtc::read(0);
        }
        println!("second: {shown:02x} at {}", rdtsc());
    }
    println!(
        "rate: {} kHz, invariant {}, stable {}",
        cpuid(TIMING, 0).eax,
        cpuid(POWER, 0).edx >> 8 & 1,
        cpuid(KVM_FEATURES, 0).eax >> 24 & 1
    );
    power_off()
}
