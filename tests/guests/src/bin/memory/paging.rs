//! Paging in long mode: sizes, protection, translation caches.

use guests::cpu::{self, rdmsr, wrmsr};
use guests::harness::{Outcome, Tests};
use guests::info::peek;
use guests::paging::{self as tables, bits};
use guests::trap::vector;
use guests::{boot, catch_asm, check, check_eq, skip, user};

pub(crate) fn run(tests: &mut Tests) {
    tests.case("small_pages", small_pages);
    tests.case("large_pages", large_pages);
    tests.case("huge_pages", huge_pages);
    tests.case("accessed_dirty", accessed_dirty);
    tests.case("write_protect", write_protect);
    tests.case("no_execute", no_execute);
    tests.case("smep", smep);
    tests.case("smap", smap);
    tests.case("invlpg", invlpg);
    tests.case("global_pages", global_pages);
    tests.case("cr3_switch", cr3_switch);
    tests.case("pcid", pcid);
    tests.case("self_modifying_code", self_modifying_code);
    tests.case("code_through_two_mappings", code_through_two_mappings);
}

/// Linear addresses that nothing else uses.
const A: u64 = 0x60_0000_0000;
/// Two pages of RAM.
const X: u64 = user::DATA + 0x6_0000;
const Y: u64 = user::DATA + 0x6_1000;
const RW: u64 = bits::PRESENT | bits::WRITE;
const GP_OR_PF: u8 = vector::PF;

fn poke(address: u64, value: u64) {
    // SAFETY: addresses above, mapped to RAM of the test.
    unsafe { core::arch::asm!("mov [{a}], {v}", a = in(reg) address, v = in(reg) value) };
}

fn prepare() {
    user::init();
    poke(X, 0x1111);
    poke(Y, 0x2222);
}

fn small_pages() -> Outcome {
    prepare();
    tables::map(A, X, RW);
    tables::map(A + 0x1000, Y, RW);
    check_eq!((peek::<u64>(A), peek::<u64>(A + 0x1000)), (0x1111, 0x2222), "two pages");
    poke(A + 0xffc, 0xaaaa_aaaa_bbbb_bbbb);
    check_eq!(
        (peek::<u32>(X + 0xffc), peek::<u32>(Y)),
        (0xbbbb_bbbb, 0xaaaa_aaaa),
        "a write across them"
    );
    Ok(())
}

fn large_pages() -> Outcome {
    prepare();
    tables::map_2m(A + 0x4000_0000, user::BASE, RW);
    check_eq!(peek::<u64>(A + 0x4000_0000 + (X - user::BASE)), 0x1111, "through a 2 MiB page");
    Ok(())
}

fn huge_pages() -> Outcome {
    if cpu::cpuid(0x8000_0001, 0).edx >> 26 & 1 == 0 {
        skip!("not offered");
    }
    prepare();
    tables::map_1g(0x68_0000_0000, 0, RW);
    check_eq!(peek::<u64>(0x68_0000_0000 + X), 0x1111, "through a 1 GiB page");
    Ok(())
}

fn accessed_dirty() -> Outcome {
    prepare();
    tables::map(A, X, RW);
    let both = bits::ACCESSED | bits::DIRTY;
    let _: u64 = peek(A);
    let read = tables::leaf(A) & both;
    poke(A, 1);
    check_eq!(
        (read, tables::leaf(A) & both),
        (bits::ACCESSED, both),
        "after a read, after a write"
    );
    Ok(())
}

fn write_protect() -> Outcome {
    prepare();
    tables::map(A, X, bits::PRESENT);
    let caught = catch_asm!(["mov qword ptr [{a}], 5"], a = in(reg) A);
    check_eq!(caught.map(|t| (t.vector, t.error)), Some((vector::PF, 3)), "write with CR0.WP");
    let cr0 = cpu::cr0();
    let _ = cpu::set_cr0(cr0 & !(1 << 16));
    let caught = catch_asm!(["mov qword ptr [{a}], 5"], a = in(reg) A);
    let _ = cpu::set_cr0(cr0);
    check!(caught.is_none(), "write without CR0.WP raised {caught:x?}");
    check_eq!(peek::<u64>(X), 5, "memory");
    Ok(())
}

const EFER: u32 = 0xc000_0080;

fn no_execute() -> Outcome {
    prepare();
    user::place(X, &[0xc3]);
    let efer = rdmsr(EFER).unwrap_or(0);
    check!(wrmsr(EFER, efer | 0x800).is_ok(), "EFER.NXE can't be set");
    tables::map(A, X, RW | bits::NX);
    let caught = catch_asm!(["call {a}"], a = in(reg) A);
    check_eq!(caught.map(|t| (t.vector, t.error, t.cr2)), Some((vector::PF, 0x11, A)), "NX page");
    let data = catch_asm!(["mov {v}, [{a}]"], a = in(reg) A, v = out(reg) _);
    check!(data.is_none(), "data of an NX page raised {data:x?}");
    tables::map(A, X, RW);
    let caught = catch_asm!(["call {a}"], a = in(reg) A);
    check!(caught.is_none(), "without NX it raised {caught:x?}");
    let _ = wrmsr(EFER, efer);
    Ok(())
}

fn smep() -> Outcome {
    if cpu::features7().ebx >> 7 & 1 == 0 {
        skip!("not offered");
    }
    user::place(user::DATA, &[0xc3]);
    let cr4 = cpu::cr4();
    check!(cpu::set_cr4(cr4 | 1 << 20).is_none(), "CR4.SMEP can't be set");
    let caught = catch_asm!(["call {a}"], a = in(reg) user::DATA);
    let _ = cpu::set_cr4(cr4);
    let after = catch_asm!(["call {a}"], a = in(reg) user::DATA);
    // The fetch bit of the error code is there with SMEP.
    check_eq!(caught.map(|t| (t.vector, t.error & 0x11)), Some((GP_OR_PF, 0x11)), "with SMEP");
    check!(after.is_none(), "without SMEP it raised {after:x?}");
    Ok(())
}

fn smap() -> Outcome {
    if cpu::features7().ebx >> 20 & 1 == 0 {
        skip!("not offered");
    }
    user::init();
    let cr4 = cpu::cr4();
    check!(cpu::set_cr4(cr4 | 1 << 21).is_none(), "CR4.SMAP can't be set");
    let caught = catch_asm!(["clac", "mov {v}, [{a}]"], a = in(reg) user::DATA, v = out(reg) _);
    let allowed =
        catch_asm!(["stac", "mov {v}, [{a}]", "clac"], a = in(reg) user::DATA, v = out(reg) _);
    let _ = cpu::set_cr4(cr4);
    check_eq!(caught.map(|t| (t.vector, t.error)), Some((vector::PF, 1)), "with AC clear");
    check!(allowed.is_none(), "with AC set it raised {allowed:x?}");
    Ok(())
}

fn invlpg() -> Outcome {
    prepare();
    for round in 0..100u64 {
        let page = if round % 2 == 0 { X } else { Y };
        tables::write_entry(tables::entry(A, 0), page | RW);
        tables::invlpg(A);
        check_eq!(peek::<u64>(A), if page == X { 0x1111 } else { 0x2222 }, "round {round}");
    }
    tables::write_entry(tables::entry(A, 0), 0);
    tables::invlpg(A);
    let caught = catch_asm!(["mov {v}, [{a}]"], a = in(reg) A, v = out(reg) _);
    check_eq!(caught.map(|t| t.vector), Some(vector::PF), "after the page went");
    // Giving rights needs no flush to work in the end.
    tables::write_entry(tables::entry(A, 0), X | RW);
    let caught = catch_asm!(["mov {v}, [{a}]"], a = in(reg) A, v = out(reg) _);
    check!(caught.is_none(), "a page made present raised {caught:x?}");
    Ok(())
}

fn global_pages() -> Outcome {
    prepare();
    let cr4 = cpu::cr4();
    let _ = cpu::set_cr4(cr4 | 0x80);
    tables::map(A, X, RW | bits::GLOBAL);
    let _: u64 = peek(A);
    tables::write_entry(tables::entry(A, 0), Y | RW);
    // Toggling CR4.PGE flushes everything, global pages included.
    let _ = cpu::set_cr4(cr4 & !0x80);
    let value = peek::<u64>(A);
    let _ = cpu::set_cr4(cr4);
    check_eq!(value, 0x2222, "after CR4.PGE was cleared");
    Ok(())
}

/// Another address space: the same but for the one page at `A`.
fn second_root() -> u64 {
    let root = tables::table();
    for i in 0..512 {
        tables::write_entry(root + i * 8, tables::read_entry(boot::page_table_root() + i * 8));
    }
    // A is below 512 GiB: the first entry's table is copied, then on down.
    let mut parent = root;
    for level in [3u32, 2, 1] {
        let slot = parent + (A >> (12 + 9 * level) & 511) * 8;
        let old = tables::read_entry(slot) & bits::ADDRESS;
        let copy = tables::table();
        for i in 0..512 {
            tables::write_entry(copy + i * 8, tables::read_entry(old + i * 8));
        }
        tables::write_entry(slot, copy | 7);
        parent = copy;
    }
    tables::write_entry(parent + (A >> 12 & 511) * 8, Y | RW);
    root
}

fn cr3_switch() -> Outcome {
    prepare();
    tables::map(A, X, RW);
    let (first, second) = (cpu::cr3(), second_root());
    for round in 0..1000 {
        let _ = cpu::set_cr3(second);
        let there = peek::<u64>(A);
        let _ = cpu::set_cr3(first);
        let here = peek::<u64>(A);
        check_eq!((here, there), (0x1111, 0x2222), "round {round}");
    }
    Ok(())
}

fn pcid() -> Outcome {
    if cpu::features().0 >> 17 & 1 == 0 {
        let caught = cpu::set_cr4(cpu::cr4() | 1 << 17);
        if !cpu::on_bare_tcg() {
            check_eq!(caught.map(|t| t.vector), Some(vector::GP), "CR4.PCIDE, not offered");
        }
        skip!("not offered");
    }
    prepare();
    tables::map(A, X, RW);
    let (first, second) = (cpu::cr3() & !0xfff, second_root());
    let cr4 = cpu::cr4();
    check!(cpu::set_cr4(cr4 | 1 << 17).is_none(), "CR4.PCIDE can't be set");
    let mut wrong = None;
    for round in 0..1000 {
        let _ = cpu::set_cr3(second | 5 | if round > 0 { 1 << 63 } else { 0 });
        let there = peek::<u64>(A);
        let _ = cpu::set_cr3(first | if round > 0 { 1 << 63 } else { 0 });
        let here = peek::<u64>(A);
        if (here, there) != (0x1111, 0x2222) {
            wrong = Some((round, here, there));
        }
    }
    let _ = cpu::set_cr3(first);
    let _ = cpu::set_cr4(cr4);
    check!(wrong.is_none(), "round and what was read: {wrong:x?}");
    Ok(())
}

fn call(address: u64) -> u32 {
    let value: u32;
    let _ = catch_asm!(["call {a}"], a = in(reg) address, out("eax") value);
    value
}

fn self_modifying_code() -> Outcome {
    for round in 0..200u8 {
        user::place(user::DATA + 0x100, &[0xb8, round, 0, 0, 0, 0xc3]);
        let _ = cpu::cpuid(0, 0);
        check_eq!(call(user::DATA + 0x100), u32::from(round), "what the changed code returns");
    }
    Ok(())
}

fn code_through_two_mappings() -> Outcome {
    prepare();
    tables::map(A, X, RW);
    for round in 0..200u8 {
        user::place(X, &[0xb8, round, 0, 0, 0, 0xc3]);
        let _ = cpu::cpuid(0, 0);
        check_eq!(call(A), u32::from(round), "code written through another address");
    }
    Ok(())
}
