//! The general decoder: iced-x86, and the translation of what it finds.

use super::DecodeError;
use super::names::operation;
use super::operands::{effective_segment, memory_width, operand};
use super::stream::{Prefixes, Stream};
use crate::cpu::Mnemonic as Name;
use crate::instruction::{
    ControlOp, DescriptorOp, FieldOp, Instruction, MemoryOperand, Op, Operand, Repeat, StringOp,
};
use iced_x86::{Code, Decoder, DecoderError, DecoderOptions, EncodingKind, Mnemonic, OpKind};
use x86defs::control::CpuMode;
use x86defs::{Gpr, Low, SegmentRegister, Width};

/// Has the general decoder build its tables, which takes heap: call it once at
/// boot, so that no exit is the first to decode. Tells whether decoding works.
#[must_use]
pub fn warm_up() -> bool {
    // NOP.
    instruction_length(&[0x90], CpuMode::Long64) == Some(1)
}

/// The length in bytes of the instruction that starts `bytes`, whatever it is,
/// as far as the encodings of general, system and SSE instructions go.
#[must_use]
pub fn instruction_length(bytes: &[u8], mode: CpuMode) -> Option<u8> {
    let instruction = Decoder::new(mode.bits(), bytes, DecoderOptions::AMD).decode();
    (!instruction.is_invalid()).then(|| instruction.len().low8())
}

pub(super) fn decode(bytes: &[u8], mode: CpuMode, rip: u64) -> Result<Instruction, DecodeError> {
    let Some(prefixes) = Prefixes::read(&mut Stream::new(bytes), mode) else {
        // There is nothing but prefixes so far.
        return Err(DecodeError::Incomplete);
    };
    let mut decoder = Decoder::with_ip(mode.bits(), bytes, rip, DecoderOptions::NONE);
    let found = decoder.decode();
    if found.is_invalid() {
        return Err(if is_vector_encoding(bytes, mode) {
            DecodeError::Unsupported {
                mnemonic: Name(Mnemonic::INVALID),
                length: bytes.len().low8(),
            }
        } else if decoder.last_error() == DecoderError::NoMoreBytes {
            DecodeError::Incomplete
        } else {
            DecodeError::Invalid
        });
    }
    if found.encoding() == EncodingKind::VEX && mode.is_real_like() {
        return Err(DecodeError::Invalid);
    }
    if matches!(found.mnemonic(), Mnemonic::Ud0 | Mnemonic::Ud1 | Mnemonic::Ud2) {
        return Err(DecodeError::Invalid);
    }
    // The vendors' CPUs differ in what the prefix does to a branch in 64-bit mode.
    let differs = mode == CpuMode::Long64
        && prefixes.operand_size
        && matches!(found.mnemonic(), Mnemonic::Call | Mnemonic::Jmp | Mnemonic::Ret);
    translate(&found, mode).filter(|_| !differs).ok_or_else(|| DecodeError::Unsupported {
        mnemonic: Name(found.mnemonic()),
        length: found.len().low8(),
    })
}

/// Whether the opcode is one of EVEX or XOP, which the decoder is built without.
fn is_vector_encoding(bytes: &[u8], mode: CpuMode) -> bool {
    let mut stream = Stream::new(bytes);
    if Prefixes::read(&mut stream, mode).is_none() {
        return false;
    }
    let (opcode, next) = (stream.byte(), stream.byte());
    match (opcode, next) {
        (Some(0x62), Some(next)) => mode == CpuMode::Long64 || next >= 0xc0,
        (Some(0x8f), Some(next)) => next & 0x1f >= 8,
        _ => false,
    }
}

fn translate(found: &iced_x86::Instruction, mode: CpuMode) -> Option<Instruction> {
    if let Some((op, destination, source)) = super::vector::decode(found, mode) {
        return Some(Instruction {
            length: found.len().low8(),
            op,
            width: Width::B8,
            destination,
            source,
            lock: false,
            repeat: Repeat::Once,
        });
    }
    let op = operation(found)?;
    let operand = |index: u32| {
        if index < found.op_count() { operand(found, mode, index) } else { Some(Operand::None) }
    };
    let width = width(found, op)?;
    let (destination, source) = match op {
        Op::String(string) => string_operands(found, mode, string)?,
        Op::Hint => (Operand::None, Operand::None),
        Op::Translate => (Operand::None, without_index(operand(0)?)),
        Op::Move64 => (at_register(found, operand(0)?)?, operand(1)?),
        Op::Field(FieldOp::AndNot | FieldOp::Deposit | FieldOp::Gather, _)
        | Op::MultiplyWide(_) => (operand(0)?, operand(2)?),
        Op::Control(
            ControlOp::Return(_)
            | ControlOp::Enter(..)
            | ControlOp::Leave
            | ControlOp::PushAll
            | ControlOp::PopAll
            | ControlOp::PushFlags
            | ControlOp::PopFlags,
        )
        | Op::Descriptor(DescriptorOp::Pop(_)) => (Operand::None, Operand::None),
        Op::Descriptor(DescriptorOp::Load(_)) => (Operand::None, operand(1)?),
        Op::Descriptor(op) if has_source_only(op) => (Operand::None, operand(0)?),
        _ => (operand(0)?, cut(operand(1)?, width)),
    };
    let in_memory = [destination, source].iter().any(|o| matches!(o, Operand::Memory(_)));
    let repeat = match op {
        Op::String(_) if found.has_rep_prefix() => Repeat::WhileEqual,
        Op::String(_) if found.has_repne_prefix() => Repeat::WhileNotEqual,
        _ => Repeat::Once,
    };
    Some(Instruction {
        length: found.len().low8(),
        op,
        width,
        destination,
        source,
        // XCHG with memory is always locked.
        lock: found.has_lock_prefix() || op == Op::Exchange && in_memory,
        repeat,
    })
}

/// The width of the operands; of what has none, that of the stack's entries.
fn width(found: &iced_x86::Instruction, op: Op) -> Option<Width> {
    Some(match (op, found.op0_kind()) {
        (Op::String(_), _) => memory_width(found)?,
        (Op::CompareExchangePair, _) if found.mnemonic() == Mnemonic::Cmpxchg8b => Width::B4,
        (Op::CompareExchangePair, _) => Width::B8,
        (Op::Hint | Op::Translate, _) => Width::B1,
        (Op::Move64, _) => Width::B8,
        (Op::Push | Op::Pop | Op::Descriptor(DescriptorOp::Pop(_)), _) => entry_width(found)?,
        (Op::Control(ControlOp::Jump), OpKind::NearBranch16) => Width::B2,
        (Op::Control(ControlOp::Jump), OpKind::NearBranch32) => Width::B4,
        (Op::Control(ControlOp::Jump), OpKind::NearBranch64) => Width::B8,
        (Op::Control(op), _) if op != ControlOp::Jump => entry_width(found)?,
        (Op::Descriptor(DescriptorOp::Load(_)), _) => Width::B2,
        (Op::Descriptor(DescriptorOp::LoadGdt | DescriptorOp::LoadIdt), _) => {
            let small = matches!(found.code(), Code::Lgdt_m1632_16 | Code::Lidt_m1632_16);
            if small { Width::B2 } else { Width::B4 }
        }
        (Op::Descriptor(_), OpKind::Memory) => Width::B2,
        (_, OpKind::Register) => Width::from_bytes(found.op0_register().size())?,
        (_, OpKind::Memory) => memory_width(found)?,
        _ => return None,
    })
}

/// The width of an entry of the stack.
fn entry_width(found: &iced_x86::Instruction) -> Option<Width> {
    Some(match found.code() {
        Code::Retnw_imm16 | Code::Enterw_imm16_imm8 | Code::Leavew => Width::B2,
        Code::Retnd_imm16 | Code::Enterd_imm16_imm8 | Code::Leaved => Width::B4,
        Code::Retnq_imm16 | Code::Enterq_imm16_imm8 | Code::Leaveq => Width::B8,
        Code::Pushaw | Code::Popaw => Width::B2,
        Code::Pushad | Code::Popad => Width::B4,
        _ => Width::from_bytes(
            usize::try_from(found.stack_pointer_increment().unsigned_abs()).ok()?,
        )?,
    })
}

/// Whether the only operand is read.
const fn has_source_only(op: DescriptorOp) -> bool {
    matches!(
        op,
        DescriptorOp::LoadLdt
            | DescriptorOp::LoadTask
            | DescriptorOp::LoadGdt
            | DescriptorOp::LoadIdt
            | DescriptorOp::VerifyRead
            | DescriptorOp::VerifyWrite
            | DescriptorOp::LoadMachineStatus
    )
}

/// XLAT's memory without AL, which the decoder calls its index.
fn without_index(operand: Operand) -> Operand {
    match operand {
        Operand::Memory(memory) => Operand::Memory(MemoryOperand { index: None, ..memory }),
        other => other,
    }
}

/// The memory in ES to which a register points.
fn at_register(found: &iced_x86::Instruction, operand: Operand) -> Option<Operand> {
    let Operand::Register(register) = operand else { return None };
    Some(Operand::Memory(MemoryOperand {
        segment: SegmentRegister::Es,
        base: Some(register.gpr),
        index: None,
        scale: 0,
        displacement: 0,
        address_width: Width::from_bytes(found.op0_register().size())?,
    }))
}

fn cut(operand: Operand, width: Width) -> Operand {
    match operand {
        Operand::Immediate(value) => Operand::Immediate(width.truncate(value)),
        other => other,
    }
}

/// The memory at rDI, and that at rSI.
fn string_operands(
    found: &iced_x86::Instruction,
    mode: CpuMode,
    op: StringOp,
) -> Option<(Operand, Operand)> {
    let kinds = (0..found.op_count()).map(|index| found.op_kind(index));
    let address_width = kinds.into_iter().find_map(|kind| match kind {
        OpKind::MemorySegSI | OpKind::MemoryESDI => Some(Width::B2),
        OpKind::MemorySegESI | OpKind::MemoryESEDI => Some(Width::B4),
        OpKind::MemorySegRSI | OpKind::MemoryESRDI => Some(Width::B8),
        _ => None,
    })?;
    let at = |base, segment| {
        Operand::Memory(MemoryOperand {
            segment,
            base: Some(base),
            index: None,
            scale: 0,
            displacement: 0,
            address_width,
        })
    };
    let destination = at(Gpr::Rdi, SegmentRegister::Es);
    let source = at(Gpr::Rsi, effective_segment(found, mode, SegmentRegister::Ds)?);
    Some(match op {
        StringOp::Movs | StringOp::Cmps => (destination, source),
        StringOp::Stos | StringOp::Scas | StringOp::Ins => (destination, Operand::None),
        StringOp::Lods | StringOp::Outs => (Operand::None, source),
    })
}
