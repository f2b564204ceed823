//! Times that the scheduler keeps of its CPUs and entities.

/// How an entity spent its life, in ticks. `run`, `ready`, `wait` and `paused`
/// add up to the time since it was added.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EntityTimes {
    /// On a CPU.
    pub run: u64,
    /// Ready, but without a CPU: taken by others, or by its own cap. This is
    /// the steal time.
    pub ready: u64,
    /// Blocked.
    pub wait: u64,
    /// Ready, in a paused guest.
    pub paused: u64,
    /// The longest that it has been ready before it got a CPU.
    pub longest_ready: u64,
    /// How often it changed its CPU.
    pub migrations: u64,
}

/// How a guest's entities spent their time together, in ticks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GuestTimes {
    /// On a CPU: the sum of its entities that are there.
    pub run: u64,
    /// How long at least one of them could not run because of the cap.
    pub throttled: u64,
}

/// How a CPU spent its time, in ticks. Neither counts what passes between
/// [`stopped`](crate::Scheduler::stopped) and [`next`](crate::Scheduler::next).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CpuTimes {
    /// Running entities.
    pub busy: u64,
    /// Idle.
    pub idle: u64,
}
