//! A guest whose vCPUs have left: what it had is given back.

use super::AnyGuest;
use crate::cpu::asm;
use alloc::sync::{Arc, Weak};
use x86defs::GuestPhysAddr;

/// Memory that is still to be given back.
pub(crate) enum Reclaim {
    /// RAM from this address on.
    Emptying(Arc<AnyGuest>, GuestPhysAddr),
    /// The rest, which goes with the last one that knows the guest.
    Leaving(Weak<AnyGuest>),
}

impl Reclaim {
    /// All memory of a guest that no CPU runs any more.
    pub(crate) const fn new(guest: Arc<AnyGuest>) -> Self {
        Self::Emptying(guest, GuestPhysAddr::new(0))
    }

    /// Gives something back, until the tick `until`. Whether nothing is left.
    pub(crate) fn step(&mut self, until: u64) -> bool {
        match self {
            Self::Emptying(guest, at) => {
                while let Some(next) = guest.vm.memory.release_from(*at) {
                    *at = next;
                    if asm::rdtsc() >= until {
                        return false;
                    }
                }
                *self = Self::Leaving(Arc::downgrade(guest));
                false
            }
            Self::Leaving(guest) => guest.strong_count() == 0,
        }
    }
}
