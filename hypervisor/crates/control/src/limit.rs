//! A limit for what a guest can make the hypervisor say: a line, or a report, in a while.
//! Messages that are left out are counted, and the count is told.

/// The limit of one guest. Times are ticks of one clock.
#[derive(Clone, Copy, Debug)]
pub struct Limit<const PLACES: usize> {
    period: u64,
    /// When each place last said something.
    said: [Option<u64>; PLACES],
    left_out: u64,
    /// When the first message that is counted was left out.
    since: u64,
}

impl<const PLACES: usize> Limit<PLACES> {
    /// Each of the places may say something once in `period` ticks.
    #[must_use]
    pub const fn new(period: u64) -> Self {
        Self { period, said: [None; PLACES], left_out: 0, since: 0 }
    }

    /// Whether `place` may say something at the tick `now`. If not, that is counted. A place that
    /// does not exist may say nothing.
    pub fn admits(&mut self, place: usize, now: u64) -> bool {
        if let Some(said) = self.said.get_mut(place)
            && said.is_none_or(|said| now.saturating_sub(said) >= self.period)
        {
            *said = Some(now);
            return true;
        }
        if self.left_out == 0 {
            self.since = now;
        }
        self.left_out = self.left_out.saturating_add(1);
        false
    }

    /// The tick from which on [`overdue`](Self::overdue) tells of messages that were left out;
    /// `u64::MAX` if there are none.
    #[must_use]
    pub const fn due(&self) -> u64 {
        if self.left_out == 0 { u64::MAX } else { self.since.saturating_add(self.period) }
    }

    /// How many messages were left out, if it is time to tell: a period after the first of them.
    /// Then counting begins anew.
    pub fn overdue(&mut self, now: u64) -> Option<u64> {
        (now >= self.due() && self.left_out != 0).then(|| core::mem::take(&mut self.left_out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn each_place_speaks_once_in_a_while_and_the_rest_is_counted() {
        let mut limit = Limit::<2>::new(100);
        assert!(limit.admits(0, 5));
        assert!(limit.admits(1, 6), "another place");
        assert!(!limit.admits(0, 104));
        assert!(!limit.admits(1, 104));
        assert_eq!((limit.due(), limit.overdue(203)), (204, None));
        assert!(limit.admits(0, 110));
        assert_eq!(limit.overdue(204), Some(2));
        assert_eq!(limit.overdue(1000), None, "told once");
        assert_eq!(limit.due(), u64::MAX);
        assert!(!limit.admits(2, 2000), "there is no such place");
        assert_eq!(limit.overdue(2100), Some(1));
    }

    proptest! {
        /// However fast a guest is: at most one line a place and period, and none is forgotten.
        #[test]
        fn nothing_is_said_too_often_or_forgotten(steps in prop::collection::vec((0usize..3, 0u64..60), 0..400)) {
            let (mut limit, mut now) = (Limit::<3>::new(100), 0);
            let (mut said, mut told) = ([None; 3], 0);
            let (mut admitted, mut tellings, mut last_told) = (0, 0, None);
            for (place, wait) in &steps {
                now += wait;
                if limit.admits(*place, now) {
                    if let Some(before) = said[*place] {
                        prop_assert!(now - before >= 100);
                    }
                    said[*place] = Some(now);
                    admitted += 1;
                }
                if let Some(count) = limit.overdue(now) {
                    prop_assert!(last_told.is_none_or(|last| now - last >= 100));
                    last_told = Some(now);
                    tellings += 1;
                    told += count;
                }
            }
            told += limit.overdue(now + 100).unwrap_or(0);
            prop_assert_eq!(admitted + told, steps.len() as u64);
            prop_assert!(tellings <= now / 100 + 1);
        }
    }
}
