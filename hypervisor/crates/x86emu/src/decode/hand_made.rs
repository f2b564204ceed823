//! The hand-made decoder: MOV, MOVZX, MOVSX, the arithmetic of opcodes 00 to 3F, 80 to 85 and
//! F6/F7 TEST, all with a memory operand, and MOVS, STOS, LODS, INS and OUTS; in 32- and 64-bit
//! code without LOCK. That is all that Linux does to devices; a test of `vmm` lists it.

use super::stream::{ModRm, Prefixes, RmOperand, Stream, register};
use crate::instruction::{AluOp, Instruction, MemoryOperand, Op, Operand, Repeat, StringOp};
use x86defs::control::CpuMode;
use x86defs::{Gpr, SegmentRegister, Width};

/// The arithmetic of opcode bits 5:3 and of the reg field in group 1.
pub(crate) fn group1(number: u8) -> AluOp {
    match number & 7 {
        0 => AluOp::Add,
        1 => AluOp::Or,
        2 => AluOp::Adc,
        3 => AluOp::Sbb,
        4 => AluOp::And,
        5 => AluOp::Sub,
        6 => AluOp::Xor,
        _ => AluOp::Cmp,
    }
}

/// Operands that the ModRM byte gives.
enum Form {
    /// r/m is written (or compared with) the register.
    RmReg,
    /// The register is written from r/m.
    RegRm,
    /// r/m and an immediate of at most this width.
    RmImmediate(Width),
}

/// Decodes the instructions that it knows; `None` for all others.
pub(crate) fn decode(bytes: &[u8], mode: CpuMode, rip: u64) -> Option<Instruction> {
    if mode.bits() == 16 {
        return None;
    }
    let mut stream = Stream::new(bytes);
    let prefixes = Prefixes::read(&mut stream, mode)?;
    if prefixes.lock || prefixes.address_width(mode) == Width::B2 {
        return None;
    }
    let full = prefixes.operand_width(mode);
    let opcode = stream.byte()?;
    match opcode {
        0x6c..=0x6f | 0xa4 | 0xa5 | 0xaa..=0xad => return string(&stream, prefixes, mode, opcode),
        _ if prefixes.repeat.is_some() => return None,
        0xa0..=0xa3 => return offset(&mut stream, prefixes, mode, opcode),
        _ => {}
    }
    let width = if opcode & 1 == 0 { Width::B1 } else { full };
    // Immediates are of four bytes at most.
    let immediate = width.min(Width::B4);
    let by_direction = if opcode & 2 == 0 { Form::RmReg } else { Form::RegRm };
    let (op, width, form) = match opcode {
        0x88..=0x8b => (Op::Mov, width, by_direction),
        0xc6 | 0xc7 => (Op::Mov, width, Form::RmImmediate(immediate)),
        0x00..=0x3f if opcode & 7 < 4 => (Op::Alu(group1(opcode >> 3)), width, by_direction),
        0x80 | 0x81 => (Op::Alu(AluOp::Cmp), width, Form::RmImmediate(immediate)),
        0x83 => (Op::Alu(AluOp::Cmp), width, Form::RmImmediate(Width::B1)),
        0x84 | 0x85 => (Op::Alu(AluOp::Test), width, Form::RmReg),
        0xf6 | 0xf7 => (Op::Alu(AluOp::Test), width, Form::RmImmediate(immediate)),
        0x0f => {
            let second = stream.byte()?;
            let from = if second & 1 == 0 { Width::B1 } else { Width::B2 };
            match second {
                0xb6 | 0xb7 => (Op::MoveZeroExtend(from), full, Form::RegRm),
                0xbe | 0xbf => (Op::MoveSignExtend(from), full, Form::RegRm),
                _ => return None,
            }
        }
        _ => return None,
    };
    let modrm = ModRm::read(&mut stream, prefixes, mode)?;
    let reg = Operand::Register(register(modrm.reg, width, prefixes));
    // Bits 2:0 of the reg field choose the operation where there is no register.
    let op = match (opcode, modrm.reg & 7) {
        (0x80..=0x83, number) => Op::Alu(group1(number)),
        (0xc6 | 0xc7 | 0xf6 | 0xf7, 1..) => return None,
        _ => op,
    };
    let constant = match form {
        Form::RmImmediate(size) => Some(Operand::Immediate(width.truncate(stream.signed(size)?))),
        _ => None,
    };
    let length = stream.length();
    let RmOperand::Memory(memory) = modrm.finish(mode, rip, length) else { return None };
    let memory = Operand::Memory(memory);
    let (destination, source) = match form {
        Form::RmReg => (memory, reg),
        Form::RegRm => (reg, memory),
        Form::RmImmediate(_) => (memory, constant?),
    };
    Some(Instruction { length, op, width, destination, source, lock: false, repeat: Repeat::Once })
}

/// Memory at an address, with the address size of the instruction.
fn memory(
    prefixes: Prefixes,
    mode: CpuMode,
    segment: SegmentRegister,
    base: Option<Gpr>,
    displacement: u64,
) -> Operand {
    let address_width = prefixes.address_width(mode);
    Operand::Memory(MemoryOperand {
        segment,
        base,
        index: None,
        scale: 0,
        displacement,
        address_width,
    })
}

/// String instructions that do not compare: their opcode is all there is.
fn string(
    stream: &Stream<'_>,
    prefixes: Prefixes,
    mode: CpuMode,
    opcode: u8,
) -> Option<Instruction> {
    let full = prefixes.operand_width(mode);
    let (op, full) = match opcode {
        0xa4 | 0xa5 => (StringOp::Movs, full),
        0xaa | 0xab => (StringOp::Stos, full),
        0xac | 0xad => (StringOp::Lods, full),
        // Ports have four bytes at most.
        0x6c | 0x6d => (StringOp::Ins, full.min(Width::B4)),
        0x6e | 0x6f => (StringOp::Outs, full.min(Width::B4)),
        _ => return None,
    };
    let destination = match op {
        StringOp::Lods | StringOp::Outs => Operand::None,
        // No prefix changes this segment.
        _ => memory(prefixes, mode, SegmentRegister::Es, Some(Gpr::Rdi), 0),
    };
    let source = match op {
        StringOp::Stos | StringOp::Ins => Operand::None,
        _ => {
            let segment = prefixes.segment.unwrap_or(SegmentRegister::Ds);
            memory(prefixes, mode, segment, Some(Gpr::Rsi), 0)
        }
    };
    Some(Instruction {
        length: stream.length(),
        op: Op::String(op),
        width: if opcode & 1 == 0 { Width::B1 } else { full },
        destination,
        source,
        lock: false,
        repeat: match prefixes.repeat {
            None => Repeat::Once,
            Some(0xf3) => Repeat::WhileEqual,
            Some(_) => Repeat::WhileNotEqual,
        },
    })
}

/// MOV of AL or eAX from or to an address in the instruction: what 32-bit code makes of an access
/// to a place that the compiler knew.
fn offset(
    stream: &mut Stream<'_>,
    prefixes: Prefixes,
    mode: CpuMode,
    opcode: u8,
) -> Option<Instruction> {
    let width = if opcode & 1 == 0 { Width::B1 } else { prefixes.operand_width(mode) };
    let address = stream.signed(prefixes.address_width(mode))?;
    let segment = prefixes.segment.unwrap_or(SegmentRegister::Ds);
    let memory = memory(prefixes, mode, segment, None, address);
    let register = Operand::Register(register(0, width, prefixes));
    let (destination, source) =
        if opcode & 2 == 0 { (register, memory) } else { (memory, register) };
    let (length, repeat) = (stream.length(), Repeat::Once);
    Some(Instruction { length, op: Op::Mov, width, destination, source, lock: false, repeat })
}
