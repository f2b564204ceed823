//! The registers of a CPU, as one value.

use crate::control::{Cr0, Cr4, Efer, Rflags};
use crate::{DescriptorTable, Gpr, Segment, SegmentAttributes, SegmentRegister};

/// Registers that a vCPU starts with, free of vendor. All others have their values
/// after a reset.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CpuState {
    /// RIP.
    pub rip: u64,
    /// RFLAGS.
    pub rflags: Rflags,
    /// The general registers, RSP among them, by [`Gpr::number`].
    pub gprs: [u64; 16],
    /// CR0.
    pub cr0: Cr0,
    /// CR3.
    pub cr3: u64,
    /// CR4.
    pub cr4: Cr4,
    /// EFER.
    pub efer: Efer,
    /// Segment registers with LDTR and TR, by the number of [`SegmentRegister`].
    pub segments: [Segment; 8],
    /// GDTR.
    pub gdtr: DescriptorTable,
    /// IDTR.
    pub idtr: DescriptorTable,
}

impl CpuState {
    /// The state after a reset (SDM: "Processor State After Reset"), ready to
    /// fetch from 0xffff_fff0. `rdx` is the processor's signature, as CPUID
    /// leaf 1 returns it in EAX.
    #[must_use]
    pub fn reset_vector(rdx: u32) -> Self {
        let mut state = Self {
            rip: 0xfff0,
            rflags: Rflags::RESERVED1,
            gprs: [0; 16],
            cr0: Cr0::ET | Cr0::NW | Cr0::CD,
            cr3: 0,
            cr4: Cr4::empty(),
            efer: Efer::empty(),
            segments: [Segment::real_mode(0, 3); 8],
            gdtr: DescriptorTable { base: 0, limit: 0xffff },
            idtr: DescriptorTable { base: 0, limit: 0xffff },
        };
        state.set(Gpr::Rdx, u64::from(rdx));
        let code = Segment { base: 0xffff_0000, ..Segment::real_mode(0xf000, 11) };
        state.set_segment(SegmentRegister::Cs, code);
        // System segments: an LDT, and a busy 32-bit task.
        let system = |kind| Segment {
            attributes: SegmentAttributes::new().with_kind(kind).with_present(true),
            limit: 0xffff,
            ..Segment::default()
        };
        state.set_segment(SegmentRegister::Ldtr, system(2));
        state.set_segment(SegmentRegister::Tr, system(11));
        state
    }

    /// State of a vCPU that waited for a start-up IPI and got one with `vector`
    /// (SDM: "MP Initialization Protocol Algorithm for MP Systems").
    #[must_use]
    pub fn startup_ipi(vector: u8, rdx: u32) -> Self {
        let mut state = Self::reset_vector(rdx);
        state.rip = 0;
        let code = Segment::real_mode(u16::from(vector) << 8, 11);
        state.set_segment(SegmentRegister::Cs, code);
        state
    }

    /// Sets a general register.
    pub fn set(&mut self, register: Gpr, value: u64) {
        if let Some(slot) = self.gprs.get_mut(usize::from(register.number())) {
            *slot = value;
        }
    }

    /// A general register's value.
    #[must_use]
    pub fn gpr(&self, register: Gpr) -> u64 {
        self.gprs.get(usize::from(register.number())).copied().unwrap_or_default()
    }

    /// Sets a segment register.
    pub fn set_segment(&mut self, register: SegmentRegister, segment: Segment) {
        if let Some(slot) = self.segments.get_mut(register as usize) {
            *slot = segment;
        }
    }

    /// A segment register's value.
    #[must_use]
    pub fn segment(&self, register: SegmentRegister) -> Segment {
        self.segments.get(register as usize).copied().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reset_is_as_the_manual_says() {
        let state = CpuState::reset_vector(0x806ec);
        let code = state.segment(SegmentRegister::Cs);
        assert_eq!(code.base + state.rip, 0xffff_fff0);
        assert_eq!((code.selector, code.limit), (0xf000, 0xffff));
        assert_eq!(state.cr0.bits(), 0x6000_0010);
        assert_eq!(state.rflags.bits(), 2);
        assert_eq!(state.gpr(Gpr::Rdx), 0x806ec);
        assert_eq!(state.idtr.limit, 0xffff);
        let started = CpuState::startup_ipi(0x9a, 0);
        let code = started.segment(SegmentRegister::Cs);
        assert_eq!((code.selector, code.base, started.rip), (0x9a00, 0x9_a000, 0));
    }
}
