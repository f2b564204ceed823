//! A CPU's virtual time, and the guests that take part in it.
//!
//! A guest's virtual time on a CPU grows by the service that it gets there,
//! divided by its weight there: its weight, times the part of its runnable
//! entities that are on that CPU. The CPU's virtual time is the average of its
//! guests', by weight. A guest that is ahead of it has had more than its share.
//!
//! Sleep changes nothing about that. A guest that is owed when it goes to sleep keeps
//! what it is owed; one that has had more than its share stays in the average, as if it
//! waited, until the others have caught up: so a debt is paid with service that they
//! get, and with nothing else. There is no other clock, which could run while nobody does.
//!
//! Weights change when any entity of the guest wakes or blocks, on whatever CPU. Charges
//! are brought up to date before that ([`Scheduler::settle`]), and what the guest is owed
//! or owes, in ticks, is the same after it ([`Scheduler::reweigh`]).

use crate::scheduler::Scheduler;
use crate::state::{Cpu, Guest, PULL, Place};

/// Fractions of a tick per unit of weight, in which virtual times are counted.
const UNIT: i128 = 1 << 20;
/// Units of a guest's weight on a CPU, times [`PULL`].
const SPREAD: u64 = 1 << 4;

/// A tick of service: virtual time, times weight.
const TICK: i128 = UNIT * SPREAD as i128 * PULL as i128;

/// The virtual time that is, with the weight `new`, as many ticks from `v` as `at` is with `old`.
fn rescale(at: i128, v: i128, old: u64, new: u64) -> i128 {
    v + (at - v).saturating_mul(old.into()) / i128::from(new)
}

/// A virtual time, and the weights that take part; 0 where nobody does.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Virtual {
    pub(crate) v: i128,
    pub(crate) total: u64,
    /// Weights that take part, without the corrections.
    pub(crate) nominal: u64,
}

impl Guest {
    /// `ticks` of service on a CPU with `n` of its runnable entities, as
    /// virtual time.
    pub(crate) fn virtual_ticks(&self, ticks: u64, n: u32) -> i128 {
        let weight = i128::from(self.weight().max(1)) * i128::from(n.max(1));
        i128::from(ticks) * i128::from(self.n.max(1)) * UNIT * i128::from(PULL) / weight
    }

    /// The guest's weight on a CPU with `n` of its runnable entities; not 0.
    pub(crate) fn weight_with(&self, n: u32) -> u64 {
        (self.weight() * u64::from(n) * SPREAD / u64::from(self.n.max(1))).max(1)
    }

    /// The guest's weight on a CPU, without the correction.
    pub(crate) fn nominal(&self, n: u32) -> u64 {
        let weight = u64::from(self.settings.weight) * u64::from(PULL);
        (weight * u64::from(n) * SPREAD / u64::from(self.n.max(1))).max(1)
    }

    /// The guest's weight, corrected, times [`PULL`].
    fn weight(&self) -> u64 {
        u64::from(self.settings.weight) * u64::from(self.pull)
    }

    /// Has its budgets pay for `ticks` that were not its time on a CPU, or get them back.
    pub(crate) fn spend(&mut self, ticks: i64) {
        for budget in [&mut self.cap, &mut self.reserve].into_iter().flatten() {
            budget.spend(ticks);
        }
    }

    /// Has its virtual time on `cpu` pay for `ticks`, or get them back.
    pub(crate) fn correct(&mut self, cpu: usize, ticks: i64) {
        if ticks == 0 {
            return;
        }
        let n = self.cells.get(cpu).map_or(1, |cell| cell.n);
        let charge = self.virtual_ticks(ticks.unsigned_abs(), n);
        if let Some(cell) = self.cells.get_mut(cpu) {
            cell.v += if ticks < 0 { -charge } else { charge };
        }
    }

    /// Ticks that CPUs at work for it may still use.
    fn promised(&self, cpus: &[Cpu], now: u64) -> u64 {
        let current = |cpu: usize| cpus.get(cpu)?.current;
        let rest = |cpu: usize| current(cpu).map_or(0, |c| c.until.saturating_sub(now));
        self.running.iter().map(rest).fold(0, u64::saturating_add)
    }

    /// Ticks that its cap lets it use now. `None`: it has no cap.
    pub(crate) fn allowance(&self, cpus: &[Cpu], now: u64) -> Option<u64> {
        let mut cap = self.cap?;
        cap.advance(now, self.running.len());
        Some(cap.available(self.promised(cpus, now)))
    }

    /// When its cap lets it go on, if it does not do so now: a guest is held back
    /// once it has less than one grant, until it has two. At one it would come back
    /// for so short a time that the switches, for which it pays, took what it is due.
    pub(crate) fn held_until(&self, cpus: &[Cpu], now: u64, grant: u64) -> Option<u64> {
        let mut cap = self.cap?;
        cap.advance(now, self.running.len());
        let promised = self.promised(cpus, now);
        let wanted = grant.saturating_mul(if self.throttled_since.is_some() { 2 } else { 1 });
        let until = cap.when(grant.saturating_mul(2), promised);
        (cap.available(promised) < wanted).then(|| until.max(now.saturating_add(1)))
    }
}

impl Scheduler {
    /// Charges a guest for what its running entities used until `now`.
    pub(crate) fn settle(&mut self, guest: u32, now: u64) {
        let Some(guest) = self.guests.get_mut(guest) else { return };
        let has_reserve = guest.reserve.is_some();
        for cpu in guest.running.iter() {
            let Some(state) = self.cpus.get_mut(cpu) else { continue };
            let now_v = state.v;
            let Some(current) = state.current.as_mut() else { continue };
            let elapsed = now.saturating_sub(current.charged);
            if elapsed == 0 {
                continue;
            }
            current.charged = now;
            let n = guest.cells.get(cpu).map_or(1, |cell| cell.n);
            let charge = guest.virtual_ticks(elapsed, n);
            // Service from a reserve is not owed afterwards: far ahead, the guest would
            // put the others ahead of their time when it sleeps.
            let most = has_reserve.then(|| now_v + guest.virtual_ticks(self.timing.step, n));
            if let Some(cell) = guest.cells.get_mut(cpu) {
                let most = most.map_or(i128::MAX, |most| cell.v.max(most));
                cell.v = cell.v.saturating_add(charge).min(most);
            }
        }
        let running = guest.running.len();
        for budget in [&mut guest.cap, &mut guest.reserve].into_iter().flatten() {
            budget.advance(now, running);
        }
    }

    /// Makes a change that moves a guest's weights. The guest is owed or owes the same on each
    /// CPU after it, in ticks, and no CPU's virtual time moves: else a guest would pay its
    /// debt by waking a sibling elsewhere.
    pub(crate) fn reweigh(&mut self, index: u32, now: u64, change: impl FnOnce(&mut Guest)) {
        self.settle(index, now);
        for cpu in 0..self.cpus.len() {
            if self.has_company(index, cpu) {
                self.virtual_time(cpu, now);
            }
        }
        self.reweigh_settled(index, change);
    }

    /// Does the work of [`reweigh`](Self::reweigh), if the CPUs' virtual times are of now.
    pub(crate) fn reweigh_settled(&mut self, index: u32, change: impl FnOnce(&mut Guest)) {
        let Some(guest) = self.guests.get_mut(index) else { return };
        change(guest);
        for cpu in 0..self.cpus.len() {
            let company = self.has_company(index, cpu);
            let Some(guest) = self.guests.get_mut(index) else { return };
            let Some(n) = guest.cells.get(cpu).map(|cell| cell.n).filter(|n| *n != 0) else {
                // Sleeping, it keeps the weight that it had.
                continue;
            };
            let weight = guest.weight_with(n);
            let (Some(state), Some(cell)) = (self.cpus.get(cpu), guest.cells.get_mut(cpu)) else {
                continue;
            };
            let old = core::mem::replace(&mut cell.weight, weight);
            if !company || !cell.active || cell.credit != 0 || old == weight {
                continue;
            }
            let v = state.v;
            cell.v = rescale(cell.v, v, old, weight);
            for &queued in &state.queued {
                if let Some(entity) = self.entities.get_mut(queued)
                    && entity.guest == index
                {
                    entity.boosted = entity.boosted.map(|at| rescale(at, v, old, weight));
                }
            }
        }
    }

    /// Whether a guest with something runnable on `cpu` shares its virtual time with others.
    fn has_company(&self, guest: u32, cpu: usize) -> bool {
        let cell = self.guests.get(guest).and_then(|guest| guest.cells.get(cpu));
        cell.is_some_and(|cell| cell.n != 0)
            && self.cpus.get(cpu).is_some_and(|cpu| cpu.active.len() > 1)
    }

    /// The virtual time of a CPU. Sleepers whose debt is paid leave it.
    pub(crate) fn virtual_time(&mut self, cpu: usize, now: u64) -> Virtual {
        let current = self.cpus.get(cpu).and_then(|cpu| cpu.current);
        if let Some(current) = current {
            self.settle(current.guest, now);
        }
        let oldest = now.saturating_sub(self.timing.round);
        loop {
            let Some(state) = self.cpus.get_mut(cpu) else { return Virtual::default() };
            // Mostly, one guest is alone: the average is its own.
            if let [index] = state.active[..]
                && let Some(guest) = self.guests.get(index)
                && let Some(cell) = guest.cells.get(cpu)
                && cell.n != 0
                && !cell.parked
            {
                state.v = cell.v;
                return Virtual { v: cell.v, total: cell.weight, nominal: guest.nominal(cell.n) };
            }
            let base = state.v;
            let (mut sum, mut of) = (0i128, Virtual::default());
            let (mut competes, mut sleeps) = (false, false);
            for &index in &state.active {
                let Some(guest) = self.guests.get(index) else { continue };
                let Some(cell) = guest.cells.get(cpu) else { continue };
                if cell.n == 0 {
                    sleeps = true;
                    sum = sum.saturating_sub(i128::from(cell.credit) * TICK);
                    if cell.credit != 0 {
                        continue;
                    }
                } else if !cell.parked {
                    competes = true;
                } else if cell.v <= base {
                    continue;
                } else {
                    sleeps = true;
                }
                let weight = cell.weight;
                sum = sum.saturating_add((cell.v - base).saturating_mul(weight.into()));
                of.total = of.total.saturating_add(weight);
                of.nominal = of.nominal.saturating_add(guest.nominal(cell.n));
            }
            if of.total != 0 && sum != 0 {
                state.v = base.saturating_add(sum.div_euclid(of.total.into()));
            }
            of.v = state.v;
            // With nobody there to be served, nothing is paid.
            if !(sleeps && competes && self.release(cpu, base, of.v, oldest)) {
                return of;
            }
        }
    }

    /// Lets those go that sleep and owe nothing at the virtual time `v` of `cpu`, or went
    /// to sleep before `oldest`. Whether anybody does, or is held back by a cap and has
    /// ceased to owe as the virtual time came from `base`.
    fn release(&mut self, cpu: usize, base: i128, v: i128, oldest: u64) -> bool {
        let mut any = false;
        let mut at = 0;
        while let Some(&index) = self.cpus.get(cpu).and_then(|cpu| cpu.active.get(at)) {
            at += 1;
            let Some(guest) = self.guests.get_mut(index) else { continue };
            let Some(cell) = guest.cells.get_mut(cpu) else { continue };
            if cell.n != 0 {
                any |= cell.parked && cell.v > base && cell.v <= v;
                continue;
            }
            let over = if cell.credit == 0 { cell.v <= v } else { cell.left < oldest };
            if over {
                any = true;
                cell.credit = 0;
                self.deactivate(index, cpu);
                at -= 1;
            }
        }
        any
    }

    /// Takes a guest out of a CPU's virtual time, if it is there.
    pub(crate) fn deactivate(&mut self, guest: u32, cpu: usize) {
        let Some(cell) = self.guests.get_mut(guest).and_then(|guest| guest.cells.get_mut(cpu))
        else {
            return;
        };
        if !core::mem::take(&mut cell.active) {
            return;
        }
        let at = cell.at;
        let Some(state) = self.cpus.get_mut(cpu) else { return };
        if at < state.active.len() {
            state.active.swap_remove(at);
        }
        let moved = state.active.get(at).copied();
        if let Some(cell) = moved
            .and_then(|index| self.guests.get_mut(index))
            .and_then(|guest| guest.cells.get_mut(cpu))
        {
            cell.at = at;
        }
    }

    /// Counts an entity among the runnable ones of `cpu`, `late` ticks after it could
    /// run. `moved`: what its guest was owed where it comes from, in ticks. Says the
    /// CPU's virtual time with it.
    pub(crate) fn enter_cell(
        &mut self,
        entity: u32,
        cpu: usize,
        now: u64,
        late: u64,
        moved: Option<i64>,
    ) -> i128 {
        let Some(index) = self.entities.get(entity).map(|entity| entity.guest) else { return 0 };
        let Virtual { mut v, total, .. } = self.virtual_time(cpu, now);
        self.reweigh(index, now, |guest| {
            guest.n += 1;
            if let Some(cell) = guest.cells.get_mut(cpu) {
                cell.n += 1;
            }
        });
        let most = self.timing.slice_max;
        let Some(state) = self.cpus.get_mut(cpu) else { return v };
        let Some(guest) = self.guests.get_mut(index) else { return v };
        let moved = i128::from(moved.unwrap_or(0));
        let Some(cell) = guest.cells.get_mut(cpu) else { return v };
        let weight = i128::from(cell.weight);
        let mut owed = i128::from(core::mem::take(&mut cell.credit));
        if cell.active && owed == 0 {
            if moved != 0 {
                cell.v -= moved * TICK / weight;
            }
        } else {
            let others = i128::from(total);
            if others != 0 && (late != 0 || moved != 0) {
                // Time that it missed while another ran; but a debt was paid first.
                let late = if state.current.is_some() { i128::from(late) * TICK } else { 0 };
                let late = late.min((v - cell.v).max(0) * others);
                let more = late * weight / (others + weight) / TICK + moved;
                let more = more.min(i128::from(most) - owed);
                // The others are owed that much less.
                v -= more * TICK / others;
                state.v = v;
                owed += more;
            }
            cell.v = if owed == 0 { v } else { v - owed * TICK / weight };
            if !core::mem::replace(&mut cell.active, true) {
                cell.at = state.active.len();
                state.active.push(index);
            }
        }
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
        v
    }

    /// No longer counts an entity among the runnable ones of `cpu`. It must be
    /// neither queued nor running any more. Says how many ticks its guest is owed
    /// there (less than 0: owes), if no other entity of it is left.
    pub(crate) fn leave_cell(&mut self, entity: u32, cpu: usize, now: u64) -> Option<i64> {
        let entity = self.entities.get_mut(entity)?;
        entity.account(now);
        entity.place = Place::Off;
        entity.boosted = None;
        let index = entity.guest;
        let last = self.guests.get(index)?.cells.get(cpu)?.n == 1;
        self.settle(index, now);
        // Computed while it is still there: it is owed by those that stay.
        let v = if last { self.virtual_time(cpu, now).v } else { 0 };
        self.reweigh(index, now, |guest| {
            guest.n = guest.n.saturating_sub(1);
            if let Some(cell) = guest.cells.get_mut(cpu) {
                cell.n = cell.n.saturating_sub(1);
            }
        });
        let most = self.timing.slice_max;
        let guest = self.guests.get_mut(index)?;
        if guest.n == 0
            && let Some(since) = guest.throttled_since.take()
        {
            guest.throttled += now.saturating_sub(since);
        }
        if !last {
            return None;
        }
        let cell = guest.cells.get_mut(cpu)?;
        let mut owed = (v - cell.v) * i128::from(cell.weight) / TICK;
        if core::mem::take(&mut cell.parked) {
            // The guest's cap has taken what it was owed.
            owed = owed.min(0);
        }
        cell.left = now;
        cell.credit = u64::try_from(owed).unwrap_or(0).min(most);
        if cell.v <= v && cell.credit == 0 {
            self.deactivate(index, cpu);
        }
        Some(i64::try_from(owed).unwrap_or(0))
    }

    /// Puts an entity that counts on `cpu` into its list of waiting ones.
    pub(crate) fn enqueue(&mut self, entity: u32, cpu: usize, now: u64) {
        let Some(state) = self.cpus.get_mut(cpu) else { return };
        let Some(queued) = self.entities.get_mut(entity) else { return };
        queued.account(now);
        queued.place = Place::Queued(cpu);
        queued.at = state.queued.len();
        queued.ready_since = now;
        state.queued.push(entity);
    }

    /// Takes an entity out of the list of waiting ones.
    pub(crate) fn unqueue(&mut self, entity: u32, cpu: usize) {
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

    /// Counts an entity on another CPU. Its guest's debt or credit goes with it.
    pub(crate) fn move_cell(&mut self, entity: u32, from: usize, to: usize, now: u64) {
        let moved = self.leave_cell(entity, from, now);
        if moved.is_some()
            && let Some(index) = self.entities.get(entity).map(|entity| entity.guest)
        {
            self.deactivate(index, from);
            let guest = self.guests.get_mut(index);
            if let Some(cell) = guest.and_then(|guest| guest.cells.get_mut(from)) {
                cell.credit = 0;
            }
        }
        self.enter_cell(entity, to, now, 0, moved);
    }

    /// Moves a waiting entity to another CPU.
    pub(crate) fn migrate(&mut self, entity: u32, to: usize, now: u64) {
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
