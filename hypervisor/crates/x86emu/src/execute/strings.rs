//! String instructions, in bounded steps.

use super::{assign, fetch, load, register, retire, set_register, store};
use crate::MAX_INSTRUCTION;
use crate::address::{self, Intent};
use crate::alu;
use crate::cpu::{AccessKind, Cpu, Fault, GuestException, Step, Stop};
use crate::instruction::{
    AluOp, Instruction, MemoryOperand, Op, Operand, Register, Repeat, StringOp,
};
use x86defs::{Gpr, Low, Rflags, Width};

/// Iterations of a repeated instruction that one call does at most, unless the
/// guest single-steps: then one.
const ITERATIONS: u32 = 256;

const RAX: Register = Register { gpr: Gpr::Rax, high: false };
const RCX: Register = Register { gpr: Gpr::Rcx, high: false };

/// Ports that INS reads and OUTS writes.
pub trait Ports {
    /// Why the host could not serve an access.
    type Error;

    /// IN of one, two or four bytes.
    ///
    /// # Errors
    /// The host could not serve the access.
    fn port_in(&mut self, port: u16, width: Width) -> Result<u32, Self::Error>;

    /// OUT of one, two or four bytes.
    ///
    /// # Errors
    /// The host could not serve the access.
    fn port_out(&mut self, port: u16, width: Width, value: u32) -> Result<(), Self::Error>;
}

/// One iteration of an instruction without ports.
pub(super) fn run<C: Cpu>(
    cpu: &mut C,
    instruction: &Instruction,
    op: StringOp,
) -> Result<Step, Stop<C::Error>> {
    repeat(cpu, instruction, |cpu| once(cpu, instruction, op))
}

/// Executes the INS or OUTS at RIP, or a bounded part of a repeated one. The
/// CPU has checked the guest's rights to the port before the exit.
///
/// If another instruction stands at RIP by now, nothing is done: the guest then
/// runs that one.
///
/// # Errors
/// [`Stop`], as [`step`](super::step).
pub fn string_io<C: Cpu>(
    cpu: &mut C,
    ports: &mut impl Ports<Error = C::Error>,
) -> Result<Step, Stop<C::Error>> {
    let instruction = match fetch(cpu, &mut [0; MAX_INSTRUCTION]) {
        Ok(instruction) => instruction,
        Err(Stop::Unsupported(_)) => return Ok(Step::Again),
        Err(stop) => return Err(stop),
    };
    let Op::String(op @ (StringOp::Ins | StringOp::Outs)) = instruction.op else {
        return Ok(Step::Again);
    };
    let width = instruction.width;
    repeat(cpu, &instruction, |cpu| {
        let port = cpu.gpr(Gpr::Rdx).low16();
        if op == StringOp::Ins {
            // The port is read only once the memory is known to take the value.
            let (memory, linear) = at(cpu, &instruction.destination, width, Intent::Write)?;
            cpu.probe_write(linear, width.bytes())?;
            let value = ports.port_in(port, width).map_err(Fault::Host)?;
            store(cpu, linear, width, u64::from(value))?;
            advance(cpu, &memory, width);
        } else {
            let (memory, linear) = at(cpu, &instruction.source, width, Intent::Read)?;
            let value = load(cpu, linear, width, AccessKind::Read)?;
            ports.port_out(port, width, value.low32()).map_err(Fault::Host)?;
            advance(cpu, &memory, width);
        }
        Ok(())
    })
}

/// Runs iterations until the count or the condition ends them. Registers always
/// tell how far it came.
fn repeat<C: Cpu>(
    cpu: &mut C,
    instruction: &Instruction,
    mut once: impl FnMut(&mut C) -> Result<(), Fault<C::Error>>,
) -> Result<Step, Stop<C::Error>> {
    let rip = cpu.rip();
    let compares = matches!(instruction.op, Op::String(StringOp::Scas | StringOp::Cmps));
    let count_width = count_width(instruction);
    // A single-step trap is due after each iteration.
    let limit = if cpu.rflags().contains(Rflags::TF) { 1 } else { ITERATIONS };
    for _ in 0..limit {
        if instruction.repeat == Repeat::Once {
            once(cpu)?;
            retire(cpu, rip, instruction.length);
            return Ok(Step::Done);
        }
        let count = register(cpu, RCX, count_width);
        if count == 0 {
            retire(cpu, rip, instruction.length);
            return Ok(Step::Done);
        }
        once(cpu)?;
        set_register(cpu, RCX, count_width, count.wrapping_sub(1));
        let equal = cpu.rflags().contains(Rflags::ZF);
        let ended = compares && equal != (instruction.repeat == Repeat::WhileEqual);
        if ended || count == 1 {
            retire(cpu, rip, instruction.length);
            return Ok(Step::Done);
        }
    }
    Ok(Step::Again)
}

fn once<C: Cpu>(
    cpu: &mut C,
    instruction: &Instruction,
    op: StringOp,
) -> Result<(), Fault<C::Error>> {
    let Instruction { width, ref destination, ref source, .. } = *instruction;
    match op {
        StringOp::Movs => {
            let (from, from_linear) = at(cpu, source, width, Intent::Read)?;
            let (to, to_linear) = at(cpu, destination, width, Intent::Write)?;
            // A read may have side effects: first make sure of the write.
            cpu.probe_write(to_linear, width.bytes())?;
            let value = load(cpu, from_linear, width, AccessKind::Read)?;
            store(cpu, to_linear, width, value)?;
            advance(cpu, &from, width);
            advance(cpu, &to, width);
        }
        StringOp::Stos => {
            let value = register(cpu, RAX, width);
            let (to, linear) = at(cpu, destination, width, Intent::Write)?;
            store(cpu, linear, width, value)?;
            advance(cpu, &to, width);
        }
        StringOp::Lods => {
            let (from, linear) = at(cpu, source, width, Intent::Read)?;
            let value = load(cpu, linear, width, AccessKind::Read)?;
            assign(cpu, &Operand::Register(RAX), width, value)?;
            advance(cpu, &from, width);
        }
        StringOp::Scas => {
            let a = register(cpu, RAX, width);
            let (to, linear) = at(cpu, destination, width, Intent::Read)?;
            let b = load(cpu, linear, width, AccessKind::Read)?;
            compare(cpu, width, a, b);
            advance(cpu, &to, width);
        }
        StringOp::Cmps => {
            let (from, from_linear) = at(cpu, source, width, Intent::Read)?;
            let (to, to_linear) = at(cpu, destination, width, Intent::Read)?;
            let a = load(cpu, from_linear, width, AccessKind::Read)?;
            let b = load(cpu, to_linear, width, AccessKind::Read)?;
            compare(cpu, width, a, b);
            advance(cpu, &from, width);
            advance(cpu, &to, width);
        }
        StringOp::Ins | StringOp::Outs => return Err(GuestException::UD.into()),
    }
    Ok(())
}

fn compare<C: Cpu>(cpu: &mut C, width: Width, a: u64, b: u64) {
    let flags = cpu.rflags();
    cpu.set_rflags(alu::binary(AluOp::Cmp, width, a, b, flags).apply(flags));
}

/// A string operand and its linear address.
fn at<C: Cpu>(
    cpu: &C,
    operand: &Operand,
    width: Width,
    intent: Intent,
) -> Result<(MemoryOperand, u64), Fault<C::Error>> {
    let Operand::Memory(memory) = operand else { return Err(GuestException::UD.into()) };
    let linear = address::operand_linear(cpu, memory, 0, width.bytes() as u64, intent)?;
    Ok((*memory, linear))
}

/// Moves an operand's register on, or back where RFLAGS.DF says so.
fn advance<C: Cpu>(cpu: &mut C, memory: &MemoryOperand, width: Width) {
    let Some(gpr) = memory.base else { return };
    let bytes = width.bytes() as u64;
    let old = cpu.gpr(gpr);
    let new = if cpu.rflags().contains(Rflags::DF) {
        old.wrapping_sub(bytes)
    } else {
        old.wrapping_add(bytes)
    };
    set_register(cpu, Register { gpr, high: false }, memory.address_width, new);
}

/// The count register's width: the address size.
fn count_width(instruction: &Instruction) -> Width {
    match (instruction.destination, instruction.source) {
        (Operand::Memory(memory), _) | (_, Operand::Memory(memory)) => memory.address_width,
        _ => Width::B8,
    }
}
