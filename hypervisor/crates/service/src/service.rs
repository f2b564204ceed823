//! Services.

use crate::Stop;

/// Work that the scheduler runs beside vCPUs, in steps that never wait.
pub trait Service: Send + Sync {
    /// Name of the service, for whoever asks what a CPU runs.
    fn name(&self) -> &str;

    /// Does a part of the work, and ends soon after the tick `until`. One CPU at a time calls
    /// this.
    fn step(&self, until: u64) -> Stop;

    /// Ticks for which it may be left alone once it is [blocked](Stop::Blocked): then it is run
    /// again though nobody has woken it. `None`: until somebody does.
    fn rest(&self) -> Option<u64>;
}
