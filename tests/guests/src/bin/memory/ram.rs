//! RAM and holes, A20, memory types.

use core::arch::asm;
use guests::cpu::{self, rdmsr, wrmsr};
use guests::harness::{Outcome, Tests};
use guests::io::{inb, mmio_read32, mmio_write32, outb};
use guests::paging::{self as tables, bits};
use guests::trap::vector;
use guests::{boot, catch_asm, check, check_eq, info, skip};

pub(crate) fn run(tests: &mut Tests) {
    tests.case("map_is_sane", map_is_sane);
    tests.case("every_page_distinct", every_page_distinct);
    tests.case("holes_read_ones", holes_read_ones);
    tests.case("low_hole_reads_ones", low_hole_reads);
    tests.case("low_hole_loses_writes", low_hole_writes);
    tests.case("low_hole_executes_ones", low_hole_executes);
    tests.case("bios_area_is_memory", bios_area);
    tests.case("rom_keeps", rom_keeps);
    tests.case("a20", a20);
    tests.case("mtrr", mtrr);
    // Before the next one writes to it.
    tests.case("without_pat", without_pat);
    tests.case("pat", pat);
}

fn map_is_sane() -> Outcome {
    let mut last = 0;
    let mut sane = true;
    info::memory_map(|range| {
        sane &= range.start >= last && range.size > 0;
        last = range.start + range.size;
    });
    check!(sane, "ranges overlap or are out of order");
    let ram = info::ram_bytes();
    check!(ram >= 15 << 20, "{ram:#x} bytes of RAM");
    if let Some(expected) = info::number("ram-mib") {
        check!(
            ram <= expected << 20 && ram + (2 << 20) >= expected << 20,
            "{ram:#x} bytes of {expected} MiB"
        );
    }
    Ok(())
}

/// Page-sized step through all RAM above 16 MiB, through a window above the
/// identity map so that RAM beyond 4 GiB is reached too.
fn each_page(mut visit: impl FnMut(u64, u64)) {
    const WINDOW: u64 = 0x80_0000_0000;
    info::memory_map(|range| {
        if range.kind != 1 {
            return;
        }
        let start = range.start.max(0x100_0000).next_multiple_of(4096);
        let mut page = start;
        let mut mapped = u64::MAX;
        while page + 4096 <= range.start + range.size {
            let large = page & !0x1f_ffff;
            if large != mapped {
                tables::map_2m(WINDOW, large, bits::PRESENT | bits::WRITE);
                mapped = large;
            }
            visit(WINDOW + (page & 0x1f_ffff), page);
            page += 4096;
        }
    });
}

fn poke(address: u64, value: u64) {
    // SAFETY: RAM above the image that nothing else uses.
    unsafe { asm!("mov [{a}], {v}", a = in(reg) address, v = in(reg) value) };
}

fn every_page_distinct() -> Outcome {
    check!(boot::image_end_address() < 0x100_0000, "the image reaches beyond 16 MiB");
    // The loader's own data (start information, modules) is below 1 MiB or in a
    // module; guests of this test get none.
    if info::module(0).is_some() {
        skip!("there are modules in RAM");
    }
    let key = |page: u64| page.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let (mut pages, mut wrong) = (0u64, None);
    each_page(|at, page| {
        poke(at, key(page));
        poke(at + 4088, !key(page));
        pages += 1;
    });
    each_page(|at, page| {
        if info::peek::<u64>(at) != key(page) || info::peek::<u64>(at + 4088) != !key(page) {
            wrong = wrong.or(Some(page));
        }
    });
    check!(pages > 1000, "only {pages} pages");
    check!(wrong.is_none(), "page {wrong:x?} lost what was written");
    Ok(())
}

fn holes_read_ones() -> Outcome {
    let mut inside = false;
    for address in [0xe000_0000u64, 0xfea0_0000, 0xfed8_0000] {
        info::memory_map(|range| {
            inside |= (range.start..range.start + range.size).contains(&address) && range.kind == 1;
        });
        check!(!inside, "RAM at {address:#x}");
        let value = mmio_read32(address);
        // QEMU's unassigned memory reads zero.
        check!(
            value == u32::MAX || cpu::on_bare_tcg() && value == 0,
            "{address:#x} reads {value:#x}"
        );
        guests::io::mmio_write32(address, 0x1234_5678);
        check!(mmio_read32(address) == value, "{address:#x} keeps what is written");
    }
    Ok(())
}

/// Below 1 MiB there is nothing from the place of video memory on.
const LOW_HOLE: core::ops::Range<u64> = 0xa_0000..0xe_0000;

/// Addresses in each page of it, its ends and the borders between pages among them.
fn in_low_hole() -> impl Iterator<Item = u64> {
    LOW_HOLE.step_by(4096).flat_map(|page| [page, page + 1, page + 0x7fc, page + 4096 - 8])
}

/// Reads of all widths there.
fn read_low_hole(at: u64) -> Outcome {
    let (byte, word, long, quad): (u32, u32, u32, u64);
    let mut xmm = [0u64; 2];
    let mut copied = [0u8; 24];
    // SAFETY: reading there changes nothing; the targets are this function's own.
    unsafe {
        asm!(
            "movzx {b:e}, byte ptr [{a}]",
            "movzx {w:e}, word ptr [{a}]",
            "mov {l:e}, dword ptr [{a}]",
            "mov {q}, qword ptr [{a}]",
            "movups xmm0, [{wide}]",
            "movups [{t}], xmm0",
            "rep movsb",
            a = in(reg) at, wide = in(reg) at.min(LOW_HOLE.end - 16), t = in(reg) &raw mut xmm,
            b = out(reg) byte, w = out(reg) word, l = out(reg) long, q = out(reg) quad,
            inout("rsi") at.min(LOW_HOLE.end - 24) => _,
            inout("rdi") &raw mut copied => _,
            inout("rcx") copied.len() => _,
        );
    }
    check_eq!((byte, word, long, quad), (0xff, 0xffff, u32::MAX, u64::MAX), "address {at:#x}");
    check_eq!(xmm, [u64::MAX; 2], "16 bytes at {at:#x}");
    check_eq!(copied, [0xff; 24], "REP MOVSB from {at:#x}");
    Ok(())
}

fn low_hole_reads() -> Outcome {
    if cpu::on_bare_tcg() {
        skip!("this machine has video memory");
    }
    for at in in_low_hole() {
        read_low_hole(at)?;
    }
    Ok(())
}

fn low_hole_writes() -> Outcome {
    if cpu::on_bare_tcg() {
        skip!("this machine has video memory");
    }
    for at in in_low_hole().step_by(16) {
        let (flags, sum): (u64, u64);
        // SAFETY: nobody has anything there: writes are lost.
        unsafe {
            asm!(
                "mov byte ptr [{a}], 1",
                "mov word ptr [{a}], 2",
                "mov dword ptr [{a}], 3",
                "mov qword ptr [{a}], rcx",
                "mov rdi, {a}",
                "xor eax, eax",
                "rep stosb",
                "mov eax, 1",
                "lock xadd qword ptr [{a}], rax",
                // All ones and one more: carry.
                "add dword ptr [{a}], 1",
                "pushfq",
                "pop {f}",
                a = in(reg) at, f = out(reg) flags,
                inout("rcx") 8u64 => _, out("rdi") _, out("rax") sum,
            );
        }
        check_eq!(sum, u64::MAX, "LOCK XADD at {at:#x}");
        check_eq!(flags & 0x41, 0x41, "flags of ADD at {at:#x}");
        read_low_hole(at)?;
    }
    Ok(())
}

/// Bytes of the low hole are FF FF, which is no instruction.
fn low_hole_executes() -> Outcome {
    if cpu::on_bare_tcg() {
        skip!("this machine has video memory");
    }
    for at in [0xa_0000u64, 0xc_0000, 0xd_ffe0] {
        let caught = catch_asm!(["call {a}"], a = in(reg) at);
        check_eq!(caught.map(|t| (t.vector, t.rip)), Some((vector::UD, at)), "at {at:#x}");
    }
    Ok(())
}

fn bios_area() -> Outcome {
    // Tables live there: it must read the same twice, whatever it is.
    for address in (0xf_0000u64..0x10_0000).step_by(0x100) {
        check_eq!(mmio_read32(address), mmio_read32(address), "address {address:#x}");
    }
    Ok(())
}

/// Writes to the firmware's ROM are lost, whatever their form.
fn rom_keeps() -> Outcome {
    if cpu::on_bare_tcg() {
        skip!("this machine shadows its ROM with RAM");
    }
    for address in [0xf_0000u64, 0xf_1234, 0xf_fffc] {
        let before = mmio_read32(address);
        mmio_write32(address, !before);
        check_eq!(mmio_read32(address), before, "address {address:#x}");
        let sum: u32;
        // SAFETY: the ROM is nobody's memory; a read-modify-write of it is lost.
        unsafe {
            asm!("lock xadd [{a}], {v:e}", a = in(reg) address, v = inout(reg) 1u32 => sum);
        }
        check_eq!(sum, before, "LOCK XADD at {address:#x}");
        check_eq!(mmio_read32(address), before, "address {address:#x} after LOCK XADD");
    }
    Ok(())
}

fn a20() -> Outcome {
    let old = inb(0x92);
    check!(old == 0xff || old & 2 != 0, "A20 is off at the start: port 0x92 reads {old:#x}");
    // Memory 1 MiB apart is different memory.
    let (low, high) = (0x500u64, 0x10_0500u64);
    let saved = (info::peek::<u64>(low), info::peek::<u64>(high));
    poke(low, 1);
    poke(high, 2);
    let seen = (info::peek::<u64>(low), info::peek::<u64>(high));
    poke(low, saved.0);
    poke(high, saved.1);
    check_eq!(seen, (1, 2), "addresses 0x500 and 0x100500");
    if old != 0xff {
        outb(0x92, old & !1);
        check_eq!(inb(0x92) & 2, 2, "A20 bit of port 0x92");
    }
    Ok(())
}

fn mtrr() -> Outcome {
    if cpu::features().1 >> 12 & 1 == 0 {
        skip!("not offered");
    }
    let count = u32::from(cpu::low8(rdmsr(0xfe).unwrap_or(0)));
    let default = rdmsr(0x2ff).unwrap_or(0);
    for pair in 0..count {
        let (base, mask) = (0x200 + pair * 2, 0x201 + pair * 2);
        let old = (rdmsr(base).unwrap_or(0), rdmsr(mask).unwrap_or(0));
        check!(wrmsr(mask, 0xf_c000_0000).is_ok(), "mask {pair} can't be written");
        check!(wrmsr(base, 0x8000_0006).is_ok(), "base {pair} can't be written");
        let read = (rdmsr(base).unwrap_or(0), rdmsr(mask).unwrap_or(0));
        let _ = (wrmsr(base, old.0), wrmsr(mask, old.1));
        check_eq!(read, (0x8000_0006, 0xf_c000_0000), "pair {pair}");
    }
    for msr in [0x250, 0x258, 0x259, 0x268, 0x269, 0x26a, 0x26b, 0x26c, 0x26d, 0x26e, 0x26f] {
        let old = rdmsr(msr).unwrap_or(u64::MAX);
        check!(wrmsr(msr, 0x0606_0505_0404_0000).is_ok(), "MSR {msr:#x} can't be written");
        let read = rdmsr(msr).ok();
        let _ = wrmsr(msr, old);
        check_eq!(read, Some(0x0606_0505_0404_0000), "MSR {msr:#x}");
    }
    check_eq!(rdmsr(0x2ff).ok(), Some(default), "default type");
    if !cpu::on_bare_tcg() {
        check_eq!(wrmsr(0x200, 2).err().map(|t| t.vector), Some(vector::GP), "type 2 in a base");
        check_eq!(
            wrmsr(0x2ff, 7).err().map(|t| t.vector),
            Some(vector::GP),
            "type 7 as the default"
        );
        check!(default & 0x800 != 0, "MTRRs are switched off: {default:#x}");
    }
    Ok(())
}

/// A guest that knows only PWT and PCD: all of them, and the bit that picks the
/// other half of PAT, lead to the same memory and the same devices.
fn without_pat() -> Outcome {
    const ALIASES: u64 = 0x68_0000_0000;
    const PAGE: u64 = 0x100_0000;
    const IO_APIC: u64 = 0xfec0_0000;
    const KINDS: u64 = 8;
    for kind in 0..KINDS {
        // PAT is where large pages have their size.
        let type_bits = [bits::PWT, bits::PCD, bits::LARGE];
        let chosen = type_bits.into_iter().enumerate().filter(|(bit, _)| kind >> bit & 1 == 1);
        let flags = chosen.fold(bits::PRESENT | bits::WRITE, |flags, (_, bit)| flags | bit);
        tables::map(ALIASES + kind * 0x2000, PAGE, flags);
        tables::map(ALIASES + kind * 0x2000 + 0x1000, IO_APIC, flags);
    }
    mmio_write32(IO_APIC, 1);
    let version = mmio_read32(IO_APIC + 0x10);
    for kind in 0..KINDS {
        let alias = ALIASES + kind * 0x2000;
        poke(alias, kind + 0x1234_5678);
        for other in 0..KINDS {
            let seen = info::peek::<u64>(ALIASES + other * 0x2000);
            check_eq!(seen, kind + 0x1234_5678, "written as kind {kind}, read as {other}");
        }
        check_eq!(mmio_read32(alias + 0x1010), version, "a device as kind {kind}");
    }
    check_eq!(rdmsr(0x277).ok(), Some(0x0007_0406_0007_0406), "PAT, which nobody has written");
    Ok(())
}

fn pat() -> Outcome {
    let old = rdmsr(0x277).unwrap_or(0);
    let types = [0u64, 1, 4, 5, 6, 7];
    for value in types {
        let all = value * 0x0101_0101_0101_0101;
        check!(wrmsr(0x277, all).is_ok(), "PAT of type {value} can't be written");
        let read = rdmsr(0x277).ok();
        // Memory still works.
        poke(0x100_0000, value);
        check_eq!(info::peek::<u64>(0x100_0000), value, "memory");
        check_eq!(read, Some(all), "PAT");
    }
    let _ = wrmsr(0x277, old);
    Ok(())
}
