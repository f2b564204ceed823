//! vCPUs and services that sleep on a CPU until a moment.

use super::world::World;
use sched::{Alarms, EntityId};

/// Those that went to sleep on this CPU. One that was woken otherwise is still among them, and
/// wakes once for nothing.
#[derive(Debug)]
pub(super) struct Sleepers(Alarms<EntityId>);

impl Sleepers {
    pub(super) const fn new() -> Self {
        Self(Alarms::new(EntityId::place))
    }

    /// How many there are.
    pub(super) const fn len(&self) -> usize {
        self.0.len()
    }

    /// The tick at which the first is due; [`NEVER`](vmm::hot::timer::NEVER) if there is none.
    pub(super) fn first(&self) -> u64 {
        self.0.first()
    }

    /// `entity` sleeps until the tick `until`.
    pub(super) fn add(&mut self, entity: EntityId, until: u64) {
        self.0.set(entity, until);
    }

    /// `entity` is awake.
    pub(super) fn forget(&mut self, entity: EntityId) {
        self.0.remove(entity);
    }

    /// Wakes those that are due at the tick `now`.
    pub(super) fn wake(&mut self, world: &World, now: u64) {
        while let Some((entity, due)) = self.0.ring(now) {
            world.wake_late(entity, due);
        }
    }
}
