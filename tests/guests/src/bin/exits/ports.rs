//! Port I/O: widths, strings, faults in the middle, privileges, empty ports.

use guests::cpu;
use guests::harness::{Outcome, Shared, Tests};
use guests::io::{inb, inl, inw, outb, outl, outw};
use guests::paging::{self, bits};
use guests::trap::{selector, vector};
use guests::{catch_asm, check, check_eq, console, user};

pub(crate) fn run(tests: &mut Tests) {
    tests.case("port_widths", port_widths);
    tests.case("port_immediate", port_immediate);
    tests.case("port_in_keeps_upper", port_in_keeps_upper);
    tests.case("port_empty", port_empty);
    tests.case("string_out_in", string_out_in);
    tests.case("string_backwards", string_backwards);
    tests.case("string_32_bit_address", string_32_bit_address);
    tests.case("string_segment", string_segment);
    tests.case("string_count_zero", string_count_zero);
    tests.case("string_page_crossing", string_page_crossing);
    tests.case("string_fault", string_fault);
    tests.case("string_out_fault", string_out_fault);
    tests.case("string_long", string_long);
    tests.case("port_ring3", port_ring3);
}

/// PCI's configuration address register: 32 bits of storage (bits 0, 1 and 24 to 30 excepted).
const LATCH: u16 = 0xcf8;
/// The UART's scratch register: a byte of storage.
const SCRATCH: u16 = 0x3ff;

fn port_widths() -> Outcome {
    outl(LATCH, 0x8012_3454);
    check_eq!(inl(LATCH), 0x8012_3454, "four bytes");
    outl(LATCH, 0);
    check_eq!(inl(LATCH), 0, "four bytes");
    outb(SCRATCH, 0xa5);
    check_eq!(inb(SCRATCH), 0xa5, "one byte");
    // Vendor identity of the host bridge, three ways.
    outl(LATCH, 0x8000_0000);
    let whole = inl(0xcfc);
    check!(whole != u32::MAX, "no host bridge");
    check_eq!(u32::from(inw(0xcfc)), whole & 0xffff, "two bytes");
    check_eq!(u32::from(inw(0xcfe)), whole >> 16, "two bytes, upper half");
    check_eq!(u32::from(inb(0xcfd)), whole >> 8 & 0xff, "one byte, the second");
    outl(LATCH, 0);
    Ok(())
}

fn port_immediate() -> Outcome {
    let (value, again): (u8, u8);
    let caught = catch_asm!(["in al, 0x61", "mov cl, al", "out 0x61, al", "in al, 0x61"],
        out("al") again, out("cl") value);
    check!(caught.is_none(), "raised {caught:x?}");
    check_eq!(value & 3, again & 3, "port 0x61 written back");
    Ok(())
}

fn port_in_keeps_upper() -> Outcome {
    outb(SCRATCH, 0x5a);
    let mut value: u64;
    let caught = catch_asm!(["mov rax, 0x1122334455667788", "in al, dx"], in("dx") SCRATCH, out("rax") value);
    check!(caught.is_none(), "raised {caught:x?}");
    check_eq!(value, 0x1122_3344_5566_775a, "RAX after IN AL");
    let caught = catch_asm!(["mov rax, 0x1122334455667788", "in ax, dx"], in("dx") 0x2e0u16, out("rax") value);
    check!(caught.is_none(), "raised {caught:x?}");
    check_eq!(value, 0x1122_3344_5566_ffff, "RAX after IN AX from nothing");
    let caught = catch_asm!(["mov rax, 0x1122334455667788", "in eax, dx"], in("dx") 0x2e0u16, out("rax") value);
    check!(caught.is_none(), "raised {caught:x?}");
    check_eq!(value, 0xffff_ffff, "RAX after IN EAX from nothing");
    Ok(())
}

fn port_empty() -> Outcome {
    for port in [0x2e0, 0x5000, 0xfffc] {
        outb(port, 0);
        outw(port, 0);
        outl(port, 0);
        check_eq!(inb(port), 0xff, "port {port:#x}, one byte");
        check_eq!(inw(port), 0xffff, "port {port:#x}, two bytes");
        check_eq!(inl(port), 0xffff_ffff, "port {port:#x}, four bytes");
    }
    check_eq!(inb(0xffff), 0xff, "the last port");
    Ok(())
}

/// Storage that both string directions use.
static BUFFER: Shared<[u8; 64]> = Shared::new([0; 64]);

fn buffer() -> u64 {
    BUFFER.address().addr() as u64
}

fn string_out_in() -> Outcome {
    let mut bytes = [0; 64];
    for (i, byte) in (0x40..).zip(&mut bytes[..12]) {
        *byte = i;
    }
    BUFFER.set(bytes);
    let (out_rsi, out_rcx, in_rdi, in_rcx): (u64, u64, u64, u64);
    let modem = inb(console::COM1 + 4);
    outb(console::COM1 + 2, 7);
    outb(console::COM1 + 4, 0x10);
    let first = catch_asm!(["rep outsb"], inout("rsi") buffer() => out_rsi, inout("rcx") 12u64 => out_rcx,
        in("dx") console::COM1);
    guests::time::wait_for(200, || inb(console::COM1 + 5) & 0x60 == 0x60);
    let second = catch_asm!(["rep insb"], inout("rdi") buffer() + 32 => in_rdi, inout("rcx") 12u64 => in_rcx,
        in("dx") console::COM1);
    outb(console::COM1 + 4, modem);
    outb(console::COM1 + 2, 7);
    check!(first.is_none() && second.is_none(), "raised {first:x?} {second:x?}");
    check_eq!((out_rsi, out_rcx), (buffer() + 12, 0), "RSI and RCX after OUTS");
    check_eq!((in_rdi, in_rcx), (buffer() + 44, 0), "RDI and RCX after INS");
    let got = BUFFER.get();
    check_eq!(&got[32..44], &bytes[..12], "bytes looped back");
    check_eq!(got[44], 0, "the byte behind");
    Ok(())
}

fn string_backwards() -> Outcome {
    let bytes: [u8; 64] = core::array::from_fn(|i| cpu::low8(i as u64) + 1);
    BUFFER.set(bytes);
    let rsi: u64;
    // With DF set, OUTSD goes down; the last one written stays in the latch.
    let caught = catch_asm!(["std", "rep outsd", "cld"], inout("rsi") buffer() + 16 => rsi,
        inout("rcx") 4u64 => _, in("dx") LATCH);
    check!(caught.is_none(), "raised {caught:x?}");
    check_eq!(rsi, buffer(), "RSI");
    let word = u32::from_le_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]);
    check_eq!(inl(LATCH) & 0x00ff_fffc, word & 0x00ff_fffc, "the last doubleword written");
    outl(LATCH, 0);
    outb(SCRATCH, 0x77);
    let rdi: u64;
    let caught = catch_asm!(["std", "rep insb", "cld"], inout("rdi") buffer() + 8 => rdi,
        inout("rcx") 8u64 => _, in("dx") SCRATCH);
    check!(caught.is_none(), "raised {caught:x?}");
    check_eq!(rdi, buffer(), "RDI");
    let got = BUFFER.get();
    check_eq!((got[0], got[1], got[8], got[9]), (1, 0x77, 0x77, 10), "bytes read");
    Ok(())
}

fn string_32_bit_address() -> Outcome {
    outb(SCRATCH, 0x66);
    BUFFER.set([0; 64]);
    let (rdi, rcx): (u64, u64);
    // The upper halves of RDI and RCX take no part and end up zero.
    let caught = catch_asm!([".byte 0x67", "rep insb"], inout("rdi") buffer() | 7 << 32 => rdi,
        inout("rcx") 3u64 | 5 << 32 => rcx, in("dx") SCRATCH);
    check!(caught.is_none(), "raised {caught:x?}");
    check_eq!((rdi, rcx), (buffer() + 3, 0), "RDI and RCX");
    check_eq!(&BUFFER.get()[..4], &[0x66, 0x66, 0x66, 0], "bytes");
    Ok(())
}

fn string_segment() -> Outcome {
    let mut bytes = [0x11; 64];
    bytes[40] = 0x99;
    BUFFER.set(bytes);
    let _ = cpu::wrmsr(0xc000_0100, 40);
    let _ = cpu::wrmsr(0xc000_0101, 48);
    // OUTS honours a segment override, INS does not.
    let caught = catch_asm!([".byte 0x64", "outsb"], inout("rsi") buffer() => _, in("dx") SCRATCH);
    let written = inb(SCRATCH);
    let caught_in =
        catch_asm!([".byte 0x65", "insb"], inout("rdi") buffer() => _, in("dx") SCRATCH);
    let _ = cpu::wrmsr(0xc000_0100, 0);
    let _ = cpu::wrmsr(0xc000_0101, 0);
    check!(caught.is_none() && caught_in.is_none(), "raised {caught:x?} {caught_in:x?}");
    check_eq!(written, 0x99, "OUTS from FS");
    check_eq!((BUFFER.get()[0], BUFFER.get()[48]), (0x99, 0x11), "INS with a GS prefix");
    Ok(())
}

fn string_count_zero() -> Outcome {
    BUFFER.set([3; 64]);
    let rdi: u64;
    let caught = catch_asm!(["rep insb"], inout("rdi") buffer() => rdi, inout("rcx") 0u64 => _, in("dx") SCRATCH);
    check!(caught.is_none(), "raised {caught:x?}");
    check_eq!(rdi, buffer(), "RDI");
    check_eq!(BUFFER.get()[0], 3, "memory");
    Ok(())
}

/// Two pages of RAM that a test may map as it likes.
const PAGES: u64 = user::DATA + 0x8000;

fn string_page_crossing() -> Outcome {
    user::init();
    // The second page lies elsewhere: linear neighbours, physical strangers.
    paging::map(PAGES + 0x1000, PAGES + 0x5000, bits::PRESENT | bits::WRITE);
    let start = PAGES + 0x1000 - 6;
    outl(LATCH, 0x8044_3320);
    let rdi: u64;
    let caught =
        catch_asm!(["rep insd"], inout("rdi") start => rdi, inout("rcx") 3u64 => _, in("dx") LATCH);
    let crossing: u32 = guests::info::peek(start + 4);
    let second: u32 = guests::info::peek(PAGES + 0x5000 + 2);
    let caught_out = catch_asm!(["rep outsd"], inout("rsi") start + 4 => _, inout("rcx") 1u64 => _, in("dx") LATCH);
    let back = inl(LATCH);
    outl(LATCH, 0);
    paging::map(PAGES + 0x1000, PAGES + 0x1000, bits::PRESENT | bits::WRITE | bits::USER);
    check!(caught.is_none() && caught_out.is_none(), "raised {caught:x?} {caught_out:x?}");
    check_eq!(rdi, start + 12, "RDI");
    check_eq!((crossing, second), (0x8044_3320, 0x8044_3320), "doublewords stored");
    check_eq!(back, 0x8044_3320, "doubleword read across the border");
    Ok(())
}

fn string_fault() -> Outcome {
    user::init();
    let hole = PAGES + 0x1000;
    let old = paging::change(hole, 0, bits::PRESENT);
    outb(SCRATCH, 0x42);
    let (rdi, rcx): (u64, u64);
    let caught = catch_asm!(["rep insb"], inout("rdi") hole - 16 => rdi, inout("rcx") 32u64 => rcx,
        in("dx") SCRATCH);
    // Read-only, with CR0.WP: the same, with another error code.
    paging::change(hole, old & bits::PRESENT, bits::WRITE);
    let again = catch_asm!(["rep insb"], inout("rdi") hole - 2 => _, inout("rcx") 3u64 => _, in("dx") SCRATCH);
    paging::change(hole, bits::WRITE, 0);
    check_eq!(
        caught.map(|t| (t.vector, t.error & 0x1f, t.cr2)),
        Some((vector::PF, 2, hole)),
        "exception"
    );
    check_eq!((rdi, rcx), (hole, 16), "RDI and RCX at the fault");
    check_eq!(guests::info::peek::<u8>(hole - 1), 0x42, "the last byte before the fault");
    check_eq!(
        again.map(|t| (t.vector, t.error & 0x1f, t.cr2)),
        Some((vector::PF, 3, hole)),
        "read-only page"
    );
    Ok(())
}

fn string_out_fault() -> Outcome {
    user::init();
    let hole = PAGES + 0x1000;
    paging::change(hole, 0, bits::PRESENT);
    let (rsi, rcx): (u64, u64);
    let caught = catch_asm!(["rep outsb"], inout("rsi") hole - 4 => rsi, inout("rcx") 8u64 => rcx,
        in("dx") SCRATCH);
    paging::change(hole, bits::PRESENT, 0);
    check_eq!(
        caught.map(|t| (t.vector, t.error & 0x1f, t.cr2)),
        Some((vector::PF, 0, hole)),
        "exception"
    );
    check_eq!((rsi, rcx), (hole, 4), "RSI and RCX at the fault");
    Ok(())
}

fn string_long() -> Outcome {
    // More than one exit's worth: interrupts may come in between, nothing is lost.
    outb(SCRATCH, 0xc3);
    let start = user::DATA + 0x1_0000;
    user::init();
    let (rdi, rcx): (u64, u64);
    let caught = catch_asm!(["sti", "rep insb", "cli"], inout("rdi") start => rdi, inout("rcx") 20_000u64 => rcx,
        in("dx") SCRATCH);
    check!(caught.is_none(), "raised {caught:x?}");
    check_eq!((rdi, rcx), (start + 20_000, 0), "RDI and RCX");
    for i in 0..20_000 {
        check_eq!(guests::info::peek::<u8>(start + i), 0xc3, "byte {i}");
    }
    Ok(())
}

fn port_ring3() -> Outcome {
    let read = [0x66, 0xba, 0xff, 0x03, 0xec, 0xcd, 0x80]; // mov dx, 0x3ff; in al, dx; int 0x80
    let trap = user::run(&read, [0; 4]);
    check_eq!((trap.vector, trap.error), (vector::GP, 0), "IN with IOPL 0");
    check_eq!(trap.rip, user::BASE + 4, "where");
    outb(SCRATCH, 0x3c);
    let trap = user::run_at(user::BASE, selector::USER_CODE, user::STACK_TOP, 2 | 3 << 12, [0; 4]);
    check_eq!(trap.vector, vector::USER_RETURN, "IN with IOPL 3");
    check_eq!(trap.rax & 0xff, 0x3c, "what it read");
    user::place(user::BASE, &[0x6c]); // insb
    let trap = user::run_at(user::BASE, selector::USER_CODE, user::STACK_TOP, 2, [0; 4]);
    check_eq!(trap.vector, vector::GP, "INS with IOPL 0");
    Ok(())
}
