//! Addresses that are handed out and come back: a range of numbers in pieces.

use alloc::vec::Vec;
use core::ops::Range;

/// The free pieces of a range.
#[derive(Debug)]
pub struct Addresses {
    /// The free pieces, in rising order; none is empty, and no two touch.
    free: Vec<Range<u64>>,
}

impl Addresses {
    /// All of `range` is free.
    #[must_use]
    pub fn new(range: Range<u64>) -> Self {
        let free = if range.is_empty() { Vec::new() } else { [range].into() };
        Self { free }
    }

    /// Takes the first piece of `len` that there is. `None` if there is none, or `len` is 0.
    pub fn take(&mut self, len: u64) -> Option<u64> {
        let fits = |piece: &Range<u64>| len != 0 && piece.end.saturating_sub(piece.start) >= len;
        let at = self.free.iter().position(fits)?;
        let piece = self.free.get_mut(at)?;
        let start = piece.start;
        piece.start = piece.start.saturating_add(len);
        if piece.is_empty() {
            self.free.remove(at);
        }
        Some(start)
    }

    /// Takes the `len` at `start` back, as [`take`](Self::take) gave them. `false`, and nothing
    /// done, if a part of them is free already.
    pub fn give_back(&mut self, start: u64, len: u64) -> bool {
        let Some(end) = start.checked_add(len).filter(|end| *end != start) else { return false };
        // The pieces before this one end at its start at the latest.
        let at = self.free.partition_point(|piece| piece.start < start);
        let before = at.checked_sub(1).and_then(|before| self.free.get(before));
        let behind = self.free.get(at);
        if before.is_some_and(|before| before.end > start)
            || behind.is_some_and(|behind| behind.start < end)
        {
            return false;
        }
        let joins_before = before.is_some_and(|before| before.end == start);
        let joins_behind = behind.filter(|behind| behind.start == end).map(|behind| behind.end);
        let end = joins_behind.unwrap_or(end);
        if joins_behind.is_some() {
            self.free.remove(at);
        }
        match at.checked_sub(1).filter(|_| joins_before).and_then(|at| self.free.get_mut(at)) {
            Some(before) => before.end = end,
            None => self.free.insert(at, start..end),
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Files of 64 GiB come and go in an address space of 512 GiB.
    #[test]
    fn addresses_are_used_again() {
        const GIB: u64 = 1 << 30;
        let start = 0xffff_a200_0000_0000;
        let mut addresses = Addresses::new(start..start + 512 * GIB);
        for _ in 0..100 {
            let at = addresses.take(64 * GIB).unwrap();
            assert!(addresses.give_back(at, 64 * GIB));
        }
        assert_eq!(addresses.take(512 * GIB), Some(start), "it is whole again");
        assert_eq!(addresses.take(1), None);
        assert!(addresses.give_back(start + GIB, GIB));
        assert!(!addresses.give_back(start + GIB, GIB), "a second time");
        assert!(!addresses.give_back(start, 2 * GIB), "a part of it is free");
        assert!(!addresses.give_back(start + 2 * GIB - 1, GIB));
        assert!(!addresses.give_back(start, 0));
        assert!(!addresses.give_back(u64::MAX, 2));
        assert_eq!(addresses.take(0), None);
        assert_eq!(Addresses::new(5..5).take(1), None);
    }

    proptest! {
        #[test]
        fn pieces_never_overlap(
            steps in prop::collection::vec((1u64..40, any::<bool>(), any::<prop::sample::Index>()), 1..120)
        ) {
            let mut addresses = Addresses::new(1000..1200);
            let mut live: Vec<(u64, u64)> = Vec::new();
            for (len, take, which) in steps {
                if take || live.is_empty() {
                    let used: u64 = live.iter().map(|(_, len)| len).sum();
                    if let Some(start) = addresses.take(len) {
                        prop_assert!(start >= 1000 && start + len <= 1200);
                        for (other, size) in &live {
                            prop_assert!(start + len <= *other || other + size <= start);
                        }
                        live.push((start, len));
                    } else {
                        prop_assert!(used + len > 200 || !live.is_empty());
                    }
                } else {
                    let (start, len) = live.swap_remove(which.index(live.len()));
                    prop_assert!(addresses.give_back(start, len));
                    prop_assert!(!addresses.give_back(start, len));
                }
                for pair in addresses.free.windows(2) {
                    prop_assert!(pair[0].end < pair[1].start, "{:?}", addresses.free);
                }
            }
            for (start, len) in live {
                prop_assert!(addresses.give_back(start, len));
            }
            prop_assert_eq!(addresses.free.as_slice(), core::slice::from_ref(&(1000..1200)));
        }
    }
}
