//! A bucket of CPU time that fills at a steady rate and drains while CPUs run
//! for its owner: a guest's cap, the operator's reserve.

/// The bucket. The content is counted in ticks times 100, because rates are in
/// percent.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Budget {
    /// Percent of one CPU.
    rate: u32,
    /// The most and the least that the bucket holds.
    depth: i64,
    least: i64,
    tokens: i64,
    at: u64,
}

/// Ticks as a number that may be taken from another.
pub(crate) fn signed(ticks: u64) -> i64 {
    i64::try_from(ticks).unwrap_or(i64::MAX)
}

impl Budget {
    /// A full bucket that holds `depth` ticks; what is used beyond its content
    /// is owed.
    pub(crate) fn with_debt(rate: u32, depth: u64, now: u64) -> Self {
        let depth = signed(depth).saturating_mul(100);
        Self { rate, depth, least: i64::MIN, tokens: depth, at: now }
    }

    /// A full bucket that holds `depth` ticks; what is used beyond its content
    /// is not held against its owner.
    pub(crate) fn without_debt(rate: u32, depth: u64, now: u64) -> Self {
        Self { least: 0, ..Self::with_debt(rate, depth, now) }
    }

    /// Goes on to `now`, with `running` CPUs at work for the owner since the last call.
    pub(crate) fn advance(&mut self, now: u64, running: u32) {
        let elapsed = signed(now.saturating_sub(self.at));
        self.at = self.at.max(now);
        let net = i64::from(self.rate).saturating_sub(i64::from(running).saturating_mul(100));
        let tokens = self.tokens.saturating_add(elapsed.saturating_mul(net));
        self.tokens = tokens.min(self.depth).max(self.least);
    }

    /// Takes `ticks` out that were not the owner's time on a CPU, or puts them back.
    pub(crate) fn spend(&mut self, ticks: i64) {
        let tokens = self.tokens.saturating_sub(ticks.saturating_mul(100));
        self.tokens = tokens.min(self.depth).max(self.least);
    }

    /// Ticks that may be used now, when `promised` ticks of CPUs at work are
    /// still to come.
    pub(crate) fn available(&self, promised: u64) -> u64 {
        let free = self.tokens.saturating_sub(signed(promised).saturating_mul(100));
        u64::try_from(free / 100).unwrap_or(0)
    }

    /// When, at the latest, `wanted` ticks (no more than it holds) will be
    /// [`available`](Self::available).
    pub(crate) fn when(&self, wanted: u64, promised: u64) -> u64 {
        let goal = signed(wanted).saturating_add(signed(promised)).saturating_mul(100);
        let missing = u64::try_from(goal.saturating_sub(self.tokens)).unwrap_or(0);
        self.at.saturating_add(missing.div_ceil(u64::from(self.rate.max(1))))
    }
}
