//! Exceptions that instructions raise, alone and one on top of another.

use guests::harness::{Outcome, Shared, Tests};
use guests::paging::{self, bits};
use guests::trap::{self, Frame, vector};
use guests::{catch_asm, check, check_eq, cpu, skip, user};

pub(crate) fn run(tests: &mut Tests) {
    tests.case("divide_error", divide_error);
    tests.case("undefined_opcodes", undefined_opcodes);
    tests.case("general_protection", general_protection);
    tests.case("resume_flag", resume_flag);
    tests.case("page_fault_codes", page_fault_codes);
    tests.case("page_fault_user", page_fault_user);
    tests.case("fault_while_delivering_int", fault_while_delivering_int);
    tests.case("fault_while_delivering_exception", fault_while_delivering_exception);
    tests.case("gate_not_present", gate_not_present);
    tests.case("gate_privilege", gate_privilege);
    tests.case("double_fault_stack", double_fault_stack);
    tests.case("double_fault_contributory", double_fault_contributory);
    tests.case("ring3_stack_switch", ring3_stack_switch);
}

/// A linear address that nothing is mapped at.
const NOWHERE: u64 = 0x70_0000_0000;

fn divide_error() -> Outcome {
    let caught = catch_asm!(["xor edx, edx", "xor ecx, ecx", "div ecx"], inout("eax") 5 => _, out("ecx") _, out("edx") _);
    check_eq!(caught.map(|t| t.vector), Some(vector::DE), "division by zero");
    Ok(())
}

fn undefined_opcodes() -> Outcome {
    let at: u64;
    let caught = catch_asm!(["lea {a}, [rip + 44f]", "44: ud2"], a = out(reg) at);
    check_eq!(caught.map(|t| (t.vector, t.rip)), Some((vector::UD, at)), "UD2");
    if !cpu::tcg_underneath() {
        // QEMU's CPU takes LOCK before anything.
        let caught = catch_asm!(["mov r8, rbx", ".byte 0xf0, 0x0f, 0xa2", "mov rbx, r8"],
            out("r8") _, out("rax") _, out("rcx") _, out("rdx") _);
        check_eq!(caught.map(|t| t.vector), Some(vector::UD), "LOCK CPUID");
    }
    let caught = catch_asm!([".byte 0x06"]);
    check_eq!(caught.map(|t| t.vector), Some(vector::UD), "PUSH ES in 64-bit code");
    Ok(())
}

/// A fault pushes RF, whoever raises it; a trap does not.
fn resume_flag() -> Outcome {
    const RF: u64 = 1 << 16;
    if cpu::on_bare_tcg() {
        skip!("bare QEMU never sets RF");
    }
    let set = |caught: Option<trap::Trap>| caught.map(|t| (t.vector, t.rflags & RF != 0));
    // No CPU that a guest is offered has this MSR, nor lets it into an extension's mode.
    let msr = catch_asm!(["rdmsr"], in("ecx") 0xdead_beefu32, out("eax") _, out("edx") _);
    check_eq!(set(msr), Some((vector::GP, true)), "RDMSR of none");
    if !cpu::tcg_underneath() {
        // QEMU's CPU raises it by itself there.
        // #UD or #GP: whether CR4.OSXSAVE is set is not this case's.
        let caught = set(cpu::xsetbv(7, 0));
        check_eq!(caught.map(|(_, flag)| flag), Some(true), "XSETBV of no register");
    }
    check_eq!(set(cpu::set_cr4(1 << 63)), Some((vector::GP, true)), "MOV CR4 of a reserved bit");
    let monitor = catch_asm!(["monitor"], in("eax") 0, in("ecx") 0, in("edx") 0);
    check_eq!(set(monitor), Some((vector::UD, true)), "MONITOR");
    let stepped = catch_asm!(
        ["pushfq", "or qword ptr [rsp], 0x100", "popfq", "mov r8, rbx", "cpuid", "mov rbx, r8"],
        out("r8") _, inout("eax") 0 => _, out("ecx") _, out("edx") _);
    check_eq!(set(stepped), Some((vector::DB, false)), "a step over an instruction");
    Ok(())
}

fn general_protection() -> Outcome {
    let caught = catch_asm!(["mov rax, 0x8000000000000000", "mov rax, [rax]"], out("rax") _);
    check_eq!(
        caught.map(|t| (t.vector, t.error)),
        Some((vector::GP, 0)),
        "a load from no canonical address"
    );
    let caught = catch_asm!(["mov ds, {s:x}"], s = in(reg) 0x77u16);
    check_eq!(
        caught.map(|t| (t.vector, t.error)),
        Some((vector::GP, 0x74)),
        "a selector beyond the table"
    );
    Ok(())
}

fn page_fault_codes() -> Outcome {
    user::init();
    let page = user::DATA + 0x3000;
    let caught = catch_asm!(["mov al, [{p}]"], p = in(reg) NOWHERE + 0x123, out("al") _);
    check_eq!(
        caught.map(|t| (t.vector, t.error, t.cr2)),
        Some((vector::PF, 0, NOWHERE + 0x123)),
        "read"
    );
    let caught = catch_asm!(["mov byte ptr [{p}], 1"], p = in(reg) NOWHERE + 0x456);
    check_eq!(
        caught.map(|t| (t.vector, t.error, t.cr2)),
        Some((vector::PF, 2, NOWHERE + 0x456)),
        "write"
    );
    paging::change(page, 0, bits::WRITE);
    let caught = catch_asm!(["mov byte ptr [{p}], 1"], p = in(reg) page);
    paging::change(page, bits::WRITE, 0);
    check_eq!(
        caught.map(|t| (t.vector, t.error, t.cr2)),
        Some((vector::PF, 3, page)),
        "write to read-only"
    );
    let caught = catch_asm!(["call {p}"], p = in(reg) NOWHERE + 0x789);
    check_eq!(
        caught.map(|t| (t.vector, t.error & 0xf, t.rip, t.cr2)),
        Some((vector::PF, 0, NOWHERE + 0x789, NOWHERE + 0x789)),
        "jump to nowhere"
    );
    Ok(())
}

fn page_fault_user() -> Outcome {
    let supervisor = 0x20_0000u64;
    // mov al, [rax]
    let trap = user::run(&[0x8a, 0x00], [supervisor, 0, 0, 0]);
    check_eq!((trap.vector, trap.error, trap.cr2), (vector::PF, 5, supervisor), "read");
    // mov [rax], al
    let trap = user::run(&[0x88, 0x00], [supervisor, 0, 0, 0]);
    check_eq!((trap.vector, trap.error, trap.cr2), (vector::PF, 7, supervisor), "write");
    let trap = user::run(&[0x88, 0x00], [NOWHERE, 0, 0, 0]);
    check_eq!((trap.vector, trap.error, trap.cr2), (vector::PF, 6, NOWHERE), "write to nowhere");
    Ok(())
}

/// Gate and stack of the two cases that follow: IST 2 points into a page that
/// is not there; the page-fault handler puts it there.
const LATE_STACK: u64 = user::DATA + 0x2_0000;
static FAULTS: Shared<u64> = Shared::new(0);
static FAULT_RIP: Shared<u64> = Shared::new(0);
static FAULT_CR2: Shared<u64> = Shared::new(0);
static ARRIVED: Shared<u64> = Shared::new(0);

fn late_stack(frame: &mut Frame) {
    FAULTS.set(FAULTS.get() + 1);
    FAULT_RIP.set(frame.rip);
    FAULT_CR2.set(cpu::cr2());
    paging::change(LATE_STACK, bits::PRESENT, 0);
}

fn with_late_stack(gate_vector: u8, body: fn()) {
    user::init();
    FAULTS.set(0);
    ARRIVED.set(0);
    paging::change(LATE_STACK, 0, bits::PRESENT);
    let old_ist = trap::set_ist(2, LATE_STACK + 0x800);
    let old = trap::set_gate(gate_vector, trap::gate(trap::stub(gate_vector), 2, 0));
    trap::on(vector::PF, Some(late_stack));
    body();
    trap::on(vector::PF, None);
    trap::on(gate_vector, None);
    trap::set_gate(gate_vector, old);
    trap::set_ist(2, old_ist);
    paging::change(LATE_STACK, bits::PRESENT, 0);
}

fn fault_while_delivering_int() -> Outcome {
    static AT: Shared<u64> = Shared::new(0);
    with_late_stack(0x90, || {
        trap::on(0x90, Some(|_| ARRIVED.set(ARRIVED.get() + 1)));
        let at: u64;
        // SAFETY: the handler of 0x90 only counts.
        unsafe { core::arch::asm!("lea {a}, [rip + 44f]", "44: int 0x90", a = out(reg) at) };
        AT.set(at);
    });
    check_eq!(FAULTS.get(), 1, "page faults");
    check_eq!(FAULT_RIP.get(), AT.get(), "the fault points at the INT");
    check_eq!(FAULT_CR2.get() & !0xfff, LATE_STACK, "CR2's page");
    check_eq!(ARRIVED.get(), 1, "interrupts delivered");
    Ok(())
}

fn fault_while_delivering_exception() -> Outcome {
    with_late_stack(vector::UD, || {
        trap::on(
            vector::UD,
            Some(|frame| {
                ARRIVED.set(ARRIVED.get() + 1);
                frame.rip += 2;
            }),
        );
        // SAFETY: the handler steps over UD2.
        unsafe { core::arch::asm!("ud2") };
    });
    check_eq!((FAULTS.get(), ARRIVED.get()), (1, 1), "page faults and #UDs");
    Ok(())
}

/// The error code that names gate 0x91. QEMU's CPU counts 16 bytes a gate
/// where the manual says eight.
fn gate_error() -> u32 {
    if cpu::tcg_underneath() { 0x91 * 16 + 2 } else { 0x91 * 8 + 2 }
}

fn gate_not_present() -> Outcome {
    let old = trap::set_gate(0x91, [0, 0]);
    let caught = catch_asm!(["int 0x91"]);
    let gate = trap::gate(trap::stub(0x91), 0, 0);
    trap::set_gate(0x91, [gate[0] & !(1 << 47), gate[1]]);
    let absent = catch_asm!(["int 0x91"]);
    trap::set_gate(0x91, old);
    check_eq!(
        caught.map(|t| (t.vector, t.error)),
        Some((vector::GP, gate_error())),
        "an empty gate"
    );
    check_eq!(
        absent.map(|t| (t.vector, t.error)),
        Some((vector::NP, gate_error())),
        "a gate not present"
    );
    Ok(())
}

fn gate_privilege() -> Outcome {
    let trap = user::run(&[0xcd, 0x91], [0; 4]);
    check_eq!(
        (trap.vector, trap.error),
        (vector::GP, gate_error()),
        "INT of a ring-0 gate in ring 3"
    );
    let trap = user::run(&[0xcc], [0; 4]);
    check_eq!((trap.vector, trap.rip), (vector::BP, user::BASE + 1), "INT3 in ring 3");
    Ok(())
}

fn double_fault_stack() -> Outcome {
    let caught = catch_asm!(["mov rsp, {bad}", "push rax"], bad = in(reg) NOWHERE + 0x1000);
    check_eq!(caught.map(|t| (t.vector, t.error)), Some((vector::DF, 0)), "push on no stack");
    check_eq!(caught.map(|t| t.rsp), Some(NOWHERE + 0x1000), "RSP in the frame");
    Ok(())
}

fn double_fault_contributory() -> Outcome {
    let old = trap::set_gate(vector::DE, [0, 0]);
    let caught = catch_asm!(["xor ecx, ecx", "xor edx, edx", "div ecx"], inout("eax") 1 => _, out("ecx") _, out("edx") _);
    trap::set_gate(vector::DE, old);
    check_eq!(
        caught.map(|t| (t.vector, t.error)),
        Some((vector::DF, 0)),
        "#GP while delivering #DE"
    );
    Ok(())
}

fn ring3_stack_switch() -> Outcome {
    user::init();
    let top = user::DATA + 0x3_0000;
    let old = trap::set_ring0_stack(top);
    let trap = user::run(&[0x0f, 0x0b], [7, 0, 0, 0]);
    trap::set_ring0_stack(old);
    check_eq!(trap.vector, vector::UD, "exception");
    check_eq!((trap.rsp, trap.ss, trap.cs), (user::STACK_TOP, 0x23, 0x2b), "RSP, SS, CS");
    // Five words by the CPU, error code and vector by the stub, then RAX.
    let pushed: u64 = guests::info::peek(top - 8 * 8);
    check_eq!(pushed, 7, "RAX on the ring-0 stack");
    check!(trap.rax == 7, "RAX was lost");
    Ok(())
}
