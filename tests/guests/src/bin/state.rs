//! Register state: whatever exits come in between, every register keeps its value.
//! `soak=N` on the command line sets the number of timer interrupts (default 2,000).
#![no_std]
#![no_main]

use guests::apic::{Lapic, bits, ioapic, reg};
use guests::cpu::{self, rdmsr, wrmsr};
use guests::harness::{Outcome, Shared, Tests};
use guests::pc::{pic, pit};
use guests::{catch_asm, check, check_eq, info, io, skip, time, trap};

guests::entry!(main);

fn main() -> ! {
    let mut tests = Tests::new();
    cpu::cli();
    pit::stop();
    pic::init();
    ioapic::mask_all();
    Lapic::now().enable();
    tests.case("general_registers", general_registers);
    tests.case("flags", flags);
    tests.case("sse_registers", sse_registers);
    tests.case("avx_registers", avx_registers);
    tests.case("x87", x87);
    tests.case("mxcsr", mxcsr);
    tests.case("debug_registers", debug_registers);
    tests.case("msrs", msrs);
    tests.case("xcr0", xcr0);
    tests.case("cr2_and_cr8", cr2_and_cr8);
    tests.case("registers_over_timer_interrupts", registers_over_timer_interrupts);
    tests.finish()
}

/// One of each kind of exit.
fn exits() {
    let _ = cpu::cpuid(0, 0);
    let _ = rdmsr(0x1b);
    let _ = rdmsr(0xc000_0080);
    let _ = io::inb(0x61);
    io::outb(0x80, 0);
    let _ = Lapic::now().read(reg::VERSION);
    let _ = ioapic::read(1);
    let _ = catch_asm!(["wbinvd"]);
    let _ = rdmsr(0x4000_1234);
    let _ = catch_asm!(["ud2"]);
    let _ = cpu::set_cr0(cpu::cr0());
    let _ = cpu::set_cr4(cpu::cr4());
    let _ = cpu::set_cr3(cpu::cr3());
    interrupt();
    halt();
}

const IPI: u8 = 0x48;

fn interrupt() {
    trap::on(IPI, Some(|_| Lapic::now().eoi()));
    Lapic::now().self_ipi(IPI);
    cpu::interrupt_window();
}

fn halt() {
    trap::on(IPI, Some(|_| Lapic::now().eoi()));
    Lapic::now().self_ipi(IPI);
    cpu::wait_for_interrupt();
}

static BEFORE: Shared<[u64; 16]> = Shared::new([0; 16]);
static AFTER: Shared<[u64; 16]> = Shared::new([0; 16]);

/// Loads every general register with a pattern, executes, stores them all.
macro_rules! around {
    ($seed:expr, $($code:literal),+) => {{
        let seed: u64 = $seed;
        BEFORE.set(core::array::from_fn(|i| (seed + i as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15)));
        // SAFETY: RBX, RBP and RSP are restored, all others are declared.
        unsafe {
            core::arch::asm!(
                "push rbx", "push rbp",
                "mov rcx, [rip + {before} + 8]", "mov rbx, [rip + {before} + 24]",
                "mov rbp, [rip + {before} + 40]", "mov rsi, [rip + {before} + 48]",
                "mov rdi, [rip + {before} + 56]", "mov r8, [rip + {before} + 64]",
                "mov r9, [rip + {before} + 72]", "mov r10, [rip + {before} + 80]",
                "mov r11, [rip + {before} + 88]", "mov r12, [rip + {before} + 96]",
                "mov r13, [rip + {before} + 104]", "mov r14, [rip + {before} + 112]",
                "mov r15, [rip + {before} + 120]", "mov rax, [rip + {before}]",
                $($code,)+
                "mov [rip + {after} + 16], rdx", "mov [rip + {after} + 8], rcx",
                "mov [rip + {after} + 24], rbx", "mov [rip + {after} + 40], rbp",
                "mov [rip + {after} + 48], rsi", "mov [rip + {after} + 56], rdi",
                "mov [rip + {after} + 64], r8", "mov [rip + {after} + 72], r9",
                "mov [rip + {after} + 80], r10", "mov [rip + {after} + 88], r11",
                "mov [rip + {after} + 96], r12", "mov [rip + {after} + 104], r13",
                "mov [rip + {after} + 112], r14", "mov [rip + {after} + 120], r15",
                "mov [rip + {after}], rax",
                "pop rbp", "pop rbx",
                before = sym BEFORE, after = sym AFTER,
                out("rax") _, out("rcx") _, out("rdx") _, out("rsi") _, out("rdi") _, out("r8") _,
                out("r9") _, out("r10") _, out("r11") _, out("r12") _, out("r13") _, out("r14") _, out("r15") _,
            );
        }
        let (before, after) = (BEFORE.get(), AFTER.get());
        (0..16).find(|i| ![0, 2, 4].contains(i) && before[*i] != after[*i])
    }};
}

fn general_registers() -> Outcome {
    for seed in 0..200 {
        // RAX and RDX (slots 0 and 2) belong to the exiting instruction.
        check_eq!(around!(seed, "mov dx, 0x61", "in al, dx"), None, "register changed by IN");
        check_eq!(around!(seed, "out 0x80, al"), None, "register changed by OUT");
        check_eq!(around!(seed, "wbinvd"), None, "register changed by WBINVD");
        check_eq!(
            around!(seed, "mov rax, cr0", "mov cr0, rax"),
            None,
            "register changed by MOV CR0"
        );
        check_eq!(
            around!(seed, "mov eax, 0xfee00030", "mov eax, [rax]"),
            None,
            "register changed by MMIO"
        );
        check_eq!(
            around!(seed, "mov edx, 0xfee00080", "mov dword ptr [rdx], 0"),
            None,
            "register changed by MMIO"
        );
        check_eq!(
            around!(
                seed,
                "mov rdx, rcx",
                "mov ecx, 0x1b",
                "mov r10, rdx",
                "rdmsr",
                "mov rcx, r10",
                "mov r10, [rip + {before} + 80]"
            ),
            None,
            "register changed by RDMSR"
        );
    }
    Ok(())
}

fn flags() -> Outcome {
    for pattern in [0x8d7u64, 0x002, 0x4d7, 0xad7] {
        let mut got: u64;
        let caught = catch_asm!(["push {f}", "popfq", "in al, 0x61", "pushfq", "pop {f}", "cld", "cli"],
            f = inout(reg) pattern => got, out("al") _);
        check!(caught.is_none(), "raised {caught:x?}");
        check_eq!(got, pattern, "RFLAGS over IN");
        let caught = catch_asm!(["push {f}", "popfq", "mov {v:e}, [{a}]", "pushfq", "pop {f}", "cld", "cli"],
            f = inout(reg) pattern => got, a = in(reg) 0xfee0_0030u64, v = out(reg) _);
        check!(caught.is_none(), "raised {caught:x?}");
        check_eq!(got, pattern, "RFLAGS over MMIO");
    }
    Ok(())
}

#[repr(C, align(64))]
#[derive(Clone, Copy)]
struct Vectors([u64; 64]);
static LOADED: Shared<Vectors> = Shared::new(Vectors([0; 64]));
static STORED: Shared<Vectors> = Shared::new(Vectors([0; 64]));

fn pattern(seed: u64) {
    LOADED.set(Vectors(core::array::from_fn(|i| {
        (seed + i as u64).wrapping_mul(0xd134_2543_de82_ef95)
    })));
    STORED.set(Vectors([0; 64]));
}

macro_rules! vectors {
    ($load:literal, $store:literal, $stride:literal, $between:expr) => {{
        // SAFETY: Rust code here uses no vector registers.
        unsafe {
            core::arch::asm!(
                concat!($load, "0, [{m}]"), concat!($load, "1, [{m} + ", $stride, "]"),
                concat!($load, "2, [{m} + 2 * ", $stride, "]"), concat!($load, "3, [{m} + 3 * ", $stride, "]"),
                concat!($load, "7, [{m} + 4 * ", $stride, "]"), concat!($load, "8, [{m} + 5 * ", $stride, "]"),
                concat!($load, "14, [{m} + 6 * ", $stride, "]"), concat!($load, "15, [{m} + 7 * ", $stride, "]"),
                m = in(reg) LOADED.address());
        }
        $between;
        // SAFETY: likewise.
        unsafe {
            core::arch::asm!(
                concat!($store, " [{m}], ", "xmm0"), concat!($store, " [{m} + ", $stride, "], xmm1"),
                concat!($store, " [{m} + 2 * ", $stride, "], xmm2"), concat!($store, " [{m} + 3 * ", $stride, "], xmm3"),
                concat!($store, " [{m} + 4 * ", $stride, "], xmm7"), concat!($store, " [{m} + 5 * ", $stride, "], xmm8"),
                concat!($store, " [{m} + 6 * ", $stride, "], xmm14"), concat!($store, " [{m} + 7 * ", $stride, "], xmm15"),
                m = in(reg) STORED.address());
        }
    }};
}

fn sse_registers() -> Outcome {
    for seed in 0..50 {
        pattern(seed);
        vectors!("movaps xmm", "movaps", "16", exits());
        let (want, got) = (LOADED.get(), STORED.get());
        check!(want.0[..16] == got.0[..16], "XMM registers changed: {:x?}", &got.0[..4]);
    }
    Ok(())
}

fn avx_registers() -> Outcome {
    if cpu::features().0 >> 28 & 1 == 0 || cpu::features().0 >> 26 & 1 == 0 {
        skip!("no AVX");
    }
    let cr4 = cpu::cr4();
    let _ = cpu::set_cr4(cr4 | 1 << 18);
    let caught = cpu::xsetbv(0, 7);
    check!(caught.is_none(), "XSETBV raised {caught:x?}");
    let mut wrong = None;
    for seed in 0..50 {
        pattern(seed);
        // SAFETY: Rust code here uses no vector registers.
        unsafe {
            core::arch::asm!("vmovaps ymm0, [{m}]", "vmovaps ymm5, [{m} + 32]", "vmovaps ymm10, [{m} + 64]",
                "vmovaps ymm15, [{m} + 96]", m = in(reg) LOADED.address());
        }
        exits();
        // SAFETY: likewise.
        unsafe {
            core::arch::asm!("vmovaps [{m}], ymm0", "vmovaps [{m} + 32], ymm5", "vmovaps [{m} + 64], ymm10",
                "vmovaps [{m} + 96], ymm15", m = in(reg) STORED.address());
        }
        if LOADED.get().0[..16] != STORED.get().0[..16] {
            wrong = Some(seed);
        }
    }
    let _ = cpu::xsetbv(0, 1);
    let _ = cpu::set_cr4(cr4);
    check!(wrong.is_none(), "YMM registers changed");
    Ok(())
}

fn x87() -> Outcome {
    let (control, mut read) = (0x0b7fu16, 0u16);
    let mut value = 0u64;
    // SAFETY: Rust code here does not use the x87.
    unsafe {
        core::arch::asm!("fninit", "fldcw [{c}]", "fldpi", "fld1", c = in(reg) &raw const control)
    };
    exits();
    // SAFETY: likewise; both results are stored to live variables.
    unsafe {
        core::arch::asm!("fnstcw [{r}]", "faddp", "fstp qword ptr [{v}]", "fninit",
            r = in(reg) &raw mut read, v = in(reg) &raw mut value);
    }
    check_eq!(read, control, "control word");
    check_eq!(value, 0x4010_90fd_aa22_168d, "pi + 1, rounded up");
    Ok(())
}

fn mxcsr() -> Outcome {
    for value in [0x1f80u32, 0x7f80, 0x9fc0] {
        let mut read = 0u32;
        // SAFETY: Rust code here does not use SSE.
        unsafe { core::arch::asm!("ldmxcsr [{v}]", v = in(reg) &raw const value) };
        exits();
        // SAFETY: likewise.
        unsafe { core::arch::asm!("stmxcsr [{r}]", r = in(reg) &raw mut read) };
        check_eq!(read, value, "MXCSR");
    }
    let value = 0x1f80u32;
    // SAFETY: likewise.
    unsafe { core::arch::asm!("ldmxcsr [{v}]", v = in(reg) &raw const value) };
    Ok(())
}

fn debug_registers() -> Outcome {
    let _ =
        (cpu::set_dr0(0x1000), cpu::set_dr1(0x2000), cpu::set_dr2(0x3000), cpu::set_dr3(0x4000));
    let _ = (cpu::set_dr6(0xffff_0ff0 | 5), cpu::set_dr7(0x400 | 0x200));
    for _ in 0..50 {
        exits();
    }
    let read = [cpu::dr0(), cpu::dr1(), cpu::dr2(), cpu::dr3(), cpu::dr6(), cpu::dr7()];
    let _ = (cpu::set_dr0(0), cpu::set_dr1(0), cpu::set_dr2(0), cpu::set_dr3(0));
    let _ = (cpu::set_dr6(0xffff_0ff0), cpu::set_dr7(0x400));
    check_eq!(read, [0x1000, 0x2000, 0x3000, 0x4000, 0xffff_0ff5, 0x600], "DR0 to DR3, DR6, DR7");
    Ok(())
}

fn msrs() -> Outcome {
    let registers = [
        (0x174, 0x8),
        (0x175, 0xffff_8000_0000_1000),
        (0x176, 0xffff_8000_0000_2000),
        (0x277, 0x0007_0406_0007_0106),
        (0xc000_0081, 0x0023_0008_1234_5678),
        (0xc000_0082, 0xffff_ffff_8123_4567),
        (0xc000_0083, 0x7fff_1234_5678),
        (0xc000_0084, 0x4_7700),
        (0xc000_0100, 0x1234_5678_9abc),
        (0xc000_0101, 0xffff_8888_0000_1000),
        (0xc000_0102, 0xffff_9999_0000_2000),
    ];
    let old = registers.map(|(msr, _)| rdmsr(msr).unwrap_or(0));
    for (msr, value) in registers {
        check!(wrmsr(msr, value).is_ok(), "MSR {msr:#x} can't be written");
    }
    for _ in 0..50 {
        exits();
    }
    let read = registers.map(|(msr, _)| rdmsr(msr).unwrap_or(0));
    for ((msr, _), value) in registers.into_iter().zip(old) {
        let _ = wrmsr(msr, value);
    }
    for ((msr, want), got) in registers.into_iter().zip(read) {
        // QEMU's SYSENTER selector has 16 bits as well.
        check_eq!(got, want, "MSR {msr:#x}");
    }
    Ok(())
}

fn xcr0() -> Outcome {
    if cpu::features().0 >> 26 & 1 == 0 {
        skip!("no XSAVE");
    }
    let cr4 = cpu::cr4();
    let _ = cpu::set_cr4(cr4 | 1 << 18);
    for value in [1, 3] {
        let _ = cpu::xsetbv(0, value);
        for _ in 0..20 {
            exits();
            check_eq!(cpu::xgetbv(0).ok(), Some(value), "XCR0");
        }
    }
    let _ = cpu::xsetbv(0, 1);
    let _ = cpu::set_cr4(cr4);
    Ok(())
}

fn cr2_and_cr8() -> Outcome {
    let _ = cpu::set_cr8(3);
    let _ = cpu::set_cr2(0x1234_5678_9000);
    for _ in 0..50 {
        let _ = cpu::cpuid(0, 0);
        interrupt();
        let _ = io::inb(0x61);
        let _ = ioapic::read(1);
    }
    let read = (cpu::cr2(), cpu::cr8());
    let _ = cpu::set_cr8(0);
    check_eq!(read, (0x1234_5678_9000, 3), "CR2 and CR8");
    Ok(())
}

fn registers_over_timer_interrupts() -> Outcome {
    const TIMER: u8 = 0x58;
    static TICKS: Shared<u64> = Shared::new(0);
    trap::on(
        TIMER,
        Some(|_| {
            TICKS.set(TICKS.get() + 1);
            guests::io::mmio_write32(0xfee0_00b0, 0);
        }),
    );
    TICKS.set(0);
    let apic = Lapic::now();
    apic.write(reg::TIMER_DIVIDE, 0xb);
    apic.write(reg::LVT_TIMER, bits::PERIODIC | u32::from(TIMER));
    apic.write(reg::TIMER_INITIAL, 100_000);
    let wanted = info::number("soak").unwrap_or(2000);
    let end = cpu::rdtsc() + time::micros(20_000_000);
    let mut wrong = None;
    let mut seed = 0;
    while TICKS.get() < wanted && cpu::rdtsc() < end && wrong.is_none() {
        seed += 1;
        wrong = around!(
            seed,
            "sti",
            "push rcx",
            "mov ecx, 20000",
            "66: sub ecx, 1",
            "jnz 66b",
            "pop rcx",
            "cli"
        );
    }
    apic.write(reg::TIMER_INITIAL, 0);
    cpu::interrupt_window();
    check!(wrong.is_none(), "register {wrong:?} changed after {} interrupts", TICKS.get());
    check!(TICKS.get() > wanted / 20, "only {} interrupts", TICKS.get());
    Ok(())
}
