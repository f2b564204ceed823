//! Clocks that tick at a fixed rate in the guest's time.
//!
//! Ticks are always counted from the start of time, so that rounding never
//! adds up.

use x86defs::time::{NANOS_PER_SECOND, Nanos};

/// A clock of `hertz` ticks a second.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    hertz: u32,
}

impl Clock {
    pub(crate) const fn new(hertz: u32) -> Self {
        Self { hertz }
    }

    /// Ticks that have passed at `now`.
    pub(crate) fn ticks(self, now: Nanos) -> u64 {
        let ticks = u128::from(now.0) * u128::from(self.hertz) / u128::from(NANOS_PER_SECOND);
        u64::try_from(ticks).unwrap_or(u64::MAX)
    }

    /// The first moment at which `ticks` have passed.
    pub(crate) fn when(self, ticks: u64) -> Nanos {
        let nanos = u128::from(ticks) * u128::from(NANOS_PER_SECOND);
        Nanos(u64::try_from(nanos.div_ceil(u128::from(self.hertz))).unwrap_or(u64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_tick_comes_exactly_when_it_is_due(hertz in 1_u32..1_000_000_000, n in 0_u64..1 << 40) {
            let clock = Clock::new(hertz);
            let due = clock.when(n);
            prop_assume!(due.0 < u64::MAX);
            prop_assert!(clock.ticks(due) >= n);
            prop_assert!(n == 0 || clock.ticks(Nanos(due.0 - 1)) < n);
        }
    }

    #[test]
    fn no_drift_in_a_century() {
        let clock = Clock::new(3_579_545);
        let century = 100 * 365 * 86_400;
        assert_eq!(clock.ticks(Nanos(century * NANOS_PER_SECOND)), century * 3_579_545);
    }
}
