//! [`Rate`]: a frequency that is known within bounds.

/// Ticks in a second: at least `low`, at most `high`. Neither is 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    low: u64,
    high: u64,
}

/// Parts in a million.
const MILLION: u128 = 1_000_000;

impl Rate {
    /// The rate from `low` to `high` Hz; `None` where that is nothing.
    #[must_use]
    pub(crate) const fn new(low: u64, high: u64) -> Option<Self> {
        if low == 0 || low > high { None } else { Some(Self { low, high }) }
    }

    /// The least that it may be, in Hz.
    #[must_use]
    pub(crate) const fn low(self) -> u64 {
        self.low
    }

    /// The most that it may be, in Hz.
    #[must_use]
    pub(crate) const fn high(self) -> u64 {
        self.high
    }

    /// The middle, in Hz.
    #[must_use]
    pub const fn middle(self) -> u64 {
        self.low.midpoint(self.high)
    }

    /// Whether it may be `hz`.
    #[must_use]
    pub(crate) const fn contains(self, hz: u64) -> bool {
        self.low <= hz && hz <= self.high
    }

    /// How far the bounds are from the middle, in parts per million, rounded up.
    #[must_use]
    pub fn spread_ppm(self) -> u64 {
        ppm(self.high.saturating_sub(self.low).div_ceil(2), self.middle())
    }

    /// How far the middle is from `hz`, in parts per million, rounded up.
    #[must_use]
    pub(crate) fn apart_ppm(self, hz: u64) -> u64 {
        ppm(self.middle().abs_diff(hz), self.middle())
    }

    /// Rates that both this and `other` allow; `None` if there are none.
    #[must_use]
    pub(crate) fn meet(self, other: Self) -> Option<Self> {
        Self::new(self.low.max(other.low), self.high.min(other.high))
    }
}

fn ppm(part: u64, of: u64) -> u64 {
    let ppm = u128::from(part).saturating_mul(MILLION).div_ceil(u128::from(of).max(1));
    u64::try_from(ppm).unwrap_or(u64::MAX)
}
