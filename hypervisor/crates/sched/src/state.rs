//! State that the scheduler keeps of guests, entities and CPUs.

use crate::budget::Budget;
use crate::settings::{Kind, Reason, Share};
use crate::times::EntityTimes;
use alloc::vec::Vec;
use config::CpuSet;

/// The correction of a guest's weight that leaves it as it is.
pub(crate) const PULL: u32 = 1 << 8;

/// A guest on one CPU: what takes part in that CPU's sharing.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Cell {
    /// Virtual time of the guest: service received here, per unit of weight.
    pub(crate) v: i128,
    /// While it sleeps: ticks of service that it is owed here, and since when. 0 if it
    /// owes.
    pub(crate) credit: u64,
    pub(crate) left: u64,
    /// Weight of the guest here; while it sleeps and owes, the one that it had. The distance
    /// from the CPU's virtual time, times this, is the guest's lag in ticks.
    pub(crate) weight: u64,
    /// Number of its runnable entities here, the running one included.
    pub(crate) n: u32,
    /// It takes part in the CPU's virtual time: it has something runnable, or it
    /// sleeps and owes or is owed.
    pub(crate) active: bool,
    /// Place of the guest in the CPU's list of active guests, while it is one.
    pub(crate) at: usize,
    /// Out of the competition: its cap is used up.
    pub(crate) parked: bool,
    /// Time at which its cap let it in again.
    pub(crate) released: u64,
    /// The start of the last turn that an entity of it had here, on the
    /// entities' own line of service: those that come join here.
    pub(crate) floor: u64,
    /// The entity whose turn it is, while a CPU decides.
    pub(crate) candidate: Option<Candidate>,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Candidate {
    pub(crate) entity: u32,
    pub(crate) kind: Kind,
    pub(crate) v: u64,
    pub(crate) ready_since: u64,
}

#[derive(Debug)]
pub(crate) struct Guest {
    pub(crate) settings: Share,
    pub(crate) cap: Option<Budget>,
    pub(crate) reserve: Option<Budget>,
    pub(crate) paused: bool,
    /// The guest goes when its last entity does.
    pub(crate) leaving: bool,
    /// Number of its entities.
    pub(crate) entities: usize,
    /// Number of its runnable entities, running ones included.
    pub(crate) n: u32,
    /// CPUs that run an entity of it.
    pub(crate) running: CpuSet,
    /// Parts in the sharing of each CPU, by CPU.
    pub(crate) cells: Vec<Cell>,
    pub(crate) throttled: u64,
    pub(crate) throttled_since: Option<u64>,
    /// For the balance: runnable time in the frame, and the rate it is due
    /// (CPUs times [`crate::balance::ONE`]).
    pub(crate) runnable: u64,
    pub(crate) rate: Option<u64>,
    /// Service in the frame, and service that it is owed from all frames.
    pub(crate) got: u64,
    pub(crate) lag: i64,
    /// Sum of its entities' pressures in the frame, and of those above 0 alone.
    pub(crate) pressure: i64,
    pub(crate) positive: u64,
    /// The correction of its weight that follows, in parts of
    /// [`PULL`].
    pub(crate) pull: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// Blocked, or its guest is paused.
    Off,
    /// Waits for this CPU.
    Queued(usize),
    /// Runs on this CPU.
    Running(usize),
}

#[derive(Debug)]
pub(crate) struct Entity {
    pub(crate) guest: u32,
    pub(crate) kind: Kind,
    pub(crate) allowed: CpuSet,
    /// CPU on which it runs, or queues when it next can.
    pub(crate) home: usize,
    pub(crate) place: Place,
    /// It is runnable but for its guest's pause.
    pub(crate) wants: bool,
    /// It was woken while it ran.
    pub(crate) woken: Option<Reason>,
    /// It may run ahead of its turn, as long as its guest does not get beyond
    /// this virtual time, or has not had more than its share.
    pub(crate) boosted: Option<i128>,
    pub(crate) leaving: bool,
    /// Service received, on a line that its siblings on the same CPU share.
    pub(crate) v: u64,
    /// Place in the CPU's list of waiting entities.
    pub(crate) at: usize,
    pub(crate) ready_since: u64,
    pub(crate) since: u64,
    pub(crate) times: EntityTimes,
    /// For the balance: where `times` stood at the frame's begin, what it is
    /// owed, and how much of a CPU it should get.
    pub(crate) frame: (u64, u64),
    pub(crate) lag: i64,
    pub(crate) pressure: u64,
}

impl Entity {
    /// Counts the time since the last call by what the entity did.
    pub(crate) fn account(&mut self, now: u64) {
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

/// A turn of an entity on a CPU.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Current {
    pub(crate) entity: u32,
    pub(crate) guest: u32,
    pub(crate) since: u64,
    pub(crate) until: u64,
    /// No wake-up takes the CPU from it before this.
    pub(crate) least: u64,
    /// Tick from which its guest is charged, and tick up to which it is by now. The first
    /// is before `since` if it displaced another, and behind if that one paid for the switch.
    pub(crate) from: u64,
    pub(crate) charged: u64,
    /// Tick at which the turn before had stopped; 0 if the CPU was idle.
    pub(crate) after: u64,
    /// The turn ends soon by itself: not worth a kick.
    pub(crate) short: bool,
}

#[derive(Debug, Default)]
pub(crate) struct Cpu {
    pub(crate) current: Option<Current>,
    /// Waiting entities, in no order.
    pub(crate) queued: Vec<u32>,
    /// Guests that take part in its virtual time, in no order.
    pub(crate) active: Vec<u32>,
    /// Virtual time of the CPU when it was last computed.
    pub(crate) v: i128,
    /// An entity waits for which the running one is to stop as soon as it has had its
    /// least.
    pub(crate) hurry: bool,
    /// Between two turns: from when on the next one is charged, and when the last
    /// one stopped. Both 0 after the CPU was idle.
    pub(crate) from: u64,
    pub(crate) vacated: u64,
    /// The last turn had to end for the next one.
    pub(crate) displaced: bool,
    /// Ticks from one turn's end until another guest runs, on average.
    pub(crate) change: u64,
    pub(crate) idle_since: Option<u64>,
    pub(crate) idle: u64,
    pub(crate) busy: u64,
}
