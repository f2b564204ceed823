//! Runs a program, and handles whatever it raises: noted, and on behind it.

use crate::record::{self, How, Record};
use crate::{machine, trace, window};
use core::arch::{asm, global_asm};
use guests::apic::Lapic;
use guests::cpu;
use guests::harness::Shared;
use guests::info::peek;
use guests::trap::{self, Frame, RECOVER_RIP, RECOVER_RSP};
use micro::layout::{END_VECTOR, IPI_VECTORS, PAGE, WINDOW};
use micro::{Program, mix};

/// Registers that a program starts with. The assembly below knows its layout.
#[derive(Clone, Copy)]
#[repr(C)]
struct Start {
    gprs: [u64; 16],
    rip: u64,
    cs: u64,
    rflags: u64,
    ss: u64,
}

static START: Shared<Start> = Shared::new(Start { gprs: [0; 16], rip: 0, cs: 0, rflags: 0, ss: 0 });

/// Phase of a run, by which the handler acts.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// No program runs: exceptions are the harness' own.
    Idle,
    /// A program runs.
    Running,
    /// It has ended, and interrupts that waited come in.
    Draining,
}

static PHASE: Shared<Phase> = Shared::new(Phase::Idle);
static STEPS: Shared<u8> = Shared::new(0);
static DRAINED: Shared<u64> = Shared::new(0);

/// Vector that stands for SYSCALL's entry.
pub(crate) const SYSCALL_VECTOR: u8 = 0x82;

global_asm!(
    ".section .text.syscall_stub, \"ax\", @progbits",
    ".globl syscall_stub",
    "syscall_stub:",
    "int 0x82",
    "ud2",
);

unsafe extern "C" {
    #[link_name = "syscall_stub"]
    static STUB: u8;
}

/// Its address.
pub(crate) fn syscall_stub() -> u64 {
    (&raw const STUB).addr() as u64
}

/// The first run of a program, or the second.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Run {
    /// With all exits written down.
    Traced,
    /// With the hypervisor's hot handler at work.
    Free,
}

/// Digests of all that a program saw and left.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Seen {
    /// All of it.
    pub(crate) strict: u64,
    /// Without known differences of emulated CPUs.
    pub(crate) loose: u64,
}

/// Runs a program.
pub(crate) fn run(program: &Program, run: Run) -> Seen {
    window::prepare(program, run as u64);
    record::start(run);
    crate::none_left(run);
    STEPS.set(program.steps);
    DRAINED.set(0);
    crate::PROGRAM.set(program);
    let (cs, ss) = machine::selectors(program.mode);
    START.set(Start {
        gprs: program.gprs,
        rip: program.code_at - program.code_base(),
        cs: cs.into(),
        rflags: program.rflags,
        ss: ss.into(),
    });
    machine::prepare(program);
    if run == Run::Traced {
        trace::start();
    }
    PHASE.set(Phase::Running);
    enter();
    PHASE.set(Phase::Idle);
    trace::stop();
    let state = machine::collect();
    PHASE.set(Phase::Draining);
    cpu::interrupt_window();
    PHASE.set(Phase::Idle);
    machine::restore_devices();
    let state = crate::left(state, "interrupts", DRAINED.get());
    let mut seen = window::add_to(state);
    record::each(run, |record| {
        seen.strict = record.digest(seen.strict, How::Strict);
        seen.loose = record.digest(seen.loose, How::Loose);
    });
    seen
}

/// Enters the program that [`START`] describes, and comes back at its end.
fn enter() {
    // SAFETY: the program runs in the window; whatever it raises ends up in
    // `on_trap`, and its end comes back to label 66 with this stack pointer.
    unsafe {
        asm!(
            "push rbx",
            "push rbp",
            "lea rax, [rip + 66f]",
            "mov [rip + {recover_rip}], rax",
            "mov [rip + {recover_rsp}], rsp",
            "lea r15, [rip + {start}]",
            "push qword ptr [r15 + 152]",
            "push qword ptr [r15 + 4 * 8]",
            "push qword ptr [r15 + 144]",
            "push qword ptr [r15 + 136]",
            "push qword ptr [r15 + 128]",
            "mov eax, [r15 + 152]",
            "mov ds, eax",
            "mov es, eax",
            "mov rax, [r15]",
            "mov rcx, [r15 + 1 * 8]",
            "mov rdx, [r15 + 2 * 8]",
            "mov rbx, [r15 + 3 * 8]",
            "mov rbp, [r15 + 5 * 8]",
            "mov rsi, [r15 + 6 * 8]",
            "mov rdi, [r15 + 7 * 8]",
            "mov r8, [r15 + 8 * 8]",
            "mov r9, [r15 + 9 * 8]",
            "mov r10, [r15 + 10 * 8]",
            "mov r11, [r15 + 11 * 8]",
            "mov r12, [r15 + 12 * 8]",
            "mov r13, [r15 + 13 * 8]",
            "mov r14, [r15 + 14 * 8]",
            "mov r15, [r15 + 15 * 8]",
            "iretq",
            "66:",
            "push 2",
            "popfq",
            "mov eax, 0x10",
            "mov ds, eax",
            "mov es, eax",
            "xor eax, eax",
            "mov fs, eax",
            "mov gs, eax",
            "pop rbp",
            "pop rbx",
            start = sym START,
            recover_rip = sym RECOVER_RIP,
            recover_rsp = sym RECOVER_RSP,
            out("rax") _, out("rcx") _, out("rdx") _, out("rsi") _, out("rdi") _,
            out("r8") _, out("r9") _, out("r10") _, out("r11") _,
            out("r12") _, out("r13") _, out("r14") _, out("r15") _,
        );
    }
    let _ = trap::take();
}

const TF: u64 = 1 << 8;
const RF: u64 = 1 << 16;
/// Flags that SYSRET restores from R11.
const SYSRET_FLAGS: u64 = 0x3c_7fd7;
const DR6_RESET: u64 = 0xffff_0ff0;
const DR6_GENERAL_DETECT: u64 = 1 << 13;
const DR6_SINGLE_STEP: u64 = 1 << 14;
const HLT: u8 = 0xf4;

/// Every vector's handler.
pub(crate) fn on_trap(frame: &mut Frame) {
    let vector = cpu::low8(frame.vector);
    match PHASE.get() {
        Phase::Idle => return trap::catch_this(),
        Phase::Draining => {
            DRAINED.set(mix(DRAINED.get(), frame.vector));
            return Lapic::X1.eoi();
        }
        Phase::Running => {}
    }
    // SAFETY: the program lives until its run is over.
    let Some(program) = (unsafe { crate::PROGRAM.get().as_ref() }) else { return };
    let extra = match vector {
        trap::vector::PF => cpu::cr2(),
        trap::vector::DB => {
            let dr6 = cpu::dr6();
            let _ = cpu::set_dr6(DR6_RESET);
            dr6
        }
        _ => 0,
    };
    let room = record::add(describe(frame, extra, program));
    if vector == END_VECTOR || !room {
        return trap::catch_this();
    }
    match vector {
        trap::vector::DB => {
            if extra & DR6_SINGLE_STEP != 0 {
                STEPS.set(STEPS.get().saturating_sub(1));
                if STEPS.get() == 0 {
                    frame.rflags &= !TF;
                }
            }
            if extra & DR6_GENERAL_DETECT != 0 {
                skip(frame, program);
            }
        }
        SYSCALL_VECTOR => {
            // Back to behind the SYSCALL, as SYSRET would.
            let (cs, ss) = machine::selectors(program.mode);
            frame.rip = frame.gprs[13];
            frame.rflags = frame.gprs[4] & SYSRET_FLAGS | 2;
            (frame.cs, frame.ss) = (cs.into(), ss.into());
        }
        vector if IPI_VECTORS.contains(&vector) => Lapic::X1.eoi(),
        trap::vector::BP | 4 | 0x20.. => {}
        _ => skip(frame, program),
    }
    // An event that would have ended a HLT may just have come: the program would wait for ever.
    let halts = program.offset(frame.rip).is_some_and(|o| program.code().get(o) == Some(&HLT));
    if halts && program.mode.is_supervisor() {
        skip(frame, program);
    }
    if program.offset(frame.rip).is_none() && frame.rip != syscall_stub() {
        end(frame, program);
    }
}

fn describe(frame: &Frame, extra: u64, program: &Program) -> Record {
    // The frame has R15 down to R8, then RDI, RSI, RBP, RBX, RDX, RCX, RAX.
    let [r15, r14, r13, r12, r11, r10, r9, r8, rdi, rsi, rbp, rbx, rdx, rcx, rax] = frame.gprs;
    let refused = frame.vector == trap::vector::GP.into() && at_svm_instruction(frame, program);
    Record {
        vector: if refused { trap::vector::UD.into() } else { frame.vector },
        error: frame.error,
        extra,
        gprs: [rax, rcx, rdx, rbx, frame.rsp, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15],
        rip: frame.rip,
        cs: frame.cs,
        rflags: frame.rflags & !RF,
        ss: frame.ss,
        unknown: program.offset(frame.rip).map_or(0, |offset| program.unknown(offset)),
    }
}

/// Whether it is one of AMD-V's instructions. AMD's CPUs check privilege and
/// operands before they look whether it is intercepted, so that #GP may come in
/// place of the #UD that is due where AMD-V is not offered.
fn at_svm_instruction(frame: &Frame, program: &Program) -> bool {
    let code = program.offset(frame.rip).and_then(|offset| program.code().get(offset..));
    matches!(code, Some([0x0f, 0x01, 0xd8 | 0xda..=0xdf, ..]))
}

/// On behind the instruction at which the program stopped.
fn skip(frame: &mut Frame, program: &Program) {
    frame.rflags &= !RF;
    if let Some(offset) = program.offset(frame.rip) {
        frame.rip = program.code_at - program.code_base() + program.next_start(offset) as u64;
        return;
    }
    // It jumped somewhere: back to behind the CALL, if it was one.
    let back = match program.mode.bits() {
        64 => stack_word(frame.rsp, 8),
        32 => stack_word(frame.rsp & 0xffff_ffff, 4),
        _ => None,
    };
    match back.filter(|rip| program.offset(*rip).is_some()) {
        Some(rip) => frame.rip = rip,
        None => end(frame, program),
    }
}

/// Word on the program's stack, if that is in the window's RAM.
fn stack_word(rsp: u64, bytes: u64) -> Option<u64> {
    let index = usize::try_from(rsp.checked_sub(WINDOW)? / PAGE).ok()?;
    let stack = micro::layout::PAGES.get(index) == Some(&micro::layout::Page::Stack);
    let fits = rsp % PAGE <= PAGE - bytes;
    (stack && fits).then(|| if bytes == 8 { peek(rsp) } else { u64::from(peek::<u32>(rsp)) })
}

/// To the program's last instruction.
fn end(frame: &mut Frame, program: &Program) {
    let (cs, ss) = machine::selectors(program.mode);
    (frame.cs, frame.ss) = (cs.into(), ss.into());
    frame.rip = program.code_at - program.code_base() + program.end() as u64;
}
