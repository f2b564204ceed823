//! Bits of page-table entries: the ordinary format, which AMD-V's nested
//! tables share, and VT-x's EPT.

use bitflags::bitflags;

bitflags! {
    /// An entry of ordinary (and AMD-V nested) page tables
    /// (APM: "Page-Translation-Table Entry Fields").
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    pub struct Pte: u64 {
        /// Present.
        const P = 1 << 0;
        /// Writable.
        const W = 1 << 1;
        /// User.
        const U = 1 << 2;
        /// Write-through (PAT index bit 0).
        const PWT = 1 << 3;
        /// Cache disable (PAT index bit 1).
        const PCD = 1 << 4;
        /// Accessed.
        const A = 1 << 5;
        /// Dirty.
        const D = 1 << 6;
        /// Large page, above level 1.
        const PS = 1 << 7;
        /// PAT index bit 2 at level 1.
        const PAT = 1 << 7;
        /// Global.
        const G = 1 << 8;
        /// PAT index bit 2 of a large page.
        const PAT_LARGE = 1 << 12;
        /// No execute.
        const NX = 1 << 63;
    }
}

bitflags! {
    /// An entry of VT-x's extended page tables
    /// (SDM: "The Extended Page Table Mechanism (EPT)").
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    pub struct EptEntry: u64 {
        /// Reads.
        const R = 1 << 0;
        /// Writes.
        const W = 1 << 1;
        /// Instruction fetches (of supervisors, with mode-based execution).
        const X = 1 << 2;
        /// Ignore the guest's PAT.
        const IPAT = 1 << 6;
        /// Large page.
        const PS = 1 << 7;
        /// Accessed.
        const A = 1 << 8;
        /// Dirty.
        const D = 1 << 9;
        /// Instruction fetches of user mode, with mode-based execution.
        const XU = 1 << 10;
        /// Suppress #VE.
        const SUPPRESS_VE = 1 << 63;
    }
}

/// Position of the memory type in an EPT leaf.
pub const EPT_MEMORY_TYPE_SHIFT: u32 = 3;

/// The address bits 51:12 of an entry.
pub const ADDRESS_MASK: u64 = 0x000f_ffff_ffff_f000;

/// A memory type, as MTRRs, PAT and EPT number them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum MemoryType {
    /// Uncacheable.
    Uncacheable = 0,
    /// Write-combining.
    WriteCombining = 1,
    /// Write-through.
    WriteThrough = 4,
    /// Write-protected.
    WriteProtected = 5,
    /// Write-back.
    WriteBack = 6,
}

bitflags! {
    /// The error code of a page fault (SDM: "Interrupt 14—Page-Fault Exception").
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    pub struct PageFaultCode: u32 {
        /// The fault was a protection violation, not an absent page.
        const P = 1 << 0;
        /// A write.
        const W = 1 << 1;
        /// In user mode.
        const U = 1 << 2;
        /// A reserved bit was set.
        const RSVD = 1 << 3;
        /// An instruction fetch.
        const I = 1 << 4;
        /// A protection key forbade it.
        const PK = 1 << 5;
    }
}
