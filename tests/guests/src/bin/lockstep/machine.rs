//! The machine around a program: descriptor tables, gates, and the state that
//! a program may change, read and put back.

use crate::left;
use crate::run::Seen;
use guests::apic::Lapic;
use guests::harness::Shared;
use guests::io::{mmio_write32, outb, outl};
use guests::trap::{self, selector};
use guests::{cpu, pc};
use micro::layout::{END_VECTOR, NOTE_VECTOR, PAGE, WINDOW};
use micro::{Mode, Program};

/// 16-bit code in the window's pages for code.
const CODE16: u16 = 0x70;

const ENTRIES: usize = 16;
static GDT: Shared<[u64; ENTRIES]> = Shared::new([0; ENTRIES]);

#[derive(Clone, Copy)]
#[repr(C, align(16))]
struct Stack([u8; 16384]);
static STACKS: [Shared<Stack>; 2] = [const { Shared::new(Stack([0; 16384])) }; 2];

/// Interrupt stacks: of everything, of #DB (which may come on top).
const IST: u8 = 3;
const IST_DEBUG: u8 = 4;

/// General detect: enabled in DR7, and that it was seen in DR6.
const GENERAL_DETECT: u64 = 1 << 13;
const CR0: u64 = 0x8000_0031;
const CR4: u64 = 0x4_0220;
const EFER: u64 = 0xd00;
const MSR_EFER: u32 = 0xc000_0080;
const STAR: u64 = 0x1b_0008 << 32;
const MSR_STAR: u32 = 0xc000_0081;
const MSR_LSTAR: u32 = 0xc000_0082;

/// MSRs that programs may change, and their values at the start of each.
const MSRS: [(u32, u64); 12] = [
    (0xc000_0083, 0),            // CSTAR
    (0xc000_0084, 0),            // SFMASK
    (0xc000_0100, 0),            // FS_BASE
    (0xc000_0101, 0),            // GS_BASE
    (0xc000_0102, 0),            // KERNEL_GS_BASE
    (0xc000_0103, 0),            // TSC_AUX
    (0x174, 0),                  // SYSENTER_CS
    (0x175, 0),                  // SYSENTER_ESP
    (0x176, 0),                  // SYSENTER_EIP
    (0x277, 0x7_0406_0007_0406), // PAT
    (0x2ff, 0xc06),              // MTRR_DEF_TYPE
    (0x17a, 0),                  // MCG_STATUS
];

pub(crate) fn init() {
    pc::pic::init();
    Lapic::now().enable();
    load_gdt();
    restore_devices();
    for (number, stack) in (IST..).zip(&STACKS) {
        trap::set_ist(number, stack.address().addr() as u64 + 16384);
    }
    for vector in 0..=255u8 {
        let ist = if vector == trap::vector::DB { IST_DEBUG } else { IST };
        let open = matches!(vector, 3 | 4 | END_VECTOR | NOTE_VECTOR);
        trap::set_gate(vector, trap::gate(trap::stub(vector), ist, if open { 3 } else { 0 }));
        trap::on(vector, Some(crate::run::on_trap));
    }
    // SYSCALL leads to a stub that comes back as a software interrupt.
    let _ = cpu::wrmsr(MSR_STAR, STAR);
    let _ = cpu::wrmsr(MSR_LSTAR, crate::run::syscall_stub());
}

/// A descriptor table with what the boot code's has, and a few more.
fn load_gdt() {
    let mut register = trap::TableRegister { limit: 0, base: 0 };
    // SAFETY: stores ten bytes.
    unsafe { core::arch::asm!("sgdt [{}]", in(reg) &raw mut register, options(nostack)) };
    let base = register.base;
    let mut table = [0; ENTRIES];
    for (slot, at) in table.iter_mut().zip((base..).step_by(8)).take(11) {
        *slot = guests::info::peek(at);
    }
    // 0x60 stays empty.
    table[13] = 0x00cf_1300_0000_ffff; // 0x68: data, not present
    let code = WINDOW + PAGE;
    table[14] = 0x0000_9b00_0000_1fff | (code & 0xff_ffff) << 16 | (code >> 24) << 56;
    GDT.set(table);
    let register = trap::TableRegister {
        limit: cpu::low16(ENTRIES as u64 * 8 - 1),
        base: GDT.address().addr() as u64,
    };
    // SAFETY: the entries in use are the same as before.
    unsafe { core::arch::asm!("lgdt [{}]", in(reg) &raw const register, options(nostack)) };
}

/// Code and data selectors of a mode.
pub(crate) fn selectors(mode: Mode) -> (u16, u16) {
    match mode {
        Mode::Long0 => (selector::CODE64, selector::DATA),
        Mode::Long3 => (selector::USER_CODE, selector::USER_DATA),
        Mode::Compat0 => (selector::CODE32, selector::DATA),
        Mode::Compat3 => (selector::USER_CODE32, selector::USER_DATA),
        Mode::Short0 => (CODE16, selector::DATA),
    }
}

/// Sets the state that a program starts with.
pub(crate) fn prepare(program: &Program) {
    let _ = cpu::wrmsr(MSR_EFER, EFER | u64::from(program.syscall));
    let _ = cpu::set_cr4(CR4 | program.cr4);
    let [a, b, c, d] = program.breakpoints;
    let _ = cpu::set_dr7(0x400);
    let _ = cpu::set_dr0(a);
    let _ = cpu::set_dr1(b);
    let _ = cpu::set_dr2(c);
    let _ = cpu::set_dr3(d);
    let _ = cpu::set_dr6(0xffff_0ff0);
    let _ = cpu::set_cr2(0);
    let _ = cpu::set_dr7(program.dr7);
    let _ = cpu::set_cr0(CR0 | program.cr0);
}

/// Digests of that state as the program has left it; all of it is put back.
pub(crate) fn collect() -> Seen {
    let mut digest = Seen::default();
    // One emulated CPU has no general detect.
    digest.strict = left(digest, "gd", general_detect()).strict;
    let dr7 = cpu::dr7();
    digest.strict = left(digest, "dr7", dr7 & GENERAL_DETECT).strict;
    digest = left(digest, "dr7", dr7 & !GENERAL_DETECT);
    let dr6 = cpu::dr6();
    digest.strict = left(digest, "dr6", dr6 & GENERAL_DETECT).strict;
    digest = left(digest, "dr6", dr6 & !GENERAL_DETECT);
    let _ = cpu::set_dr7(0x400);
    for (what, value) in [
        ("cr0", cpu::cr0()),
        ("cr4", cpu::cr4()),
        ("cr8", cpu::cr8()),
        ("cr2", cpu::cr2()),
        ("dr0", cpu::dr0()),
        ("dr1", cpu::dr1()),
        ("dr2", cpu::dr2()),
        ("dr3", cpu::dr3()),
    ] {
        digest = left(digest, what, value);
    }
    let _ = cpu::set_cr0(CR0 | 2);
    let _ = cpu::set_cr4(CR4);
    let _ = cpu::set_cr8(0);
    digest = left(digest, "xcr0", cpu::xgetbv(0).unwrap_or(0));
    let _ = cpu::xsetbv(0, 1);
    digest = left(digest, "efer", cpu::rdmsr(MSR_EFER).unwrap_or(0));
    let _ = cpu::wrmsr(MSR_EFER, EFER);
    let lstar = (MSR_LSTAR, crate::run::syscall_stub());
    for (msr, value) in MSRS.into_iter().chain([lstar]) {
        let now = cpu::rdmsr(msr).unwrap_or(1);
        digest = left(digest, "msr", now);
        if now != value {
            let _ = cpu::wrmsr(msr, value);
        }
    }
    digest
}

/// Whether the program has left DR7.GD set: then the first access to a debug
/// register faults, which clears it.
fn general_detect() -> u64 {
    let caught = guests::catch_asm!(["mov {v}, dr6"], v = out(reg) _);
    u64::from(caught.is_some())
}

/// Puts devices back.
pub(crate) fn restore_devices() {
    let lapic = 0xfee0_0000;
    for (offset, value) in [
        (0x80, 0),
        (0xd0, 0),
        (0x280, 0),
        // A command that goes to nobody, so that the register is the same for all.
        (0x310, 0xfe00_0000),
        (0x300, 0xe0),
        (0x310, 0),
        (0x320, 0x1_0000),
        (0x370, 0x1_0000),
    ] {
        mmio_write32(lapic + offset, value);
    }
    mmio_write32(0xfec0_0000, 0);
    outl(0xcf8, 0);
    outb(0x3ff, 0);
}
