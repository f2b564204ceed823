//! From the loader's 32-bit protected mode to Rust in long mode.
//!
//! The loader leaves EBX = address of the start information (PVH's
//! `hvm_start_info`, or Multiboot's information with EAX = 0x2bad_b002); both
//! are kept for [`crate::info`]. The page tables made here map the first 4 GiB
//! one to one with 2 MiB pages, the last GiB uncached (PCI, APICs). Only the
//! region that [`crate::user`] hands to ring 3 gets its user bit, later.

use core::arch::global_asm;

global_asm!(
    r#"
    .section .note.pvh, "a", @note
    .balign 4
    .long 4, 8, 18              # XEN_ELFNOTE_PHYS32_ENTRY
    .asciz "Xen"
    .quad start32

    .section .text.boot, "ax", @progbits
    .code32
    .globl start32
start32:
    cli
    cld
    movl $boot_stack_top, %esp
    movl %eax, boot_eax
    movl %ebx, boot_ebx
    movl $boot_pdpt + 7, boot_pml4
    movl $boot_pd + 7, %eax
    movl $boot_pdpt, %edi
    movl $4, %ecx
1:  movl %eax, (%edi)
    addl $0x1000, %eax
    addl $8, %edi
    loop 1b
    movl $boot_pd, %edi
    movl $0x83, %eax            # present, writable, 2 MiB
    movl $2048, %ecx
2:  movl %eax, (%edi)
    cmpl $512, %ecx             # the last GiB: write-through, uncached
    ja 3f
    orl $0x18, (%edi)
3:  addl $0x200000, %eax
    addl $8, %edi
    loop 2b
    movl %cr4, %eax
    orl $0x620, %eax            # PAE, OSFXSR, OSXMMEXCPT
    movl %eax, %cr4
    movl $boot_pml4, %eax
    movl %eax, %cr3
    movl $0xc0000080, %ecx
    rdmsr
    orl $0x100, %eax            # LME
    wrmsr
    movl %cr0, %eax
    andl $~0xc, %eax            # EM, TS
    orl $0x80010023, %eax       # PG, WP, NE, MP, PE
    movl %eax, %cr0
    lgdt boot_gdtr
    ljmp $0x08, $start64
    .code64
start64:
    movl $0x10, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %ss
    xorl %eax, %eax
    movl %eax, %fs
    movl %eax, %gs
    xorl %ebp, %ebp
    leaq boot_stack_top(%rip), %rsp
    call rust_start
    ud2

    .section .data.boot, "aw", @progbits
    .balign 16
    .globl gdt
gdt:
    .quad 0
    .quad 0x00af9b000000ffff    # 0x08 code, 64 bits
    .quad 0x00cf93000000ffff    # 0x10 data
    .quad 0x00cf9b000000ffff    # 0x18 code, 32 bits
    .quad 0x00cff3000000ffff    # 0x20 user data
    .quad 0x00affb000000ffff    # 0x28 user code, 64 bits
    .quad 0, 0                  # 0x30 task state segment
    .quad 0x00009b000000ffff    # 0x40 code, 16 bits
    .quad 0x000093000000ffff    # 0x48 data, 16 bits
    .quad 0x00cffb000000ffff    # 0x50 user code, 32 bits
gdt_end:
boot_gdtr:
    .word gdt_end - gdt - 1
    .quad gdt
    .globl boot_eax, boot_ebx
boot_eax: .long 0
boot_ebx: .long 0

    .section .bss.boot, "aw", @nobits
    .balign 4096
    .globl boot_pml4, boot_pdpt, boot_pd, boot_stack_top
boot_pml4: .skip 4096
boot_pdpt: .skip 4096
boot_pd:   .skip 16384
    .skip 65536
boot_stack_top:
"#,
    options(att_syntax)
);

unsafe extern "C" {
    static boot_eax: u32;
    static boot_ebx: u32;
    static boot_pml4: u64;
    static image_end: u8;
    fn guest_main() -> !;
}

/// Values that the loader left in EAX and EBX.
#[must_use]
pub fn registers() -> (u32, u32) {
    // SAFETY: written once, by the boot code, before Rust runs.
    let eax = unsafe { boot_eax };
    // SAFETY: likewise.
    let ebx = unsafe { boot_ebx };
    (eax, ebx)
}

/// Physical address of the top-level page table made at boot.
#[must_use]
pub fn page_table_root() -> u64 {
    (&raw const boot_pml4).addr() as u64
}

/// First address after the image and its zeroed data.
#[must_use]
pub fn image_end_address() -> u64 {
    (&raw const image_end).addr() as u64
}

#[unsafe(no_mangle)]
extern "C" fn rust_start() -> ! {
    crate::console::init();
    crate::trap::init();
    // SAFETY: every guest defines it with `entry!`.
    unsafe { guest_main() }
}
