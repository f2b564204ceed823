//! A neighbour: measures what it gets of the CPU, how late it wakes, and whether
//! its memory stays as it was.
//!
//! `windows=N ticks=T`: measures N windows of T ticks of the TSC, and then switches
//! off; without, one short window. `sleep=T`: sleeps T ticks at a time instead of
//! computing. Each window prints a line
//!
//! ```text
//! window I share=PER_MILLE late=WORST_TICKS hash=HEX
//! ```
#![no_std]
#![no_main]

use core::arch::asm;
use guests::apic::{Lapic, bits, reg};
use guests::cpu::{self, rdtsc, wrmsr};
use guests::harness::power_off;
use guests::{info, println, trap};

guests::entry!(main);

/// Instructions of one round of computing.
const ROUND: u64 = 20_000;
/// Memory that is looked after, in words.
const WORDS: u64 = 64 << 10;
/// Where it lies: 16 MiB, above what is loaded.
const MEMORY: u64 = 16 << 20;
/// The timer's vector.
const TIMER: u8 = 0x50;
/// IA32_TSC_DEADLINE.
const DEADLINE: u32 = 0x6e0;

fn main() -> ! {
    let windows = info::number("windows").unwrap_or(1);
    let ticks = info::number("ticks").unwrap_or(10_000_000);
    let sleep = info::number("sleep");
    // An emulated CPU of AMD's is told of the machine's interrupts only while the
    // guest takes interrupts.
    cpu::sti();
    fill();
    let apic = if Lapic::x2apic_offered() { Lapic::to_x2apic() } else { Lapic::now() };
    apic.enable();
    trap::on(TIMER, Some(|_| Lapic::now().eoi()));
    apic.write(reg::LVT_TIMER, bits::TSC_DEADLINE | u32::from(TIMER));
    println!("steady: {windows} windows of {ticks} ticks");
    for window in 0..windows {
        let start = rdtsc();
        let (mut rounds, mut worst) = (0, 0);
        while rdtsc().wrapping_sub(start) < ticks {
            match sleep {
                None => {
                    round();
                    rounds += 1;
                }
                Some(sleep) => worst = worst.max(lateness(sleep)),
            }
        }
        let elapsed = rdtsc().wrapping_sub(start);
        let share = rounds * ROUND * 1000 / elapsed;
        println!("window {window} share={share} late={worst} hash={:x}", hash());
    }
    println!("steady: done");
    power_off()
}

/// Computes for [`ROUND`] instructions.
fn round() {
    // SAFETY: the loop changes nothing but its counter.
    unsafe {
        asm!("2: dec {n}", "jnz 2b", n = inout(reg) ROUND / 2 => _, options(nomem, nostack));
    }
}

/// Sleeps for `ticks`; how late it woke.
fn lateness(ticks: u64) -> u64 {
    let before = trap::count(TIMER);
    let due = rdtsc().wrapping_add(ticks);
    cpu::cli();
    if wrmsr(DEADLINE, due).is_err() {
        return u64::MAX;
    }
    while trap::count(TIMER) == before {
        cpu::wait_for_interrupt();
        cpu::cli();
    }
    let late = rdtsc().wrapping_sub(due);
    cpu::sti();
    late
}

fn fill() {
    for word in 0..WORDS {
        let value = cpu::low32(word.wrapping_mul(0x9e37_79b9));
        guests::io::mmio_write32(MEMORY + word * 4, value);
    }
}

fn hash() -> u64 {
    (0..WORDS).fold(0, |hash: u64, word| {
        (hash ^ u64::from(guests::io::mmio_read32(MEMORY + word * 4)))
            .wrapping_mul(0x0000_0100_0000_01b3)
            .rotate_left(5)
    })
}
