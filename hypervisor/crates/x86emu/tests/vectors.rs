//! Moves of vectors, from the manual's descriptions.
#![expect(
    unreachable_pub,
    clippy::cast_possible_truncation,
    reason = "modules that are a library's elsewhere; tests of 64-bit hosts"
)]

#[path = "../../../../tests/fuzz/src/machine.rs"]
mod machine;

use machine::{CODE, Machine, READ_ONLY};
use x86defs::control::CpuMode;
use x86defs::{Cr0, Cr4, Exception, Gpr, Xcr0};
use x86emu::{Cpu, GuestException, Step, Stop, step};

const DATA: u64 = 0x4000;

/// The register's bytes count up from 0x40, those of memory from 0x80.
fn machine(code: &[u8]) -> Machine {
    let mut machine = Machine::new(CpuMode::Long64, code);
    machine.set_gpr(Gpr::Rbx, DATA);
    machine.set_gpr(Gpr::Rdi, DATA);
    machine.ymm[0] = core::array::from_fn(|i| 0x40 + i as u8);
    machine.ymm[1] = core::array::from_fn(|i| 0xc0 + i as u8);
    machine.mmx[0] = core::array::from_fn(|i| 0x40 + i as u8);
    for (place, byte) in (0x80..0xc0).zip(&mut machine.memory[DATA as usize..]) {
        *byte = place;
    }
    machine
}

fn done(code: &[u8]) -> Machine {
    let mut machine = machine(code);
    assert_eq!(step(&mut machine), Ok(Step::Done), "{code:02x?}");
    assert_eq!(machine.rip, CODE + code.len() as u64);
    machine
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

/// Bytes that count up.
fn from(first: u8, count: u8) -> Vec<u8> {
    (0..count).map(|i| first + i).collect()
}

/// A register after a load: these bytes, then zeros to `zeros`, then what it was.
fn register(parts: &[&[u8]], zeros: usize) -> [u8; 32] {
    let mut bytes = parts.concat();
    bytes.resize(zeros.max(bytes.len()), 0);
    let old = from(0x40, 32);
    bytes.extend(&old[bytes.len()..]);
    bytes.try_into().unwrap()
}

#[test]
fn loads() {
    let m16 = from(0x80, 16);
    let m8 = from(0x80, 8);
    let m4 = from(0x80, 4);
    let table: &[(&[u8], [u8; 32])] = &[
        (&[0x0f, 0x28, 0x03], register(&[&m16], 16)), // movaps xmm0, [rbx]
        (&[0x0f, 0x10, 0x03], register(&[&m16], 16)), // movups
        (&[0x66, 0x0f, 0x6f, 0x03], register(&[&m16], 16)), // movdqa
        (&[0xf3, 0x0f, 0x6f, 0x03], register(&[&m16], 16)), // movdqu
        (&[0xf2, 0x0f, 0xf0, 0x03], register(&[&m16], 16)), // lddqu
        (&[0x66, 0x0f, 0x38, 0x2a, 0x03], register(&[&m16], 16)), // movntdqa
        (&[0x66, 0x0f, 0x6e, 0x03], register(&[&m4], 16)), // movd
        (&[0xf3, 0x0f, 0x7e, 0x03], register(&[&m8], 16)), // movq
        (&[0x66, 0x48, 0x0f, 0x6e, 0x03], register(&[&m8], 16)), // movq with REX.W
        (&[0xf3, 0x0f, 0x10, 0x03], register(&[&m4], 16)), // movss
        (&[0xf2, 0x0f, 0x10, 0x03], register(&[&m8], 16)), // movsd
        (&[0x0f, 0x12, 0x03], register(&[&m8], 8)),   // movlps
        (&[0x0f, 0x16, 0x03], register(&[&from(0x40, 8), &m8], 16)), // movhps
        (&[0xf2, 0x0f, 0x12, 0x03], register(&[&m8, &m8], 16)), // movddup
        (&[0x66, 0x0f, 0x3a, 0x20, 0x03, 2], register(&[&[0x40, 0x41, 0x80]], 0)), // pinsrb
        (
            &[0x66, 0x0f, 0x38, 0x30, 0x03],
            register(&[&m8.iter().flat_map(|b| [*b, 0]).collect::<Vec<_>>()], 16),
        ), // pmovzxbw
        (&[0xc5, 0xf9, 0x6f, 0x03], register(&[&m16], 32)), // vmovdqa xmm0
        (&[0xc5, 0xfe, 0x6f, 0x03], register(&[&from(0x80, 32)], 32)), // vmovdqu ymm0
        (&[0xc5, 0xfa, 0x10, 0x03], register(&[&m4], 32)), // vmovss
        (&[0xc5, 0xf0, 0x12, 0x03], register(&[&m8, &from(0xc8, 8)], 32)), // vmovlps xmm0, xmm1
        (&[0xc5, 0xf0, 0x16, 0x03], register(&[&from(0xc0, 8), &m8], 32)), // vmovhps xmm0, xmm1
        (&[0xc4, 0xe2, 0x7d, 0x18, 0x03], register(&[&m4.repeat(8)], 32)), // vbroadcastss ymm0
        (&[0xc4, 0xe3, 0x75, 0x18, 0x03, 1], register(&[&from(0xc0, 16), &m16], 32)), // vinsertf128
        (&[0xc4, 0xe2, 0x75, 0x2c, 0x03], register(&[&from(0x80, 32)], 32)), // vmaskmovps
    ];
    for (code, after) in table {
        assert_eq!(done(code).ymm[0], *after, "{code:02x?}");
    }
    // movd mm0; movq mm0
    assert_eq!(done(&[0x0f, 0x6e, 0x03]).mmx[0], [0x80, 0x81, 0x82, 0x83, 0, 0, 0, 0]);
    assert_eq!(done(&[0x0f, 0x6f, 0x03]).mmx[0], *from(0x80, 8));
}

#[test]
fn stores() {
    let table: &[(&[u8], Vec<u8>)] = &[
        (&[0x0f, 0x29, 0x03], from(0x40, 16)), // movaps [rbx], xmm0
        (&[0x66, 0x0f, 0xe7, 0x03], from(0x40, 16)), // movntdq
        (&[0x0f, 0x2b, 0x03], from(0x40, 16)), // movntps
        (&[0x66, 0x0f, 0x7e, 0x03], from(0x40, 4)), // movd
        (&[0x66, 0x0f, 0xd6, 0x03], from(0x40, 8)), // movq
        (&[0xf2, 0x0f, 0x11, 0x03], from(0x40, 8)), // movsd
        (&[0x0f, 0x17, 0x03], from(0x48, 8)),  // movhps
        (&[0x0f, 0xe7, 0x03], from(0x40, 8)),  // movntq [rbx], mm0
        (&[0x0f, 0x7e, 0x03], from(0x40, 4)),  // movd [rbx], mm0
        (&[0x66, 0x0f, 0x3a, 0x16, 0x03, 3], from(0x4c, 4)), // pextrd
        (&[0xc5, 0xfd, 0x7f, 0x03], from(0x40, 32)), // vmovdqa ymm0
        (&[0xc5, 0xf9, 0x7f, 0x03], from(0x40, 16)), // vmovdqa xmm0
        (&[0xc4, 0xe3, 0x7d, 0x39, 0x03, 1], from(0x50, 16)), // vextracti128
        (&[0x66, 0x0f, 0xf7, 0xc1], from(0x40, 16)), // maskmovdqu xmm0, xmm1
    ];
    for (code, stored) in table {
        let machine = done(code);
        let mut expected = stored.clone();
        expected.extend(&from(0x80, 64)[stored.len()..]);
        assert_eq!(machine.memory[DATA as usize..][..64], *expected, "{code:02x?}");
    }
    // A mask: each second byte, of a segment with a base.
    let mut machine = machine(&[0x64, 0x66, 0x0f, 0xf7, 0xc1]);
    machine.segments[4].base = 0x1000;
    machine.ymm[1] = core::array::from_fn(|i| if i % 2 == 0 { 0x80 } else { 0x7f });
    assert_eq!(step(&mut machine), Ok(Step::Done));
    assert_eq!(machine.memory[0x5000..0x5004], [0x40, 0, 0x42, 0]);
    // stmxcsr, ldmxcsr
    let machine = done(&[0x0f, 0xae, 0x1b]);
    assert_eq!(machine.memory[DATA as usize..][..5], [0x80, 0x1f, 0, 0, 0x84]);
    let mut reserved = self::machine(&[0x0f, 0xae, 0x13]);
    assert_eq!(fault(&mut reserved).exception, Exception::GP);
    reserved.memory[DATA as usize..][..4].copy_from_slice(&[0xc0, 0x7f, 0, 0]);
    assert_eq!(step(&mut reserved), Ok(Step::Done));
    assert_eq!(reserved.mxcsr, [0xc0, 0x7f, 0, 0]);
}

#[test]
fn refusals() {
    let movaps = [0x0f, 0x28, 0x03];
    let movq = [0x0f, 0x6f, 0x03];
    let vmovaps = [0xc5, 0xfc, 0x28, 0x03];
    let with = |code: &[u8], change: &dyn Fn(&mut Machine)| {
        let mut machine = machine(code);
        change(&mut machine);
        fault(&mut machine).exception
    };
    for code in [&movaps[..], &movq] {
        assert_eq!(with(code, &|m| m.cr0 |= Cr0::EM | Cr0::TS), Exception::UD);
        assert_eq!(with(code, &|m| m.cr0 |= Cr0::TS), Exception::NM);
    }
    assert_eq!(with(&movaps, &|m| m.cr4.remove(Cr4::OSFXSR)), Exception::UD);
    assert_eq!(with(&movq, &|m| m.x87_waits = true), Exception::MF);
    assert_eq!(with(&[0x0f, 0x7f, 0x03], &|m| m.x87_waits = true), Exception::MF);
    assert_eq!(with(&vmovaps, &|m| m.cr4.remove(Cr4::OSXSAVE)), Exception::UD);
    assert_eq!(with(&vmovaps, &|m| m.xcr0.remove(Xcr0::AVX)), Exception::UD);
    assert_eq!(with(&vmovaps, &|m| m.cr0 |= Cr0::TS), Exception::NM);
    // Alignment, of what asks for it.
    let beside = |m: &mut Machine| m.set_gpr(Gpr::Rbx, DATA + 8);
    assert_eq!(with(&movaps, &beside), Exception::GP);
    assert_eq!(with(&[0xf3, 0x0f, 0x12, 0x03], &beside), Exception::GP, "MOVSLDUP");
    assert_eq!(with(&vmovaps, &|m| m.set_gpr(Gpr::Rbx, DATA + 16)), Exception::GP);
    for code in [&[0x0f, 0x10, 0x03][..], &[0xc5, 0xfa, 0x12, 0x03], &movq] {
        let mut machine = machine(code);
        machine.alignment_check = code == movq;
        machine.set_gpr(Gpr::Rbx, if code == movq { DATA } else { DATA + 8 });
        assert_eq!(step(&mut machine), Ok(Step::Done), "{code:02x?}");
    }
    // A store that is not allowed leaves the x87 as it was.
    let read_only = |m: &mut Machine| m.set_gpr(Gpr::Rbx, READ_ONLY);
    assert_eq!(with(&[0x0f, 0x7f, 0x03], &read_only), Exception::PF);
    // VEX without vvvv's ones, and in real mode.
    assert_eq!(with(&[0xc5, 0xe9, 0x6f, 0x03], &|_| ()), Exception::UD);
    let mut real = Machine::new(CpuMode::Real, &[0xc5, 0xf9, 0x6f, 0x07]);
    assert_eq!(fault(&mut real).exception, Exception::UD);
}
