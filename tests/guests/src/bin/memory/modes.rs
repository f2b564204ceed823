//! Out of long mode and back: PAE paging, 32-bit paging, no paging, real mode.
//!
//! [`trip`] leaves long mode through compatibility mode. The real-mode part is
//! copied to 0x8000; what it finds out goes to 0x7000. The memory at both is restored.

use core::arch::global_asm;
use guests::harness::{Outcome, Shared, Tests};
use guests::info::peek;
use guests::pc::{pic, pit};
use guests::{check, check_eq, cpu, trap};

global_asm!(
    r#"
    .section .text.trip, "ax", @progbits
    .globl mode_trip
mode_trip:                      # RDI: which mode
    pushq %rbx
    pushq %rbp
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    pushfq
    cli
    movq %cr3, %rax
    movl %eax, trip_cr3
    movq %cr4, %rax
    movl %eax, trip_cr4
    sidt trip_idt
    pushq $0x18
    leaq 1f(%rip), %rax
    pushq %rax
    lretq
    .code32
1:  movl %esp, trip_esp
    movl %cr0, %eax
    andl $0x7fffffff, %eax
    movl %eax, %cr0             # no paging: long mode is left
    movl $0xc0000080, %ecx
    rdmsr
    movl %eax, trip_efer
    andl $~0x100, %eax
    wrmsr
    movl $0x1000, trip_result
    cmpl $1, %edi
    je pae
    cmpl $2, %edi
    je legacy
    cmpl $3, %edi
    je real
    movl $0x2000, trip_result   # protected mode without paging
    cpuid
    jmp back

pae:
    movl $trip_pdpt, %eax
    movl %eax, %cr3
    movl %cr0, %eax
    orl $0x80000000, %eax
    movl %eax, %cr0
    movl 0x40001000, %eax       # the second GiB is mapped to the first
    cmpl 0x1000, %eax
    jne 2f
    cpuid
    movl 0xfee00030, %eax       # a device, through PAE paging
    movl %eax, trip_device
    movl $0x2001, trip_result
2:  movl %cr0, %eax
    andl $0x7fffffff, %eax
    movl %eax, %cr0
    jmp back

legacy:
    movl %cr4, %eax
    andl $~0x20, %eax           # PAE off
    orl $0x10, %eax             # PSE on
    movl %eax, %cr4
    movl $trip_directory, %eax
    movl %eax, %cr3
    movl %cr0, %eax
    orl $0x80000000, %eax
    movl %eax, %cr0
    movl 0x40001000, %eax
    cmpl 0x1000, %eax
    jne 3f
    cpuid
    movl 0xfee00030, %eax
    movl %eax, trip_device
    movl $0x2002, trip_result
3:  movl %cr0, %eax
    andl $0x7fffffff, %eax
    movl %eax, %cr0
    jmp back

real:
    ljmp $0x40, $0x8000
    .globl trip_from_real
trip_from_real:                 # in 32-bit protected mode again
    movl $0x10, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %ss
    movl trip_esp, %esp
    movl $0x2003, trip_result

back:
    movl trip_cr4, %eax
    movl %eax, %cr4
    movl trip_cr3, %eax
    movl %eax, %cr3
    movl $0xc0000080, %ecx
    xorl %edx, %edx
    movl trip_efer, %eax
    orl $0x100, %eax
    andl $~0x400, %eax
    wrmsr
    movl %cr0, %eax
    orl $0x80000000, %eax
    movl %eax, %cr0
    ljmp $0x08, $4f
    .code64
4:  lidt trip_idt
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
    movl trip_result, %eax
    ret

    .code16
    .globl real_start, real_end
real_start:                     # copied to 0x8000; 16-bit protected mode
    movw $0x48, %ax
    movw %ax, %ds
    movw %ax, %es
    movw %ax, %ss
    movw %ax, %fs               # real mode keeps the limits
    movw %ax, %gs
    movl %cr0, %eax
    andl $~1, %eax
    movl %eax, %cr0
    ljmp $0, $(0x8000 + (5f - real_start))
5:  xorw %ax, %ax
    movw %ax, %ds
    movw %ax, %es
    movw %ax, %ss
    movw $0x6ff0, %sp
    lidtw (0x8000 + (real_idt - real_start))
    movw $0x0001, 0x7000
    movl $0x700, %eax           # segment arithmetic
    movw %ax, %es
    movw $0xabcd, %es:0x10
    movw $0x3ff, %dx            # port I/O
    movb $0x5c, %al
    outb %al, %dx
    xorw %ax, %ax
    inb %dx, %al
    movw %ax, 0x7004
    xorl %eax, %eax             # CPUID
    cpuid
    movl %eax, 0x7020
    movl %ebx, 0x7024
    int $0x60
    movl $0x1b, %ecx            # an MSR
    rdmsr
    movl %eax, 0x7028
    movw $0xffff, %ax           # above 1 MiB: 0xffff:0x0510 is 0x100500
    movw %ax, %fs
    movl %fs:0x0510, %eax
    movl %eax, 0x702c
    movw $3, %cx                # HLT, three ticks
6:  sti
    hlt
    cli
    loop 6b
    movb $0x30, %al             # stop the timer
    outb %al, $0x43
    movl %cr0, %eax
    orl $1, %eax
    movl %eax, %cr0
    ljmpl $0x18, $trip_from_real
real_int:
    incw 0x7008
    pushf
    popw 0x700c
    iret
real_tick:
    pushw %ax
    incw 0x700a
    movb $0x20, %al
    outb %al, $0x20
    popw %ax
    iret
real_idt:
    .word 0x3ff
    .long 0
real_end:
    .globl real_int_offset, real_tick_offset
    .set real_int_offset, 0x8000 + (real_int - real_start)
    .set real_tick_offset, 0x8000 + (real_tick - real_start)
    .code64

    .section .data.trip, "aw", @progbits
    .globl trip_pdpt, trip_directory, trip_device
    .balign 4096
trip_directory: .skip 4096
trip_pdpt:
    .quad boot_pd + 1, boot_pd + 1, boot_pd + 0x2001, boot_pd + 0x3001
trip_result: .long 0
trip_device: .long 0
trip_esp:  .long 0
trip_cr3:  .long 0
trip_cr4:  .long 0
trip_efer: .long 0
trip_idt:  .skip 16
"#,
    options(att_syntax)
);

unsafe extern "C" {
    static real_start: u8;
    static real_end: u8;
    static real_int_offset: u8;
    static real_tick_offset: u8;
    static mut trip_directory: [u32; 1024];
    static trip_device: u32;
    fn mode_trip(mode: u64) -> u32;
}

pub(crate) fn run(tests: &mut Tests) {
    tests.case("no_paging", || plain(0, 0x2000));
    tests.case("pae_paging", pae_paging);
    tests.case("legacy_paging", legacy_paging);
    tests.case("real_mode", real_mode);
    tests.case("modes_again", || {
        for _ in 0..20 {
            plain(0, 0x2000)?;
            pae_paging()?;
            legacy_paging()?;
        }
        real_mode()
    });
}

fn trip(mode: u64) -> u32 {
    // SAFETY: the assembly above comes back in the state that it left.
    unsafe { mode_trip(mode) }
}

fn plain(mode: u64, want: u32) -> Outcome {
    check_eq!(trip(mode), want, "what came back");
    check_eq!(cpu::rdmsr(0xc000_0080).map(|v| v & 0x500).ok(), Some(0x500), "EFER afterwards");
    let caught = guests::catch_asm!(["ud2"]);
    check_eq!(caught.map(|t| t.vector), Some(trap::vector::UD), "an exception afterwards");
    Ok(())
}

fn device_seen() -> u32 {
    // SAFETY: written by the assembly only while it runs.
    unsafe { (&raw const trip_device).read_volatile() }
}

fn pae_paging() -> Outcome {
    plain(1, 0x2001)?;
    check_eq!(device_seen(), guests::io::mmio_read32(0xfee0_0030), "a device, through PAE paging");
    Ok(())
}

fn legacy_paging() -> Outcome {
    let directory = (&raw mut trip_directory).cast::<u32>();
    for i in 0..1024u32 {
        // The second GiB shows the first again; the last one is not cached.
        let frame = if (256..512).contains(&i) { i - 256 } else { i };
        let flags = if i >= 768 { 0x9b } else { 0x83 };
        // SAFETY: one of the directory's 1,024 entries.
        let entry = unsafe { directory.add(usize::try_from(i).unwrap_or(0)) };
        // SAFETY: the directory is not in use.
        unsafe { entry.write_volatile(frame << 22 | flags) };
    }
    plain(2, 0x2002)?;
    check_eq!(
        device_seen(),
        guests::io::mmio_read32(0xfee0_0030),
        "a device, through 32-bit paging"
    );
    Ok(())
}

static SAVED: Shared<[[u64; 512]; 3]> = Shared::new([[0; 512]; 3]);

fn poke<T: Copy>(address: u64, value: T) {
    let at = core::ptr::with_exposed_provenance_mut::<T>(usize::try_from(address).unwrap_or(8));
    // SAFETY: low memory that was saved before and is restored after.
    unsafe { at.write_unaligned(value) };
}

fn real_mode() -> Outcome {
    let pages = [0x40u64, 0x7000, 0x8000];
    let mut saved = SAVED.get();
    for (page, copy) in pages.into_iter().zip(&mut saved) {
        for (i, word) in (0u64..).zip(copy.iter_mut()) {
            *word = peek(page + i * 8);
        }
    }
    SAVED.set(saved);
    let (start, end) = ((&raw const real_start).addr() as u64, (&raw const real_end).addr() as u64);
    for i in 0..end - start {
        poke(0x8000 + i, peek::<u8>(start + i));
    }
    for i in 0..16 {
        poke(0x7000 + i * 8, 0u64);
    }
    let int = cpu::low16((&raw const real_int_offset).addr() as u64);
    let tick = cpu::low16((&raw const real_tick_offset).addr() as u64);
    poke(0x60 * 4, u32::from(int));
    poke(u64::from(pic::VECTOR) * 4, u32::from(tick));
    let above: u32 = peek(0x10_0500);
    pic::init();
    pit::program(0, 2, 5000);
    pic::unmask_only(1);
    let result = trip(3);
    pic::unmask_only(0);
    pit::stop();
    trap::on(pic::VECTOR, Some(|_| pic::eoi(0)));
    cpu::interrupt_window();
    trap::on(pic::VECTOR, None);
    let seen: [u16; 16] = core::array::from_fn(|i| peek(0x7000 + i as u64 * 2));
    let (max, vendor, base, high): (u32, u32, u32, u32) =
        (peek(0x7020), peek(0x7024), peek(0x7028), peek(0x702c));
    let saved = SAVED.get();
    for (page, copy) in pages.into_iter().zip(&saved) {
        for (i, word) in (0u64..).zip(copy) {
            poke(page + i * 8, *word);
        }
    }
    check_eq!(result, 0x2003, "what came back");
    check_eq!((seen[0], seen[8]), (1, 0xabcd), "stores");
    check_eq!(seen[2], 0x5c, "port");
    check_eq!((max, vendor), (cpu::cpuid(0, 0).eax, cpu::cpuid(0, 0).ebx), "CPUID");
    check_eq!(seen[4], 1, "software interrupts");
    check_eq!(seen[6] & 0x200, 0, "IF in its handler");
    check!(seen[5] >= 3, "{} timer interrupts", seen[5]);
    check_eq!(u64::from(base), cpu::rdmsr(0x1b).unwrap_or(0), "APIC_BASE");
    check_eq!(high, above, "memory above 1 MiB");
    Ok(())
}
