//! RDMSR and WRMSR for a guest: a table with one line for each MSR. A number without a line gives
//! #GP, as on hardware that lacks the register; nothing reads as zero just because nobody thought
//! of it.
//!
//! - [`table`]: the lines, and [`MsrTable`] made of those that a guest has.
//! - [`MsrFile`]: the values of the registers that are no more than storage.
//! - [`validate`]: the rules of registers that others hold.

pub mod mtrr;
pub mod table;
#[cfg(test)]
mod tests;
pub mod validate;

use crate::msr::mtrr::MtrrRegister;
use devices::RestoreError;
use serde::{Deserialize, Serialize};
pub use table::{MsrConfig, MsrTable};
use x86defs::{Gp, Msr};

/// An MSR that the CPU itself holds for the guest, in VMCB, VMCS or, while the guest runs, in the
/// register. Values have been checked before they get there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum HardwareMsr {
    /// SYSENTER's code segment.
    SysenterCs,
    /// SYSENTER's stack pointer.
    SysenterEsp,
    /// SYSENTER's instruction pointer.
    SysenterEip,
    /// Page-attribute table.
    Pat,
    /// SYSCALL's segments.
    Star,
    /// SYSCALL's target in long mode.
    Lstar,
    /// SYSCALL's target in compatibility mode.
    Cstar,
    /// SYSCALL's flag mask.
    Sfmask,
    /// FS base.
    FsBase,
    /// GS base.
    GsBase,
    /// The base that SWAPGS swaps in.
    KernelGsBase,
    /// The value that RDTSCP and RDPID return.
    TscAux,
}

/// An MSR that some part of the virtual machine holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SpecialMsr {
    /// Time-stamp counter: [`crate::clock::VmClock::tsc`].
    Tsc,
    /// TSC_ADJUST: [`crate::clock::VcpuClock::tsc_adjust`].
    TscAdjust,
    /// Local-APIC base; check with [`validate::apic_base`].
    ApicBase,
    /// Extended features; check with [`validate::efer`].
    Efer,
    /// TSC deadline of the local APIC's timer.
    TscDeadline,
    /// The x2APIC register at this offset, MSR number less 0x800; #GP unless
    /// the local APIC is in x2APIC mode.
    X2Apic(u8),
    /// A memory-type range register: [`crate::msr::mtrr::Mtrrs`].
    Mtrr(MtrrRegister),
    /// KVM's system time: [`crate::clock::VmClock::write_system_time`].
    KvmSystemTime,
    /// KVM's wall clock: [`crate::clock::VmClock::write_wall_clock`].
    KvmWallClock,
    /// KVM's steal time: [`crate::pv::StealTime::write`].
    KvmStealTime,
    /// KVM's end of interrupt: [`crate::pv::PvEoi::write`].
    KvmPvEoi,
}

/// Storage in [`MsrFile`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Slot {
    /// IA32_MCG_STATUS.
    McgStatus,
    /// IA32_MISC_ENABLE.
    MiscEnable,
    /// AMD's SYSCFG.
    Syscfg,
    /// AMD's HWCR.
    Hwcr,
    /// AMD's NB_CFG.
    NbCfg,
}

impl Slot {
    /// How many slots there are.
    pub const COUNT: usize = 5;
}

/// Source of the value that a read finds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadAction {
    /// Always this value.
    Constant(u64),
    /// The value that was stored.
    Stored(Slot),
    /// Ask the backend.
    Hardware(HardwareMsr),
    /// Ask the part of the machine that holds it.
    Special(SpecialMsr),
    /// The register can't be read.
    Fault,
}

/// Effect of a write, once its value has passed the rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WriteAction {
    /// Stores it.
    Stored(Slot),
    /// Hands it to the backend.
    Hardware(HardwareMsr),
    /// Hands it to the part of the machine that holds it.
    Special(SpecialMsr),
    /// Nothing: hardware takes the write and does nothing that shows either.
    Ignored,
    /// The register can't be written.
    Fault,
}

/// Which values a register takes; any other gives #GP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// All.
    Any,
    /// Canonical addresses.
    Canonical,
    /// Bits 63:32 clear.
    Low32,
    /// Eight memory types.
    Pat,
    /// Only these bits may differ from the register's value after reset.
    Change(u64),
    /// Bits of the first word may differ so; bits of the second are read-only: a write of them is
    /// lost.
    ChangeOrLose(u64, u64),
}

/// A line of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MsrLine {
    /// RDMSR.
    pub read: ReadAction,
    /// WRMSR.
    pub write: WriteAction,
    /// Values that WRMSR takes.
    pub rule: Rule,
    /// Value after reset, for a register that is stored.
    pub reset: u64,
}

/// Source of the value that RDMSR has to return.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MsrRead {
    /// This value.
    Value(u64),
    /// The backend.
    Hardware(HardwareMsr),
    /// This part of the machine.
    Special(SpecialMsr),
}

/// Work that is left of a WRMSR.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MsrWrite {
    /// Nothing.
    Done,
    /// Give the value to the backend; it is valid.
    Hardware(HardwareMsr),
    /// Give the value to this part of the machine, which checks it.
    Special(SpecialMsr),
}

/// The stored MSRs of one vCPU.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MsrFile {
    slots: [u64; Slot::COUNT],
}

impl MsrFile {
    /// The values after reset.
    #[must_use]
    pub fn new(table: &MsrTable) -> Self {
        let mut file = Self { slots: [0; Slot::COUNT] };
        for (_, line) in table.lines() {
            if let ReadAction::Stored(slot) = line.read {
                file.set(slot, line.reset);
            }
        }
        file
    }

    /// A saved file, if each value is one that its register takes.
    ///
    /// # Errors
    /// A register holds a value that it can't have.
    pub fn restored(table: &MsrTable, saved: Self) -> Result<Self, RestoreError> {
        let legal = table.lines().all(|(_, line)| match line.read {
            ReadAction::Stored(slot) => {
                let value = saved.get(slot);
                line.rule.takes(value, line.reset) && line.rule.keeps(value, line.reset) == value
            }
            _ => true,
        });
        if legal { Ok(saved) } else { Err(RestoreError("an MSR holds a value that it can't")) }
    }

    fn get(&self, slot: Slot) -> u64 {
        self.slots.get(slot as usize).copied().unwrap_or(0)
    }

    fn set(&mut self, slot: Slot, value: u64) {
        if let Some(place) = self.slots.get_mut(slot as usize) {
            *place = value;
        }
    }

    /// RDMSR.
    ///
    /// # Errors
    /// [`Gp`] for a number that the guest does not have.
    #[inline]
    pub fn read(&self, table: &MsrTable, msr: Msr) -> Result<MsrRead, Gp> {
        match table.lookup(msr).ok_or(Gp)?.read {
            ReadAction::Constant(value) => Ok(MsrRead::Value(value)),
            ReadAction::Stored(slot) => Ok(MsrRead::Value(self.get(slot))),
            ReadAction::Hardware(which) => Ok(MsrRead::Hardware(which)),
            ReadAction::Special(which) => Ok(MsrRead::Special(which)),
            ReadAction::Fault => Err(Gp),
        }
    }

    /// WRMSR.
    ///
    /// # Errors
    /// [`Gp`] for a number that the guest does not have, or may not write, and
    /// for a value that the register does not take; nothing changes.
    #[inline]
    pub fn write(&mut self, table: &MsrTable, msr: Msr, value: u64) -> Result<MsrWrite, Gp> {
        let line = table.lookup(msr).ok_or(Gp)?;
        if !line.rule.takes(value, line.reset) {
            return Err(Gp);
        }
        match line.write {
            WriteAction::Stored(slot) => {
                self.set(slot, line.rule.keeps(value, line.reset));
                Ok(MsrWrite::Done)
            }
            WriteAction::Ignored => Ok(MsrWrite::Done),
            WriteAction::Hardware(which) => Ok(MsrWrite::Hardware(which)),
            WriteAction::Special(which) => Ok(MsrWrite::Special(which)),
            WriteAction::Fault => Err(Gp),
        }
    }
}

impl Rule {
    /// Whether a register that has `reset` after reset takes `value`.
    #[must_use]
    pub fn takes(self, value: u64, reset: u64) -> bool {
        match self {
            Self::Any => true,
            Self::Canonical => x86defs::GuestVirtAddr::new(value).is_canonical(),
            Self::Low32 => value >> 32 == 0,
            Self::Pat => crate::msr::mtrr::is_valid_pat(value),
            Self::Change(mask) => (value ^ reset) & !mask == 0,
            Self::ChangeOrLose(mask, lost) => (value ^ reset) & !(mask | lost) == 0,
        }
    }

    /// Value of the register after a write of `value`, which it takes.
    #[must_use]
    pub fn keeps(self, value: u64, reset: u64) -> u64 {
        match self {
            Self::ChangeOrLose(_, lost) => value & !lost | reset & lost,
            _ => value,
        }
    }
}
