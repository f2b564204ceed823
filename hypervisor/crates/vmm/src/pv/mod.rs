//! KVM's paravirtual CPU interface, for one vCPU (Linux documentation:
//! "KVM-specific MSRs", "KVM CPUID bits"; the calls are in
//! [`crate::hypercall`], kvmclock in [`crate::clock`]).
//!
//! - [`PvFeatures`]: the parts of it that a guest is offered.
//! - [`StealTime`]: how long the vCPU had no CPU, and whether it has one now; by this structure
//!   other vCPUs leave it a flush of its translations to do.
//! - [`PvEoi`]: ends of interrupts that cause no exit.
//! - `Counters`: how much each part was used.
//!
//! Guest memory is touched where a vCPU gets or loses its CPU, and around the
//! entries of general code with an interrupt in service; never by the hot handler.

mod eoi;
mod steal;
#[cfg(test)]
mod tests;

pub use eoi::PvEoi;
pub use steal::{Flush, StealTime};

use bitflags::bitflags;
use devices::RestoreError;
use hvabi::{CallName, CallSet, kvm::feature};
use serde::{Deserialize, Serialize};

bitflags! {
    /// The parts of KVM's interface that a guest is offered beside the clock: bits of EAX in CPUID
    /// leaf 0x4000_0101.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct PvFeatures: u32 {
        /// Steal time.
        const STEAL_TIME = feature::STEAL_TIME;
        /// End of interrupt without an exit. Not for guests whose CPU delivers
        /// and ends interrupts by itself.
        const EOI = feature::PV_EOI;
        /// [`kvm::call::KICK_CPU`](hvabi::kvm::call::KICK_CPU).
        const UNHALT = feature::PV_UNHALT;
        /// Flushes that wait until their vCPU runs. Needs [`Self::STEAL_TIME`].
        const TLB_FLUSH = feature::PV_TLB_FLUSH;
        /// [`kvm::call::SEND_IPI`](hvabi::kvm::call::SEND_IPI).
        const SEND_IPI = feature::PV_SEND_IPI;
        /// [`kvm::call::SCHED_YIELD`](hvabi::kvm::call::SCHED_YIELD).
        const SCHED_YIELD = feature::PV_SCHED_YIELD;
    }
}

impl PvFeatures {
    /// The parts of `self` that a guest can use if it may make the hypercalls `calls`, without
    /// those that depend on a missing one.
    #[must_use]
    pub fn usable(mut self, calls: CallSet) -> Self {
        for (feature, call) in [
            (Self::UNHALT, CallName::KvmKickCpu),
            (Self::SEND_IPI, CallName::KvmSendIpi),
            (Self::SCHED_YIELD, CallName::KvmSchedYield),
        ] {
            self.set(feature, self.contains(feature) && calls.contains(call));
        }
        if !self.contains(Self::STEAL_TIME) {
            self.remove(Self::TLB_FLUSH);
        }
        self
    }
}

/// A vCPU's part of the interface.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PvState {
    /// Steal time.
    pub steal: StealTime,
    /// Ends of interrupts.
    pub eoi: PvEoi,
    /// A kick came while the vCPU ran: its next HLT ends at once.
    pub kicked: bool,
}

impl PvState {
    /// A saved state, if it is one that a guest can have made. The guest's memory is looked at when
    /// it is used, as ever.
    ///
    /// # Errors
    /// A register holds a value that it can't have.
    pub fn restored(self) -> Result<Self, RestoreError> {
        if self.steal.is_possible() && self.eoi.is_possible() {
            Ok(self)
        } else {
            Err(RestoreError("a register of KVM's interface holds a value that it can't"))
        }
    }

    /// The CPU was reset, or INIT reached it: nothing of the guest's memory is
    /// touched any more until the guest asks for it again.
    pub fn reset(&mut self) {
        self.steal.reset();
        self.eoi = PvEoi::default();
        self.kicked = false;
    }
}
