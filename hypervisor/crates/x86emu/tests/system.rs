//! Intercepted instructions: encodings from the manuals' opcode maps.
#![expect(
    unreachable_pub,
    clippy::cast_possible_truncation,
    reason = "modules that are a library's elsewhere; tests of 64-bit hosts"
)]

#[path = "../../../../tests/fuzz/src/machine.rs"]
mod machine;

use machine::{ABSENT, CODE, Machine};
use x86defs::control::CpuMode;
use x86defs::exit::{CacheControl, CrAccess, Direction, DrAccess, PortIo, StringIo};
use x86defs::{Gpr, SegmentRegister, VmExit, Width};
use x86emu::{
    Cpu, Fault, GuestException, MemoryOperand, Operand, Register, SkipError, SystemInstruction,
    SystemOp, instruction_length, read_operand, skip, warm_up,
};

fn skipped(mode: CpuMode, code: &[u8], exit: VmExit) -> Option<SystemOp> {
    let mut machine = Machine::new(mode, code);
    match skip(&mut machine, &exit) {
        Ok(SystemInstruction { length, op }) => {
            assert_eq!(usize::from(length), code.len(), "{code:02x?}");
            assert_eq!(machine.rip, CODE);
            Some(op)
        }
        Err(SkipError::Mismatch) => None,
        Err(other) => panic!("{other:?}"),
    }
}

fn port(direction: Direction, width: Width) -> VmExit {
    VmExit::PortIo(PortIo { port: 0x3f8, width, direction, string: None })
}

#[test]
fn without_operands() {
    let table: &[(&[u8], VmExit, SystemOp)] = &[
        (&[0x0f, 0xa2], VmExit::Cpuid, SystemOp::Cpuid),
        (&[0x66, 0x48, 0x0f, 0xa2], VmExit::Cpuid, SystemOp::Cpuid),
        (&[0x0f, 0x32], VmExit::ReadMsr, SystemOp::ReadMsr),
        (&[0x0f, 0x30], VmExit::WriteMsr, SystemOp::WriteMsr),
        (&[0x0f, 0x01, 0xc1], VmExit::Hypercall, SystemOp::Hypercall),
        (&[0x0f, 0x01, 0xd9], VmExit::Hypercall, SystemOp::Hypercall),
        (&[0xf4], VmExit::Halt, SystemOp::Halt),
        (&[0xf3, 0x90], VmExit::Pause, SystemOp::Pause),
        (&[0x0f, 0x01, 0xd1], VmExit::Xsetbv, SystemOp::Xsetbv),
        (&[0x0f, 0x08], VmExit::CacheControl(CacheControl::Invd), SystemOp::Invd),
        (&[0x0f, 0x09], VmExit::CacheControl(CacheControl::Wbinvd), SystemOp::Wbinvd),
        (&[0xf3, 0x0f, 0x09], VmExit::CacheControl(CacheControl::Wbinvd), SystemOp::Wbinvd),
        (&[0x0f, 0x06], VmExit::CrAccess(CrAccess::Clts), SystemOp::Clts),
    ];
    assert!(warm_up());
    for (code, exit, op) in table {
        assert_eq!(skipped(CpuMode::Long64, code, *exit), Some(*op), "{code:02x?}");
        assert_eq!(
            instruction_length(code, CpuMode::Long64),
            Some(code.len() as u8),
            "{code:02x?}"
        );
        // No other exit of the table takes it for its own.
        for (_, other, theirs) in table {
            if theirs != op {
                // One emulator reports INVD as WBINVD.
                let both =
                    (*op, *other) == (SystemOp::Invd, VmExit::CacheControl(CacheControl::Wbinvd));
                let wanted = both.then_some(*op);
                assert_eq!(skipped(CpuMode::Long64, code, *other), wanted, "{code:02x?} {other:?}");
            }
        }
    }
    // NOP is no PAUSE, and nothing is what it is with a LOCK prefix.
    assert_eq!(skipped(CpuMode::Long64, &[0x90], VmExit::Pause), None);
    assert_eq!(skipped(CpuMode::Long64, &[0xf0, 0x0f, 0xa2], VmExit::Cpuid), None);
}

#[test]
fn ports() {
    let expect = |mode, code: &[u8], direction, width| {
        assert_eq!(
            skipped(mode, code, port(direction, width)),
            Some(SystemOp::Port { direction, width }),
            "{code:02x?}"
        );
    };
    use Direction::{In, Out};
    expect(CpuMode::Long64, &[0xe4, 0x60], In, Width::B1);
    expect(CpuMode::Long64, &[0xe5, 0x60], In, Width::B4);
    expect(CpuMode::Long64, &[0xe6, 0x80], Out, Width::B1);
    expect(CpuMode::Long64, &[0xec], In, Width::B1);
    expect(CpuMode::Long64, &[0x66, 0xed], In, Width::B2);
    expect(CpuMode::Long64, &[0x48, 0xed], In, Width::B4);
    expect(CpuMode::Long64, &[0xef], Out, Width::B4);
    expect(CpuMode::Real, &[0xef], Out, Width::B2);
    expect(CpuMode::Real, &[0x66, 0xef], Out, Width::B4);
    assert_eq!(skipped(CpuMode::Long64, &[0xec], port(Out, Width::B1)), None);
    assert_eq!(skipped(CpuMode::Long64, &[0xec], port(In, Width::B4)), None);
    let string = |direction, width| {
        let string = StringIo { rep: true, address_width: Some(Width::B8), segment: None };
        VmExit::PortIo(PortIo { port: 1, width, direction, string: Some(string) })
    };
    assert_eq!(skipped(CpuMode::Long64, &[0xf3, 0x6f], string(Out, Width::B4)), None);
    assert_eq!(skipped(CpuMode::Long64, &[0xef], string(Out, Width::B4)), None);
}

#[test]
fn control_and_debug_registers() {
    let read = |cr| VmExit::CrAccess(CrAccess::Read { cr, gpr: None });
    let write = |cr| VmExit::CrAccess(CrAccess::Write { cr, gpr: None });
    let long = |code: &[u8], exit| skipped(CpuMode::Long64, code, exit);
    assert_eq!(long(&[0x0f, 0x20, 0xd8], read(3)), Some(SystemOp::ReadCr(3, Gpr::Rax)));
    assert_eq!(long(&[0x0f, 0x22, 0xc1], write(0)), Some(SystemOp::WriteCr(0, Gpr::Rcx)));
    assert_eq!(long(&[0x41, 0x0f, 0x22, 0xe7], write(4)), Some(SystemOp::WriteCr(4, Gpr::R15)));
    assert_eq!(long(&[0x44, 0x0f, 0x20, 0xc0], read(8)), Some(SystemOp::ReadCr(8, Gpr::Rax)));
    // AMD's CR8 outside 64-bit mode.
    let lock = skipped(CpuMode::Protected32, &[0xf0, 0x0f, 0x20, 0xc3], read(8));
    assert_eq!(lock, Some(SystemOp::ReadCr(8, Gpr::Rbx)));
    // The mod field counts for nothing.
    assert_eq!(long(&[0x0f, 0x20, 0x18], read(3)), Some(SystemOp::ReadCr(3, Gpr::Rax)));
    assert_eq!(long(&[0x0f, 0x20, 0xd8], read(4)), None);
    assert_eq!(long(&[0x0f, 0x20, 0xd8], write(3)), None);
    let dr = |dr, write| VmExit::DrAccess(DrAccess { dr, write, gpr: None });
    assert_eq!(long(&[0x0f, 0x21, 0xf2], dr(6, false)), Some(SystemOp::ReadDr(6, Gpr::Rdx)));
    assert_eq!(long(&[0x49, 0x0f, 0x23, 0xf8], dr(7, true)), Some(SystemOp::WriteDr(7, Gpr::R8)));
    assert_eq!(long(&[0x0f, 0x21, 0xf2], dr(6, true)), None);
}

fn at_rbx(width: Width) -> MemoryOperand {
    MemoryOperand {
        segment: SegmentRegister::Ds,
        base: Some(Gpr::Rbx),
        index: None,
        scale: 0,
        displacement: 0,
        address_width: width,
    }
}

#[test]
fn operands() {
    let rax = Operand::Register(Register { gpr: Gpr::Rax, high: false });
    let memory = Operand::Memory(at_rbx(Width::B8));
    let long = |code: &[u8], exit| skipped(CpuMode::Long64, code, exit);
    let lmsw = VmExit::CrAccess(CrAccess::Lmsw(None));
    assert_eq!(long(&[0x0f, 0x01, 0xf0], lmsw), Some(SystemOp::Lmsw(rax)));
    let write0 = VmExit::CrAccess(CrAccess::Write { cr: 0, gpr: None });
    assert_eq!(long(&[0x0f, 0x01, 0x33], write0), Some(SystemOp::Lmsw(memory)));
    let read0 = VmExit::CrAccess(CrAccess::Read { cr: 0, gpr: None });
    assert_eq!(long(&[0x0f, 0x01, 0x23], read0), Some(SystemOp::Smsw));
    assert_eq!(long(&[0x48, 0x0f, 0x01, 0xe0], read0), Some(SystemOp::Smsw));
    let mut machine = Machine::new(CpuMode::Long64, &[]);
    machine.set_gpr(Gpr::Rbx, 0x4000);
    machine.memory[0x4000..0x4002].copy_from_slice(&[0x34, 0x12]);
    assert_eq!(read_operand(&mut machine, &memory, Width::B2), Ok(0x1234));
    machine.set_gpr(Gpr::Rax, 0xabcd_5678);
    assert_eq!(read_operand(&mut machine, &rax, Width::B2), Ok(0x5678));
}

#[test]
fn at_the_end_of_a_page() {
    // The next page is absent, and the instruction does not need it.
    let mut machine = Machine::new(CpuMode::Long64, &[]);
    machine.rip = ABSENT - 2;
    machine.memory[ABSENT as usize - 2..][..2].copy_from_slice(&[0x0f, 0xa2]);
    assert_eq!(skip(&mut machine, &VmExit::Cpuid).map(|found| found.length), Ok(2));
    machine.rip = ABSENT - 1;
    machine.memory[ABSENT as usize - 1] = 0x0f;
    let fault = Fault::Exception(GuestException::page_fault(ABSENT, 0));
    assert_eq!(skip(&mut machine, &VmExit::Cpuid), Err(SkipError::Fault(fault)));
}
