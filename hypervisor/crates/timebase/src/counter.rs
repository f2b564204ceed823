//! [`Counter`], a clock of known rate, and [`Sample`], one look at it.

use core::fmt;

/// A clock of known rate that PCs have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Source {
    /// Channel 2 of the interval timer.
    Pit,
    /// The power-management timer (ACPI: "Power Management Timer").
    PmTimer,
    /// The high-precision event timer (Intel: "IA-PC HPET Specification").
    Hpet,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Pit => "the PIT",
            Self::PmTimer => "the ACPI PM timer",
            Self::Hpet => "the HPET",
        })
    }
}

/// How a clock counts: upwards, in steps of `period` femtoseconds, modulo 2^`bits`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counter {
    /// The clock.
    pub source: Source,
    /// Femtoseconds from one count to the next, at least 1.
    period: u64,
    /// Bits of its value, 1 to 32.
    bits: u32,
}

impl Counter {
    /// The PIT: a twelfth of 14.31818 MHz, 16 bits. It counts down: a sample holds the
    /// complement of what was read.
    pub const PIT: Self = Self { source: Source::Pit, period: 838_095_345, bits: 16 };

    /// The power-management timer: a quarter of 14.31818 MHz.
    #[must_use]
    pub const fn pm_timer(width: PmWidth) -> Self {
        let bits = match width {
            PmWidth::Bits24 => 24,
            PmWidth::Bits32 => 32,
        };
        Self { source: Source::PmTimer, period: 279_365_115, bits }
    }

    /// The low 32 bits of an HPET whose capability register says that it counts every
    /// `period` femtoseconds; `None` where that can't be (HPET specification: "General
    /// Capabilities and ID Register": at most 100 ns, never 0).
    #[must_use]
    pub const fn hpet(period: u32) -> Option<Self> {
        match period {
            1..=100_000_000 => Some(Self { source: Source::Hpet, period: period as u64, bits: 32 }),
            _ => None,
        }
    }

    /// Femtoseconds from one count to the next.
    pub(crate) const fn period(self) -> u128 {
        self.period as u128
    }

    /// Number of counts after which it begins anew.
    pub(crate) const fn modulus(self) -> u64 {
        match self.bits {
            bits @ 1..=32 => 1 << bits,
            _ => 1 << 32,
        }
    }

    /// Counts from `start` to `end`, if it did not begin anew more than once.
    pub(crate) const fn counts(self, start: u64, end: u64) -> u64 {
        end.wrapping_sub(start) & self.modulus().wrapping_sub(1)
    }

    /// Femtoseconds from `start` to `end`, if it did not begin anew more than once.
    #[must_use]
    pub fn elapsed(self, start: u64, end: u64) -> u64 {
        self.counts(start, end).saturating_mul(self.period)
    }
}

/// How wide a power-management timer is (ACPI: "Fixed ACPI Description Table (FADT)",
/// TMR_VAL_EXT).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PmWidth {
    /// 24 bits.
    Bits24,
    /// 32 bits.
    Bits32,
}

/// One look at a counter, between two reads of the TSC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sample {
    /// The TSC before.
    pub before: u64,
    /// Value of the counter.
    pub count: u64,
    /// The TSC afterwards.
    pub after: u64,
}

impl Sample {
    /// Ticks between the two reads: the moment is known no better.
    #[must_use]
    pub(crate) const fn width(self) -> u64 {
        self.after.saturating_sub(self.before)
    }
}

/// The most times that a sample is taken again.
const TRIES: usize = 16;

/// A sample by `take`, taken again until it is at most `enough` ticks wide; the narrowest
/// where none is.
pub fn best_sample(enough: u64, mut take: impl FnMut() -> Sample) -> Sample {
    let mut best = take();
    for _ in 1..TRIES {
        if best.width() <= enough {
            break;
        }
        let next = take();
        if next.width() < best.width() {
            best = next;
        }
    }
    best
}
