//! Instructions that hypervisors intercept: their lengths and operands, for
//! CPUs that tell neither (AMD-V without next-RIP save and decode assists).
//!
//! The decoder is made by hand, allocates nothing and knows just these
//! instructions. [`skip`] checks that what stands at RIP is what the exit was
//! about: another vCPU of the guest may have rewritten it meanwhile.
//!
//! SDM: "Opcode Map"; APM: "SVM Intercept Exit Codes".

use crate::address::{self, Intent};
use crate::cpu::{AccessKind, Cpu, Fault, GuestException};
use crate::decode::stream::{ModRm, Prefixes, RmOperand, Stream, register};
use crate::execute::{assign, value};
use crate::instruction::{MemoryOperand, Operand};
use crate::{DecodeError, MAX_INSTRUCTION};
use x86defs::control::CpuMode;
use x86defs::exit::{CacheControl, CrAccess, DescriptorTableAccess, Direction, MonitorWait};
use x86defs::{DescriptorTable, Gpr, Low, SegmentRegister, VmExit, Width};

/// Which port an IN or OUT names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PortOperand {
    /// An immediate.
    Immediate(u8),
    /// DX.
    Dx,
}

/// What is done with a descriptor-table or system-segment register.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TableOp {
    /// SGDT.
    StoreGdt,
    /// SIDT.
    StoreIdt,
    /// LGDT.
    LoadGdt,
    /// LIDT.
    LoadIdt,
    /// SLDT.
    StoreLdt,
    /// STR.
    StoreTask,
    /// LLDT.
    LoadLdt,
    /// LTR.
    LoadTask,
}

impl TableOp {
    /// Which intercept it belongs to.
    #[must_use]
    pub const fn access(self) -> DescriptorTableAccess {
        match self {
            Self::StoreGdt | Self::StoreIdt | Self::LoadGdt | Self::LoadIdt => {
                DescriptorTableAccess::GdtrIdtr
            }
            Self::StoreLdt | Self::StoreTask | Self::LoadLdt | Self::LoadTask => {
                DescriptorTableAccess::LdtrTr
            }
        }
    }
}

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
        /// The port.
        port: PortOperand,
    },
    /// INS or OUTS: see [`crate::string_io`].
    StringPort {
        /// INS or OUTS.
        direction: Direction,
        /// One, two or four bytes.
        width: Width,
        /// A repeat prefix stands before it.
        rep: bool,
        /// The address size.
        address_width: Width,
        /// The segment of the memory operand, overrides applied.
        segment: SegmentRegister,
    },
    /// INVD.
    Invd,
    /// WBINVD and WBNOINVD.
    Wbinvd,
    /// INVLPG: the operand is an address, never read.
    Invlpg(MemoryOperand),
    /// INVPCID, with its type's register and descriptor.
    Invpcid(Gpr, MemoryOperand),
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
    /// SMSW: 16 bits to memory, the given width to a register.
    Smsw(Operand, Width),
    /// An access to GDTR, IDTR, LDTR or TR. The operand's width is that of what
    /// is stored in a register; memory takes 16 bits or a table's register.
    Table(TableOp, Operand, Width),
    /// RDPMC.
    Rdpmc,
    /// RDTSC and RDTSCP.
    Rdtsc,
    /// MONITOR and MONITORX.
    Monitor,
    /// MWAIT and MWAITX.
    Mwait,
    /// An instruction of VT-x or AMD-V itself, not a hypercall.
    Virtualization,
}

impl SystemOp {
    /// Whether it is an instruction that ends in such an exit.
    #[must_use]
    pub fn causes(&self, exit: &VmExit) -> bool {
        match (*exit, *self) {
            (VmExit::Cpuid, Self::Cpuid)
            | (VmExit::ReadMsr, Self::ReadMsr)
            | (VmExit::WriteMsr, Self::WriteMsr)
            | (VmExit::Hypercall, Self::Hypercall)
            | (VmExit::Halt, Self::Halt)
            | (VmExit::Pause, Self::Pause)
            | (VmExit::Xsetbv, Self::Xsetbv)
            | (VmExit::Rdpmc, Self::Rdpmc)
            | (VmExit::Rdtsc, Self::Rdtsc)
            | (VmExit::Monitor(MonitorWait::Monitor), Self::Monitor)
            | (VmExit::Monitor(MonitorWait::Mwait), Self::Mwait)
            | (VmExit::CacheControl(CacheControl::Invd), Self::Invd)
            // One emulator reports INVD as WBINVD.
            | (VmExit::CacheControl(CacheControl::Wbinvd), Self::Wbinvd | Self::Invd)
            | (VmExit::CacheControl(CacheControl::Invlpg(_)), Self::Invlpg(_))
            | (VmExit::CacheControl(CacheControl::Invpcid), Self::Invpcid(..))
            | (VmExit::CrAccess(CrAccess::Clts), Self::Clts)
            | (VmExit::CrAccess(CrAccess::Lmsw(_)), Self::Lmsw(_))
            | (VmExit::VirtualizationInstruction, Self::Virtualization) => true,
            // AMD-V counts LMSW and CLTS as writes of CR0, SMSW as a read.
            (VmExit::CrAccess(CrAccess::Write { cr: 0, .. }), Self::Lmsw(_) | Self::Clts)
            | (VmExit::CrAccess(CrAccess::Read { cr: 0, .. }), Self::Smsw(..)) => true,
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
            (VmExit::DescriptorTable(access), Self::Table(op, ..)) => access == op.access(),
            (VmExit::PortIo(io), Self::Port { direction, width, .. }) => {
                io.string.is_none() && (io.direction, io.width) == (direction, width)
            }
            (VmExit::PortIo(io), Self::StringPort { direction, width, .. }) => {
                io.string.is_some() && (io.direction, io.width) == (direction, width)
            }
            _ => false,
        }
    }
}

/// An intercepted instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SystemInstruction {
    /// Its length in bytes, prefixes included.
    pub length: u8,
    /// What it is.
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

/// None: the bytes end too soon. `Some(None)`: not one of ours.
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
            SystemOp::Port { direction, width, port: PortOperand::Immediate(stream.byte()?) }
        }
        0xec..=0xef => SystemOp::Port { direction, width, port: PortOperand::Dx },
        0x6c..=0x6f => SystemOp::StringPort {
            direction,
            width,
            rep: prefixes.repeat.is_some(),
            address_width: prefixes.address_width(mode),
            segment: match direction {
                Direction::In => SegmentRegister::Es,
                Direction::Out => prefixes.segment.unwrap_or(SegmentRegister::Ds),
            },
        },
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
        0x00 => return system_segments(stream, prefixes, mode, rip),
        0x01 => return tables(stream, prefixes, mode, rip),
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
        0x31 => SystemOp::Rdtsc,
        0x32 => SystemOp::ReadMsr,
        0x33 => SystemOp::Rdpmc,
        0x38 => {
            let third = stream.byte()?;
            if !(0x80..=0x82).contains(&third) || !prefixes.operand_size {
                return Some(None);
            }
            let modrm = ModRm::read(stream, prefixes, mode)?;
            let RmOperand::Memory(memory) = modrm.finish(mode, rip, stream.length()) else {
                return Some(None);
            };
            if third == 0x82 {
                SystemOp::Invpcid(Gpr::from_number(modrm.reg), memory)
            } else {
                SystemOp::Virtualization
            }
        }
        // VMREAD and VMWRITE; with prefixes SSE4a lives there.
        0x78 | 0x79 if prefixes.repeat.is_none() && !prefixes.operand_size => {
            ModRm::read(stream, prefixes, mode)?;
            SystemOp::Virtualization
        }
        0xa2 => SystemOp::Cpuid,
        0xc7 => {
            // VMPTRLD, VMCLEAR, VMXON, VMPTRST: memory operands of /6 and /7.
            let modrm = ModRm::read(stream, prefixes, mode)?;
            match (modrm.reg & 7, modrm.rm) {
                (6 | 7, RmOperand::Memory(_)) => SystemOp::Virtualization,
                _ => return Some(None),
            }
        }
        _ => return Some(None),
    }))
}

/// The r/m operand at a width; none where it must be memory and is not.
fn rm(modrm: RmOperand, width: Width, prefixes: Prefixes) -> Operand {
    match modrm {
        RmOperand::Memory(memory) => Operand::Memory(memory),
        RmOperand::Register(number) => Operand::Register(register(number, width, prefixes)),
    }
}

/// 0F 00: LDTR and TR.
fn system_segments(
    stream: &mut Stream<'_>,
    prefixes: Prefixes,
    mode: CpuMode,
    rip: u64,
) -> Option<Option<SystemOp>> {
    let modrm = ModRm::read(stream, prefixes, mode)?;
    let op = match modrm.reg & 7 {
        0 => TableOp::StoreLdt,
        1 => TableOp::StoreTask,
        2 => TableOp::LoadLdt,
        3 => TableOp::LoadTask,
        _ => return Some(None),
    };
    let full = prefixes.operand_width(mode);
    let operand = rm(modrm.finish(mode, rip, stream.length()), full, prefixes);
    let store = matches!(op, TableOp::StoreLdt | TableOp::StoreTask);
    let in_register = matches!(operand, Operand::Register(_));
    let width = if store && in_register { full } else { Width::B2 };
    Some(Some(SystemOp::Table(op, operand, width)))
}

/// 0F 01: tables, machine status word, INVLPG and all that has no operand.
fn tables(
    stream: &mut Stream<'_>,
    prefixes: Prefixes,
    mode: CpuMode,
    rip: u64,
) -> Option<Option<SystemOp>> {
    let byte = stream.peek()?;
    let modrm = ModRm::read(stream, prefixes, mode)?;
    let full = prefixes.operand_width(mode);
    // What a descriptor-table register's base has in memory.
    let base_width = if mode == CpuMode::Long64 { Width::B8 } else { full };
    let finished = modrm.finish(mode, rip, stream.length());
    let operand = rm(finished, full, prefixes);
    Some(Some(match (modrm.reg & 7, finished) {
        (0, RmOperand::Memory(_)) => SystemOp::Table(TableOp::StoreGdt, operand, base_width),
        (1, RmOperand::Memory(_)) => SystemOp::Table(TableOp::StoreIdt, operand, base_width),
        (2, RmOperand::Memory(_)) => SystemOp::Table(TableOp::LoadGdt, operand, base_width),
        (3, RmOperand::Memory(_)) => SystemOp::Table(TableOp::LoadIdt, operand, base_width),
        (4, RmOperand::Memory(_)) => SystemOp::Smsw(operand, Width::B2),
        (4, RmOperand::Register(_)) => SystemOp::Smsw(operand, full),
        (6, _) => SystemOp::Lmsw(operand),
        (7, RmOperand::Memory(memory)) => SystemOp::Invlpg(memory),
        (_, RmOperand::Register(_)) => match byte {
            // VMCALL, VMMCALL.
            0xc1 | 0xd9 => SystemOp::Hypercall,
            // VMLAUNCH, VMRESUME, VMXOFF, VMFUNC; VMRUN, VMLOAD, VMSAVE, STGI, CLGI,
            // SKINIT, INVLPGA.
            0xc2..=0xc4 | 0xd4 | 0xd8 | 0xda..=0xdf => SystemOp::Virtualization,
            0xc8 | 0xfa => SystemOp::Monitor,
            0xc9 | 0xfb => SystemOp::Mwait,
            0xd1 => SystemOp::Xsetbv,
            0xf9 => SystemOp::Rdtsc,
            _ => return Some(None),
        },
        (_, RmOperand::Memory(_)) => return Some(None),
    }))
}

/// Reads an operand of a [`SystemOp`]: LMSW, LLDT, LTR.
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

/// Writes an operand of a [`SystemOp`]: SMSW, SLDT, STR.
///
/// # Errors
/// [`Fault`].
pub fn write_operand<C: Cpu>(
    cpu: &mut C,
    operand: &Operand,
    width: Width,
    value: u64,
) -> Result<(), Fault<C::Error>> {
    assign(cpu, operand, width, value)
}

/// Loads (`stored` is none) or stores GDTR or IDTR at its memory operand, whose
/// base has `width` bytes: two means 24 bits of a base of four. What was loaded
/// is the answer.
///
/// # Errors
/// [`Fault`]; #UD where the operand is no memory.
pub fn table_register<C: Cpu>(
    cpu: &mut C,
    operand: &Operand,
    width: Width,
    stored: Option<DescriptorTable>,
) -> Result<DescriptorTable, Fault<C::Error>> {
    let Operand::Memory(memory) = operand else { return Err(GuestException::UD.into()) };
    // The base and, with the limit before it, all of it.
    let (base_bytes, len) = if width == Width::B8 { (8, 10) } else { (4, 6) };
    let intent = if stored.is_some() { Intent::Write } else { Intent::Read };
    let linear = address::operand_linear(cpu, memory, 0, len as u64, intent)?;
    let mut bytes = [0; 10];
    let bytes = bytes.get_mut(..len).unwrap_or_default();
    if let Some(table) = stored {
        let limit = table.limit.to_le_bytes();
        let base = table.base.to_le_bytes();
        for (to, from) in bytes.iter_mut().zip(limit.iter().chain(&base)) {
            *to = *from;
        }
        cpu.write(linear, bytes)?;
        return Ok(table);
    }
    cpu.read(linear, bytes, AccessKind::Read)?;
    let number = |skip: usize, take: usize| {
        bytes.iter().skip(skip).take(take).rev().fold(0u64, |n, byte| n << 8 | u64::from(*byte))
    };
    let base = number(2, base_bytes);
    let base = if width == Width::B2 { base & 0xff_ffff } else { base };
    Ok(DescriptorTable { limit: number(0, 2).low16(), base })
}

/// The linear address that an INVLPG names, or what stands for it outside
/// 64-bit mode. Nothing is checked: INVLPG of a non-canonical address does nothing.
#[must_use]
pub fn invlpg_address<C: Cpu>(cpu: &C, operand: &MemoryOperand) -> u64 {
    let offset = address::offset(cpu, operand, 0);
    let long = cpu.mode() == CpuMode::Long64;
    let based = matches!(operand.segment, SegmentRegister::Fs | SegmentRegister::Gs);
    if long && !based {
        offset
    } else if long {
        cpu.segment(operand.segment).base.wrapping_add(offset)
    } else {
        u64::from(cpu.segment(operand.segment).base.wrapping_add(offset).low32())
    }
}
