//! Single-stepping over instructions that exit, and interrupt shadows.
//!
//! An instruction that is stepped raises one #DB with the address behind it,
//! whether the CPU or the hypervisor carried it out (SDM: "Single-Step Exception Condition").

use guests::apic::Lapic;
use guests::cpu;
use guests::harness::{Outcome, Shared, Tests};
use guests::trap::{self, Frame, Handler, vector};
use guests::{check, check_eq, skip};

pub(crate) fn run(tests: &mut Tests) {
    tests.case("step_plain", step_plain);
    tests.case("step_exiting", step_exiting);
    tests.case("step_ports", step_ports);
    tests.case("step_mmio", step_mmio);
    tests.case("step_first_touch", step_first_touch);
    tests.case("step_hypercall", step_hypercall);
    tests.case("step_rep", step_rep);
    tests.case("step_mov_ss", step_mov_ss);
    tests.case("sti_shadow", sti_shadow);
    tests.case("sti_shadow_mmio", sti_shadow_mmio);
    tests.case("sti_cli", sti_cli);
    tests.case("sti_hlt", sti_hlt);
    tests.case("icebp_and_int3", icebp_and_int3);
}

static STEPS: Shared<u64> = Shared::new(0);
static FIRST: Shared<u64> = Shared::new(0);
static DR6: Shared<u64> = Shared::new(0);

const ON_STEP: Handler = |frame: &mut Frame| {
    if STEPS.get() == 0 {
        FIRST.set(frame.rip);
        DR6.set(cpu::dr6());
    }
    STEPS.set(STEPS.get() + 1);
};

/// Steps over the instructions given, the first of which is what is tested:
/// the steps taken beyond those of the harness, whether the first #DB pointed
/// behind the first instruction, and DR6.
macro_rules! step {
    ([$first:literal $(, $more:literal)*] $(, $($operands:tt)*)?) => {{
        STEPS.set(0);
        let _ = cpu::set_dr6(0);
        trap::on(vector::DB, Some(ON_STEP));
        let behind: u64;
        // SAFETY: registers that the instructions change are declared; TF is
        // cleared at the end, and each #DB only counts.
        unsafe {
            core::arch::asm!(
                "lea r10, [rip + 44f]", "mov r11, rbx",
                "pushfq", "or qword ptr [rsp], 0x100", "popfq",
                $first,
                "44:",
                $($more,)*
                "pushfq", "and qword ptr [rsp], -257", "popfq",
                $($($operands)*,)?
                out("r10") behind, out("r11") _
            );
        }
        trap::on(vector::DB, None);
        (STEPS.get() - 3, FIRST.get() == behind, DR6.get() & 0xe00f)
    }};
}

const ONCE: (u64, bool, u64) = (1, true, 0x4000);

fn step_plain() -> Outcome {
    check_eq!(step!(["nop"]), ONCE, "NOP");
    check_eq!(step!(["nop", "nop"]), (2, true, 0x4000), "two NOPs");
    check_eq!(step!(["mov {v}, 5"], v = out(reg) _), ONCE, "MOV");
    Ok(())
}

fn step_exiting() -> Outcome {
    let (cr0, cr3, cr4) = (cpu::cr0(), cpu::cr3(), cpu::cr4());
    check_eq!(
        step!(["cpuid", "mov rbx, r11"], inout("eax") 0 => _, inout("ecx") 0 => _, out("edx") _),
        (2, true, 0x4000),
        "CPUID"
    );
    check_eq!(
        step!(["rdmsr"], in("ecx") 0xc000_0080u32, out("eax") _, out("edx") _),
        ONCE,
        "RDMSR"
    );
    check_eq!(
        step!(["rdmsr"], in("ecx") 0x1bu32, out("eax") _, out("edx") _),
        ONCE,
        "RDMSR APIC_BASE"
    );
    check_eq!(step!(["wrmsr"], in("ecx") 0xc000_0084u32, in("eax") 0, in("edx") 0), ONCE, "WRMSR");
    check_eq!(step!(["rdtsc"], out("eax") _, out("edx") _), ONCE, "RDTSC");
    check_eq!(step!(["wbinvd"]), ONCE, "WBINVD");
    check_eq!(step!(["clts"]), ONCE, "CLTS");
    if !cpu::tcg_underneath() {
        check_eq!(step!(["pause"]), ONCE, "PAUSE"); // QEMU's raises no #DB
    }
    check_eq!(step!(["mov cr0, {v}"], v = in(reg) cr0), ONCE, "MOV CR0");
    check_eq!(step!(["mov cr3, {v}"], v = in(reg) cr3), ONCE, "MOV CR3");
    check_eq!(step!(["mov cr4, {v}"], v = in(reg) cr4), ONCE, "MOV CR4");
    check_eq!(step!(["mov cr8, {v}"], v = in(reg) 0u64), ONCE, "MOV CR8");
    check_eq!(step!(["mov {v}, cr8"], v = out(reg) _), ONCE, "MOV from CR8");
    check_eq!(step!(["mov dr0, {v}"], v = in(reg) 0u64), ONCE, "MOV DR0");
    check_eq!(step!(["mov {v}, dr7"], v = out(reg) _), ONCE, "MOV from DR7");
    check_eq!(step!(["invlpg [rsp]"]), ONCE, "INVLPG");
    check_eq!(step!(["lmsw {v:x}"], v = in(reg) cr0), ONCE, "LMSW");
    let register = trap::idt_register();
    check_eq!(step!(["lidt [{r}]"], r = in(reg) &raw const register), ONCE, "LIDT");
    Ok(())
}

fn step_ports() -> Outcome {
    check_eq!(step!(["in al, 0x61"], out("al") _), ONCE, "IN from 0x61");
    check_eq!(step!(["in al, dx"], in("dx") 0x3fdu16, out("al") _), ONCE, "IN from the UART");
    check_eq!(step!(["in eax, dx"], in("dx") 0x608u16, out("eax") _), ONCE, "IN from the PM timer");
    check_eq!(step!(["out 0x80, al"], in("al") 0u8), ONCE, "OUT to 0x80");
    check_eq!(step!(["out dx, al"], in("dx") 0x3ffu16, in("al") 0x5au8), ONCE, "OUT to the UART");
    Ok(())
}

fn step_mmio() -> Outcome {
    let lapic = 0xfee0_0000u64;
    check_eq!(step!(["mov {v:e}, [{a} + 0x30]"], v = out(reg) _, a = in(reg) lapic), ONCE, "read");
    check_eq!(step!(["mov dword ptr [{a} + 0x80], 0"], a = in(reg) lapic), ONCE, "write");
    Ok(())
}

fn step_first_touch() -> Outcome {
    // The access exits, and the instruction runs once more.
    let untouched = guests::info::ram_bytes() / 2;
    check_eq!(step!(["mov byte ptr [{a}], 1"], a = in(reg) untouched), ONCE, "write to fresh RAM");
    Ok(())
}

fn step_hypercall() -> Outcome {
    if cpu::on_bare_tcg() {
        skip!("no hypervisor");
    }
    let call = if cpu::is_amd() {
        step!(["vmmcall"], inout("rax") 0x1234u64 => _)
    } else {
        step!(["vmcall"], inout("rax") 0x1234u64 => _)
    };
    check_eq!(call, ONCE, "hypercall");
    Ok(())
}

fn step_rep() -> Outcome {
    static BUFFER: Shared<[u8; 16]> = Shared::new([0; 16]);
    let at = BUFFER.address().addr() as u64;
    let (steps, _, six) =
        step!(["rep insb"], inout("rcx") 4u64 => _, inout("rdi") at => _, in("dx") 0x61u16);
    check!(steps == 4, "REP INSB of 4: {steps} steps");
    check_eq!(six, 0x4000, "DR6");
    Ok(())
}

fn step_mov_ss() -> Outcome {
    // No #DB between MOV SS and the instruction behind it.
    check_eq!(
        step!(["mov ss, {s:x}", "nop"], s = in(reg) trap::selector::DATA).0,
        1,
        "steps over MOV SS and NOP"
    );
    check_eq!(
        step!(["mov ss, {s:x}", "cpuid", "mov rbx, r11"], s = in(reg) trap::selector::DATA,
            inout("eax") 0 => _, inout("ecx") 0 => _, out("edx") _)
        .0,
        2,
        "steps over MOV SS, CPUID and MOV"
    );
    Ok(())
}

const IPI: u8 = 0x41;
static SEEN: Shared<u64> = Shared::new(0);
static COUNT: Shared<u64> = Shared::new(0);

const ON_IPI: Handler = |frame: &mut Frame| {
    SEEN.set(frame.rip);
    COUNT.set(COUNT.get() + 1);
    Lapic::now().eoi();
};

fn arm() {
    cpu::cli();
    Lapic::now().enable();
    SEEN.set(0);
    COUNT.set(0);
    trap::on(IPI, Some(ON_IPI));
    Lapic::now().self_ipi(IPI);
}

/// How often an interrupt may come too early: where an interrupt of the machine falls into the
/// shadow, QEMU forgets it at the next entry.
fn most_lost_shadows() -> u32 {
    if cpu::tcg_underneath() { 2 } else { 0 }
}

/// With an interrupt pending: STI, one instruction, then the interrupt.
macro_rules! shadow {
    ([$($instruction:literal),+] $(, $($operands:tt)*)?) => {{
        let mut lost = 0;
        loop {
            arm();
            let behind: u64;
            // SAFETY: registers that the instructions change are declared.
            unsafe {
                core::arch::asm!(
                    "lea r10, [rip + 44f]", "mov r11, rbx",
                    "sti",
                    $($instruction,)+
                    "44:",
                    "nop", "nop", "nop", "nop",
                    "cli",
                    $($($operands)*,)?
                    out("r10") behind, out("r11") _
                );
            }
            trap::on(IPI, None);
            if COUNT.get() == 1 && SEEN.get() < behind && lost < most_lost_shadows() {
                lost += 1;
                continue;
            }
            check_eq!((COUNT.get(), SEEN.get()), (1, behind),
                "interrupts and where, after STI and {}", concat!($($instruction),+));
            break;
        }
    }};
}

fn sti_shadow() -> Outcome {
    shadow!(["nop"]);
    shadow!(["rdmsr"], in("ecx") 0xc000_0080u32, out("eax") _, out("edx") _);
    shadow!(["rdmsr"], in("ecx") 0x1bu32, out("eax") _, out("edx") _);
    shadow!(["in al, 0x61"], out("al") _);
    shadow!(["out 0x80, al"], in("al") 0u8);
    shadow!(["wbinvd"]);
    shadow!(["rdtsc"], out("eax") _, out("edx") _);
    shadow!(["mov cr0, {v}"], v = in(reg) cpu::cr0());
    // CPUID overwrites RBX, which the compiler keeps for itself.
    arm();
    let behind: u64;
    // SAFETY: RBX is restored.
    unsafe {
        core::arch::asm!("lea r10, [rip + 44f]", "mov r11, rbx", "xor eax, eax", "sti", "cpuid",
            "44:", "nop", "nop", "cli", "mov rbx, r11",
            out("r10") behind, out("r11") _, out("eax") _, out("ecx") _, out("edx") _);
    }
    trap::on(IPI, None);
    check_eq!((COUNT.get(), SEEN.get()), (1, behind), "interrupts and where, after STI and CPUID");
    Ok(())
}

fn sti_shadow_mmio() -> Outcome {
    let lapic = 0xfee0_0000u64;
    shadow!(["mov {v:e}, [{a} + 0x30]"], v = out(reg) _, a = in(reg) lapic);
    shadow!(["mov dword ptr [{a} + 0x80], 0"], a = in(reg) lapic);
    Ok(())
}

fn sti_cli() -> Outcome {
    const ROUNDS: u64 = 20;
    let mut early = 0;
    for _ in 0..ROUNDS {
        arm();
        // SAFETY: leaves interrupts off.
        unsafe { core::arch::asm!("sti", "cli", "nop", "nop") };
        early += COUNT.get();
        cpu::interrupt_window();
        check_eq!(COUNT.get(), 1, "interrupts taken in the end");
    }
    trap::on(IPI, None);
    // QEMU loses a shadow into which an interrupt of the machine falls, and Bochs' VT-x delivers a
    // virtual interrupt there: seldom.
    let most = if cpu::tcg_underneath() || cpu::bochs_underneath() { 2 } else { 0 };
    check!(early <= most, "{early} of {ROUNDS} interrupts were taken between STI and CLI");
    Ok(())
}

fn sti_hlt() -> Outcome {
    // QEMU loses shadows where interrupts of the machine fall into them: only
    // now and then, and each that is not made up for hangs here.
    let rounds = if cpu::tcg_underneath() { 3_000 } else { 100 };
    for _ in 0..rounds {
        arm();
        cpu::wait_for_interrupt();
        check_eq!(COUNT.get(), 1, "interrupts that ended HLT");
    }
    trap::on(IPI, None);
    Ok(())
}

fn icebp_and_int3() -> Outcome {
    macro_rules! software {
        ($code:literal, $vector:expr) => {{
            let behind: u64;
            let caught = guests::catch_asm!(["lea {b}, [rip + 44f]", $code, "44:"], b = out(reg) behind);
            check_eq!(caught.map(|t| (t.vector, t.rip)), Some(($vector, behind)), "{}", $code);
        }};
    }
    software!("int3", vector::BP);
    software!(".byte 0xcd, 3", vector::BP);
    if !cpu::tcg_underneath() {
        software!(".byte 0xf1", vector::DB); // QEMU does not know it
    }
    software!("int 0x80", vector::USER_RETURN);
    Ok(())
}
