//! The choice of what a CPU runs next: the reserve, then what an interrupt woke, then
//! what has waited too long, then the earliest virtual deadline among those that have
//! not had more than their share.

use crate::budget::signed;
use crate::queue::Virtual;
use crate::scheduler::Scheduler;
use crate::settings::{Choice, Decision, EntityId, Kicks, Kind, Reason, Stay};
use crate::state::{Candidate, Current, Place};
use config::CpuSet;
use core::cmp::Reverse;
use service::Stop;

/// How an entity came to be chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Class {
    Reserve,
    Boost,
    Overdue,
    Share,
}

/// The entities at the head of the line, and since when they wait.
#[derive(Clone, Copy, Debug, Default)]
struct Heads {
    reserve: Option<(u64, u32)>,
    boost: Option<(u64, u32)>,
    overdue: Option<(u64, u32)>,
    /// Time at which a reserve has filled up again.
    refilled: Option<u64>,
}

fn sooner<T: Ord + Copy>(least: &mut Option<T>, one: T) {
    *least = Some(least.map_or(one, |least| least.min(one)));
}

/// Choice of an entity to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Pick {
    entity: u32,
    class: Class,
    /// The weights that compete.
    total: u64,
    /// Time to choose again, whatever is chosen now.
    again: Option<u64>,
}

impl Scheduler {
    /// Decides what `cpu` does from `now` on, and which other CPUs should look for
    /// work. Whatever `cpu` ran has been [`stopped`](Self::stopped).
    pub fn next(&mut self, cpu: usize, now: u64) -> (Decision, Kicks) {
        let now = self.clock(now);
        if cpu >= self.cpus.len() {
            return (Decision::Idle { until: None }, Kicks::default());
        }
        if self.cpus.get(cpu).is_some_and(|cpu| cpu.current.is_some()) {
            self.stop(cpu, now, Stop::Ready, Stay::default());
        }
        self.started.insert(cpu);
        self.leave_idle(cpu, now);
        if now.saturating_sub(self.balanced) >= self.timing.frame {
            self.balance(now);
        }
        let (release, chosen) = match self.only(cpu, now) {
            Some(pick) => {
                #[cfg(test)]
                assert_eq!(self.compare(cpu, now), (None, Some(pick)));
                (None, Some(pick))
            }
            None => match self.compare(cpu, now) {
                (_, None) if self.steal(cpu, now) => self.compare(cpu, now),
                compared => compared,
            },
        };
        let decision = match chosen {
            Some(pick) => self.dispatch(cpu, now, pick, release).map(Decision::Run),
            None => None,
        };
        let decision = decision.unwrap_or_else(|| {
            self.idle.insert(cpu);
            if let Some(cpu) = self.cpus.get_mut(cpu) {
                cpu.idle_since = Some(now);
                (cpu.from, cpu.vacated, cpu.displaced) = (0, 0, false);
            }
            Decision::Idle { until: release }
        });
        self.offer(now);
        // The CPU that asks has its answer.
        self.kicks.remove(cpu);
        (decision, self.take_kicks())
    }

    /// `cpu` stopped running what [`next`](Self::next) told it to. An entity
    /// that was woken meanwhile is not [`Stop::Blocked`], whatever it says.
    pub fn stopped(&mut self, cpu: usize, now: u64, stop: Stop, stay: Stay) -> Kicks {
        let now = self.clock(now);
        self.stop(cpu, now, stop, stay);
        self.take_kicks()
    }

    /// Whether somebody who woke waits for what runs on `cpu` to have had its least. A
    /// CPU asks this at [`Choice::least`]: those who wake later kick it.
    pub fn is_hurried(&mut self, cpu: usize, now: u64) -> bool {
        // For entities that wake later it is later, whatever their CPU's clock says.
        self.clock(now);
        self.cpus.get(cpu).is_some_and(|cpu| cpu.hurry)
    }

    fn stop(&mut self, cpu: usize, now: u64, stop: Stop, stay: Stay) {
        let Some(state) = self.cpus.get(cpu) else { return };
        let Some(Current { guest, .. }) = state.current else { return };
        self.settle(guest, now);
        let most = self.timing.step;
        let Some(state) = self.cpus.get_mut(cpu) else { return };
        let Some(current) = state.current.take() else { return };
        let ran = now.saturating_sub(current.since);
        state.busy += ran;
        if current.after != 0 && stay.entered != 0 {
            let took = stay.entered.saturating_sub(current.after).min(most);
            state.change = state.change.saturating_mul(7).saturating_add(took) / 8;
        }
        // The next entity pays for the switch if it comes ahead of its turn: from the tick
        // at which this one had to leave. Else this one pays, and the next one for nothing
        // before it runs.
        let displaced = core::mem::take(&mut state.hurry) && stop == Stop::Ready;
        let end = match (displaced, stay.left) {
            (true, 1..) => stay.left.clamp(current.since, now),
            (false, _) if !state.queued.is_empty() => now.saturating_add(state.change),
            _ => now,
        };
        let end = end.max(current.from);
        (state.from, state.vacated, state.displaced) = (end, now, displaced);
        let Some(guest) = self.guests.get_mut(current.guest) else { return };
        guest.spend(signed(end).saturating_sub(signed(now)));
        guest.correct(cpu, signed(end).saturating_sub(signed(current.charged)));
        guest.running.remove(cpu);
        let paused = guest.paused;
        let Some(entity) = self.entities.get_mut(current.entity) else { return };
        entity.account(now);
        entity.v = entity.v.saturating_add(ran);
        let woken = entity.woken.take();
        let blocked = stop == Stop::Blocked && woken.is_none();
        let home = entity.home;
        entity.wants = !blocked;
        if entity.leaving {
            self.leave_cell(current.entity, cpu, now);
            self.free_entity(current.entity);
        } else if blocked || paused {
            self.leave_cell(current.entity, cpu, now);
        } else if home != cpu {
            // The balance chose another CPU while the entity ran on this one.
            entity.home = cpu;
            self.move_cell(current.entity, cpu, home, now);
            self.enqueue(current.entity, home, now);
            self.kick_for(current.entity, home);
        } else {
            if stop == Stop::Yielded {
                self.behind_siblings(current.entity, cpu);
            }
            self.enqueue(current.entity, cpu, now);
            if stop == Stop::Blocked && woken == Some(Reason::Interrupt) {
                let v = self.virtual_time(cpu, now).v;
                self.boost(current.entity, cpu, v);
            }
        }
    }

    /// Has the entity's siblings on this CPU go first.
    fn behind_siblings(&mut self, entity: u32, cpu: usize) {
        let Some(state) = self.cpus.get(cpu) else { return };
        let Some(guest) = self.entities.get(entity).map(|entity| entity.guest) else { return };
        let siblings = state.queued.iter().filter_map(|&other| self.entities.get(other));
        let last = siblings.filter(|other| other.guest == guest).map(|other| other.v).max();
        if let (Some(last), Some(entity)) = (last, self.entities.get_mut(entity)) {
            entity.v = entity.v.max(last.saturating_add(1));
        }
    }

    pub(crate) fn leave_idle(&mut self, cpu: usize, now: u64) {
        self.idle.remove(cpu);
        let Some(state) = self.cpus.get_mut(cpu) else { return };
        if let Some(since) = state.idle_since.take() {
            state.idle += now.saturating_sub(since);
        }
    }

    /// The one entity that waits for `cpu`, if its guest is alone there and has no budget: what
    /// [`compare`](Self::compare) would find. That is how a CPU wakes up, mostly.
    fn only(&mut self, cpu: usize, now: u64) -> Option<Pick> {
        let state = self.cpus.get_mut(cpu)?;
        let ([index], [home]) = (&state.queued[..], &state.active[..]) else { return None };
        let entity = self.entities.get(*index)?;
        let guest = self.guests.get(*home)?;
        let cell = guest.cells.get(cpu)?;
        let plain = guest.cap.is_none() && guest.reserve.is_none() && !cell.parked;
        if entity.guest != *home || !plain {
            return None;
        }
        // The CPU's virtual time is the guest's.
        state.v = cell.v;
        let class = if entity.boosted.is_some() {
            Class::Boost
        } else {
            let waited = now.saturating_sub(entity.ready_since.max(cell.released));
            let nominal = guest.nominal(cell.n);
            let is_overdue = self.timing.is_overdue(waited, guest.nominal(1), nominal);
            if is_overdue { Class::Overdue } else { Class::Share }
        };
        Some(Pick { entity: *index, class, total: cell.weight, again: None })
    }

    /// Chooses among the CPU's own entities, and says when a cap lets another one in.
    fn compare(&mut self, cpu: usize, now: u64) -> (Option<u64>, Option<Pick>) {
        let (release, virtual_now) = self.park(cpu, now);
        (release, self.pick(cpu, now, virtual_now))
    }

    /// Takes guests out of the CPU's competition whose cap is used up, and lets
    /// those in that may run again. Says when the next one may, and the CPU's virtual time.
    fn park(&mut self, cpu: usize, now: u64) -> (Option<u64>, Virtual) {
        let grant = self.timing.grant;
        let virtual_now = self.virtual_time(cpu, now);
        let v = virtual_now.v;
        let mut changed = false;
        let mut release: Option<u64> = None;
        let count = self.cpus.get(cpu).map_or(0, |cpu| cpu.active.len());
        for at in 0..count {
            let active = self.cpus.get(cpu).and_then(|cpu| cpu.active.get(at));
            let Some(&index) = active else { break };
            let Some(guest) = self.guests.get(index) else { continue };
            let held = guest.held_until(&self.cpus, now, grant);
            let Some(guest) = self.guests.get_mut(index) else { continue };
            let Some(cell) = guest.cells.get_mut(cpu) else { continue };
            cell.candidate = None;
            if cell.n == 0 {
                continue;
            }
            match held {
                Some(when) => {
                    changed |= !core::mem::replace(&mut cell.parked, true);
                    release = Some(release.map_or(when, |least| least.min(when)));
                    guest.throttled_since.get_or_insert(now);
                }
                None => {
                    if cell.parked {
                        cell.parked = false;
                        changed = true;
                        cell.released = now;
                        cell.v = cell.v.max(v);
                    }
                    if let Some(since) = guest.throttled_since.take() {
                        guest.throttled += now.saturating_sub(since);
                    }
                }
            }
        }
        let virtual_now = if changed { self.virtual_time(cpu, now) } else { virtual_now };
        (release, virtual_now)
    }

    /// Chooses among the CPU's own entities.
    fn pick(&mut self, cpu: usize, now: u64, virtual_now: Virtual) -> Option<Pick> {
        let Virtual { v, total, nominal } = virtual_now;
        let (total, nominal) = (total.max(1), nominal.max(1));
        let heads = self.survey(cpu, now, v, nominal)?;
        let again = heads.refilled.filter(|when| *when > now);
        let pick = |class, entity| Pick { entity, class, total, again };
        let of = |class| move |(_, entity): (u64, u32)| pick(class, entity);
        let first = heads.reserve.map(of(Class::Reserve)).or(heads.boost.map(of(Class::Boost)));
        let first = first.or(heads.overdue.map(of(Class::Overdue)));
        first.or_else(|| Some(pick(Class::Share, self.earliest(cpu, v, total)?)))
    }

    /// Looks at all entities that wait for a CPU, and notes each guest's candidate.
    fn survey(&mut self, cpu: usize, now: u64, v: i128, nominal: u64) -> Option<Heads> {
        let timing = self.timing;
        let Self { guests, entities, cpus, .. } = self;
        let mut heads = Heads::default();
        for &index in &cpus.get(cpu)?.queued {
            let Some(entity) = entities.get(index) else { continue };
            let Some(guest) = guests.get_mut(entity.guest) else { continue };
            let has_reserve = guest.reserve.is_some_and(|mut reserve| {
                reserve.advance(now, guest.running.len());
                // Two steps at a time, so that it interrupts others less often.
                sooner(&mut heads.refilled, reserve.when(timing.step.saturating_mul(2), 0));
                reserve.available(0) >= timing.step
            });
            let share = guest.nominal(1);
            let Some(cell) = guest.cells.get_mut(cpu) else { continue };
            if cell.parked {
                continue;
            }
            let waits = (entity.ready_since, index);
            if has_reserve {
                sooner(&mut heads.reserve, waits);
            }
            if entity.boosted.is_some_and(|ahead| cell.v <= v.max(ahead)) {
                sooner(&mut heads.boost, waits);
            }
            let waited = now.saturating_sub(entity.ready_since.max(cell.released));
            if timing.is_overdue(waited, share, nominal) {
                sooner(&mut heads.overdue, waits);
            }
            let better =
                |best: Candidate| (entity.v, entity.ready_since) < (best.v, best.ready_since);
            if cell.candidate.is_none_or(better) {
                cell.candidate = Some(Candidate {
                    entity: index,
                    kind: entity.kind,
                    v: entity.v,
                    ready_since: entity.ready_since,
                });
            }
        }
        Some(heads)
    }

    /// The guest with the earliest virtual deadline, of those that have not had
    /// more than their share: its candidate.
    fn earliest(&self, cpu: usize, v: i128, total: u64) -> Option<u32> {
        let mut best: Option<((bool, i128, u64), u32)> = None;
        for &index in &self.cpus.get(cpu)?.active {
            let Some(guest) = self.guests.get(index) else { continue };
            let Some(cell) = guest.cells.get(cpu) else { continue };
            let Some(candidate) = cell.candidate else { continue };
            let request = match candidate.kind {
                Kind::Service => self.timing.step,
                Kind::Vcpu => self.timing.slice(guest.weight_with(cell.n), cell.n, total),
            };
            let deadline = cell.v + guest.virtual_ticks(request, cell.n);
            // All of them may be ahead, namely of guests that sleep and are owed.
            let key = (cell.v > v, deadline, candidate.ready_since);
            if best.is_none_or(|(least, _)| key < least) {
                best = Some((key, candidate.entity));
            }
        }
        best.map(|(_, entity)| entity)
    }

    /// Fetches an entity that waits for another CPU: of the guest that is owed
    /// most, the one that has waited longest.
    fn steal(&mut self, cpu: usize, now: u64) -> bool {
        let grant = self.timing.grant;
        let mut first: Option<(Reverse<i64>, u64, u32, usize)> = None;
        for (from, state) in self.cpus.iter().enumerate() {
            if from == cpu {
                continue;
            }
            for &index in &state.queued {
                let Some(entity) = self.entities.get(index) else { continue };
                let Some(guest) = self.guests.get(entity.guest) else { continue };
                let key = (Reverse(guest.lag), entity.ready_since, index, from);
                if !entity.allowed.contains(cpu) || first.is_some_and(|first| first <= key) {
                    continue;
                }
                if guest.held_until(&self.cpus, now, grant).is_none() {
                    first = Some(key);
                }
            }
        }
        let Some((_, _, entity, from)) = first else { return false };
        self.migrate(entity, cpu, now);
        // One that the balance sent here, but still runs there, stays: this one came instead.
        let runs = self.cpus.get(from).and_then(|from| from.current);
        if let Some(entity) = runs.and_then(|runs| self.entities.get_mut(runs.entity))
            && entity.home == cpu
        {
            entity.home = from;
        }
        true
    }

    fn dispatch(
        &mut self,
        cpu: usize,
        now: u64,
        pick: Pick,
        release: Option<u64>,
    ) -> Option<Choice> {
        let Pick { entity: index, class, total, again } = pick;
        self.unqueue(index, cpu);
        let timing = self.timing;
        let key = self.entities.key(index)?;
        let entity = self.entities.get_mut(index)?;
        entity.account(now);
        entity.place = Place::Running(cpu);
        entity.boosted = None;
        entity.woken = None;
        let waited = now.saturating_sub(entity.ready_since);
        entity.times.longest_ready = entity.times.longest_ready.max(waited);
        let (kind, v, home) = (entity.kind, entity.v, entity.guest);
        let guest = self.guests.get(home)?;
        let n = guest.cells.get(cpu).map_or(1, |cell| cell.n);
        let most = match (kind, class) {
            (Kind::Service, _) | (_, Class::Reserve) => timing.step,
            (Kind::Vcpu, Class::Boost) => timing.boost,
            (Kind::Vcpu, Class::Overdue) => timing.slice_min,
            (Kind::Vcpu, Class::Share) => timing.slice(guest.weight_with(n), n, total),
        };
        let allowed = guest.allowance(&self.cpus, now);
        let most = allowed.map_or(most, |available| most.min(available));
        let until = now.saturating_add(most);
        let until = release.into_iter().chain(again).fold(until, u64::min);
        let (from, after, displaced) =
            self.cpus.get(cpu).map_or((0, 0, false), |cpu| (cpu.from, cpu.vacated, cpu.displaced));
        let from = if displaced { from } else { from.max(now) };
        let least = now.saturating_add(timing.least);
        let guest = self.guests.get_mut(home)?;
        guest.running.insert(cpu);
        if let Some(cell) = guest.cells.get_mut(cpu) {
            cell.floor = cell.floor.max(v);
        }
        // Budgets count this CPU as running from now on only.
        let others = guest.running.len().saturating_sub(1);
        for budget in [&mut guest.cap, &mut guest.reserve].into_iter().flatten() {
            budget.advance(now, others);
        }
        guest.spend(signed(now).saturating_sub(signed(from)));
        let short = kind == Kind::Service || matches!(class, Class::Reserve | Class::Boost);
        self.cpus.get_mut(cpu)?.current = Some(Current {
            entity: index,
            guest: home,
            since: now,
            until,
            least,
            from,
            charged: from,
            after,
            short,
        });
        let steal = self.entities.get(index).map_or(0, |entity| entity.times.ready);
        Some(Choice { id: EntityId(key), until, least, steal })
    }

    /// Kicks idle CPUs that may run what waits for others.
    fn offer(&mut self, now: u64) {
        let mut idle = self.idle;
        for from in self.started.iter() {
            if idle.is_empty() {
                return;
            }
            let Some(state) = self.cpus.get(from) else { continue };
            for &index in &state.queued {
                let Some(entity) = self.entities.get(index) else { continue };
                let own = entity.allowed.and(idle).and(CpuSet::one(from)).lowest();
                let Some(to) = own.or_else(|| entity.allowed.and(idle).lowest()) else { continue };
                let Some(guest) = self.guests.get(entity.guest) else { continue };
                if guest.held_until(&self.cpus, now, self.timing.grant).is_none() {
                    idle.remove(to);
                    // The entity's own CPU, too: a cap may let it run earlier than that CPU knows.
                    self.kicks.insert(to);
                }
            }
        }
    }
}

impl crate::Timing {
    /// Whether an entity with `share` out of `total` that has waited for `waited` ticks runs out of
    /// turn.
    fn is_overdue(&self, waited: u64, share: u64, total: u64) -> bool {
        // Nobody's patience is less than that of one alone, which takes no division.
        let alone = self.slice_min.max(self.round).saturating_add(self.slice_max).saturating_mul(2);
        waited > alone && waited > self.patience(share, total)
    }

    /// How long an entity with `share` out of `total` waits at most.
    fn patience(&self, share: u64, total: u64) -> u64 {
        let turn = u128::from(self.slice_min) * u128::from(total) / u128::from(share.max(1));
        let turn = u64::try_from(turn).unwrap_or(u64::MAX).max(self.round);
        turn.saturating_add(self.slice_max).saturating_mul(2)
    }

    /// The slice of one of `n` entities of a guest that together have `weight`
    /// out of `total` on their CPU.
    fn slice(&self, weight: u64, n: u32, total: u64) -> u64 {
        let whole = u128::from(total.max(1)) * u128::from(n.max(1));
        let part = u128::from(self.round) * u128::from(weight) / whole;
        u64::try_from(part).unwrap_or(u64::MAX).clamp(self.slice_min, self.slice_max)
    }
}
