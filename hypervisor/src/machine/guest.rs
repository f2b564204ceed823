//! A guest while it exists: its VM, its vCPUs as the scheduler sees them, and
//! how it ended.

use super::World;
use super::console::Console;
use crate::cpu::percpu;
use crate::hw::{ExtendedState, VendorCpu};
use crate::mm::guest::GuestSpace;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use spin::{Mutex, Once};
use vmm::bundle::GuestSettings;
use vmm::irq::Requests;
use vmm::sched::{EntityId, GuestId, Reason};
use vmm::vcpu::Vcpu;
use vmm::vm::{EndReason, Vm};

/// No CPU.
const NOWHERE: usize = usize::MAX;

/// What a CPU has to itself while it runs a vCPU.
#[derive(Debug)]
pub(super) struct Private<B> {
    /// The vCPU.
    pub(super) vcpu: Vcpu<B>,
    /// Its extended state, while it does not run.
    pub(super) extended: ExtendedState,
    /// The CPU that ran it last.
    pub(super) last_cpu: Option<usize>,
}

/// A vCPU as other CPUs may touch it.
#[derive(Debug)]
pub(super) struct Slot<B> {
    /// Taken by the CPU that runs it, for as long as it does.
    pub(super) private: Mutex<Private<B>>,
}

/// Where a guest's vCPUs are: what a kick has to know.
#[derive(Debug)]
pub(super) struct Places {
    places: Vec<Place>,
}

#[derive(Debug)]
struct Place {
    entity: Once<EntityId>,
    /// The CPU that runs it, or [`NOWHERE`].
    cpu: AtomicUsize,
}

impl Places {
    pub(super) fn new(count: usize) -> Self {
        let place = || Place { entity: Once::new(), cpu: AtomicUsize::new(NOWHERE) };
        Self { places: core::iter::repeat_with(place).take(count).collect() }
    }

    /// The scheduler knows vCPU `index` by this name.
    pub(super) fn set_entity(&self, index: usize, entity: EntityId) {
        if let Some(place) = self.places.get(index) {
            place.entity.call_once(|| entity);
        }
    }

    /// The scheduler's name of vCPU `index`.
    pub(super) fn entity(&self, index: usize) -> Option<EntityId> {
        self.places.get(index)?.entity.get().copied()
    }

    /// The scheduler's names of all vCPUs.
    pub(super) fn entities(&self) -> impl Iterator<Item = EntityId> {
        self.places.iter().filter_map(|place| place.entity.get().copied())
    }

    /// CPU `cpu` runs vCPU `index` from now on.
    pub(super) fn enter(&self, index: usize, cpu: usize) {
        if let Some(place) = self.places.get(index) {
            place.cpu.store(cpu, Ordering::SeqCst);
        }
    }

    /// No CPU runs vCPU `index` any more. Whoever posts to it after this wakes it
    /// through the scheduler; who has posted before is seen in its mailbox.
    pub(super) fn leave(&self, index: usize) {
        self.enter(index, NOWHERE);
    }

    /// Makes vCPU `index` look at its mailbox.
    pub(super) fn kick<C: VendorCpu>(&self, index: usize, world: &World<C>) {
        let Some(place) = self.places.get(index) else { return };
        match place.cpu.load(Ordering::SeqCst) {
            NOWHERE => {
                if let Some(entity) = place.entity.get() {
                    world.wake(*entity, Reason::Interrupt);
                }
            }
            cpu => {
                // The CPU itself looks before it next enters.
                if cpu != percpu::this().index()
                    && let Some(cpu) = percpu::cpu(cpu)
                {
                    cpu.request(percpu::LOOK);
                }
            }
        }
    }
}

/// A guest.
pub(super) struct Guest<C: VendorCpu> {
    /// Its settings.
    pub(super) settings: GuestSettings,
    /// What its vCPUs share.
    pub(super) vm: Vm<Arc<GuestSpace>>,
    /// Its vCPUs.
    pub(super) slots: Vec<Slot<C::Vcpu>>,
    /// Where they are.
    pub(super) places: Arc<Places>,
    /// Where its output goes.
    pub(super) console: Arc<Console>,
    /// Its name in the scheduler.
    pub(super) id: GuestId,
    /// The vCPUs are not to run any more.
    stopping: AtomicBool,
    end: Once<End>,
}

/// How a guest ended.
#[derive(Debug)]
pub(super) struct End {
    /// Why.
    pub(super) reason: EndReason,
    /// The vCPU that ended it; `None` for the operator.
    pub(super) vcpu: Option<usize>,
}

impl<C: VendorCpu> core::fmt::Debug for Guest<C> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Guest").field("name", &self.vm.name).finish_non_exhaustive()
    }
}

impl<C: VendorCpu> Guest<C> {
    /// A guest around its parts.
    pub(super) fn new(
        settings: GuestSettings,
        vm: Vm<Arc<GuestSpace>>,
        slots: Vec<Slot<C::Vcpu>>,
        places: Arc<Places>,
        console: Arc<Console>,
        id: GuestId,
    ) -> Self {
        let stopping = AtomicBool::new(false);
        Self { settings, vm, slots, places, console, id, stopping, end: Once::new() }
    }

    /// Whether its vCPUs are to leave it.
    #[inline]
    pub(super) fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }

    /// Ends it: the first reason counts. Its vCPUs leave it at their next look;
    /// the operator's context takes it apart then.
    pub(super) fn stop(&self, reason: EndReason, vcpu: Option<usize>, world: &World<C>) {
        self.end.call_once(|| End { reason, vcpu });
        self.stopping.store(true, Ordering::Release);
        for (index, posted) in self.vm.vcpus.iter().enumerate() {
            posted.request(Requests::STOP);
            self.places.kick(index, world);
        }
        world.wake_operator();
    }

    /// Whether no CPU runs any of its vCPUs.
    pub(super) fn is_left(&self) -> bool {
        self.slots.iter().all(|slot| !slot.private.is_locked())
    }

    /// How it ended, once it has.
    pub(super) fn end(&self) -> Option<&End> {
        self.end.get()
    }
}
