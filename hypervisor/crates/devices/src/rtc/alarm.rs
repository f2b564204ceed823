//! When the alarm next matches, worked out without waiting second by second.

/// Values that match one of the three alarm registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Field {
    /// Any value: the two high bits are set.
    Any,
    /// This value alone.
    Exactly(u64),
}

impl Field {
    fn matches(self, value: u64) -> bool {
        match self {
            Self::Any => true,
            Self::Exactly(wanted) => wanted == value,
        }
    }

    /// The least matching value from `from` on, and below `limit`.
    fn next(self, from: u64, limit: u64) -> Option<u64> {
        match self {
            Self::Any => Some(from),
            Self::Exactly(wanted) => Some(wanted).filter(|&wanted| wanted >= from),
        }
        .filter(|&value| value < limit)
    }
}

/// Hour, minute and second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Alarm {
    pub(super) hour: Field,
    pub(super) minute: Field,
    pub(super) second: Field,
}

impl Alarm {
    /// Seconds from `time`, a second of the day, to the next match: 1 to 86,400, or
    /// never.
    pub(super) fn seconds_until(self, time: u64) -> Option<u64> {
        let from = time + 1;
        // Later today, or tomorrow up to the same time.
        self.first_from(from)
            .map(|found| found - time)
            .or_else(|| self.first_from(0).map(|found| found + super::SECONDS_PER_DAY - time))
    }

    /// The first matching second of the day, not before `from`.
    fn first_from(self, from: u64) -> Option<u64> {
        let (hour, minute, second) = (from / 3_600, from / 60 % 60, from % 60);
        // The same minute, a later minute of the same hour, a later hour.
        if hour < 24 && self.hour.matches(hour) {
            if self.minute.matches(minute)
                && let Some(second) = self.second.next(second, 60)
            {
                return Some((hour * 60 + minute) * 60 + second);
            }
            if let (Some(minute), Some(second)) =
                (self.minute.next(minute + 1, 60), self.second.next(0, 60))
            {
                return Some((hour * 60 + minute) * 60 + second);
            }
        }
        let hour = self.hour.next(hour + 1, 24)?;
        Some((hour * 60 + self.minute.next(0, 60)?) * 60 + self.second.next(0, 60)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn field(limit: u64) -> impl Strategy<Value = Field> {
        prop_oneof![Just(Field::Any), (0..limit + 3).prop_map(Field::Exactly)]
    }

    proptest! {
        #[test]
        fn as_if_waited_for(
            hour in field(24), minute in field(60), second in field(60), time in 0_u64..86_400,
        ) {
            let alarm = Alarm { hour, minute, second };
            let waited = (1..=86_400).find(|after| {
                let then = (time + after) % 86_400;
                hour.matches(then / 3_600)
                    && minute.matches(then / 60 % 60)
                    && second.matches(then % 60)
            });
            prop_assert_eq!(alarm.seconds_until(time), waited);
        }
    }
}
