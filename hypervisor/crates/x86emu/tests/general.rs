//! The stack, branches, products, searches and descriptors, from the manual's descriptions.
#![expect(
    unreachable_pub,
    clippy::cast_possible_truncation,
    reason = "modules that are a library's elsewhere; tests of 64-bit hosts"
)]

#[path = "../../../../tests/fuzz/src/machine.rs"]
mod machine;

use machine::{ABSENT, CODE, Machine, READ_ONLY};
use x86defs::control::CpuMode;
use x86defs::{Cr0, Cr4, DescriptorTable, Exception, Gpr, Rflags, Segment, SegmentRegister};
use x86emu::{Cpu, GuestException, Step, Stop, step};

const DATA: u64 = 0x4000;
const STACK: u64 = 0x6000;
const GDT: u64 = 0x2000;

/// A machine in 64-bit mode whose RBX points to data.
fn long(code: &[u8]) -> Machine {
    in_mode(CpuMode::Long64, code)
}

fn in_mode(mode: CpuMode, code: &[u8]) -> Machine {
    let mut machine = Machine::new(mode, code);
    machine.set_gpr(Gpr::Rbx, DATA);
    machine.set_gpr(Gpr::Rsp, STACK);
    machine
}

fn word(machine: &Machine, at: u64) -> u64 {
    u64::from_le_bytes(machine.memory[at as usize..][..8].try_into().unwrap())
}

fn set_word(machine: &mut Machine, at: u64, value: u64) {
    machine.memory[at as usize..][..8].copy_from_slice(&value.to_le_bytes());
}

fn done(machine: &mut Machine, length: usize) {
    assert_eq!(step(machine), Ok(Step::Done));
    assert_eq!(machine.rip, CODE + length as u64);
}

fn fault(machine: &mut Machine) -> GuestException {
    let before = machine.clone();
    match step(machine) {
        Err(Stop::Exception(exception)) => {
            machine.accesses = before.accesses;
            assert!(*machine == before, "the fault changed something");
            exception
        }
        other => panic!("{other:?}"),
    }
}

fn code_of(exception: Exception, code: u32) -> GuestException {
    GuestException { exception, error_code: Some(code), address: None }
}

#[test]
fn pushes() {
    let table: &[(&[u8], u64, u64)] = &[
        (&[0x6a, 0xfe], 8, !1),                             // push -2
        (&[0x68, 1, 2, 3, 0x84], 8, 0xffff_ffff_8403_0201), // push imm32
        (&[0x66, 0x68, 1, 2], 2, 0x0201),                   // push imm16
        (&[0xff, 0x33], 8, 0x1122),                         // push [rbx]
        (&[0x0f, 0xa0], 8, 0x10),                           // push fs
        (&[0x53], 8, DATA),                                 // push rbx
        (&[0x9c], 8, 0x246),                                // pushfq
    ];
    for (code, bytes, pushed) in table {
        let mut machine = long(code);
        set_word(&mut machine, DATA, 0x1122);
        machine.rflags |= Rflags::RF | Rflags::IF | Rflags::ZF | Rflags::PF;
        done(&mut machine, code.len());
        assert_eq!(machine.gpr(Gpr::Rsp), STACK - bytes, "{code:02x?}");
        assert_eq!(word(&machine, STACK - bytes), *pushed, "{code:02x?}");
    }
    // RSP stays where the stack is absent.
    let mut machine = long(&[0x6a, 0xfe]);
    machine.set_gpr(Gpr::Rsp, ABSENT + 8);
    assert_eq!(fault(&mut machine), GuestException::page_fault(ABSENT, 2));
}

#[test]
fn calls_and_returns() {
    // call [rbx]
    let mut machine = long(&[0xff, 0x13]);
    set_word(&mut machine, DATA, 0x5000);
    machine.rflags |= Rflags::RF;
    assert_eq!(step(&mut machine), Ok(Step::Done));
    assert_eq!((machine.rip, word(&machine, STACK - 8)), (0x5000, CODE + 2));
    assert_eq!(machine.gpr(Gpr::Rsp), STACK - 8);
    assert!(!machine.rflags.contains(Rflags::RF));
    // ret 16
    machine.memory[0x5000..0x5003].copy_from_slice(&[0xc2, 0x10, 0]);
    assert_eq!(step(&mut machine), Ok(Step::Done));
    assert_eq!((machine.rip, machine.gpr(Gpr::Rsp)), (CODE + 2, STACK + 16));
    // call rel32; jmp [rbx]
    let mut machine = long(&[0xe8, 0xfb, 0x0f, 0, 0]);
    assert_eq!(step(&mut machine), Ok(Step::Done));
    assert_eq!((machine.rip, word(&machine, STACK - 8)), (CODE + 0x1000, CODE + 5));
    let mut machine = long(&[0xff, 0x23]);
    set_word(&mut machine, DATA, 0x7777);
    assert_eq!(step(&mut machine), Ok(Step::Done));
    assert_eq!((machine.rip, machine.gpr(Gpr::Rsp)), (0x7777, STACK));
    // To where there can be no code: nothing is pushed.
    for code in [[0xff, 0x13], [0xff, 0x23]] {
        let mut machine = long(&code);
        set_word(&mut machine, DATA, 1 << 47);
        assert_eq!(fault(&mut machine), code_of(Exception::GP, 0));
    }
    let mut machine = in_mode(CpuMode::Protected32, &[0xff, 0x13]);
    machine.segments[SegmentRegister::Cs as usize].limit = 0x4fff;
    set_word(&mut machine, DATA, 0x5000);
    assert_eq!(fault(&mut machine), code_of(Exception::GP, 0));
    // The target, and what PUSH pushes, are read once the push is known to work.
    for code in [[0xff, 0x13], [0xff, 0x33]] {
        let mut machine = long(&code);
        machine.set_gpr(Gpr::Rsp, READ_ONLY + 8);
        assert!(step(&mut machine).is_err());
        assert_eq!(machine.accesses, 0);
    }
    // Vendors differ: call, jmp [rbx] and ret with an operand-size prefix.
    for code in [&[0x66, 0xff, 0x13][..], &[0x66, 0xff, 0x23], &[0x66, 0xc3]] {
        assert!(matches!(step(&mut long(code)), Err(Stop::Unsupported(_))), "{code:02x?}");
    }
    // Sixteen bits: call word [bx]
    let mut machine = in_mode(CpuMode::Real, &[0xff, 0x17]);
    set_word(&mut machine, DATA, 0x1234_5000);
    assert_eq!(step(&mut machine), Ok(Step::Done));
    assert_eq!((machine.rip, machine.gpr(Gpr::Rsp)), (0x5000, STACK - 2));
    assert_eq!(word(&machine, STACK - 2) & 0xffff, CODE + 2);
}

#[test]
fn frames() {
    // enter 32, 0; leave
    let mut machine = long(&[0xc8, 32, 0, 0, 0xc9]);
    machine.set_gpr(Gpr::Rbp, 0x1234);
    done(&mut machine, 4);
    assert_eq!(word(&machine, STACK - 8), 0x1234);
    assert_eq!((machine.gpr(Gpr::Rbp), machine.gpr(Gpr::Rsp)), (STACK - 8, STACK - 40));
    done(&mut machine, 5);
    assert_eq!((machine.gpr(Gpr::Rbp), machine.gpr(Gpr::Rsp)), (0x1234, STACK));
    // enter 0, 3 copies two frame pointers, and its own.
    let mut machine = long(&[0xc8, 0, 0, 3]);
    machine.set_gpr(Gpr::Rbp, DATA);
    set_word(&mut machine, DATA - 8, 0x11);
    set_word(&mut machine, DATA - 16, 0x22);
    done(&mut machine, 4);
    let pushed = [8, 16, 24, 32].map(|offset| word(&machine, STACK - offset));
    assert_eq!(pushed, [DATA, 0x11, 0x22, STACK - 8]);
    assert_eq!((machine.gpr(Gpr::Rbp), machine.gpr(Gpr::Rsp)), (STACK - 8, STACK - 32));
    // A frame that ends where nothing can be written.
    let mut machine = long(&[0xc8, 0, 0x10, 0]);
    machine.set_gpr(Gpr::Rsp, 0xf010);
    assert!(matches!(fault(&mut machine).exception, Exception::PF));
    // pusha; popa
    let mut machine = in_mode(CpuMode::Protected32, &[0x60, 0x61]);
    for (number, gpr) in (1..).zip([Gpr::Rax, Gpr::Rcx, Gpr::Rdx, Gpr::Rbx]) {
        machine.set_gpr(gpr, number);
    }
    done(&mut machine, 1);
    assert_eq!(word(&machine, STACK - 8), 0x0000_0001_0000_0002);
    assert_eq!(word(&machine, STACK - 24) & 0xffff_ffff, 0, "EBP");
    assert_eq!(word(&machine, STACK - 20) & 0xffff_ffff, STACK, "ESP");
    machine.set_gpr(Gpr::Rax, 9);
    done(&mut machine, 2);
    assert_eq!((machine.gpr(Gpr::Rax), machine.gpr(Gpr::Rsp)), (1, STACK));
}

#[test]
fn flags_from_the_stack() {
    let all = 0xffff_ffff;
    let popped = |cpl, iopl: u64, mode, code: &[u8]| {
        let mut machine = in_mode(mode, code);
        machine.cpl = cpl;
        machine.rflags |= Rflags::from_bits_truncate(iopl << 12);
        set_word(&mut machine, STACK, all);
        done(&mut machine, code.len());
        machine.rflags.bits()
    };
    assert_eq!(popped(0, 0, CpuMode::Long64, &[0x9d]), 0x24_7fd7);
    assert_eq!(popped(3, 0, CpuMode::Long64, &[0x9d]), 0x24_4dd7);
    assert_eq!(popped(3, 3, CpuMode::Long64, &[0x9d]), 0x24_7fd7);
    assert_eq!(popped(0, 0, CpuMode::Long64, &[0x66, 0x9d]), 0x7fd7);
    let mut machine = in_mode(CpuMode::Virtual8086, &[0x9d]);
    machine.cpl = 3;
    assert_eq!(fault(&mut machine).exception, Exception::GP);
    machine.cr4 |= Cr4::VME;
    set_word(&mut machine, STACK, 0x200);
    done(&mut machine, 1);
    assert_eq!(machine.rflags, Rflags::VIF | Rflags::RESERVED1);
}

/// Code; RAX, RDX and memory before it; RAX and RDX after it.
type Pair = (&'static [u8], (u64, u64, u64), (u64, u64));

/// RAX and RDX after one instruction.
fn pair(code: &[u8], rax: u64, rdx: u64, memory: u64) -> (u64, u64) {
    let mut machine = long(code);
    machine.set_gpr(Gpr::Rax, rax);
    machine.set_gpr(Gpr::Rdx, rdx);
    machine.set_gpr(Gpr::Rcx, 4);
    set_word(&mut machine, DATA, memory);
    done(&mut machine, code.len());
    (machine.gpr(Gpr::Rax), machine.gpr(Gpr::Rdx))
}

#[test]
fn products_and_quotients() {
    let table: &[Pair] = &[
        (&[0xf6, 0x23], (0x1234, 7, 0x56), (0x1178, 7)), // mul byte: 34 * 56
        (&[0xf6, 0x2b], (0x00ff, 7, 2), (0xfffe, 7)),    // imul byte: -1 * 2
        (&[0x66, 0xf7, 0x23], (0xa_8000, 7, 4), (0xa_0000, 2)), // mul word
        (&[0xf7, 0x23], (u64::MAX, 7, 2), (0xffff_fffe, 1)), // mul dword
        (&[0x48, 0xf7, 0x2b], (3, 7, !0), (!2, !0)),     // imul qword: 3 * -1
        (&[0x0f, 0xaf, 0x03], (3, 7, 5), (15, 7)),       // imul eax, [rbx]
        (&[0x6b, 0x03, 0xfe], (3, 7, 5), (0xffff_fff6, 7)), // imul eax, [rbx], -2
        (&[0x66, 0x69, 0x03, 0, 1], (3, 7, 5), (0x500, 7)), // imul ax, [rbx], 256
        (&[0xf6, 0x33], (0x107, 7, 16), (0x0710, 7)),    // div byte
        (&[0xf7, 0x33], (7, 1, 16), (0x1000_0000, 7)),   // div dword
        (&[0x48, 0xf7, 0x3b], (!6, !0, 2), (!2, !0)),    // idiv qword: -7 / 2
        (&[0xc4, 0xe2, 0xfb, 0xf6, 0x03], (1, !0, !0), (!1, !0)), // mulx rax, rax, [rbx]
        (&[0xc4, 0xe2, 0xeb, 0xf6, 0x03], (1, !0, !0), (!1, 1)), // mulx rax, rdx, [rbx]
        (&[0x0f, 0xbc, 0x03], (9, 7, 0x80), (7, 7)),     // bsf eax, [rbx]
        (&[0x48, 0x0f, 0xbd, 0x03], (9, 7, 0x80 << 32), (39, 7)), // bsr rax
        (&[0x0f, 0xbc, 0x03], (9 << 32, 7, 0), (9 << 32, 7)), // bsf of nothing
        (&[0xf3, 0x0f, 0xbc, 0x03], (9, 7, 0), (32, 7)), // tzcnt
        (&[0xf3, 0x48, 0x0f, 0xbd, 0x03], (9, 7, 1), (63, 7)), // lzcnt
        (&[0xf3, 0x0f, 0xb8, 0x03], (9, 7, 0xff00), (8, 7)), // popcnt
        (&[0xf2, 0x0f, 0x38, 0xf0, 0x03], (0, 7, 1), (0xf26b_8303, 7)), // crc32 eax, byte
        (&[0xc4, 0xe2, 0x68, 0xf2, 0x03], (0, 0xf, 0x3c), (0x30, 0xf)), // andn eax, edx, [rbx]
        (&[0xc4, 0xe2, 0x68, 0xf7, 0x03], (0, 0x804, 0x1234), (0x23, 0x804)), // bextr eax
        (&[0xc4, 0xe2, 0x68, 0xf5, 0x03], (0, 9, 0x1234), (0x34, 9)), // bzhi eax, [rbx], edx
        (&[0xc4, 0xe2, 0x69, 0xf7, 0x03], (0, 4, 0x1234), (0x1_2340, 4)), // shlx
        (&[0xc4, 0xe2, 0x6b, 0xf7, 0x03], (0, 36, 0x1234), (0x123, 36)), // shrx
        (&[0xc4, 0xe3, 0x7b, 0xf0, 0x03, 4], (0, 7, 0x1234), (0x4000_0123, 7)), // rorx
        (&[0xc4, 0xe2, 0x6b, 0xf5, 0x03], (0, 5, 0xf0), (0x50, 5)), // pdep eax, edx, [rbx]
        (&[0xc4, 0xe2, 0x6a, 0xf5, 0x03], (0, 0x50, 0xf0), (5, 0x50)), // pext
        (&[0xc4, 0xe2, 0x78, 0xf3, 0x0b], (6, 7, 12), (8, 7)), // blsr eax, [rbx]
    ];
    for (code, (rax, rdx, memory), after) in table {
        assert_eq!(pair(code, *rax, *rdx, *memory), *after, "{code:02x?}");
    }
    for (code, rax, divisor) in [(&[0xf7, 0x33], 1, 0), (&[0xf7, 0x3b], 0x8000_0000, !0)] {
        let mut machine = long(code);
        machine.set_gpr(Gpr::Rax, rax);
        machine.set_gpr(Gpr::Rdx, if divisor == 0 { 0 } else { !0 });
        set_word(&mut machine, DATA, divisor);
        assert_eq!(fault(&mut machine), GuestException::plain(Exception::DE));
    }
    // VEX is no encoding in real mode.
    let real = &[0xc4, 0xe2, 0x68, 0xf2, 0x07];
    assert_eq!(fault(&mut in_mode(CpuMode::Real, real)), GuestException::UD);
}

#[test]
fn others() {
    // shld [rbx], eax, 8
    let mut machine = long(&[0x0f, 0xa4, 0x03, 8]);
    machine.set_gpr(Gpr::Rax, 0xab00_0000);
    set_word(&mut machine, DATA, 0x1234_5678);
    done(&mut machine, 4);
    assert_eq!(word(&machine, DATA), 0x3456_78ab);
    // xlat
    let mut machine = long(&[0xd7]);
    machine.set_gpr(Gpr::Rax, 0x1_0005);
    machine.memory[DATA as usize + 5] = 0x77;
    done(&mut machine, 1);
    assert_eq!(machine.gpr(Gpr::Rax), 0x1_0077);
    // adox rax, [rbx]: OF carries, CF stays.
    let mut machine = long(&[0xf3, 0x48, 0x0f, 0x38, 0xf6, 0x03]);
    machine.rflags |= Rflags::OF;
    machine.set_gpr(Gpr::Rax, !0);
    done(&mut machine, 6);
    assert_eq!((machine.gpr(Gpr::Rax), machine.rflags.contains(Rflags::OF)), (0, true));
    // bound eax, [ebx]
    for (index, inside) in [(4, true), (!4_u64, false), (6, false)] {
        let mut machine = in_mode(CpuMode::Protected32, &[0x62, 0x03]);
        set_word(&mut machine, DATA, 0x0000_0005_ffff_fffe);
        machine.set_gpr(Gpr::Rax, index);
        if inside {
            done(&mut machine, 2);
        } else {
            assert_eq!(fault(&mut machine), GuestException::plain(Exception::BR));
        }
    }
    // movdir64b rax, [rbx]
    let code = &[0x66, 0x0f, 0x38, 0xf8, 0x03];
    let mut machine = long(code);
    machine.set_gpr(Gpr::Rax, 0x3000);
    machine.memory[DATA as usize..][..64].fill(0x5a);
    done(&mut machine, 5);
    assert_eq!(machine.memory[0x3000..0x3040], [0x5a; 64]);
    let mut machine = long(code);
    machine.set_gpr(Gpr::Rax, 0x3020);
    assert_eq!(fault(&mut machine), code_of(Exception::GP, 0));
    // smsw, sldt, str to memory; UMIP.
    for (code, value) in
        [([0x0f, 0x01, 0x23], 1), ([0x0f, 0x00, 0x03], 0x28), ([0x0f, 0x00, 0x0b], 0x30)]
    {
        let mut machine = long(&code);
        machine.cpl = 3;
        machine.segments[SegmentRegister::Ldtr as usize].selector = 0x28;
        machine.segments[SegmentRegister::Tr as usize].selector = 0x30;
        set_word(&mut machine, DATA, !0);
        done(&mut machine, 3);
        assert_eq!(word(&machine, DATA), value | !0xffff);
        let mut machine = long(&code);
        machine.cpl = 3;
        machine.cr4 |= Cr4::UMIP;
        assert_eq!(fault(&mut machine), code_of(Exception::GP, 0));
    }
    // lmsw can't clear PE.
    let mut machine = long(&[0x0f, 0x01, 0x33]);
    set_word(&mut machine, DATA, 0xa);
    done(&mut machine, 3);
    assert_eq!(machine.cr0, Cr0::PE | Cr0::MP | Cr0::TS);
    // lgdt, sgdt
    let mut machine = long(&[0x0f, 0x01, 0x13, 0x0f, 0x01, 0x43, 0x10]);
    let base = 0xffff_8000_1234_5678;
    set_word(&mut machine, DATA, base << 16 | 0x7f);
    set_word(&mut machine, DATA + 8, base >> 48);
    done(&mut machine, 3);
    assert_eq!(machine.tables[0], DescriptorTable { base, limit: 0x7f });
    done(&mut machine, 7);
    assert_eq!((word(&machine, DATA + 16), word(&machine, DATA + 24)), (base << 16 | 0x7f, 0xffff));
}

/// A flat data segment, not yet accessed, with this privilege level.
const fn data(dpl: u64) -> u64 {
    0x00cf_9200_0000_ffff | dpl << 45
}

/// A machine with a GDT whose entries are these, from the second on.
fn with_gdt(mode: CpuMode, code: &[u8], entries: &[u64], selector: u64) -> Machine {
    let mut machine = in_mode(mode, code);
    let limit = (entries.len() * 8 + 7) as u16;
    machine.tables[0] = DescriptorTable { base: GDT, limit };
    for (number, entry) in (1..).zip(entries) {
        set_word(&mut machine, GDT + number * 8, *entry);
    }
    set_word(&mut machine, DATA, selector);
    machine
}

#[test]
fn segment_registers() {
    let es = [0x8e, 0x03];
    let mut machine = with_gdt(CpuMode::Protected32, &es, &[data(0)], 8);
    done(&mut machine, 2);
    let loaded = machine.segment(SegmentRegister::Es);
    assert_eq!(loaded, Segment { selector: 8, ..Segment::data32(8) });
    assert_eq!(word(&machine, GDT + 8), data(0) | 1 << 40, "accessed");
    let refused = |code: &[u8], entry, selector, cpl, exception| {
        let mut machine = with_gdt(CpuMode::Protected32, code, &[entry], selector);
        machine.cpl = cpl;
        let error = if selector & !3 == 0 { 0 } else { selector as u32 & !3 };
        assert_eq!(fault(&mut machine), code_of(exception, error), "{selector:#x}");
    };
    let ss = [0x8e, 0x13];
    refused(&es, data(0), 0x10, 0, Exception::GP);
    refused(&es, data(0), 0xc, 0, Exception::GP);
    refused(&es, data(0), 8, 3, Exception::GP);
    refused(&es, data(0) & !(1 << 47), 8, 0, Exception::NP);
    refused(&es, 0x00cf_9800_0000_ffff, 8, 0, Exception::GP);
    refused(&ss, data(0), 0, 0, Exception::GP);
    refused(&ss, data(0), 11, 3, Exception::GP);
    refused(&ss, data(0) & !(1 << 41), 8, 0, Exception::GP);
    refused(&ss, data(0) & !(1 << 47), 8, 0, Exception::SS);
    let mut machine = with_gdt(CpuMode::Protected32, &ss, &[data(3)], 11);
    machine.cpl = 3;
    assert_eq!(step(&mut machine), Ok(Step::Shadow));
    assert_eq!(machine.segment(SegmentRegister::Ss).attributes.dpl(), 3);
    // MOV to CS; a null selector; real mode; from a register.
    assert_eq!(fault(&mut long(&[0x8e, 0x0b])), GuestException::UD);
    let mut machine = long(&es);
    set_word(&mut machine, DATA, 3);
    done(&mut machine, 2);
    assert!(!machine.segment(SegmentRegister::Es).attributes.present());
    let mut machine = in_mode(CpuMode::Real, &[0x8e, 0x07]);
    set_word(&mut machine, DATA, 0x1234);
    done(&mut machine, 2);
    assert_eq!(machine.segment(SegmentRegister::Es), Segment::real_mode(0x1234, 3));
    // mov [rbx], es; mov rbx, es
    let mut machine = long(&[0x48, 0x8c, 0x03, 0x48, 0x8c, 0xc3]);
    set_word(&mut machine, DATA, !0);
    done(&mut machine, 3);
    assert_eq!(word(&machine, DATA), 0xffff_ffff_ffff_0010);
    done(&mut machine, 6);
    assert_eq!(machine.gpr(Gpr::Rbx), 0x10);
    // lfs eax, [ebx]; pop ds
    let mut machine = with_gdt(CpuMode::Protected32, &[0x0f, 0xb4, 0x03, 0x1f], &[data(0)], 0);
    set_word(&mut machine, DATA, 0x8_1234_5678);
    set_word(&mut machine, STACK, 8);
    done(&mut machine, 3);
    assert_eq!(machine.gpr(Gpr::Rax), 0x1234_5678);
    assert_eq!(machine.segment(SegmentRegister::Fs).selector, 8);
    done(&mut machine, 4);
    assert_eq!(machine.gpr(Gpr::Rsp), STACK + 4);
}

#[test]
fn system_segments() {
    // ltr [rbx] with a TSS at 0xffff_8000_0010_0000.
    let tss = [0x0000_8910_0000_0067, 0xffff_8000];
    let ltr = [0x0f, 0x00, 0x1b];
    let mut machine = with_gdt(CpuMode::Long64, &ltr, &tss, 8);
    done(&mut machine, 3);
    let loaded = machine.segment(SegmentRegister::Tr);
    assert_eq!((loaded.base, loaded.attributes.kind()), (0xffff_8000_0010_0000, 11));
    assert_eq!(word(&machine, GDT + 8) >> 40 & 0xf, 11, "busy");
    machine.rip = CODE;
    let after = code_of(Exception::GP, 8);
    assert_eq!(fault(&mut machine), after, "it is busy");
    let mut machine = with_gdt(CpuMode::Long64, &ltr, &tss, 8);
    machine.cpl = 3;
    assert_eq!(fault(&mut machine), code_of(Exception::GP, 0));
    assert_eq!(fault(&mut with_gdt(CpuMode::Long64, &ltr, &tss, 0)), code_of(Exception::GP, 0));
    assert_eq!(fault(&mut with_gdt(CpuMode::Long64, &ltr, &tss[..1], 8)), after);
    // lldt [rbx]
    let lldt = [0x0f, 0x00, 0x13];
    let ldt = [0x0000_8210_0000_0067, 0];
    let mut machine = with_gdt(CpuMode::Long64, &lldt, &ldt, 8);
    done(&mut machine, 3);
    assert_eq!(machine.segment(SegmentRegister::Ldtr).base, 0x10_0000);
    assert_eq!(fault(&mut with_gdt(CpuMode::Long64, &lldt, &tss, 8)), after);
    // verr, verw, lar, lsl
    let looks: &[(&[u8], u64, u64, Option<u64>)] = &[
        (&[0x0f, 0x00, 0x23], data(0), 8, Some(7)),
        (&[0x0f, 0x00, 0x2b], data(0), 8, Some(7)),
        (&[0x0f, 0x00, 0x2b], data(0) & !(1 << 41), 8, None),
        (&[0x0f, 0x00, 0x23], data(0), 11, None),
        (&[0x0f, 0x02, 0x03], data(0), 8, Some(0xc0_9200)),
        (&[0x0f, 0x03, 0x03], data(0), 8, Some(0xffff_ffff)),
        (&[0x0f, 0x03, 0x03], data(0), 0x18, None),
    ];
    for (code, entry, selector, result) in looks {
        let mut machine = with_gdt(CpuMode::Protected32, code, &[*entry], *selector);
        machine.set_gpr(Gpr::Rax, 7);
        done(&mut machine, 3);
        assert_eq!(machine.rflags.contains(Rflags::ZF), result.is_some(), "{code:02x?}");
        assert_eq!(machine.gpr(Gpr::Rax), result.unwrap_or(7), "{code:02x?}");
    }
    // arpl [ebx], ax
    let mut machine = in_mode(CpuMode::Protected32, &[0x63, 0x03]);
    set_word(&mut machine, DATA, 0x10);
    machine.set_gpr(Gpr::Rax, 3);
    done(&mut machine, 2);
    assert_eq!((word(&machine, DATA), machine.rflags.contains(Rflags::ZF)), (0x13, true));
}
