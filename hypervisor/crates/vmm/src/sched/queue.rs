//! A CPU's virtual time, and who takes part in it.
//!
//! A guest's virtual time on a CPU grows by the service that it gets there,
//! divided by its weight there: its weight, times the part of its runnable
//! entities that are on that CPU. The CPU's virtual time is the average of its
//! guests', by weight. A guest that is ahead of it has had more than its share.
//!
//! Weights change when any entity of the guest wakes or blocks; so charges are
//! brought up to date ([`Scheduler::settle`]) before that.

use super::Scheduler;
use super::state::{Cpu, Guest, Place};

/// Fractions of a tick per unit of weight, in which virtual times are counted.
const UNIT: u128 = 1 << 20;
/// Units of a guest's weight on a CPU, times [`PULL`].
const SPREAD: u64 = 1 << 4;
/// The correction of a guest's weight that is none.
pub(super) const PULL: u32 = 1 << 8;

/// A virtual time, and the weights that take part.
#[derive(Clone, Copy, Debug)]
pub(super) struct Virtual {
    pub(super) v: u128,
    pub(super) total: u64,
    /// Without the corrections.
    pub(super) nominal: u64,
}

impl Guest {
    /// `ticks` of service on a CPU with `n` of its runnable entities, as
    /// virtual time.
    pub(super) fn virtual_ticks(&self, ticks: u64, n: u32) -> u128 {
        let weight = u128::from(self.weight().max(1)) * u128::from(n.max(1));
        u128::from(ticks) * u128::from(self.n.max(1)) * UNIT * u128::from(PULL) / weight
    }

    /// Its weight on a CPU with `n` of its runnable entities; not 0.
    pub(super) fn weight_with(&self, n: u32) -> u64 {
        (self.weight() * u64::from(n) * SPREAD / u64::from(self.n.max(1))).max(1)
    }

    /// The same without the correction.
    pub(super) fn nominal(&self, n: u32) -> u64 {
        let weight = u64::from(self.settings.weight) * u64::from(PULL);
        (weight * u64::from(n) * SPREAD / u64::from(self.n.max(1))).max(1)
    }

    /// Its weight, corrected, times [`PULL`].
    fn weight(&self) -> u64 {
        u64::from(self.settings.weight) * u64::from(self.pull)
    }

    /// Ticks that CPUs at work for it may still use.
    fn promised(&self, cpus: &[Cpu], now: u64) -> u64 {
        let current = |cpu: usize| cpus.get(cpu)?.current;
        let rest = |cpu: usize| current(cpu).map_or(0, |c| c.until.saturating_sub(now));
        self.running.iter().map(rest).fold(0, u64::saturating_add)
    }

    /// What its cap lets it use now, and when that may have changed. `None`:
    /// it has no cap.
    pub(super) fn allowance(&self, cpus: &[Cpu], now: u64, wanted: u64) -> Option<(u64, u64)> {
        let mut cap = self.cap?;
        let promised = self.promised(cpus, now);
        cap.advance(now, self.running.len());
        Some((cap.available(promised), cap.when(wanted, promised)))
    }
}

impl Scheduler {
    /// Charges a guest for what its running entities used until `now`.
    pub(super) fn settle(&mut self, guest: u32, now: u64) {
        let Some(guest) = self.guests.get_mut(guest) else { return };
        let has_reserve = guest.reserve.is_some();
        for cpu in guest.running.iter() {
            let Some(state) = self.cpus.get_mut(cpu) else { continue };
            let now_v = state.v;
            let Some(current) = state.current.as_mut() else { continue };
            let elapsed = now.saturating_sub(current.charged);
            current.charged = now;
            let n = guest.cells.get(cpu).map_or(1, |cell| cell.n);
            if elapsed == 0 {
                continue;
            }
            let charge = guest.virtual_ticks(elapsed, n);
            // What a reserve gives is not owed afterwards: far ahead, the guest would
            // put the others ahead of their time when it sleeps.
            let most = has_reserve.then(|| now_v + guest.virtual_ticks(self.timing.step, n));
            if let Some(cell) = guest.cells.get_mut(cpu) {
                let most = most.map_or(u128::MAX, |most| cell.v.max(most));
                cell.v = cell.v.saturating_add(charge).min(most);
            }
        }
        let running = guest.running.len();
        for budget in [&mut guest.cap, &mut guest.reserve].into_iter().flatten() {
            budget.advance(now, running);
        }
    }

    /// Brings a CPU's steady clock up to `now`: what its virtual time would be
    /// if nobody came or went out of balance. It only measures how long ago
    /// something was.
    pub(super) fn tick(&mut self, cpu: usize, now: u64) {
        let Some(state) = self.cpus.get_mut(cpu) else { return };
        if now <= state.steady_at {
            return;
        }
        let elapsed = u128::from(now - state.steady_at) * UNIT;
        state.steady_at = now;
        state.steady += if state.current.is_some() {
            elapsed * u128::from(SPREAD) * u128::from(PULL) / u128::from(state.total.max(1))
        } else {
            elapsed
        };
    }

    /// The virtual time of a CPU.
    pub(super) fn virtual_time(&mut self, cpu: usize, now: u64) -> Virtual {
        let current = self.cpus.get(cpu).and_then(|cpu| cpu.current);
        if let Some(current) = current {
            self.settle(current.guest, now);
        }
        self.tick(cpu, now);
        let Some(state) = self.cpus.get_mut(cpu) else {
            return Virtual { v: 0, total: 1, nominal: 1 };
        };
        let (mut sum, mut total, mut nominal) = (0i128, 0u64, 0u64);
        let base = i128::try_from(state.v).unwrap_or(i128::MAX);
        for &index in &state.active {
            let Some(guest) = self.guests.get(index) else { continue };
            let Some(cell) = guest.cells.get(cpu) else { continue };
            if cell.parked {
                continue;
            }
            let weight = guest.weight_with(cell.n);
            let ahead = i128::try_from(cell.v).unwrap_or(i128::MAX).saturating_sub(base);
            sum = sum.saturating_add(ahead.saturating_mul(weight.into()));
            total = total.saturating_add(weight);
            nominal = nominal.saturating_add(guest.nominal(cell.n));
        }
        // Mostly, one guest is alone, and nothing has changed.
        if total != 0 && sum != 0 {
            let average = base.saturating_add(sum.div_euclid(total.into()));
            state.v = u128::try_from(average).unwrap_or(0);
        }
        state.total = total;
        Virtual { v: state.v, total: total.max(1), nominal: nominal.max(1) }
    }

    /// Counts an entity among the runnable ones of `cpu`. `moved`: what its guest
    /// was ahead where it comes from.
    pub(super) fn enter_cell(&mut self, entity: u32, cpu: usize, now: u64, moved: Option<i128>) {
        let Some(index) = self.entities.get(entity).map(|entity| entity.guest) else { return };
        self.settle(index, now);
        let v = self.virtual_time(cpu, now).v;
        let Some(state) = self.cpus.get_mut(cpu) else { return };
        let Some(guest) = self.guests.get_mut(index) else { return };
        let Some(cell) = guest.cells.get_mut(cpu) else { return };
        if cell.n == 0 {
            // Who comes has no claim to what it missed, but owes what it had in
            // advance, less what has passed since.
            let passed = state.steady.saturating_sub(cell.left);
            let debt = cell.debt.saturating_sub(passed);
            cell.v = match moved {
                Some(behind) if debt == 0 && behind < 0 => v.saturating_sub(behind.unsigned_abs()),
                Some(ahead) => v + debt.max(u128::try_from(ahead).unwrap_or(0)),
                None => v + debt,
            };
            cell.parked = false;
            cell.at = state.active.len();
            state.active.push(index);
        }
        cell.n += 1;
        guest.n += 1;
        let floor = cell.floor;
        if let Some(entity) = self.entities.get_mut(entity) {
            let moved = entity.home != cpu;
            if moved {
                entity.home = cpu;
                entity.times.migrations += 1;
                entity.v = floor;
            }
            entity.v = entity.v.max(floor);
        }
    }

    /// No longer counts an entity among the runnable ones of `cpu`. It must be
    /// neither queued nor running any more. Says what its guest was ahead of
    /// the others there, if no other entity of it is left.
    pub(super) fn leave_cell(&mut self, entity: u32, cpu: usize, now: u64) -> Option<i128> {
        let entity = self.entities.get_mut(entity)?;
        entity.account(now);
        entity.place = Place::Off;
        entity.boosted = None;
        let index = entity.guest;
        self.settle(index, now);
        let state = self.cpus.get_mut(cpu)?;
        let guest = self.guests.get_mut(index)?;
        guest.n = guest.n.saturating_sub(1);
        if guest.n == 0
            && let Some(since) = guest.throttled_since.take()
        {
            guest.throttled += now.saturating_sub(since);
        }
        let cell = guest.cells.get_mut(cpu)?;
        cell.n = cell.n.saturating_sub(1);
        if cell.n != 0 {
            return None;
        }
        let (v, at) = (cell.v, cell.at);
        if at < state.active.len() {
            state.active.swap_remove(at);
        }
        if state.active.is_empty() {
            state.v = state.v.max(v);
        }
        let moved = state.active.get(at).copied();
        if let Some(cell) = moved
            .and_then(|index| self.guests.get_mut(index))
            .and_then(|guest| guest.cells.get_mut(cpu))
        {
            cell.at = at;
        }
        // What it is ahead of the others: that and no more it will owe. (The
        // average with it would move when it goes and when it comes.)
        let others = self.virtual_time(cpu, now).v;
        let steady = self.cpus.get(cpu).map_or(0, |cpu| cpu.steady);
        let cell = self.guests.get_mut(index)?.cells.get_mut(cpu)?;
        cell.debt = v.saturating_sub(others);
        cell.left = steady;
        let signed = |v: u128| i128::try_from(v).unwrap_or(i128::MAX);
        Some(signed(v).saturating_sub(signed(others)))
    }

    /// Puts an entity that counts on `cpu` into its list of waiting ones.
    pub(super) fn enqueue(&mut self, entity: u32, cpu: usize, now: u64) {
        let Some(state) = self.cpus.get_mut(cpu) else { return };
        let Some(queued) = self.entities.get_mut(entity) else { return };
        queued.account(now);
        queued.place = Place::Queued(cpu);
        queued.at = state.queued.len();
        queued.ready_since = now;
        state.queued.push(entity);
    }

    /// Takes an entity out of the list of waiting ones.
    pub(super) fn unqueue(&mut self, entity: u32, cpu: usize) {
        let Some(at) = self.entities.get(entity).map(|entity| entity.at) else { return };
        let Some(state) = self.cpus.get_mut(cpu) else { return };
        if at < state.queued.len() {
            state.queued.swap_remove(at);
        }
        let moved = state.queued.get(at).copied();
        if let Some(moved) = moved.and_then(|moved| self.entities.get_mut(moved)) {
            moved.at = at;
        }
    }

    /// Counts an entity on another CPU. What its guest was ahead or behind goes
    /// with it.
    pub(super) fn move_cell(&mut self, entity: u32, from: usize, to: usize, now: u64) {
        let moved = self.leave_cell(entity, from, now);
        let guest = self.entities.get(entity).and_then(|e| self.guests.get_mut(e.guest));
        if let Some(cell) = guest.and_then(|guest| guest.cells.get_mut(from))
            && moved.is_some()
        {
            cell.debt = 0;
        }
        self.enter_cell(entity, to, now, moved);
    }

    /// Moves a waiting entity to another CPU.
    pub(super) fn migrate(&mut self, entity: u32, to: usize, now: u64) {
        let Some(moving) = self.entities.get(entity) else { return };
        let Place::Queued(from) = moving.place else { return };
        let (ready_since, boosted) = (moving.ready_since, moving.boosted);
        self.unqueue(entity, from);
        self.move_cell(entity, from, to, now);
        self.enqueue(entity, to, now);
        if let Some(entity) = self.entities.get_mut(entity) {
            entity.ready_since = ready_since;
            let cell = self.guests.get(entity.guest).and_then(|guest| guest.cells.get(to));
            entity.boosted = boosted.and(cell).map(|cell| cell.v);
        }
    }
}
