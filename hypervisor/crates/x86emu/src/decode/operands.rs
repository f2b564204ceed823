//! Operands of an instruction that iced-x86 has decoded.

use crate::instruction::{MemoryOperand, Operand, Register};
use iced_x86::OpKind;
use x86defs::control::CpuMode;
use x86defs::{Gpr, Low, SegmentRegister, Width};

pub(super) fn memory_width(found: &iced_x86::Instruction) -> Option<Width> {
    Width::from_bytes(found.memory_size().size())
}

pub(super) fn source_width(found: &iced_x86::Instruction) -> Option<Width> {
    match found.op1_kind() {
        OpKind::Register => Width::from_bytes(found.op1_register().size()),
        _ => memory_width(found),
    }
}

pub(super) fn gpr(register: iced_x86::Register) -> Option<Gpr> {
    register.is_gpr().then(|| Gpr::from_number(register.full_register().number().low8()))
}

pub(super) fn segment(register: iced_x86::Register) -> Option<SegmentRegister> {
    use iced_x86::Register as R;
    Some(match register {
        R::ES => SegmentRegister::Es,
        R::CS => SegmentRegister::Cs,
        R::SS => SegmentRegister::Ss,
        R::DS => SegmentRegister::Ds,
        R::FS => SegmentRegister::Fs,
        R::GS => SegmentRegister::Gs,
        _ => return None,
    })
}

pub(super) fn operand(found: &iced_x86::Instruction, mode: CpuMode, index: u32) -> Option<Operand> {
    use iced_x86::Register as R;
    match found.op_kind(index) {
        OpKind::Register => {
            let register = found.op_register(index);
            if let Some(segment) = segment(register) {
                return Some(Operand::Segment(segment));
            }
            let high = matches!(register, R::AH | R::CH | R::DH | R::BH);
            gpr(register).map(|gpr| Operand::Register(Register { gpr, high }))
        }
        OpKind::Memory => memory(found, mode).map(Operand::Memory),
        OpKind::NearBranch16 | OpKind::NearBranch32 | OpKind::NearBranch64 => {
            Some(Operand::Immediate(found.near_branch_target()))
        }
        _ => found.try_immediate(index).ok().map(Operand::Immediate),
    }
}

/// The operand in memory: the usual one, or that at rDI whose segment can be chosen (MASKMOVQ).
pub(super) fn memory_or_string(
    found: &iced_x86::Instruction,
    mode: CpuMode,
) -> Option<MemoryOperand> {
    let address_width = match found.op0_kind() {
        OpKind::MemorySegDI => Width::B2,
        OpKind::MemorySegEDI => Width::B4,
        OpKind::MemorySegRDI => Width::B8,
        _ => return memory(found, mode),
    };
    Some(MemoryOperand {
        segment: effective_segment(found, mode, SegmentRegister::Ds)?,
        base: Some(Gpr::Rdi),
        index: None,
        scale: 0,
        displacement: 0,
        address_width,
    })
}

pub(super) fn memory(found: &iced_x86::Instruction, mode: CpuMode) -> Option<MemoryOperand> {
    use iced_x86::Register as R;
    let base_register = found.memory_base();
    let index_register = found.memory_index();
    let (base, index) = (gpr(base_register), gpr(index_register));
    let address_width = match (base_register, index_register) {
        (R::RIP, _) => Width::B8,
        (R::EIP, _) => Width::B4,
        (R::None, R::None) => Width::from_bytes(displacement_bytes(found, mode))?,
        (R::None, index) => Width::from_bytes(index.size())?,
        (base, _) => Width::from_bytes(base.size())?,
    };
    let stack = matches!(base, Some(Gpr::Rsp | Gpr::Rbp));
    let default = if stack { SegmentRegister::Ss } else { SegmentRegister::Ds };
    // With RIP-relative addressing this is the whole address.
    let displacement = found.memory_displacement64();
    let displacement = if matches!(base_register, R::EIP) {
        Width::B4.truncate(displacement)
    } else if address_width == Width::B4 && base_register != R::EIP {
        Width::B4.sign_extend(displacement)
    } else {
        displacement
    };
    Some(MemoryOperand {
        segment: effective_segment(found, mode, default)?,
        base,
        index,
        scale: if index.is_some() { found.memory_index_scale().trailing_zeros().low8() } else { 0 },
        displacement,
        address_width,
    })
}

/// The address size of an operand that is nothing but a displacement.
fn displacement_bytes(found: &iced_x86::Instruction, mode: CpuMode) -> usize {
    match found.memory_displ_size() {
        // The encoding gives the size. But in 64-bit mode without an address-size prefix,
        // four bytes are sign-extended.
        4 if mode == CpuMode::Long64 => {
            if Width::B4.truncate(found.memory_displacement64()) == found.memory_displacement64() {
                4
            } else {
                8
            }
        }
        size => size as usize,
    }
}

/// The operand's segment: in 64-bit mode only prefixes of FS and GS count.
pub(super) fn effective_segment(
    found: &iced_x86::Instruction,
    mode: CpuMode,
    default: SegmentRegister,
) -> Option<SegmentRegister> {
    let prefix = segment(found.segment_prefix());
    Some(match prefix {
        None => default,
        Some(SegmentRegister::Fs | SegmentRegister::Gs) => prefix?,
        Some(_) if mode == CpuMode::Long64 => default,
        Some(prefix) => prefix,
    })
}
