//! [`PvEoi`]: the guest ends an interrupt by clearing a bit in its memory, and the
//! local APIC learns of it at the next exit.
//!
//! The bit is set for the time of one entry only, and only where the end of the
//! interrupt has no consequence but its own: nothing waits to be delivered behind
//! it, nothing was interrupted by it, and no I/O APIC waits for its end.

use crate::counters::Counters;
use devices::lapic::Lapic;
use hvabi::kvm::{EOI_PENDING, MSR_ENABLED};
use memory::GuestMemory;
use serde::{Deserialize, Serialize};
use x86defs::{Gp, GuestPhysAddr, Vector};

/// Bit 1 of the MSR, which is reserved: the word is aligned to 4 bytes.
const RESERVED: u64 = 2;

/// A vCPU's ends of interrupts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PvEoi {
    /// MSR KVM_PV_EOI as written.
    msr: u64,
    /// The bit was set at the entry, for the interrupt in service.
    offered: bool,
}

impl PvEoi {
    /// MSR KVM_PV_EOI.
    #[must_use]
    pub const fn msr(&self) -> u64 {
        self.msr
    }

    /// Whether the register holds what a guest can have written, and no entry is under way.
    pub(super) const fn is_possible(&self) -> bool {
        self.msr & RESERVED == 0 && !self.offered
    }

    const fn address(&self) -> Option<GuestPhysAddr> {
        if self.msr & MSR_ENABLED == 0 {
            return None;
        }
        Some(GuestPhysAddr::new(self.msr & !MSR_ENABLED))
    }

    /// WRMSR of KVM_PV_EOI: names the word, or ends its use where bit 0 is clear.
    ///
    /// # Errors
    /// [`Gp`] where the address is not a multiple of 4, or not in writable RAM;
    /// nothing has changed then.
    pub fn write(&mut self, value: u64, memory: &impl GuestMemory) -> Result<(), Gp> {
        if value & RESERVED != 0 {
            return Err(Gp);
        }
        let new = Self { msr: value, offered: false };
        if let Some(at) = new.address() {
            // The bit means nothing yet, and the rest of the word is the guest's.
            let mut word = [0];
            memory.read(at, &mut word).map_err(|_| Gp)?;
            let [word] = word;
            memory.write(at, &[word & !EOI_PENDING]).map_err(|_| Gp)?;
        }
        *self = new;
        Ok(())
    }

    /// The vCPU is about to enter the guest; `lapic` is as it was made ready for
    /// that.
    #[inline(always)]
    pub fn to_guest(&mut self, lapic: &Lapic, memory: &impl GuestMemory, counts: &mut Counters) {
        if let Some(at) = self.address()
            && lapic.ends_unseen()
        {
            self.offer(at, memory, counts);
        }
    }

    #[inline(never)]
    fn offer(&mut self, at: GuestPhysAddr, memory: &impl GuestMemory, counts: &mut Counters) {
        if set(memory, at, true).is_some() {
            self.offered = true;
            counts.eoi_offers += 1;
        }
    }

    /// The vCPU has left the guest: if the guest has cleared the bit, the
    /// interrupt in service is over. Returns its vector if an I/O APIC must be
    /// told, which is so only if it became level-triggered meanwhile.
    #[inline(always)]
    pub fn from_guest(
        &mut self,
        lapic: &mut Lapic,
        memory: &impl GuestMemory,
        counts: &mut Counters,
    ) -> Option<Vector> {
        if self.offered { self.take_back(lapic, memory, counts) } else { None }
    }

    #[inline(never)]
    fn take_back(
        &mut self,
        lapic: &mut Lapic,
        memory: &impl GuestMemory,
        counts: &mut Counters,
    ) -> Option<Vector> {
        self.offered = false;
        // A guest without its word can't have ended an interrupt that way.
        if set(memory, self.address()?, false)? {
            return None;
        }
        counts.eois += 1;
        lapic.eoi()
    }
}

/// Sets or clears the bit; returns what it was before. The guest runs on this CPU, so that nothing
/// comes in between. A bit that is right already is not written.
fn set(memory: &impl GuestMemory, at: GuestPhysAddr, pending: bool) -> Option<bool> {
    let mut word = [0];
    memory.read(at, &mut word).ok()?;
    let [word] = word;
    let new = if pending { word | EOI_PENDING } else { word & !EOI_PENDING };
    if new != word {
        memory.write(at, &[new]).ok()?;
    }
    Some(word & EOI_PENDING != 0)
}
