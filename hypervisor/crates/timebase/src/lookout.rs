//! [`Lookout`]: when to look at the real-time clock for the beginning of a second.

/// Nanoseconds in a second, and in a millisecond.
const SECOND: u64 = 1_000_000_000;
const MILLI: u64 = 1_000_000;
/// Looks without a date, one after the other, that are enough: no clock needs that long to
/// change.
const NO_DATE_LOOKS: u32 = 100;
/// Time without a date that is enough, however seldom anybody looked.
const NO_DATE: u64 = 3 * SECOND;
/// Time that is enough if no second was seen to begin well enough in it.
const NO_EDGE: u64 = 10 * SECOND;
/// Time for which a second that was seen counts. Crystals of clock and TSC are up to 100 parts in
/// a million apart, which makes 9 ms by then.
const HOLDS: u64 = 90 * SECOND;
/// A second is expected to begin this close to the time at which it should.
const MARGIN: u64 = 30 * MILLI;
/// If no second begins for this long, it is awaited all the time.
const EXPECTED: u64 = 4 * SECOND;

/// Result of a look at the clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Look {
    /// It shows no date, or is about to change.
    NoDate,
    /// It shows a date, and no second was seen to begin well enough yet.
    Date,
    /// A second was seen to begin.
    Edge,
}

/// The consequence of a look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finding {
    /// There is nothing to do.
    None,
    /// The wall clock is known for the first time: all clocks are to be set.
    First,
    /// The wall clock is known anew: guests that start from now on are to be told.
    Anew,
    /// There is no clock. Nobody looks again.
    NoClock,
    /// The clock was not seen to go on, or not well enough: nothing better than what it shows will
    /// be known.
    NoEdge,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Nothing is known yet.
    First {
        /// The first look.
        since: Option<u64>,
        /// Looks without a date, one after the other.
        misses: u32,
        /// The first of them.
        dated: u64,
    },
    /// The wall clock is known.
    Known { since: u64 },
    /// The wall clock has been known for a while, and is looked for again.
    Again { since: u64 },
    /// Nobody looks any more.
    Over,
}

/// Tells when to look at the real-time clock: all the time until a second was seen to begin, and
/// later now and then, about when one must begin. Times are nanoseconds since any moment.
#[derive(Clone, Debug)]
pub struct Lookout {
    state: State,
}

impl Lookout {
    /// Nothing is known.
    pub const NEW: Self = Self { state: State::First { since: None, misses: 0, dated: 0 } };

    /// Whether to look at the time `now`, at which the wall clock would be `wall`. At the first
    /// such look after a while, what was seen before it counts no more: `forget` is called.
    pub fn is_due(&mut self, now: u64, wall: u64, forget: impl FnOnce()) -> bool {
        if let State::Known { since } = self.state
            && now.saturating_sub(since) >= HOLDS
        {
            forget();
            self.state = State::Again { since: now };
        }
        match self.state {
            State::First { .. } => true,
            State::Known { .. } | State::Over => false,
            State::Again { since } => {
                let shown = wall.checked_rem(SECOND).unwrap_or(0);
                shown <= MARGIN
                    || shown >= SECOND.saturating_sub(MARGIN)
                    || now.saturating_sub(since) >= EXPECTED
            }
        }
    }

    /// The result of a look at the time `now`.
    pub fn saw(&mut self, now: u64, look: Look) -> Finding {
        match self.state {
            State::First { since, misses, dated } => {
                let since = since.unwrap_or(now);
                let dated = if misses == 0 { now } else { dated };
                let misses = if look == Look::NoDate { misses.saturating_add(1) } else { 0 };
                let passed = |since| now.saturating_sub(since);
                let (state, finding) = match look {
                    Look::Edge => (State::Known { since: now }, Finding::First),
                    Look::NoDate if misses >= NO_DATE_LOOKS || passed(dated) >= NO_DATE => {
                        (State::Over, Finding::NoClock)
                    }
                    Look::Date if passed(since) >= NO_EDGE => (State::Over, Finding::NoEdge),
                    _ => (State::First { since: Some(since), misses, dated }, Finding::None),
                };
                self.state = state;
                finding
            }
            State::Again { since } => {
                if look == Look::Edge {
                    self.state = State::Known { since: now };
                    return Finding::Anew;
                }
                if now.saturating_sub(since) >= NO_EDGE {
                    // The second that is known is good enough to go on with until next time.
                    self.state = State::Known { since: now };
                }
                Finding::None
            }
            State::Known { .. } | State::Over => Finding::None,
        }
    }
}
