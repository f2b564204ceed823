//! The registers of a vCPU that is about to run for the first time.

use alloc::vec::Vec;
use x86defs::control::{Cr0, Cr4, Efer};
use x86defs::{CpuState, DescriptorTable, GuestPhysAddr, Segment, SegmentRegister};

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

/// 64-bit mode with flat segments, paging by the tables at `cr3` and the
/// GDT of [`gdt64`] at `gdt`; interrupts off.
pub(crate) fn long_mode(rip: u64, cr3: GuestPhysAddr, gdt: GuestPhysAddr) -> CpuState {
    let mut state = protected(Segment::code64(CODE_SELECTOR), rip, gdt);
    state.cr0 |= Cr0::PG;
    state.cr3 = cr3.as_u64();
    state.cr4 = Cr4::PAE;
    state.efer = Efer::LME | Efer::LMA;
    state
}

/// 32-bit protected mode with flat segments, no paging and the GDT of
/// [`gdt32`] at `gdt`; interrupts off.
pub(crate) fn protected_mode(rip: u32, gdt: GuestPhysAddr) -> CpuState {
    protected(Segment::code32(CODE_SELECTOR), u64::from(rip), gdt)
}

fn protected(code: Segment, rip: u64, gdt: GuestPhysAddr) -> CpuState {
    let mut state = CpuState {
        rip,
        cr0: Cr0::PE | Cr0::ET | Cr0::NE,
        segments: [Segment::data32(DATA_SELECTOR); 8],
        gdtr: DescriptorTable { base: gdt.as_u64(), limit: GDT_SIZE - 1 },
        idtr: DescriptorTable { base: 0, limit: 0 },
        ..CpuState::reset_vector(0)
    };
    state.set_segment(SegmentRegister::Cs, code);
    state.set_segment(SegmentRegister::Ldtr, Segment::UNUSABLE);
    state.set_segment(SegmentRegister::Tr, Segment::tss(0));
    state
}

/// Bytes of a [`gdt64`] or [`gdt32`].
pub(crate) const GDT_SIZE: u16 = 4 * 8;

/// The descriptor table that matches [`long_mode`].
pub(crate) fn gdt64() -> Vec<u8> {
    gdt(CODE64)
}

/// The descriptor table that matches [`protected_mode`].
pub(crate) fn gdt32() -> Vec<u8> {
    gdt(CODE32)
}

fn gdt(code: u64) -> Vec<u8> {
    [0, 0, code, DATA].into_iter().flat_map(u64::to_le_bytes).collect()
}
