//! [`Offset`]: how far apart the TSCs of two CPUs are.
//!
//! One CPU notes its TSC and sends a message, the other answers with its own TSC, and the
//! first notes when the answer came. Messages take time, so on the sender's clock the answer
//! was given after the question and before its arrival: this bounds the difference from both
//! sides, and the quickest exchanges bound it best.

/// Difference of two TSCs in ticks, within bounds: the other CPU's less the asking one's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offset {
    low: i64,
    high: i64,
}

/// Relation of two TSCs to each other, by an [`Offset`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// The two may show the same.
    Together,
    /// The other one shows about so many ticks more (less where negative).
    Apart(i64),
    /// The difference changes: they do not run evenly.
    Uneven,
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

    /// How well it is known: the difference of the bounds, in ticks.
    #[must_use]
    pub const fn width(self) -> u64 {
        if self.low > self.high { 0 } else { self.high.abs_diff(self.low) }
    }

    /// Relation of the two TSCs to each other.
    #[must_use]
    pub const fn standing(self) -> Standing {
        if self.low > self.high {
            Standing::Uneven
        } else if self.low <= 0 && 0 <= self.high {
            Standing::Together
        } else {
            Standing::Apart(self.low.midpoint(self.high))
        }
    }
}
