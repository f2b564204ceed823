//! Units of time: nanoseconds, the frequency of a time-stamp counter, and the way from
//! ticks to nanoseconds.

use serde::{Deserialize, Serialize};

/// A point in a guest's time, in nanoseconds since the guest was started.
/// It stands still while the guest is paused.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[repr(transparent)]
pub struct Nanos(pub u64);

/// Nanoseconds in a second.
pub const NANOS_PER_SECOND: u64 = 1_000_000_000;

/// How fast a TSC counts: 1 MHz to 1 THz, in whole kHz.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "u64", into = "u64")]
pub struct TscFrequency {
    khz: u64,
}

impl TscFrequency {
    /// A frequency in kHz, if it is 1 MHz to 1 THz.
    #[must_use]
    pub const fn from_khz(khz: u64) -> Option<Self> {
        match khz {
            1_000..=1_000_000_000 => Some(Self { khz }),
            _ => None,
        }
    }

    /// The frequency in kHz.
    #[must_use]
    pub const fn khz(self) -> u64 {
        self.khz
    }

    /// The frequency in Hz.
    #[must_use]
    pub const fn hz(self) -> u64 {
        self.khz * 1000
    }
}

impl TryFrom<u64> for TscFrequency {
    type Error = &'static str;

    fn try_from(khz: u64) -> Result<Self, Self::Error> {
        Self::from_khz(khz).ok_or("a TSC counts 1 MHz to 1 THz")
    }
}

impl From<TscFrequency> for u64 {
    fn from(frequency: TscFrequency) -> Self {
        frequency.khz
    }
}

/// Ticks to nanoseconds as kvmclock does it: shift, then multiply by a
/// fraction of 32 bits, rounding down.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Scale {
    /// The fraction, in units of 2^-32; its highest bit is set.
    pub multiplier: u32,
    /// Bits by which ticks are shifted first: to the left where positive.
    pub shift: i8,
}

impl Scale {
    /// The scale for a TSC of this frequency, off by less than 1 in 2^32.
    #[must_use]
    pub fn new(frequency: TscFrequency) -> Self {
        let hz = u128::from(frequency.hz());
        let second = u128::from(NANOS_PER_SECOND);
        // multiplier * 2^shift / 2^32 = second / hz, with the multiplier in
        // [2^31, 2^32). Frequencies of 1 MHz to 1 THz need shifts of -9 to 10.
        (-32i8..32)
            .find_map(|shift| {
                let exponent = u32::try_from(32 - i32::from(shift)).ok()?;
                let multiplier = (second << exponent).checked_add(hz / 2)?.checked_div(hz)?;
                let multiplier = u32::try_from(multiplier).ok()?;
                (multiplier >> 31 != 0).then_some(Self { multiplier, shift })
            })
            .unwrap_or(Self { multiplier: 1 << 31, shift: 1 })
    }

    /// `ticks` in nanoseconds, rounded down.
    #[inline]
    #[must_use]
    pub fn nanos(self, ticks: u64) -> u64 {
        let ticks = u128::from(ticks);
        let shifted = if self.shift < 0 {
            ticks >> self.shift.unsigned_abs()
        } else {
            ticks << self.shift.unsigned_abs()
        };
        let nanos = shifted.wrapping_mul(self.multiplier.into()) >> 32;
        u64::try_from(nanos).unwrap_or(u64::MAX)
    }

    /// The first tick at which at least `nanos` nanoseconds have passed.
    #[inline]
    #[must_use]
    pub fn ticks(self, nanos: u64) -> u64 {
        let shifted = (u128::from(nanos) << 32).div_ceil(self.multiplier.max(1).into());
        let shift = u32::from(self.shift.unsigned_abs());
        let ticks =
            if self.shift < 0 { shifted << shift } else { shifted.div_ceil(1u128 << shift) };
        u64::try_from(ticks).unwrap_or(u64::MAX)
    }
}
