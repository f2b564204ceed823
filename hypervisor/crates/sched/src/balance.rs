//! The CPU that each entity calls home.
//!
//! Once in a frame: what would each guest have been due, had the machine been
//! shared ideally (by weight, but no guest more than it could use or its cap
//! allows: max-min fairness by "water filling")? Divided among its entities,
//! less what they got, this is each entity's lag. The service that an entity is
//! due plus its lag is the pressure it puts on its home; entities move from CPUs
//! of high pressure to such of lower. So three equal vCPUs take turns on two CPUs.
//!
//! A guest's entities press together with what the guest is due and owed: where one is
//! ahead of its siblings and another behind, the lag of one offsets that of the other.
//! Else entities that take turns would make all their CPUs look crowded.
//!
//! A guest's weight is corrected by what its entities are owed together, so that it
//! gains nothing by being runnable now here and now there.

use crate::budget::signed;
use crate::scheduler::Scheduler;
use crate::state::{PULL, Place};
use config::MAX_CPUS;
use x86defs::Low;

/// A whole CPU, of rates and pressures.
pub(crate) const ONE: u64 = 1 << 16;
/// Differences of pressure that are not worth a move.
const SLACK: u64 = ONE / 4;
/// Frames of service that an entity can be owed, or owe.
const MEMORY: u64 = 4;
/// By how much a weight is corrected at most, either way.
const STRONGEST: u32 = 4;

/// `part` out of `whole`, times `of`.
fn scaled(of: u64, part: u64, whole: u64) -> u64 {
    let product = u128::from(of) * u128::from(part);
    u64::try_from(product.checked_div(whole.into()).unwrap_or(0)).unwrap_or(u64::MAX)
}

/// The correction of the weight of a guest that is owed `lag`, in full from
/// `most` on.
fn pull(lag: i64, most: i64) -> u32 {
    let lag = lag.clamp(-most, most);
    let range = u64::from(if lag < 0 { PULL - PULL / STRONGEST } else { PULL * (STRONGEST - 1) });
    let part = scaled(range, lag.unsigned_abs(), most.unsigned_abs()).low32();
    if lag < 0 { PULL - part } else { PULL + part }
}

impl Scheduler {
    pub(crate) fn balance(&mut self, now: u64) {
        let span = now.saturating_sub(self.balanced);
        self.balanced = now;
        if self.started.len() < 2 {
            self.watched = false;
            return;
        }
        for (_, guest) in self.guests.iter_mut() {
            (guest.runnable, guest.got, guest.rate) = (0, 0, None);
            (guest.pressure, guest.positive) = (0, 0);
        }
        for (_, entity) in self.entities.iter_mut() {
            entity.account(now);
            let (run, ready) = entity.frame;
            let runnable = entity.times.run - run + entity.times.ready - ready;
            if let Some(guest) = self.guests.get_mut(entity.guest) {
                guest.runnable += runnable;
                guest.got += entity.times.run - run;
            }
        }
        self.share_out(span);
        let watched = core::mem::replace(&mut self.watched, true);
        let stale = !watched || span > self.timing.frame.saturating_mul(MEMORY);
        let most = signed(self.timing.frame.saturating_mul(MEMORY));
        for cpu in 0..self.cpus.len() {
            self.virtual_time(cpu, now);
        }
        for at in 0..self.guests.places() {
            let Ok(at) = u32::try_from(at) else { break };
            let Some(guest) = self.guests.get_mut(at) else { continue };
            let due = scaled(guest.rate.unwrap_or(0), span, ONE);
            guest.lag = if stale || guest.runnable == 0 {
                0
            } else {
                guest.lag.saturating_add(signed(due) - signed(guest.got)).clamp(-most, most)
            };
            let pull = pull(guest.lag, most / 2);
            if pull != guest.pull {
                self.reweigh_settled(at, |guest| guest.pull = pull);
            }
        }
        let mut loads = [0u64; MAX_CPUS];
        for (_, entity) in self.entities.iter_mut() {
            let run = entity.times.run - entity.frame.0;
            let runnable = run + entity.times.ready - entity.frame.1;
            entity.frame = (entity.times.run, entity.times.ready);
            let Some(guest) = self.guests.get_mut(entity.guest) else { continue };
            let rate = guest.rate.unwrap_or(0);
            let due = scaled(scaled(rate, runnable, guest.runnable), span, ONE);
            if stale || runnable == 0 {
                entity.lag = 0;
            } else {
                let missed = signed(due) - signed(run);
                entity.lag = entity.lag.saturating_add(missed).clamp(-most, most);
            }
            entity.pressure = 0;
            if entity.place != Place::Off {
                // As if it were runnable for all of the next frame.
                let new = guest.runnable == 0;
                let wanted = if new { ONE } else { scaled(rate, span, guest.runnable).min(ONE) };
                let owed = signed(scaled(ONE, entity.lag.unsigned_abs(), self.timing.frame));
                let owed = if entity.lag < 0 { -owed } else { owed };
                let pressure = signed(wanted).saturating_add(owed);
                entity.pressure = u64::try_from(pressure).unwrap_or(0);
                guest.pressure = guest.pressure.saturating_add(pressure);
                guest.positive = guest.positive.saturating_add(entity.pressure);
            }
        }
        for (_, entity) in self.entities.iter_mut() {
            let Some(guest) = self.guests.get(entity.guest) else { continue };
            if entity.place == Place::Off {
                continue;
            }
            let whole = u64::try_from(guest.pressure).unwrap_or(0);
            entity.pressure = scaled(entity.pressure, whole, guest.positive).max(1);
            if let Some(load) = loads.get_mut(entity.home) {
                *load = load.saturating_add(entity.pressure);
            }
        }
        self.spread(&mut loads, now);
    }

    /// Sets the guests' rates for a frame of `span` ticks.
    fn share_out(&mut self, span: u64) {
        let mut left = u64::from(self.started.len()) * ONE;
        let mut weights: u64 = 0;
        for (_, guest) in self.guests.iter() {
            if guest.runnable != 0 {
                weights += u64::from(guest.settings.weight);
            }
        }
        // Each round satisfies at least one guest, or is the last.
        loop {
            let (level, sum) = (left, weights);
            let mut satisfied = false;
            for (_, guest) in self.guests.iter_mut() {
                if guest.runnable == 0 || guest.rate.is_some() {
                    continue;
                }
                let weight = u64::from(guest.settings.weight);
                let cap = guest.settings.cap.map_or(u64::MAX, |cap| u64::from(cap) * ONE / 100);
                let limit = scaled(ONE, guest.runnable, span).min(cap);
                if limit <= scaled(level, weight, sum) {
                    guest.rate = Some(limit);
                    left = left.saturating_sub(limit);
                    weights = weights.saturating_sub(weight);
                    satisfied = true;
                }
            }
            if !satisfied {
                break;
            }
        }
        for (_, guest) in self.guests.iter_mut() {
            if guest.runnable != 0 && guest.rate.is_none() {
                guest.rate = Some(scaled(left, guest.settings.weight.into(), weights));
            }
        }
    }

    /// Moves entities from CPUs with much pressure to such with less.
    fn spread(&mut self, loads: &mut [u64; MAX_CPUS], now: u64) {
        let mut sources = self.started;
        for _ in 0..self.started.len().saturating_mul(2) {
            let load = |cpu: usize| loads.get(cpu).copied().unwrap_or(0);
            let Some(from) = sources.iter().max_by_key(|cpu| load(*cpu)) else { break };
            // The best move brings the two closest together.
            let mut best: Option<(u64, u32, usize, u64)> = None;
            for (index, entity) in self.entities.iter() {
                if entity.place == Place::Off || entity.home != from || entity.leaving {
                    continue;
                }
                let others = entity.allowed.and(self.started).iter().filter(|cpu| *cpu != from);
                let Some(to) = others.min_by_key(|cpu| load(*cpu)) else { continue };
                let gap = load(from).saturating_sub(load(to));
                let pressure = entity.pressure;
                if gap <= SLACK || pressure.saturating_add(SLACK) >= gap {
                    continue;
                }
                // One that runs can move only when it stops: rather another that is about as good.
                let late = if matches!(entity.place, Place::Running(_)) { SLACK } else { 0 };
                let off = pressure.saturating_mul(2).abs_diff(gap).saturating_add(late);
                if best.is_none_or(|(least, ..)| off < least) {
                    best = Some((off, index, to, pressure));
                }
            }
            let Some((_, index, to, pressure)) = best else {
                sources.remove(from);
                continue;
            };
            for (cpu, add) in [(from, false), (to, true)] {
                let Some(load) = loads.get_mut(cpu) else { continue };
                *load =
                    if add { load.saturating_add(pressure) } else { load.saturating_sub(pressure) };
            }
            match self.entities.get_mut(index) {
                Some(entity) if matches!(entity.place, Place::Running(_)) => entity.home = to,
                Some(_) => {
                    self.migrate(index, to, now);
                    self.kick_for(index, to);
                }
                None => {}
            }
        }
    }
}
