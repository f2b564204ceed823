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
//!
//! A window begins where the one before it ended, and the hash is work that counts,
//! too: a gap would always be one in which the guest has the CPU.
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
/// Instructions that a word takes in [`hash`].
const PER_WORD: u64 = 7;
/// Address of that memory: 16 MiB, above what is loaded.
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
    let (mut start, mut work) = (rdtsc(), 0);
    for window in 0..windows {
        let mut worst = 0;
        while rdtsc().wrapping_sub(start) < ticks {
            match sleep {
                None => {
                    round();
                    work += ROUND;
                }
                Some(sleep) => worst = worst.max(lateness(sleep)),
            }
        }
        let end = rdtsc();
        let share = work * 1000 / end.wrapping_sub(start);
        (start, work) = (end, if sleep.is_none() { WORDS * PER_WORD } else { 0 });
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
    let mut hash = 0_u64;
    // SAFETY: it reads RAM that `fill` has filled.
    unsafe {
        asm!("2: mov {word:e}, [{at}]", "xor {hash}, {word}", "imul {hash}, {factor}",
            "rol {hash}, 5", "add {at}, 4", "dec {left}", "jnz 2b",
            word = out(reg) _, at = inout(reg) MEMORY => _, hash = inout(reg) hash,
            factor = in(reg) 0x0000_0100_0000_01b3_u64, left = inout(reg) WORDS => _,
            options(nostack, readonly));
    }
    hash
}
