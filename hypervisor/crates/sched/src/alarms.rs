//! [`Alarms`]: whose time comes when.

use alloc::vec::Vec;

/// Names with the tick at which each is due; a name has one alarm at the most. Setting, removing
/// and ringing take time in proportion to the logarithm of how many are set.
#[derive(Debug)]
pub struct Alarms<K> {
    /// A binary heap: an alarm is due no later than those at twice its place plus 1 and plus 2.
    heap: Vec<(u64, K)>,
    /// By the number of a name: where its alarm is in the heap.
    places: Vec<u32>,
    number: fn(K) -> usize,
}

/// No place in the heap.
const NOWHERE: u32 = u32::MAX;

impl<K: Copy> Alarms<K> {
    /// No alarm. `number` gives the number of a name, counted from 0: of two with one number, the
    /// later replaces the earlier.
    #[must_use]
    pub const fn new(number: fn(K) -> usize) -> Self {
        Self { heap: Vec::new(), places: Vec::new(), number }
    }

    /// How many are set.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.heap.len()
    }

    /// Whether none is set.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.heap.is_empty()
    }

    /// The tick at which the first is due; `u64::MAX` if there is none.
    #[must_use]
    pub fn first(&self) -> u64 {
        self.heap.first().map_or(u64::MAX, |(at, _)| *at)
    }

    /// `name` is due at the tick `at`, and no more when it was.
    pub fn set(&mut self, name: K, at: u64) {
        self.remove(name);
        let number = (self.number)(name);
        if self.places.len() <= number {
            self.places.resize(number + 1, NOWHERE);
        }
        self.heap.push((at, name));
        self.rise(self.heap.len() - 1);
    }

    /// `name` is not due any more.
    pub fn remove(&mut self, name: K) {
        let Some(slot) = self.places.get_mut((self.number)(name)) else { return };
        let place = core::mem::replace(slot, NOWHERE);
        if place == NOWHERE {
            return;
        }
        let place = place as usize;
        let Some(last) = self.heap.pop() else { return };
        if let Some(here) = self.heap.get_mut(place) {
            *here = last;
            // The one from the end may be due earlier than those above, or later than those below.
            let place = self.rise(place);
            self.sink(place);
        }
    }

    /// Takes the first alarm that is due at the tick `now`: its name, and when it was due.
    pub fn ring(&mut self, now: u64) -> Option<(K, u64)> {
        let (at, name) = *self.heap.first().filter(|(at, _)| *at <= now)?;
        if let Some(slot) = self.places.get_mut((self.number)(name)) {
            *slot = NOWHERE;
        }
        let last = self.heap.pop()?;
        if let Some(first) = self.heap.first_mut() {
            *first = last;
            self.sink(0);
        }
        Some((name, at))
    }

    fn due(&self, place: usize) -> u64 {
        self.heap.get(place).map_or(u64::MAX, |(at, _)| *at)
    }

    /// Notes that the alarm at `place` is there.
    fn note(&mut self, place: usize) {
        let Some((_, name)) = self.heap.get(place) else { return };
        if let Some(slot) = self.places.get_mut((self.number)(*name)) {
            *slot = u32::try_from(place).unwrap_or(NOWHERE);
        }
    }

    /// Moves the alarm at `place` up to where it belongs; returns where that is.
    fn rise(&mut self, mut place: usize) -> usize {
        while let Some(above) = place.checked_sub(1).map(|place| place / 2)
            && self.due(place) < self.due(above)
        {
            self.heap.swap(place, above);
            self.note(place);
            place = above;
        }
        self.note(place);
        place
    }

    /// Moves the alarm at `place` down to where it belongs.
    fn sink(&mut self, mut place: usize) {
        while 2 * place + 1 < self.heap.len() {
            let (left, right) = (2 * place + 1, 2 * place + 2);
            let below = if self.due(right) < self.due(left) { right } else { left };
            if self.due(below) >= self.due(place) {
                break;
            }
            self.heap.swap(place, below);
            self.note(place);
            place = below;
        }
        self.note(place);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    extern crate std;

    fn alarms() -> Alarms<u16> {
        Alarms::new(usize::from)
    }

    #[test]
    fn the_first_rings_first_and_once() {
        let mut alarms = alarms();
        assert_eq!((alarms.first(), alarms.ring(u64::MAX)), (u64::MAX, None));
        for (name, at) in [(3, 50), (1, 10), (2, 30)] {
            alarms.set(name, at);
        }
        assert_eq!((alarms.len(), alarms.first()), (3, 10));
        assert_eq!(alarms.ring(9), None);
        assert_eq!(alarms.ring(10), Some((1, 10)));
        alarms.set(3, 20);
        assert_eq!(alarms.ring(100), Some((3, 20)), "moved");
        alarms.remove(2);
        alarms.remove(7);
        assert!(alarms.is_empty());
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn as_a_sorted_list_does(
            steps in prop::collection::vec((0u16..40, prop::option::of(0u64..100), 0u64..100), 1..200),
        ) {
            let mut alarms = alarms();
            let mut list = BTreeMap::new();
            for (name, at, now) in steps {
                match at {
                    Some(at) => {
                        alarms.set(name, at);
                        list.insert(name, at);
                    }
                    None => {
                        alarms.remove(name);
                        list.remove(&name);
                    }
                }
                let first = list.values().min().copied().unwrap_or(u64::MAX);
                prop_assert_eq!((alarms.len(), alarms.first()), (list.len(), first));
                if let Some((name, at)) = alarms.ring(now / 2) {
                    prop_assert!(at <= now / 2 && at == first);
                    prop_assert_eq!(list.remove(&name), Some(at));
                } else {
                    prop_assert!(first > now / 2);
                }
            }
        }
    }
}
