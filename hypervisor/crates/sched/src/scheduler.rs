//! The scheduler: its state, and guests and entities that come and go.

use crate::EntityTimes;
use crate::budget::Budget;
use crate::settings::{EntityId, GuestId, Kicks, Kind, SchedError, Share, Timing};
use crate::slots::Slots;
use crate::state::{Cell, Cpu, Entity, Guest, PULL, Place};
use alloc::vec::Vec;
use config::{CpuSet, MAX_CPUS};

/// The scheduler of all CPUs.
#[derive(Debug)]
pub struct Scheduler {
    pub(crate) timing: Timing,
    pub(crate) cpus: Vec<Cpu>,
    /// CPUs that have asked for work.
    pub(crate) started: CpuSet,
    /// CPUs that were told to idle.
    pub(crate) idle: CpuSet,
    pub(crate) guests: Slots<Guest>,
    pub(crate) entities: Slots<Entity>,
    /// The latest time that anybody told.
    pub(crate) now: u64,
    pub(crate) balanced: u64,
    /// The balance has seen the frame before.
    pub(crate) watched: bool,
    /// CPUs to kick, for the call at hand.
    pub(crate) kicks: CpuSet,
}

impl Scheduler {
    /// A scheduler for the CPUs 0 to `cpus` − 1 (1 to 64 of them). Each takes
    /// part from its first call of [`next`](Self::next) on.
    #[must_use]
    pub fn new(cpus: usize, timing: Timing) -> Self {
        let mut list = Vec::new();
        list.resize_with(cpus.clamp(1, MAX_CPUS), Cpu::default);
        Self {
            timing,
            cpus: list,
            started: CpuSet::EMPTY,
            idle: CpuSet::EMPTY,
            guests: Slots::new(),
            entities: Slots::new(),
            now: 0,
            balanced: 0,
            watched: false,
            kicks: CpuSet::EMPTY,
        }
    }

    /// All CPUs of the machine.
    #[must_use]
    pub fn cpus(&self) -> CpuSet {
        CpuSet::first(self.cpus.len())
    }

    /// Takes a guest in.
    ///
    /// # Errors
    /// Settings out of range; no memory.
    pub fn add_guest(&mut self, settings: Share, now: u64) -> Result<GuestId, SchedError> {
        let settings = settings.check()?;
        let now = self.clock(now);
        let mut cells = Vec::new();
        cells.try_reserve_exact(self.cpus.len()).map_err(|_| SchedError::NoMemory)?;
        cells.resize(self.cpus.len(), Cell::default());
        let depth = |cap: u32| self.timing.slice_max.saturating_mul(cap.div_ceil(100).into());
        let budget =
            Budget::without_debt(settings.reserve, self.timing.step.saturating_mul(4), now);
        let guest = Guest {
            settings,
            cap: settings.cap.map(|cap| Budget::with_debt(cap, depth(cap), now)),
            reserve: (settings.reserve != 0).then_some(budget),
            paused: false,
            leaving: false,
            entities: 0,
            n: 0,
            running: CpuSet::EMPTY,
            cells,
            throttled: 0,
            throttled_since: None,
            runnable: 0,
            rate: None,
            got: 0,
            lag: 0,
            pressure: 0,
            positive: 0,
            pull: PULL,
        };
        let key = self.guests.insert(guest).map_err(|_| SchedError::NoMemory)?;
        let places = self.guests.places();
        for cpu in &mut self.cpus {
            if cpu.active.try_reserve(places.saturating_sub(cpu.active.len())).is_err() {
                if let Some(index) = self.guests.resolve(key) {
                    self.guests.remove(index);
                }
                return Err(SchedError::NoMemory);
            }
        }
        Ok(GuestId(key))
    }

    /// Lets a guest go with all its entities. If one runs, its CPU is kicked,
    /// and the guest is there until it has stopped.
    ///
    /// # Errors
    /// No such guest.
    pub fn remove_guest(&mut self, id: GuestId, now: u64) -> Result<Kicks, SchedError> {
        let now = self.clock(now);
        let index = self.guests.resolve(id.0).ok_or(SchedError::NoGuest)?;
        if let Some(guest) = self.guests.get_mut(index) {
            guest.leaving = true;
            if guest.entities == 0 {
                self.free_guest(index);
            }
        }
        for at in 0..self.entities.places() {
            let Ok(at) = u32::try_from(at) else { break };
            if self.entities.get(at).is_some_and(|entity| entity.guest == index) {
                self.drop_entity(at, now);
            }
        }
        Ok(self.take_kicks())
    }

    /// Adds an entity to a guest, blocked: [`wake`](Self::wake) starts it. It
    /// runs only on CPUs of `affinity`.
    ///
    /// # Errors
    /// No such guest; an affinity without a CPU of this machine; no memory.
    pub fn add(
        &mut self,
        guest: GuestId,
        kind: Kind,
        affinity: CpuSet,
        now: u64,
    ) -> Result<EntityId, SchedError> {
        let now = self.clock(now);
        let allowed = self.allowed(affinity)?;
        let index = self.guests.resolve(guest.0).ok_or(SchedError::NoGuest)?;
        if self.guests.get(index).is_none_or(|guest| guest.leaving) {
            return Err(SchedError::NoGuest);
        }
        let home = self.quietest(allowed);
        let entity = Entity {
            guest: index,
            kind,
            allowed,
            home,
            place: Place::Off,
            wants: false,
            woken: None,
            boosted: None,
            leaving: false,
            v: 0,
            at: 0,
            ready_since: now,
            since: now,
            times: EntityTimes::default(),
            frame: (0, 0),
            lag: 0,
            pressure: 0,
        };
        let key = self.entities.insert(entity).map_err(|_| SchedError::NoMemory)?;
        let places = self.entities.places();
        for cpu in &mut self.cpus {
            if cpu.queued.try_reserve(places.saturating_sub(cpu.queued.len())).is_err() {
                if let Some(index) = self.entities.resolve(key) {
                    self.entities.remove(index);
                }
                return Err(SchedError::NoMemory);
            }
        }
        if let Some(guest) = self.guests.get_mut(index) {
            guest.entities += 1;
        }
        Ok(EntityId(key))
    }

    /// Removes an entity. If it runs, its CPU is kicked, and it is there until it
    /// has stopped.
    ///
    /// # Errors
    /// No such entity.
    pub fn remove(&mut self, id: EntityId, now: u64) -> Result<Kicks, SchedError> {
        let now = self.clock(now);
        let index = self.entities.resolve(id.0).ok_or(SchedError::NoEntity)?;
        self.drop_entity(index, now);
        Ok(self.take_kicks())
    }

    fn allowed(&self, affinity: CpuSet) -> Result<CpuSet, SchedError> {
        let allowed = affinity.and(self.cpus());
        if allowed.is_empty() {
            return Err(SchedError::Affinity(affinity, self.cpus.len().saturating_sub(1)));
        }
        Ok(allowed)
    }

    /// Time goes on, on whatever CPU.
    pub(crate) fn clock(&mut self, now: u64) -> u64 {
        self.now = self.now.max(now);
        self.now
    }

    pub(crate) fn take_kicks(&mut self) -> Kicks {
        Kicks(core::mem::take(&mut self.kicks))
    }

    /// Removes an entity, at once or when it stops.
    pub(crate) fn drop_entity(&mut self, index: u32, now: u64) {
        let Some(entity) = self.entities.get_mut(index) else { return };
        match entity.place {
            Place::Running(cpu) => {
                entity.leaving = true;
                self.kicks.insert(cpu);
            }
            Place::Queued(cpu) => {
                self.unqueue(index, cpu);
                self.leave_cell(index, cpu, now);
                self.free_entity(index);
            }
            Place::Off => self.free_entity(index),
        }
    }

    pub(crate) fn free_guest(&mut self, index: u32) {
        for cpu in 0..self.cpus.len() {
            self.deactivate(index, cpu);
        }
        self.guests.remove(index);
    }

    pub(crate) fn free_entity(&mut self, index: u32) {
        let Some(entity) = self.entities.remove(index) else { return };
        if let Some(guest) = self.guests.get_mut(entity.guest) {
            guest.entities -= 1;
            if guest.leaving && guest.entities == 0 {
                self.free_guest(entity.guest);
            }
        }
    }
}
