//! [`Track`]: all samples of one counter, and the rate that they give together.

use crate::Rate;
use crate::counter::{Counter, Sample};

/// Femtoseconds in a second.
const FEMTOS: u128 = 1_000_000_000_000_000;

/// Samples that are kept.
const SAMPLES: usize = 8;
/// How old a counter's value may be when it is read, in femtoseconds: emulators show one of
/// up to a microsecond ago.
const STALE: u128 = 1_000_000_000;
/// A rate that is known within this many parts per million is good enough to begin with.
const ROUGH_PPM: u64 = 100_000;

/// The samples of one counter. The first ones are kept, for the longest windows, and the last.
#[derive(Clone, Debug)]
pub struct Track {
    counter: Counter,
    samples: [Option<Sample>; SAMPLES],
    len: usize,
    /// The rate by windows too short for the counter to begin anew in them.
    rough: Option<Rate>,
    /// The best that all windows up to now have given. It outlives the samples that gave it, as
    /// it says how often the counter began anew in the next window, however long that is.
    best: Option<Rate>,
}

impl Track {
    /// A track of `counter`, without a sample.
    #[must_use]
    pub const fn new(counter: Counter) -> Self {
        Self { counter, samples: [None; SAMPLES], len: 0, rough: None, best: None }
    }

    /// The counter.
    #[must_use]
    pub const fn counter(&self) -> Counter {
        self.counter
    }

    /// The TSC at its first sample; 0 before that.
    #[must_use]
    pub fn begun(&self) -> u64 {
        self.samples.iter().flatten().next().map_or(0, |sample| sample.before)
    }

    /// Adds a sample, later than all before.
    pub fn push(&mut self, sample: Sample) {
        match self.samples.get_mut(self.len) {
            Some(slot) => {
                *slot = Some(sample);
                self.len = self.len.saturating_add(1);
                self.learn();
            }
            None => self.replace_last(sample),
        }
    }

    /// Puts a later sample in place of the last.
    pub fn replace_last(&mut self, sample: Sample) {
        if let Some(slot) = self.samples.get_mut(self.len.saturating_sub(1)) {
            *slot = Some(sample);
            self.len = self.len.max(1);
            self.learn();
        }
    }

    /// A window that was meant to be so short that the counter can't begin anew in it. If the
    /// CPU was away for longer all the same, counts are missing and the rate looks too high:
    /// of several windows the one that gives the least is right.
    pub fn note_short(&mut self, start: Sample, end: Sample) {
        let counts = u128::from(self.counter.counts(start.count, end.count));
        let found = self.window(start, end, counts).filter(|r| r.spread_ppm() <= ROUGH_PPM);
        let Some(new) = found.filter(|new| self.rough.is_none_or(|r| new.middle() < r.middle()))
        else {
            return;
        };
        self.rough = Some(new);
        // A rate from a window with counts missing is void.
        self.best = self.best.filter(|best| best.meet(new).is_some());
        self.learn();
    }

    /// The rate that the samples give; `None` where the counter stands still, or too little is
    /// known. Another counter's rate would not do in place of a short window: one that stands
    /// looks as if it had begun anew any number of times.
    #[must_use]
    pub const fn rate(&self) -> Option<Rate> {
        self.best
    }

    /// Concludes what can be from the windows that end at the last sample.
    fn learn(&mut self) {
        let Some(rough) = self.rough else { return };
        let mut samples = self.samples.iter().flatten().rev();
        let Some(end) = samples.next().copied() else { return };
        // From the shortest window to the longest: what is known from one says how often the
        // counter began anew in the next. The shortest may be long: all before it helps, too.
        let mut best = self.best;
        for start in samples {
            let by = |known| self.long_window(*start, end, known);
            // A window that contradicts what is known may fit what was known roughly.
            let Some(rate) = best.and_then(by).or_else(|| by(rough)) else { continue };
            // Rates of one counter in two windows meet; if they do not, it does not run
            // evenly, and the longer window tells more.
            best = Some(best.and_then(|best| best.meet(rate)).unwrap_or(rate));
        }
        self.best = best;
    }

    /// The rate from a window in which the counter may have begun anew, as often as `known`
    /// says; `None` if that leaves it open.
    fn long_window(&self, start: Sample, end: Sample, known: Rate) -> Option<Rate> {
        let period = self.counter.period();
        let modulus = u128::from(self.counter.modulus());
        let slack = STALE.div_ceil(period).saturating_add(1);
        let (shortest, longest) = span(start, end)?;
        let counts = |ticks: u128, hz: u64| {
            ticks.checked_mul(FEMTOS)?.checked_div(u128::from(hz).checked_mul(period)?)
        };
        let least = counts(shortest, known.high())?.saturating_sub(slack);
        let most = counts(longest, known.low())?.saturating_add(slack);
        if most.saturating_sub(least) >= modulus {
            return None;
        }
        let seen = u128::from(self.counter.counts(start.count, end.count));
        // The first number from `least` on that looks like what was seen.
        let ahead = modulus
            .saturating_add(seen)
            .saturating_sub(least.checked_rem(modulus)?)
            .checked_rem(modulus)?;
        let total = least.checked_add(ahead)?;
        (total <= most).then(|| self.window(start, end, total))?
    }

    /// The rate from a window of so many counts.
    fn window(&self, start: Sample, end: Sample, counts: u128) -> Option<Rate> {
        let period = self.counter.period();
        let (shortest, longest) = span(start, end)?;
        let elapsed = counts.checked_mul(period)?;
        let unsure = period.saturating_add(STALE);
        let hz = |ticks: u128, femtos: u128| {
            u64::try_from(ticks.checked_mul(FEMTOS)?.checked_div(femtos)?).ok()
        };
        let low = hz(shortest, elapsed.checked_add(unsure)?)?;
        let high = hz(longest, elapsed.checked_sub(unsure)?)?.checked_add(1)?;
        Rate::new(low.max(1), high)
    }
}

/// The fewest and the most ticks that passed between the moments of two samples.
fn span(start: Sample, end: Sample) -> Option<(u128, u128)> {
    let longest = end.after.checked_sub(start.before)?;
    let shortest = end.before.saturating_sub(start.after);
    Some((shortest.into(), longest.into()))
}
