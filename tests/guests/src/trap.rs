//! Exceptions and interrupts: the IDT, recoverable faults, handlers.
//!
//! [`catch_asm!`](crate::catch_asm) runs instructions that may fault and says
//! what they raised. Everything else that arrives goes to the handler set with
//! [`on`]; an interrupt or exception that nobody expects ends the guest.

use crate::harness::{self, Shared};
use crate::println;
use core::arch::{asm, global_asm};

/// Exception vectors.
pub mod vector {
    /// Divide error.
    pub const DE: u8 = 0;
    /// Debug.
    pub const DB: u8 = 1;
    /// Non-maskable interrupt.
    pub const NMI: u8 = 2;
    /// Breakpoint.
    pub const BP: u8 = 3;
    /// Invalid opcode.
    pub const UD: u8 = 6;
    /// Device not available.
    pub const NM: u8 = 7;
    /// Double fault.
    pub const DF: u8 = 8;
    /// Segment not present.
    pub const NP: u8 = 11;
    /// Stack fault.
    pub const SS: u8 = 12;
    /// General protection.
    pub const GP: u8 = 13;
    /// Page fault.
    pub const PF: u8 = 14;
    /// The gate that ring 3 may use, to come back to ring 0.
    pub const USER_RETURN: u8 = 0x80;
}

/// Selectors of the descriptor table made at boot.
pub mod selector {
    /// 64-bit code.
    pub const CODE64: u16 = 0x08;
    /// Data.
    pub const DATA: u16 = 0x10;
    /// 32-bit code.
    pub const CODE32: u16 = 0x18;
    /// Ring-3 data.
    pub const USER_DATA: u16 = 0x23;
    /// Ring-3 code, 64 bits.
    pub const USER_CODE: u16 = 0x2b;
    /// The task state segment.
    pub const TSS: u16 = 0x30;
    /// 16-bit code.
    pub const CODE16: u16 = 0x40;
    /// 16-bit data.
    pub const DATA16: u16 = 0x48;
    /// Ring-3 code, 32 bits.
    pub const USER_CODE32: u16 = 0x53;
}

/// Words that the entry code saves, lowest address first.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Frame {
    /// R15 down to R8, then RDI, RSI, RBP, RBX, RDX, RCX, RAX.
    pub gprs: [u64; 15],
    /// The vector.
    pub vector: u64,
    /// The error code, or 0 where there is none.
    pub error: u64,
    /// Address at which it happened (fault) or goes on (trap, interrupt).
    pub rip: u64,
    /// The interrupted code's selector.
    pub cs: u64,
    /// The interrupted code's flags.
    pub rflags: u64,
    /// The interrupted code's stack pointer.
    pub rsp: u64,
    /// The interrupted code's stack selector.
    pub ss: u64,
}

/// An exception that was caught.
#[derive(Clone, Copy, Debug, Default)]
pub struct Trap {
    /// The vector.
    pub vector: u8,
    /// The error code, or 0.
    pub error: u32,
    /// CR2 when it was handled.
    pub cr2: u64,
    /// The frame's instruction pointer.
    pub rip: u64,
    /// The interrupted code's RAX.
    pub rax: u64,
    /// Its stack pointer.
    pub rsp: u64,
    /// Its code selector.
    pub cs: u64,
    /// Its stack selector.
    pub ss: u64,
    /// Flags of the interrupted code.
    pub rflags: u64,
}

/// A handler. It runs with interrupts off on the interrupted stack (or the
/// one that the task state segment names).
pub type Handler = fn(&mut Frame);

/// Address at which a caught exception goes on; 0 while nothing is being caught.
pub static RECOVER_RIP: Shared<u64> = Shared::new(0);
/// Stack pointer with which it goes on.
pub static RECOVER_RSP: Shared<u64> = Shared::new(0);
static WANTED: Shared<bool> = Shared::new(false);
static CAUGHT: Shared<Option<Trap>> = Shared::new(None);
static CAUGHT_GPRS: Shared<[u64; 15]> = Shared::new([0; 15]);
static HANDLERS: [Shared<Option<Handler>>; 256] = [const { Shared::new(None) }; 256];
static COUNTS: [Shared<u64>; 256] = [const { Shared::new(0) }; 256];

/// One gate of the IDT: two quadwords.
pub type Gate = [u64; 2];

#[repr(C, align(4096))]
#[derive(Clone, Copy)]
struct Idt([Gate; 256]);
static IDT: Shared<Idt> = Shared::new(Idt([[0; 2]; 256]));

#[repr(C, align(16))]
#[derive(Clone, Copy)]
struct Stack([u8; 16384]);
static RING0_STACK: Shared<Stack> = Shared::new(Stack([0; 16384]));
static IST_STACKS: [Shared<Stack>; 2] = [const { Shared::new(Stack([0; 16384])) }; 2];

/// The task state segment, as 32-bit words.
#[repr(C, align(16))]
#[derive(Clone, Copy)]
struct Tss([u32; 26]);
static TSS: Shared<Tss> = Shared::new(Tss([0; 26]));

/// A descriptor-table register: limit and base.
#[repr(C, packed)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TableRegister {
    /// Highest valid offset.
    pub limit: u16,
    /// Linear address.
    pub base: u64,
}

global_asm!(
    r#"
    .section .text.traps, "ax", @progbits
    .balign 16
    .globl trap_stubs
trap_stubs:
    .set trap_number, 0
    .rept 256
    .balign 16
    .if (trap_number == 8) || ((trap_number >= 10) && (trap_number <= 14)) || (trap_number == 17) || (trap_number == 21) || (trap_number == 29) || (trap_number == 30)
    .else
    push 0
    .endif
    .byte 0x68                  # push, 32 bits
    .long trap_number
    jmp trap_common
    .set trap_number, trap_number + 1
    .endr

trap_common:
    push rax
    push rcx
    push rdx
    push rbx
    push rbp
    push rsi
    push rdi
    push r8
    push r9
    push r10
    push r11
    push r12
    push r13
    push r14
    push r15
    cld
    mov rdi, rsp
    call trap_dispatch
    .globl trap_return
trap_return:
    pop r15
    pop r14
    pop r13
    pop r12
    pop r11
    pop r10
    pop r9
    pop r8
    pop rdi
    pop rsi
    pop rbp
    pop rbx
    pop rdx
    pop rcx
    pop rax
    add rsp, 16
    iretq
"#
);

unsafe extern "C" {
    static trap_stubs: u8;
    static mut gdt: [u64; 11];
}

/// Address of the entry stub of `vector`.
#[must_use]
pub fn stub(vector: u8) -> u64 {
    (&raw const trap_stubs).addr() as u64 + u64::from(vector) * 16
}

/// An interrupt gate to `target`, with the stack `ist` (0: none) and privilege `dpl`.
#[must_use]
pub fn gate(target: u64, ist: u8, dpl: u8) -> Gate {
    let attributes = 0x8e00 | u64::from(dpl) << 13 | u64::from(ist);
    let low = target & 0xffff
        | u64::from(selector::CODE64) << 16
        | attributes << 32
        | (target >> 16 & 0xffff) << 48;
    [low, target >> 32]
}

/// Replaces a gate of the IDT; returns the old one.
pub fn set_gate(vector: u8, new: Gate) -> Gate {
    let mut idt = IDT.get();
    let old = idt.0[usize::from(vector)];
    idt.0[usize::from(vector)] = new;
    IDT.set(idt);
    old
}

/// Linear address of the IDT (a page of its own).
#[must_use]
pub fn idt_address() -> u64 {
    IDT.address().addr() as u64
}

/// Loads the IDT register.
pub fn load_idt(register: &TableRegister) {
    // SAFETY: the tests that load another table restore this one.
    unsafe { asm!("lidt [{}]", in(reg) register, options(readonly, nostack)) };
}

/// The register value of the IDT made here.
#[must_use]
pub fn idt_register() -> TableRegister {
    TableRegister { limit: 4095, base: idt_address() }
}

/// Replaces the stack that exceptions from ring 3 use; returns the old one.
pub fn set_ring0_stack(top: u64) -> u64 {
    let mut tss = TSS.get();
    let old = u64::from(tss.0[1]) | u64::from(tss.0[2]) << 32;
    (tss.0[1], tss.0[2]) = crate::cpu::halves(top);
    TSS.set(tss);
    old
}

/// Sets the stack of an interrupt stack table entry (1 to 7); returns the old one.
pub fn set_ist(index: u8, top: u64) -> u64 {
    let mut tss = TSS.get();
    let word = 7 + usize::from(index) * 2;
    let old = u64::from(tss.0[word]) | u64::from(tss.0[word + 1]) << 32;
    (tss.0[word], tss.0[word + 1]) = crate::cpu::halves(top);
    TSS.set(tss);
    old
}

/// Fills the IDT and the task state segment and loads both.
pub fn init() {
    let mut idt = IDT.get();
    for vector in 0..=255u8 {
        let ist = match vector {
            vector::DF => 1,
            _ => 0,
        };
        let dpl = if matches!(vector, vector::BP | 4 | vector::USER_RETURN) { 3 } else { 0 };
        idt.0[usize::from(vector)] = gate(stub(vector), ist, dpl);
    }
    IDT.set(idt);
    load_idt(&idt_register());
    let top = |stack: &Shared<Stack>| stack.address().addr() as u64 + 16384;
    set_ring0_stack(top(&RING0_STACK));
    set_ist(1, top(&IST_STACKS[0]));
    set_ist(2, top(&IST_STACKS[1]));
    let mut tss = TSS.get();
    tss.0[25] = 104 << 16; // no I/O permission map
    TSS.set(tss);
    load_task_register();
}

/// (Re)loads the task register.
pub fn load_task_register() {
    let base = TSS.address().addr() as u64;
    let low = 103 | (base & 0xff_ffff) << 16 | 0x89 << 40 | (base >> 24 & 0xff) << 56;
    let table = (&raw mut gdt).cast::<u64>();
    for (entry, value) in [(6, low), (7, base >> 32)] {
        // SAFETY: the table has eleven entries.
        let slot = unsafe { table.add(entry) };
        // SAFETY: entries 6 and 7 belong to the task state segment.
        unsafe { slot.write_volatile(value) };
    }
    // SAFETY: the descriptor was just made, not busy.
    unsafe { asm!("ltr {0:x}", in(reg) selector::TSS, options(nostack)) };
}

/// Sets the handler of `vector`, or none.
pub fn on(vector: u8, handler: Option<Handler>) {
    HANDLERS[usize::from(vector)].set(handler);
}

/// How often `vector` arrived.
pub fn count(vector: u8) -> u64 {
    COUNTS[usize::from(vector)].get()
}

/// Registers of the code that the last exception that was caught has interrupted, in the order of
/// [`Frame::gprs`].
#[must_use]
pub fn caught_gprs() -> [u64; 15] {
    CAUGHT_GPRS.get()
}

/// Takes what the last [`catch_asm!`](crate::catch_asm) caught.
pub fn take() -> Option<Trap> {
    let caught = CAUGHT.get();
    CAUGHT.set(None);
    caught
}

#[unsafe(no_mangle)]
extern "C" fn trap_dispatch(frame: &mut Frame) {
    let vector = crate::cpu::low8(frame.vector);
    let counter = &COUNTS[usize::from(vector)];
    counter.set(counter.get() + 1);
    if let Some(handler) = HANDLERS[usize::from(vector)].get() {
        // The handler may catch exceptions of its own.
        let outer = (RECOVER_RIP.get(), RECOVER_RSP.get(), CAUGHT.get());
        handler(frame);
        RECOVER_RIP.set(outer.0);
        RECOVER_RSP.set(outer.1);
        CAUGHT.set(outer.2);
        if WANTED.get() {
            WANTED.set(false);
            recover(frame);
        }
    } else if RECOVER_RIP.get() != 0 && (vector < 32 || vector == vector::USER_RETURN) {
        recover(frame);
    } else {
        println!(
            "FAILED {}: unexpected vector {vector} error {:#x} rip {:#x} cs {:#x} rsp {:#x} rflags {:#x} cr2 {:#x}",
            harness::current(),
            frame.error,
            frame.rip,
            frame.cs,
            frame.rsp,
            frame.rflags,
            crate::cpu::cr2()
        );
        harness::exit(1)
    }
}

/// For a handler: when it returns, the exception counts as caught.
pub fn catch_this() {
    WANTED.set(true);
}

/// Records the exception and goes on where the catching code wants it, in
/// ring 0 with single-stepping and backward strings off.
fn recover(frame: &mut Frame) {
    CAUGHT_GPRS.set(frame.gprs);
    CAUGHT.set(Some(Trap {
        vector: crate::cpu::low8(frame.vector),
        error: crate::cpu::low32(frame.error),
        cr2: crate::cpu::cr2(),
        rip: frame.rip,
        rax: frame.gprs[14],
        rsp: frame.rsp,
        cs: frame.cs,
        ss: frame.ss,
        rflags: frame.rflags,
    }));
    frame.rip = RECOVER_RIP.get();
    frame.rsp = RECOVER_RSP.get();
    frame.cs = u64::from(selector::CODE64);
    frame.ss = u64::from(selector::DATA);
    frame.rflags &= !0x1_0500; // RF, DF, TF
    RECOVER_RIP.set(0);
}

/// Runs instructions and catches the exception that they raise, if any:
/// `catch_asm!(["rdmsr"], in("ecx") number, …) -> Option<Trap>`.
/// After an exception the registers hold what they held at that moment.
#[macro_export]
macro_rules! catch_asm {
    ([$($template:expr),+ $(,)?] $(, $($operands:tt)*)?) => {{
        // SAFETY: the test's own instructions, in a machine that belongs to the
        // test; an exception comes back to the label behind them.
        unsafe {
            ::core::arch::asm!(
                "lea {recover_scratch}, [rip + 77f]",
                "mov [rip + {recover_rip}], {recover_scratch}",
                "mov [rip + {recover_rsp}], rsp",
                $($template,)+
                "77:",
                "mov qword ptr [rip + {recover_rip}], 0",
                recover_scratch = out(reg) _,
                recover_rip = sym $crate::trap::RECOVER_RIP,
                recover_rsp = sym $crate::trap::RECOVER_RSP,
                $($($operands)*)?
            )
        };
        $crate::trap::take()
    }};
}
