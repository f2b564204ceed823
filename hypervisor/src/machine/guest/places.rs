//! Places of a guest's vCPUs: the CPUs that run them, and the scheduler's names.

use crate::cpu::percpu;
use crate::machine::world::World;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicUsize, Ordering};
use sched::{EntityId, Reason};
use spin::Once;

/// No CPU.
const NOWHERE: usize = usize::MAX;

/// Places of a guest's vCPUs, which a kick has to know.
#[derive(Debug)]
pub(crate) struct Places {
    places: Vec<Place>,
}

#[derive(Debug)]
struct Place {
    entity: Once<EntityId>,
    /// The CPU that runs it, or [`NOWHERE`].
    cpu: AtomicUsize,
}

impl Places {
    pub(crate) fn new(count: usize) -> Self {
        let place = || Place { entity: Once::new(), cpu: AtomicUsize::new(NOWHERE) };
        Self { places: core::iter::repeat_with(place).take(count).collect() }
    }

    /// The scheduler knows vCPU `index` by this name.
    pub(crate) fn set_entity(&self, index: usize, entity: EntityId) {
        if let Some(place) = self.places.get(index) {
            place.entity.call_once(|| entity);
        }
    }

    /// The scheduler's name of vCPU `index`.
    pub(crate) fn entity(&self, index: usize) -> Option<EntityId> {
        self.places.get(index)?.entity.get().copied()
    }

    /// The scheduler's names of all vCPUs.
    pub(crate) fn entities(&self) -> impl Iterator<Item = EntityId> {
        self.places.iter().filter_map(|place| place.entity.get().copied())
    }

    /// CPU `cpu` runs vCPU `index` from now on.
    pub(crate) fn enter(&self, index: usize, cpu: usize) {
        if let Some(place) = self.places.get(index) {
            place.cpu.store(cpu, Ordering::SeqCst);
        }
    }

    /// No CPU runs vCPU `index` any more. A sender that posts to it after this wakes it
    /// through the scheduler; one that has posted before is seen in its mailbox.
    pub(crate) fn leave(&self, index: usize) {
        self.enter(index, NOWHERE);
    }

    /// The CPU that runs vCPU `index`.
    pub(crate) fn cpu(&self, index: usize) -> Option<usize> {
        let cpu = self.places.get(index)?.cpu.load(Ordering::SeqCst);
        (cpu != NOWHERE).then_some(cpu)
    }

    /// Makes the CPU that runs vCPU `index` ask the scheduler again.
    pub(crate) fn interrupt(&self, index: usize) {
        if let Some(cpu) = self.cpu(index).and_then(percpu::cpu) {
            cpu.request(percpu::RESCHEDULE);
        }
    }

    /// Makes vCPU `index` look at its mailbox.
    pub(crate) fn kick(&self, index: usize, world: &World) {
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
