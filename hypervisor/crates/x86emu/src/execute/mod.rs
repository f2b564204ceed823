//! Runs one [`Instruction`] on a [`Cpu`].

mod control;
mod multiply;
mod segments;
mod strings;
mod task;
mod vector;

use crate::MAX_INSTRUCTION;
use crate::address::{self, Intent};
use crate::alu::{self, Outcome};
use crate::cpu::{AccessKind, Cpu, Fault, GuestException, Step, Stop, Unsupported};
use crate::decode::{DecodeError, Decoder, decode};
use crate::instruction::{BitOp, Instruction, MemoryOperand, Op, Operand, Register, StringOp};
use x86defs::bits::join;
use x86defs::{Gpr, Low, Rflags, Width};

pub use strings::{Ports, string_io};
pub use task::{Switched, TaskEntry, TaskRequest, task_switch};

/// Attempts at a locked operation before the guest has to run it again.
const LOCK_ATTEMPTS: u32 = 16;

/// Fetches, decodes and executes the instruction at RIP, or a bounded part of a
/// repeated one.
///
/// # Errors
/// [`Stop`]; RIP still points to the instruction, and nothing is changed but,
/// for a repeated instruction, what its completed iterations did.
pub fn step<C: Cpu>(cpu: &mut C) -> Result<Step, Stop<C::Error>> {
    let mut code = [0; MAX_INSTRUCTION];
    let instruction = fetch(cpu, &mut code)?;
    cpu.begin(&instruction);
    if let Op::String(op) = instruction.op {
        return match op {
            StringOp::Ins | StringOp::Outs => Err(unsupported_ports(&instruction, code)),
            _ => strings::run(cpu, &instruction, op),
        };
    }
    let before = cpu.rip();
    if let Op::Control(op) = instruction.op {
        let next = address::next_rip(cpu.mode(), before, instruction.length);
        let next = control::run(cpu, &instruction, op, next)?;
        end_resume_flag(cpu);
        cpu.set_rip(next);
        return Ok(Step::Done);
    }
    let step = run(cpu, &instruction)?;
    if step != Step::Again {
        retire(cpu, before, instruction.length);
    }
    Ok(step)
}

/// INS and OUTS need ports: see [`string_io`].
fn unsupported_ports<E>(instruction: &Instruction, bytes: [u8; MAX_INSTRUCTION]) -> Stop<E> {
    use iced_x86::Mnemonic;
    let input = instruction.op == Op::String(StringOp::Ins);
    let mnemonic = match (input, instruction.width) {
        (true, Width::B1) => Mnemonic::Insb,
        (true, Width::B2) => Mnemonic::Insw,
        (true, _) => Mnemonic::Insd,
        (false, Width::B1) => Mnemonic::Outsb,
        (false, Width::B2) => Mnemonic::Outsw,
        (false, _) => Mnemonic::Outsd,
    };
    unsupported(bytes, instruction.length, crate::Mnemonic(mnemonic))
}

fn unsupported<E>(
    mut bytes: [u8; MAX_INSTRUCTION],
    length: u8,
    mnemonic: crate::Mnemonic,
) -> Stop<E> {
    bytes.iter_mut().skip(usize::from(length)).for_each(|byte| *byte = 0);
    Stop::Unsupported(Unsupported { bytes, length, mnemonic })
}

/// The instruction at RIP; its bytes go into `code`.
#[inline]
pub(crate) fn fetch<C: Cpu>(
    cpu: &mut C,
    code: &mut [u8; MAX_INSTRUCTION],
) -> Result<Instruction, Stop<C::Error>> {
    let (mode, rip) = (cpu.mode(), cpu.rip());
    let mut have = 0;
    loop {
        // The bytes so far end where a page can't be fetched: more are asked for
        // only if the instruction needs them, as its fault is the guest's then.
        let at = rip.wrapping_add(have as u64);
        let linear = address::code_linear(cpu, at);
        let rest = code.get_mut(have..).unwrap_or_default();
        if rest.is_empty() {
            return Err(GuestException::with_zero(x86defs::Exception::GP, mode).into());
        }
        let room = rest.len();
        have = have.saturating_add(cpu.fetch(linear, rest)?.clamp(1, room));
        let whole = have == MAX_INSTRUCTION;
        if whole && let Some(kept) = cpu.decoded().and_then(|kept| kept.find(code, mode, rip)) {
            return Ok(kept);
        }
        let bytes = code.get(..have).unwrap_or_default();
        let known = decode(bytes, mode, rip, Decoder::HandMade).or_else(|_| {
            cpu.decodes_generally();
            decode(bytes, mode, rip, Decoder::General)
        });
        match known {
            Ok(instruction) => {
                if whole && let Some(kept) = cpu.decoded() {
                    kept.keep(code, mode, rip, instruction);
                }
                return Ok(instruction);
            }
            Err(DecodeError::Incomplete) => {}
            Err(DecodeError::Invalid) => return Err(GuestException::UD.into()),
            Err(DecodeError::Unsupported { mnemonic, length }) => {
                return Err(unsupported(*code, length, mnemonic));
            }
        }
    }
}

/// Completes an instruction: RIP goes on, RFLAGS.RF ends.
pub(crate) fn retire<C: Cpu>(cpu: &mut C, rip: u64, length: u8) {
    end_resume_flag(cpu);
    cpu.set_rip(address::next_rip(cpu.mode(), rip, length));
}

fn end_resume_flag<C: Cpu>(cpu: &mut C) {
    let flags = cpu.rflags();
    if flags.contains(Rflags::RF) {
        cpu.set_rflags(flags.difference(Rflags::RF));
    }
}

/// Up to eight bytes at a linear address.
pub(crate) fn load<C: Cpu>(
    cpu: &mut C,
    linear: u64,
    width: Width,
    kind: AccessKind,
) -> Result<u64, Fault<C::Error>> {
    let mut bytes = [0; 8];
    cpu.read(linear, bytes.get_mut(..width.bytes()).unwrap_or_default(), kind)?;
    Ok(u64::from_le_bytes(bytes))
}

pub(crate) fn store<C: Cpu>(
    cpu: &mut C,
    linear: u64,
    width: Width,
    value: u64,
) -> Result<(), Fault<C::Error>> {
    let bytes = value.to_le_bytes();
    cpu.write(linear, bytes.get(..width.bytes()).unwrap_or_default())
}

pub(crate) fn register<C: Cpu>(cpu: &C, register: Register, width: Width) -> u64 {
    let value = cpu.gpr(register.gpr);
    width.truncate(if register.high { value >> 8 } else { value })
}

pub(crate) fn set_register<C: Cpu>(cpu: &mut C, register: Register, width: Width, value: u64) {
    let old = cpu.gpr(register.gpr);
    let new =
        if register.high { old & !0xff00 | (value & 0xff) << 8 } else { width.merge(old, value) };
    cpu.set_gpr(register.gpr, new);
}

const fn low(gpr: Gpr) -> Register {
    Register { gpr, high: false }
}

/// An operand's linear address.
fn locate<C: Cpu>(
    cpu: &C,
    operand: &MemoryOperand,
    width: Width,
    intent: Intent,
) -> Result<u64, GuestException> {
    address::operand_linear(cpu, operand, 0, width.bytes() as u64, intent)
}

/// The value of an operand that is only read.
pub(crate) fn value<C: Cpu>(
    cpu: &mut C,
    operand: &Operand,
    width: Width,
) -> Result<u64, Fault<C::Error>> {
    Ok(match operand {
        // Vectors are moved elsewhere.
        Operand::None | Operand::Vector(_) => 0,
        Operand::Register(which) => register(cpu, *which, width),
        Operand::Immediate(value) => width.truncate(*value),
        Operand::Segment(which) => cpu.segment(*which).selector.into(),
        Operand::Memory(memory) => {
            let linear = locate(cpu, memory, width, Intent::Read)?;
            load(cpu, linear, width, AccessKind::Read)?
        }
    })
}

/// Writes an operand that is not read before.
pub(crate) fn assign<C: Cpu>(
    cpu: &mut C,
    operand: &Operand,
    width: Width,
    value: u64,
) -> Result<(), Fault<C::Error>> {
    match operand {
        Operand::None | Operand::Immediate(_) | Operand::Segment(_) | Operand::Vector(_) => {}
        Operand::Register(which) => set_register(cpu, *which, width, value),
        Operand::Memory(memory) => {
            let linear = locate(cpu, memory, width, Intent::Write)?;
            store(cpu, linear, width, value)?;
        }
    }
    Ok(())
}

/// Replaces the destination by what `change` makes of it, in one atomic step if
/// the instruction is locked, and returns its old value. `None`: the destination
/// was contended, and nothing was written.
fn modify<C: Cpu>(
    cpu: &mut C,
    instruction: &Instruction,
    extra: u64,
    change: impl Fn(u64) -> u64,
) -> Result<Option<u64>, Fault<C::Error>> {
    let width = instruction.width;
    let memory = match instruction.destination {
        Operand::Memory(memory) => memory,
        other => {
            let old = value(cpu, &other, width)?;
            assign(cpu, &other, width, change(old))?;
            return Ok(Some(old));
        }
    };
    let bytes = width.bytes() as u64;
    let linear = address::operand_linear(cpu, &memory, extra, bytes, Intent::Write)?;
    let mut old = load(cpu, linear, width, AccessKind::ReadForWrite)?;
    if !instruction.lock {
        store(cpu, linear, width, width.truncate(change(old)))?;
        return Ok(Some(old));
    }
    for _ in 0..LOCK_ATTEMPTS {
        let found = cpu.compare_exchange(linear, width, old, width.truncate(change(old)))?;
        if found == old {
            return Ok(Some(old));
        }
        old = found;
    }
    Ok(None)
}

/// [`modify`] by an operation with flags.
fn modify_with_flags<C: Cpu>(
    cpu: &mut C,
    instruction: &Instruction,
    extra: u64,
    operation: impl Fn(u64) -> Outcome,
) -> Result<Step, Fault<C::Error>> {
    let Some(old) = modify(cpu, instruction, extra, |old| operation(old).value)? else {
        return Ok(Step::Again);
    };
    set_flags(cpu, operation(old));
    Ok(Step::Done)
}

fn set_flags<C: Cpu>(cpu: &mut C, outcome: Outcome) {
    let flags = outcome.apply(cpu.rflags());
    cpu.set_rflags(flags);
}

/// Everything but string instructions and branches. RIP stays where it is.
fn run<C: Cpu>(cpu: &mut C, instruction: &Instruction) -> Result<Step, Fault<C::Error>> {
    let Instruction { op, width, ref destination, ref source, .. } = *instruction;
    let flags = cpu.rflags();
    match op {
        Op::Mov => {
            let moved = value(cpu, source, width)?;
            assign(cpu, destination, width, moved)?;
        }
        Op::MoveZeroExtend(from) => {
            let moved = value(cpu, source, from)?;
            assign(cpu, destination, width, moved)?;
        }
        Op::MoveSignExtend(from) => {
            let moved = value(cpu, source, from)?;
            assign(cpu, destination, width, from.sign_extend(moved))?;
        }
        Op::MoveBigEndian => {
            let moved = value(cpu, source, width)?;
            let swapped = moved.swap_bytes() >> 64_u32.wrapping_sub(width.bits());
            assign(cpu, destination, width, swapped)?;
        }
        Op::MoveIf(condition) => {
            // The source is read in any case, and 32 bits clear the upper half.
            let moved = value(cpu, source, width)?;
            let old = value(cpu, destination, width)?;
            let new = if condition.holds(flags) { moved } else { old };
            assign(cpu, destination, width, new)?;
        }
        Op::SetIf(condition) => {
            assign(cpu, destination, width, u64::from(condition.holds(flags)))?;
        }
        Op::Alu(operation @ (crate::AluOp::Cmp | crate::AluOp::Test)) => {
            let a = value(cpu, destination, width)?;
            let b = value(cpu, source, width)?;
            set_flags(cpu, alu::binary(operation, width, a, b, flags));
        }
        Op::Alu(operation) => {
            let b = value(cpu, source, width)?;
            return modify_with_flags(cpu, instruction, 0, |a| {
                alu::binary(operation, width, a, b, flags)
            });
        }
        Op::Not => return modify_with_flags(cpu, instruction, 0, |a| alu::not(width, a)),
        Op::Neg => return modify_with_flags(cpu, instruction, 0, |a| alu::negate(width, a)),
        Op::Inc => return modify_with_flags(cpu, instruction, 0, |a| alu::increment(width, a)),
        Op::Dec => return modify_with_flags(cpu, instruction, 0, |a| alu::decrement(width, a)),
        Op::Shift(operation) => {
            let count = value(cpu, source, Width::B1)?;
            return modify_with_flags(cpu, instruction, 0, |a| {
                alu::shift(operation, width, a, count, flags)
            });
        }
        Op::Exchange => return exchange(cpu, instruction),
        Op::CompareExchange => return compare_exchange(cpu, instruction),
        Op::CompareExchangePair => return compare_exchange_pair(cpu, instruction),
        Op::ExchangeAdd => return exchange_add(cpu, instruction),
        Op::Bit(operation) => return bit(cpu, instruction, operation),
        Op::Push => control::push_operand(cpu, width, destination)?,
        Op::Pop => control::pop(cpu, instruction)?,
        Op::Descriptor(op) => return segments::run(cpu, instruction, op),
        Op::Vector(moved) => vector::run(cpu, instruction, moved)?,
        _ => return wide(cpu, instruction),
    }
    Ok(Step::Done)
}

/// Operations with results or operands beyond the usual two.
fn wide<C: Cpu>(cpu: &mut C, instruction: &Instruction) -> Result<Step, Fault<C::Error>> {
    let width = instruction.width;
    match instruction.op {
        Op::DoubleShift { left, count } => {
            return multiply::double_shift(cpu, instruction, left, count);
        }
        Op::Multiply { signed } => multiply::multiply(cpu, instruction, signed)?,
        Op::MultiplyLow(third) => multiply::multiply_low(cpu, instruction, third)?,
        Op::MultiplyWide(lower) => multiply::multiply_wide(cpu, instruction, lower)?,
        Op::Divide { signed } => multiply::divide(cpu, instruction, signed)?,
        Op::Scan(op) => multiply::scan(cpu, instruction, op)?,
        Op::Field(op, gpr) => {
            let b = register(cpu, low(gpr), width);
            multiply::into_destination(cpu, instruction, |a| alu::field(op, width, a, b))?;
        }
        Op::RotateCopy(count) => {
            let a = value(cpu, &instruction.source, width)?;
            assign(cpu, &instruction.destination, width, alu::rotate_right(width, a, count))?;
        }
        Op::AddCarry { overflow } => {
            let flags = cpu.rflags();
            let b = value(cpu, &instruction.destination, width)?;
            multiply::into_destination(cpu, instruction, |a| {
                alu::add_carry(overflow, width, a, b, flags)
            })?;
        }
        Op::Crc32(from) => multiply::crc32(cpu, instruction, from)?,
        Op::Translate => multiply::translate(cpu, instruction)?,
        Op::Bounds => multiply::bounds(cpu, instruction)?,
        Op::Move64 => multiply::move64(cpu, instruction)?,
        // Hints do nothing; the others are run elsewhere.
        _ => {}
    }
    Ok(Step::Done)
}

fn exchange_add<C: Cpu>(cpu: &mut C, instruction: &Instruction) -> Result<Step, Fault<C::Error>> {
    let Instruction { width, ref destination, ref source, .. } = *instruction;
    let flags = cpu.rflags();
    let b = value(cpu, source, width)?;
    let sum = |a| alu::binary(crate::AluOp::Add, width, a, b, flags);
    let Some(old) = modify(cpu, instruction, 0, |a| sum(a).value)? else {
        return Ok(Step::Again);
    };
    // If both are the same register, the sum stays.
    if source != destination {
        assign(cpu, source, width, old)?;
    }
    set_flags(cpu, sum(old));
    Ok(Step::Done)
}

fn exchange<C: Cpu>(cpu: &mut C, instruction: &Instruction) -> Result<Step, Fault<C::Error>> {
    // Memory goes first, as it may fault.
    let swapped = match instruction.source {
        Operand::Memory(_) => Instruction {
            destination: instruction.source,
            source: instruction.destination,
            ..*instruction
        },
        _ => *instruction,
    };
    let new = value(cpu, &swapped.source, swapped.width)?;
    let Some(old) = modify(cpu, &swapped, 0, |_| new)? else { return Ok(Step::Again) };
    assign(cpu, &swapped.source, swapped.width, old)?;
    Ok(Step::Done)
}

/// CMPXCHG always writes: where the comparison fails, what was there.
fn compare_exchange<C: Cpu>(
    cpu: &mut C,
    instruction: &Instruction,
) -> Result<Step, Fault<C::Error>> {
    let width = instruction.width;
    let accumulator = register(cpu, low(Gpr::Rax), width);
    let new = value(cpu, &instruction.source, width)?;
    let change = |old| if old == accumulator { new } else { old };
    let Some(old) = modify(cpu, instruction, 0, change)? else { return Ok(Step::Again) };
    if old != accumulator {
        set_register(cpu, low(Gpr::Rax), width, old);
    }
    let flags = cpu.rflags();
    set_flags(cpu, alu::binary(crate::AluOp::Cmp, width, accumulator, old, flags));
    Ok(Step::Done)
}

/// CMPXCHG8B and CMPXCHG16B. They are made in one step whether locked or not.
fn compare_exchange_pair<C: Cpu>(
    cpu: &mut C,
    instruction: &Instruction,
) -> Result<Step, Fault<C::Error>> {
    let Operand::Memory(memory) = instruction.destination else {
        return Err(GuestException::UD.into());
    };
    let half = instruction.width;
    let reg = |cpu: &C, gpr| register(cpu, low(gpr), half);
    let pair = |high: u64, low: u64| u128::from(high) << half.bits() | u128::from(low);
    let current = pair(reg(cpu, Gpr::Rdx), reg(cpu, Gpr::Rax));
    let new = pair(reg(cpu, Gpr::Rcx), reg(cpu, Gpr::Rbx));
    let bytes = half.bytes() << 1;
    let linear = address::operand_linear(cpu, &memory, 0, bytes as u64, Intent::Write)?;
    if half == Width::B8 && !linear.is_multiple_of(16) {
        return Err(GuestException::with_zero(x86defs::Exception::GP, cpu.mode()).into());
    }
    let mut raw = [0; 16];
    cpu.read(linear, raw.get_mut(..bytes).unwrap_or_default(), AccessKind::ReadForWrite)?;
    let mut old = u128::from_le_bytes(raw);
    let mut written = false;
    for _ in 0..LOCK_ATTEMPTS {
        let next = if old == current { new } else { old };
        let found = if half == Width::B8 {
            cpu.compare_exchange16(linear, old, next)?
        } else {
            u128::from(cpu.compare_exchange(linear, Width::B8, low64(old), low64(next))?)
        };
        written = found == old;
        if written {
            break;
        }
        old = found;
    }
    if !written {
        return Ok(Step::Again);
    }
    let equal = old == current;
    if !equal {
        set_register(cpu, low(Gpr::Rax), half, low64(old));
        set_register(cpu, low(Gpr::Rdx), half, low64(old >> half.bits()));
    }
    let mut flags = cpu.rflags();
    flags.set(Rflags::ZF, equal);
    cpu.set_rflags(flags);
    Ok(Step::Done)
}

fn low64(value: u128) -> u64 {
    join((value >> 32).low32(), value.low32())
}

/// BT and its kin. A bit offset in a register reaches beyond a memory operand.
fn bit<C: Cpu>(
    cpu: &mut C,
    instruction: &Instruction,
    operation: BitOp,
) -> Result<Step, Fault<C::Error>> {
    let width = instruction.width;
    let offset = value(cpu, &instruction.source, width)?;
    let in_register = matches!(instruction.source, Operand::Register(_));
    let extra = if in_register {
        let signed = width.sign_extend(offset).cast_signed();
        let operands = signed >> width.bits().trailing_zeros();
        operands.cast_unsigned().wrapping_mul(width.bytes() as u64)
    } else {
        0
    };
    let outcome = |a| alu::bit(operation, width, a, offset);
    if operation != BitOp::Test {
        return modify_with_flags(cpu, instruction, extra, outcome);
    }
    let old = match &instruction.destination {
        Operand::Memory(memory) => {
            let bytes = width.bytes() as u64;
            let linear = address::operand_linear(cpu, memory, extra, bytes, Intent::Read)?;
            load(cpu, linear, width, AccessKind::Read)?
        }
        other => value(cpu, other, width)?,
    };
    set_flags(cpu, outcome(old));
    Ok(Step::Done)
}
