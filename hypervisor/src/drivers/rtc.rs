//! The machine's real-time clock, read once at boot
//! (data sheet: Motorola MC146818).

use crate::cpu::asm::{inb, outb};

const INDEX: u16 = 0x70;
const DATA: u16 = 0x71;
const NMI_MASK: u8 = 0x80;
/// Register A: an update is in progress.
const UPDATING: u8 = 0x80;
/// Register B: binary rather than BCD.
const BINARY: u8 = 1 << 2;
/// Register B: 24 hours.
const HOURS_24: u8 = 1 << 1;

fn register(index: u8) -> u8 {
    // SAFETY: selecting a register of the clock changes nothing else; NMIs are
    // let through again by the last selection.
    unsafe { outb(INDEX, NMI_MASK | index) };
    // SAFETY: reading a time register has no side effect.
    unsafe { inb(DATA) }
}

fn snapshot() -> [u8; 6] {
    [0, 2, 4, 7, 8, 9].map(register)
}

/// Seconds since 1970-01-01 UTC, if the clock shows a date that exists. It is
/// taken to run on UTC.
#[must_use]
pub fn unix_seconds() -> Option<u64> {
    let mut last = snapshot();
    // Two equal readings outside an update: the value did not change between.
    let settled = (0..1_000_000u32).find_map(|_| {
        if register(0x0a) & UPDATING != 0 {
            return None;
        }
        let now = snapshot();
        let equal = now == last;
        last = now;
        equal.then_some(now)
    })?;
    let mode = register(0x0b);
    // SAFETY: selects register D with NMIs let through.
    unsafe { outb(INDEX, 0x0d) };
    let number = |value: u8| {
        u64::from(if mode & BINARY != 0 { value } else { (value >> 4) * 10 + (value & 0xf) })
    };
    let [second, minute, raw_hour, day, month, year] = settled;
    let afternoon = mode & HOURS_24 == 0 && raw_hour & 0x80 != 0;
    let mut hour = number(raw_hour & 0x7f);
    if mode & HOURS_24 == 0 {
        hour = hour % 12 + if afternoon { 12 } else { 0 };
    }
    let days = days_since_1970(2000 + number(year), number(month), number(day))?;
    Some(((days * 24 + hour) * 60 + number(minute)) * 60 + number(second))
}

/// Days from 1970-01-01 to a date of the Gregorian calendar.
fn days_since_1970(year: u64, month: u64, day: u64) -> Option<u64> {
    if !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return None;
    }
    // Years that begin in March put the leap day at their end.
    let (y, m) = if month <= 2 { (year - 1, month + 9) } else { (year, month - 3) };
    let of_year = (153 * m + 2) / 5 + day - 1;
    Some(365 * y + y / 4 - y / 100 + y / 400 + of_year - 719_468)
}
