//! [`Owners`]: a number of its own for each guest that has memory.

use super::Owner;

/// Numbers that a guest may have.
const NUMBERS: usize = u16::MAX as usize + 1 - Owner::GUESTS.0 as usize;
/// Words of 64 bits, a bit for each number.
const WORDS: usize = NUMBERS.div_ceil(64);

/// Which numbers are in use. One that was given back is used again late, so that a frame
/// which outlived its guest is noticed.
#[derive(Debug)]
pub struct Owners {
    used: [u64; WORDS],
    /// The search begins here.
    next: usize,
}

impl Default for Owners {
    fn default() -> Self {
        Self::new()
    }
}

impl Owners {
    /// No number is in use.
    #[must_use]
    pub const fn new() -> Self {
        Self { used: [0; WORDS], next: 0 }
    }

    /// A number that nobody has. `None` if 65,520 guests have them all.
    pub fn take(&mut self) -> Option<Owner> {
        let at = (self.next..NUMBERS).chain(0..self.next).find(|at| !self.is_used(*at))?;
        *self.used.get_mut(at / 64)? |= 1 << (at % 64);
        self.next = at.wrapping_add(1) % NUMBERS;
        Some(Owner(Owner::GUESTS.0.checked_add(u16::try_from(at).ok()?)?))
    }

    /// Takes a number back from a guest that has no frame any more.
    pub fn give_back(&mut self, owner: Owner) {
        let Some(at) = owner.0.checked_sub(Owner::GUESTS.0).map(usize::from) else { return };
        if let Some(word) = self.used.get_mut(at / 64) {
            *word &= !(1 << (at % 64));
        }
    }

    fn is_used(&self, at: usize) -> bool {
        self.used.get(at / 64).is_none_or(|word| word >> (at % 64) & 1 != 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn no_two_guests_have_the_same() {
        let mut owners = Owners::new();
        let first = owners.take().unwrap();
        assert_eq!(first, Owner::GUESTS);
        owners.give_back(first);
        assert_ne!(owners.take(), Some(first), "it is used again late");
        let mut all = BTreeSet::from([Owner::GUESTS.0 + 1]);
        while let Some(owner) = owners.take() {
            assert!(all.insert(owner.0), "{owner:?} twice");
        }
        assert_eq!((all.len(), all.last()), (NUMBERS, Some(&u16::MAX)));
        owners.give_back(Owner(300));
        owners.give_back(Owner::HYPERVISOR);
        assert_eq!((owners.take(), owners.take()), (Some(Owner(300)), None));
    }
}
