//! Branch predictors of a CPU: what one guest taught them must not steer another.

/// State of a CPU's branch predictors: the guest that taught them last.
#[derive(Debug)]
pub struct Predictors {
    /// The CPU can forget what it has learned.
    has_barrier: bool,
    /// The guest that ran here last.
    last: Option<u64>,
}

impl Predictors {
    /// The predictors of a CPU that has run no guest; `has_barrier` says whether it can forget.
    #[must_use]
    pub const fn new(has_barrier: bool) -> Self {
        Self { has_barrier, last: None }
    }

    /// `guest`, by a name that no other guest has, runs next: `barrier` makes the CPU forget what
    /// another one left (SDM: "Indirect Branch Predictor Barrier"). The machine's own work in
    /// between does not count: it teaches nothing that guests want.
    pub fn hand_to(&mut self, guest: u64, barrier: impl FnOnce()) {
        if self.last.replace(guest) != Some(guest) && self.has_barrier {
            barrier();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many barriers it takes to run these guests one after the other.
    fn barriers(has_barrier: bool, guests: &[u64]) -> usize {
        let (mut predictors, mut count) = (Predictors::new(has_barrier), 0);
        for guest in guests {
            predictors.hand_to(*guest, || count += 1);
        }
        count
    }

    #[test]
    fn one_for_each_change_of_guest() {
        for (guests, wanted) in [
            (&[][..], 0),
            (&[0], 1),
            (&[7, 7, 7], 1),
            (&[7, 8], 2),
            (&[7, 8, 8, 7, 7, 8], 4),
            // A guest that was started again is another one.
            (&[0, u64::MAX, 0], 3),
        ] {
            assert_eq!(barriers(true, guests), wanted, "{guests:?}");
            assert_eq!(barriers(false, guests), 0, "{guests:?}");
        }
    }
}
