//! A guest that attacks the scheduler: it computes briefly and sleeps briefly, or has
//! one of its CPUs wake the other all the time.
//!
//! `bursts=B,B… sleeps=S,S… phase=T rounds=N`: for each pair, and T ticks of the TSC,
//! computes B microseconds, arms its timer S microseconds ahead, and halts; all of that
//! N times. A microsecond is 1000 ticks, and a tick an instruction, as on emulators
//! that count. Each phase prints a line
//!
//! ```text
//! window I share=PER_MILLE burst=B sleep=S
//! ```
//!
//! `storm=D rounds=N phase=T`: a second CPU sends the first one an interrupt every D
//! ticks; the first one only halts.
#![no_std]
#![no_main]

use core::arch::asm;
use guests::apic::{Lapic, bits, reg};
use guests::cpu::{self, rdtsc, wrmsr};
use guests::harness::power_off;
use guests::{info, println, smp, time, trap};

guests::entry!(main);

/// The timer's vector, and that of the storm.
const VECTOR: u8 = 0x50;
/// IA32_TSC_DEADLINE.
const DEADLINE: u32 = 0x6e0;
/// The x2APIC's interrupt command register.
const ICR: u32 = 0x830;
/// Ticks of a microsecond.
const MICRO: u64 = 1000;

fn main() -> ! {
    trap::on(VECTOR, Some(|_| Lapic::now().eoi()));
    let phase = info::number("phase").unwrap_or(10_000_000);
    let rounds = info::number("rounds").unwrap_or(1);
    println!("attack: {rounds} rounds, phases of {phase} ticks");
    if info::number("storm").is_some() {
        stormed(phase.saturating_mul(rounds));
    } else {
        alarms(phase, rounds);
    }
    println!("attack: done");
    power_off()
}

/// The numbers of the option `name`.
fn list(name: &str) -> impl Iterator<Item = u64> {
    info::option(name).unwrap_or("25").split(',').filter_map(|word| word.parse().ok())
}

fn alarms(phase: u64, rounds: u64) {
    let apic = Lapic::to_x2apic();
    apic.enable();
    apic.write(reg::LVT_TIMER, bits::TSC_DEADLINE | u32::from(VECTOR));
    let (mut window, mut start) = (0, rdtsc());
    for _ in 0..rounds {
        for burst in list("bursts") {
            for sleep in list("sleeps") {
                let mut work = 0;
                while rdtsc().wrapping_sub(start) < phase {
                    compute(burst * MICRO);
                    work += burst * MICRO;
                    if wrmsr(DEADLINE, rdtsc().wrapping_add(sleep * MICRO)).is_ok() {
                        cpu::wait_for_interrupt();
                    }
                }
                let end = rdtsc();
                let share = work * 1000 / end.wrapping_sub(start);
                println!("window {window} share={share} burst={burst} sleep={sleep}");
                (start, window) = (end, window + 1);
            }
        }
    }
}

/// Computes for `ticks` instructions.
fn compute(ticks: u64) {
    // An emulated CPU of AMD's is told of the machine's interrupts only while the
    // guest takes interrupts.
    cpu::sti();
    // SAFETY: the loop changes nothing but its counter.
    unsafe {
        asm!("2: dec {n}", "jnz 2b", n = inout(reg) (ticks / 2).max(1) => _, options(nomem, nostack));
    }
    cpu::cli();
}

/// Halts, and halts again whenever the second CPU has woken it, for `ticks`.
fn stormed(ticks: u64) {
    if let Err(why) = smp::start(1, storm) {
        println!("attack: {why}");
        return;
    }
    time::delay(10_000);
    Lapic::to_x2apic().enable();
    let start = rdtsc();
    let mut woken = 0_u64;
    while rdtsc().wrapping_sub(start) < ticks {
        cpu::wait_for_interrupt();
        woken += 1;
    }
    println!("attack: woken {woken} times");
}

/// Work of the second CPU: a storm of interrupts.
fn storm() -> ! {
    Lapic::to_x2apic().enable();
    let every = info::number("storm").unwrap_or(MICRO);
    loop {
        let _ = wrmsr(ICR, u64::from(bits::ASSERT | u32::from(VECTOR)));
        compute(every);
    }
}
