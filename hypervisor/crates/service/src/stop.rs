//! Why work stopped.

/// Why a CPU stopped running an entity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// The time was up, or the CPU was told to look again: it could go on.
    Ready,
    /// It waits (HLT; no work), until somebody wakes it.
    Blocked,
    /// It spins (pause-loop exiting): its siblings on this CPU first.
    Yielded,
}
