//! A machine of simulated CPUs around a [`Scheduler`], which checks at every
//! step what must always hold, against books of its own.

extern crate std;

use crate::*;
use config::CpuSet;
use service::Stop;
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::vec::Vec;
use x86defs::time::TscFrequency;

/// 1 GHz: a tick is a nanosecond.
pub(super) const MICRO: u64 = 1000;
pub(super) const MILLI: u64 = 1000 * MICRO;
pub(super) const SECOND: u64 = 1000 * MILLI;
/// How late a CPU may be to stop, and to answer a kick.
pub(super) const LATE: u64 = 5 * MICRO;

pub(super) fn timing() -> Timing {
    Timing::new(TscFrequency::from_khz(1_000_000).unwrap())
}

/// Work of an entity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Work {
    /// Runs for ever.
    Hog,
    /// Runs for up to the first time, sleeps for up to the second.
    Sleeper(u64, u64, Reason),
    /// The same, with just these times, woken from elsewhere.
    Ticker(u64, u64),
    /// The same, woken by the CPU that it went to sleep on, when that looks.
    Alarm(u64, u64),
    /// The same, and wakes its next sibling just before it sleeps.
    Accomplice(u64, u64),
    /// Spins, and yields often.
    Spinner,
    /// Runs this long, then wakes its next sibling and sleeps.
    Baton(u64),
}

/// Costs of a CPU besides running guests, in ticks.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Costs {
    /// From a decision to the guest's first instruction.
    pub(super) load: u64,
    /// From its last one to the scheduler's being told.
    pub(super) save: u64,
    /// From then to the next decision.
    pub(super) gap: u64,
    /// An exit to see who has to be woken.
    pub(super) exit: u64,
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
    /// Time at which its waking event came.
    due: u64,
    by_interrupt: bool,
    /// It was woken on its way to sleep.
    woken: bool,
    /// It was woken while it had work: it is sent to run once more, and finds nothing.
    heard: bool,
    /// It was sent to run only for that.
    in_vain: bool,
    pub(super) run: u64,
    /// The part of `run` in which it was not loaded, saved or held up.
    pub(super) inside: u64,
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
    pub(super) settings: Share,
    pub(super) paused: Option<u64>,
    pub(super) gone: bool,
    /// The least of service less cap times time, so far.
    least: i128,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum What {
    Kick(usize),
    Due(usize, u64),
    /// The CPU's turn has lasted for the least time.
    Least(usize, u64),
    /// It has saved what ran; it is to decide.
    Saved(usize),
    Decide(usize),
    Alarm(usize, u64),
    Wake(usize),
    Tick,
}

#[derive(Clone, Copy, Debug)]
struct Turn {
    actor: usize,
    entered: u64,
    until: u64,
    /// It has asked whether anybody is in a hurry.
    asked: bool,
    /// Ticks of its exits.
    lost: u64,
    left: u64,
}

#[derive(Clone, Copy, Debug, Default)]
struct SimCpu {
    running: Option<Turn>,
    /// It saves, or decides.
    busy: bool,
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
    /// Sleepers with an alarm: the CPU, the tick and the actor.
    alarms: Vec<(usize, u64, usize)>,
    pub(super) costs: Costs,
    events: BinaryHeap<Reverse<(u64, u64, What)>>,
    order: u64,
    seed: u64,
    /// Whether stops and kicks are late at times.
    pub(super) late: bool,
    pub(super) decisions: u64,
    /// Faults that were found.
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
            alarms: Vec::new(),
            costs: Costs::default(),
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

    pub(super) fn guest(&mut self, settings: Share) -> usize {
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
            due: 0,
            by_interrupt: false,
            woken: false,
            heard: false,
            in_vain: false,
            run: 0,
            inside: 0,
            ready: 0,
            blocked: 0,
            longest: 0,
            latency: 0,
            gone: false,
        });
        let first = match work {
            Work::Hog | Work::Spinner => 0,
            Work::Sleeper(_, sleep, _)
            | Work::Ticker(_, sleep)
            | Work::Alarm(_, sleep)
            | Work::Accomplice(_, sleep) => self.random(sleep),
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
        let guest = self.guest(Share { weight, cap, reserve: 0 });
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

    /// Part of a guest's service that it could use, in ticks.
    pub(super) fn inside(&self, guest: usize) -> u64 {
        let of = |actor: &Actor| (actor.guest == guest).then_some(actor.inside);
        self.actors.iter().filter_map(of).sum()
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

    fn wake(&mut self, index: usize, due: u64) {
        if self.actors[index].gone {
            return;
        }
        self.book(index);
        let (now, work) = (self.now, self.actors[index].work);
        let reason = match work {
            Work::Sleeper(_, _, reason) => reason,
            Work::Ticker(..) | Work::Alarm(..) | Work::Accomplice(..) => Reason::Interrupt,
            Work::Hog | Work::Spinner | Work::Baton(_) => Reason::Other,
        };
        let burst = match work {
            Work::Hog | Work::Spinner => u64::MAX,
            Work::Sleeper(run, ..) => 1 + self.random(run),
            Work::Ticker(run, _)
            | Work::Alarm(run, _)
            | Work::Accomplice(run, _)
            | Work::Baton(run) => run,
        };
        let actor = &mut self.actors[index];
        if actor.state == State::Blocked {
            actor.state = State::Ready;
            actor.ready_since = now;
            actor.due = due;
            actor.by_interrupt = reason == Reason::Interrupt;
            actor.burst = burst;
        } else if actor.burst == 0 {
            (actor.woken, actor.burst) = (true, burst);
        } else if matches!(actor.state, State::Running(_)) {
            actor.heard = true;
            if std::mem::take(&mut actor.in_vain) {
                actor.burst = burst;
            }
        }
        let kicks = self.sched.wake_late(actor.id, now, due, reason);
        self.kick(kicks);
    }

    fn next_sibling(&self, index: usize) -> usize {
        let guest = self.actors[index].guest;
        let siblings = |at: &usize| self.actors[*at].guest == guest;
        let after = (index + 1..self.actors.len()).find(siblings);
        after.or_else(|| (0..=index).find(siblings)).unwrap_or(index)
    }

    /// The actor that runs on a CPU leaves it.
    fn stop(&mut self, cpu: usize) {
        let now = self.now;
        let Some(turn) = &mut self.cpus[cpu].running else { return };
        turn.left = now.max(turn.entered);
        let Turn { actor: index, left, entered, lost, .. } = *turn;
        let ran = (left - entered).saturating_sub(lost);
        let actor = &mut self.actors[index];
        actor.inside += ran;
        actor.burst = actor.burst.saturating_sub(ran);
        let work = actor.work;
        if actor.burst == 0 && !std::mem::take(&mut actor.in_vain) {
            let (sleep, whom) = match work {
                Work::Sleeper(_, sleep, _) => (1 + self.random(sleep), index),
                Work::Ticker(_, sleep) | Work::Alarm(_, sleep) | Work::Accomplice(_, sleep) => {
                    (sleep, index)
                }
                Work::Baton(_) => (0, self.next_sibling(index)),
                Work::Hog | Work::Spinner => (0, index),
            };
            if matches!(work, Work::Accomplice(..)) {
                self.wake(self.next_sibling(index), now);
            }
            if matches!(work, Work::Alarm(..) | Work::Accomplice(..)) {
                self.alarms.push((cpu, left + sleep, index));
            } else {
                self.at(left + sleep, What::Wake(whom));
            }
        }
        self.cpus[cpu].busy = true;
        self.cpus[cpu].epoch += 1;
        let saved = left - now + self.costs.save;
        if saved == 0 { self.saved(cpu) } else { self.at(now + saved, What::Saved(cpu)) }
    }

    fn saved(&mut self, cpu: usize) {
        let Some(turn) = self.cpus[cpu].running.take() else { return };
        self.book(turn.actor);
        let now = self.now;
        let actor = &mut self.actors[turn.actor];
        let ended = actor.burst == 0;
        if std::mem::take(&mut actor.heard) && ended {
            (actor.burst, actor.in_vain) = (1, true);
        }
        let blocked = actor.burst == 0;
        let halts = ended || std::mem::take(&mut actor.woken);
        actor.state = if blocked { State::Blocked } else { State::Ready };
        actor.ready_since = now;
        actor.by_interrupt = false;
        let stop = match actor.work {
            _ if halts => Stop::Blocked,
            Work::Spinner => Stop::Yielded,
            _ => Stop::Ready,
        };
        self.ring(cpu);
        let stay = Stay { entered: turn.entered, left: turn.left };
        let kicks = self.sched.stopped(cpu, now, stop, stay);
        self.kick(kicks);
        match self.costs.gap {
            0 => self.decide(cpu),
            gap => self.at(now + gap, What::Decide(cpu)),
        }
    }

    /// A CPU wakes those whose time has come.
    fn ring(&mut self, cpu: usize) {
        let now = self.now;
        while let Some(at) = self.alarms.iter().position(|&(on, due, _)| on == cpu && due <= now) {
            let (_, due, actor) = self.alarms.swap_remove(at);
            self.wake(actor, due);
        }
    }

    /// Looks for them at the next possible time.
    fn arm(&mut self, cpu: usize) {
        let epoch = self.cpus[cpu].epoch;
        let dues = self.alarms.iter().filter(|alarm| alarm.0 == cpu).map(|alarm| alarm.1);
        if let Some(due) = dues.min() {
            self.at(due.max(self.now), What::Alarm(cpu, epoch));
        }
    }

    /// A CPU leaves its guest to see whether anybody is to run instead.
    fn exit(&mut self, cpu: usize) {
        let exit = self.costs.exit;
        let Some(turn) = &mut self.cpus[cpu].running else {
            self.ring(cpu);
            return self.decide(cpu);
        };
        turn.lost += exit;
        let (first, epoch) = (!std::mem::replace(&mut turn.asked, true), self.cpus[cpu].epoch);
        if first && self.sched.is_hurried(cpu, self.now) {
            return self.stop(cpu);
        }
        self.ring(cpu);
        if self.cpus[cpu].epoch == epoch {
            self.arm(cpu);
        }
    }

    /// A turn's time is over, or what its actor had to do.
    fn due(&mut self, cpu: usize) {
        if let Some(Turn { actor, entered, until, lost, .. }) = self.cpus[cpu].running {
            let ends = (entered + lost).saturating_add(self.actors[actor].burst).min(until);
            if ends > self.now {
                // Exits have held it up.
                return self.at(ends, What::Due(cpu, self.cpus[cpu].epoch));
            }
        }
        self.look(cpu);
    }

    fn look(&mut self, cpu: usize) {
        if self.cpus[cpu].busy {
            return;
        }
        if self.cpus[cpu].running.is_some() { self.stop(cpu) } else { self.decide(cpu) }
    }

    fn decide(&mut self, cpu: usize) {
        self.ring(cpu);
        self.cpus[cpu].busy = false;
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
                self.arm(cpu);
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
            actor.latency = actor.latency.max(now - actor.due);
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
        let entered = now + self.costs.load;
        let mut end = (choice.until + late).max(entered).min(entered.saturating_add(burst));
        if spins {
            end = end.min(entered + 20 * MICRO);
        }
        let Choice { least, until, .. } = choice;
        self.cpus[cpu].running =
            Some(Turn { actor: index, entered, until, asked: false, lost: 0, left: 0 });
        self.at(end, What::Due(cpu, epoch));
        self.at(least.max(entered), What::Least(cpu, epoch));
    }

    /// Checks the rules that hold at any time.
    fn audit(&mut self) {
        let now = self.now;
        for guest in 0..self.parties.len() {
            let party = &self.parties[guest];
            let Some(cap) = party.settings.cap else { continue };
            let value = i128::from(self.service(guest) * 100) - i128::from(cap) * i128::from(now);
            let party = &mut self.parties[guest];
            party.least = party.least.min(value);
            let slices = u64::from(cap.div_ceil(100));
            // Each CPU that runs it may be late to stop.
            let most = slices * timing().slice_max + self.cpus.len() as u64 * LATE;
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
                let wasted = now - idle.max(actor.ready_since);
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
                What::Due(cpu, epoch) if self.cpus[cpu].epoch == epoch => self.due(cpu),
                What::Least(cpu, epoch) | What::Alarm(cpu, epoch)
                    if self.cpus[cpu].epoch == epoch =>
                {
                    self.exit(cpu);
                }
                What::Due(..) | What::Least(..) | What::Alarm(..) => {}
                What::Saved(cpu) => self.saved(cpu),
                What::Decide(cpu) => self.decide(cpu),
                What::Wake(actor) => self.wake(actor, when),
                What::Tick => self.at(when + MILLI / 2, What::Tick),
            }
        }
        self.now = self.now.max(end);
    }

    pub(super) fn run_for(&mut self, time: u64) {
        self.run_until(self.now + time);
    }

    /// Checks that the scheduler's books agree with the simulation's.
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
            let between = self.decisions * self.costs.gap;
            if sum > self.now - 1_000_000 || sum + between + MILLI < self.now - 1_000_000 {
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
