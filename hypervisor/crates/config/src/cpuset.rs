//! Sets of the machine's CPUs.

use core::fmt;

/// How many CPUs a machine may have.
pub const MAX_CPUS: usize = 64;

/// A set of CPUs, by the scheduler's numbers 0 to 63. Higher numbers are in
/// no set.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct CpuSet(u64);

impl CpuSet {
    /// No CPU.
    pub const EMPTY: Self = Self(0);
    /// Whatever CPUs there are.
    pub const ALL: Self = Self(u64::MAX);

    /// The CPUs below `count`.
    #[must_use]
    pub const fn first(count: usize) -> Self {
        if count >= MAX_CPUS { Self::ALL } else { Self((1 << count) - 1) }
    }

    /// One CPU; none where the number is over 63.
    #[must_use]
    pub const fn one(cpu: usize) -> Self {
        if cpu >= MAX_CPUS { Self::EMPTY } else { Self(1 << cpu) }
    }

    /// Whether `cpu` is in the set.
    #[must_use]
    pub const fn contains(self, cpu: usize) -> bool {
        self.0 & Self::one(cpu).0 != 0
    }

    /// Puts `cpu` in.
    pub const fn insert(&mut self, cpu: usize) {
        self.0 |= Self::one(cpu).0;
    }

    /// Takes `cpu` out.
    pub const fn remove(&mut self, cpu: usize) {
        self.0 &= !Self::one(cpu).0;
    }

    /// The CPUs that are in both sets.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// The CPUs that are in either set.
    #[must_use]
    pub const fn or(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Whether there is no CPU in the set.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// How many CPUs are in the set.
    #[must_use]
    pub const fn len(self) -> u32 {
        self.0.count_ones()
    }

    /// The lowest CPU.
    #[must_use]
    pub fn lowest(self) -> Option<usize> {
        if self.is_empty() { None } else { usize::try_from(self.0.trailing_zeros()).ok() }
    }

    /// The CPUs, lowest first.
    pub fn iter(self) -> impl Iterator<Item = usize> {
        let mut rest = self;
        core::iter::from_fn(move || {
            let cpu = rest.lowest()?;
            rest.remove(cpu);
            Some(cpu)
        })
    }
}

impl FromIterator<usize> for CpuSet {
    fn from_iter<I: IntoIterator<Item = usize>>(cpus: I) -> Self {
        let mut set = Self::EMPTY;
        cpus.into_iter().for_each(|cpu| set.insert(cpu));
        set
    }
}

impl fmt::Debug for CpuSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter()).finish()
    }
}

impl fmt::Display for CpuSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, cpu) in self.iter().enumerate() {
            write!(f, "{}{cpu}", if at == 0 { "" } else { "," })?;
        }
        Ok(())
    }
}
