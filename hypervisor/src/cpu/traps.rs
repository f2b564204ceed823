//! Exceptions and interrupts of the hypervisor itself.
//!
//! Exceptions at instructions of the [exception table](super::extable) go on
//! at their fix-up; any other is a bug of ours and ends in a panic that shows
//! the registers. Interrupts are recorded and acknowledged, nothing else: the
//! work that they announce is done where it can be charged to somebody.

use super::vectors::{LEGACY_VECTOR_BASE, SPURIOUS_VECTOR};
use super::{apic, extable, percpu};
use core::arch::global_asm;
use core::sync::atomic::Ordering;

/// Vector of non-maskable interrupts.
const NMI: u64 = 2;
/// Vector of debug exceptions.
const DEBUG: u64 = 1;
/// Exceptions that instructions of the exception table may raise: #GP, #PF, #MC.
const FORESEEN: [u64; 3] = [13, 14, 18];

/// Takes the set of vectors that this CPU has seen since the last call, if there are any.
/// Interrupts are off.
#[inline]
pub fn take_seen() -> Option<[u64; 4]> {
    let this = percpu::this();
    if !this.has_seen.load(Ordering::Relaxed) {
        return None;
    }
    this.has_seen.store(false, Ordering::Relaxed);
    Some(this.seen.each_ref().map(|word| word.swap(0, Ordering::Relaxed)))
}

/// Words that the stubs push, lowest address first.
#[repr(C)]
#[derive(Debug)]
pub struct TrapFrame {
    r15: u64,
    r14: u64,
    r13: u64,
    r12: u64,
    r11: u64,
    r10: u64,
    r9: u64,
    r8: u64,
    rbp: u64,
    rdi: u64,
    rsi: u64,
    rdx: u64,
    rcx: u64,
    rbx: u64,
    rax: u64,
    vector: u64,
    error_code: u64,
    rip: u64,
    cs: u64,
    rflags: u64,
    rsp: u64,
    ss: u64,
}

// One stub of 16 bytes for each vector: those for which the CPU pushes no
// error code push a zero, then all push their number. CLD: the interrupted
// code may be anywhere.
global_asm!(
    ".balign 16",
    ".global steward_trap_stubs",
    "steward_trap_stubs:",
    ".set vector, 0",
    ".rept 256",
    ".balign 16",
    ".if vector == 8 || (vector >= 10 && vector <= 14) || vector == 17 || vector == 21",
    ".else",
    "push 0",
    ".endif",
    "push vector",
    "jmp steward_trap_common",
    ".set vector, vector + 1",
    ".endr",
    "steward_trap_common:",
    "push rax",
    "push rbx",
    "push rcx",
    "push rdx",
    "push rsi",
    "push rdi",
    "push rbp",
    "push r8",
    "push r9",
    "push r10",
    "push r11",
    "push r12",
    "push r13",
    "push r14",
    "push r15",
    "cld",
    "mov rdi, rsp",
    "mov rbx, rsp",
    "and rsp, -16",
    "call {trap}",
    "mov rsp, rbx",
    "pop r15",
    "pop r14",
    "pop r13",
    "pop r12",
    "pop r11",
    "pop r10",
    "pop r9",
    "pop r8",
    "pop rbp",
    "pop rdi",
    "pop rsi",
    "pop rdx",
    "pop rcx",
    "pop rbx",
    "pop rax",
    "add rsp, 16",
    "iretq",
    trap = sym trap,
);

unsafe extern "C" {
    static steward_trap_stubs: u8;
}

/// The address of the stub of `vector`.
#[must_use]
pub fn stub(vector: usize) -> u64 {
    (&raw const steward_trap_stubs) as u64 + vector as u64 * 16
}

extern "C" fn trap(frame: &mut TrapFrame) {
    let vector = frame.vector;
    if vector >= 32 {
        interrupt(vector);
    } else if vector == NMI || vector == DEBUG {
        // Nothing here asks for NMIs, single-steps or sets a breakpoint. A debug exception is a
        // guest's, which one emulator lets through to the first instruction after an exit.
        // Locks may be held, and a guest's GS may be loaded: they are dropped.
    } else if FORESEEN.contains(&vector)
        && let Some(fixup) = extable::fixup(frame.rip)
    {
        frame.rip = fixup;
    } else {
        fatal(frame);
    }
}

fn interrupt(vector: u64) {
    let (word, bit) = ((vector / 64) as usize & 3, vector % 64);
    let this = percpu::this();
    this.seen[word].fetch_or(1 << bit, Ordering::Relaxed);
    this.has_seen.store(true, Ordering::Relaxed);
    let legacy = u64::from(LEGACY_VECTOR_BASE);
    if (legacy..legacy + 16).contains(&vector) {
        super::legacy::end_of_interrupt(vector - legacy);
    } else if vector != u64::from(SPURIOUS_VECTOR) {
        apic::end_of_interrupt();
    }
}

/// Names of the exceptions, for the operator.
fn name(vector: u64) -> &'static str {
    match vector {
        0 => "#DE divide error",
        1 => "#DB debug",
        3 => "#BP breakpoint",
        6 => "#UD invalid opcode",
        7 => "#NM no FPU",
        8 => "#DF double fault",
        10 => "#TS invalid TSS",
        11 => "#NP segment not present",
        12 => "#SS stack fault",
        13 => "#GP general protection",
        14 => "#PF page fault",
        17 => "#AC alignment check",
        18 => "#MC machine check",
        _ => "exception",
    }
}

fn fatal(frame: &TrapFrame) -> ! {
    let cr2: u64;
    // SAFETY: reading CR2 has no effect.
    unsafe {
        core::arch::asm!("mov {}, cr2", out(reg) cr2, options(nomem, nostack, preserves_flags));
    }
    panic!(
        "{} in the hypervisor, error code {:#x}, CR2 {cr2:#x}\n{frame:#x?}",
        name(frame.vector),
        frame.error_code
    );
}
