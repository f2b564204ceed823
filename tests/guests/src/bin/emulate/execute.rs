//! Runs one instruction on RAM or on the scratch device.

use crate::encode::{Bases, CODE_AT};
use guests::harness::Shared;
use guests::paging::{self, bits};
use guests::trap::{self, RECOVER_RIP, RECOVER_RSP, Trap};
use guests::{cpu, info, io, user};

/// Linear address of the window that the instruction works on: four pages.
pub(crate) const WINDOW: u64 = 0x4000_0000;
/// RAM behind the window.
pub(crate) const RAM: u64 = user::DATA + 0x4_0000;
/// The scratch device: 16 pages of storage.
pub(crate) const SCRATCH: u64 = 0xfed4_0000;
/// RAM that instructions with two memory operands use beside the window.
pub(crate) const OTHER: u64 = user::DATA + 0x5_0000;

/// Storage that backs the window.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Backing {
    Ram,
    Device,
    /// First page RAM, the others device.
    Mixed,
}

/// Address of the storage of a page of the window.
pub(crate) fn page(backing: Backing, index: u64) -> u64 {
    let device = if info::flag("ram") { RAM + 0x8000 } else { SCRATCH };
    match backing {
        Backing::Ram => RAM + index * 4096,
        Backing::Mixed if index == 0 => RAM,
        _ => device + index * 4096,
    }
}

/// Maps the window.
pub(crate) fn map(backing: Backing) {
    for index in 0..4 {
        let flags = bits::PRESENT | bits::WRITE;
        paging::map(WINDOW + index * 4096, page(backing, index), flags);
    }
}

/// Whether the scratch device stores what is written.
pub(crate) fn scratch_present() -> bool {
    if info::flag("ram") {
        return true;
    }
    [0x1234_5678u32, 0xa5a5_5a5a].into_iter().all(|value| {
        io::mmio_write32(SCRATCH + 0x40, value);
        io::mmio_read32(SCRATCH + 0x40) == value
    })
}

/// Writes a word of the window, `number` words behind its `offset`.
pub(crate) fn poke32(backing: Backing, offset: u64, number: u64, word: u32) {
    let at = offset + number * 4;
    io::mmio_write32(page(backing, at >> 12) + (at & 0xfff), word);
}

/// Reads it.
pub(crate) fn peek32(backing: Backing, offset: u64, number: u64) -> u32 {
    let at = offset + number * 4;
    io::mmio_read32(page(backing, at >> 12) + (at & 0xfff))
}

/// Fills 64 bytes around the window's offset.
pub(crate) fn fill(backing: Backing, offset: u64, words: &[u32; 16]) {
    for (i, word) in (0u64..).zip(words) {
        poke32(backing, offset, i, *word);
    }
}

/// Reads them back.
pub(crate) fn contents(backing: Backing, offset: u64) -> [u32; 16] {
    core::array::from_fn(|i| peek32(backing, offset, i as u64))
}

/// Registers in encoding order (RSP's slot is not used) and flags.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub(crate) struct State {
    pub(crate) registers: [u64; 16],
    pub(crate) flags: u64,
}

static STATE: Shared<State> = Shared::new(State { registers: [0; 16], flags: 0 });
static TARGET: Shared<u64> = Shared::new(0);

/// Runs the instruction with a state; the state afterwards and the exception.
pub(crate) fn run(code: &[u8], bases: Bases, state: State) -> (State, Option<Trap>) {
    user::place(CODE_AT, code);
    user::place(CODE_AT + code.len() as u64, &[0xc3]);
    let _ = cpu::wrmsr(0xc000_0100, bases.fs);
    let _ = cpu::wrmsr(0xc000_0101, bases.gs);
    STATE.set(state);
    TARGET.set(CODE_AT);
    // SAFETY: every register is restored or declared; the code under test ends
    // in RET or in an exception that comes back to label 55.
    unsafe {
        core::arch::asm!(
            "push rbx",
            "push rbp",
            "lea rax, [rip + 55f]",
            "mov [rip + {recover_rip}], rax",
            "mov [rip + {recover_rsp}], rsp",
            "push qword ptr [rip + {state} + 128]",
            "popfq",
            "mov rax, [rip + {state}]",
            "mov rcx, [rip + {state} + 8]",
            "mov rdx, [rip + {state} + 16]",
            "mov rbx, [rip + {state} + 24]",
            "mov rbp, [rip + {state} + 40]",
            "mov rsi, [rip + {state} + 48]",
            "mov rdi, [rip + {state} + 56]",
            "mov r8, [rip + {state} + 64]",
            "mov r9, [rip + {state} + 72]",
            "mov r10, [rip + {state} + 80]",
            "mov r11, [rip + {state} + 88]",
            "mov r12, [rip + {state} + 96]",
            "mov r13, [rip + {state} + 104]",
            "mov r14, [rip + {state} + 112]",
            "mov r15, [rip + {state} + 120]",
            "call qword ptr [rip + {target}]",
            "55:",
            "mov qword ptr [rip + {recover_rip}], 0",
            "mov [rip + {state}], rax",
            "mov [rip + {state} + 8], rcx",
            "mov [rip + {state} + 16], rdx",
            "mov [rip + {state} + 24], rbx",
            "mov [rip + {state} + 40], rbp",
            "mov [rip + {state} + 48], rsi",
            "mov [rip + {state} + 56], rdi",
            "mov [rip + {state} + 64], r8",
            "mov [rip + {state} + 72], r9",
            "mov [rip + {state} + 80], r10",
            "mov [rip + {state} + 88], r11",
            "mov [rip + {state} + 96], r12",
            "mov [rip + {state} + 104], r13",
            "mov [rip + {state} + 112], r14",
            "mov [rip + {state} + 120], r15",
            "pushfq",
            "pop qword ptr [rip + {state} + 128]",
            "cld",
            "pop rbp",
            "pop rbx",
            state = sym STATE,
            target = sym TARGET,
            recover_rip = sym RECOVER_RIP,
            recover_rsp = sym RECOVER_RSP,
            out("rax") _, out("rcx") _, out("rdx") _, out("rsi") _, out("rdi") _,
            out("r8") _, out("r9") _, out("r10") _, out("r11") _,
            out("r12") _, out("r13") _, out("r14") _, out("r15") _,
        );
    }
    let caught = trap::take();
    let _ = cpu::wrmsr(0xc000_0100, 0);
    let _ = cpu::wrmsr(0xc000_0101, 0);
    (STATE.get(), caught)
}
