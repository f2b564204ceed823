//! A second CPU: from its start-up interrupt to Rust in long mode.
//!
//! It shares the tables made at boot and by [`crate::trap`], but not its own
//! exceptions: [`catch_asm!`](crate::catch_asm) belongs to the first CPU.

use crate::apic::{Lapic, reg};
use crate::harness::Shared;
use crate::{info, time, trap};
use core::arch::global_asm;
use core::ptr;

/// Address that the start-up code is copied to.
const TRAMPOLINE: u64 = 0x8000;

global_asm!(
    r#"
    .section .text.smp, "ax", @progbits
    .balign 16
    .code16
    .globl ap_start, ap_end
ap_start:
    cli
    movw %cs, %ax
    movw %ax, %ds
    lgdtl ap_gdtr - ap_start
    movl $0x11, %eax            # PE, ET
    movl %eax, %cr0
    ljmpl $0x18, $ap32
ap_gdtr:
    .word 87
    .long gdt
ap_end:
    .code32
ap32:
    movl $0x10, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %ss
    movl $0x620, %eax           # PAE, OSFXSR, OSXMMEXCPT
    movl %eax, %cr4
    movl $boot_pml4, %eax
    movl %eax, %cr3
    movl $0xc0000080, %ecx
    rdmsr
    orl $0x100, %eax            # LME
    wrmsr
    movl $0x80010033, %eax      # PG, WP, NE, ET, MP, PE
    movl %eax, %cr0
    ljmp $0x08, $ap64
    .code64
ap64:
    movl $0x10, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %ss
    xorl %eax, %eax
    movl %eax, %fs
    movl %eax, %gs
    xorl %ebp, %ebp
    leaq ap_stack_top(%rip), %rsp
    call ap_rust_start
    ud2

    .section .bss.smp, "aw", @nobits
    .balign 16
    .skip 16384
ap_stack_top:
"#,
    options(att_syntax)
);

unsafe extern "C" {
    static ap_start: u8;
    static ap_end: u8;
}

static ENTRY: Shared<Option<fn() -> !>> = Shared::new(None);

#[unsafe(no_mangle)]
extern "C" fn ap_rust_start() -> ! {
    trap::load_idt(&trap::idt_register());
    match ENTRY.get() {
        Some(entry) => entry(),
        None => crate::harness::halt(),
    }
}

/// Starts the CPU with the local APIC's identity `id` (in xAPIC mode), which goes
/// to `entry` with interrupts off. Whether it comes up shows in what it does.
///
/// # Errors
/// Something else lies where the start-up code must go.
pub fn start(id: u8, entry: fn() -> !) -> Result<(), &'static str> {
    ENTRY.set(Some(entry));
    let code = &raw const ap_start;
    let length = (&raw const ap_end).addr() - code.addr();
    let target = ptr::with_exposed_provenance_mut::<u8>(usize::try_from(TRAMPOLINE).unwrap_or(0));
    // SAFETY: both lie in mapped memory, and apart.
    let used = unsafe { core::slice::from_raw_parts(target, length) };
    // SAFETY: the code is part of the image: it is mapped, and apart from `target`.
    let code = unsafe { core::slice::from_raw_parts(code, length) };
    if used != code {
        if info::peek::<[u8; 64]>(TRAMPOLINE) != [0; 64] {
            return Err("the page of the start-up code is in use");
        }
        // SAFETY: it is RAM that nobody uses.
        unsafe { ptr::copy_nonoverlapping(code.as_ptr(), target, length) };
    }
    let apic = Lapic::X1;
    let send = |command: u32| {
        apic.write(reg::ICR_HIGH, u32::from(id) << 24);
        apic.command(command);
    };
    let [page, ..] = (TRAMPOLINE >> 12).to_le_bytes();
    send(0x4500);
    time::delay(10_000);
    send(0x4600 | u32::from(page));
    Ok(())
}
