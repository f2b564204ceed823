//! Products, quotients, and what else needs more than two operands.

use super::{load, low, modify_with_flags, register, set_flags, set_register, value};
use crate::address::{self, Intent};
use crate::alu::{self, Outcome};
use crate::cpu::{AccessKind, Cpu, Fault, GuestException, Step};
use crate::instruction::{Instruction, Operand, Register, ScanOp};
use x86defs::{Exception, Gpr, Low, Rflags, Width};

const AH: Register = Register { gpr: Gpr::Rax, high: true };

/// The register that holds the upper half of a product: AH or rDX.
const fn upper(width: Width) -> Register {
    match width {
        Width::B1 => AH,
        _ => low(Gpr::Rdx),
    }
}

/// MUL and IMUL of one operand.
pub(super) fn multiply<C: Cpu>(
    cpu: &mut C,
    instruction: &Instruction,
    signed: bool,
) -> Result<(), Fault<C::Error>> {
    let width = instruction.width;
    let b = value(cpu, &instruction.destination, width)?;
    let a = register(cpu, low(Gpr::Rax), width);
    let product = alu::multiply(signed, width, a, b);
    set_register(cpu, low(Gpr::Rax), width, product.low.value);
    set_register(cpu, upper(width), width, product.high);
    set_flags(cpu, product.low);
    Ok(())
}

/// IMUL of two and three operands.
pub(super) fn multiply_low<C: Cpu>(
    cpu: &mut C,
    instruction: &Instruction,
    third: Option<i32>,
) -> Result<(), Fault<C::Error>> {
    let Instruction { width, ref destination, ref source, .. } = *instruction;
    let a = value(cpu, source, width)?;
    let b = match third {
        Some(constant) => i64::from(constant).cast_unsigned(),
        None => value(cpu, destination, width)?,
    };
    let product = alu::multiply(true, width, a, b);
    super::assign(cpu, destination, width, product.low.value)?;
    set_flags(cpu, product.low);
    Ok(())
}

/// MULX, which has no flags. Where both halves go into one register, it is the upper one.
pub(super) fn multiply_wide<C: Cpu>(
    cpu: &mut C,
    instruction: &Instruction,
    lower: Gpr,
) -> Result<(), Fault<C::Error>> {
    let width = instruction.width;
    let a = value(cpu, &instruction.source, width)?;
    let b = register(cpu, low(Gpr::Rdx), width);
    let product = alu::multiply(false, width, a, b);
    set_register(cpu, low(lower), width, product.low.value);
    super::assign(cpu, &instruction.destination, width, product.high)
}

/// DIV and IDIV. The flags, which are undefined, stay.
pub(super) fn divide<C: Cpu>(
    cpu: &mut C,
    instruction: &Instruction,
    signed: bool,
) -> Result<(), Fault<C::Error>> {
    let width = instruction.width;
    let divisor = value(cpu, &instruction.destination, width)?;
    let dividend = (register(cpu, upper(width), width), register(cpu, low(Gpr::Rax), width));
    let Some((quotient, remainder)) = alu::divide(signed, width, dividend.0, dividend.1, divisor)
    else {
        return Err(GuestException::plain(Exception::DE).into());
    };
    set_register(cpu, low(Gpr::Rax), width, quotient);
    set_register(cpu, upper(width), width, remainder);
    Ok(())
}

/// BSF and its kin. Where BSF or BSR finds nothing, the destination stays.
pub(super) fn scan<C: Cpu>(
    cpu: &mut C,
    instruction: &Instruction,
    op: ScanOp,
) -> Result<(), Fault<C::Error>> {
    let a = value(cpu, &instruction.source, instruction.width)?;
    let op = match op {
        ScanOp::TrailingZeros if !cpu.counts_zeros(op) => ScanOp::Forward,
        ScanOp::LeadingZeros if !cpu.counts_zeros(op) => ScanOp::Reverse,
        op => op,
    };
    let Some(outcome) = alu::scan(op, instruction.width, a) else {
        let flags = cpu.rflags() | Rflags::ZF;
        cpu.set_rflags(flags);
        return Ok(());
    };
    super::assign(cpu, &instruction.destination, instruction.width, outcome.value)?;
    set_flags(cpu, outcome);
    Ok(())
}

/// SHLD and SHRD.
pub(super) fn double_shift<C: Cpu>(
    cpu: &mut C,
    instruction: &Instruction,
    left: bool,
    count: Option<u8>,
) -> Result<Step, Fault<C::Error>> {
    let width = instruction.width;
    let b = value(cpu, &instruction.source, width)?;
    let count = count.map_or_else(|| register(cpu, low(Gpr::Rcx), Width::B1), u64::from);
    modify_with_flags(cpu, instruction, 0, |a| alu::double_shift(left, width, a, b, count))
}

/// CRC32: a destination of four bytes, or of eight whose upper half is cleared.
pub(super) fn crc32<C: Cpu>(
    cpu: &mut C,
    instruction: &Instruction,
    from: Width,
) -> Result<(), Fault<C::Error>> {
    let data = value(cpu, &instruction.source, from)?;
    let old = value(cpu, &instruction.destination, Width::B4)?.low32();
    let new = alu::crc32(from, old, data);
    super::assign(cpu, &instruction.destination, Width::B8, new.into())
}

/// An operation whose result goes from the source into the destination, with its flags.
pub(super) fn into_destination<C: Cpu>(
    cpu: &mut C,
    instruction: &Instruction,
    operation: impl Fn(u64) -> Outcome,
) -> Result<(), Fault<C::Error>> {
    let a = value(cpu, &instruction.source, instruction.width)?;
    let outcome = operation(a);
    super::assign(cpu, &instruction.destination, instruction.width, outcome.value)?;
    set_flags(cpu, outcome);
    Ok(())
}

/// BOUND: #BR unless the register lies between the two bounds in memory, which are signed.
pub(super) fn bounds<C: Cpu>(
    cpu: &mut C,
    instruction: &Instruction,
) -> Result<(), Fault<C::Error>> {
    let Instruction { width, ref destination, source, .. } = *instruction;
    let Operand::Memory(memory) = source else { return Err(GuestException::UD.into()) };
    let index = value(cpu, destination, width)?;
    let mut bound = |extra| {
        let bytes = width.bytes() as u64;
        let linear = address::operand_linear(cpu, &memory, extra, bytes, Intent::Read)?;
        load(cpu, linear, width, AccessKind::Read)
    };
    let (lower, upper) = (bound(0)?, bound(width.bytes() as u64)?);
    let signed = |value| width.sign_extend(value).cast_signed();
    if (signed(lower)..=signed(upper)).contains(&signed(index)) {
        return Ok(());
    }
    Err(GuestException::plain(Exception::BR).into())
}

/// XLAT.
pub(super) fn translate<C: Cpu>(
    cpu: &mut C,
    instruction: &Instruction,
) -> Result<(), Fault<C::Error>> {
    let Operand::Memory(memory) = instruction.source else {
        return Err(GuestException::UD.into());
    };
    let al = register(cpu, low(Gpr::Rax), Width::B1);
    let linear = address::operand_linear(cpu, &memory, al, 1, Intent::Read)?;
    let found = load(cpu, linear, Width::B1, AccessKind::Read)?;
    set_register(cpu, low(Gpr::Rax), Width::B1, found);
    Ok(())
}

/// MOVDIR64B: eight writes of eight bytes, where a CPU makes one of 64.
pub(super) fn move64<C: Cpu>(
    cpu: &mut C,
    instruction: &Instruction,
) -> Result<(), Fault<C::Error>> {
    let (Operand::Memory(to), Operand::Memory(from)) =
        (instruction.destination, instruction.source)
    else {
        return Err(GuestException::UD.into());
    };
    let to = address::operand_linear(cpu, &to, 0, 64, Intent::Write)?;
    let from = address::operand_linear(cpu, &from, 0, 64, Intent::Read)?;
    if !to.is_multiple_of(64) {
        return Err(GuestException::with_zero(Exception::GP, cpu.mode()).into());
    }
    cpu.probe_write(to, 64)?;
    let mut words = [0; 8];
    for (place, word) in (0_u64..).zip(&mut words) {
        let at = from.wrapping_add(place.wrapping_mul(8));
        *word = load(cpu, at, Width::B8, AccessKind::Read)?;
    }
    for (place, word) in (0_u64..).zip(words) {
        super::store(cpu, to.wrapping_add(place.wrapping_mul(8)), Width::B8, word)?;
    }
    Ok(())
}
