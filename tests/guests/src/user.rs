//! Running code in ring 3.
//!
//! One 2 MiB region, [`BASE`], is open to ring 3: code is copied to its start,
//! the stack ends at [`STACK_TOP`], what lies between is the test's.

use crate::harness::Shared;
use crate::paging::{self, bits};
use crate::trap::{self, Trap, selector};
use core::arch::asm;
use core::ptr;

/// First byte of the region.
pub const BASE: u64 = 0x100_0000;
/// Data that a test shares with its ring-3 code.
pub const DATA: u64 = BASE + 0x10_0000;
/// Top of the ring-3 stack.
pub const STACK_TOP: u64 = BASE + 0x1f_f000;

static READY: Shared<bool> = Shared::new(false);

/// Opens the region to ring 3.
pub fn init() {
    if !READY.get() {
        READY.set(true);
        paging::map_2m(BASE, BASE, bits::PRESENT | bits::WRITE | bits::USER);
    }
}

/// Copies `code` to `address`, inside the region.
pub fn place(address: u64, code: &[u8]) {
    init();
    let target = ptr::with_exposed_provenance_mut(usize::try_from(address).unwrap_or(0));
    // SAFETY: the region is RAM that nothing else uses.
    unsafe { ptr::copy_nonoverlapping(code.as_ptr(), target, code.len()) };
}

/// Runs `code` in 64-bit ring 3 with RAX, RBX, RCX and RDX as given, interrupts
/// off, until an exception or `int 0x80` ends it: that one, with the registers.
#[must_use]
pub fn run(code: &[u8], registers: [u64; 4]) -> Trap {
    place(BASE, code);
    run_at(BASE, selector::USER_CODE, STACK_TOP, 2, registers)
}

/// As [`run`], at `rip` with the code selector, stack and flags given.
#[must_use]
pub fn run_at(rip: u64, code_selector: u16, rsp: u64, rflags: u64, registers: [u64; 4]) -> Trap {
    init();
    // SAFETY: the frame leads to ring 3; the handler comes back to the label
    // with this stack pointer, and RBX and RBP are restored from it.
    unsafe {
        asm!(
            "push rbx",
            "push rbp",
            "lea r12, [rip + 66f]",
            "mov [rip + {rip}], r12",
            "mov [rip + {rsp}], rsp",
            "push {user_data}",
            "push r8",
            "push r9",
            "push r10",
            "push r11",
            "mov rbx, rsi",
            "iretq",
            "66:",
            "pop rbp",
            "pop rbx",
            user_data = const selector::USER_DATA,
            rip = sym trap::RECOVER_RIP,
            rsp = sym trap::RECOVER_RSP,
            inout("rax") registers[0] => _,
            inout("rsi") registers[1] => _,
            inout("rcx") registers[2] => _,
            inout("rdx") registers[3] => _,
            inout("r8") rsp => _,
            inout("r9") rflags => _,
            inout("r10") u64::from(code_selector) => _,
            inout("r11") rip => _,
            out("rdi") _, out("r12") _, out("r13") _, out("r14") _, out("r15") _,
        );
    }
    trap::take().unwrap_or_default()
}
