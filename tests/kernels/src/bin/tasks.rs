//! Hardware task switches, in 32-bit protected mode: JMP, CALL, IRET, INT n and exceptions through
//! task gates, TSSs of 32 and of 16 bits, and what faults on the way.
//!
//! [`trip`] leaves long mode, runs one scenario as the task [`MAIN`], and comes back. Tasks leave a
//! record of what they found in their registers.
#![no_std]
#![no_main]

use core::arch::global_asm;
use guests::harness::{Outcome, Tests};
use guests::{check, check_eq, trap};

guests::entry!(main);

global_asm!(
    r#"
    .section .text.tasks, "ax", @progbits
    .globl tasks_trip
tasks_trip:                     # RDI: scenario, RSI: whether paging is on
    pushq %rbx
    pushq %rbp
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    pushfq
    cli
    movq %cr3, %rax
    movl %eax, tasks_cr3
    sidt tasks_idt64
    sgdt tasks_gdt64
    pushq $0x18
    leaq 1f(%rip), %rax
    pushq %rax
    lretq
    .code32
1:  movl %esp, tasks_esp
    movl %cr0, %eax
    andl $0x7fffffff, %eax
    movl %eax, %cr0             # no paging: long mode is left
    movl $0xc0000080, %ecx
    rdmsr
    movl %eax, tasks_efer
    andl $~0x100, %eax
    wrmsr
    lgdt tasks_gdtr
    lidt tasks_idtr
    movl $0x10, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %ss
    xorl %eax, %eax
    movl %eax, %fs
    movl %eax, %gs
    lldt %ax
    movl $0x20, %eax
    ltr %ax
    testl %esi, %esi
    jz 2f
    movl $tasks_pdpt, %eax
    movl %eax, %cr3
    movl %cr0, %eax
    orl $0x80000000, %eax
    movl %eax, %cr0
2:  movl %cr0, %eax
    andl $~8, %eax              # TS
    movl %eax, %cr0
    call *%edi
    cli
    movl %cr0, %eax
    andl $0x7ffffff7, %eax      # no paging, no TS
    movl %eax, %cr0
    lgdt tasks_gdt64
    movl tasks_esp, %esp
    movl tasks_cr3, %eax
    movl %eax, %cr3
    movl $0xc0000080, %ecx
    xorl %edx, %edx
    movl tasks_efer, %eax
    orl $0x100, %eax
    andl $~0x400, %eax
    wrmsr
    movl %cr0, %eax
    orl $0x80000000, %eax
    movl %eax, %cr0
    ljmp $0x08, $3f
    .code64
3:  lidt tasks_idt64
    xorl %eax, %eax
    movl %eax, %fs
    movl %eax, %gs
    popfq
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbp
    popq %rbx
    ret

    .code32
tasks_note:                     # appends a record, changes no register
    pushfl
    pushal
    movl tasks_at, %edi
    movl %esp, %esi
    movl $9, %ecx
    cld
    rep movsl                   # EDI ESI EBP ESP EBX EDX ECX EAX EFLAGS
    xorl %eax, %eax
    str %ax
    stosl
    movl %cr0, %eax
    stosl
    movl %cr3, %eax
    stosl
    xorl %eax, %eax
    movw %cs, %ax
    stosl
    movw %ss, %ax
    stosl
    movw %fs, %ax
    stosl
    sldt %ax
    stosl
    movl %edi, tasks_at
    popal
    popfl
    ret

    .macro known base
    movl $\base + 0x01, %eax
    movl $\base + 0x02, %ecx
    movl $\base + 0x03, %edx
    movl $\base + 0x04, %ebx
    movl $\base + 0x05, %ebp
    movl $\base + 0x06, %esi
    movl $\base + 0x07, %edi
    .endm

    # Scenarios: they run as the first task.
    .globl tasks_jump, tasks_call16, tasks_ud, tasks_gp, tasks_int, tasks_twice
    .globl tasks_ud_at, tasks_gp_at, tasks_jump_gate, tasks_jump_behind, tasks_int_behind
    .globl tasks_refused, tasks_spoiled
tasks_jump:
    known 0x10000000
    pushl $3                    # CF
    popfl
    ljmp $0x28, $0
tasks_jump_behind:
    call tasks_note
    ret
tasks_jump_gate:
    known 0x10000000
    ljmp $0x38, $0
    call tasks_note
    ret
tasks_twice:
    known 0x20000000
    lcall $0x28, $0
    lcall $0x28, $0
    call tasks_note
    ret
tasks_call16:
    known 0x30000000
    lcall $0x30, $0
    call tasks_note
    ret
tasks_ud:
    known 0x40000000
    movl $tasks_recovered, tasks_recover
tasks_ud_at:
    ud2
tasks_recovered:
    call tasks_note
    ret
tasks_gp:
    known 0x50000000
    movl $tasks_recovered, tasks_recover
    movl $0x7ff8, %eax
tasks_gp_at:
    movl %eax, %es
    jmp tasks_recovered
tasks_int:
    known 0x60000000
    int $0x30
tasks_int_behind:
    call tasks_note
    ret

    # A call of the task whose descriptor the test has spoiled.
tasks_refused:
    movl $tasks_recovered, tasks_recover
    lcall $0x28, $0
    jmp tasks_recovered

    # A jump to the task whose selectors the test has spoiled.
tasks_spoiled:
    ljmp $0x28, $0
    jmp tasks_recovered

    # Other tasks.
    .globl tasks_a_jump, tasks_a_call, tasks_a_16, tasks_a_fault, tasks_a_error
tasks_a_jump:
    call tasks_note
    ljmp $0x20, $0
    jmp tasks_a_jump
tasks_a_call:
    call tasks_note
    movl 0x40000000, %eax       # what the task's page tables show there, with paging
    movl %eax, tasks_seen
    iret
    jmp tasks_a_call
tasks_a_16:
    movw %ax, tasks_words
    movw %cx, tasks_words + 2
    movw %dx, tasks_words + 4
    movw %bx, tasks_words + 6
    movw %sp, tasks_words + 8
    movw %bp, tasks_words + 10
    movw %si, tasks_words + 12
    movw %di, tasks_words + 14
    str tasks_words + 16
    pushfl
    popl %eax
    movl %eax, tasks_words + 20
    iret
    jmp tasks_a_16
tasks_a_error:                  # a handler with an error code
    popl tasks_error
tasks_a_fault:                  # a handler without one
    call tasks_note
    movl tasks_fault_tss, %eax  # the back link
    andl $0xffff, %eax
    movl %eax, tasks_link
    cmpl $0x20, %eax
    jne 1f
    movl tasks_main_tss + 0x20, %eax
    movl %eax, tasks_eip
    movl tasks_recover, %eax
    movl %eax, tasks_main_tss + 0x20
    iret
1:  ljmp $0x20, $0

    # Handlers behind interrupt gates, in the task that has faulted.
    .globl tasks_handler_np, tasks_handler_ts, tasks_handler_gp, tasks_handler_db
tasks_handler_ts:
    movl $10, tasks_vector
    jmp 1f
tasks_handler_np:
    movl $11, tasks_vector
    jmp 1f
tasks_handler_gp:
    movl $13, tasks_vector
1:  popl tasks_error
    popl tasks_eip
    addl $8, %esp
    xorl %eax, %eax
    str %ax
    movl %eax, tasks_link
    cmpl $0x20, %eax
    jne 2f
    jmp *tasks_recover
2:  ljmp $0x20, $0
tasks_handler_db:
    pushl %eax
    movl %dr6, %eax
    movl %eax, tasks_error
    movl 4(%esp), %eax
    movl %eax, tasks_eip
    movl $1, tasks_vector
    popl %eax
    iret
    .code64

    .section .data.tasks, "aw", @progbits
    .balign 4096
    .globl tasks_pdpt, tasks_pdpt_a
tasks_pd_a:
    .quad 0x200083              # 1 GiB shows 2 MiB
    .skip 4088
tasks_pdpt:
    .quad boot_pd + 1, boot_pd + 1, boot_pd + 0x2001, boot_pd + 0x3001
tasks_pdpt_a:
    .quad boot_pd + 1, tasks_pd_a + 1, boot_pd + 0x2001, boot_pd + 0x3001
    .balign 16
tasks_gdtr:
    .word 0x7f
    .long tasks_gdt
tasks_idtr:
    .word 0x18f
    .long tasks_idt
    .balign 16
    .globl tasks_gdt, tasks_idt, tasks_main_tss, tasks_a_tss, tasks_a_tss16, tasks_fault_tss
    .globl tasks_state
tasks_gdt: .skip 0x80
tasks_idt: .skip 0x190
tasks_main_tss: .skip 0x80
tasks_a_tss: .skip 0x80
tasks_fault_tss: .skip 0x80
tasks_a_tss16: .skip 0x40
tasks_state:
tasks_error: .long 0
tasks_link: .long 0
tasks_vector: .long 0
tasks_eip: .long 0
tasks_seen: .long 0
tasks_words: .skip 24
tasks_at:  .long tasks_log
    .globl tasks_log, tasks_at
tasks_log: .skip 512
tasks_recover: .long 0
tasks_esp:  .long 0
tasks_cr3:  .long 0
tasks_efer: .long 0
tasks_idt64: .skip 16
tasks_gdt64: .skip 16
    .balign 16
    .skip 1024
    .globl tasks_a_stack, tasks_fault_stack, tasks_16_stack
tasks_a_stack:
    .skip 1024
tasks_fault_stack:
    .skip 256
tasks_16_stack:
"#,
    options(att_syntax)
);

unsafe extern "C" {
    static mut tasks_gdt: [u64; 16];
    static mut tasks_idt: [u64; 50];
    static mut tasks_main_tss: [u32; 32];
    static mut tasks_a_tss: [u32; 32];
    static mut tasks_fault_tss: [u32; 32];
    static mut tasks_a_tss16: [u16; 32];
    static mut tasks_state: [u32; 11];
    static mut tasks_log: [[u32; 16]; 8];
    static mut tasks_at: u32;
    static tasks_pdpt: u8;
    static tasks_pdpt_a: u8;
    static tasks_a_stack: u8;
    static tasks_fault_stack: u8;
    static tasks_16_stack: u8;
    static tasks_jump: u8;
    static tasks_jump_gate: u8;
    static tasks_jump_behind: u8;
    static tasks_twice: u8;
    static tasks_call16: u8;
    static tasks_ud: u8;
    static tasks_ud_at: u8;
    static tasks_gp: u8;
    static tasks_gp_at: u8;
    static tasks_int: u8;
    static tasks_int_behind: u8;
    static tasks_refused: u8;
    static tasks_spoiled: u8;
    static tasks_a_jump: u8;
    static tasks_a_call: u8;
    static tasks_a_16: u8;
    static tasks_a_fault: u8;
    static tasks_a_error: u8;
    static tasks_handler_np: u8;
    static tasks_handler_ts: u8;
    static tasks_handler_gp: u8;
    static tasks_handler_db: u8;
    fn tasks_trip(scenario: u64, paging: u64);
}

macro_rules! at {
    ($name:ident) => {
        (&raw const $name).addr() as u64
    };
}

/// The task that a scenario runs as, another, one with a TSS of 16 bits, and that of faults.
const MAIN: u32 = 0x20;
const OTHER: u32 = 0x28;
const OTHER16: u32 = 0x30;
const FAULT: u32 = 0x40;
/// EFLAGS.NT and EFLAGS.RF, CR0.TS.
const NT: u32 = 1 << 14;
const RF: u32 = 1 << 16;
const TS: u32 = 1 << 3;
/// A 32-bit code segment with its own base, a data segment with a 16-bit stack, a code segment that
/// is not present.
const CODE_BASED: u32 = 0x48;
const STACK16: u32 = 0x50;
const ABSENT: u32 = 0x58;
/// A local table.
const LOCAL: u32 = 0x60;

/// Words of a 32-bit TSS.
mod word {
    pub(crate) const LINK: usize = 0;
    pub(crate) const CR3: usize = 7;
    pub(crate) const EIP: usize = 8;
    pub(crate) const EFLAGS: usize = 9;
    pub(crate) const EAX: usize = 10;
    pub(crate) const ESP: usize = 14;
    pub(crate) const ES: usize = 18;
    pub(crate) const CS: usize = 19;
    pub(crate) const SS: usize = 20;
    pub(crate) const FS: usize = 22;
    pub(crate) const LDT: usize = 24;
    pub(crate) const TRAP: usize = 25;
}

fn main() -> ! {
    let mut tests = Tests::new();
    tests.case("jump", jump);
    tests.case("jump_through_a_gate", jump_through_a_gate);
    tests.case("call_and_iret", || call_and_iret(true));
    tests.case("without_paging", || call_and_iret(false));
    tests.case("sixteen_bits", sixteen_bits);
    tests.case("invalid_opcode", invalid_opcode);
    tests.case("error_code", error_code);
    tests.case("double_fault", double_fault);
    tests.case("software_interrupt", software_interrupt);
    tests.case("refused", refused);
    tests.case("faults_of_the_new_task", faults_of_the_new_task);
    tests.case("debug_trap", debug_trap);
    tests.finish()
}

fn low(value: u64) -> u32 {
    guests::cpu::halves(value).0
}

/// A copy of a static that the tasks write.
fn read<T: Copy>(place: *const T) -> T {
    // SAFETY: the place is a static of the assembly above, and no task runs.
    unsafe { place.read_volatile() }
}

fn write<T: Copy>(place: *mut T, value: T) {
    // SAFETY: as for `read`.
    unsafe { place.write_volatile(value) };
}

fn descriptor(base: u64, limit: u64, access: u64, flags: u64) -> u64 {
    limit & 0xffff
        | (base & 0xff_ffff) << 16
        | access << 40
        | (limit >> 16 & 0xf) << 48
        | flags << 52
        | (base >> 24) << 56
}

/// Changes the tables and the TSSs of a scenario.
struct Setting {
    gdt: [u64; 16],
    idt: [u64; 50],
    main: [u32; 32],
    other: [u32; 32],
}

const fn task_gate(selector: u32) -> u64 {
    (selector as u64) << 16 | 0x85 << 40
}

fn interrupt_gate(target: u64) -> u64 {
    target & 0xffff | 0x18 << 16 | 0x8e << 40 | (target >> 16 & 0xffff) << 48
}

impl Setting {
    /// All well: `target` is where the other task begins, `handler` that of faults.
    fn new(target: u64, handler: u64) -> Self {
        let tss = |place: u64| descriptor(place, 103, 0x89, 0);
        let mut gdt = [0; 16];
        gdt[1] = 0x00af_9b00_0000_ffff;
        gdt[2] = 0x00cf_9300_0000_ffff;
        gdt[3] = 0x00cf_9b00_0000_ffff;
        gdt[4] = tss(at!(tasks_main_tss));
        gdt[5] = tss(at!(tasks_a_tss));
        gdt[6] = descriptor(at!(tasks_a_tss16), 43, 0x81, 0);
        gdt[7] = task_gate(OTHER);
        gdt[8] = tss(at!(tasks_fault_tss));
        gdt[9] = descriptor(at!(tasks_a_16), 0xf_ffff, 0x9a, 0xc);
        gdt[10] = descriptor(at!(tasks_16_stack) - 256, 0xff, 0x92, 0);
        gdt[11] = 0x00cf_1b00_0000_ffff;
        gdt[12] = descriptor(at!(tasks_gdt), 0x7f, 0x82, 0);
        let mut other = [0; 32];
        other[word::CR3] = low(at!(tasks_pdpt_a));
        other[word::EIP] = low(target);
        other[word::EFLAGS] = 2;
        for (i, register) in (1..).zip(&mut other[word::EAX..word::ES]) {
            *register = 0xa000_0000 + i;
        }
        other[word::ESP] = low(at!(tasks_a_stack));
        other[word::ES..word::LDT].fill(0x10);
        other[word::CS] = 0x18;
        other[word::LDT] = LOCAL;
        let mut fault = other;
        fault[word::CR3] = low(at!(tasks_pdpt));
        fault[word::EIP] = low(handler);
        fault[word::ESP] = low(at!(tasks_fault_stack));
        fault[word::LDT] = 0;
        let mut main = [0; 32];
        main[word::CR3] = low(at!(tasks_pdpt));
        let mut small = [0; 32];
        small[8] = 2;
        for (i, register) in (1..).zip(&mut small[9..17]) {
            *register = 0xb000 + i;
        }
        small[13] = 0xf0;
        small[17..21].fill(0x10);
        small[18] = guests::cpu::low16(CODE_BASED.into());
        small[19] = guests::cpu::low16(STACK16.into());
        write(&raw mut tasks_fault_tss, fault);
        write(&raw mut tasks_a_tss16, small);
        let mut idt = [0; 50];
        idt[1] = interrupt_gate(at!(tasks_handler_db));
        idt[10] = interrupt_gate(at!(tasks_handler_ts));
        idt[11] = interrupt_gate(at!(tasks_handler_np));
        idt[13] = interrupt_gate(at!(tasks_handler_gp));
        Self { gdt, idt, main, other }
    }

    /// Plays a scenario.
    fn trip(&self, scenario: u64, paging: bool) {
        write(&raw mut tasks_gdt, self.gdt);
        write(&raw mut tasks_idt, self.idt);
        write(&raw mut tasks_main_tss, self.main);
        write(&raw mut tasks_a_tss, self.other);
        write(&raw mut tasks_state, [0; 11]);
        write(&raw mut tasks_at, low((&raw const tasks_log).addr() as u64));
        write(&raw mut tasks_log, [[0; 16]; 8]);
        // SAFETY: the assembly above comes back in the state that it left, but for TR.
        unsafe { tasks_trip(scenario, paging.into()) };
        trap::load_task_register();
    }
}

/// The record number `index`.
fn note(index: usize) -> Note {
    Note(read(&raw const tasks_log)[index])
}

/// The registers that a task had.
struct Note([u32; 16]);

impl Note {
    /// EAX, ECX, EDX, EBX, EBP, ESI, EDI.
    fn registers(&self) -> [u32; 7] {
        let r = self.0;
        [r[7], r[6], r[5], r[4], r[2], r[1], r[0]]
    }

    /// ESP, before the call of what has noted it.
    fn esp(&self) -> u32 {
        self.0[3] + 8
    }

    fn eflags(&self) -> u32 {
        self.0[8]
    }

    fn tr(&self) -> u32 {
        self.0[9]
    }

    fn cr0(&self) -> u32 {
        self.0[10]
    }

    fn cr3(&self) -> u32 {
        self.0[11]
    }

    /// CS, SS, FS, LDTR.
    fn selectors(&self) -> [u32; 4] {
        [self.0[12], self.0[13], self.0[14], self.0[15]]
    }
}

fn known(base: u32) -> [u32; 7] {
    core::array::from_fn(|i| base + 1 + u32::try_from(i).unwrap_or(0))
}

/// The same registers in the other task's TSS.
fn of_the_other() -> [u32; 7] {
    [1, 2, 3, 4, 6, 7, 8].map(|i| 0xa000_0000 + i)
}

/// Whether the descriptor of a TSS says busy.
fn is_busy(selector: u32) -> bool {
    let gdt = read(&raw const tasks_gdt);
    gdt[usize::try_from(selector / 8).unwrap_or(0)] >> 41 & 1 != 0
}

fn state(index: usize) -> u32 {
    read(&raw const tasks_state)[index]
}
fn error() -> u32 {
    state(0)
}
fn link() -> u32 {
    state(1)
}
fn vector() -> u32 {
    state(2)
}
fn eip() -> u32 {
    state(3)
}

fn main_saved(index: usize) -> u32 {
    read(&raw const tasks_main_tss)[index]
}

fn other_saved(index: usize) -> u32 {
    read(&raw const tasks_a_tss)[index]
}

fn jump() -> Outcome {
    Setting::new(at!(tasks_a_jump), 0).trip(at!(tasks_jump), true);
    let (there, back) = (note(0), note(1));
    check_eq!(there.registers(), of_the_other(), "registers of the other task");
    check_eq!(there.esp(), low(at!(tasks_a_stack)), "its ESP");
    check_eq!((there.tr(), there.cr3()), (OTHER, low(at!(tasks_pdpt_a))), "its TR and CR3");
    check_eq!(there.selectors(), [0x18, 0x10, 0x10, LOCAL], "its selectors");
    check_eq!((there.eflags() & NT, there.cr0() & TS), (0, TS), "NT and CR0.TS");
    check_eq!(back.registers(), known(0x1000_0000), "registers of the first task");
    check_eq!((back.tr(), back.cr3()), (MAIN, low(at!(tasks_pdpt))), "TR and CR3 after it");
    check_eq!(back.selectors(), [0x18, 0x10, 0, 0], "selectors after it");
    check_eq!(back.eflags() & (NT | 1), 1, "NT and CF after it");
    check_eq!(main_saved(word::EIP), low(at!(tasks_jump_behind)), "the saved EIP");
    check_eq!(main_saved(word::EFLAGS) & (NT | RF | 1), 1, "the saved flags");
    check_eq!(main_saved(word::EAX), 0x1000_0001, "the saved EAX");
    check_eq!(main_saved(word::SS), 0x10, "the saved SS");
    check_eq!(other_saved(word::LINK), 0, "the back link");
    check_eq!(other_saved(word::CR3), low(at!(tasks_pdpt_a)), "CR3 is not saved");
    check_eq!((is_busy(MAIN), is_busy(OTHER)), (true, false), "busy tasks");
    Ok(())
}

fn jump_through_a_gate() -> Outcome {
    Setting::new(at!(tasks_a_jump), 0).trip(at!(tasks_jump_gate), true);
    check_eq!(note(0).registers(), of_the_other(), "registers of the other task");
    check_eq!(note(1).registers(), known(0x1000_0000), "registers of the first task");
    check_eq!((note(0).tr(), note(1).tr()), (OTHER, MAIN), "TR");
    Ok(())
}

fn call_and_iret(paging: bool) -> Outcome {
    let cr3 = |task| if paging { task } else { note(2).cr3() };
    Setting::new(at!(tasks_a_call), 0).trip(at!(tasks_twice), paging);
    let (there, again, back) = (note(0), note(1), note(2));
    check_eq!(there.registers(), of_the_other(), "registers of the other task");
    check_eq!((there.tr(), there.cr3()), (OTHER, cr3(low(at!(tasks_pdpt_a)))), "its TR and CR3");
    check_eq!((there.eflags() & NT, there.cr0() & TS), (NT, TS), "NT and CR0.TS");
    check_eq!(again.eflags() & NT, NT, "NT the second time");
    // It has changed EAX in between.
    let [_, rest @ ..] = of_the_other();
    let [_, kept @ ..] = again.registers();
    check_eq!(kept, rest, "its registers the second time");
    check_eq!(back.registers(), known(0x2000_0000), "registers of the first task");
    check_eq!((back.tr(), back.eflags() & NT), (MAIN, 0), "TR and NT after it");
    check_eq!(other_saved(word::LINK) & 0xffff, MAIN, "the back link");
    check_eq!(other_saved(word::EFLAGS) & NT, 0, "NT is not saved by IRET");
    check_eq!((is_busy(MAIN), is_busy(OTHER)), (true, false), "busy tasks");
    if paging {
        check_eq!(state(4), guests::info::peek::<u32>(0x20_0000), "memory of the other task");
    }
    Ok(())
}

fn sixteen_bits() -> Outcome {
    let setting = Setting::new(0, 0);
    setting.trip(at!(tasks_call16), true);
    let halves = |word: u32| [word & 0xffff, word >> 16];
    let [ax, cx] = halves(state(5));
    let [dx, bx] = halves(state(6));
    let [sp, bp] = halves(state(7));
    let [si, di] = halves(state(8));
    check_eq!([ax, cx, dx, bx], [0xb001, 0xb002, 0xb003, 0xb004], "AX, CX, DX, BX");
    check_eq!([sp, bp, si, di], [0xf0, 0xb006, 0xb007, 0xb008], "SP, BP, SI, DI");
    check_eq!((state(9) & 0xffff, state(10) & NT), (OTHER16, NT), "TR and NT");
    let small = read(&raw const tasks_a_tss16);
    check_eq!(u32::from(small[0]), MAIN, "the back link");
    check_eq!(u32::from(small[18]), CODE_BASED, "the saved CS");
    let back = note(0);
    check_eq!(back.registers(), known(0x3000_0000), "registers of the first task");
    check_eq!((back.tr(), back.cr3()), (MAIN, low(at!(tasks_pdpt))), "TR and CR3 after it");
    check_eq!((is_busy(MAIN), is_busy(OTHER16)), (true, false), "busy tasks");
    Ok(())
}

fn invalid_opcode() -> Outcome {
    let mut setting = Setting::new(0, at!(tasks_a_fault));
    setting.idt[6] = task_gate(FAULT);
    setting.trip(at!(tasks_ud), true);
    check_eq!((note(0).tr(), note(1).tr()), (FAULT, MAIN), "TR");
    check_eq!(note(0).esp(), low(at!(tasks_fault_stack)), "ESP of the handler");
    check_eq!(link(), MAIN, "the back link");
    check_eq!(note(1).registers(), known(0x4000_0000), "registers of the first task");
    check_eq!(eip(), low(at!(tasks_ud_at)), "the saved EIP");
    check_eq!(main_saved(word::EFLAGS) & NT, 0, "NT in the saved flags");
    check_eq!((is_busy(MAIN), is_busy(FAULT)), (true, false), "busy tasks");
    Ok(())
}

fn error_code() -> Outcome {
    let mut setting = Setting::new(0, at!(tasks_a_error));
    setting.idt[13] = task_gate(FAULT);
    setting.trip(at!(tasks_gp), true);
    check_eq!((error(), link()), (0x7ff8, MAIN), "the error code and the back link");
    check_eq!(eip(), low(at!(tasks_gp_at)), "the saved EIP");
    // The code is popped.
    check_eq!(note(0).esp(), low(at!(tasks_fault_stack)), "ESP of the handler");
    check_eq!((note(0).tr(), note(1).tr()), (FAULT, MAIN), "TR");
    Ok(())
}

fn double_fault() -> Outcome {
    let mut setting = Setting::new(0, at!(tasks_a_error));
    setting.idt[8] = task_gate(FAULT);
    setting.idt[13] = 0;
    setting.trip(at!(tasks_gp), true);
    check_eq!((error(), link()), (0, MAIN), "the error code and the back link");
    check_eq!(note(0).esp(), low(at!(tasks_fault_stack)), "ESP of the handler");
    check_eq!((note(0).tr(), note(1).tr()), (FAULT, MAIN), "TR");
    Ok(())
}

fn software_interrupt() -> Outcome {
    let mut setting = Setting::new(at!(tasks_a_call), 0);
    setting.idt[0x30] = task_gate(OTHER);
    setting.trip(at!(tasks_int), true);
    check_eq!((note(0).tr(), note(0).eflags() & NT), (OTHER, NT), "TR and NT");
    check_eq!(note(1).registers(), known(0x6000_0000), "registers of the first task");
    check_eq!(main_saved(word::EIP), low(at!(tasks_int_behind)), "the saved EIP");
    check_eq!(main_saved(word::EFLAGS) & RF, 0, "RF in the saved flags");
    Ok(())
}

/// The descriptor of the TSS is refused: the old task gets the fault.
fn refused() -> Outcome {
    let good = Setting::new(at!(tasks_a_call), 0).gdt[5];
    for (what, bits, wanted) in [
        ("not present", good & !(1 << 47), 11),
        ("busy", good | 1 << 41, 13),
        ("too short", good - 1, 10),
        ("a local table", good & !(0xf << 40) | 2 << 40, 13),
    ] {
        let mut setting = Setting::new(at!(tasks_a_call), 0);
        setting.gdt[5] = bits;
        setting.trip(at!(tasks_refused), true);
        check_eq!((vector(), error()), (wanted, OTHER), "{}: vector and error code", what);
        check_eq!((link(), note(0).tr()), (MAIN, MAIN), "{}: TR", what);
    }
    Ok(())
}

/// A selector of the new task is refused: it gets the fault, which goes to a task in its turn.
fn faults_of_the_new_task() -> Outcome {
    let beyond = 0x1008;
    for (what, place, value, vector, wanted) in [
        ("LDTR beyond the table", word::LDT, beyond, 10, beyond),
        ("LDTR of data", word::LDT, 0x10, 10, 0x10),
        ("null CS", word::CS, 0, 10, 0),
        ("CS of data", word::CS, 0x10, 10, 0x10),
        ("CS not present", word::CS, ABSENT, 11, ABSENT),
        ("null SS", word::SS, 0, 10, 0),
        ("SS of code", word::SS, 0x18, 10, 0x18),
        ("FS beyond the table", word::FS, beyond, 10, beyond),
        ("FS not present", word::FS, ABSENT, 11, ABSENT),
    ] {
        let mut setting = Setting::new(at!(tasks_a_jump), at!(tasks_a_error));
        setting.idt[vector] = task_gate(FAULT);
        setting.other[place] = value;
        setting.trip(at!(tasks_spoiled), true);
        check_eq!((error(), link()), (wanted, OTHER), "{}: error code and back link", what);
        check_eq!(note(0).tr(), FAULT, "{}: TR", what);
        // QEMU has EIP back at the old task's instruction.
        if !guests::cpu::tcg_underneath() {
            check_eq!(other_saved(word::EIP), low(at!(tasks_a_jump)), "{}: the saved EIP", what);
        }
        check_eq!((is_busy(MAIN), is_busy(OTHER)), (true, true), "{}: busy tasks", what);
    }
    Ok(())
}

fn debug_trap() -> Outcome {
    if guests::cpu::tcg_underneath() {
        guests::skip!("QEMU's CPU does not look at the debug trap");
    }
    let mut setting = Setting::new(at!(tasks_a_jump), 0);
    setting.other[word::TRAP] = 1;
    setting.trip(at!(tasks_jump), true);
    check_eq!(vector(), 1, "the vector");
    check!(error() & 1 << 15 != 0, "DR6 {:#x} has no BT", error());
    check_eq!(eip(), low(at!(tasks_a_jump)), "EIP of the trap");
    check_eq!(note(0).tr(), OTHER, "TR");
    Ok(())
}
