//! How CPUs and entities spent their time.

use crate::scheduler::Scheduler;
use crate::settings::{EntityId, GuestId};
use crate::state::Place;
use crate::times::{CpuTimes, EntityTimes, GuestTimes};

impl Scheduler {
    /// How an entity spent its time until `now`.
    #[must_use]
    pub fn entity_times(&self, id: EntityId, now: u64) -> Option<EntityTimes> {
        let entity = self.entities.get(self.entities.resolve(id.0)?)?;
        let elapsed = now.max(self.now).saturating_sub(entity.since);
        let mut times = entity.times;
        match entity.place {
            Place::Running(_) => times.run += elapsed,
            Place::Queued(_) => times.ready += elapsed,
            Place::Off if entity.wants => times.paused += elapsed,
            Place::Off => times.wait += elapsed,
        }
        Some(times)
    }

    /// How a guest spent its time until `now`.
    #[must_use]
    pub fn guest_times(&self, id: GuestId, now: u64) -> Option<GuestTimes> {
        let index = self.guests.resolve(id.0)?;
        let guest = self.guests.get(index)?;
        let now = now.max(self.now);
        let since = guest.throttled_since.map_or(0, |since| now.saturating_sub(since));
        let mut sum = GuestTimes { run: 0, throttled: guest.throttled + since };
        for (at, entity) in self.entities.iter() {
            if entity.guest != index {
                continue;
            }
            let Some(key) = self.entities.key(at) else { continue };
            let Some(times) = self.entity_times(EntityId(key), now) else { continue };
            sum.run += times.run;
        }
        Some(sum)
    }

    /// How a CPU spent its time until `now`.
    #[must_use]
    pub fn cpu_times(&self, cpu: usize, now: u64) -> Option<CpuTimes> {
        let cpu = self.cpus.get(cpu)?;
        let now = now.max(self.now);
        let busy = cpu.current.map_or(0, |current| now.saturating_sub(current.since));
        let idle = cpu.idle_since.map_or(0, |since| now.saturating_sub(since));
        Some(CpuTimes { busy: cpu.busy + busy, idle: cpu.idle + idle })
    }

    /// The entity that a CPU runs.
    #[must_use]
    pub fn running(&self, cpu: usize) -> Option<EntityId> {
        let current = self.cpus.get(cpu)?.current?;
        self.entities.key(current.entity).map(EntityId)
    }
}
