//! Each form of each instruction: registers, flags and memory before and after,
//! from the manual's descriptions.
#![expect(
    unreachable_pub,
    clippy::cast_possible_truncation,
    reason = "modules that are a library's elsewhere; tests of 64-bit hosts"
)]

#[path = "../../../../tests/fuzz/src/machine.rs"]
mod machine;

use machine::{ABSENT, CODE, Machine, READ_ONLY};
use x86defs::control::CpuMode;
use x86defs::{Exception, Gpr, Rflags, SegmentRegister, Width};
use x86emu::{Cpu, GuestException, Ports, Step, Stop, step, string_io};

const DATA: u64 = 0x4000;

/// A machine in 64-bit mode whose RBX points to data.
fn long(code: &[u8]) -> Machine {
    let mut machine = Machine::new(CpuMode::Long64, code);
    machine.set_gpr(Gpr::Rbx, DATA);
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

/// RAX and the eight bytes at RBX after one instruction.
fn becomes(code: &[u8], rax: u64, memory: u64) -> (u64, u64) {
    let mut machine = long(code);
    machine.set_gpr(Gpr::Rax, rax);
    set_word(&mut machine, DATA, memory);
    done(&mut machine, code.len());
    (machine.gpr(Gpr::Rax), word(&machine, DATA))
}

const A: u64 = 0x1122_3344_5566_7788;
const M: u64 = 0x99aa_bbcc_ddee_ff80;

#[test]
fn moves() {
    let table: &[(&[u8], u64, u64)] = &[
        (&[0x88, 0x03], A, 0x99aa_bbcc_ddee_ff88), // mov [rbx], al
        (&[0x88, 0x23], A, 0x99aa_bbcc_ddee_ff77), // mov [rbx], ah
        (&[0x66, 0x89, 0x03], A, 0x99aa_bbcc_ddee_7788), // mov [rbx], ax
        (&[0x89, 0x03], A, 0x99aa_bbcc_5566_7788), // mov [rbx], eax
        (&[0x48, 0x89, 0x03], A, A),               // mov [rbx], rax
        (&[0x8a, 0x03], 0x1122_3344_5566_7780, M), // mov al, [rbx]
        (&[0x8a, 0x23], 0x1122_3344_5566_8088, M), // mov ah, [rbx]
        (&[0x66, 0x8b, 0x03], 0x1122_3344_5566_ff80, M), // mov ax, [rbx]
        (&[0x8b, 0x03], 0xddee_ff80, M),           // mov eax, [rbx]
        (&[0x48, 0x8b, 0x03], M, M),               // mov rax, [rbx]
        (&[0xc6, 0x03, 0x5a], A, 0x99aa_bbcc_ddee_ff5a), // mov byte [rbx], 5a
        (&[0x66, 0xc7, 0x03, 1, 2], A, 0x99aa_bbcc_ddee_0201), // mov word
        (&[0xc7, 0x03, 1, 2, 3, 4], A, 0x99aa_bbcc_0403_0201), // mov dword
        (&[0x48, 0xc7, 0x03, 1, 2, 3, 0x84], A, 0xffff_ffff_8403_0201), // mov qword, imm32
        (&[0x0f, 0xb6, 0x03], 0x80, M),            // movzx eax, byte
        (&[0x0f, 0xb7, 0x03], 0xff80, M),          // movzx eax, word
        (&[0x66, 0x0f, 0xb6, 0x03], 0x1122_3344_5566_0080, M), // movzx ax, byte
        (&[0x0f, 0xbe, 0x03], 0xffff_ff80, M),     // movsx eax, byte
        (&[0x48, 0x0f, 0xbf, 0x03], 0xffff_ffff_ffff_ff80, M), // movsx rax, word
        (&[0x48, 0x63, 0x03], 0xffff_ffff_ddee_ff80, M), // movsxd rax, dword
        (&[0x0f, 0xc3, 0x03], A, 0x99aa_bbcc_5566_7788), // movnti [rbx], eax
        (&[0x0f, 0x38, 0xf0, 0x03], 0x80ff_eedd, M), // movbe eax, [rbx]
        (&[0x66, 0x0f, 0x38, 0xf1, 0x03], A, 0x99aa_bbcc_ddee_8877), // movbe [rbx], ax
        (&[0xa1, 0, 0x40, 0, 0, 0, 0, 0, 0], 0xddee_ff80, M), // mov eax, [moffs64]
        (&[0x67, 0xa1, 0, 0x40, 0, 0], 0xddee_ff80, M), // mov eax, [moffs32]
        (&[0xa2, 0, 0x40, 0, 0, 0, 0, 0, 0], A, 0x99aa_bbcc_ddee_ff88), // mov [moffs64], al
        (&[0x48, 0xa3, 0, 0x40, 0, 0, 0, 0, 0, 0], A, A), // mov [moffs64], rax
        (&[0x8b, 0x04, 0x25, 0, 0x40, 0, 0], 0xddee_ff80, M), // mov eax, [4000h]
        (&[0x8b, 0x05, 0xfa, 0x2f, 0, 0], 0xddee_ff80, M), // mov eax, [rip + 2ffah]
        (&[0xc7, 0x05, 0xf6, 0x2f, 0, 0, 1, 0, 0, 0], A, 0x99aa_bbcc_0000_0001),
        (&[0x0f, 0x44, 0x03], 0x5566_7788, M), // cmove eax, [rbx], ZF = 0
        (&[0x0f, 0x45, 0x03], 0xddee_ff80, M), // cmovne
        (&[0x0f, 0x95, 0x03], A, 0x99aa_bbcc_ddee_ff01), // setne [rbx]
        (&[0x0f, 0xae, 0x3b], A, M),           // clflush
    ];
    for (code, rax, memory) in table {
        assert_eq!(becomes(code, A, M), (*rax, *memory), "{code:02x?}");
    }
}

#[test]
fn arithmetic() {
    let table: &[(&[u8], u64, u64)] = &[
        (&[0x01, 0x03], A, 0x99aa_bbcc_3355_7708), // add [rbx], eax
        (&[0x03, 0x03], 0x3355_7708, M),           // add eax, [rbx]
        (&[0x83, 0x0b, 0x01], A, 0x99aa_bbcc_ddee_ff81), // or dword [rbx], 1
        (&[0x48, 0x83, 0x23, 0xf0], A, M),         // and qword [rbx], -16
        (&[0x80, 0x33, 0xff], A, 0x99aa_bbcc_ddee_ff7f), // xor byte [rbx], ff
        (&[0x66, 0x81, 0x2b, 0x80, 0xff], A, 0x99aa_bbcc_ddee_0000), // sub word
        (&[0x83, 0x13, 0x00], A, 0x99aa_bbcc_ddee_ff81), // adc dword, 0 with CF = 1
        (&[0x83, 0x1b, 0x00], A, 0x99aa_bbcc_ddee_ff7f), // sbb
        (&[0xf7, 0x13], A, 0x99aa_bbcc_2211_007f), // not dword
        (&[0xf6, 0x1b], A, M),                     // neg byte 80
        (&[0xff, 0x03], A, 0x99aa_bbcc_ddee_ff81), // inc dword
        (&[0x48, 0xff, 0x0b], A, 0x99aa_bbcc_ddee_ff7f), // dec qword
        (&[0xc1, 0x23, 0x04], A, 0x99aa_bbcc_deef_f800), // shl dword, 4
        (&[0xd1, 0x2b], A, 0x99aa_bbcc_6ef7_7fc0), // shr dword, 1
        (&[0xd1, 0x3b], A, 0x99aa_bbcc_eef7_7fc0), // sar dword, 1
        (&[0xc0, 0x03, 0x01], A, 0x99aa_bbcc_ddee_ff01), // rol byte, 1
        (&[0x48, 0xc1, 0x0b, 0x08], A, 0x8099_aabb_ccdd_eeff), // ror qword, 8
        (&[0x3b, 0x03], A, M),                     // cmp eax, [rbx]
        (&[0x85, 0x03], A, M),                     // test [rbx], eax
        (&[0x87, 0x03], 0xddee_ff80, 0x99aa_bbcc_5566_7788), // xchg [rbx], eax
        (&[0xf0, 0x0f, 0xc1, 0x03], 0xddee_ff80, 0x99aa_bbcc_3355_7708), // lock xadd
        (&[0xf0, 0x48, 0x01, 0x03], A, M.wrapping_add(A)), // lock add
        (&[0x0f, 0xba, 0x2b, 0x00], A, 0x99aa_bbcc_ddee_ff81), // bts dword, 0
        (&[0x0f, 0xba, 0x33, 0x27], A, 0x99aa_bbcc_ddee_ff00), // btr dword, 39 mod 32
        (&[0xf0, 0x0f, 0xba, 0x3b, 0x01], A, 0x99aa_bbcc_ddee_ff82), // lock btc
    ];
    for (code, rax, memory) in table {
        let mut machine = long(code);
        machine.rflags |= Rflags::CF;
        machine.set_gpr(Gpr::Rax, A);
        set_word(&mut machine, DATA, M);
        done(&mut machine, code.len());
        assert_eq!((machine.gpr(Gpr::Rax), word(&machine, DATA)), (*rax, *memory), "{code:02x?}");
    }
}

#[test]
fn flags_come_out() {
    // cmp dword [rbx], 1 of 0: borrow, sign, parity of ff, adjust.
    let mut machine = long(&[0x83, 0x3b, 0x01]);
    machine.rflags |= Rflags::RF | Rflags::IF | Rflags::OF;
    done(&mut machine, 3);
    let expected = Rflags::CF | Rflags::SF | Rflags::PF | Rflags::AF;
    assert_eq!(machine.rflags, expected | Rflags::IF | Rflags::RESERVED1, "RF ends, IF stays");
    // test byte [rbx], 0
    let mut machine = long(&[0xf6, 0x03, 0x00]);
    machine.rflags |= Rflags::CF | Rflags::OF | Rflags::AF;
    done(&mut machine, 3);
    assert_eq!(machine.rflags, Rflags::ZF | Rflags::PF | Rflags::RESERVED1);
}

#[test]
fn compare_exchange() {
    // lock cmpxchg [rbx], ecx
    let code = [0xf0, 0x0f, 0xb1, 0x0b];
    let mut machine = long(&code);
    machine.set_gpr(Gpr::Rax, A & !0xffff_ffff | 0x1234);
    machine.set_gpr(Gpr::Rcx, 0x5678);
    set_word(&mut machine, DATA, 0x1234);
    done(&mut machine, 4);
    assert_eq!(word(&machine, DATA), 0x5678);
    assert!(machine.rflags.contains(Rflags::ZF));
    let mut machine = long(&code);
    machine.set_gpr(Gpr::Rax, A);
    set_word(&mut machine, DATA, 0x1234);
    done(&mut machine, 4);
    assert_eq!((machine.gpr(Gpr::Rax), word(&machine, DATA)), (0x1234, 0x1234));
    assert!(!machine.rflags.contains(Rflags::ZF));
    // It always writes.
    let mut machine = long(&code);
    machine.set_gpr(Gpr::Rbx, READ_ONLY);
    assert_eq!(fault(&mut machine), GuestException::page_fault(READ_ONLY, 3));

    // lock cmpxchg8b [rbx], cmpxchg16b [rbx]
    let mut machine = long(&[0xf0, 0x0f, 0xc7, 0x0b]);
    set_word(&mut machine, DATA, 0x0000_0002_0000_0001);
    machine.set_gpr(Gpr::Rax, 1);
    machine.set_gpr(Gpr::Rdx, 2);
    machine.set_gpr(Gpr::Rcx, 3);
    done(&mut machine, 4);
    assert_eq!(word(&machine, DATA), 0x0000_0003_0000_4000);
    assert!(machine.rflags.contains(Rflags::ZF));
    let mut machine = long(&[0x48, 0x0f, 0xc7, 0x0b]);
    set_word(&mut machine, DATA, 7);
    set_word(&mut machine, DATA + 8, 8);
    done(&mut machine, 4);
    assert_eq!((machine.gpr(Gpr::Rax), machine.gpr(Gpr::Rdx)), (7, 8));
    assert!(!machine.rflags.contains(Rflags::ZF));
    let mut machine = long(&[0x48, 0x0f, 0xc7, 0x0b]);
    machine.set_gpr(Gpr::Rbx, DATA + 8);
    assert_eq!(fault(&mut machine).exception, Exception::GP);
}

#[test]
fn locks() {
    // Another vCPU gets there first thrice: its changes are not lost.
    let mut machine = long(&[0xf0, 0x83, 0x03, 0x10]);
    machine.contention = 3;
    done(&mut machine, 4);
    assert_eq!(word(&machine, DATA), 0x13);
    // For ever: the guest has to try again.
    let mut machine = long(&[0xf0, 0x83, 0x03, 0x10]);
    machine.contention = 1000;
    assert_eq!(step(&mut machine), Ok(Step::Again));
    assert_eq!(machine.rip, CODE);
    // Instructions that LOCK is not allowed for.
    for code in
        [&[0xf0, 0x89, 0x03][..], &[0xf0, 0x3b, 0x03], &[0xf0, 0x83, 0x3b, 0], &[0xf0, 0x01, 0xd8]]
    {
        assert_eq!(fault(&mut long(code)), GuestException::UD, "{code:02x?}");
    }
}

#[test]
fn bit_offsets_reach_beyond_the_operand() {
    // bts [rbx], ecx with bit 100: dword 3, bit 4.
    let mut machine = long(&[0x0f, 0xab, 0x0b]);
    machine.set_gpr(Gpr::Rcx, 100);
    done(&mut machine, 3);
    assert_eq!(machine.memory[DATA as usize + 12], 0x10);
    // Bit -1: the dword before, its top bit.
    let mut machine = long(&[0x0f, 0xab, 0x0b]);
    machine.set_gpr(Gpr::Rcx, 0xffff_ffff);
    done(&mut machine, 3);
    assert_eq!(machine.memory[DATA as usize - 1], 0x80);
    assert!(!machine.rflags.contains(Rflags::CF));
    // bt word [rbx], cx with bit -16: the word before.
    let mut machine = long(&[0x66, 0x0f, 0xa3, 0x0b]);
    machine.set_gpr(Gpr::Rcx, 0xfff0);
    machine.memory[DATA as usize - 2] = 1;
    done(&mut machine, 4);
    assert!(machine.rflags.contains(Rflags::CF));
}

#[test]
fn stack() {
    // push qword [rbx]; pop qword [rsp + 8] uses RSP as it is after the pop.
    let mut machine = long(&[0xff, 0x33, 0x8f, 0x44, 0x24, 0x08]);
    machine.set_gpr(Gpr::Rsp, 0x6000);
    set_word(&mut machine, DATA, A);
    done(&mut machine, 2);
    assert_eq!((machine.gpr(Gpr::Rsp), word(&machine, 0x5ff8)), (0x5ff8, A));
    done(&mut machine, 6);
    assert_eq!((machine.gpr(Gpr::Rsp), word(&machine, 0x6008)), (0x6000, A));
    // A pop that faults leaves RSP.
    let mut machine = long(&[0x8f, 0x03]);
    machine.set_gpr(Gpr::Rsp, 0x6000);
    machine.set_gpr(Gpr::Rbx, ABSENT);
    assert_eq!(fault(&mut machine), GuestException::page_fault(ABSENT, 2));
}

#[test]
fn strings() {
    // rep movsb
    let mut machine = long(&[0xf3, 0xa4]);
    machine.set_gpr(Gpr::Rsi, 0x2000);
    machine.set_gpr(Gpr::Rdi, 0x3000);
    machine.set_gpr(Gpr::Rcx, 3);
    machine.memory[0x2000..0x2004].copy_from_slice(b"abcd");
    done(&mut machine, 2);
    assert_eq!(&machine.memory[0x3000..0x3004], b"abc\0");
    assert_eq!([Gpr::Rsi, Gpr::Rdi, Gpr::Rcx].map(|gpr| machine.gpr(gpr)), [0x2003, 0x3003, 0]);
    // rep stosd backwards
    let mut machine = long(&[0xf3, 0xab]);
    machine.rflags |= Rflags::DF;
    machine.set_gpr(Gpr::Rdi, 0x3004);
    machine.set_gpr(Gpr::Rcx, 2);
    machine.set_gpr(Gpr::Rax, A);
    done(&mut machine, 2);
    assert_eq!((word(&machine, 0x3000), machine.gpr(Gpr::Rdi)), (0x5566_7788_5566_7788, 0x2ffc));
    // Count zero: nothing is touched, not even an absent page.
    let mut machine = long(&[0xf3, 0xab]);
    machine.set_gpr(Gpr::Rdi, ABSENT);
    done(&mut machine, 2);
    assert_eq!(machine.accesses, 0);
    // repne scasb: to the first zero.
    let mut machine = long(&[0xf2, 0xae]);
    machine.memory[0x3000..0x3003].copy_from_slice(b"abc");
    machine.set_gpr(Gpr::Rdi, 0x3000);
    machine.set_gpr(Gpr::Rcx, u64::MAX);
    done(&mut machine, 2);
    assert_eq!((machine.gpr(Gpr::Rdi), !machine.gpr(Gpr::Rcx)), (0x3004, 4));
    assert!(machine.rflags.contains(Rflags::ZF));
    // repe cmpsw: to the first difference.
    let mut machine = long(&[0xf3, 0x66, 0xa7]);
    machine.set_gpr(Gpr::Rsi, 0x2000);
    machine.set_gpr(Gpr::Rdi, 0x3000);
    machine.set_gpr(Gpr::Rcx, 10);
    machine.memory[0x2002] = 5;
    done(&mut machine, 3);
    assert_eq!(machine.gpr(Gpr::Rcx), 8);
    assert!(!machine.rflags.intersects(Rflags::ZF | Rflags::CF));
    // lodsq with GS; addr32 stosb clears the upper half of RDI.
    let mut machine = long(&[0x65, 0x48, 0xad]);
    machine.segments[SegmentRegister::Gs as usize].base = 0x2000;
    machine.set_gpr(Gpr::Rsi, 8);
    set_word(&mut machine, 0x2008, M);
    done(&mut machine, 3);
    assert_eq!(machine.gpr(Gpr::Rax), M);
    let mut machine = long(&[0x67, 0xaa]);
    machine.set_gpr(Gpr::Rdi, 0xffff_ffff_0000_3000);
    done(&mut machine, 2);
    assert_eq!(machine.gpr(Gpr::Rdi), 0x3001);
}

#[test]
fn repeats_stop_and_go_on() {
    let mut machine = long(&[0xf3, 0xaa]);
    machine.set_gpr(Gpr::Rdi, 0x8000);
    machine.set_gpr(Gpr::Rcx, 600);
    machine.set_gpr(Gpr::Rax, 0xee);
    let mut calls = 1;
    while step(&mut machine) == Ok(Step::Again) {
        assert_eq!(machine.gpr(Gpr::Rdi) + machine.gpr(Gpr::Rcx), 0x8000 + 600);
        calls += 1;
    }
    assert_eq!((calls, machine.rip, machine.gpr(Gpr::Rcx)), (3, CODE + 2, 0));
    assert!(machine.memory[0x8000..0x8000 + 600].iter().all(|byte| *byte == 0xee));
    // A fault in the middle: what came before it is done.
    let mut machine = long(&[0xf3, 0xaa]);
    machine.set_gpr(Gpr::Rdi, READ_ONLY - 2);
    machine.set_gpr(Gpr::Rcx, 5);
    let expected = Stop::Exception(GuestException::page_fault(READ_ONLY, 3));
    assert_eq!(step(&mut machine), Err(expected));
    assert_eq!((machine.gpr(Gpr::Rcx), machine.gpr(Gpr::Rdi), machine.rip), (3, READ_ONLY, CODE));
    // MOVS to where it may not write does not read: a device would notice.
    let mut machine = long(&[0xa4]);
    machine.set_gpr(Gpr::Rdi, READ_ONLY);
    fault(&mut machine);
    assert!(step(&mut machine).is_err());
    assert_eq!(machine.accesses, 0);
}

#[test]
fn faults() {
    // A write over a page's end: nothing is written.
    let mut machine = long(&[0x48, 0x89, 0x03]);
    machine.set_gpr(Gpr::Rbx, READ_ONLY - 4);
    machine.set_gpr(Gpr::Rax, u64::MAX);
    assert_eq!(fault(&mut machine), GuestException::page_fault(READ_ONLY, 3));
    // Not canonical: #GP, or #SS by RBP.
    let mut machine = long(&[0x8b, 0x03]);
    machine.set_gpr(Gpr::Rbx, 1 << 47);
    assert_eq!(
        fault(&mut machine),
        GuestException { exception: Exception::GP, error_code: Some(0), address: None }
    );
    let mut machine = long(&[0x8b, 0x45, 0x00]);
    machine.set_gpr(Gpr::Rbp, 0x7fff_ffff_fffe);
    assert_eq!(fault(&mut machine).exception, Exception::SS);
    // Alignment.
    let mut machine = long(&[0x8b, 0x43, 0x02]);
    machine.alignment_check = true;
    assert_eq!(fault(&mut machine).exception, Exception::AC);
    // An instruction that runs into an absent page.
    let mut machine = long(&[]);
    machine.rip = ABSENT - 2;
    machine.memory[ABSENT as usize - 2..][..2].copy_from_slice(&[0xc7, 0x03]);
    assert_eq!(fault(&mut machine), GuestException::page_fault(ABSENT, 0));
    // More than 15 bytes; no instruction at all.
    assert_eq!(fault(&mut long(&[0x66; 20])).exception, Exception::GP);
    assert_eq!(fault(&mut long(&[0x0f, 0x04])), GuestException::UD);
    assert_eq!(fault(&mut long(&[0x0f, 0x0b])), GuestException::UD, "UD2");
}

#[test]
fn segments() {
    // mov eax, [ebx]; mov [ebx], eax; mov eax, [ebp]
    let (read, write, stack) = ([0x8b, 0x03], [0x89, 0x03], [0x8b, 0x45, 0x00]);
    let machine = |code: &[u8]| {
        let mut machine = Machine::new(CpuMode::Protected32, code);
        machine.set_gpr(Gpr::Rbx, 0x100);
        machine.set_gpr(Gpr::Rbp, 0x100);
        for register in [SegmentRegister::Ds, SegmentRegister::Ss] {
            machine.segments[register as usize].base = DATA - 0x100;
        }
        machine
    };
    let with = |code: &[u8], change: &dyn Fn(&mut x86defs::Segment)| {
        let mut machine = machine(code);
        for register in [SegmentRegister::Ds, SegmentRegister::Ss] {
            change(&mut machine.segments[register as usize]);
        }
        machine
    };
    let mut plain = machine(&read);
    set_word(&mut plain, DATA, M);
    done(&mut plain, 2);
    assert_eq!(plain.gpr(Gpr::Rax), 0xddee_ff80);
    let gp = GuestException { exception: Exception::GP, error_code: Some(0), address: None };
    let ss = GuestException { exception: Exception::SS, ..gp };
    // Limits: the last byte counts.
    done(&mut with(&read, &|s| s.limit = 0x103), 2);
    assert_eq!(fault(&mut with(&read, &|s| s.limit = 0x102)), gp);
    assert_eq!(fault(&mut with(&stack, &|s| s.limit = 0x102)), ss);
    // Expand-down: above the limit only.
    let down = |s: &mut x86defs::Segment| s.attributes.set_kind(7);
    assert_eq!(
        fault(&mut with(&read, &|s| {
            down(s);
            s.limit = 0x100;
        })),
        gp
    );
    done(
        &mut with(&read, &|s| {
            down(s);
            s.limit = 0xff;
        }),
        2,
    );
    // Rights.
    assert_eq!(fault(&mut with(&read, &|s| s.attributes.set_present(false))), gp);
    done(&mut with(&read, &|s| s.attributes.set_kind(1)), 2);
    assert_eq!(fault(&mut with(&write, &|s| s.attributes.set_kind(1))), gp);
    assert_eq!(fault(&mut with(&read, &|s| s.attributes.set_kind(9))), gp);
    done(&mut with(&read, &|s| s.attributes.set_kind(11)), 2);
    assert_eq!(fault(&mut with(&write, &|s| s.attributes.set_kind(11))), gp);
    // 32-bit addresses wrap.
    let mut wrapped = machine(&read);
    wrapped.set_gpr(Gpr::Rbx, 0xffff_0000);
    wrapped.segments[SegmentRegister::Ds as usize].base = 0x1_4000;
    set_word(&mut wrapped, DATA, M);
    done(&mut wrapped, 2);
    assert_eq!(wrapped.gpr(Gpr::Rax), 0xddee_ff80);
    // Real mode: mov ax, [bx + si + 2]; no error code at the limit.
    let mut real = Machine::new(CpuMode::Real, &[0x8b, 0x40, 0x02]);
    real.segments[SegmentRegister::Ds as usize].base = 0x3000;
    real.set_gpr(Gpr::Rbx, 0xf800);
    real.set_gpr(Gpr::Rsi, 0x17fe);
    set_word(&mut real, DATA, M);
    done(&mut real, 3);
    assert_eq!(real.gpr(Gpr::Rax), 0xff80);
    let mut real = Machine::new(CpuMode::Real, &[0x8b, 0x07]);
    real.set_gpr(Gpr::Rbx, 0xffff);
    assert_eq!(fault(&mut real).error_code, None);
    // In 64-bit mode DS has no base and an override by ES means nothing.
    let mut flat = long(&[0x26, 0x8b, 0x03]);
    flat.segments[SegmentRegister::Es as usize].base = 0x1000;
    set_word(&mut flat, DATA, M);
    done(&mut flat, 3);
    assert_eq!(flat.gpr(Gpr::Rax), 0xddee_ff80);
}

#[test]
fn what_it_does_not_do() {
    for (code, name) in [
        (&[0x0f, 0x58, 0x03][..], "Addps (0f 58 03)"),
        (&[0xc5, 0xf8, 0x58, 0x03], "Vaddps (c5 f8 58 03)"),
        (&[0xff, 0x1b], "Call (ff 1b)"),
        (&[0xd9, 0x03], "Fld (d9 03)"),
        (&[0x6c], "Insb (6c)"),
    ] {
        match step(&mut long(code)) {
            Err(Stop::Unsupported(unsupported)) => assert_eq!(unsupported.to_string(), name),
            other => panic!("{other:?}"),
        }
    }
    // An EVEX prefix.
    let evex = [0x62, 0xf1, 0x7d, 0x48, 0x7f, 0x03];
    assert!(matches!(step(&mut long(&evex)), Err(Stop::Unsupported(_))));
}

/// Ports that count up, and note what they are given.
#[derive(Default)]
struct Counter(Vec<(u16, Width, u32)>);

impl Ports for Counter {
    type Error = ();

    fn port_in(&mut self, port: u16, width: Width) -> Result<u32, ()> {
        self.0.push((port, width, 0));
        Ok(self.0.len() as u32)
    }

    fn port_out(&mut self, port: u16, width: Width, value: u32) -> Result<(), ()> {
        self.0.push((port, width, value));
        Ok(())
    }
}

#[test]
fn string_ports() {
    let mut ports = Counter::default();
    // rep insw
    let mut machine = long(&[0xf3, 0x66, 0x6d]);
    machine.set_gpr(Gpr::Rdx, 0xffff_01f0);
    machine.set_gpr(Gpr::Rdi, 0x3000);
    machine.set_gpr(Gpr::Rcx, 2);
    assert_eq!(string_io(&mut machine, &mut ports), Ok(Step::Done));
    assert_eq!((word(&machine, 0x3000), machine.gpr(Gpr::Rdi)), (0x0002_0001, 0x3004));
    assert_eq!(ports.0, [(0x1f0, Width::B2, 0); 2]);
    assert_eq!(machine.rip, CODE + 3);
    // INS to where it may not write does not read the port.
    let mut machine = long(&[0x6c]);
    machine.set_gpr(Gpr::Rdi, READ_ONLY);
    let mut ports = Counter::default();
    assert!(string_io(&mut machine, &mut ports).is_err());
    assert!(ports.0.is_empty());
    // rep outsb with FS
    let mut machine = long(&[0x64, 0xf3, 0x6e]);
    machine.segments[SegmentRegister::Fs as usize].base = 0x2000;
    machine.set_gpr(Gpr::Rsi, 4);
    machine.set_gpr(Gpr::Rcx, 2);
    machine.set_gpr(Gpr::Rdx, 0x3f8);
    machine.memory[0x2004..0x2006].copy_from_slice(b"hi");
    assert_eq!(string_io(&mut machine, &mut ports), Ok(Step::Done));
    assert_eq!(ports.0, [(0x3f8, Width::B1, 0x68), (0x3f8, Width::B1, 0x69)]);
    // Something else stands there by now.
    for code in [[0x90, 0], [0x89, 0x03]] {
        let mut machine = long(&code);
        assert_eq!(string_io(&mut machine, &mut ports), Ok(Step::Again));
        assert_eq!((machine.rip, machine.accesses), (CODE, 0));
    }
}
