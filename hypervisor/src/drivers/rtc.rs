//! The machine's real-time clock (data sheet: Motorola MC146818). It shows whole seconds:
//! it is looked at again and again until one is seen to begin.

use crate::cpu::asm::{inb, outb, rdtsc_ordered};
use crate::cpu::tsc;
use spin::Mutex;
use timebase::{Look, SecondEdge, Wall};

const INDEX: u16 = 0x70;
const DATA: u16 = 0x71;
const NMI_MASK: u8 = 0x80;
const SECONDS: u8 = 0;
const REGISTER_A: u8 = 0x0a;
/// Register A: an update is in progress.
const UPDATING: u8 = 0x80;
/// Register B: binary rather than BCD.
const BINARY: u8 = 1 << 2;
/// Register B: 24 hours.
const HOURS_24: u8 = 1 << 1;

fn register(index: u8) -> u8 {
    if cfg!(planted = "no-rtc") {
        return 0xff;
    }
    // SAFETY: selecting a register of the clock changes nothing else; NMIs are
    // let through again by the last selection.
    unsafe { outb(INDEX, NMI_MASK | index) };
    // SAFETY: reading a time register has no side effect.
    unsafe { inb(DATA) }
}

fn snapshot() -> [u8; 6] {
    [SECONDS, 2, 4, 7, 8, 9].map(register)
}

/// Results of the looks at the clock.
static EDGE: Mutex<SecondEdge> = Mutex::new(SecondEdge::NEW);

/// The wall clock is well known when it can't be off by more, in nanoseconds.
const GOOD_NANOS: u64 = 5_000_000;

/// Looks at the clock.
pub fn look() -> Look {
    let before = rdtsc_ordered();
    if register(REGISTER_A) & UPDATING != 0 {
        return Look::NoDate;
    }
    let now = snapshot();
    // Nothing has changed in between.
    if register(REGISTER_A) & UPDATING != 0 || register(SECONDS) != now[0] {
        return Look::NoDate;
    }
    let after = rdtsc_ordered();
    let Some(seconds) = unix_seconds(now) else { return Look::NoDate };
    let mut edge = EDGE.lock();
    edge.look(before, seconds, after);
    match edge.wall(tsc::khz()) {
        Some(wall) if wall.unsure <= GOOD_NANOS => Look::Edge,
        _ => Look::Date,
    }
}

/// From one look to the next while the boot waits, in microseconds.
const PAUSE_US: u64 = 1000;

/// Waits for `us` microseconds of the boot, and looks at the clock meanwhile: a second that
/// begins now need not be waited for later.
pub fn wait_us(us: u64) {
    let mut left = us;
    while left != 0 {
        let pause = left.min(PAUSE_US);
        tsc::wait_us(pause);
        left -= pause;
        look();
    }
}

/// A second that was seen to begin counts no more.
pub fn forget() {
    *EDGE.lock() = SecondEdge::NEW;
}

/// The wall clock as far as it is known.
#[must_use]
pub fn wall() -> Option<Wall> {
    EDGE.lock().wall(tsc::khz())
}

/// Seconds since 1970-01-01 UTC, if the registers show a date that exists. The clock is
/// taken to run on UTC.
fn unix_seconds([second, minute, raw_hour, day, month, year]: [u8; 6]) -> Option<u64> {
    let mode = register(0x0b);
    // SAFETY: selects register D with NMIs let through.
    unsafe { outb(INDEX, 0x0d) };
    let number = |value: u8| {
        u64::from(if mode & BINARY != 0 { value } else { (value >> 4) * 10 + (value & 0xf) })
    };
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
