//! Why work stopped.

/// Why a CPU stopped running an entity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// The time was up, or the CPU was told to look again: the entity could go on.
    Ready,
    /// The entity waits (HLT; no work), until somebody wakes it.
    Blocked,
    /// The entity spins (pause-loop exiting): its siblings on this CPU go first.
    Yielded,
}
