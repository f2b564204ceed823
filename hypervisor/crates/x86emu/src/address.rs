//! From operands to linear addresses: effective address, segment checks,
//! canonical form, alignment.

use crate::cpu::{Cpu, GuestException};
use crate::instruction::MemoryOperand;
use x86defs::control::CpuMode;
use x86defs::{Exception, GuestVirtAddr, Low, Segment, SegmentRegister, Width};

/// Whether an access writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Intent {
    Read,
    Write,
}

/// The offset in its segment that an operand names, `extra` bytes on.
pub(crate) fn offset<C: Cpu>(cpu: &C, operand: &MemoryOperand, extra: u64) -> u64 {
    let base = operand.base.map_or(0, |gpr| cpu.gpr(gpr));
    let index = operand.index.map_or(0, |gpr| cpu.gpr(gpr)) << (operand.scale & 3);
    let sum = base.wrapping_add(index).wrapping_add(operand.displacement).wrapping_add(extra);
    operand.address_width.truncate(sum)
}

/// The linear address of `len` bytes at `offset` of a segment
/// (SDM: "Protected-Mode Memory Management"; APM: "Segment Limit Checks").
pub(crate) fn linear<C: Cpu>(
    cpu: &C,
    segment: SegmentRegister,
    offset: u64,
    len: u64,
    intent: Intent,
) -> Result<u64, GuestException> {
    let mode = cpu.mode();
    let refused = || {
        let exception = if segment == SegmentRegister::Ss { Exception::SS } else { Exception::GP };
        GuestException::with_zero(exception, mode)
    };
    let beyond_first = len.saturating_sub(1);
    let linear = if mode == CpuMode::Long64 {
        let base = match segment {
            SegmentRegister::Fs | SegmentRegister::Gs => cpu.segment(segment).base,
            _ => 0,
        };
        let first = base.wrapping_add(offset);
        let last = first.wrapping_add(beyond_first);
        if !is_canonical(first) || !is_canonical(last) {
            return Err(refused());
        }
        first
    } else {
        let hidden = cpu.segment(segment);
        if !mode.is_real_like() && !allows(&hidden, intent)
            || !within(&hidden, offset, beyond_first)
        {
            return Err(refused());
        }
        u64::from(hidden.base.wrapping_add(offset).low32())
    };
    // Longer operands have checks of their own, or none.
    if len <= 8 && len.is_power_of_two() && !linear.is_multiple_of(len) && cpu.alignment_check() {
        return Err(GuestException::with_zero(Exception::AC, mode));
    }
    Ok(linear)
}

fn is_canonical(address: u64) -> bool {
    GuestVirtAddr::new(address).is_canonical()
}

/// Whether a segment's type lets data be read, or written.
fn allows(segment: &Segment, intent: Intent) -> bool {
    let attributes = segment.attributes;
    let code = attributes.kind() & 8 != 0;
    // The bit means readable for code, writable for data.
    let more = attributes.kind() & 2 != 0;
    attributes.present()
        && attributes.code_or_data()
        && match intent {
            Intent::Read => !code || more,
            Intent::Write => !code && more,
        }
}

/// Whether a segment's limit lets the bytes be reached.
fn within(segment: &Segment, offset: u64, beyond_first: u64) -> bool {
    let limit = u64::from(segment.limit);
    let Some(last) = offset.checked_add(beyond_first) else { return false };
    let expand_down = segment.attributes.kind() & 0b1100 == 0b0100;
    if expand_down && segment.attributes.code_or_data() {
        let top = if segment.attributes.big() { u64::from(u32::MAX) } else { 0xffff };
        offset > limit && last <= top
    } else {
        last <= limit
    }
}

/// The linear address of an operand of `len` bytes, `extra` bytes on.
pub(crate) fn operand_linear<C: Cpu>(
    cpu: &C,
    operand: &MemoryOperand,
    extra: u64,
    len: u64,
    intent: Intent,
) -> Result<u64, GuestException> {
    linear(cpu, operand.segment, offset(cpu, operand, extra), len, intent)
}

/// The address size of stack accesses (SDM: "Address-Size Attribute for Stack").
pub(crate) fn stack_width<C: Cpu>(cpu: &C) -> Width {
    if cpu.mode() == CpuMode::Long64 {
        Width::B8
    } else if cpu.segment(SegmentRegister::Ss).attributes.big() {
        Width::B4
    } else {
        Width::B2
    }
}

/// The instruction pointer `length` bytes on.
pub(crate) fn next_rip(mode: CpuMode, rip: u64, length: u8) -> u64 {
    let next = rip.wrapping_add(u64::from(length));
    if mode == CpuMode::Long64 { next } else { u64::from(next.low32()) }
}

/// The linear address of code at `rip`. The CPU has checked CS before the exit.
pub(crate) fn code_linear<C: Cpu>(cpu: &C, rip: u64) -> u64 {
    if cpu.mode() == CpuMode::Long64 {
        rip
    } else {
        u64::from(cpu.segment(SegmentRegister::Cs).base.wrapping_add(rip).low32())
    }
}
