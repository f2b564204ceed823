//! Faults of instructions on device memory: they belong to the guest's own
//! page tables, and come with the right address and error code.

use crate::execute::{OTHER, WINDOW};
use guests::harness::{Outcome, Tests};
use guests::paging::{self, bits};
use guests::trap::vector;
use guests::{catch_asm, check, check_eq, cpu, io, user};

pub(crate) fn run(tests: &mut Tests) {
    tests.case("fault_not_present", not_present);
    tests.case("fault_read_only", read_only);
    tests.case("fault_read_only_wp_clear", read_only_wp_clear);
    tests.case("fault_ring3", ring3);
    tests.case("ring3_allowed", ring3_allowed);
    tests.case("fault_ring3_read_only", ring3_read_only);
    tests.case("fault_ring3_movs_to_supervisor", ring3_movs_to_supervisor);
    tests.case("fault_second_page", second_page);
    tests.case("fault_movs_other_side", movs_other_side);
    tests.case("accessed_and_dirty", accessed_and_dirty);
    tests.case("fault_reserved_bit", reserved_bit);
    tests.case("fault_keeps_registers", keeps_registers);
}

const DEVICE: u64 = 0xfee0_0000;
const PAGE: u64 = WINDOW + 0x10_0000;
const TPR: u64 = PAGE + 0x80;

fn map(flags: u64) {
    paging::map(PAGE, DEVICE, flags);
}

const PF: u8 = vector::PF;

fn not_present() -> Outcome {
    map(0);
    let caught = catch_asm!(["mov {v:e}, [{a}]"], v = out(reg) _, a = in(reg) TPR);
    check_eq!(caught.map(|t| (t.vector, t.error, t.cr2)), Some((PF, 0, TPR)), "read");
    let caught = catch_asm!(["mov dword ptr [{a}], 0"], a = in(reg) TPR);
    check_eq!(caught.map(|t| (t.vector, t.error, t.cr2)), Some((PF, 2, TPR)), "write");
    map(bits::PRESENT | bits::WRITE);
    let caught = catch_asm!(["mov dword ptr [{a}], 0"], a = in(reg) TPR);
    check!(caught.is_none(), "mapped again it raised {caught:x?}");
    Ok(())
}

fn read_only() -> Outcome {
    map(bits::PRESENT);
    io::mmio_write32(DEVICE + 0x80, 0x20);
    let caught = catch_asm!(["mov {v:e}, [{a}]"], v = out(reg) _, a = in(reg) TPR);
    check!(caught.is_none(), "a read raised {caught:x?}");
    let caught = catch_asm!(["mov dword ptr [{a}], 0x30"], a = in(reg) TPR);
    check_eq!(caught.map(|t| (t.vector, t.error, t.cr2)), Some((PF, 3, TPR)), "MOV");
    let caught = catch_asm!(["or dword ptr [{a}], 0x30"], a = in(reg) TPR);
    check_eq!(caught.map(|t| (t.vector, t.error, t.cr2)), Some((PF, 3, TPR)), "OR");
    let caught = catch_asm!(["xchg [{a}], {v:e}"], a = in(reg) TPR, v = inout(reg) 0 => _);
    check_eq!(caught.map(|t| (t.vector, t.error, t.cr2)), Some((PF, 3, TPR)), "XCHG");
    check_eq!(io::mmio_read32(DEVICE + 0x80), 0x20, "the register afterwards");
    io::mmio_write32(DEVICE + 0x80, 0);
    Ok(())
}

fn read_only_wp_clear() -> Outcome {
    map(bits::PRESENT);
    let cr0 = cpu::cr0();
    let _ = cpu::set_cr0(cr0 & !(1 << 16));
    let caught = catch_asm!(["mov dword ptr [{a}], 0x30"], a = in(reg) TPR);
    let _ = cpu::set_cr0(cr0);
    let value = io::mmio_read32(DEVICE + 0x80);
    io::mmio_write32(DEVICE + 0x80, 0);
    check!(caught.is_none(), "with CR0.WP clear it raised {caught:x?}");
    check_eq!(value, 0x30, "the register");
    Ok(())
}

fn ring3() -> Outcome {
    map(bits::PRESENT | bits::WRITE);
    let trap = user::run(&[0x8b, 0x00, 0xcd, 0x80], [TPR, 0, 0, 0]);
    check_eq!((trap.vector, trap.error, trap.cr2), (PF, 5, TPR), "read of supervisor memory");
    let trap = user::run(&[0x89, 0x00, 0xcd, 0x80], [TPR, 0, 0, 0]);
    check_eq!((trap.vector, trap.error, trap.cr2), (PF, 7, TPR), "write of supervisor memory");
    Ok(())
}

fn ring3_allowed() -> Outcome {
    map(bits::PRESENT | bits::WRITE | bits::USER);
    // mov [rax], ecx; mov ebx, [rax]; mov eax, ebx; int 0x80
    let code = [0x89, 0x08, 0x8b, 0x18, 0x89, 0xd8, 0xcd, 0x80];
    let trap = user::run(&code, [TPR, 0, 0x40, 0]);
    io::mmio_write32(DEVICE + 0x80, 0);
    check_eq!((trap.vector, trap.rax), (0x80, 0x40), "write and read in ring 3");
    Ok(())
}

fn ring3_read_only() -> Outcome {
    map(bits::PRESENT | bits::USER);
    let trap = user::run(&[0x89, 0x00, 0xcd, 0x80], [TPR, 0, 0, 0]);
    check_eq!((trap.vector, trap.error, trap.cr2), (PF, 7, TPR), "write");
    let cr0 = cpu::cr0();
    let _ = cpu::set_cr0(cr0 & !(1 << 16));
    let trap = user::run(&[0x89, 0x00, 0xcd, 0x80], [TPR, 0, 0, 0]);
    let _ = cpu::set_cr0(cr0);
    check_eq!((trap.vector, trap.error), (PF, 7), "write, CR0.WP clear");
    Ok(())
}

/// The I/O APIC's registers.
const IOAPIC: u64 = 0xfec0_0000;

/// The CPU leaves the guest at the device, before it looks at the other side:
/// whether ring 3 may write there is the emulator's to find out.
fn ring3_movs_to_supervisor() -> Outcome {
    // Not the local APIC: some CPUs read that by themselves.
    paging::map(PAGE, IOAPIC, bits::PRESENT | bits::WRITE | bits::USER);
    paging::map(PAGE + 0x1000, OTHER, bits::PRESENT | bits::WRITE);
    io::mmio_write32(OTHER, 0x1111_2222);
    // mov rsi, rax; mov rdi, rcx; movsd; int 0x80
    let code = [0x48, 0x89, 0xc6, 0x48, 0x89, 0xcf, 0xa5, 0xcd, 0x80];
    let trap = user::run(&code, [PAGE, 0, PAGE + 0x1000, 0]);
    let left = io::mmio_read32(OTHER);
    check_eq!((trap.vector, trap.error, trap.cr2), (PF, 7, PAGE + 0x1000), "write");
    check_eq!(left, 0x1111_2222, "the memory");
    Ok(())
}

fn second_page() -> Outcome {
    // RAM, then nothing: the write must not happen in part.
    paging::map(PAGE, OTHER, bits::PRESENT | bits::WRITE);
    paging::map(PAGE + 0x1000, 0, 0);
    io::mmio_write32(OTHER + 0xffc, 0x1111_2222);
    let edge = PAGE + 0xffe;
    let caught = catch_asm!(["mov dword ptr [{a}], -1"], a = in(reg) edge);
    check_eq!(
        caught.map(|t| (t.vector, t.error, t.cr2)),
        Some((PF, 2, PAGE + 0x1000)),
        "write across"
    );
    check_eq!(io::mmio_read32(OTHER + 0xffc), 0x1111_2222, "the first page's bytes");
    // A device, then nothing.
    map(bits::PRESENT | bits::WRITE);
    let caught = catch_asm!(["mov {v:e}, [{a}]"], v = out(reg) _, a = in(reg) edge);
    check_eq!(
        caught.map(|t| (t.vector, t.error, t.cr2)),
        Some((PF, 0, PAGE + 0x1000)),
        "read across"
    );
    Ok(())
}

fn movs_other_side() -> Outcome {
    map(bits::PRESENT | bits::WRITE);
    paging::map(PAGE + 0x1000, 0, 0);
    let nowhere = PAGE + 0x1010;
    let (rsi, rdi, rcx): (u64, u64, u64);
    let caught = catch_asm!(["rep movsd"], inout("rsi") TPR => rsi, inout("rdi") nowhere => rdi, inout("rcx") 1u64 => rcx);
    check_eq!(
        caught.map(|t| (t.vector, t.error, t.cr2)),
        Some((PF, 2, nowhere)),
        "from the device"
    );
    check_eq!((rsi, rdi, rcx), (TPR, nowhere, 1), "registers");
    let caught = catch_asm!(["movsd"], inout("rsi") nowhere => _, inout("rdi") TPR => _);
    check_eq!(caught.map(|t| (t.vector, t.error, t.cr2)), Some((PF, 0, nowhere)), "to the device");
    Ok(())
}

fn accessed_and_dirty() -> Outcome {
    map(bits::PRESENT | bits::WRITE);
    let clean = paging::leaf(PAGE) & (bits::ACCESSED | bits::DIRTY);
    let _ = io::mmio_read32(TPR);
    let read = paging::leaf(PAGE) & (bits::ACCESSED | bits::DIRTY);
    io::mmio_write32(TPR, 0);
    let written = paging::leaf(PAGE) & (bits::ACCESSED | bits::DIRTY);
    check_eq!(clean, 0, "fresh entry");
    check_eq!(read, bits::ACCESSED, "after a read");
    check_eq!(written, bits::ACCESSED | bits::DIRTY, "after a write");
    Ok(())
}

fn reserved_bit() -> Outcome {
    map(bits::PRESENT | bits::WRITE | 1 << 51);
    let caught = catch_asm!(["mov {v:e}, [{a}]"], v = out(reg) _, a = in(reg) TPR);
    map(bits::PRESENT | bits::WRITE);
    // QEMU's CPU leaves the present bit out.
    let error = if cpu::tcg_underneath() { 8 } else { 9 };
    check_eq!(
        caught.map(|t| (t.vector, t.error, t.cr2)),
        Some((PF, error, TPR)),
        "address bit 51 set"
    );
    Ok(())
}

fn keeps_registers() -> Outcome {
    map(0);
    let (rax, rcx): (u64, u64);
    let at: u64;
    let caught = catch_asm!(["lea {n}, [rip + 44f]", "44: add eax, [{a}]"], n = out(reg) at, a = in(reg) TPR,
        inout("rax") 0x1122_3344_5566_7788u64 => rax, inout("rcx") 7u64 => rcx);
    map(bits::PRESENT | bits::WRITE);
    check_eq!(caught.map(|t| t.rip), Some(at), "where");
    check_eq!((rax, rcx), (0x1122_3344_5566_7788, 7), "registers");
    Ok(())
}
