//! vCPUs and services that sleep on a CPU until a moment.

use super::world::World;
use alloc::vec::Vec;
use sched::EntityId;
use vmm::hot::timer::NEVER;

/// One that sleeps until its timer rings.
#[derive(Debug)]
struct Sleeper {
    until: u64,
    entity: EntityId,
}

/// Those that went to sleep on this CPU. One that was woken otherwise is still among them, and
/// wakes once for nothing.
#[derive(Debug, Default)]
pub(super) struct Sleepers(Vec<Sleeper>);

impl Sleepers {
    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// The tick at which the first is due; [`NEVER`] if there is none.
    pub(super) fn first(&self) -> u64 {
        self.0.iter().map(|sleeper| sleeper.until).min().unwrap_or(NEVER)
    }

    /// `entity` sleeps until the tick `until`.
    pub(super) fn add(&mut self, entity: EntityId, until: u64) {
        self.0.push(Sleeper { until, entity });
    }

    /// `entity` is awake.
    pub(super) fn forget(&mut self, entity: EntityId) {
        self.0.retain(|sleeper| sleeper.entity != entity);
    }

    /// Wakes those that are due at the tick `now`.
    pub(super) fn wake(&mut self, world: &World, now: u64) {
        if self.0.is_empty() {
            return;
        }
        self.0.retain(|sleeper| {
            let due = sleeper.until <= now;
            if due {
                world.wake_late(sleeper.entity, sleeper.until);
            }
            !due
        });
    }
}
