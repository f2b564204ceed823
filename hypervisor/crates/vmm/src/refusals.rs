//! Instructions on device memory that programs of a guest were refused: which of them are told.

use core::sync::atomic::{AtomicU64, Ordering};
use x86defs::time::Nanos;

/// Time from one that is told to the next, in nanoseconds.
const SECOND: u64 = 1_000_000_000;

/// Instructions that a guest's programs were refused. All of a guest's vCPUs share it.
#[derive(Debug, Default)]
pub struct Refusals {
    /// The guest's time from which the next may be told.
    next: AtomicU64,
    /// Those that were not told since the last that was.
    untold: AtomicU64,
}

impl Refusals {
    /// Notes one at the guest's time `now`: if it is to be told, how many were not since the last.
    pub fn note(&self, now: Nanos) -> Option<u64> {
        let next = self.next.load(Ordering::Relaxed);
        let due = now.0 >= next
            && self
                .next
                .compare_exchange(
                    next,
                    now.0.saturating_add(SECOND),
                    Ordering::Relaxed,
                    Ordering::Relaxed,
                )
                .is_ok();
        if due {
            return Some(self.untold.swap(0, Ordering::Relaxed));
        }
        self.untold.fetch_add(1, Ordering::Relaxed);
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_a_second() {
        let refusals = Refusals::default();
        let told: alloc::vec::Vec<_> = [5, 6, SECOND, SECOND + 5, SECOND + 6, 3 * SECOND]
            .into_iter()
            .map(|now| refusals.note(Nanos(now)))
            .collect();
        assert_eq!(told, [Some(0), None, None, Some(2), None, Some(1)]);
    }
}
