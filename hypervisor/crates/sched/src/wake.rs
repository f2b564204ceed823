//! Waking, pausing and resuming, and the CPU that an entity goes to.

use crate::scheduler::Scheduler;
use crate::settings::{EntityId, GuestId, Kicks, Reason, SchedError};
use crate::state::Place;
use config::CpuSet;

impl Scheduler {
    /// An entity can run (again). Whoever makes it runnable stores first why
    /// (a pending interrupt, a request), and wakes then; so nothing is lost
    /// when it blocks at the same time.
    pub fn wake(&mut self, id: EntityId, now: u64, reason: Reason) -> Kicks {
        self.wake_late(id, now, now, reason)
    }

    /// [`wake`](Self::wake) for an entity that could run since `due`: a CPU that runs another
    /// for its least looks late for timers that have rung. The entity is owed what it missed.
    pub fn wake_late(&mut self, id: EntityId, now: u64, due: u64, reason: Reason) -> Kicks {
        let now = self.clock(now);
        let Some(index) = self.entities.resolve(id.0) else { return Kicks::default() };
        let Some(entity) = self.entities.get_mut(index) else { return Kicks::default() };
        let guest = entity.guest;
        match entity.place {
            Place::Running(_) => entity.woken = entity.woken.max(Some(reason)),
            Place::Queued(_) => {}
            Place::Off if self.guests.get(guest).is_none_or(|guest| guest.paused) => {
                entity.account(now);
                entity.wants = true;
            }
            Place::Off => {
                let late = now.saturating_sub(due.max(entity.since)).min(self.timing.least);
                self.start(index, now, late, reason);
            }
        }
        self.take_kicks()
    }

    /// No entity of a guest runs until [`resume`](Self::resume), once the
    /// kicked CPUs have stopped. Entities that wake meanwhile run then. Pausing
    /// twice is pausing once.
    ///
    /// # Errors
    /// No such guest.
    pub fn pause(&mut self, id: GuestId, now: u64) -> Result<Kicks, SchedError> {
        let now = self.clock(now);
        let index = self.guests.resolve(id.0).ok_or(SchedError::NoGuest)?;
        self.settle(index, now);
        let guest = self.guests.get_mut(index).ok_or(SchedError::NoGuest)?;
        guest.paused = true;
        self.kicks = self.kicks.or(guest.running);
        for at in 0..self.entities.places() {
            let Ok(at) = u32::try_from(at) else { break };
            let Some(entity) = self.entities.get(at) else { continue };
            if entity.guest == index
                && let Place::Queued(cpu) = entity.place
            {
                self.unqueue(at, cpu);
                self.leave_cell(at, cpu, now);
            }
        }
        Ok(self.take_kicks())
    }

    /// A paused guest goes on.
    ///
    /// # Errors
    /// No such guest.
    pub fn resume(&mut self, id: GuestId, now: u64) -> Result<Kicks, SchedError> {
        let now = self.clock(now);
        let index = self.guests.resolve(id.0).ok_or(SchedError::NoGuest)?;
        let guest = self.guests.get_mut(index).ok_or(SchedError::NoGuest)?;
        guest.paused = false;
        for at in 0..self.entities.places() {
            let Ok(at) = u32::try_from(at) else { break };
            let Some(entity) = self.entities.get(at) else { continue };
            if entity.guest == index && entity.place == Place::Off && entity.wants {
                self.start(at, now, 0, Reason::Other);
            }
        }
        Ok(self.take_kicks())
    }

    /// Queues an entity that is off and could run `late` ticks ago.
    fn start(&mut self, index: u32, now: u64, late: u64, reason: Reason) {
        let cpu = self.place_for(index);
        if let Some(entity) = self.entities.get_mut(index) {
            entity.account(now);
            entity.wants = true;
        }
        let v = self.enter_cell(index, cpu, now, late, None);
        self.enqueue(index, cpu, now);
        if reason == Reason::Interrupt {
            self.boost(index, cpu, v);
        }
        self.kick_for(index, cpu);
    }

    /// Lets a waiting entity run ahead of its turn, if its guest has not had
    /// more than its share of the CPU, whose virtual time is `v`.
    pub(crate) fn boost(&mut self, index: u32, cpu: usize, v: i128) {
        let Some(entity) = self.entities.get_mut(index) else { return };
        let Some(guest) = self.guests.get(entity.guest) else { return };
        let Some(cell) = guest.cells.get(cpu) else { return };
        // Others that leave the competition while they are ahead put it ahead, too.
        let ahead = guest.virtual_ticks(self.timing.slice_max, cell.n);
        entity.boosted = (cell.v <= v.saturating_add(ahead) && !cell.parked).then_some(cell.v);
    }

    /// The CPU for an entity that becomes runnable: an idle one, else its home.
    fn place_for(&self, index: u32) -> usize {
        let Some(entity) = self.entities.get(index) else { return 0 };
        let at_home = CpuSet::one(entity.home).and(entity.allowed).and(self.idle).and(self.started);
        if !at_home.is_empty()
            && self.cpus.get(entity.home).is_some_and(|home| home.queued.is_empty())
        {
            return entity.home;
        }
        // An idle CPU may have been promised to another. An entity that its guest's cap
        // holds back takes none.
        let parked = |index: u32, cpu: usize| {
            let guest = self.guests.get(self.entities.get(index)?.guest)?;
            Some(guest.cells.get(cpu)?.parked)
        };
        let free = |cpu: &usize| {
            let state = self.cpus.get(*cpu);
            state.is_some_and(|state| {
                state.queued.iter().all(|&index| parked(index, *cpu).unwrap_or(true))
            })
        };
        let idle: CpuSet = entity.allowed.and(self.idle).iter().filter(free).collect();
        let home = entity.allowed.and(CpuSet::one(entity.home));
        let started = |set: CpuSet| set.and(self.started);
        started(idle.and(home))
            .lowest()
            .or_else(|| idle.lowest())
            .or_else(|| started(home).lowest())
            .unwrap_or_else(|| self.quietest(entity.allowed))
    }

    /// The CPU with the fewest runnable entities, of those that have started
    /// if there are any.
    pub(crate) fn quietest(&self, allowed: CpuSet) -> usize {
        let started = allowed.and(self.started);
        let among = if started.is_empty() { allowed } else { started };
        let homes = |cpu: usize| {
            let at_home = self.entities.iter().filter(|(_, entity)| entity.home == cpu);
            at_home.fold((0u32, 0u32), |(runnable, all), (_, entity)| {
                (runnable + u32::from(entity.place != Place::Off), all + 1)
            })
        };
        among.iter().min_by_key(|cpu| homes(*cpu)).unwrap_or(0)
    }

    /// Kicks the CPU that an entity came to, if it should not wait there for the
    /// end of the running one's time, or an idle one that may fetch it. A CPU whose
    /// vCPU has not had its least is not kicked: it asks by itself when it has.
    pub(crate) fn kick_for(&mut self, index: u32, cpu: usize) {
        let now = self.now;
        let Some(entity) = self.entities.get(index) else { return };
        let reserve = self.guests.get(entity.guest).is_some_and(|guest| guest.reserve.is_some());
        let mut hurry = false;
        if let Some(state) = self.cpus.get_mut(cpu)
            && let Some(current) = state.current
            && (entity.boosted.is_some() || reserve)
            && !current.short
        {
            state.hurry = true;
            hurry = current.least <= now;
        }
        let idle = entity.allowed.and(self.idle);
        if idle.contains(cpu) || hurry {
            self.kicks.insert(cpu);
        } else if let Some(other) = idle.lowest() {
            self.kicks.insert(other);
        }
    }
}
