//! Moves of MMX, SSE and AVX (SDM: "Instruction Exception Specification").

use crate::address::{self, Intent};
use crate::cpu::{AccessKind, Cpu, Fault, GuestException};
use crate::instruction::{Instruction, MemoryOperand, Operand, VectorMove, VectorOp, VectorSize};
use x86defs::{Cr0, Cr4, Exception, VectorRegister, Xcr0};

/// A register's bytes; those that it does not have are zero.
type Bytes = [u8; 32];

impl VectorSize {
    const fn bytes(self) -> usize {
        match self {
            Self::Mmx => 8,
            Self::Xmm => 16,
            Self::Ymm => 32,
        }
    }

    const fn register(self, number: u8) -> VectorRegister {
        match self {
            Self::Mmx => VectorRegister::Mmx(number),
            Self::Xmm => VectorRegister::Xmm(number),
            Self::Ymm => VectorRegister::Ymm(number),
        }
    }
}

/// Runs a move.
pub(super) fn run<C: Cpu>(
    cpu: &mut C,
    instruction: &Instruction,
    moved: VectorMove,
) -> Result<(), Fault<C::Error>> {
    check(cpu, moved)?;
    match (instruction.destination, instruction.source) {
        (Operand::Vector(number), Operand::Memory(memory)) => {
            let value = load(cpu, &memory, moved)?;
            let register = match (moved.op, moved.vex) {
                (VectorOp::Mxcsr, _) => VectorRegister::Mxcsr,
                (_, true) => VectorRegister::Ymm(number),
                (_, false) => moved.size.register(number),
            };
            cpu.set_vector(register, value).ok_or(PENDING)?;
            Ok(())
        }
        (Operand::Memory(memory), Operand::Vector(number)) => store(cpu, &memory, moved, number),
        _ => Err(GuestException::UD.into()),
    }
}

/// An exception of the x87 waits.
const PENDING: GuestException = GuestException::plain(Exception::MF);

/// Whether the guest has enabled the registers.
fn check<C: Cpu>(cpu: &C, moved: VectorMove) -> Result<(), GuestException> {
    let cr0 = cpu.cr0();
    let enabled = if moved.vex {
        let both = Xcr0::SSE | Xcr0::AVX;
        cpu.cr4().contains(Cr4::OSXSAVE) && cpu.xcr0().contains(both)
    } else {
        let any = moved.size == VectorSize::Mmx || cpu.cr4().contains(Cr4::OSFXSR);
        any && !cr0.contains(Cr0::EM)
    };
    if !enabled {
        return Err(GuestException::UD);
    }
    if cr0.contains(Cr0::TS) {
        return Err(GuestException::plain(Exception::NM));
    }
    Ok(())
}

/// The linear address of `bytes` bytes, `extra` bytes on.
fn locate<C: Cpu>(
    cpu: &C,
    memory: &MemoryOperand,
    extra: usize,
    bytes: usize,
    intent: Intent,
) -> Result<u64, GuestException> {
    address::operand_linear(cpu, memory, extra as u64, bytes as u64, intent)
}

/// #GP where an aligned move is not.
fn check_alignment<C: Cpu>(
    cpu: &C,
    linear: u64,
    bytes: usize,
    aligned: bool,
) -> Result<(), GuestException> {
    if aligned && !linear.is_multiple_of(bytes as u64) {
        return Err(GuestException::with_zero(Exception::GP, cpu.mode()));
    }
    Ok(())
}

fn read<C: Cpu>(
    cpu: &mut C,
    memory: &MemoryOperand,
    bytes: usize,
    aligned: bool,
) -> Result<Bytes, Fault<C::Error>> {
    let linear = locate(cpu, memory, 0, bytes, Intent::Read)?;
    check_alignment(cpu, linear, bytes, aligned)?;
    let mut value = [0; 32];
    cpu.read(linear, part_mut(&mut value, 0, bytes), AccessKind::Read)?;
    Ok(value)
}

fn part(value: &Bytes, from: usize, bytes: usize) -> &[u8] {
    value.get(from..from.saturating_add(bytes)).unwrap_or_default()
}

fn part_mut(value: &mut Bytes, from: usize, bytes: usize) -> &mut [u8] {
    value.get_mut(from..from.saturating_add(bytes)).unwrap_or_default()
}

fn copy(to: &mut Bytes, at: usize, from: &[u8]) {
    for (byte, new) in part_mut(to, at, from.len()).iter_mut().zip(from) {
        *byte = *new;
    }
}

/// The register's value after a load.
fn load<C: Cpu>(
    cpu: &mut C,
    memory: &MemoryOperand,
    moved: VectorMove,
) -> Result<Bytes, Fault<C::Error>> {
    let size = moved.size.bytes();
    match moved.op {
        VectorOp::Whole { aligned } => read(cpu, memory, size, aligned),
        VectorOp::Insert { bytes, index, keep, clear } => {
            let bytes = usize::from(bytes);
            let found = read(cpu, memory, bytes, false)?;
            let mut value = match keep {
                Some(number) => cpu.vector(moved.size.register(number)).ok_or(PENDING)?,
                None => [0; 32],
            };
            let at = usize::from(index).saturating_mul(bytes);
            copy(&mut value, at, part(&found, 0, bytes));
            for place in (0_usize..4).filter(|place| clear >> place & 1 != 0) {
                part_mut(&mut value, place << 2, 4).fill(0);
            }
            Ok(value)
        }
        VectorOp::Broadcast(bytes) => broadcast(cpu, memory, size, bytes.into()),
        VectorOp::Duplicate { bytes, high } => duplicate(cpu, memory, moved, bytes.into(), high),
        VectorOp::Widen { from, to, signed } => {
            let count = size.checked_div(to.bytes()).unwrap_or(0);
            let found = read(cpu, memory, count.saturating_mul(from.bytes()), false)?;
            let mut value = [0; 32];
            let elements = found.chunks(from.bytes()).take(count);
            for (at, element) in (0..size).step_by(to.bytes()).zip(elements) {
                let raw = element.iter().rev().fold(0, |n, byte| n << 8 | u64::from(*byte));
                let wide = if signed { from.sign_extend(raw) } else { raw };
                copy(&mut value, at, wide.to_le_bytes().get(..to.bytes()).unwrap_or_default());
            }
            Ok(value)
        }
        VectorOp::Masked { bytes, mask } => {
            let mask = cpu.vector(moved.size.register(mask)).ok_or(PENDING)?;
            let bytes = usize::from(bytes);
            let mut value = [0; 32];
            for at in selected(&mask, size, bytes) {
                let linear = locate(cpu, memory, at, bytes, Intent::Read)?;
                cpu.read(linear, part_mut(&mut value, at, bytes), AccessKind::Read)?;
            }
            Ok(value)
        }
        VectorOp::Mxcsr => {
            let value = read(cpu, memory, 4, false)?;
            // Bits 31:16 are reserved, and those whose setting a CPU without them refuses.
            if part(&value, 2, 2).iter().any(|byte| *byte != 0) {
                return Err(GuestException::with_zero(Exception::GP, cpu.mode()).into());
            }
            Ok(value)
        }
        VectorOp::Extract { .. } => Err(GuestException::UD.into()),
    }
}

/// All elements become the one in memory.
fn broadcast<C: Cpu>(
    cpu: &mut C,
    memory: &MemoryOperand,
    size: usize,
    bytes: usize,
) -> Result<Bytes, Fault<C::Error>> {
    let found = read(cpu, memory, bytes, false)?;
    let mut value = [0; 32];
    for at in (0..size).step_by(bytes.max(1)) {
        copy(&mut value, at, part(&found, 0, bytes));
    }
    Ok(value)
}

/// MOVDDUP reads the lower half only, where it loads 16 bytes.
fn duplicate<C: Cpu>(
    cpu: &mut C,
    memory: &MemoryOperand,
    moved: VectorMove,
    bytes: usize,
    high: bool,
) -> Result<Bytes, Fault<C::Error>> {
    let size = moved.size.bytes();
    let half = bytes == 8 && moved.size == VectorSize::Xmm;
    let found = read(cpu, memory, if half { 8 } else { size }, !moved.vex && !half)?;
    let mut value = [0; 32];
    for at in (0..size).step_by(bytes.max(1)) {
        let pair = at.checked_next_multiple_of(bytes << 1).unwrap_or(at);
        let pair = if pair == at { at } else { at.saturating_sub(bytes) };
        let from = if high { pair.saturating_add(bytes) } else { pair };
        copy(&mut value, at, part(&found, from, bytes));
    }
    Ok(value)
}

/// The places of the elements whose highest bit is set.
fn selected(mask: &Bytes, size: usize, bytes: usize) -> impl Iterator<Item = usize> + '_ {
    let top = bytes.saturating_sub(1);
    (0..size)
        .step_by(bytes.max(1))
        .filter(move |at| mask.get(at.saturating_add(top)).is_some_and(|byte| byte & 0x80 != 0))
}

/// The memory is known to take the bytes before a register is read: with MMX that changes the x87.
fn store<C: Cpu>(
    cpu: &mut C,
    memory: &MemoryOperand,
    moved: VectorMove,
    number: u8,
) -> Result<(), Fault<C::Error>> {
    let (bytes, from, aligned) = match moved.op {
        VectorOp::Whole { aligned } => (moved.size.bytes(), 0, aligned),
        VectorOp::Extract { bytes, index } => {
            let bytes = usize::from(bytes);
            (bytes, usize::from(index).saturating_mul(bytes), false)
        }
        VectorOp::Mxcsr => (4, 0, false),
        VectorOp::Masked { bytes, mask } => {
            return store_masked(cpu, memory, moved, number, (bytes.into(), mask));
        }
        _ => return Err(GuestException::UD.into()),
    };
    let linear = locate(cpu, memory, 0, bytes, Intent::Write)?;
    check_alignment(cpu, linear, bytes, aligned)?;
    cpu.probe_write(linear, bytes)?;
    let register = match moved.op {
        VectorOp::Mxcsr => VectorRegister::Mxcsr,
        _ => moved.size.register(number),
    };
    let value = cpu.vector(register).ok_or(PENDING)?;
    cpu.write(linear, part(&value, from, bytes))
}

/// One write for each element; all are known to work before the first.
fn store_masked<C: Cpu>(
    cpu: &mut C,
    memory: &MemoryOperand,
    moved: VectorMove,
    number: u8,
    (bytes, mask): (usize, u8),
) -> Result<(), Fault<C::Error>> {
    let size = moved.size.bytes();
    let mask = cpu.vector(moved.size.register(mask)).ok_or(PENDING)?;
    for at in selected(&mask, size, bytes) {
        let linear = locate(cpu, memory, at, bytes, Intent::Write)?;
        cpu.probe_write(linear, bytes)?;
    }
    let value = cpu.vector(moved.size.register(number)).ok_or(PENDING)?;
    for at in selected(&mask, size, bytes) {
        let linear = locate(cpu, memory, at, bytes, Intent::Write)?;
        cpu.write(linear, part(&value, at, bytes))?;
    }
    Ok(())
}
