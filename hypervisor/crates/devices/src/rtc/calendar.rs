//! The clock's date and time of day as numbers, and how its registers write
//! them: binary or BCD, 24 hours or twice 12.

/// Seconds in a day.
pub(super) const SECONDS_PER_DAY: u64 = 86_400;
/// Bit 7 of an hour in 12-hour mode: afternoon.
const PM: u8 = 0x80;

/// How the registers are written, from bits of register B.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Format {
    pub(super) binary: bool,
    pub(super) hours_24: bool,
}

impl Format {
    pub(super) fn encode(self, value: u64) -> u8 {
        // No caller has a value above 99.
        let value = u8::try_from(value).unwrap_or(0);
        if self.binary { value } else { ((value / 10) << 4) | (value % 10) }
    }

    /// The number that a register holds. Digits beyond 9 count for what they
    /// weigh: the clock leaves that undefined.
    pub(super) fn decode(self, register: u8) -> u64 {
        let value = if self.binary { register } else { (register >> 4) * 10 + (register & 0xf) };
        value.into()
    }

    pub(super) fn encode_hour(self, hour: u64) -> u8 {
        if self.hours_24 {
            return self.encode(hour);
        }
        let in_half = if hour.is_multiple_of(12) { 12 } else { hour % 12 };
        self.encode(in_half) | if hour >= 12 { PM } else { 0 }
    }

    pub(super) fn decode_hour(self, register: u8) -> u64 {
        if self.hours_24 {
            return self.decode(register);
        }
        let half = if register & PM != 0 { 12 } else { 0 };
        self.decode(register & !PM) % 12 + half
    }
}

/// A date of the proleptic Gregorian calendar.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Date {
    /// 0 to 9,999 (and on: a clock of four digits drops what is above).
    pub(super) year: u64,
    /// 1 to 12.
    pub(super) month: u64,
    /// 1 to 31.
    pub(super) day: u64,
}

/// Days from 1 March of the year 0 to 1 January 1970.
const EPOCH: u64 = 719_468;
/// Days in 400 years.
const DAYS_PER_ERA: u64 = 146_097;

impl Date {
    /// The date `days` after 1 March of the year 0. Years are taken to begin
    /// in March, so that the leap day is the last.
    pub(super) fn from_days(days: u64) -> Self {
        let era = days / DAYS_PER_ERA;
        let day_of_era = days % DAYS_PER_ERA;
        let leaps = day_of_era / 1_460 - day_of_era / 36_524 + day_of_era / 146_096;
        // Subtracting the leap days, each year has 365.
        let year_of_era = (day_of_era - leaps) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        // Five months from March on have 153 days.
        let month_index = (5 * day_of_year + 2) / 153;
        let day = day_of_year - (153 * month_index + 2) / 5 + 1;
        let (month, next_year) =
            if month_index < 10 { (month_index + 3, 0) } else { (month_index - 9, 1) };
        Self { year: era * 400 + year_of_era + next_year, month, day }
    }

    /// Days from 1 March of the year 0. A date before that counts as that.
    pub(super) fn days(self) -> u64 {
        let month_index = (self.month.clamp(1, 12) + 9) % 12;
        let year = self.year.saturating_sub(u64::from(month_index >= 10));
        let (era, year_of_era) = (year / 400, year % 400);
        let day_of_year = (153 * month_index + 2) / 5 + self.day.max(1) - 1;
        era * DAYS_PER_ERA + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year
    }

    /// The date of a Unix day.
    pub(super) fn from_unix_days(days: u64) -> Self {
        Self::from_days(days + EPOCH)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn known_dates() {
        for (unix, year, month, day) in [
            (0, 1970, 1, 1),
            (11_016, 2000, 2, 29),
            (11_017, 2000, 3, 1),
            (20_513, 2026, 3, 1),
            (47_540, 2100, 2, 28),
            (47_541, 2100, 3, 1),
        ] {
            assert_eq!(Date::from_unix_days(unix), Date { year, month, day }, "{unix}");
        }
    }

    #[test]
    fn hours() {
        let h24 = Format { binary: false, hours_24: true };
        let h12 = Format { binary: false, hours_24: false };
        let binary = Format { binary: true, hours_24: false };
        for (hour, a, b, c) in [
            (0, 0x00, 0x12, 12),
            (1, 0x01, 0x01, 1),
            (11, 0x11, 0x11, 11),
            (12, 0x12, 0x92, 0x8c),
            (13, 0x13, 0x81, 0x81),
            (23, 0x23, 0x91, 0x8b),
        ] {
            assert_eq!(h24.encode_hour(hour), a);
            assert_eq!(h12.encode_hour(hour), b);
            assert_eq!(binary.encode_hour(hour), c);
            for format in [h24, h12, binary] {
                assert_eq!(format.decode_hour(format.encode_hour(hour)), hour);
            }
        }
    }

    proptest! {
        #[test]
        fn days_round_trip(days in 0_u64..4_000_000) {
            let date = Date::from_days(days);
            prop_assert_eq!(date.days(), days);
            let next = Date::from_days(days + 1);
            prop_assert!((next.year, next.month, next.day) > (date.year, date.month, date.day));
        }
    }
}
