//! Instruction forms on a register that every PC has and that keeps 32 bits:
//! the initial count of the local APIC's timer, its interrupt masked.

use guests::harness::{Outcome, Shared, Tests};
use guests::{catch_asm, check, check_eq, cpu, io, skip};

pub(crate) fn run(tests: &mut Tests) {
    tests.case("apic_moves", moves);
    tests.case("apic_arithmetic", arithmetic);
    tests.case("apic_exchange", exchange);
    tests.case("apic_strings", strings);
    tests.case("apic_base", base);
}

const COUNT: u64 = 0xfee0_0380;

fn read() -> u32 {
    guests::io::mmio_read32(COUNT)
}

macro_rules! step {
    ($code:literal, $want:expr $(, $($operands:tt)*)?) => {{
        let caught = catch_asm!([$code], a = in(reg) COUNT $(, $($operands)*)?);
        check!(caught.is_none(), "{}: raised {caught:x?}", $code);
        check_eq!(read(), $want, "{}", $code);
    }};
}

fn moves() -> Outcome {
    step!("mov dword ptr [{a}], 0x21", 0x21);
    step!("mov [{a}], {v:e}", 0x32, v = in(reg) 0x32u32);
    step!("mov dword ptr [{a} + 4 - 4], 0x43", 0x43);
    step!("mov dword ptr [{b} + {a} * 2], 0x54", 0x54, b = in(reg) COUNT.wrapping_sub(COUNT * 2));
    step!("mov dword ptr [{a:e}], 0x65", 0x65);
    let value: u64;
    let caught =
        catch_asm!(["mov {v}, -1", "mov {v:e}, [{a}]"], v = out(reg) value, a = in(reg) COUNT);
    check!(caught.is_none(), "load raised {caught:x?}");
    check_eq!(value, 0x65, "a 32-bit load clears the upper half");
    step!("mov dword ptr [{a}], 0", 0);
    Ok(())
}

fn arithmetic() -> Outcome {
    step!("mov dword ptr [{a}], 0x10", 0x10);
    step!("or dword ptr [{a}], 0x23", 0x33);
    step!("and dword ptr [{a}], 0x22", 0x22);
    step!("xor dword ptr [{a}], 0x0f", 0x2d);
    step!("add dword ptr [{a}], 3", 0x30);
    step!("sub dword ptr [{a}], {v:e}", 0x20, v = in(reg) 0x10u32);
    step!("inc dword ptr [{a}]", 0x21);
    step!("not dword ptr [{a}]", 0xffff_ffde);
    step!("and dword ptr [{a}], 0xff", 0xde);
    step!("btr dword ptr [{a}], 7", 0x5e);
    step!("bts dword ptr [{a}], 0", 0x5f);
    let (zero, carry): (u8, u8);
    let caught = catch_asm!(["cmp dword ptr [{a}], 0x5f", "setz {z}", "bt dword ptr [{a}], 6", "setc {c}"],
        a = in(reg) COUNT, z = out(reg_byte) zero, c = out(reg_byte) carry);
    check!(caught.is_none(), "raised {caught:x?}");
    check_eq!((zero, carry), (1, 1), "ZF of CMP, CF of BT");
    let zero: u8;
    let caught = catch_asm!(["test dword ptr [{a}], 0xa0", "setz {z}"], a = in(reg) COUNT, z = out(reg_byte) zero);
    check!(caught.is_none(), "raised {caught:x?}");
    check_eq!(zero, 1, "ZF of TEST");
    step!("mov dword ptr [{a}], 0", 0);
    Ok(())
}

fn exchange() -> Outcome {
    step!("mov dword ptr [{a}], 0x10", 0x10);
    let old: u32;
    let caught =
        catch_asm!(["xchg [{a}], {v:e}"], a = in(reg) COUNT, v = inout(reg) 0x25u32 => old);
    check!(caught.is_none(), "XCHG raised {caught:x?}");
    check_eq!((old, read()), (0x10, 0x25), "XCHG");
    let (eax, zero): (u32, u8);
    let caught = catch_asm!(["lock cmpxchg [{a}], {v:e}", "setz {z}"], a = in(reg) COUNT,
        v = in(reg) 0x37u32, z = out(reg_byte) zero, inout("eax") 0x25u32 => eax);
    check!(caught.is_none(), "CMPXCHG raised {caught:x?}");
    check_eq!((eax, zero, read()), (0x25, 1, 0x37), "CMPXCHG of equals");
    let (eax, zero): (u32, u8);
    let caught = catch_asm!(["lock cmpxchg [{a}], {v:e}", "setz {z}"], a = in(reg) COUNT,
        v = in(reg) 0x48u32, z = out(reg_byte) zero, inout("eax") 0x25u32 => eax);
    check!(caught.is_none(), "CMPXCHG raised {caught:x?}");
    check_eq!((eax, zero, read()), (0x37, 0, 0x37), "CMPXCHG of unequals");
    step!("mov dword ptr [{a}], 0", 0);
    Ok(())
}

fn strings() -> Outcome {
    static BUFFER: Shared<[u32; 4]> = Shared::new([0; 4]);
    let buffer = BUFFER.address().addr() as u64;
    let rdi: u64;
    let caught = catch_asm!(["stosd"], inout("rdi") COUNT => rdi, in("eax") 0x46u32);
    check!(caught.is_none(), "STOS raised {caught:x?}");
    check_eq!((rdi, read()), (COUNT + 4, 0x46), "STOS");
    let (rax, rsi): (u64, u64);
    let caught = catch_asm!(["lodsd"], inout("rsi") COUNT => rsi, inout("rax") u64::MAX => rax);
    check!(caught.is_none(), "LODS raised {caught:x?}");
    check_eq!((rax, rsi), (0x46, COUNT + 4), "LODS");
    let caught = catch_asm!(["movsd"], inout("rsi") COUNT => _, inout("rdi") buffer => _);
    check!(caught.is_none(), "MOVS from the device raised {caught:x?}");
    check_eq!(BUFFER.get()[0], 0x46, "MOVS from the device");
    BUFFER.set([0x57; 4]);
    let caught = catch_asm!(["movsd"], inout("rsi") buffer => _, inout("rdi") COUNT => _);
    check!(caught.is_none(), "MOVS to the device raised {caught:x?}");
    check_eq!(read(), 0x57, "MOVS to the device");
    let caught =
        catch_asm!(["push qword ptr [{b}]", "pop {v}"], b = in(reg) buffer, v = out(reg) _);
    check!(caught.is_none(), "raised {caught:x?}");
    step!("mov dword ptr [{a}], 0", 0);
    Ok(())
}

/// The registers follow their base; where they were, nobody answers.
fn base() -> Outcome {
    const MSR: u32 = 0x1b;
    const OTHER: u64 = 0xfeb0_0000;
    const USUAL: u64 = 0xfee0_0000;
    if cpu::on_bare_tcg() {
        skip!("bare QEMU checks nothing");
    }
    let old = cpu::rdmsr(MSR).unwrap_or(0);
    check_eq!(old & !0xfff, USUAL, "the base at first");
    check_eq!(io::mmio_read32(OTHER + 0x30), u32::MAX, "the other place at first");
    let version = io::mmio_read32(USUAL + 0x30);
    let moved = old & 0xfff | OTHER;
    let caught = cpu::wrmsr(MSR, moved);
    let read = cpu::rdmsr(MSR).unwrap_or(0);
    let there = io::mmio_read32(OTHER + 0x30);
    let here = io::mmio_read32(USUAL + 0x30);
    // A write to where they were is lost.
    io::mmio_write32(USUAL + 0x380, 0x1234);
    io::mmio_write32(OTHER + 0x380, 0x4321);
    let count = io::mmio_read32(OTHER + 0x380);
    io::mmio_write32(OTHER + 0x80, 0x50);
    let priority = cpu::cr8();
    let _ = cpu::set_cr8(0);
    let lowered = io::mmio_read32(OTHER + 0x80);
    let back = cpu::wrmsr(MSR, old);
    check!(caught.is_ok() && back.is_ok(), "the move raised {caught:x?}, back {back:x?}");
    check_eq!(read, moved, "the base");
    check_eq!((there, here), (version, u32::MAX), "version, and what is left behind");
    check_eq!((count, priority, lowered), (0x4321, 5, 0), "count, CR8, task priority");
    check_eq!(io::mmio_read32(USUAL + 0x380), 0x4321, "the count, back again");
    check_eq!(io::mmio_read32(OTHER + 0x30), u32::MAX, "the other place, back again");
    for bad in [old | 1 << 9, old | 1, old | 1 << 51, old & 0xfff | 0x10_0000] {
        check!(cpu::wrmsr(MSR, bad).is_err(), "{bad:#x} did not fault");
    }
    check_eq!(cpu::rdmsr(MSR).ok(), Some(old), "the base at last");
    Ok(())
}
