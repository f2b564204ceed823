//! Types for what the scheduler is told and what it answers.

use crate::slots::Key;
use config::limits::{DEFAULT_WEIGHT, MAX_CAP, MAX_WEIGHT, MIN_WEIGHT};
use config::{CpuSet, GuestSettings};
use x86defs::time::TscFrequency;

/// A guest, or another party among which CPU time is shared (the operator).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GuestId(pub(crate) Key);

/// A vCPU or a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EntityId(pub(crate) Key);

impl EntityId {
    /// The number of its place among all entities, counted from 0. Another entity may have it later.
    #[must_use]
    pub const fn place(self) -> usize {
        self.0.index()
    }
}

/// A guest's part of the CPUs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    /// Part of the CPUs in proportion to the others' weights: [`MIN_WEIGHT`] to
    /// [`MAX_WEIGHT`]. All runnable entities of the guest share it.
    pub weight: u32,
    /// The most that all its entities get together, in percent of one CPU (150
    /// is one CPU and a half): 1 to [`MAX_CAP`]. `None`: no limit.
    pub cap: Option<u32>,
    /// Part that comes before all others', in percent of one CPU: 0 to 50. For the
    /// operator; guests have 0.
    pub reserve: u32,
}

impl Default for Share {
    fn default() -> Self {
        Self { weight: DEFAULT_WEIGHT, cap: None, reserve: 0 }
    }
}

/// Kind of an entity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A vCPU: runs in slices.
    Vcpu,
    /// A service: runs in steps of at most 50 µs, charged to the guest that it
    /// serves.
    Service,
}

/// Why an entity can run again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    /// Anything that is in no hurry.
    Other,
    /// An interrupt: it is to run soon, if its guest is within its share.
    Interrupt,
}

/// Part of a turn that was the entity's own: the rest, its switches, is charged to
/// whoever caused them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stay {
    /// Time at which it first ran, loaded; 0 if it never did.
    pub entered: u64,
    /// Time at which it last ran, before it was saved; 0: there is nothing to save.
    pub left: u64,
}

/// The entity that a CPU runs next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Choice {
    /// The entity.
    pub id: EntityId,
    /// The entity runs until this tick at the latest: the scheduler's part in the
    /// CPU's one deadline.
    pub until: u64,
    /// Until this tick nobody that wakes takes the CPU from it: the CPU need not look
    /// who wakes. Then it asks [`is_hurried`](crate::Scheduler::is_hurried), once.
    pub least: u64,
    /// For how many ticks in all it has been ready without a CPU: the
    /// paravirtual steal time.
    pub steal: u64,
}

/// Decision on what a CPU does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// The CPU runs an entity.
    Run(Choice),
    /// The CPU halts, until it is kicked or this tick comes.
    Idle {
        /// Time at which a guest's cap lets it run again.
        until: Option<u64>,
    },
}

/// CPUs that must look again: each calls [`stopped`](crate::Scheduler::stopped)
/// with [`Stop::Ready`](service::Stop::Ready) if it runs something, and then
/// [`next`](crate::Scheduler::next).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[must_use = "these CPUs have to be kicked"]
pub struct Kicks(pub CpuSet);

/// Requests that the scheduler refuses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SchedError {
    /// The guest is not, or no longer, there.
    #[error("no such guest in the scheduler")]
    NoGuest,
    /// The entity is not, or no longer, there.
    #[error("no such vCPU or service in the scheduler")]
    NoEntity,
    /// A weight out of range.
    #[error("weight {0}: must be {MIN_WEIGHT} to {MAX_WEIGHT}")]
    Weight(u32),
    /// A cap out of range.
    #[error("cap of {0} %: must be 1 to {MAX_CAP} percent of one CPU")]
    Cap(u32),
    /// A reserve out of range.
    #[error("reserve of {0} %: must be 0 to 50 percent of one CPU")]
    Reserve(u32),
    /// An affinity set without any of the machine's CPUs.
    #[error("affinity {0:?}: this machine has the CPUs 0 to {1}")]
    Affinity(CpuSet, usize),
    /// No memory for another guest or entity.
    #[error("no memory left for another vCPU or service")]
    NoMemory,
}

impl Share {
    /// The share of a guest with these settings.
    #[must_use]
    pub const fn of(settings: &GuestSettings) -> Self {
        Self { weight: settings.weight, cap: settings.cap, reserve: 0 }
    }

    pub(crate) const fn check(self) -> Result<Self, SchedError> {
        if self.weight < MIN_WEIGHT || self.weight > MAX_WEIGHT {
            return Err(SchedError::Weight(self.weight));
        }
        if let Some(cap) = self.cap
            && (cap == 0 || cap > MAX_CAP)
        {
            return Err(SchedError::Cap(cap));
        }
        if self.reserve > 50 {
            return Err(SchedError::Reserve(self.reserve));
        }
        Ok(self)
    }
}

/// The scheduler's times, in ticks of the TSC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// All vCPUs of a CPU together are to have had a slice in this time: 12 ms.
    pub(crate) round: u64,
    /// The shortest slice of a vCPU: 0.5 ms.
    pub(crate) slice_min: u64,
    /// The longest slice of a vCPU: 4 ms.
    pub(crate) slice_max: u64,
    /// Step of a service: 50 µs.
    pub(crate) step: u64,
    /// Time that an entity that an interrupt woke may run ahead of its turn: 200 µs.
    pub(crate) boost: u64,
    /// Time that a vCPU runs at least before another one's wake-up stops it: 100 µs.
    pub(crate) least: u64,
    /// A capped guest with less than this in its budget waits until it has twice as
    /// much: 0.5 ms.
    pub(crate) grant: u64,
    /// Time between two looks at the balance of the CPUs: 5 ms.
    pub(crate) frame: u64,
}

impl Timing {
    /// The times on a machine whose TSC counts at `frequency`.
    #[must_use]
    pub const fn new(frequency: TscFrequency) -> Self {
        // kHz are ticks in a millisecond.
        let khz = frequency.khz();
        Self {
            round: 12 * khz,
            slice_min: khz / 2,
            slice_max: 4 * khz,
            step: khz / 20,
            boost: khz / 5,
            least: khz / 10,
            grant: khz / 2,
            frame: 5 * khz,
        }
    }
}
