//! The virtual-machine control structure of VT-x: its fields, typed by width
//! (SDM: "Field Encoding in VMCS"), its control words, events, and [`decode`],
//! which turns an exit reason and its companions into a
//! [`VmExit`](crate::VmExit).

pub mod check;
mod controls;
mod error;
mod event;
mod exit;
mod fields;
mod words;

pub use controls::{
    ControlCapability, EntryControls, EptVpidCapabilities, ExitControls, PinControls,
    PrimaryControls, SecondaryControls, VmxBasic, VmxMisc,
};
pub use error::InstructionError;
pub use event::{InterruptionInfo, InterruptionKind, interrupted_event};
pub use exit::{
    ExitInformation, ExitReason, apic_offset, byte_port, decode, is_first_touch, is_low_byte_port,
    plain_port, unblocks_nmi,
};
pub use fields::{Field16, Field32, Field64, FieldNatural};
pub use words::{ApicSpace, ControlWords, Missing};

use bitflags::bitflags;

bitflags! {
    /// Interruptibility state (SDM: "Guest Non-Register State").
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct Interruptibility: u32 {
        /// After STI: interrupts wait for one instruction.
        const STI = 1 << 0;
        /// After MOV SS or POP SS: interrupts and debug traps wait.
        const MOV_SS = 1 << 1;
        /// In system-management mode.
        const SMI = 1 << 2;
        /// NMIs are blocked until IRET.
        const NMI = 1 << 3;
        /// An enclave was interrupted.
        const ENCLAVE = 1 << 4;
    }
}

impl Interruptibility {
    /// Either shadow of one instruction.
    pub const SHADOW: Self = Self::STI.union(Self::MOV_SS);
}

/// Pending debug exceptions: a single step is due.
pub const PENDING_DEBUG_BS: u64 = 1 << 14;
/// "Unusable" in a segment's access rights.
pub const ACCESS_RIGHTS_UNUSABLE: u32 = 1 << 16;
/// Bytes of each of the two I/O bitmaps and of the MSR bitmap.
pub const BITMAP_SIZE: usize = 4096;
/// Bit 31 of the exit reason: the entry failed.
pub const ENTRY_FAILED: u32 = 1 << 31;

/// An EPT pointer: write-back tables of four levels at `root`
/// (SDM: "Extended-Page-Table Pointer (EPTP)").
#[must_use]
pub const fn ept_pointer(root: crate::HostPhysAddr) -> u64 {
    const WRITE_BACK: u64 = 6;
    const LEVELS_LESS_ONE: u64 = 3;
    root.as_u64() | LEVELS_LESS_ONE << 3 | WRITE_BACK
}
