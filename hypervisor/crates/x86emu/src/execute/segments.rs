//! Selectors and descriptors (SDM: "Protected-Mode Checks", "Segment Descriptors").

use super::control::{drop_bytes, peek};
use super::{assign, load, value};
use crate::address::{self, Intent};
use crate::cpu::{AccessKind, Cpu, DescriptorRegister, Fault, GuestException, Step};
use crate::instruction::{DescriptorOp, Instruction, MemoryOperand, Operand};
use x86defs::control::CpuMode;
use x86defs::{
    Cr4, DescriptorTable, Exception, GuestVirtAddr, Low, Rflags, Segment, SegmentAttributes,
    SegmentRegister, Width,
};

/// An eight-byte descriptor, and where it stands.
#[derive(Clone, Copy)]
pub(super) struct Descriptor {
    pub(super) selector: u16,
    linear: u64,
    bits: u64,
}

/// Bit of a descriptor: the segment was accessed.
pub(super) const ACCESSED: u64 = 1 << 40;
/// Bit of a descriptor: the task is busy.
pub(super) const BUSY: u64 = 1 << 41;

impl Descriptor {
    pub(super) fn attributes(self) -> SegmentAttributes {
        SegmentAttributes::from_bits((self.bits >> 40).low16() & 0xf0ff)
    }

    pub(super) fn limit(self) -> u32 {
        let raw = self.bits.low16() as u32 | (self.bits >> 32).low32() & 0xf_0000;
        if self.attributes().granular() { raw << 12 | 0xfff } else { raw }
    }

    pub(super) fn base(self) -> u64 {
        self.bits >> 16 & 0xff_ffff | self.bits >> 32 & 0xff00_0000
    }

    pub(super) fn segment(self) -> Segment {
        Segment {
            selector: self.selector,
            attributes: self.attributes(),
            limit: self.limit(),
            base: self.base(),
        }
    }

    /// The selector as an error code.
    fn error<C: Cpu>(self, exception: Exception) -> Fault<C::Error> {
        refused::<C>(exception, self.selector)
    }

    /// Whether the levels of the vCPU and of the selector allow its use.
    pub(super) fn open_to(self, cpl: u8) -> bool {
        self.attributes().dpl() >= cpl.max(level(self.selector))
    }

    pub(super) fn is_code(self) -> bool {
        self.attributes().kind() & 8 != 0
    }

    /// Readable code, or writable data.
    pub(super) fn has_more(self) -> bool {
        self.attributes().kind() & 2 != 0
    }

    pub(super) fn is_conforming_code(self) -> bool {
        self.attributes().kind() & 0b1100 == 0b1100
    }

    /// Sets a bit in memory, if it is clear there.
    pub(super) fn mark<C: Cpu>(&mut self, cpu: &mut C, bit: u64) -> Result<(), Fault<C::Error>> {
        if self.bits & bit == 0 {
            self.bits |= bit;
            let byte = (self.bits >> 40).low8();
            cpu.write_system(self.access_byte(), &[byte])?;
        }
        Ok(())
    }

    /// Clears a bit in memory.
    pub(super) fn unmark<C: Cpu>(&mut self, cpu: &mut C, bit: u64) -> Result<(), Fault<C::Error>> {
        self.bits &= !bit;
        let byte = (self.bits >> 40).low8();
        cpu.write_system(self.access_byte(), &[byte])
    }

    /// The linear address of the byte with the type, which alone is ever changed.
    pub(super) fn access_byte(self) -> u64 {
        self.linear.wrapping_add(5)
    }
}

/// The privilege level in a selector.
pub(super) fn level(selector: u16) -> u8 {
    u32::from(selector).low8() & 3
}

pub(super) fn refused<C: Cpu>(exception: Exception, selector: u16) -> Fault<C::Error> {
    let error_code = Some(u32::from(selector & !3));
    GuestException { exception, error_code, address: None }.into()
}

pub(super) fn is_long(mode: CpuMode) -> bool {
    matches!(mode, CpuMode::Long64 | CpuMode::Compat32 | CpuMode::Compat16)
}

pub(super) fn is_null(selector: u16) -> bool {
    selector & !3 == 0
}

/// The descriptor of `selector`, of so many bytes; `None` if it is beyond its table.
pub(super) fn find<C: Cpu>(
    cpu: &mut C,
    selector: u16,
    bytes: u64,
) -> Result<Option<Descriptor>, Fault<C::Error>> {
    let (base, limit) = if selector & 4 == 0 {
        let table = cpu.descriptor_table(DescriptorRegister::Gdtr);
        (table.base, u32::from(table.limit))
    } else {
        let table = cpu.segment(SegmentRegister::Ldtr);
        if !table.attributes.present() {
            return Ok(None);
        }
        (table.base, table.limit)
    };
    let offset = u64::from(selector & !7);
    if offset.wrapping_add(bytes).wrapping_sub(1) > u64::from(limit) {
        return Ok(None);
    }
    let linear = base.wrapping_add(offset);
    let linear = if is_long(cpu.mode()) { linear } else { linear.low32().into() };
    let bits = read_system(cpu, linear)?;
    Ok(Some(Descriptor { selector, linear, bits }))
}

fn read_system<C: Cpu>(cpu: &mut C, linear: u64) -> Result<u64, Fault<C::Error>> {
    let mut raw = [0; 8];
    cpu.read_system(linear, &mut raw)?;
    Ok(u64::from_le_bytes(raw))
}

/// Runs an operation on selectors or descriptors.
pub(super) fn run<C: Cpu>(
    cpu: &mut C,
    instruction: &Instruction,
    op: DescriptorOp,
) -> Result<Step, Fault<C::Error>> {
    let mode = cpu.mode();
    let selectors_only = matches!(
        op,
        DescriptorOp::StoreLdt
            | DescriptorOp::LoadLdt
            | DescriptorOp::StoreTask
            | DescriptorOp::LoadTask
            | DescriptorOp::VerifyRead
            | DescriptorOp::VerifyWrite
            | DescriptorOp::AccessRights
            | DescriptorOp::Limit
            | DescriptorOp::AdjustLevel
    );
    if selectors_only && mode.is_real_like() {
        return Err(GuestException::UD.into());
    }
    check_privilege(cpu, op)?;
    match op {
        DescriptorOp::Load(register) => {
            let selector = value(cpu, &instruction.source, Width::B2)?.low16();
            return load_segment(cpu, register, selector);
        }
        DescriptorOp::Pop(register) => {
            let selector = peek(cpu, instruction.width, 0)?.low16();
            // RSP moves as the stack is now, not as a new SS has it.
            let stack = address::stack_width(cpu);
            let step = load_segment(cpu, register, selector)?;
            drop_bytes(cpu, stack, instruction.width.bytes() as u64);
            return Ok(step);
        }
        DescriptorOp::LoadFar(register) => return load_far(cpu, instruction, register),
        DescriptorOp::StoreLdt => store_selector(cpu, instruction, SegmentRegister::Ldtr)?,
        DescriptorOp::StoreTask => store_selector(cpu, instruction, SegmentRegister::Tr)?,
        DescriptorOp::LoadLdt | DescriptorOp::LoadTask => {
            let selector = value(cpu, &instruction.source, Width::B2)?.low16();
            load_system(cpu, selector, op)?;
        }
        DescriptorOp::StoreGdt => store_table(cpu, instruction, DescriptorRegister::Gdtr)?,
        DescriptorOp::StoreIdt => store_table(cpu, instruction, DescriptorRegister::Idtr)?,
        DescriptorOp::LoadGdt => load_table(cpu, instruction, DescriptorRegister::Gdtr)?,
        DescriptorOp::LoadIdt => load_table(cpu, instruction, DescriptorRegister::Idtr)?,
        DescriptorOp::VerifyRead
        | DescriptorOp::VerifyWrite
        | DescriptorOp::AccessRights
        | DescriptorOp::Limit => look(cpu, instruction, op)?,
        DescriptorOp::AdjustLevel => adjust_level(cpu, instruction)?,
        DescriptorOp::StoreMachineStatus => {
            let status = cpu.cr0().bits();
            store_status(cpu, instruction, status)?;
        }
        DescriptorOp::LoadMachineStatus => {
            let status = value(cpu, &instruction.source, Width::B2)?;
            cpu.load_machine_status(status.low16());
        }
    }
    Ok(Step::Done)
}

/// Refuses other levels than CPL 0 a load of what is the kernel's, and with CR4.UMIP a store of it.
fn check_privilege<C: Cpu>(cpu: &C, op: DescriptorOp) -> Result<(), GuestException> {
    let held = match op {
        DescriptorOp::LoadGdt
        | DescriptorOp::LoadIdt
        | DescriptorOp::LoadLdt
        | DescriptorOp::LoadTask
        | DescriptorOp::LoadMachineStatus => true,
        DescriptorOp::StoreGdt
        | DescriptorOp::StoreIdt
        | DescriptorOp::StoreLdt
        | DescriptorOp::StoreTask
        | DescriptorOp::StoreMachineStatus => cpu.cr4().contains(Cr4::UMIP),
        _ => false,
    };
    if held && cpu.cpl() != 0 {
        return Err(GuestException::with_zero(Exception::GP, cpu.mode()));
    }
    Ok(())
}

/// MOV to a segment register and its kin.
fn load_segment<C: Cpu>(
    cpu: &mut C,
    register: SegmentRegister,
    selector: u16,
) -> Result<Step, Fault<C::Error>> {
    let loaded = segment_of(cpu, register, selector)?;
    cpu.set_segment(register, loaded);
    Ok(if register == SegmentRegister::Ss { Step::Shadow } else { Step::Done })
}

/// The contents of a segment register once `selector` is loaded into it.
fn segment_of<C: Cpu>(
    cpu: &mut C,
    register: SegmentRegister,
    selector: u16,
) -> Result<Segment, Fault<C::Error>> {
    if register == SegmentRegister::Cs {
        return Err(GuestException::UD.into());
    }
    let (mode, cpl) = (cpu.mode(), cpu.cpl());
    if mode.is_real_like() {
        let old = cpu.segment(register);
        let attributes = old.attributes.with_present(true).with_code_or_data(true);
        return Ok(Segment { selector, attributes, base: u64::from(selector) << 4, ..old });
    }
    let stack = register == SegmentRegister::Ss;
    if is_null(selector) {
        let allowed = !stack || mode == CpuMode::Long64 && cpl != 3 && level(selector) == cpl;
        if !allowed {
            return Err(GuestException::with_zero(Exception::GP, mode).into());
        }
        // The privilege level is that of SS.
        let dpl = if stack { cpl } else { 0 };
        let attributes = SegmentAttributes::new().with_dpl(dpl);
        return Ok(Segment { selector, attributes, ..Segment::UNUSABLE });
    }
    let refuse = refused::<C>(Exception::GP, selector);
    let Some(mut found) = find(cpu, selector, 8)? else { return Err(refuse) };
    let attributes = found.attributes();
    let fits = attributes.code_or_data()
        && if stack {
            !found.is_code()
                && found.has_more()
                && level(selector) == cpl
                && attributes.dpl() == cpl
        } else {
            (!found.is_code() || found.has_more())
                && (found.is_conforming_code() || found.open_to(cpl))
        };
    if !fits {
        return Err(refuse);
    }
    if !attributes.present() {
        return Err(found.error::<C>(if stack { Exception::SS } else { Exception::NP }));
    }
    found.mark(cpu, ACCESSED)?;
    Ok(found.segment())
}

/// LDS and its kin. Nothing is written before the selector is known to be good.
fn load_far<C: Cpu>(
    cpu: &mut C,
    instruction: &Instruction,
    register: SegmentRegister,
) -> Result<Step, Fault<C::Error>> {
    let width = instruction.width;
    let bytes = width.bytes() as u64;
    let memory = memory_of(&instruction.source)?;
    let linear = address::operand_linear(cpu, &memory, 0, bytes, Intent::Read)?;
    let offset = load(cpu, linear, width, AccessKind::Read)?;
    let linear = address::operand_linear(cpu, &memory, bytes, 2, Intent::Read)?;
    let selector = load(cpu, linear, Width::B2, AccessKind::Read)?.low16();
    // Of the loads of SS, MOV and POP alone hold interrupts off.
    let _ = load_segment(cpu, register, selector)?;
    assign(cpu, &instruction.destination, width, offset)?;
    Ok(Step::Done)
}

/// LLDT and LTR.
fn load_system<C: Cpu>(
    cpu: &mut C,
    selector: u16,
    op: DescriptorOp,
) -> Result<(), Fault<C::Error>> {
    let task = op == DescriptorOp::LoadTask;
    let register = if task { SegmentRegister::Tr } else { SegmentRegister::Ldtr };
    let mode = cpu.mode();
    if is_null(selector) {
        if task {
            return Err(GuestException::with_zero(Exception::GP, mode).into());
        }
        cpu.set_segment(register, Segment { selector, ..Segment::UNUSABLE });
        return Ok(());
    }
    let refuse = refused::<C>(Exception::GP, selector);
    let long = is_long(mode);
    if selector & 4 != 0 {
        return Err(refuse);
    }
    let Some(mut found) = find(cpu, selector, if long { 16 } else { 8 })? else {
        return Err(refuse);
    };
    let attributes = found.attributes();
    let fits = !attributes.code_or_data()
        && match attributes.kind() {
            2 => !task,
            1 => task && !long,
            9 => task,
            _ => false,
        };
    if !fits {
        return Err(refuse);
    }
    if !attributes.present() {
        return Err(found.error::<C>(Exception::NP));
    }
    let mut base = found.base();
    if long {
        let upper = read_system(cpu, found.linear.wrapping_add(8))?;
        base |= upper << 32;
        // The type that the upper half has must be 0.
        if upper >> 40 & 0x1f != 0 || !GuestVirtAddr::new(base).is_canonical() {
            return Err(refuse);
        }
    }
    if task {
        found.mark(cpu, BUSY)?;
    }
    cpu.set_segment(register, Segment { base, ..found.segment() });
    Ok(())
}

/// SLDT, STR.
fn store_selector<C: Cpu>(
    cpu: &mut C,
    instruction: &Instruction,
    register: SegmentRegister,
) -> Result<(), Fault<C::Error>> {
    let selector = cpu.segment(register).selector;
    store_status(cpu, instruction, selector.into())
}

/// Two bytes into memory, or all that a register takes.
fn store_status<C: Cpu>(
    cpu: &mut C,
    instruction: &Instruction,
    status: u64,
) -> Result<(), Fault<C::Error>> {
    let width = match instruction.destination {
        Operand::Memory(_) => Width::B2,
        _ => instruction.width,
    };
    assign(cpu, &instruction.destination, width, width.truncate(status))
}

fn memory_of(operand: &Operand) -> Result<MemoryOperand, GuestException> {
    match operand {
        Operand::Memory(memory) => Ok(*memory),
        _ => Err(GuestException::UD),
    }
}

/// Bytes of a table's base in memory: all of RIP's in 64-bit mode.
fn base_bytes(mode: CpuMode) -> usize {
    if mode == CpuMode::Long64 { 8 } else { 4 }
}

/// SGDT, SIDT: the limit, behind it the base.
fn store_table<C: Cpu>(
    cpu: &mut C,
    instruction: &Instruction,
    which: DescriptorRegister,
) -> Result<(), Fault<C::Error>> {
    let memory = memory_of(&instruction.destination)?;
    let table = cpu.descriptor_table(which);
    let whole = u128::from(table.limit) | u128::from(table.base) << 16;
    let raw = whole.to_le_bytes();
    let bytes = base_bytes(cpu.mode()).wrapping_add(2);
    let linear = address::operand_linear(cpu, &memory, 0, bytes as u64, Intent::Write)?;
    cpu.write(linear, raw.get(..bytes).unwrap_or_default())
}

/// LGDT, LIDT. With operands of two bytes the base has 24 bits.
fn load_table<C: Cpu>(
    cpu: &mut C,
    instruction: &Instruction,
    which: DescriptorRegister,
) -> Result<(), Fault<C::Error>> {
    let memory = memory_of(&instruction.source)?;
    let mode = cpu.mode();
    let bytes = base_bytes(mode).wrapping_add(2);
    let linear = address::operand_linear(cpu, &memory, 0, bytes as u64, Intent::Read)?;
    let mut raw = [0; 16];
    cpu.read(linear, raw.get_mut(..bytes).unwrap_or_default(), AccessKind::Read)?;
    let whole = u128::from_le_bytes(raw);
    let mut base = super::low64(whole >> 16);
    if instruction.width == Width::B2 {
        base &= 0xff_ffff;
    }
    if mode == CpuMode::Long64 && !GuestVirtAddr::new(base).is_canonical() {
        return Err(GuestException::with_zero(Exception::GP, mode).into());
    }
    cpu.set_descriptor_table(which, DescriptorTable { base, limit: whole.low16() });
    Ok(())
}

/// VERR, VERW, LAR, LSL: a look at a descriptor, of which ZF tells whether it was allowed.
fn look<C: Cpu>(
    cpu: &mut C,
    instruction: &Instruction,
    op: DescriptorOp,
) -> Result<(), Fault<C::Error>> {
    let selector = value(cpu, &instruction.source, Width::B2)?.low16();
    let found = if is_null(selector) { None } else { find(cpu, selector, 8)? };
    let long = is_long(cpu.mode());
    let seen = found.filter(|found| may_look(*found, cpu.cpl(), long, op));
    if let Some(found) = seen {
        let result = match op {
            DescriptorOp::AccessRights => Some((found.bits >> 32) & 0xf0_ff00),
            DescriptorOp::Limit => Some(found.limit().into()),
            _ => None,
        };
        if let Some(result) = result {
            assign(cpu, &instruction.destination, instruction.width, result)?;
        }
    }
    let mut flags = cpu.rflags();
    flags.set(Rflags::ZF, seen.is_some());
    cpu.set_rflags(flags);
    Ok(())
}

fn may_look(found: Descriptor, cpl: u8, long: bool, op: DescriptorOp) -> bool {
    let attributes = found.attributes();
    let kind = attributes.kind();
    let system = !attributes.code_or_data();
    let fits = match op {
        DescriptorOp::VerifyRead => !system && (!found.is_code() || found.has_more()),
        DescriptorOp::VerifyWrite => !system && !found.is_code() && found.has_more(),
        DescriptorOp::AccessRights if system => match kind {
            2 | 9 | 11 | 12 => true,
            1 | 3 | 4 | 5 => !long,
            _ => false,
        },
        DescriptorOp::Limit if system => match kind {
            2 | 9 | 11 => true,
            1 | 3 => !long,
            _ => false,
        },
        _ => true,
    };
    let conforming = !system && found.is_conforming_code();
    fits && (conforming || found.open_to(cpl))
}

/// ARPL: the destination's level becomes that of the source, if that is higher.
fn adjust_level<C: Cpu>(cpu: &mut C, instruction: &Instruction) -> Result<(), Fault<C::Error>> {
    let wanted = value(cpu, &instruction.source, Width::B2)? & 3;
    let old = value(cpu, &instruction.destination, Width::B2)?;
    let lower = old & 3 < wanted;
    if lower {
        assign(cpu, &instruction.destination, Width::B2, old & !3 | wanted)?;
    }
    let mut flags = cpu.rflags();
    flags.set(Rflags::ZF, lower);
    cpu.set_rflags(flags);
    Ok(())
}
