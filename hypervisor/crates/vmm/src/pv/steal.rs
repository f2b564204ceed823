//! [`StealTime`]: the structure in guest memory that tells a vCPU for how long it
//! had no CPU, and other vCPUs whether it has one.

use super::PvFeatures;
use crate::counters::Counters;
use hvabi::kvm::{MSR_ENABLED, steal};
use memory::{GuestMemory, MemoryError};
use serde::{Deserialize, Serialize};
use x86defs::bits::Low;
use x86defs::{Gp, GuestPhysAddr, Width};

/// Bits 5:1 of the MSR, which are reserved.
const RESERVED: u64 = 0x3e;
/// How often another vCPU may get in between while the flag is taken.
const ATTEMPTS: usize = 4;

/// Whether a vCPU has to flush its translations before it runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Flush {
    /// It has: another vCPU relies on it.
    Due,
    /// Nobody asked for it.
    None,
}

/// A vCPU's steal time. Times are nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StealTime {
    /// MSR KVM_STEAL_TIME as written.
    msr: u64,
    /// How long the vCPU has waited for a CPU in its life.
    #[serde(skip)]
    waited: u64,
    /// The part of `waited` that the guest has been told, or that passed before it asked.
    #[serde(skip)]
    told: u64,
}

impl StealTime {
    /// MSR KVM_STEAL_TIME.
    #[must_use]
    pub const fn msr(&self) -> u64 {
        self.msr
    }

    /// Whether the register holds what a guest can have written.
    pub(super) const fn is_possible(&self) -> bool {
        self.msr & RESERVED == 0
    }

    /// Address of the structure, if there is one.
    const fn address(&self) -> Option<GuestPhysAddr> {
        if self.msr & MSR_ENABLED == 0 {
            return None;
        }
        Some(GuestPhysAddr::new(self.msr & !(MSR_ENABLED | RESERVED)))
    }

    /// WRMSR of KVM_STEAL_TIME: registers a structure of 64 bytes, or ends the registration where
    /// bit 0 is clear. Steal time goes on from the value that the structure holds.
    ///
    /// # Errors
    /// [`Gp`] where a reserved bit is set, or the structure is not in writable
    /// RAM; nothing has changed then.
    pub fn write(&mut self, value: u64, memory: &impl GuestMemory) -> Result<(), Gp> {
        if value & RESERVED != 0 {
            return Err(Gp);
        }
        let new = Self { msr: value, waited: self.waited, told: self.waited };
        if let Some(at) = new.address() {
            // The vCPU runs: it writes the register.
            add(memory, at, 0)
                .and_then(|()| memory.write(at.wrapping_add(steal::PREEMPTED), &[0]))
                .map_err(|_| Gp)?;
        }
        *self = new;
        Ok(())
    }

    /// The vCPU gets a CPU, after it has waited for one for `waited` in its life. The flush that is
    /// returned must be done before it enters the guest.
    ///
    /// The structure was in RAM when it was registered; a guest that has none
    /// there any more loses its steal time and nothing else.
    pub fn on_cpu(
        &mut self,
        waited: u64,
        offered: PvFeatures,
        memory: &impl GuestMemory,
        counts: &mut Counters,
    ) -> Flush {
        self.waited = waited;
        let Some(at) = self.address() else { return Flush::None };
        let delta = waited.saturating_sub(self.told);
        if delta != 0 && add(memory, at, delta).is_ok() {
            self.told = waited;
            counts.steal_updates += 1;
        }
        match take_preempted(memory, at.wrapping_add(steal::PREEMPTED)) {
            Flush::Due if offered.contains(PvFeatures::TLB_FLUSH) => {
                counts.tlb_flushes += 1;
                Flush::Due
            }
            _ => Flush::None,
        }
    }

    /// The vCPU loses its CPU: from now on others may ask for a flush instead of
    /// interrupting it.
    pub fn off_cpu(&self, memory: &impl GuestMemory, counts: &mut Counters) {
        if let Some(at) = self.address()
            && memory.write(at.wrapping_add(steal::PREEMPTED), &[steal::VCPU_PREEMPTED]).is_ok()
        {
            counts.preempted += 1;
        }
    }

    /// The CPU was reset.
    pub(super) const fn reset(&mut self) {
        self.msr = 0;
    }
}

/// Adds `nanos` to the steal time at `at`.
fn add(memory: &impl GuestMemory, at: GuestPhysAddr, nanos: u64) -> Result<(), MemoryError> {
    let version_at = at.wrapping_add(steal::VERSION);
    let (mut old, mut version) = ([0; 8], [0; 4]);
    memory.read(at.wrapping_add(steal::STEAL), &mut old)?;
    memory.read(version_at, &mut version)?;
    let (old, version) = (u64::from_le_bytes(old), u32::from_le_bytes(version));
    // An odd version was there before the guest used the place.
    let version = version.wrapping_add(version & 1);
    memory.write(version_at, &version.wrapping_add(1).to_le_bytes())?;
    memory.write(at.wrapping_add(steal::STEAL), &old.wrapping_add(nanos).to_le_bytes())?;
    memory.write(at.wrapping_add(steal::FLAGS), &[0; 4])?;
    memory.write(version_at, &version.wrapping_add(2).to_le_bytes())
}

/// Shows the vCPU as one that has a CPU, and takes what was asked of it before.
fn take_preempted(memory: &impl GuestMemory, at: GuestPhysAddr) -> Flush {
    let mut flags = [0];
    if memory.read(at, &mut flags).is_err() {
        return Flush::None;
    }
    let [flags] = flags;
    let mut seen = u64::from(flags);
    for _ in 0..ATTEMPTS {
        if seen == 0 {
            return Flush::None;
        }
        match memory.compare_exchange(at, Width::B1, seen, 0) {
            Ok(old) if old == seen => {
                let asked = old.low8() & steal::VCPU_FLUSH_TLB != 0;
                return if asked { Flush::Due } else { Flush::None };
            }
            Ok(old) => seen = old,
            Err(_) => return Flush::None,
        }
    }
    // A vCPU that asks before this write is served; one that comes after it sees that this vCPU
    // runs. So it need not be known whether one has asked.
    let _ = memory.write(at, &[0]);
    Flush::Due
}
