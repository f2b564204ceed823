//! The general decoder: iced-x86, and the translation of what it finds.

use super::DecodeError;
use super::stream::{Prefixes, Stream};
use crate::cpu::Mnemonic as Name;
use crate::instruction::{
    AluOp, BitOp, Condition, Instruction, MemoryOperand, Op, Operand, Register, Repeat, ShiftOp,
    StringOp,
};
use iced_x86::{Decoder, DecoderError, DecoderOptions, Mnemonic, OpKind};
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
    if Prefixes::read(&mut Stream::new(bytes), mode).is_none() {
        // There is nothing but prefixes so far.
        return Err(DecodeError::Incomplete);
    }
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
    if matches!(found.mnemonic(), Mnemonic::Ud0 | Mnemonic::Ud1 | Mnemonic::Ud2) {
        return Err(DecodeError::Invalid);
    }
    translate(&found, mode).ok_or_else(|| DecodeError::Unsupported {
        mnemonic: Name(found.mnemonic()),
        length: found.len().low8(),
    })
}

/// Whether the opcode is one of VEX, EVEX or XOP, which the decoder is built without.
fn is_vector_encoding(bytes: &[u8], mode: CpuMode) -> bool {
    let mut stream = Stream::new(bytes);
    if Prefixes::read(&mut stream, mode).is_none() {
        return false;
    }
    let (opcode, next) = (stream.byte(), stream.byte());
    match (opcode, next) {
        (Some(0x62 | 0xc4 | 0xc5), Some(next)) => mode == CpuMode::Long64 || next >= 0xc0,
        (Some(0x8f), Some(next)) => next & 0x1f >= 8,
        _ => false,
    }
}

fn translate(found: &iced_x86::Instruction, mode: CpuMode) -> Option<Instruction> {
    let op = operation(found)?;
    let operand = |index: u32| {
        if index < found.op_count() { operand(found, mode, index) } else { Some(Operand::None) }
    };
    let width = match (op, found.op0_kind()) {
        (Op::String(_), _) => memory_width(found)?,
        (Op::CompareExchangePair, _) if found.mnemonic() == Mnemonic::Cmpxchg8b => Width::B4,
        (Op::CompareExchangePair, _) => Width::B8,
        (Op::Hint, _) => Width::B1,
        (_, OpKind::Register) => Width::from_bytes(found.op0_register().size())?,
        (_, OpKind::Memory) => memory_width(found)?,
        _ => return None,
    };
    let (destination, source) = match op {
        Op::String(string) => string_operands(found, mode, string)?,
        Op::Hint => (Operand::None, Operand::None),
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

fn cut(operand: Operand, width: Width) -> Operand {
    match operand {
        Operand::Immediate(value) => Operand::Immediate(width.truncate(value)),
        other => other,
    }
}

fn memory_width(found: &iced_x86::Instruction) -> Option<Width> {
    Width::from_bytes(found.memory_size().size())
}

fn source_width(found: &iced_x86::Instruction) -> Option<Width> {
    match found.op1_kind() {
        OpKind::Register => Width::from_bytes(found.op1_register().size()),
        _ => memory_width(found),
    }
}

fn operation(found: &iced_x86::Instruction) -> Option<Op> {
    use Mnemonic as M;
    Some(match found.mnemonic() {
        M::Mov | M::Movnti => Op::Mov,
        M::Movzx => Op::MoveZeroExtend(source_width(found)?),
        M::Movsx | M::Movsxd => Op::MoveSignExtend(source_width(found)?),
        M::Movbe => Op::MoveBigEndian,
        M::Add => Op::Alu(AluOp::Add),
        M::Or => Op::Alu(AluOp::Or),
        M::Adc => Op::Alu(AluOp::Adc),
        M::Sbb => Op::Alu(AluOp::Sbb),
        M::And => Op::Alu(AluOp::And),
        M::Sub => Op::Alu(AluOp::Sub),
        M::Xor => Op::Alu(AluOp::Xor),
        M::Cmp => Op::Alu(AluOp::Cmp),
        M::Test => Op::Alu(AluOp::Test),
        M::Not => Op::Not,
        M::Neg => Op::Neg,
        M::Inc => Op::Inc,
        M::Dec => Op::Dec,
        M::Rol => Op::Shift(ShiftOp::Rol),
        M::Ror => Op::Shift(ShiftOp::Ror),
        M::Rcl => Op::Shift(ShiftOp::Rcl),
        M::Rcr => Op::Shift(ShiftOp::Rcr),
        M::Shl | M::Sal => Op::Shift(ShiftOp::Shl),
        M::Shr => Op::Shift(ShiftOp::Shr),
        M::Sar => Op::Shift(ShiftOp::Sar),
        M::Xchg => Op::Exchange,
        M::Cmpxchg => Op::CompareExchange,
        M::Cmpxchg8b | M::Cmpxchg16b => Op::CompareExchangePair,
        M::Xadd => Op::ExchangeAdd,
        M::Bt => Op::Bit(BitOp::Test),
        M::Bts => Op::Bit(BitOp::Set),
        M::Btr => Op::Bit(BitOp::Reset),
        M::Btc => Op::Bit(BitOp::Complement),
        M::Push => Op::Push,
        M::Pop => Op::Pop,
        M::Stosb | M::Stosw | M::Stosd | M::Stosq => Op::String(StringOp::Stos),
        M::Lodsb | M::Lodsw | M::Lodsd | M::Lodsq => Op::String(StringOp::Lods),
        M::Scasb | M::Scasw | M::Scasd | M::Scasq => Op::String(StringOp::Scas),
        M::Insb | M::Insw | M::Insd => Op::String(StringOp::Ins),
        M::Outsb | M::Outsw | M::Outsd => Op::String(StringOp::Outs),
        // SSE has a MOVSD and a CMPSD too.
        M::Movsb | M::Movsw | M::Movsd | M::Movsq if found.is_string_instruction() => {
            Op::String(StringOp::Movs)
        }
        M::Cmpsb | M::Cmpsw | M::Cmpsd | M::Cmpsq if found.is_string_instruction() => {
            Op::String(StringOp::Cmps)
        }
        M::Clflush
        | M::Clflushopt
        | M::Clwb
        | M::Cldemote
        | M::Prefetchnta
        | M::Prefetcht0
        | M::Prefetcht1
        | M::Prefetcht2
        | M::Prefetchw
        | M::Prefetch
        | M::Prefetchwt1 => Op::Hint,
        M::Cmovo
        | M::Cmovno
        | M::Cmovb
        | M::Cmovae
        | M::Cmove
        | M::Cmovne
        | M::Cmovbe
        | M::Cmova
        | M::Cmovs
        | M::Cmovns
        | M::Cmovp
        | M::Cmovnp
        | M::Cmovl
        | M::Cmovge
        | M::Cmovle
        | M::Cmovg => Op::MoveIf(condition(found)?),
        M::Seto
        | M::Setno
        | M::Setb
        | M::Setae
        | M::Sete
        | M::Setne
        | M::Setbe
        | M::Seta
        | M::Sets
        | M::Setns
        | M::Setp
        | M::Setnp
        | M::Setl
        | M::Setge
        | M::Setle
        | M::Setg => Op::SetIf(condition(found)?),
        _ => return None,
    })
}

fn condition(found: &iced_x86::Instruction) -> Option<Condition> {
    // 0 is no condition; the others follow the encoding.
    (found.condition_code() as usize).checked_sub(1).map(|number| Condition(number.low8()))
}

fn gpr(register: iced_x86::Register) -> Option<Gpr> {
    register.is_gpr().then(|| Gpr::from_number(register.full_register().number().low8()))
}

fn segment(register: iced_x86::Register) -> Option<SegmentRegister> {
    use iced_x86::Register as R;
    Some(match register {
        R::ES => SegmentRegister::Es,
        R::CS => SegmentRegister::Cs,
        R::SS => SegmentRegister::Ss,
        R::DS => SegmentRegister::Ds,
        R::FS => SegmentRegister::Fs,
        R::GS => SegmentRegister::Gs,
        _ => return None,
    })
}

fn operand(found: &iced_x86::Instruction, mode: CpuMode, index: u32) -> Option<Operand> {
    use iced_x86::Register as R;
    match found.op_kind(index) {
        OpKind::Register => {
            let register = found.op_register(index);
            let high = matches!(register, R::AH | R::CH | R::DH | R::BH);
            gpr(register).map(|gpr| Operand::Register(Register { gpr, high }))
        }
        OpKind::Memory => memory(found, mode).map(Operand::Memory),
        _ => found.try_immediate(index).ok().map(Operand::Immediate),
    }
}

fn memory(found: &iced_x86::Instruction, mode: CpuMode) -> Option<MemoryOperand> {
    use iced_x86::Register as R;
    let base_register = found.memory_base();
    let index_register = found.memory_index();
    let (base, index) = (gpr(base_register), gpr(index_register));
    let address_width = match (base_register, index_register) {
        (R::RIP, _) => Width::B8,
        (R::EIP, _) => Width::B4,
        (R::None, R::None) => Width::from_bytes(displacement_bytes(found, mode))?,
        (R::None, index) => Width::from_bytes(index.size())?,
        (base, _) => Width::from_bytes(base.size())?,
    };
    let stack = matches!(base, Some(Gpr::Rsp | Gpr::Rbp));
    let default = if stack { SegmentRegister::Ss } else { SegmentRegister::Ds };
    // With RIP-relative addressing this is the whole address.
    let displacement = found.memory_displacement64();
    let displacement = if matches!(base_register, R::EIP) {
        Width::B4.truncate(displacement)
    } else if address_width == Width::B4 && base_register != R::EIP {
        Width::B4.sign_extend(displacement)
    } else {
        displacement
    };
    Some(MemoryOperand {
        segment: effective_segment(found, mode, default)?,
        base,
        index,
        scale: if index.is_some() { found.memory_index_scale().trailing_zeros().low8() } else { 0 },
        displacement,
        address_width,
    })
}

/// The address size of an operand that is nothing but a displacement.
fn displacement_bytes(found: &iced_x86::Instruction, mode: CpuMode) -> usize {
    match found.memory_displ_size() {
        // The encoding gives the size. But in 64-bit mode without an address-size prefix,
        // four bytes are sign-extended.
        4 if mode == CpuMode::Long64 => {
            if Width::B4.truncate(found.memory_displacement64()) == found.memory_displacement64() {
                4
            } else {
                8
            }
        }
        size => size as usize,
    }
}

/// The operand's segment: in 64-bit mode only prefixes of FS and GS count.
fn effective_segment(
    found: &iced_x86::Instruction,
    mode: CpuMode,
    default: SegmentRegister,
) -> Option<SegmentRegister> {
    let prefix = segment(found.segment_prefix());
    Some(match prefix {
        None => default,
        Some(SegmentRegister::Fs | SegmentRegister::Gs) => prefix?,
        Some(_) if mode == CpuMode::Long64 => default,
        Some(prefix) => prefix,
    })
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
