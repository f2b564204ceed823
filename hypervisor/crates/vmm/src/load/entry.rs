//! The registers of a vCPU that is about to run for the first time.

use alloc::vec::Vec;
use x86defs::control::{Cr0, Cr4, Efer, Rflags};
use x86defs::{DescriptorTable, Gpr, GuestPhysAddr, Segment, SegmentAttributes, SegmentRegister};

/// Selector of the flat code segment: Linux's `__BOOT_CS`.
const CODE_SELECTOR: u16 = 0x10;
/// Selector of the flat data segment: Linux's `__BOOT_DS`.
const DATA_SELECTOR: u16 = 0x18;
/// Descriptor of a flat 64-bit code segment, accessed.
const CODE64: u64 = 0x00af_9b00_0000_ffff;
/// Descriptor of a flat 32-bit code segment, accessed.
const CODE32: u64 = 0x00cf_9b00_0000_ffff;
/// Descriptor of a flat writable data segment, accessed.
const DATA: u64 = 0x00cf_9300_0000_ffff;

/// What a vCPU starts with, free of vendor. Registers that are not here have
/// their values of after a reset.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EntryState {
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

impl EntryState {
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

    /// What a start-up IPI with `vector` makes of a vCPU that waits for one
    /// (SDM: "MP Initialization Protocol Algorithm for MP Systems").
    #[must_use]
    pub fn startup_ipi(vector: u8, rdx: u32) -> Self {
        let mut state = Self::reset_vector(rdx);
        state.rip = 0;
        let code = Segment::real_mode(u16::from(vector) << 8, 11);
        state.set_segment(SegmentRegister::Cs, code);
        state
    }

    /// 64-bit mode with flat segments, paging by the tables at `cr3` and the
    /// GDT of [`gdt64`] at `gdt`; interrupts off.
    pub(super) fn long_mode(rip: u64, cr3: GuestPhysAddr, gdt: GuestPhysAddr) -> Self {
        let mut state = Self::protected(Segment::code64(CODE_SELECTOR), rip, gdt);
        state.cr0 |= Cr0::PG;
        state.cr3 = cr3.as_u64();
        state.cr4 = Cr4::PAE;
        state.efer = Efer::LME | Efer::LMA;
        state
    }

    /// 32-bit protected mode with flat segments, no paging and the GDT of
    /// [`gdt32`] at `gdt`; interrupts off.
    pub(super) fn protected_mode(rip: u32, gdt: GuestPhysAddr) -> Self {
        Self::protected(Segment::code32(CODE_SELECTOR), u64::from(rip), gdt)
    }

    fn protected(code: Segment, rip: u64, gdt: GuestPhysAddr) -> Self {
        let mut state = Self {
            rip,
            cr0: Cr0::PE | Cr0::ET | Cr0::NE,
            segments: [Segment::data32(DATA_SELECTOR); 8],
            gdtr: DescriptorTable { base: gdt.as_u64(), limit: GDT_SIZE - 1 },
            idtr: DescriptorTable { base: 0, limit: 0 },
            ..Self::reset_vector(0)
        };
        state.set_segment(SegmentRegister::Cs, code);
        state.set_segment(SegmentRegister::Ldtr, Segment::UNUSABLE);
        state.set_segment(SegmentRegister::Tr, Segment::tss(0));
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

/// Bytes of a [`gdt64`] or [`gdt32`].
pub(super) const GDT_SIZE: u16 = 4 * 8;

/// The descriptor table that matches [`EntryState::long_mode`].
pub(super) fn gdt64() -> Vec<u8> {
    gdt(CODE64)
}

/// The descriptor table that matches [`EntryState::protected_mode`].
pub(super) fn gdt32() -> Vec<u8> {
    gdt(CODE32)
}

fn gdt(code: u64) -> Vec<u8> {
    [0, 0, code, DATA].into_iter().flat_map(u64::to_le_bytes).collect()
}
