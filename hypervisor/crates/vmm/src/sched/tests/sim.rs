//! A machine of simulated CPUs around a [`Scheduler`], which checks at every
//! step what must always hold, against books of its own.

extern crate std;

use crate::clock::TscFrequency;
use crate::sched::*;
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::vec::Vec;

/// 1 GHz: a tick is a nanosecond.
pub(super) const MICRO: u64 = 1000;
pub(super) const MILLI: u64 = 1000 * MICRO;
pub(super) const SECOND: u64 = 1000 * MILLI;
/// How late a CPU may be to stop, and to answer a kick.
pub(super) const LATE: u64 = 5 * MICRO;

pub(super) fn timing() -> Timing {
    Timing::new(TscFrequency::from_khz(1_000_000).unwrap())
}

/// What an entity does with the CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Work {
    /// Never enough.
    Hog,
    /// Runs for up to the first time, sleeps for up to the second.
    Sleeper(u64, u64, Reason),
    /// The same, with just these times.
    Ticker(u64, u64),
    /// Spins, and yields often.
    Spinner,
    /// Runs this long, then wakes its next sibling and sleeps.
    Baton(u64),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Blocked,
    Ready,
    Running(usize),
}

#[derive(Debug)]
pub(super) struct Actor {
    pub(super) id: EntityId,
    pub(super) guest: usize,
    kind: Kind,
    pub(super) allowed: CpuSet,
    work: Work,
    state: State,
    burst: u64,
    added: u64,
    since: u64,
    ready_since: u64,
    /// When its affinity last changed.
    pinned: u64,
    by_interrupt: bool,
    pub(super) run: u64,
    pub(super) ready: u64,
    pub(super) blocked: u64,
    pub(super) longest: u64,
    /// The longest from a wake-up by an interrupt to a CPU.
    pub(super) latency: u64,
    gone: bool,
}

#[derive(Debug)]
pub(super) struct Party {
    pub(super) id: GuestId,
    pub(super) settings: GuestSettings,
    pub(super) paused: Option<u64>,
    pub(super) gone: bool,
    /// The least of service less cap times time, so far.
    least: i128,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum What {
    Kick(usize),
    Due(usize, u64),
    Wake(usize),
    Tick,
}

#[derive(Clone, Copy, Debug, Default)]
struct SimCpu {
    running: Option<(usize, u64, u64)>,
    epoch: u64,
    idle_since: Option<u64>,
    kicked: bool,
}

pub(super) struct Sim {
    pub(super) sched: Scheduler,
    pub(super) now: u64,
    pub(super) actors: Vec<Actor>,
    pub(super) parties: Vec<Party>,
    cpus: Vec<SimCpu>,
    events: BinaryHeap<Reverse<(u64, u64, What)>>,
    order: u64,
    seed: u64,
    /// Whether stops and kicks are late at times.
    pub(super) late: bool,
    pub(super) decisions: u64,
    /// What has gone wrong.
    pub(super) faults: Vec<std::string::String>,
}

macro_rules! check {
    ($sim:expr, $held:expr, $($text:tt)*) => {
        if !$held {
            let text = std::format!($($text)*);
            let text = std::format!("at {} us: {text}", $sim.now / MICRO);
            $sim.faults.push(text);
        }
    };
}

impl Sim {
    pub(super) fn new(cpus: usize, seed: u64) -> Self {
        let mut sim = Self {
            sched: Scheduler::new(cpus, timing()),
            now: 1_000_000,
            actors: Vec::new(),
            parties: Vec::new(),
            cpus: std::vec![SimCpu::default(); cpus],
            events: BinaryHeap::new(),
            order: 0,
            seed: seed | 1,
            late: true,
            decisions: 0,
            faults: Vec::new(),
        };
        for cpu in 0..cpus {
            sim.at(sim.now, What::Kick(cpu));
        }
        sim.at(sim.now, What::Tick);
        sim
    }

    pub(super) fn random(&mut self, below: u64) -> u64 {
        self.seed ^= self.seed << 13;
        self.seed ^= self.seed >> 7;
        self.seed ^= self.seed << 17;
        self.seed.wrapping_mul(0x2545_f491_4f6c_dd1d) % below.max(1)
    }

    fn at(&mut self, when: u64, what: What) {
        self.order += 1;
        self.events.push(Reverse((when, self.order, what)));
    }

    pub(super) fn guest(&mut self, settings: GuestSettings) -> usize {
        let id = self.sched.add_guest(settings, self.now).unwrap();
        let least = i128::MAX;
        self.parties.push(Party { id, settings, paused: None, gone: false, least });
        self.parties.len() - 1
    }

    pub(super) fn actor(&mut self, guest: usize, kind: Kind, set: CpuSet, work: Work) -> usize {
        let id = self.sched.add(self.parties[guest].id, kind, set, self.now).unwrap();
        let now = self.now;
        self.actors.push(Actor {
            id,
            guest,
            kind,
            allowed: set,
            work,
            state: State::Blocked,
            burst: 0,
            added: now,
            since: now,
            ready_since: now,
            pinned: now,
            by_interrupt: false,
            run: 0,
            ready: 0,
            blocked: 0,
            longest: 0,
            latency: 0,
            gone: false,
        });
        let first = match work {
            Work::Hog | Work::Spinner => 0,
            Work::Sleeper(_, sleep, _) | Work::Ticker(_, sleep) => self.random(sleep),
            Work::Baton(_) => u64::MAX / 2,
        };
        self.at(self.now + first, What::Wake(self.actors.len() - 1));
        self.actors.len() - 1
    }

    /// Wakes the first entity of a guest.
    pub(super) fn pass_on(&mut self, guest: usize) {
        let first = self.actors.iter().position(|actor| actor.guest == guest).unwrap();
        self.at(self.now, What::Wake(first));
    }

    /// `weight` with `vcpus` that never have enough.
    pub(super) fn hogs(&mut self, weight: u32, cap: Option<u32>, vcpus: usize) -> usize {
        let guest = self.guest(GuestSettings { weight, cap, reserve: 0 });
        for _ in 0..vcpus {
            self.actor(guest, Kind::Vcpu, CpuSet::ALL, Work::Hog);
        }
        guest
    }

    fn kick(&mut self, kicks: Kicks) {
        for cpu in kicks.0.iter() {
            if !std::mem::replace(&mut self.cpus[cpu].kicked, true) {
                let late = if self.late { self.random(LATE) } else { 0 };
                self.at(self.now + late, What::Kick(cpu));
            }
        }
    }

    fn book_guest(&mut self, guest: usize) {
        let of = |at: &usize| self.actors[*at].guest == guest && !self.actors[*at].gone;
        let all: Vec<usize> = (0..self.actors.len()).filter(of).collect();
        all.into_iter().for_each(|actor| self.book(actor));
    }

    pub(super) fn pause(&mut self, guest: usize) {
        self.book_guest(guest);
        let kicks = self.sched.pause(self.parties[guest].id, self.now).unwrap();
        self.parties[guest].paused.get_or_insert(self.now);
        self.kick(kicks);
    }

    pub(super) fn resume(&mut self, guest: usize) {
        self.book_guest(guest);
        let kicks = self.sched.resume(self.parties[guest].id, self.now).unwrap();
        self.parties[guest].paused = None;
        for actor in self.actors.iter_mut().filter(|actor| actor.guest == guest) {
            actor.ready_since = self.now;
            actor.by_interrupt = false;
        }
        self.kick(kicks);
    }

    pub(super) fn remove(&mut self, guest: usize) {
        self.book_guest(guest);
        let kicks = self.sched.remove_guest(self.parties[guest].id, self.now).unwrap();
        self.parties[guest].gone = true;
        for actor in self.actors.iter_mut().filter(|actor| actor.guest == guest) {
            actor.gone = true;
        }
        self.kick(kicks);
    }

    pub(super) fn pin(&mut self, actor: usize, set: CpuSet) {
        let kicks = self.sched.set_affinity(self.actors[actor].id, set, self.now).unwrap();
        self.actors[actor].allowed = set;
        self.actors[actor].pinned = self.now;
        self.kick(kicks);
    }

    /// Service of a guest so far.
    pub(super) fn service(&self, guest: usize) -> u64 {
        let of = |actor: &Actor| match actor.state {
            State::Running(_) => actor.run + self.now - actor.since,
            _ => actor.run,
        };
        self.actors.iter().filter(|actor| actor.guest == guest).map(of).sum()
    }

    fn book(&mut self, actor: usize) {
        let (now, paused) = (self.now, self.parties[self.actors[actor].guest].paused.is_some());
        let actor = &mut self.actors[actor];
        let elapsed = now - actor.since;
        actor.since = now;
        match actor.state {
            State::Running(_) => actor.run += elapsed,
            State::Ready if paused => {}
            State::Ready => actor.ready += elapsed,
            State::Blocked => actor.blocked += elapsed,
        }
    }

    fn wake(&mut self, index: usize) {
        if self.actors[index].gone {
            return;
        }
        self.book(index);
        let (now, work) = (self.now, self.actors[index].work);
        let reason = match work {
            Work::Sleeper(_, _, reason) => reason,
            Work::Ticker(..) => Reason::Interrupt,
            Work::Hog | Work::Spinner | Work::Baton(_) => Reason::Other,
        };
        let burst = match work {
            Work::Hog | Work::Spinner => u64::MAX,
            Work::Sleeper(run, ..) => 1 + self.random(run),
            Work::Ticker(run, _) | Work::Baton(run) => run,
        };
        let actor = &mut self.actors[index];
        if actor.state == State::Blocked {
            actor.state = State::Ready;
            actor.ready_since = now;
            actor.by_interrupt = reason == Reason::Interrupt;
            actor.burst = burst;
        }
        let kicks = self.sched.wake(actor.id, now, reason);
        self.kick(kicks);
    }

    fn next_sibling(&self, index: usize) -> usize {
        let guest = self.actors[index].guest;
        let siblings = |at: &usize| self.actors[*at].guest == guest;
        let after = (index + 1..self.actors.len()).find(siblings);
        after.or_else(|| (0..=index).find(siblings)).unwrap_or(index)
    }

    fn stop(&mut self, cpu: usize) {
        let Some((index, ..)) = self.cpus[cpu].running.take() else { return };
        let ran = self.now - self.actors[index].since;
        self.book(index);
        let actor = &mut self.actors[index];
        actor.burst = actor.burst.saturating_sub(ran);
        let stop = if actor.burst == 0 {
            actor.state = State::Blocked;
            Stop::Blocked
        } else {
            actor.state = State::Ready;
            actor.ready_since = self.now;
            actor.by_interrupt = false;
            if actor.work == Work::Spinner { Stop::Yielded } else { Stop::Ready }
        };
        let work = actor.work;
        if stop == Stop::Blocked {
            let (sleep, whom) = match work {
                Work::Sleeper(_, sleep, _) => (1 + self.random(sleep), index),
                Work::Ticker(_, sleep) => (sleep, index),
                Work::Baton(_) => (0, self.next_sibling(index)),
                Work::Hog | Work::Spinner => (0, index),
            };
            self.at(self.now + sleep, What::Wake(whom));
        }
        let kicks = self.sched.stopped(cpu, self.now, stop);
        self.kick(kicks);
    }

    fn look(&mut self, cpu: usize) {
        self.stop(cpu);
        self.decisions += 1;
        let now = self.now;
        let (decision, kicks) = self.sched.next(cpu, now);
        self.kick(kicks);
        self.cpus[cpu].epoch += 1;
        let epoch = self.cpus[cpu].epoch;
        let choice = match decision {
            Decision::Idle { until } => {
                self.cpus[cpu].idle_since.get_or_insert(now);
                if let Some(until) = until {
                    check!(self, until > now, "CPU {cpu} idles into the past");
                    self.at(until, What::Due(cpu, epoch));
                }
                return;
            }
            Decision::Run(choice) => choice,
        };
        self.cpus[cpu].idle_since = None;
        let index = self.actors.iter().position(|actor| actor.id == choice.id).unwrap();
        self.book(index);
        let party = &self.parties[self.actors[index].guest];
        let (paused, gone) = (party.paused.is_some(), party.gone);
        let actor = &mut self.actors[index];
        let fine = actor.state == State::Ready && !paused && !gone && !actor.gone;
        actor.state = State::Running(cpu);
        let waited = now - actor.ready_since;
        actor.longest = actor.longest.max(waited);
        if actor.by_interrupt {
            actor.latency = actor.latency.max(waited);
        }
        let steal = actor.ready;
        let times = timing();
        let most = match actor.kind {
            Kind::Service => times.step,
            Kind::Vcpu => times.slice_max,
        };
        let (burst, allowed, spins) = (actor.burst, actor.allowed, actor.work == Work::Spinner);
        check!(self, fine, "CPU {cpu} runs actor {index}, which can't");
        check!(self, allowed.contains(cpu), "CPU {cpu} runs actor {index}, which may not");
        check!(self, choice.until > now && choice.until - now <= most, "a slice of {choice:?}");
        check!(self, choice.steal == steal, "steal of {}, not {steal}", choice.steal);
        let late = if self.late { self.random(LATE) } else { 0 };
        let mut end = (choice.until + late).min(now.saturating_add(burst));
        if spins {
            end = end.min(now + 20 * MICRO);
        }
        self.cpus[cpu].running = Some((index, now, choice.until));
        self.at(end, What::Due(cpu, epoch));
    }

    /// What must hold at any time.
    fn audit(&mut self) {
        let now = self.now;
        for guest in 0..self.parties.len() {
            let party = &self.parties[guest];
            let Some(cap) = party.settings.cap else { continue };
            let value = i128::from(self.service(guest) * 100) - i128::from(cap) * i128::from(now);
            let party = &mut self.parties[guest];
            party.least = party.least.min(value);
            let slices = u64::from(cap.div_ceil(100));
            let most = slices * timing().slice_max + slices * LATE;
            let over = (value - party.least) / 100;
            check!(self, over <= i128::from(most), "guest {guest} is {over} ns over its cap");
        }
        for cpu in 0..self.cpus.len() {
            let Some(idle) = self.cpus[cpu].idle_since else { continue };
            for index in 0..self.actors.len() {
                let actor = &self.actors[index];
                let party = &self.parties[actor.guest];
                let skip = actor.gone || party.paused.is_some() || party.settings.cap.is_some();
                if skip || actor.state != State::Ready || !actor.allowed.contains(cpu) {
                    continue;
                }
                let wasted = now - idle.max(actor.ready_since).max(actor.pinned);
                check!(self, wasted <= 2 * LATE, "CPU {cpu} idles while actor {index} waits");
            }
        }
        for (guest, party) in self.parties.iter().enumerate() {
            let Some(since) = party.paused else { continue };
            let runs = |actor: &Actor| {
                actor.guest == guest && matches!(actor.state, State::Running(_)) && !actor.gone
            };
            if now - since > LATE && self.actors.iter().any(runs) {
                self.faults.push(std::format!("guest {guest} runs while paused"));
            }
        }
    }

    /// Runs until `end`, or until something is wrong.
    pub(super) fn run_until(&mut self, end: u64) {
        while self.faults.is_empty() {
            let Some(&Reverse((when, _, _))) = self.events.peek() else { break };
            if when > end {
                break;
            }
            let Some(Reverse((when, _, what))) = self.events.pop() else { break };
            self.now = when;
            self.audit();
            match what {
                What::Kick(cpu) => {
                    self.cpus[cpu].kicked = false;
                    self.look(cpu);
                }
                What::Due(cpu, epoch) if self.cpus[cpu].epoch == epoch => self.look(cpu),
                What::Due(..) => {}
                What::Wake(actor) => self.wake(actor),
                What::Tick => self.at(when + MILLI / 2, What::Tick),
            }
        }
        self.now = self.now.max(end);
    }

    pub(super) fn run_for(&mut self, time: u64) {
        self.run_until(self.now + time);
    }

    /// That the scheduler's books agree with the simulation's.
    pub(super) fn settle_books(&mut self) {
        for index in 0..self.actors.len() {
            self.book(index);
        }
        let mut faults = Vec::new();
        for (index, actor) in self.actors.iter().enumerate() {
            if actor.gone {
                continue;
            }
            let Some(times) = self.sched.entity_times(actor.id, self.now) else {
                faults.push(std::format!("actor {index} is lost"));
                continue;
            };
            let sum = times.run + times.ready + times.wait + times.paused;
            if sum != self.now - actor.added
                || times.run != actor.run
                || times.ready != actor.ready
                || times.wait != actor.blocked
            {
                faults.push(std::format!("books of actor {index}: {times:?}, not {actor:?}"));
            }
        }
        for cpu in 0..self.cpus.len() {
            let times = self.sched.cpu_times(cpu, self.now).unwrap();
            let sum = times.busy + times.idle;
            if sum > self.now - 1_000_000 || sum + MILLI < self.now - 1_000_000 {
                faults.push(std::format!("books of CPU {cpu}: {times:?}"));
            }
        }
        let busy: u64 =
            (0..self.cpus.len()).map(|cpu| self.sched.cpu_times(cpu, self.now).unwrap().busy).sum();
        let run: u64 = self.actors.iter().map(|actor| actor.run).sum();
        if busy != run {
            faults.push(std::format!("CPUs were busy {busy}, entities ran {run}"));
        }
        self.faults.extend(faults);
    }

    /// Service of all guests in `time` from now on.
    pub(super) fn measure(&mut self, time: u64) -> Vec<u64> {
        let before: Vec<u64> = (0..self.parties.len()).map(|guest| self.service(guest)).collect();
        self.run_for(time);
        (0..self.parties.len()).map(|guest| self.service(guest) - before[guest]).collect()
    }
}
