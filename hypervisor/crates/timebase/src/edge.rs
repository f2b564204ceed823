//! [`SecondEdge`]: when the real-time clock's second begins, which counts whole seconds only.

/// A moment of the wall clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wall {
    /// The TSC.
    pub tsc: u64,
    /// Nanoseconds since 1970-01-01 UTC then.
    pub nanos: u64,
    /// Nanoseconds by which that may be off.
    pub unsure: u64,
}

/// The looks at the real-time clock, and what they tell.
#[derive(Clone, Copy, Debug)]
pub struct SecondEdge {
    /// The last look: the TSC before it, and the second that the clock showed.
    last: Option<(u64, u64)>,
    /// The first look at the second that it still shows: the TSC after it.
    since: u64,
    /// The narrowest change so far: the TSC before and after, and the second that began.
    edge: Option<(u64, u64, u64)>,
}

const NANOS: u64 = 1_000_000_000;

impl SecondEdge {
    /// Nothing is known.
    pub const NEW: Self = Self { last: None, since: 0, edge: None };

    /// The clock showed `second` (since 1970-01-01 UTC) at a moment between the TSC's
    /// `before` and `after`.
    pub fn look(&mut self, before: u64, second: u64, after: u64) {
        match self.last {
            Some((earlier, shown)) if second == shown.wrapping_add(1) => {
                let width = after.saturating_sub(earlier);
                let narrower = |(a, b, _): (u64, u64, u64)| width <= b.saturating_sub(a);
                if self.edge.is_none_or(narrower) {
                    self.edge = Some((earlier, after, second));
                }
                self.since = after;
            }
            // The first look, or more than one second has passed unseen, or somebody has set it.
            Some((_, shown)) if second != shown => {
                self.edge = None;
                self.since = after;
            }
            None => self.since = after,
            Some(_) => {}
        }
        self.last = Some((before, second));
    }

    /// The wall clock at some moment, where a TSC of `khz` is; `None` before the first look.
    ///
    /// Without an edge the second that the clock shows began before it was first seen, and
    /// ends after it was last seen: the middle is taken.
    #[must_use]
    pub fn wall(&self, khz: u64) -> Option<Wall> {
        let nanos = |ticks: u64| {
            let nanos = u128::from(ticks).saturating_mul(1_000_000).checked_div(khz.into());
            nanos.and_then(|nanos| u64::try_from(nanos).ok()).unwrap_or(u64::MAX)
        };
        if let Some((from, to, second)) = self.edge {
            let unsure = nanos(to.saturating_sub(from)) / 2;
            let tsc = from.midpoint(to);
            return Some(Wall { tsc, nanos: second.saturating_mul(NANOS), unsure });
        }
        let (tsc, second) = self.last?;
        let seen = nanos(tsc.saturating_sub(self.since)).min(NANOS);
        let nanos = second.saturating_mul(NANOS).saturating_add(seen.midpoint(NANOS));
        Some(Wall { tsc, nanos, unsure: NANOS.saturating_sub(seen) / 2 })
    }
}
