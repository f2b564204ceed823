//! The stack, near branches, and flags as a whole.

use super::{assign, load, low, set_register, store, value};
use crate::address::{self, Intent};
use crate::cpu::{AccessKind, Cpu, Fault, GuestException};
use crate::instruction::{ControlOp, Instruction, Operand};
use x86defs::control::CpuMode;
use x86defs::{Cr4, Exception, Gpr, GuestVirtAddr, Rflags, SegmentRegister, Width};

/// The most that is pushed at once: ENTER's frame pointers and RBP.
const MOST: usize = 33;

/// Values on their way onto the stack.
struct Pushes {
    values: [u64; MOST],
    count: usize,
}

impl Pushes {
    const fn new() -> Self {
        Self { values: [0; MOST], count: 0 }
    }

    fn add(&mut self, value: u64) {
        if let Some(slot) = self.values.get_mut(self.count) {
            *slot = value;
            self.count = self.count.saturating_add(1);
        }
    }

    fn iter(&self) -> impl Iterator<Item = u64> + '_ {
        self.values.iter().take(self.count).copied()
    }
}

/// The linear address of the stack's entry at `offset`.
fn entry<C: Cpu>(
    cpu: &C,
    offset: u64,
    width: Width,
    intent: Intent,
) -> Result<u64, GuestException> {
    let offset = address::stack_width(cpu).truncate(offset);
    address::linear(cpu, SegmentRegister::Ss, offset, width.bytes() as u64, intent)
}

/// Pushes one value after the other, all of them or none.
fn push_all<C: Cpu>(cpu: &mut C, width: Width, pushes: &Pushes) -> Result<(), Fault<C::Error>> {
    let bytes = width.bytes() as u64;
    let before = cpu.gpr(Gpr::Rsp);
    if pushes.count > 1 {
        let mut rsp = before;
        for _ in pushes.iter() {
            rsp = rsp.wrapping_sub(bytes);
            let linear = entry(cpu, rsp, width, Intent::Write)?;
            cpu.probe_write(linear, width.bytes())?;
        }
    }
    let mut rsp = before;
    for pushed in pushes.iter() {
        rsp = rsp.wrapping_sub(bytes);
        let linear = entry(cpu, rsp, width, Intent::Write)?;
        store(cpu, linear, width, width.truncate(pushed))?;
    }
    let stack = address::stack_width(cpu);
    set_register(cpu, low(Gpr::Rsp), stack, stack.truncate(rsp));
    Ok(())
}

/// PUSH of an operand, which may be a device's: it is read once the push is known to work.
pub(super) fn push_operand<C: Cpu>(
    cpu: &mut C,
    width: Width,
    operand: &Operand,
) -> Result<(), Fault<C::Error>> {
    if matches!(operand, Operand::Memory(_)) {
        probe_push(cpu, width)?;
    }
    let pushed = value(cpu, operand, width)?;
    push(cpu, width, pushed)
}

/// Fails where [`push`] would.
fn probe_push<C: Cpu>(cpu: &mut C, width: Width) -> Result<(), Fault<C::Error>> {
    let rsp = cpu.gpr(Gpr::Rsp).wrapping_sub(width.bytes() as u64);
    let linear = entry(cpu, rsp, width, Intent::Write)?;
    cpu.probe_write(linear, width.bytes())
}

pub(super) fn push<C: Cpu>(cpu: &mut C, width: Width, pushed: u64) -> Result<(), Fault<C::Error>> {
    let mut pushes = Pushes::new();
    pushes.add(pushed);
    push_all(cpu, width, &pushes)
}

/// The value on the stack `offset` bytes above RSP.
pub(super) fn peek<C: Cpu>(cpu: &mut C, width: Width, offset: u64) -> Result<u64, Fault<C::Error>> {
    let at = cpu.gpr(Gpr::Rsp).wrapping_add(offset);
    let linear = entry(cpu, at, width, Intent::Read)?;
    load(cpu, linear, width, AccessKind::Read)
}

/// Moves RSP, of which `stack` counts, up by `bytes`.
pub(super) fn drop_bytes<C: Cpu>(cpu: &mut C, stack: Width, bytes: u64) {
    let rsp = stack.truncate(cpu.gpr(Gpr::Rsp).wrapping_add(bytes));
    set_register(cpu, low(Gpr::Rsp), stack, rsp);
}

/// POP computes its operand's address with RSP already moved.
pub(super) fn pop<C: Cpu>(cpu: &mut C, instruction: &Instruction) -> Result<(), Fault<C::Error>> {
    let width = instruction.width;
    let before = cpu.gpr(Gpr::Rsp);
    let popped = peek(cpu, width, 0)?;
    drop_bytes(cpu, address::stack_width(cpu), width.bytes() as u64);
    let result = assign(cpu, &instruction.destination, width, popped);
    if result.is_err() {
        cpu.set_gpr(Gpr::Rsp, before);
    }
    result
}

/// Runs a branch, or an operation with a stack frame. `next` is RIP behind the instruction; the
/// answer is RIP after it.
pub(super) fn run<C: Cpu>(
    cpu: &mut C,
    instruction: &Instruction,
    op: ControlOp,
    next: u64,
) -> Result<u64, Fault<C::Error>> {
    let width = instruction.width;
    match op {
        ControlOp::Jump => {
            let target = value(cpu, &instruction.destination, width)?;
            return Ok(branch(cpu, target)?);
        }
        ControlOp::Call => {
            // The target may be a device's: it is read once the push is known to work.
            probe_push(cpu, width)?;
            let target = value(cpu, &instruction.destination, width)?;
            let target = branch(cpu, target)?;
            push(cpu, width, next)?;
            return Ok(target);
        }
        ControlOp::Return(more) => {
            let target = peek(cpu, width, 0)?;
            let target = branch(cpu, target)?;
            drop_bytes(
                cpu,
                address::stack_width(cpu),
                (width.bytes() as u64).wrapping_add(more.into()),
            );
            return Ok(target);
        }
        ControlOp::Enter(bytes, level) => enter(cpu, width, bytes, level)?,
        ControlOp::Leave => leave(cpu, width)?,
        ControlOp::PushAll => push_registers(cpu, width)?,
        ControlOp::PopAll => pop_registers(cpu, width)?,
        ControlOp::PushFlags => push_flags(cpu, width)?,
        ControlOp::PopFlags => pop_flags(cpu, width)?,
    }
    Ok(next)
}

/// A branch's target, which must be an address that code can be fetched from.
fn branch<C: Cpu>(cpu: &C, target: u64) -> Result<u64, GuestException> {
    let mode = cpu.mode();
    let good = if mode == CpuMode::Long64 {
        GuestVirtAddr::new(target).is_canonical()
    } else {
        target <= u64::from(cpu.segment(SegmentRegister::Cs).limit)
    };
    if good { Ok(target) } else { Err(GuestException::with_zero(Exception::GP, mode)) }
}

/// ENTER (SDM: "ENTER—Make Stack Frame for Procedure Parameters").
fn enter<C: Cpu>(cpu: &mut C, width: Width, bytes: u16, level: u8) -> Result<(), Fault<C::Error>> {
    let stack = address::stack_width(cpu);
    let level = level & 31;
    let size = width.bytes() as u64;
    let frame = stack.truncate(cpu.gpr(Gpr::Rsp).wrapping_sub(size));
    let mut pushes = Pushes::new();
    let rbp = cpu.gpr(Gpr::Rbp);
    pushes.add(rbp);
    for number in 1..level {
        let at = rbp.wrapping_sub(size.wrapping_mul(number.into()));
        let linear = entry(cpu, at, width, Intent::Read)?;
        let outer = load(cpu, linear, width, AccessKind::Read)?;
        pushes.add(outer);
    }
    if level > 0 {
        pushes.add(frame);
    }
    // The last byte of the frame must be one that can be written.
    let pushed = size.wrapping_mul(pushes.count as u64);
    let rsp = stack.truncate(cpu.gpr(Gpr::Rsp).wrapping_sub(pushed).wrapping_sub(bytes.into()));
    let linear = entry(cpu, rsp, width, Intent::Write)?;
    cpu.probe_write(linear, width.bytes())?;
    push_all(cpu, width, &pushes)?;
    set_register(cpu, low(Gpr::Rbp), width, width.truncate(frame));
    set_register(cpu, low(Gpr::Rsp), stack, rsp);
    Ok(())
}

fn leave<C: Cpu>(cpu: &mut C, width: Width) -> Result<(), Fault<C::Error>> {
    let stack = address::stack_width(cpu);
    let rbp = stack.truncate(cpu.gpr(Gpr::Rbp));
    let linear = entry(cpu, rbp, width, Intent::Read)?;
    let popped = load(cpu, linear, width, AccessKind::Read)?;
    set_register(cpu, low(Gpr::Rsp), stack, stack.truncate(rbp.wrapping_add(width.bytes() as u64)));
    set_register(cpu, low(Gpr::Rbp), width, popped);
    Ok(())
}

/// The registers of PUSHA, in the order in which they are pushed.
const ALL: [Gpr; 8] =
    [Gpr::Rax, Gpr::Rcx, Gpr::Rdx, Gpr::Rbx, Gpr::Rsp, Gpr::Rbp, Gpr::Rsi, Gpr::Rdi];

fn push_registers<C: Cpu>(cpu: &mut C, width: Width) -> Result<(), Fault<C::Error>> {
    let mut pushes = Pushes::new();
    for gpr in ALL {
        pushes.add(cpu.gpr(gpr));
    }
    push_all(cpu, width, &pushes)
}

/// POPA drops RSP's value.
fn pop_registers<C: Cpu>(cpu: &mut C, width: Width) -> Result<(), Fault<C::Error>> {
    let bytes = width.bytes() as u64;
    let mut popped = [0; ALL.len()];
    for (place, slot) in (0_u64..).zip(&mut popped) {
        *slot = peek(cpu, width, place.wrapping_mul(bytes))?;
    }
    for (gpr, value) in ALL.into_iter().rev().zip(popped) {
        if gpr != Gpr::Rsp {
            set_register(cpu, low(gpr), width, value);
        }
    }
    drop_bytes(cpu, address::stack_width(cpu), bytes.wrapping_mul(ALL.len() as u64));
    Ok(())
}

/// Virtual-8086 mode whose IOPL is not 3: PUSHF and POPF fault, unless CR4.VME has those of two
/// bytes see VIF for IF (SDM: "Software Interrupt Handling Methods While in Virtual-8086 Mode").
fn virtual_flags<C: Cpu>(cpu: &C, width: Width) -> Result<bool, GuestException> {
    let mode = cpu.mode();
    if mode != CpuMode::Virtual8086 || cpu.rflags().contains(Rflags::IOPL) {
        return Ok(false);
    }
    if width == Width::B2 && cpu.cr4().contains(Cr4::VME) {
        return Ok(true);
    }
    Err(GuestException::with_zero(Exception::GP, mode))
}

fn push_flags<C: Cpu>(cpu: &mut C, width: Width) -> Result<(), Fault<C::Error>> {
    let mut flags = cpu.rflags();
    if virtual_flags(cpu, width)? {
        flags.set(Rflags::IF, flags.contains(Rflags::VIF));
        flags |= Rflags::IOPL;
    }
    flags.remove(Rflags::VM | Rflags::RF);
    push(cpu, width, flags.bits())
}

/// POPF (SDM: "POPF—Pop Stack Into EFLAGS Register").
fn pop_flags<C: Cpu>(cpu: &mut C, width: Width) -> Result<(), Fault<C::Error>> {
    let old = cpu.rflags();
    let virtually = virtual_flags(cpu, width)?;
    let new = Rflags::from_bits_truncate(peek(cpu, width, 0)?);
    let level = cpu.cpl();
    let privilege = u8::from(old.bits() & 1 << 12 != 0) | u8::from(old.bits() & 1 << 13 != 0) << 1;
    let mut changed = Rflags::ARITHMETIC | Rflags::TF | Rflags::DF | Rflags::NT;
    if width != Width::B2 {
        changed |= Rflags::AC | Rflags::ID;
    }
    if level <= privilege {
        changed |= Rflags::IF;
    }
    if level == 0 {
        changed |= Rflags::IOPL;
    }
    let mut flags = old.difference(changed) | new & changed;
    if virtually {
        let wanted = new.contains(Rflags::IF);
        if new.contains(Rflags::TF) || wanted && old.contains(Rflags::VIP) {
            return Err(GuestException::with_zero(Exception::GP, cpu.mode()).into());
        }
        flags.set(Rflags::VIF, wanted);
    }
    drop_bytes(cpu, address::stack_width(cpu), width.bytes() as u64);
    cpu.set_rflags(flags | Rflags::RESERVED1);
    Ok(())
}
