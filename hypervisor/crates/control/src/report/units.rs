//! Figures in few characters.

use alloc::format;
use alloc::string::String;

/// A time, in at most 9 characters.
#[must_use]
pub fn duration(ns: u64) -> String {
    const S: u64 = 1_000_000_000;
    const MINUTE: u64 = 60 * S;
    const HOUR: u64 = 60 * MINUTE;
    const DAY: u64 = 24 * HOUR;
    match ns {
        0 => "0".into(),
        1..1_000 => format!("{ns} ns"),
        1_000..1_000_000 => tenths(ns, 1_000, "us"),
        1_000_000..S => tenths(ns, 1_000_000, "ms"),
        S..MINUTE => tenths(ns, S, "s"),
        MINUTE..HOUR => format!("{}:{:02} min", ns / MINUTE, ns / S % 60),
        HOUR..DAY => format!("{}:{:02} h", ns / HOUR, ns / MINUTE % 60),
        DAY.. => format!("{} d", ns / DAY),
    }
}

/// A size, in at most 9 characters.
#[must_use]
pub fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
    let mut unit = 1_u64;
    let mut name = "B";
    for next in UNITS.into_iter().skip(1) {
        if bytes >> 10 < unit {
            break;
        }
        unit <<= 10;
        name = next;
    }
    if unit == 1 || bytes.is_multiple_of(unit) {
        format!("{} {name}", bytes / unit)
    } else {
        tenths(bytes, unit, name)
    }
}

/// A number of things, in at most 9 characters, for less than 10^12 in 6.
#[must_use]
pub fn count(count: u64) -> String {
    const K: u64 = 1_000;
    const M: u64 = K * K;
    const G: u64 = M * K;
    const T: u64 = G * K;
    match count {
        0..100_000 => format!("{count}"),
        100_000..M => format!("{}k", count / K),
        M..G => tenths(count, M, "M").replace(' ', ""),
        G..T => tenths(count, G, "G").replace(' ', ""),
        T.. => format!("{}T", count / T),
    }
}

/// How many percent of `whole` a part is; `-` of nothing.
#[must_use]
pub fn percent(part: u64, whole: u64) -> String {
    if whole == 0 {
        return "-".into();
    }
    let tenths = (u128::from(part) * 1000 + u128::from(whole) / 2) / u128::from(whole);
    format!("{}.{}", tenths / 10, tenths % 10)
}

/// One digit behind the point, while there are few before it.
fn tenths(value: u64, unit: u64, name: &str) -> String {
    let whole = value / unit;
    if whole >= 100 {
        return format!("{whole} {name}");
    }
    format!("{whole}.{} {name}", u128::from(value % unit) * 10 / u128::from(unit))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn figures() {
        let times = [
            (0, "0"),
            (999, "999 ns"),
            (1_500, "1.5 us"),
            (999_999, "999 us"),
            (4_040_000, "4.0 ms"),
            (59_999_999_999, "59.9 s"),
            (61_000_000_000, "1:01 min"),
            (3_660_000_000_000, "1:01 h"),
            (200_000_000_000_000, "2 d"),
        ];
        for (ns, wanted) in times {
            assert_eq!(duration(ns), wanted);
        }
        let sizes = [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1 KiB"),
            (1536, "1.5 KiB"),
            (512 << 20, "512 MiB"),
            ((4 << 30) - 1, "3.9 GiB"),
            ((1 << 20) - 1, "1023 KiB"),
            (u64::MAX, "16383 PiB"),
        ];
        for (size, wanted) in sizes {
            assert_eq!(bytes(size), wanted);
        }
        let counts = [(99_999, "99999"), (123_456, "123k"), (12_345_678, "12.3M")];
        for (number, wanted) in counts {
            assert_eq!(count(number), wanted);
        }
        assert_eq!(percent(1, 3), "33.3");
        assert_eq!(percent(2, 3), "66.7");
        assert_eq!(percent(3, 2), "150.0");
        assert_eq!(percent(1, 0), "-");
    }

    proptest! {
        #[test]
        fn they_stay_short(value in any::<u64>(), shift in 0_u32..64) {
            let value = value >> shift;
            prop_assert!(duration(value).len() <= 9);
            prop_assert!(bytes(value).len() <= 9);
            prop_assert!(count(value).len() <= 9);
        }
    }
}
