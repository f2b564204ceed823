//! The cost of an exit, in instructions that the guest sees go by.
//!
//! Each operation stands between two readings of the TSC. The same code without
//! the operation gives the overhead, which is taken off: so an operation that
//! causes no exit counts 1, itself. That the figures are instructions is the
//! machine's affair, whose TSC must count them. `n=` on the command line sets
//! how often each operation is done, `only=` a part of its name.
//!
//! For programs, a line for each operation: `bench NAME n=… min=… median=… p99=…
//! max=… mean=…`, `bench-skip NAME: why` or `bench-failed NAME: why`; at the end
//! `bench-end`.
#![no_std]
#![no_main]

use core::arch::{asm, global_asm};
use guests::apic::{Lapic, bits, reg};
use guests::cpu::{self, low32};
use guests::harness::{self, Shared};
use guests::pc::{pic, pit};
use guests::{info, print, println, trap};

guests::entry!(main);

/// How often each operation is done at most, and unless `n=` says otherwise.
const MOST: usize = 10_000;
/// How often before it counts.
const WARM_UP: usize = 16;
/// The vector whose handler reads the TSC first and then ends the interrupt.
const ARRIVAL: u8 = 0x61;
/// The vector whose handler measures the end of the interrupt.
const EOI: u8 = 0x62;
/// A halted CPU's deadline is so many ticks ahead: more than it takes to halt.
const NAP: u64 = 100_000;
/// An operation that took no longer than this caused no exit.
const NO_EXIT: u32 = 20;
/// Memory from here on nobody has touched before.
const UNTOUCHED: u64 = 16 << 20;
const PAGE: u64 = 4096;
/// After so many pages the guest rests, so that the hypervisor can zero others ahead:
/// far fewer than a guest's stock of them.
const REST_AFTER: usize = 4 * LARGE_PAGE;
/// How long it rests at least: this many ticks of the 8254, 55 ms.
const REST: u16 = 0xffff;
/// The pages whose first touch takes from the stock end here; what a touch costs where
/// there is none left is measured behind.
const FRESH: u64 = UNTOUCHED + ROOM as u64 * PAGE;
/// Large pages that are touched before touches count: all of a guest's stock.
const STOCK: usize = 8;
/// Zeroing 2 MiB takes longer than this many ticks; a touch of what is zeroed does not.
const ZEROING: u32 = 20_000;
/// Large pages that are touched when it counts.
const FRESH_BLOCKS: usize = 16;
/// Pages are touched in whole large pages, so that the average of their first touches
/// holds where one exit maps a large page.
const LARGE_PAGE: usize = 512;

/// The ticks of one operation, or why it could not be measured.
type Sample = Result<u32, &'static str>;

/// Something to measure.
struct Operation {
    name: &'static str,
    /// Does it once; the address is that of an untouched page.
    once: fn(u64) -> Sample,
    /// The same without the operation itself.
    empty: fn() -> u32,
    /// Done before it counts.
    warm_up: usize,
    /// The guest rests in between.
    rests: bool,
}

/// Ticks from RDTSC to RDTSC, over instructions that may change RAX, RBX, RCX and RDX.
/// Aligned, so that no operation stands at a page's end, where fetching it for
/// emulation walks the page tables twice.
macro_rules! ticks {
    ($address:expr, [$($instruction:literal),* $(,)?]) => {{
        let ticks: u32;
        // SAFETY: the operations below touch devices, and memory that is nobody's.
        unsafe {
            asm!(
                ".p2align 7",
                "mov r10, rbx",
                "rdtsc",
                "mov r8d, eax",
                $($instruction,)*
                "rdtsc",
                "sub eax, r8d",
                "mov rbx, r10",
                inout("rdi") $address => _,
                out("eax") ticks, out("ecx") _, out("edx") _, out("r8") _, out("r10") _,
            );
        }
        ticks
    }};
}

/// An operation, with what it needs in registers loaded before.
macro_rules! operation {
    ($name:literal, [$($load:literal),*], [$($instruction:literal),*]) => {
        Operation {
            name: $name,
            once: |address| Ok(ticks!(address, [$($load,)* $($instruction),*])),
            empty: || ticks!(0u64, [$($load),*]),
            warm_up: WARM_UP,
            rests: false,
        }
    };
}

fn main() -> ! {
    pic::init();
    pit::stop();
    let lapic = Lapic::now();
    lapic.enable();
    guests::apic::ioapic::mask_all();
    let run = Run::new();
    run.measure(&operation!("rdtsc", [], ["rdtsc"]));
    run.measure(&operation!("cpuid_0", ["xor eax, eax", "xor ecx, ecx"], ["cpuid"]));
    run.measure(&operation!("cpuid_1", ["mov eax, 1", "xor ecx, ecx"], ["cpuid"]));
    run.measure(&operation!("cpuid_d", ["mov eax, 0xd", "xor ecx, ecx"], ["cpuid"]));
    // KVM's poll for interrupts: the call that does nothing.
    run.measure(&if cpu::is_amd() {
        operation!("null_hypercall", ["mov eax, 1"], ["vmmcall"])
    } else {
        operation!("null_hypercall", ["mov eax, 1"], ["vmcall"])
    });
    // A number that nobody has.
    run.measure(&if cpu::is_amd() {
        operation!("unknown_hypercall", ["mov eax, 0x7fff"], ["vmmcall"])
    } else {
        operation!("unknown_hypercall", ["mov eax, 0x7fff"], ["vmcall"])
    });
    run.measure(&operation!("rdmsr_apic_base", ["mov ecx, 0x1b"], ["rdmsr"]));
    run.measure(&operation!("rdmsr_tsc", ["mov ecx, 0x10"], ["rdmsr"]));
    run.measure(&operation!("rdmsr_efer", ["mov ecx, 0xc0000080"], ["rdmsr"]));
    run.measure(&operation!("pic_read", [], ["in al, 0x21"]));
    // All lines stay masked.
    run.measure(&operation!("pic_write", ["mov eax, 0xff"], ["out 0x21, al"]));
    run.measure(&operation!("pit_read", [], ["in al, 0x40"]));
    run.measure(&operation!("port_61_read", [], ["in al, 0x61"]));
    run.measure(&operation!("uart_lsr_read", ["mov edx, 0x3fd"], ["in al, dx"]));
    run.measure(&operation!("port_80_write", [], ["out 0x80, al"]));
    run.measure(&operation!("ioapic_mmio_read", ["mov ebx, 0xfec00010"], ["mov eax, [rbx]"]));
    run.measure(&operation!("hole_read", ["mov ebx, 0xc0000"], ["mov eax, [rbx]"]));
    run.measure(&operation!("hole_write", ["mov ebx, 0xc0000"], ["mov [rbx], eax"]));
    run.memory();
    run.fresh_memory();
    run.local_apic(lapic);
    println!("bench-end");
    harness::exit(u8::from(FAILED.get()))
}

const ROOM: usize = MOST.next_multiple_of(LARGE_PAGE);
static SAMPLES: Shared<[u32; ROOM]> = Shared::new([0; ROOM]);
static FAILED: Shared<bool> = Shared::new(false);

struct Run {
    count: usize,
    only: &'static str,
}

impl Run {
    fn new() -> Self {
        let count = info::number("n").and_then(|n| usize::try_from(n).ok());
        Self {
            count: count.unwrap_or(MOST).clamp(1, MOST),
            only: info::option("only").unwrap_or(""),
        }
    }

    fn wants(&self, name: &str) -> bool {
        name.contains(self.only)
    }

    fn measure(&self, operation: &Operation) {
        self.measure_times(operation, self.count);
    }

    fn measure_times(&self, operation: &Operation, count: usize) {
        if !self.wants(operation.name) {
            return;
        }
        let overhead = (0..WARM_UP).map(|_| (operation.empty)()).min().unwrap_or(0);
        // SAFETY: nobody else, no handler either, uses the samples.
        let samples = unsafe { &mut *SAMPLES.address() };
        let Some(samples) = samples.get_mut(..count) else { return };
        for _ in 0..operation.warm_up {
            let _ = (operation.once)(0);
        }
        let mut page = UNTOUCHED;
        for (number, sample) in samples.iter_mut().enumerate() {
            if operation.rests && number % REST_AFTER == 0 {
                rest();
            }
            match (operation.once)(page) {
                Ok(ticks) => *sample = ticks.saturating_sub(overhead),
                Err(why) => {
                    FAILED.set(true);
                    println!("bench-failed {}: {why}", operation.name);
                    return;
                }
            }
            page += PAGE;
        }
        samples.sort_unstable();
        report(operation.name, samples);
    }

    /// The first touch of each page.
    fn memory(&self) {
        let touch = operation!("first_touch", [], ["mov byte ptr [rdi], 1"]);
        let pages = end_of_untouched().saturating_sub(UNTOUCHED) / PAGE;
        let pages = usize::try_from(pages).unwrap_or(ROOM);
        let count = self.count.next_multiple_of(LARGE_PAGE).min(pages - pages % LARGE_PAGE);
        if count == 0 {
            self.skip(touch.name, "there is too little memory");
            return;
        }
        self.measure_times(&Operation { warm_up: 0, rests: true, ..touch }, count);
        // One exit may map many pages: those that did cause one, apart.
        let name = "first_touch_exits";
        if self.wants(name) && self.wants(touch.name) {
            // SAFETY: nobody else, no handler either, uses the samples.
            let samples = unsafe { &*SAMPLES.address() };
            let sorted = samples.get(..count).unwrap_or_default();
            match sorted.get(sorted.partition_point(|ticks| *ticks <= NO_EXIT)..) {
                Some(exits @ [_, ..]) => report(name, exits),
                _ => self.skip(name, "no touch caused an exit"),
            }
        }
    }

    /// The first touch of 2 MiB when none are zeroed ahead any more.
    fn fresh_memory(&self) {
        let name = "fresh_2m";
        if !self.wants(name) {
            return;
        }
        let size = (STOCK + FRESH_BLOCKS) * LARGE_PAGE;
        if end_of_untouched() < FRESH + size as u64 * PAGE {
            return self.skip(name, "there is too little memory");
        }
        let touch = |address: u64| ticks!(address, ["mov byte ptr [rdi], 1"]);
        let overhead = (0..WARM_UP).map(|_| ticks!(0u64, [])).min().unwrap_or(0);
        let mut blocks = (FRESH..).step_by(LARGE_PAGE * 4096);
        for address in blocks.by_ref().take(STOCK) {
            touch(address);
        }
        let mut samples = [0; FRESH_BLOCKS];
        let mut count = 0;
        let last = end_of_untouched() - LARGE_PAGE as u64 * PAGE;
        for address in blocks.take_while(|address| *address <= last) {
            let Some(sample) = samples.get_mut(count) else { break };
            let ticks = touch(address).saturating_sub(overhead);
            // Not one of those that were zeroed ahead meanwhile.
            if ticks >= ZEROING {
                *sample = ticks;
                count += 1;
            }
        }
        let samples = &mut samples[..count];
        if samples.is_empty() {
            return self.skip(name, "all memory is zeroed ahead");
        }
        samples.sort_unstable();
        report(name, samples);
    }

    /// The local APIC: first in memory, then as MSRs, from where there is no way back.
    fn local_apic(&self, lapic: Lapic) {
        if lapic == Lapic::X1 {
            self.measure(&operation!(
                "lapic_mmio_read",
                ["mov ebx, 0xfee00020"],
                ["mov eax, [rbx]"]
            ));
            self.measure(&operation!(
                "lapic_mmio_eoi",
                ["mov ebx, 0xfee000b0", "xor eax, eax"],
                ["mov [rbx], eax"]
            ));
        } else {
            self.skip("lapic_mmio_read", "the APIC starts in x2APIC mode");
            self.skip("lapic_mmio_eoi", "the APIC starts in x2APIC mode");
        }
        let x2apic = ["x2apic_eoi", "self_ipi", "self_ipi_icr"];
        let timer = ["tsc_deadline", "tsc_deadline_near", "hlt_wake"];
        if !Lapic::x2apic_offered() {
            for name in x2apic.iter().chain(&timer) {
                self.skip(name, "x2APIC mode is not offered");
            }
            return;
        }
        let lapic = Lapic::to_x2apic();
        trap::set_gate(ARRIVAL, trap::gate(address_of(&raw const bench_arrival), 0, 0));
        trap::set_gate(EOI, trap::gate(address_of(&raw const bench_eoi), 0, 0));
        let [eoi, ipi, icr] = x2apic;
        let empty = || ticks!(0u64, ["mov ecx, 0x80b", "xor eax, eax", "xor edx, edx"]);
        let interrupt =
            |name, once| Operation { name, once, empty, warm_up: WARM_UP, rests: false };
        self.measure(&interrupt(eoi, |_| self_ipi(0x83f, u32::from(EOI))));
        self.measure(&interrupt(ipi, |_| self_ipi(0x83f, u32::from(ARRIVAL))));
        self.measure(&interrupt(icr, |_| {
            self_ipi(0x830, bits::SELF | bits::ASSERT | u32::from(ARRIVAL))
        }));
        if cpu::features().0 & 1 << 24 == 0 {
            for name in timer {
                self.skip(name, "the TSC deadline is not offered");
            }
            return;
        }
        lapic.write(reg::LVT_TIMER, bits::TSC_DEADLINE | u32::from(ARRIVAL));
        // Hours ahead, and another value each time.
        self.measure(&operation!("tsc_deadline", ["mov ecx, 0x6e0", "add edx, 0x1000"], ["wrmsr"]));
        // So near that the deadline of the CPU moves, which is at most a slice ahead.
        self.measure(&operation!(
            "tsc_deadline_near",
            ["mov ecx, 0x6e0", "add eax, 0x80000", "adc edx, 0"],
            ["wrmsr"]
        ));
        let _ = cpu::wrmsr(0x6e0, 0);
        self.measure(&Operation {
            name: "hlt_wake",
            once: |_| nap(),
            empty: || 0,
            warm_up: 2,
            rests: false,
        });
    }

    fn skip(&self, name: &str, why: &str) {
        if self.wants(name) {
            println!("bench-skip {name}: {why}");
        }
    }
}

/// End of the memory that nobody has touched: the loader has put something behind it.
fn end_of_untouched() -> u64 {
    let mut top: u64 = 0;
    info::memory_map(|range| {
        if range.kind == 1 && (range.start..range.start + range.size).contains(&UNTOUCHED) {
            top = range.start + range.size;
        }
    });
    top.saturating_sub(4 << 20)
}

fn report(name: &str, sorted: &[u32]) {
    let count = sorted.len();
    let at = |index: usize| sorted.get(index).copied().unwrap_or(0);
    let sum: u64 = sorted.iter().copied().map(u64::from).sum();
    // To a hundredth.
    let mean = sum * 100 / (count as u64).max(1);
    print!("bench {name} n={count} min={} median={} ", at(0), at((count - 1) / 2));
    println!(
        "p99={} max={} mean={}.{:02}",
        at((count * 99).div_ceil(100).saturating_sub(1)),
        at(count - 1),
        mean / 100,
        mean % 100
    );
}

global_asm!(
    r#"
    .section .text.bench, "ax", @progbits
    .balign 128
bench_arrival:                  # R9: when it arrived
    rdtsc
    shl rdx, 32
    or rax, rdx
    mov r9, rax
    mov ecx, 0x80b
    xor eax, eax
    xor edx, edx
    wrmsr
    mov r11d, 1
    iretq
    .balign 128
bench_eoi:                      # R9 - R8: what ending it took
    rdtsc
    mov r8d, eax
    mov ecx, 0x80b
    xor eax, eax
    xor edx, edx
    wrmsr
    rdtsc
    mov r9d, eax
    mov r11d, 1
    iretq
"#
);

unsafe extern "C" {
    static bench_arrival: u8;
    static bench_eoi: u8;
}

fn address_of(label: *const u8) -> u64 {
    label.addr() as u64
}

/// Sends an interrupt to oneself; its handler says how long that took.
fn self_ipi(msr: u32, command: u32) -> Sample {
    let (start, end, arrived): (u64, u64, u32);
    // SAFETY: both handlers change only the registers named here.
    unsafe {
        asm!(
            ".p2align 7",
            "xor r11d, r11d",
            "sti",
            "nop",
            "rdtsc",
            "mov r8d, eax",
            "mov ecx, {msr:e}",
            "mov eax, {command:e}",
            "xor edx, edx",
            "wrmsr",
            "2:",
            "test r11d, r11d",
            "jnz 3f",
            "pause",
            "dec {patience:e}",
            "jnz 2b",
            "3:",
            "cli",
            msr = in(reg) msr,
            command = in(reg) command,
            patience = inout(reg) 10_000_000u32 => _,
            out("r8") start, out("r9") end, out("r11") arrived,
            out("eax") _, out("ecx") _, out("edx") _,
        );
    }
    if arrived == 0 {
        return Err("the interrupt never arrived");
    }
    Ok(low32(end).wrapping_sub(low32(start)))
}

static RESTED: Shared<bool> = Shared::new(false);

/// Halts for a while.
fn rest() {
    RESTED.set(false);
    trap::on(
        pic::VECTOR,
        Some(|_| {
            pic::eoi(0);
            RESTED.set(true);
        }),
    );
    let lapic = Lapic::now();
    lapic.write(reg::LVT_LINT0, bits::EXTINT);
    pic::unmask_only(1);
    pit::program(0, 0, REST);
    while !RESTED.get() {
        cpu::wait_for_interrupt();
    }
    pic::unmask_only(0);
    lapic.write(reg::LVT_LINT0, bits::MASKED);
    trap::on(pic::VECTOR, None);
}

/// Halts until a deadline; how far beyond it the handler begins.
fn nap() -> Sample {
    let (deadline, end, arrived): (u64, u64, u32);
    // SAFETY: the handler changes only the registers named here.
    unsafe {
        asm!(
            ".p2align 7",
            "xor r11d, r11d",
            "rdtsc",
            "shl rdx, 32",
            "or rax, rdx",
            "add rax, {nap}",
            "mov r8, rax",
            "mov rdx, rax",
            "shr rdx, 32",
            "mov ecx, 0x6e0",
            "wrmsr",
            "sti",
            "hlt",
            "cli",
            nap = in(reg) NAP,
            out("r8") deadline, out("r9") end, out("r11") arrived,
            out("rax") _, out("ecx") _, out("rdx") _,
        );
    }
    if arrived == 0 {
        return Err("the CPU woke without its interrupt");
    }
    let late = end.checked_sub(deadline).ok_or("the timer fired before its deadline")?;
    u32::try_from(late).map_err(|_| "the timer fired seconds after its deadline")
}
