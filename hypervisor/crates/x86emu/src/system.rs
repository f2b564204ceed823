//! Instructions that are intercepted and served without a general decoder: their
//! lengths and operands, for CPUs that tell neither (AMD-V without next-RIP save and
//! decode assists).
//!
//! The decoder is made by hand, allocates nothing and knows just these
//! instructions. [`skip`] checks that what stands at RIP is what the exit was
//! about: another vCPU of the guest may have rewritten it meanwhile.
//!
//! SDM: "Opcode Map"; APM: "SVM Intercept Exit Codes".

use crate::address;
use crate::cpu::{Cpu, Fault};
use crate::decode::stream::{ModRm, Prefixes, RmOperand, Stream, register};
use crate::execute::value;
use crate::instruction::Operand;
use crate::{DecodeError, MAX_INSTRUCTION};
use x86defs::control::CpuMode;
use x86defs::exit::{CacheControl, CrAccess, Direction};
use x86defs::{Gpr, VmExit, Width};

/// An intercepted instruction with its operands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SystemOp {
    /// CPUID.
    Cpuid,
    /// RDMSR.
    ReadMsr,
    /// WRMSR.
    WriteMsr,
    /// VMCALL or VMMCALL.
    Hypercall,
    /// HLT.
    Halt,
    /// PAUSE.
    Pause,
    /// IN or OUT.
    Port {
        /// IN or OUT.
        direction: Direction,
        /// One, two or four bytes.
        width: Width,
    },
    /// INVD.
    Invd,
    /// WBINVD and WBNOINVD.
    Wbinvd,
    /// XSETBV.
    Xsetbv,
    /// MOV from a control register.
    ReadCr(u8, Gpr),
    /// MOV to a control register.
    WriteCr(u8, Gpr),
    /// MOV from a debug register.
    ReadDr(u8, Gpr),
    /// MOV to a debug register.
    WriteDr(u8, Gpr),
    /// CLTS.
    Clts,
    /// LMSW of 16 bits.
    Lmsw(Operand),
    /// SMSW.
    Smsw,
}

impl SystemOp {
    /// Whether this instruction ends in `exit`.
    fn causes(&self, exit: &VmExit) -> bool {
        match (*exit, *self) {
            (VmExit::Cpuid, Self::Cpuid)
            | (VmExit::ReadMsr, Self::ReadMsr)
            | (VmExit::WriteMsr, Self::WriteMsr)
            | (VmExit::Hypercall, Self::Hypercall)
            | (VmExit::Halt, Self::Halt)
            | (VmExit::Pause, Self::Pause)
            | (VmExit::Xsetbv, Self::Xsetbv)
            | (VmExit::CacheControl(CacheControl::Invd), Self::Invd)
            // One emulator reports INVD as WBINVD.
            | (VmExit::CacheControl(CacheControl::Wbinvd), Self::Wbinvd | Self::Invd)
            | (VmExit::CrAccess(CrAccess::Clts), Self::Clts)
            | (VmExit::CrAccess(CrAccess::Lmsw(_)), Self::Lmsw(_)) => true,
            // AMD-V counts LMSW and CLTS as writes of CR0, SMSW as a read.
            (VmExit::CrAccess(CrAccess::Write { cr: 0, .. }), Self::Lmsw(_) | Self::Clts)
            | (VmExit::CrAccess(CrAccess::Read { cr: 0, .. }), Self::Smsw) => true,
            (VmExit::CrAccess(CrAccess::Read { cr, .. }), Self::ReadCr(found, _))
            | (VmExit::CrAccess(CrAccess::Write { cr, .. }), Self::WriteCr(found, _)) => {
                cr == found
            }
            (VmExit::DrAccess(access), Self::ReadDr(found, _)) => {
                !access.write && access.dr == found
            }
            (VmExit::DrAccess(access), Self::WriteDr(found, _)) => {
                access.write && access.dr == found
            }
            (VmExit::PortIo(io), Self::Port { direction, width }) => {
                io.string.is_none() && (io.direction, io.width) == (direction, width)
            }
            _ => false,
        }
    }
}

/// An intercepted instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SystemInstruction {
    /// Length in bytes, prefixes included.
    pub length: u8,
    /// The operation, with its operands.
    pub op: SystemOp,
}

/// Why there is nothing to skip.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SkipError<E> {
    /// Another instruction stands at RIP by now: let the guest run it.
    Mismatch,
    /// The instruction could not be fetched.
    Fault(Fault<E>),
}

/// Reads the instruction at RIP, which has just caused `exit`, and returns it.
/// RIP stays where it is.
///
/// # Errors
/// [`SkipError`].
pub fn skip<C: Cpu>(cpu: &mut C, exit: &VmExit) -> Result<SystemInstruction, SkipError<C::Error>> {
    let (mode, rip) = (cpu.mode(), cpu.rip());
    let mut code = [0; MAX_INSTRUCTION];
    let mut have = 0;
    while have < MAX_INSTRUCTION {
        let linear = address::code_linear(cpu, rip.wrapping_add(have as u64));
        let rest = code.get_mut(have..).unwrap_or_default();
        let room = rest.len();
        have =
            have.saturating_add(cpu.fetch(linear, rest).map_err(SkipError::Fault)?.clamp(1, room));
        match decode_system(code.get(..have).unwrap_or_default(), mode, rip) {
            Ok(found) if found.op.causes(exit) => return Ok(found),
            Err(DecodeError::Incomplete) => {}
            _ => return Err(SkipError::Mismatch),
        }
    }
    Err(SkipError::Mismatch)
}

/// Decodes an instruction that can be intercepted.
///
/// # Errors
/// [`DecodeError::Incomplete`] where more bytes are needed, and
/// [`DecodeError::Invalid`] for every other instruction.
pub fn decode_system(
    bytes: &[u8],
    mode: CpuMode,
    rip: u64,
) -> Result<SystemInstruction, DecodeError> {
    let mut stream = Stream::new(bytes);
    let decoded = read(&mut stream, mode, rip);
    let length = stream.length();
    match decoded {
        Some(Some(op)) => Ok(SystemInstruction { length, op }),
        Some(None) => Err(DecodeError::Invalid),
        // The stream ended.
        None => Err(DecodeError::Incomplete),
    }
}

/// `None`: the bytes end too soon. `Some(None)`: not an instruction of [`SystemOp`].
fn read(stream: &mut Stream<'_>, mode: CpuMode, rip: u64) -> Option<Option<SystemOp>> {
    let prefixes = Prefixes::read(stream, mode)?;
    let opcode = stream.byte()?;
    // LOCK MOV CR0 is AMD's other name for CR8.
    if prefixes.lock && opcode != 0x0f {
        return Some(None);
    }
    let full = prefixes.operand_width(mode).min(Width::B4);
    let width = if opcode & 1 == 0 { Width::B1 } else { full };
    let direction = if opcode & 2 == 0 { Direction::In } else { Direction::Out };
    Some(Some(match opcode {
        0xf4 => SystemOp::Halt,
        0x90 if prefixes.repeat == Some(0xf3) => SystemOp::Pause,
        0xe4..=0xe7 => {
            stream.byte()?;
            SystemOp::Port { direction, width }
        }
        0xec..=0xef => SystemOp::Port { direction, width },
        0x0f => {
            let second = stream.byte()?;
            if prefixes.lock && !matches!(second, 0x20 | 0x22) {
                return Some(None);
            }
            return two_bytes(stream, second, prefixes, mode, rip);
        }
        _ => return Some(None),
    }))
}

fn two_bytes(
    stream: &mut Stream<'_>,
    opcode: u8,
    prefixes: Prefixes,
    mode: CpuMode,
    rip: u64,
) -> Option<Option<SystemOp>> {
    Some(Some(match opcode {
        0x01 => return group7(stream, prefixes, mode, rip),
        0x06 => SystemOp::Clts,
        0x08 => SystemOp::Invd,
        0x09 => SystemOp::Wbinvd,
        0x20..=0x23 => {
            // The mod field is ignored: always registers.
            let byte = stream.byte()?;
            let gpr = Gpr::from_number(byte & 7 | if prefixes.rex_bit(1) { 8 } else { 0 });
            let number = byte >> 3 & 7 | if prefixes.rex_bit(4) || prefixes.lock { 8 } else { 0 };
            match opcode {
                0x20 => SystemOp::ReadCr(number, gpr),
                0x21 => SystemOp::ReadDr(number, gpr),
                0x22 => SystemOp::WriteCr(number, gpr),
                _ => SystemOp::WriteDr(number, gpr),
            }
        }
        0x30 => SystemOp::WriteMsr,
        0x32 => SystemOp::ReadMsr,
        0xa2 => SystemOp::Cpuid,
        _ => return Some(None),
    }))
}

/// The r/m operand at a width.
fn rm(modrm: RmOperand, width: Width, prefixes: Prefixes) -> Operand {
    match modrm {
        RmOperand::Memory(memory) => Operand::Memory(memory),
        RmOperand::Register(number) => Operand::Register(register(number, width, prefixes)),
    }
}

/// 0F 01: the machine status word, and instructions without an operand.
fn group7(
    stream: &mut Stream<'_>,
    prefixes: Prefixes,
    mode: CpuMode,
    rip: u64,
) -> Option<Option<SystemOp>> {
    let byte = stream.peek()?;
    let modrm = ModRm::read(stream, prefixes, mode)?;
    let operand = modrm.finish(mode, rip, stream.length());
    Some(Some(match (modrm.reg & 7, byte) {
        (4, _) => SystemOp::Smsw,
        (6, _) => SystemOp::Lmsw(rm(operand, prefixes.operand_width(mode), prefixes)),
        // VMCALL, VMMCALL.
        (_, 0xc1 | 0xd9) => SystemOp::Hypercall,
        (_, 0xd1) => SystemOp::Xsetbv,
        _ => return Some(None),
    }))
}

/// Reads an operand of a [`SystemOp`].
///
/// # Errors
/// [`Fault`].
pub fn read_operand<C: Cpu>(
    cpu: &mut C,
    operand: &Operand,
    width: Width,
) -> Result<u64, Fault<C::Error>> {
    value(cpu, operand, width)
}
