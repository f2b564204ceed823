//! [`Ticks`], the time base of local-APIC timers, and [`TickRatio`], which
//! converts it to nanoseconds.

use serde::{Deserialize, Serialize};

/// A point in a VM's time, counted at the rate of the time-stamp counter since
/// the VM was started. It only grows: a guest that writes its TSC changes its
/// offset to these ticks, not the ticks.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
#[repr(transparent)]
pub struct Ticks(pub u64);

impl Ticks {
    /// Later than everything that happens: a timer that is not armed.
    pub(crate) const NEVER: Self = Self(u64::MAX);
}

/// Kilohertz in a gigahertz: ticks of a TSC of `n` kHz pass at n / this per nanosecond.
const KHZ_PER_GHZ: u64 = 1_000_000;

/// A factor as a 64-bit fraction with its highest bit set: value × 2^-shift.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Scale {
    multiplier: u64,
    shift: u32,
}

impl Scale {
    /// The factor numerator / denominator, to within one part in 2^63.
    /// Both must be in 1..2^40.
    const fn new(numerator: u64, denominator: u64) -> Self {
        let mut shift = 0;
        let mut scaled = numerator as u128;
        // Bounded: a numerator of one and a denominator of 2^40 take 103 steps.
        while scaled / (denominator as u128) < 1 << 63 {
            scaled <<= 1;
            shift += 1;
        }
        let quotient = scaled / (denominator as u128);
        #[expect(clippy::cast_possible_truncation, reason = "the quotient is below 2^64")]
        let multiplier = quotient as u64;
        Self { multiplier, shift }
    }

    #[inline]
    fn apply(self, value: u64) -> u64 {
        let product = (u128::from(value) * u128::from(self.multiplier)) >> self.shift;
        u64::try_from(product).unwrap_or(u64::MAX)
    }
}

/// Converts [`Ticks`] to nanoseconds and back, with multiplications only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TickRatio {
    to_ns: Scale,
    to_ticks: Scale,
}

impl TickRatio {
    /// For a time-stamp counter of `khz` kilohertz. Frequencies from 1 kHz to
    /// 100 GHz are honoured, others taken as the nearest of these.
    #[must_use]
    pub const fn from_khz(khz: u64) -> Self {
        let khz = if khz == 0 {
            1
        } else if khz > 100_000_000 {
            100_000_000
        } else {
            khz
        };
        Self { to_ns: Scale::new(KHZ_PER_GHZ, khz), to_ticks: Scale::new(khz, KHZ_PER_GHZ) }
    }

    /// The nanosecond that `ticks` lie in, at most 1 ns early; saturates.
    #[inline]
    #[must_use]
    pub(super) fn to_nanos(self, ticks: Ticks) -> u64 {
        self.to_ns.apply(ticks.0)
    }

    /// The first tick that [`to_nanos`](Self::to_nanos) puts at `nanos` or
    /// later; [`Ticks::NEVER`] where there is none.
    #[inline]
    #[must_use]
    pub(super) fn to_ticks(self, nanos: u64) -> Ticks {
        let mut ticks = self.to_ticks.apply(nanos);
        // Both factors are rounded down, so the guess is at most a few ticks
        // early, and never late.
        while ticks != u64::MAX && self.to_ns.apply(ticks) < nanos {
            ticks += 1;
        }
        Ticks(ticks)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn whole_frequencies_are_exact() {
        let ratio = TickRatio::from_khz(1_000_000);
        assert_eq!(ratio.to_nanos(Ticks(86_400_000_000_000)), 86_400_000_000_000);
        assert_eq!(ratio.to_ticks(17), Ticks(17));
        let ratio = TickRatio::from_khz(2_000_000);
        assert_eq!(ratio.to_nanos(Ticks(3_600 * 2_000_000_000)), 3_600_000_000_000);
        assert_eq!(ratio.to_ticks(10), Ticks(20));
    }

    #[test]
    fn ends_saturate() {
        let ratio = TickRatio::from_khz(500_000);
        assert_eq!(ratio.to_nanos(Ticks::NEVER), u64::MAX);
        assert_eq!(TickRatio::from_khz(3_000_000).to_ticks(u64::MAX), Ticks::NEVER);
        assert_eq!(TickRatio::from_khz(0), TickRatio::from_khz(1));
    }

    proptest! {
        #[test]
        fn within_a_nanosecond_over_days(khz in 1_000_u64..10_000_000, millis in 0_u64..1_000_000_000) {
            let ticks = millis * khz + millis % khz;
            let exact = u128::from(ticks) * 1_000_000 / u128::from(khz);
            let got = u128::from(TickRatio::from_khz(khz).to_nanos(Ticks(ticks)));
            prop_assert!(got <= exact && exact - got <= 1, "{got} for {exact}");
        }

        #[test]
        fn to_ticks_is_the_first_tick(khz in 1_000_u64..10_000_000, nanos in 1_u64..1 << 55) {
            let ratio = TickRatio::from_khz(khz);
            let ticks = ratio.to_ticks(nanos);
            prop_assert!(ratio.to_nanos(ticks) >= nanos);
            prop_assert!(ratio.to_nanos(Ticks(ticks.0 - 1)) < nanos);
        }
    }
}
