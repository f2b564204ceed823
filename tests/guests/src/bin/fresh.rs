//! Memory that another guest had before. The two guests of this program have `mib=N` of it,
//! and `kib=N` more.
//!
//! With `fill` the guest writes a pattern to its RAM, the whole blocks of 2 MiB of it; then,
//! when it has rested, it reads what is left, rests again and switches off. With `seek` it
//! waits for a byte on its console and then touches one fresh block of 2 MiB after the other,
//! faster than they can be zeroed ahead. While a block is on its way, its second CPU, if it has
//! time just then, has the hypervisor use the end of it: read it for string output and for a
//! console write, write the clock there, keep steal time there.
//! The pattern must never be seen, nothing that the hypervisor wrote may be lost, and each
//! block must be zero. The last line is
//!
//! ```text
//! fresh: BLOCKS blocks, SEEN seen, LOST lost, DIRTY dirty
//! ```
//!
//! where a console write shows the pattern itself.
#![no_std]
#![no_main]

use core::arch::asm;
use core::sync::atomic::{AtomicU64, Ordering::SeqCst};
use guests::apic::{Lapic, bits, reg};
use guests::harness::{halt, power_off};
use guests::info::peek;
use guests::io::{inb, outb};
use guests::{console, cpu, info, println, smp, time, trap};
use hvabi::{Call, Registers};

guests::entry!(main);

/// The first guest leaves this behind, in each word.
const PATTERN: u64 = u64::from_le_bytes(*b"OLDBYTES");
/// Bytes of a block.
const BLOCK: u64 = 2 << 20;
/// Bytes at the end of a block that the second CPU has the hypervisor use.
const END: u64 = 4096;
/// Fresh memory begins here, above what is loaded.
const START: u64 = 16 << 20;
/// Low memory ends here.
const LOW_END: u64 = 0xa_0000;
/// RAM goes on here behind it.
const HIGH: u64 = 1 << 20;
/// The timer's vector.
const TIMER: u8 = 0x50;
/// IA32_TSC_DEADLINE.
const DEADLINE: u32 = 0x6e0;
/// A register of the serial port that only keeps a byte.
const SCRATCH: u16 = console::COM1 + 7;
/// KVM's MSR of steal time.
const STEAL_MSR: u32 = 0x4b56_4d03;

/// The block's number that is touched next, plus 1; the one that has been touched; the one
/// that the second CPU was done with last, which leaves out those that it has no time for.
static BEGUN: AtomicU64 = AtomicU64::new(0);
static TOUCHED: AtomicU64 = AtomicU64::new(0);
static DONE: AtomicU64 = AtomicU64::new(0);
/// How often the pattern was seen, and how often something was lost.
static SEEN: AtomicU64 = AtomicU64::new(0);
static LOST: AtomicU64 = AtomicU64::new(0);

fn main() -> ! {
    let end = info::number("mib").unwrap_or(64) << 20;
    if info::flag("fill") {
        let mut at = START;
        while at < end {
            fill(at);
            at += BLOCK;
        }
        rest();
        // The hypervisor has had time to zero blocks ahead, of which there are none left.
        let more = info::number("kib").unwrap_or(0) << 10;
        for page in (4096..LOW_END).chain(HIGH..START).chain(end..end + more).step_by(4096) {
            let _ = peek::<u8>(page);
        }
        rest();
        println!("fresh: filled");
        power_off()
    }
    println!("fresh: ready");
    while console::get().is_none() {
        rest();
    }
    if let Err(why) = smp::start(1, second) {
        println!("FAILED start: {why}");
        power_off()
    }
    let mut blocks = 0;
    let mut at = START;
    while at < end {
        blocks += 1;
        BEGUN.store(blocks, SeqCst);
        touch(at);
        if peek::<u64>(at + BLOCK - 8) != 0 {
            SEEN.fetch_add(1, SeqCst);
        }
        TOUCHED.store(blocks, SeqCst);
        at += BLOCK;
    }
    if !time::wait_for(10_000, || DONE.load(SeqCst) == blocks) {
        println!("FAILED block {blocks}: the second CPU is stuck");
        power_off()
    }
    let dirty = (0..blocks).filter(|block| !is_zero(START + block * BLOCK, BLOCK - END)).count();
    let (seen, lost) = (SEEN.load(SeqCst), LOST.load(SeqCst));
    println!("fresh: {blocks} blocks, {seen} seen, {lost} lost, {dirty} dirty");
    power_off()
}

/// The second CPU.
fn second() -> ! {
    let mut number = 0;
    loop {
        while BEGUN.load(SeqCst) == number {
            core::hint::spin_loop();
        }
        number = BEGUN.load(SeqCst);
        // The first CPU is to be first, by a little that differs.
        for _ in 0..number % 8 * 100 {
            core::hint::spin_loop();
        }
        use_end(number, START + number * BLOCK - END);
        while TOUCHED.load(SeqCst) < number {
            core::hint::spin_loop();
        }
        check_end(number, START + number * BLOCK - END);
        DONE.store(number, SeqCst);
        if number == u64::MAX {
            halt()
        }
    }
}

/// Has the hypervisor use the page at `at`, while the block before it is fresh.
fn use_end(number: u64, at: u64) {
    match number % 4 {
        0 => loop {
            let [old, ..] = PATTERN.to_le_bytes();
            outb(SCRATCH, 0);
            outsb(at);
            if inb(SCRATCH) == old {
                SEEN.fetch_add(1, SeqCst);
            }
            if TOUCHED.load(SeqCst) >= number {
                break;
            }
        },
        1 => {
            for _ in 0..4 {
                call(Call::ConsoleWrite { address: at + 64, length: 16 }.into());
            }
        }
        2 => {
            let pairing = hvabi::kvm::call::CLOCK_PAIRING;
            call(Registers { rax: pairing, rbx: at + 128, ..Registers::default() });
        }
        _ => write_msr(STEAL_MSR, (at + 192) | 1),
    }
}

/// Looks at the page when the first CPU has touched the block.
fn check_end(number: u64, at: u64) {
    match number % 4 {
        2 if peek::<u64>(at + 128) == 0 => {
            LOST.fetch_add(1, SeqCst);
        }
        3 => {
            // No vCPU has waited for years.
            if peek::<u64>(at + 192) >> 48 != 0 {
                SEEN.fetch_add(1, SeqCst);
            }
            write_msr(STEAL_MSR, 0);
        }
        _ => {}
    }
}

/// Leaves the CPU to others for 50 ms.
fn rest() {
    cpu::sti();
    let apic = Lapic::now();
    apic.enable();
    trap::on(TIMER, Some(|_| Lapic::now().eoi()));
    apic.write(reg::LVT_TIMER, bits::TSC_DEADLINE | u32::from(TIMER));
    let before = trap::count(TIMER);
    cpu::cli();
    // Without such a timer there is no rest either.
    let armed = cpu::wrmsr(DEADLINE, cpu::rdtsc().wrapping_add(time::tsc_hz() / 20)).is_ok();
    while armed && trap::count(TIMER) == before {
        cpu::wait_for_interrupt();
        cpu::cli();
    }
}

fn fill(at: u64) {
    // SAFETY: it is RAM that nobody uses.
    unsafe {
        asm!("rep stosq", inout("rcx") BLOCK / 8 => _, inout("rdi") at => _, in("rax") PATTERN,
            options(nostack));
    }
}

fn touch(at: u64) {
    // SAFETY: it is RAM that nobody uses.
    unsafe { asm!("mov byte ptr [{at}], 0", at = in(reg) at, options(nostack)) };
}

fn is_zero(at: u64, bytes: u64) -> bool {
    let other: u8;
    // SAFETY: it reads RAM.
    unsafe {
        asm!("xor eax, eax", "repe scasq", "setne {other}", other = out(reg_byte) other,
            inout("rcx") bytes / 8 => _, inout("rdi") at => _, out("rax") _,
            options(nostack, readonly));
    }
    other == 0
}

fn outsb(at: u64) {
    // SAFETY: it reads RAM, and the port keeps a byte.
    unsafe { asm!("outsb", in("dx") SCRATCH, inout("rsi") at => _, options(nostack)) };
}

/// WRMSR, on a CPU that catches no exceptions.
fn write_msr(msr: u32, value: u64) {
    let (low, high) = (cpu::low32(value), cpu::low32(value >> 32));
    // SAFETY: the hypervisor offers this MSR, and the page that it names is RAM.
    unsafe { asm!("wrmsr", in("ecx") msr, in("eax") low, in("edx") high, options(nostack)) };
}

/// A hypercall, on a CPU that catches no exceptions.
fn call(before: Registers) {
    let Registers { rax, rbx, rcx, rdx, rsi } = before;
    macro_rules! with {
        ($instruction:literal) => {
            // SAFETY: the call reads or writes RAM of which nobody else uses anything.
            unsafe {
                asm!("xchg rbx, rdi", $instruction, "xchg rbx, rdi", inout("rax") rax => _,
                    inout("rdi") rbx => _, inout("rcx") rcx => _, inout("rdx") rdx => _,
                    inout("rsi") rsi => _, options(nostack));
            }
        };
    }
    if cpu::is_amd() { with!("vmmcall") } else { with!("vmcall") }
}
