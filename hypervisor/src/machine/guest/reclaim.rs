//! A guest whose vCPUs have left: a service gives back what it had, charged to the guest.

use super::AnyGuest;
use crate::cpu::asm;
use crate::machine::world::World;
use crate::mm::guest::GuestSpace;
use alloc::format;
use alloc::string::String;
use alloc::sync::{Arc, Weak};
use core::sync::atomic::{AtomicBool, Ordering};
use locks::{Mutex, Rank};
use service::{Service, Stop};
use x86defs::GuestPhysAddr;

/// Memory that is still to be given back.
enum Work {
    /// RAM from this address on.
    Emptying(Arc<AnyGuest>, GuestPhysAddr),
    /// The rest, which goes with the last one that knows the guest or its memory.
    Leaving(Weak<AnyGuest>, Weak<GuestSpace>),
}

/// See the [module](self).
pub(crate) struct Reclaim {
    name: String,
    /// The guest's place on the operator's agenda.
    place: usize,
    world: &'static World,
    work: Mutex<Work>,
    done: AtomicBool,
}

impl Reclaim {
    /// All memory of a guest that no CPU runs any more.
    pub(crate) fn new(guest: Arc<AnyGuest>, world: &'static World) -> Self {
        Self {
            name: format!("{}/reclaim", guest.vm.name),
            place: guest.place,
            world,
            work: Mutex::new(Rank::Life, Work::Emptying(guest, GuestPhysAddr::new(0))),
            done: AtomicBool::new(false),
        }
    }

    /// Whether nothing is left.
    pub(crate) fn is_done(&self) -> bool {
        self.done.load(Ordering::SeqCst)
    }
}

impl Service for Reclaim {
    fn name(&self) -> &str {
        &self.name
    }

    fn step(&self, until: u64) -> Stop {
        let work = &mut *self.work.lock();
        if let Work::Emptying(guest, at) = work {
            while let Some(next) = guest.vm.memory.release_from(*at) {
                *at = next;
                if asm::rdtsc() >= until {
                    return Stop::Ready;
                }
            }
            *work = Work::Leaving(Arc::downgrade(guest), Arc::downgrade(&guest.vm.memory));
        }
        if let Work::Leaving(guest, space) = work
            && guest.strong_count() == 0
            && space.strong_count() == 0
        {
            self.done.store(true, Ordering::SeqCst);
            self.world.note(self.place);
        }
        Stop::Blocked
    }

    /// Whoever else knows the guest lets go of it soon, and wakes nobody.
    fn rest(&self) -> Option<u64> {
        (!self.is_done()).then(|| self.world.step())
    }
}
