//! Operations that can't be done at once, because a vCPU does not leave its CPU, and are tried
//! again.

use crate::{ErrorCode, Refusal};

/// Something that is tried in one step after the other, for a while. Each step is short: the
/// CPU that the operator works on is also that of guests.
#[derive(Clone, Debug)]
pub struct Attempt<T> {
    /// The operation that is tried.
    pub what: T,
    /// The tick at which patience ends.
    until: u64,
}

impl<T> Attempt<T> {
    /// To be tried until the tick `until`, at least once.
    #[must_use]
    pub const fn new(what: T, until: u64) -> Self {
        Self { what, until }
    }

    /// Whether the operation is to be tried again, now that it came to `outcome`. If not, the
    /// outcome is the answer.
    #[must_use]
    pub fn goes_on<A>(&self, outcome: &Result<A, Refusal>, now: u64) -> bool {
        let busy = outcome.as_ref().is_err_and(|refusal| refusal.code == ErrorCode::Busy);
        busy && now < self.until
    }
}

/// Whether `answers` are all yes; `None` if that is not known, because an answer is missing and no
/// answer before it is no. Nobody is asked after the first answer that is missing or no.
#[must_use]
pub fn all(mut answers: impl Iterator<Item = Option<bool>>) -> Option<bool> {
    // The first answer that is not yes ends the search.
    answers.find(|answer| *answer != Some(true)).unwrap_or(Some(true))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_busy_is_asked_again_for_a_while() {
        let attempt = Attempt::new("why", 100);
        let busy = || Err::<(), _>(Refusal::new(ErrorCode::Busy, "vCPU 0 is busy"));
        assert!(attempt.goes_on(&busy(), 0));
        assert!(attempt.goes_on(&busy(), 99));
        assert!(!attempt.goes_on(&busy(), 100));
        // A result ends the attempt, and so does any other refusal.
        assert!(!attempt.goes_on(&Ok(()), 0));
        let other = Err::<(), _>(Refusal::new(ErrorCode::NoVcpu, "there is no vCPU 3"));
        assert!(!attempt.goes_on(&other, 0));
    }

    #[test]
    fn one_that_does_not_answer_leaves_it_open() {
        let asked = |answers: &[Option<bool>]| all(answers.iter().copied());
        assert_eq!(asked(&[]), Some(true));
        assert_eq!(asked(&[Some(true), Some(true)]), Some(true));
        assert_eq!(asked(&[Some(true), Some(false), None]), Some(false));
        assert_eq!(asked(&[Some(true), None, Some(false)]), None);
    }
}
