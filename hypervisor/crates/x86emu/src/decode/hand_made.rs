//! The hand-made decoder: MOV, MOVZX, MOVSX, and the arithmetic of opcodes 00 to
//! 3F, 80 to 85 and F6/F7 TEST, with a memory operand in 32- and 64-bit code and
//! no LOCK or REP. That is nearly all that drivers do to device memory.

use super::stream::{ModRm, Prefixes, RmOperand, Stream, register};
use crate::instruction::{AluOp, Instruction, Op, Operand, Repeat};
use x86defs::Width;
use x86defs::control::CpuMode;

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
    if prefixes.lock || prefixes.repeat.is_some() || prefixes.address_width(mode) == Width::B2 {
        return None;
    }
    let full = prefixes.operand_width(mode);
    let opcode = stream.byte()?;
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
