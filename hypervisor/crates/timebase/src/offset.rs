//! [`Offset`]: how far apart the TSCs of two CPUs are.
//!
//! One CPU notes its TSC and sends a message, the other answers with its own TSC, and the
//! first notes when the answer came. Messages take time, so on the sender's clock the answer
//! was given after the question and before its arrival: this bounds the difference from both
//! sides, and the quickest exchanges bound it best. A difference that is less than what the
//! quickest exchange took can't be told from none, so a [`Standing`] says how wide that was
//! where it was not narrow.

/// How well the difference must be known before two TSCs count as alike, in microseconds. A CPU
/// takes longer than that to hand anything to another that could tell.
pub(crate) const GOOD_US: u64 = 20;

/// Difference of two TSCs in ticks, within bounds: the other CPU's less the asking one's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offset {
    low: i64,
    high: i64,
}

/// Relation of two TSCs to each other, by an [`Offset`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// The two show the same, within 20 µs.
    Together,
    /// The two may show the same, or be apart by as much as so many ticks: no exchange was quick.
    Unseen(u64),
    /// The other one shows about so many ticks more (less where negative).
    Apart(i64),
    /// The difference changes: they do not run evenly.
    Uneven,
}

/// Verdict of the TSC_ADJUST registers of two CPUs (SDM: "Time-Stamp Counter Adjustment").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Adjustments {
    /// They are the same, or the CPUs have none: nothing speaks against the TSCs.
    Alike,
    /// They differ, and one can't be changed.
    Different,
    /// One was shifted by a difference that the exchanges bounded, so that they say nothing.
    Guessed,
}

impl Standing {
    /// Whether guests can be promised that the two show the same.
    ///
    /// A clock that was [not seen](Self::Unseen) to agree is promised unless something speaks
    /// against it: exchanges are slow where the CPUs are threads of an emulator or of another
    /// hypervisor, which make both TSCs from one clock.
    #[must_use]
    pub const fn is_promised(self, adjustments: Adjustments) -> bool {
        match self {
            Self::Together => true,
            Self::Unseen(_) => matches!(adjustments, Adjustments::Alike),
            Self::Apart(_) | Self::Uneven => false,
        }
    }
}

impl Offset {
    /// Nothing is known.
    pub const UNKNOWN: Self = Self { low: i64::MIN, high: i64::MAX };

    /// One exchange: asked at `sent`, answered at `theirs` on the other CPU's clock, and
    /// heard at `heard`.
    pub fn exchange(&mut self, sent: u64, theirs: u64, heard: u64) {
        self.low = self.low.max(theirs.wrapping_sub(heard).cast_signed());
        self.high = self.high.min(theirs.wrapping_sub(sent).cast_signed());
    }

    /// Uncertainty: the difference of the bounds, in ticks.
    #[must_use]
    pub const fn width(self) -> u64 {
        if self.low > self.high { 0 } else { self.high.abs_diff(self.low) }
    }

    /// Whether it is known within 20 µs, with a TSC of `khz`.
    #[must_use]
    pub const fn is_good(self, khz: u64) -> bool {
        self.width() <= khz.saturating_mul(GOOD_US) / 1000
    }

    /// Relation of the two TSCs, of `khz`, to each other.
    #[must_use]
    pub const fn standing(self, khz: u64) -> Standing {
        if self.low > self.high {
            Standing::Uneven
        } else if self.low > 0 || self.high < 0 {
            Standing::Apart(self.low.midpoint(self.high))
        } else if self.is_good(khz) {
            Standing::Together
        } else {
            Standing::Unseen(self.width())
        }
    }
}
