//! What the scheduler keeps of guests, entities and CPUs.

use super::budget::Budget;
use super::cpuset::CpuSet;
use super::settings::{GuestSettings, Kind, Reason};
use super::stats::EntityTimes;
use alloc::vec::Vec;

/// A guest on one CPU: what takes part in that CPU's sharing.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Cell {
    /// Its virtual time: service received here, per unit of weight.
    pub(super) v: i128,
    /// While it sleeps: ticks of service that it is owed here, and since when. 0 if it
    /// owes.
    pub(super) credit: u64,
    pub(super) left: u64,
    /// Weight of the guest here; while it sleeps and owes, the one that it had. Its lag in
    /// ticks is how far it is from the CPU's virtual time, times this.
    pub(super) weight: u64,
    /// Its runnable entities here, the running one included.
    pub(super) n: u32,
    /// It takes part in the CPU's virtual time: it has something runnable, or it
    /// sleeps and owes or is owed.
    pub(super) active: bool,
    /// Place of the guest in the CPU's list of active guests, while it is one.
    pub(super) at: usize,
    /// Out of the competition: its cap is used up.
    pub(super) parked: bool,
    /// When its cap let it in again.
    pub(super) released: u64,
    /// The start of the last turn that an entity of it had here, on the
    /// entities' own line of service: those that come join here.
    pub(super) floor: u64,
    /// The entity whose turn it is, while a CPU decides.
    pub(super) candidate: Option<Candidate>,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Candidate {
    pub(super) entity: u32,
    pub(super) kind: Kind,
    pub(super) v: u64,
    pub(super) ready_since: u64,
}

#[derive(Debug)]
pub(super) struct Guest {
    pub(super) settings: GuestSettings,
    pub(super) cap: Option<Budget>,
    pub(super) reserve: Option<Budget>,
    pub(super) paused: bool,
    /// It goes when its last entity does.
    pub(super) leaving: bool,
    /// Its entities.
    pub(super) entities: usize,
    /// The runnable ones, running ones included.
    pub(super) n: u32,
    /// CPUs that run one.
    pub(super) running: CpuSet,
    /// By CPU.
    pub(super) cells: Vec<Cell>,
    pub(super) throttled: u64,
    pub(super) throttled_since: Option<u64>,
    /// For the balance: runnable time in the frame, and the rate it is due
    /// (CPUs times [`super::balance::ONE`]).
    pub(super) runnable: u64,
    pub(super) rate: Option<u64>,
    /// What it got in the frame, and what it is owed from all frames.
    pub(super) got: u64,
    pub(super) lag: i64,
    /// The correction of its weight that follows, in parts of
    /// [`super::queue::PULL`].
    pub(super) pull: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// Blocked, or its guest is paused.
    Off,
    /// Waits for this CPU.
    Queued(usize),
    /// Runs on this CPU.
    Running(usize),
}

#[derive(Debug)]
pub(super) struct Entity {
    pub(super) guest: u32,
    pub(super) kind: Kind,
    pub(super) allowed: CpuSet,
    /// Where it runs, or queues when it next can.
    pub(super) home: usize,
    pub(super) place: Place,
    /// It is runnable but for its guest's pause.
    pub(super) wants: bool,
    /// It was woken while it ran.
    pub(super) woken: Option<Reason>,
    /// It may run ahead of its turn, as long as its guest does not get beyond
    /// this virtual time, or has not had more than its share.
    pub(super) boosted: Option<i128>,
    pub(super) leaving: bool,
    /// Service received, on a line that its siblings on the same CPU share.
    pub(super) v: u64,
    /// Its place in the CPU's list of waiting entities.
    pub(super) at: usize,
    pub(super) ready_since: u64,
    pub(super) since: u64,
    pub(super) times: EntityTimes,
    /// For the balance: where `times` stood at the frame's begin, what it is
    /// owed, and how much of a CPU it should get.
    pub(super) frame: (u64, u64),
    pub(super) lag: i64,
    pub(super) pressure: u64,
}

impl Entity {
    /// Counts the time since the last call by what the entity did.
    pub(super) fn account(&mut self, now: u64) {
        let elapsed = now.saturating_sub(self.since);
        self.since = now;
        let times = &mut self.times;
        let total = match self.place {
            Place::Running(_) => &mut times.run,
            Place::Queued(_) => &mut times.ready,
            Place::Off if self.wants => &mut times.paused,
            Place::Off => &mut times.wait,
        };
        *total = total.saturating_add(elapsed);
    }
}

/// What a CPU runs.
#[derive(Clone, Copy, Debug)]
pub(super) struct Current {
    pub(super) entity: u32,
    pub(super) guest: u32,
    pub(super) since: u64,
    pub(super) until: u64,
    /// No wake-up takes the CPU from it before this.
    pub(super) least: u64,
    /// Ticks from which its guest is charged, and up to which it is by now. The first is
    /// before `since` if it displaced another, and behind if that one paid for the switch.
    pub(super) from: u64,
    pub(super) charged: u64,
    /// When the one before it had stopped; 0 if the CPU was idle.
    pub(super) after: u64,
    /// It ends soon by itself: not worth a kick.
    pub(super) short: bool,
}

#[derive(Debug, Default)]
pub(super) struct Cpu {
    pub(super) current: Option<Current>,
    /// Waiting entities, in no order.
    pub(super) queued: Vec<u32>,
    /// Guests that take part in its virtual time, in no order.
    pub(super) active: Vec<u32>,
    /// Its virtual time when it was last computed.
    pub(super) v: i128,
    /// Somebody waits for whom the running one is to stop as soon as it has had its
    /// least.
    pub(super) hurry: bool,
    /// Between two turns: from when on the next one is charged, and when the last
    /// one stopped. Both 0 after the CPU was idle.
    pub(super) from: u64,
    pub(super) vacated: u64,
    /// The last one had to leave for the next one.
    pub(super) displaced: bool,
    /// Ticks from one turn's end until another guest runs, on average.
    pub(super) change: u64,
    pub(super) idle_since: Option<u64>,
    pub(super) idle: u64,
    pub(super) busy: u64,
}
