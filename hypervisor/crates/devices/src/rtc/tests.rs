use super::*;
use crate::testing::{Subject, device_properties};

/// Sunday, 1 March 2026, 12:34:56 UTC.
const START: u64 = 1_772_368_496;
const MILLI: u64 = 1_000_000;

struct Bench {
    rtc: Rtc,
    now: u64,
}

impl Bench {
    fn new() -> Self {
        let now = 300 * MILLI;
        Self { rtc: Rtc::new(START * NANOS_PER_SECOND, Nanos(now)), now }
    }

    fn read(&mut self, index: u8) -> u8 {
        let now = Nanos(self.now);
        self.rtc.port_write(0, Width::B1, index.into(), now).unwrap();
        u8::try_from(self.rtc.port_read(1, Width::B1, now).unwrap()).unwrap()
    }

    fn write(&mut self, index: u8, value: u8) {
        let now = Nanos(self.now);
        self.rtc.port_write(0, Width::B1, index.into(), now).unwrap();
        self.rtc.port_write(1, Width::B1, value.into(), now).unwrap();
    }

    /// Second, minute, hour, weekday, day, month, year, century.
    fn clock(&mut self) -> [u8; 8] {
        [0, 2, 4, 6, 7, 8, 9, 0x32].map(|index| self.read(index))
    }

    /// Sets all of them with the clock stopped.
    fn set_clock(&mut self, values: [u8; 8]) {
        let b = self.read(0xb);
        self.write(0xb, b | 0x80);
        for (index, value) in [0, 2, 4, 6, 7, 8, 9, 0x32].into_iter().zip(values) {
            self.write(index, value);
        }
        self.write(0xb, b & !0x80);
    }

    fn pass(&mut self, millis: u64) {
        self.now += millis * MILLI;
    }
}

#[test]
fn only_bytes_are_served_and_the_index_is_write_only() {
    let mut rtc = Rtc::new(0, Nanos(0));
    assert_eq!(rtc.port_read(1, Width::B2, Nanos(0)), Err(AccessError::Width));
    assert_eq!(rtc.port_write(0, Width::B2, 0, Nanos(0)), Err(AccessError::Width));
    assert_eq!(rtc.port_read(0, Width::B1, Nanos(0)), Err(AccessError::NoRegister));
    assert_eq!(rtc.port_read(2, Width::B1, Nanos(0)), Err(AccessError::NoRegister));
    assert_eq!(rtc.port_write(2, Width::B1, 0, Nanos(0)), Err(AccessError::NoRegister));
}

#[test]
fn starts_at_the_given_time() {
    let mut b = Bench::new();
    assert_eq!(b.clock(), [0x56, 0x34, 0x12, 1, 0x01, 0x03, 0x26, 0x20]);
    assert_eq!((b.read(0xa), b.read(0xb), b.read(0xc), b.read(0xd)), (0x26, 0x02, 0, 0x80));
    b.pass(999);
    assert_eq!(b.read(0), 0x56);
    b.pass(1);
    assert_eq!(b.read(0), 0x57);
    let mut epoch = Bench { rtc: Rtc::new(0, Nanos(0)), now: 0 };
    assert_eq!(epoch.clock(), [0, 0, 0, 5, 1, 1, 0x70, 0x19]);
}

#[test]
fn a_second_that_has_begun_already() {
    // Three quarters of the second have passed when it is made.
    let now = 300 * MILLI;
    let rtc = Rtc::new(START * NANOS_PER_SECOND + 750 * MILLI, Nanos(now));
    let mut b = Bench { rtc, now };
    assert_eq!(b.read(0), 0x56);
    b.pass(247);
    assert_eq!((b.read(0), b.read(0xa) & 0x80), (0x56, 0), "an update is on its way too early");
    b.pass(2);
    assert_eq!((b.read(0), b.read(0xa) & 0x80), (0x56, 0x80));
    b.pass(1);
    assert_eq!((b.read(0), b.read(0xa) & 0x80), (0x57, 0));
    b.pass(999);
    assert_eq!(b.read(0), 0x57);
    b.pass(1);
    assert_eq!(b.read(0), 0x58);
}

#[test]
fn the_host_corrects_a_clock_that_the_guest_has_not_set() {
    let better = (START + 100) * NANOS_PER_SECOND + 900 * MILLI;
    let mut b = Bench::new();
    b.pass(10_400);
    b.rtc.correct(better, Nanos(b.now));
    assert_eq!(b.clock(), [0x36, 0x36, 0x12, 1, 0x01, 0x03, 0x26, 0x20]);
    b.pass(99);
    assert_eq!(b.read(0), 0x36);
    b.pass(1);
    assert_eq!(b.read(0), 0x37);
    // Back again, over a minute.
    b.rtc.correct(START * NANOS_PER_SECOND, Nanos(b.now));
    assert_eq!(b.clock(), [0x56, 0x34, 0x12, 1, 0x01, 0x03, 0x26, 0x20]);

    // A guest that has set it, or stopped it, knows better; one that has set an alarm does not.
    let mut alarm = Bench::new();
    alarm.write(1, 0x30);
    alarm.rtc.correct(better, Nanos(alarm.now));
    assert_eq!(alarm.read(0), 0x36);
    let mut set = Bench::new();
    set.set_clock([0x11, 0x22, 0x03, 1, 0x04, 0x05, 0x26, 0x20]);
    set.rtc.correct(better, Nanos(set.now));
    assert_eq!(set.clock(), [0x11, 0x22, 0x03, 1, 0x04, 0x05, 0x26, 0x20]);
    let mut stopped = Bench::new();
    stopped.write(0xb, 0x82);
    stopped.rtc.correct(better, Nanos(stopped.now));
    assert_eq!(stopped.read(0), 0x56);
}

#[test]
fn long_sleep_and_short_steps_agree() {
    let mut slow = Bench::new();
    let mut fast = Bench::new();
    for _ in 0..200_000 {
        fast.pass(997);
        fast.rtc.advance(Nanos(fast.now));
    }
    slow.pass(200_000 * 997);
    assert_eq!(slow.clock(), fast.clock());
    assert_eq!(slow.clock(), [0x16, 0x58, 0x19, 3, 0x03, 0x03, 0x26, 0x20]);
}

#[test]
fn binary_and_12_hours() {
    let mut b = Bench::new();
    b.write(0xb, 0x06);
    b.set_clock([59, 59, 23, 7, 31, 12, 99, 20]);
    b.pass(1_000);
    assert_eq!(b.clock(), [0, 0, 0, 1, 1, 1, 0, 21]);
    b.write(0xb, 0x04);
    b.set_clock([59, 59, 11, 1, 28, 2, 0, 21]);
    b.pass(1_000);
    assert_eq!(b.clock(), [0, 0, 0x8c, 1, 28, 2, 0, 21]);
    b.pass(12 * 3_600_000);
    assert_eq!(b.clock(), [0, 0, 12, 2, 1, 3, 0, 21], "2100 is no leap year");
    b.write(0xb, 0x00);
    b.set_clock([0x59, 0x59, 0x91, 7, 0x28, 0x02, 0x00, 0x20]);
    b.pass(1_000);
    assert_eq!(b.clock(), [0, 0, 0x12, 1, 0x29, 0x02, 0x00, 0x20], "2000 was");
}

#[test]
fn set_stops_the_time() {
    let mut b = Bench::new();
    b.write(0xb, 0x92);
    assert_eq!(b.read(0xb), 0x82, "and disables the update interrupt");
    b.pass(10_000);
    assert_eq!(b.read(0), 0x56);
    assert_eq!(b.read(0xc), 0x40, "the divider goes on");
    b.pass(999);
    assert_eq!(b.read(0xa), 0x26, "no update is in progress");
    b.write(0xb, 0x02);
    b.pass(1);
    assert_eq!(b.read(0), 0x57);
}

#[test]
fn divider_reset_stops_and_half_a_second_later_it_updates() {
    let mut b = Bench::new();
    for divider in [0x60, 0x70, 0x00, 0x10, 0x30] {
        b.write(0xa, divider | 6);
        let second = b.read(0);
        b.pass(7_777);
        assert_eq!(b.read(0), second);
        b.write(0xa, 0x26);
        b.pass(499);
        assert_eq!(b.read(0), second);
        b.pass(1);
        assert_ne!(b.read(0), second);
    }
}

#[test]
fn update_in_progress_before_each_second() {
    let mut b = Bench::new();
    b.now += 1_000 * MILLI - 2_228_001;
    assert_eq!(b.read(0xa), 0x26);
    b.now += 1;
    assert_eq!(b.read(0xa), 0xa6);
    assert_eq!(b.read(0), 0x56);
    b.now += 2_227_999;
    assert_eq!(b.read(0xa), 0xa6);
    b.now += 1;
    assert_eq!((b.read(0xa), b.read(0)), (0x26, 0x57));
    b.write(0xa, 0xa6);
    assert_eq!(b.read(0xa), 0x26, "the bit can't be written");
}

#[test]
fn update_interrupt() {
    let mut b = Bench::new();
    b.write(0xa, 0x20);
    assert_eq!(b.rtc.next_deadline(), None);
    b.write(0xb, 0x12);
    for _ in 0..3 {
        let due = b.rtc.next_deadline().unwrap();
        assert_eq!(due.0 % NANOS_PER_SECOND, 300 * MILLI);
        b.rtc.advance(Nanos(due.0 - 1));
        assert!(!b.rtc.irq());
        b.rtc.advance(due);
        assert!(b.rtc.irq());
        assert_eq!(b.rtc.next_deadline(), None);
        b.now = due.0;
        assert_eq!(b.read(0xc), 0x90);
        assert!(!b.rtc.irq());
        assert_eq!(b.read(0xc), 0);
    }
}

#[test]
fn flags_are_set_without_their_interrupts() {
    let mut b = Bench::new();
    b.write(5, 0xff);
    b.write(3, 0xff);
    b.write(1, 0xff);
    b.pass(1_000);
    assert!(!{
        b.rtc.advance(Nanos(b.now));
        b.rtc.irq()
    });
    assert_eq!(b.read(0xc), 0x70);
    b.pass(1_000);
    b.rtc.advance(Nanos(b.now));
    b.write(0xb, 0x22);
    assert!(b.rtc.irq(), "enabling it with the flag set raises the line");
    assert_eq!(b.read(0xc), 0xf0);
}

#[test]
fn periodic_rates() {
    for (rate, hertz) in [
        (1, 256),
        (2, 128),
        (3, 8192),
        (4, 4096),
        (5, 2048),
        (6, 1024),
        (7, 512),
        (8, 256),
        (9, 128),
        (10, 64),
        (11, 32),
        (12, 16),
        (13, 8),
        (14, 4),
        (15, 2),
    ] {
        let mut b = Bench::new();
        b.write(0xa, 0x20 | rate);
        b.write(0xb, 0x42);
        let end = b.now + NANOS_PER_SECOND;
        let mut count = 0;
        while let Some(due) = b.rtc.next_deadline().filter(|due| due.0 <= end) {
            b.rtc.advance(Nanos(due.0 - 1));
            assert!(!b.rtc.irq());
            b.rtc.advance(due);
            b.now = due.0;
            assert_eq!(b.read(0xc) & 0xc0, 0xc0);
            count += 1;
        }
        assert_eq!(count, hertz, "rate {rate}");
    }
    let mut b = Bench::new();
    b.write(0xa, 0x20);
    b.write(0xb, 0x42);
    assert_eq!(b.rtc.next_deadline(), None);
}

#[test]
fn alarm() {
    let mut b = Bench::new();
    b.write(0xa, 0x20);
    for (index, value) in [(1, 0x05), (3, 0x35), (5, 0x12)] {
        b.write(index, value);
    }
    b.write(0xb, 0x22);
    let due = b.rtc.next_deadline().unwrap();
    assert_eq!(due.0, b.now + 9 * NANOS_PER_SECOND);
    b.rtc.advance(Nanos(due.0 - 1));
    assert!(!b.rtc.irq());
    b.now = due.0;
    b.rtc.advance(due);
    assert!(b.rtc.irq());
    assert_eq!(b.read(0xc), 0xb0);
    assert_eq!(b.rtc.next_deadline().unwrap().0, due.0 + 86_400 * NANOS_PER_SECOND);
    // Each minute.
    b.write(3, 0xc0);
    b.write(5, 0xd5);
    assert_eq!(b.rtc.next_deadline().unwrap().0, due.0 + 60 * NANOS_PER_SECOND);
    // A time that never comes.
    b.write(1, 0x75);
    assert_eq!(b.rtc.next_deadline(), None);
}

#[test]
fn alarm_in_12_hour_mode() {
    let mut b = Bench::new();
    b.write(0xb, 0x00);
    b.set_clock([0, 0, 0x11, 1, 1, 3, 0x26, 0x20]);
    for (index, value) in [(1, 0), (3, 0), (5, 0x81)] {
        b.write(index, value);
    }
    b.write(0xb, 0x20);
    let due = b.rtc.next_deadline().unwrap();
    assert_eq!(due.0 - b.now, 2 * 3_600 * NANOS_PER_SECOND);
}

#[test]
fn memory() {
    let mut b = Bench::new();
    for index in (14..128).filter(|&index| index != 0x32) {
        assert_eq!(b.read(index), 0);
        b.write(index, index ^ 0x5a);
    }
    for index in (14..128).filter(|&index| index != 0x32) {
        assert_eq!(b.read(index | 0x80), index ^ 0x5a);
    }
    b.write(0xc, 0xff);
    b.write(0xd, 0x00);
    assert_eq!((b.read(0xc), b.read(0xd)), (0, 0x80));
}

#[test]
fn register_b_keeps_what_has_no_effect() {
    let mut b = Bench::new();
    b.write(0xb, 0x0b);
    assert_eq!(b.read(0xb), 0x0b);
}

#[test]
fn nonsense_in_the_registers_is_put_right_by_the_next_update() {
    let mut b = Bench::new();
    b.set_clock([0x99, 0x99, 0x99, 0, 0x00, 0xff, 0xff, 0xff]);
    b.pass(5_000);
    let [second, minute, hour, weekday, day, month, ..] = b.clock();
    assert!(second < 0x60 && minute < 0x60 && hour < 0x24);
    assert!((1..=7).contains(&weekday) && (1..=0x31).contains(&day) && (1..=0x12).contains(&month));
}

#[test]
fn reset_keeps_time_and_memory() {
    let mut b = Bench::new();
    b.write(0x40, 7);
    b.write(0xb, 0x7a);
    b.pass(2_000);
    b.rtc.advance(Nanos(b.now));
    assert!(b.rtc.irq());
    b.rtc.reset();
    assert!(!b.rtc.irq());
    assert_eq!((b.read(0xb), b.read(0xc), b.read(0x40), b.read(0)), (0x02, 0, 7, 0x58));
}

#[test]
fn impossible_states_are_refused() {
    let mut rtc = Rtc::new(START * NANOS_PER_SECOND, Nanos(0));
    let good = rtc.save();
    for bad in [
        RtcState { cmos: alloc::vec![0; 127], ..good.clone() },
        RtcState { index: 0x80, ..good.clone() },
        RtcState { flags: 0x80, ..good.clone() },
        RtcState { phase: NANOS_PER_SECOND, ..good.clone() },
    ] {
        assert!(rtc.restore(bad).is_err());
        assert_eq!(rtc.save(), good);
    }
}

impl Subject for Rtc {
    fn fresh() -> Self {
        Self::new(START, Nanos(5))
    }

    fn act(&mut self, what: u8, value: u32, now: Nanos) -> u64 {
        match what % 4 {
            0 => return self.get(value.low8()).into(),
            // Aims at the clock's registers, which a random index seldom hits.
            1 | 2 => {
                self.port_write(0, Width::B1, value % 14, now).unwrap();
            }
            _ => self.advance(now),
        }
        0
    }

    fn look(&self) -> u64 {
        self.next_deadline().map_or(u64::MAX, |due| due.0) << 2 ^ u64::from(self.irq())
    }
}

device_properties!(Rtc, 2);

proptest::proptest! {
    /// The line rises at the deadline and not before.
    #[test]
    fn the_line_rises_at_the_deadline(before in crate::testing::ops(2)) {
        let mut now = Nanos(5);
        let mut rtc = Rtc::fresh();
        for op in &before {
            crate::testing::step(&mut rtc, op, &mut now);
        }
        rtc.advance(now);
        if let Some(due) = rtc.next_deadline() {
            proptest::prop_assert!(due > now);
            rtc.advance(Nanos(due.0 - 1));
            proptest::prop_assert!(!rtc.irq());
            proptest::prop_assert_eq!(rtc.next_deadline(), Some(due));
            rtc.advance(due);
            proptest::prop_assert!(rtc.irq());
        }
    }
}
