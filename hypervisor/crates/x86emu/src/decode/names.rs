//! From a mnemonic of iced-x86 to an operation.

use super::operands::{gpr, segment, source_width};
use crate::instruction::{
    AluOp, BitOp, Condition, ControlOp, DescriptorOp, FieldOp, Op, ScanOp, ShiftOp, StringOp,
};
use iced_x86::{Mnemonic, OpKind};
use x86defs::{Low, SegmentRegister, Width};

/// The operation; `None` if the emulator does not execute it.
pub(super) fn operation(found: &iced_x86::Instruction) -> Option<Op> {
    use Mnemonic as M;
    Some(match found.mnemonic() {
        M::Mov
            if found.op0_kind() == OpKind::Register
                && found.op0_register().is_segment_register() =>
        {
            Op::Descriptor(DescriptorOp::Load(segment(found.op0_register())?))
        }
        M::Mov | M::Movnti | M::Movdiri => Op::Mov,
        M::Movdir64b => Op::Move64,
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
        _ => {
            return string_or_hint(found)
                .or_else(|| stack(found))
                .or_else(|| wide(found))
                .or_else(|| field(found))
                .or_else(|| descriptor(found))
                .or_else(|| conditional(found));
        }
    })
}

/// String instructions, and what is only a hint.
fn string_or_hint(found: &iced_x86::Instruction) -> Option<Op> {
    use Mnemonic as M;
    Some(match found.mnemonic() {
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
        | M::Prefetchwt1
        | M::Nop => Op::Hint,
        _ => return None,
    })
}

/// The stack and near branches.
fn stack(found: &iced_x86::Instruction) -> Option<Op> {
    use Mnemonic as M;
    let constant = |index| found.try_immediate(index).ok().map(Low::low16);
    Some(match found.mnemonic() {
        M::Push => Op::Push,
        M::Pop
            if found.op0_kind() == OpKind::Register
                && found.op0_register().is_segment_register() =>
        {
            Op::Descriptor(DescriptorOp::Pop(segment(found.op0_register())?))
        }
        M::Pop => Op::Pop,
        M::Call if found.is_call_near() || found.is_call_near_indirect() => {
            Op::Control(ControlOp::Call)
        }
        M::Jmp if found.is_jmp_short_or_near() || found.is_jmp_near_indirect() => {
            Op::Control(ControlOp::Jump)
        }
        M::Ret => {
            let more = if found.op_count() == 0 { 0 } else { constant(0)? };
            Op::Control(ControlOp::Return(more))
        }
        M::Enter => {
            let level = found.try_immediate(1).ok()?.low8();
            Op::Control(ControlOp::Enter(constant(0)?, level))
        }
        M::Leave => Op::Control(ControlOp::Leave),
        M::Pusha | M::Pushad => Op::Control(ControlOp::PushAll),
        M::Popa | M::Popad => Op::Control(ControlOp::PopAll),
        M::Pushf | M::Pushfd | M::Pushfq => Op::Control(ControlOp::PushFlags),
        M::Popf | M::Popfd | M::Popfq => Op::Control(ControlOp::PopFlags),
        _ => return None,
    })
}

/// Products, searches, and what has a third operand.
fn wide(found: &iced_x86::Instruction) -> Option<Op> {
    use Mnemonic as M;
    // A constant, or CL.
    let count = found.try_immediate(2).ok().map(Low::low8);
    Some(match found.mnemonic() {
        M::Shld => Op::DoubleShift { left: true, count },
        M::Shrd => Op::DoubleShift { left: false, count },
        M::Mul => Op::Multiply { signed: false },
        M::Imul if found.op_count() == 1 => Op::Multiply { signed: true },
        M::Imul if found.op_count() == 2 => Op::MultiplyLow(None),
        M::Imul => {
            let width = Width::from_bytes(found.op0_register().size())?;
            let constant = width.sign_extend(width.truncate(found.try_immediate(2).ok()?));
            Op::MultiplyLow(Some(constant.low32().cast_signed()))
        }
        M::Mulx => Op::MultiplyWide(gpr(found.op1_register())?),
        M::Div => Op::Divide { signed: false },
        M::Idiv => Op::Divide { signed: true },
        M::Bsf => Op::Scan(ScanOp::Forward),
        M::Bsr => Op::Scan(ScanOp::Reverse),
        M::Tzcnt => Op::Scan(ScanOp::TrailingZeros),
        M::Lzcnt => Op::Scan(ScanOp::LeadingZeros),
        M::Popcnt => Op::Scan(ScanOp::Ones),
        M::Adcx => Op::AddCarry { overflow: false },
        M::Adox => Op::AddCarry { overflow: true },
        M::Crc32 => Op::Crc32(source_width(found)?),
        M::Xlatb => Op::Translate,
        M::Bound => Op::Bounds,
        M::Rorx => Op::RotateCopy(count?),
        _ => return None,
    })
}

/// BMI1 and BMI2.
fn field(found: &iced_x86::Instruction) -> Option<Op> {
    use Mnemonic as M;
    // The operand that is neither the destination nor the one that may be memory.
    let (op, third) = match found.mnemonic() {
        M::Andn => (FieldOp::AndNot, 1),
        M::Pdep => (FieldOp::Deposit, 1),
        M::Pext => (FieldOp::Gather, 1),
        M::Bextr => (FieldOp::Extract, 2),
        M::Bzhi => (FieldOp::ZeroHigh, 2),
        M::Shlx => (FieldOp::Shl, 2),
        M::Shrx => (FieldOp::Shr, 2),
        M::Sarx => (FieldOp::Sar, 2),
        M::Blsi => (FieldOp::LowestIsolated, 0),
        M::Blsmsk => (FieldOp::LowestMask, 0),
        M::Blsr => (FieldOp::LowestReset, 0),
        _ => return None,
    };
    Some(Op::Field(op, gpr(found.op_register(third))?))
}

/// Selectors and descriptors.
fn descriptor(found: &iced_x86::Instruction) -> Option<Op> {
    use Mnemonic as M;
    use SegmentRegister as S;
    Some(Op::Descriptor(match found.mnemonic() {
        M::Lds => DescriptorOp::LoadFar(S::Ds),
        M::Les => DescriptorOp::LoadFar(S::Es),
        M::Lfs => DescriptorOp::LoadFar(S::Fs),
        M::Lgs => DescriptorOp::LoadFar(S::Gs),
        M::Lss => DescriptorOp::LoadFar(S::Ss),
        M::Sldt => DescriptorOp::StoreLdt,
        M::Lldt => DescriptorOp::LoadLdt,
        M::Str => DescriptorOp::StoreTask,
        M::Ltr => DescriptorOp::LoadTask,
        M::Sgdt => DescriptorOp::StoreGdt,
        M::Lgdt => DescriptorOp::LoadGdt,
        M::Sidt => DescriptorOp::StoreIdt,
        M::Lidt => DescriptorOp::LoadIdt,
        M::Verr => DescriptorOp::VerifyRead,
        M::Verw => DescriptorOp::VerifyWrite,
        M::Lar => DescriptorOp::AccessRights,
        M::Lsl => DescriptorOp::Limit,
        M::Arpl => DescriptorOp::AdjustLevel,
        M::Smsw => DescriptorOp::StoreMachineStatus,
        M::Lmsw => DescriptorOp::LoadMachineStatus,
        _ => return None,
    }))
}

/// CMOVcc and SETcc.
fn conditional(found: &iced_x86::Instruction) -> Option<Op> {
    use Mnemonic as M;
    Some(match found.mnemonic() {
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
