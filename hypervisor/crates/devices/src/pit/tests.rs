use super::*;
use crate::testing::{Subject, device_properties};
use x86defs::time::NANOS_PER_SECOND;

/// The moment of clock `n`.
fn at(n: u64) -> Nanos {
    CLOCK.when(n)
}

struct Bench {
    pit: Pit,
    now: u64,
}

impl Bench {
    fn new() -> Self {
        Self { pit: Pit::new(), now: 100 }
    }

    fn write(&mut self, offset: u16, value: u8) {
        self.pit.port_write(offset, Width::B1, value.into(), at(self.now)).unwrap();
    }

    fn read(&mut self, offset: u16) -> u8 {
        u8::try_from(self.pit.port_read(offset, Width::B1, at(self.now)).unwrap()).unwrap()
    }

    /// Sets channel 2's mode (low then high byte, binary unless said) and count.
    fn program(&mut self, mode: u8, count: u16) {
        self.write(3, 0xb0 | mode << 1);
        self.count(count);
    }

    fn count(&mut self, count: u16) {
        let [low, high] = count.to_le_bytes();
        self.write(2, low);
        self.write(2, high);
    }

    fn latched(&mut self) -> u16 {
        self.write(3, 0x80);
        u16::from_le_bytes([self.read(2), self.read(2)])
    }

    fn gate(&mut self, level: bool) {
        self.write(4, u8::from(level));
    }

    /// The output at each of the next clocks, as text; time goes on.
    fn wave(&mut self, clocks: usize) -> alloc::string::String {
        (0..clocks)
            .map(|_| {
                self.now += 1;
                if self.pit.speaker.output(clock(at(self.now))) { '-' } else { '_' }
            })
            .collect()
    }
}

#[test]
fn only_bytes_are_served_and_control_is_write_only() {
    let mut pit = Pit::new();
    assert_eq!(pit.port_read(0, Width::B2, at(0)), Err(AccessError::Width));
    assert_eq!(pit.port_write(0, Width::B4, 0, at(0)), Err(AccessError::Width));
    assert_eq!(pit.port_read(3, Width::B1, at(0)), Err(AccessError::NoRegister));
    assert_eq!(pit.port_read(5, Width::B1, at(0)), Err(AccessError::NoRegister));
    assert_eq!(pit.port_write(5, Width::B1, 0, at(0)), Err(AccessError::NoRegister));
}

// The waveforms: the first clock after the write loads the count, N more end it.

#[test]
fn mode_0_interrupts_on_terminal_count() {
    let mut b = Bench::new();
    b.gate(true);
    b.program(0, 4);
    assert_eq!(b.wave(7), "____---");
    // It goes on below zero.
    assert_eq!(b.latched(), 0xfffe);
    // A new count pulls the output low; its first byte does already.
    b.write(2, 3);
    assert_eq!(b.wave(3), "___");
    b.write(2, 0);
    assert_eq!(b.wave(5), "___--");
    // The gate only halts the count.
    b.count(4);
    assert_eq!(b.wave(2), "__");
    b.gate(false);
    assert_eq!(b.wave(5), "_____");
    assert_eq!(b.latched(), 3);
    b.gate(true);
    assert_eq!(b.wave(4), "__--");
    // A count written while the gate is low takes effect N clocks after it rises.
    b.gate(false);
    b.count(2);
    assert_eq!(b.wave(3), "___");
    b.gate(true);
    assert_eq!(b.wave(3), "_--");
}

#[test]
fn mode_1_is_a_one_shot() {
    let mut b = Bench::new();
    b.program(1, 3);
    assert_eq!(b.wave(4), "----");
    b.gate(true);
    assert_eq!(b.wave(6), "___---");
    b.gate(false);
    assert_eq!(b.wave(2), "--");
    b.gate(true);
    assert_eq!(b.wave(2), "__");
    // Retriggered; a new count waits for the next trigger.
    b.gate(false);
    b.gate(true);
    b.count(2);
    assert_eq!(b.wave(4), "__--", "the count came before the trigger's clock");
    b.gate(false);
    b.gate(true);
    assert_eq!(b.wave(1), "_");
    b.count(5);
    assert_eq!(b.wave(3), "_--");
    b.gate(false);
    b.gate(true);
    assert_eq!(b.wave(7), "_____--");
}

#[test]
fn mode_2_divides() {
    for mode in [2, 6] {
        let mut b = Bench::new();
        b.gate(true);
        b.program(mode, 3);
        assert_eq!(b.wave(9), "--_--_--_");
        assert_eq!(b.latched(), 1);
        // A new count waits for the end of the period.
        assert_eq!(b.wave(1), "-");
        b.count(4);
        assert_eq!(b.wave(6), "-_---_");
        // The gate lifts the output at once, and starts over.
        b.gate(false);
        assert_eq!(b.wave(4), "----");
        b.gate(true);
        assert_eq!(b.wave(8), "---_---_");
    }
}

#[test]
fn mode_3_is_square() {
    for mode in [3, 7] {
        let mut b = Bench::new();
        b.gate(true);
        b.program(mode, 4);
        assert_eq!(b.wave(8), "--__--__");
        b.program(mode, 5);
        assert_eq!(b.wave(10), "---__---__");
        // A new count waits for the end of the half.
        assert_eq!(b.wave(1), "-");
        b.count(8);
        assert_eq!(b.wave(10), "--____----");
        assert_eq!(b.wave(1), "_");
        b.count(2);
        assert_eq!(b.wave(5), "___-_");
        b.gate(false);
        assert_eq!(b.wave(3), "---");
        b.gate(true);
        assert_eq!(b.wave(4), "-_-_");
    }
}

#[test]
fn mode_3_counts_by_two() {
    let mut b = Bench::new();
    b.gate(true);
    b.program(3, 5);
    let counts: [u16; 6] = core::array::from_fn(|_| {
        b.now += 1;
        b.latched()
    });
    assert_eq!(counts, [4, 2, 0, 4, 2, 4]);
    b.program(3, 6);
    let counts: [u16; 6] = core::array::from_fn(|_| {
        b.now += 1;
        b.latched()
    });
    assert_eq!(counts, [6, 4, 2, 6, 4, 2]);
}

#[test]
fn mode_4_strobes() {
    let mut b = Bench::new();
    b.gate(true);
    b.program(4, 3);
    assert_eq!(b.wave(7), "---_---");
    b.count(2);
    assert_eq!(b.wave(2), "--");
    // Halted by the gate, restarted by a new count.
    b.gate(false);
    assert_eq!(b.wave(3), "---");
    b.gate(true);
    assert_eq!(b.wave(3), "_--");
    b.count(3);
    assert_eq!(b.wave(2), "--");
    b.count(3);
    assert_eq!(b.wave(5), "---_-");
}

#[test]
fn mode_5_strobes_after_the_gate() {
    let mut b = Bench::new();
    b.gate(true);
    b.program(5, 3);
    assert_eq!(b.wave(6), "------");
    b.gate(false);
    b.gate(true);
    assert_eq!(b.wave(6), "---_--");
    b.gate(false);
    b.gate(true);
    assert_eq!(b.wave(2), "--");
    b.gate(false);
    b.gate(true);
    assert_eq!(b.wave(6), "---_--");
}

#[test]
fn zero_is_the_largest_count() {
    let mut b = Bench::new();
    b.gate(true);
    b.program(2, 0);
    b.now += 1;
    assert_eq!(b.latched(), 0);
    b.now += 1;
    assert_eq!(b.latched(), 0xffff);
    // BCD: 10,000.
    b.write(3, 0xb5);
    b.count(0);
    b.now += 1;
    assert_eq!(b.latched(), 0);
    b.now += 1;
    assert_eq!(b.latched(), 0x9999);
    b.now += 9_998;
    assert_eq!(b.latched(), 0x0001);
}

#[test]
fn bcd_counts() {
    let mut b = Bench::new();
    b.gate(true);
    b.write(3, 0xb1);
    b.count(0x1234);
    b.now += 1;
    assert_eq!(b.latched(), 0x1234);
    b.now += 235;
    assert_eq!(b.latched(), 0x0999);
    b.now += 1_000;
    assert_eq!(b.latched(), 0x9999);
}

#[test]
fn single_byte_access() {
    let mut b = Bench::new();
    b.gate(true);
    b.write(3, 0x90); // low byte only
    b.write(2, 0x40);
    b.now += 1;
    assert_eq!((b.read(2), b.read(2)), (0x40, 0x40));
    b.write(3, 0xa0); // high byte only
    b.write(2, 0x40);
    b.now += 1;
    assert_eq!((b.read(2), b.read(2)), (0x40, 0x40));
    b.now += 1;
    assert_eq!(b.read(2), 0x3f);
}

#[test]
fn a_latched_count_stands_still_until_read() {
    let mut b = Bench::new();
    b.gate(true);
    b.program(0, 0x1234);
    b.now += 1;
    b.write(3, 0x80);
    b.now += 0x234;
    b.write(3, 0x80); // latched already: ignored
    assert_eq!((b.read(2), b.read(2)), (0x34, 0x12));
    assert_eq!((b.read(2), b.read(2)), (0x00, 0x10));
    // The mode takes the latch away.
    b.write(3, 0x80);
    b.program(0, 7);
    b.now += 1;
    assert_eq!(b.read(2), 7);
}

#[test]
fn read_back() {
    let mut b = Bench::new();
    b.gate(true);
    b.write(3, 0xb6);
    b.write(3, 0xe8); // status of channel 2
    assert_eq!(b.read(2), 0xf6, "output high, no count yet");
    b.count(4);
    b.write(3, 0xe8);
    assert_eq!(b.read(2), 0xf6, "not loaded before the next clock");
    b.now += 3;
    b.write(3, 0xc8); // status and count: status comes first
    b.now += 1;
    assert_eq!((b.read(2), b.read(2), b.read(2)), (0x36, 4, 0));
    // A status that was not read stays.
    b.write(3, 0xe8);
    b.write(3, 0xb0);
    b.write(3, 0xec);
    assert_eq!(b.read(2), 0x70);
    // Channels that are not chosen are not latched.
    b.write(3, 0x34);
    b.write(0, 10);
    b.write(0, 0);
    b.now += 1;
    b.write(3, 0xd2);
    b.now += 3;
    assert_eq!((b.read(0), b.read(0)), (10, 0));
    assert_eq!((b.read(0), b.read(0)), (7, 0));
}

#[test]
fn null_count_waits_for_the_reload() {
    let mut b = Bench::new();
    b.gate(true);
    b.program(2, 10);
    b.now += 5;
    b.count(20);
    b.write(3, 0xe8);
    assert_eq!(b.read(2) & 0x40, 0x40);
    b.now += 5;
    b.write(3, 0xe8);
    assert_eq!(b.read(2) & 0x40, 0x40);
    b.now += 1;
    b.write(3, 0xe8);
    assert_eq!(b.read(2) & 0x40, 0);
    assert_eq!(b.latched(), 20);
}

/// Linux's rate at HZ = 250.
fn periodic(count: u16) -> Pit {
    let mut pit = Pit::new();
    let [low, high] = count.to_le_bytes();
    for (offset, value) in [(3, 0x34), (0, low), (0, high)] {
        pit.port_write(offset, Width::B1, value.into(), Nanos(0)).unwrap();
    }
    pit
}

#[test]
fn edges_come_without_drift() {
    let mut pit = periodic(4_773);
    let mut edges = 0;
    for second in 1..=3_600 {
        edges += pit.take_edges(Nanos(second * NANOS_PER_SECOND));
        assert_eq!(edges, (second * 1_193_182 - 1) / 4_773);
    }
}

#[test]
fn deadlines_are_the_edges() {
    for mode in [0x34, 0x36] {
        let mut pit = periodic(1_000);
        pit.port_write(3, Width::B1, mode, Nanos(0)).unwrap();
        pit.port_write(0, Width::B1, 0xe8, Nanos(0)).unwrap();
        pit.port_write(0, Width::B1, 0x03, Nanos(0)).unwrap();
        for n in 1..100 {
            let due = pit.next_deadline().unwrap();
            assert_eq!(due, at(1 + n * 1_000));
            assert!(!pit.take_interrupt(Nanos(due.0 - 1)));
            assert_eq!(pit.next_deadline(), Some(due));
            assert!(pit.take_interrupt(due));
        }
    }
}

#[test]
fn missed_edges_are_one_interrupt() {
    let mut pit = periodic(1_000);
    assert!(pit.take_interrupt(at(1 + 7_500)));
    assert!(!pit.take_interrupt(at(1 + 7_999)));
    assert!(pit.take_interrupt(at(1 + 8_000)));
}

#[test]
fn an_edge_that_was_not_taken_is_due_at_once() {
    let mut pit = periodic(1_000);
    pit.advance(at(5_000));
    assert!(pit.next_deadline().unwrap() <= at(5_000));
    assert!(pit.take_interrupt(at(5_000)));
    assert_eq!(pit.next_deadline(), Some(at(5_001)));
}

#[test]
fn one_shot_interrupts_once() {
    let mut pit = Pit::new();
    assert_eq!(pit.next_deadline(), None);
    for (offset, value) in [(3, 0x30), (0, 100), (0, 0)] {
        pit.port_write(offset, Width::B1, value, at(50)).unwrap();
    }
    assert_eq!(pit.next_deadline(), Some(at(151)));
    assert!(!pit.timer.output(clock(at(150))));
    assert!(pit.take_interrupt(at(151)));
    assert_eq!(pit.next_deadline(), None);
    assert!(!pit.take_interrupt(at(1_000_000)));
}

#[test]
fn a_new_period_counts_edges_of_both() {
    let mut pit = periodic(1_000);
    pit.port_write(0, Width::B1, 0xf4, at(1_500)).unwrap();
    pit.port_write(0, Width::B1, 0x01, at(1_500)).unwrap(); // 500
    assert_eq!(pit.next_deadline(), Some(at(1_500)), "one edge waits to be taken");
    assert_eq!(pit.take_edges(at(1_500)), 1);
    assert_eq!(pit.next_deadline(), Some(at(2_001)));
    assert_eq!(pit.take_edges(at(3_001)), 3);
}

#[test]
fn a_mode_that_lifts_the_output_makes_an_edge() {
    let mut pit = Pit::new();
    pit.port_write(3, Width::B1, 0x30, at(10)).unwrap();
    assert_eq!(pit.take_edges(at(20)), 0);
    pit.port_write(3, Width::B1, 0x34, at(30)).unwrap();
    assert_eq!(pit.take_edges(at(40)), 1);
}

#[test]
fn a_period_of_one_is_quiet() {
    for mode in [0x34, 0x36] {
        let mut pit = Pit::new();
        for (offset, value) in [(3, mode), (0, 1), (0, 0)] {
            pit.port_write(offset, Width::B1, value, at(0)).unwrap();
        }
        assert_eq!(pit.take_edges(at(1_000_000)), 0);
        assert_eq!(pit.next_deadline(), None);
    }
}

#[test]
fn port_61_gates_the_speaker_and_shows_it() {
    let mut b = Bench::new();
    b.write(4, 0x02);
    b.program(0, 1_000);
    b.now += 5_000;
    assert_eq!(b.read(4) & 0x2f, 0x02);
    b.write(4, 0x01);
    b.now += 999;
    assert_eq!(b.read(4) & 0x2f, 0x01);
    b.now += 1;
    assert_eq!(b.read(4) & 0x2f, 0x21);
    let before = b.read(4) & 0x10;
    b.now += 18;
    assert_ne!(b.read(4) & 0x10, before, "refresh toggles");
}

#[test]
fn reset_stops_all() {
    let mut pit = periodic(1_000);
    pit.port_write(4, Width::B1, 3, at(7)).unwrap();
    pit.take_interrupt(at(9_000));
    pit.reset();
    assert_eq!(pit.next_deadline(), None);
    assert!(!pit.port61.gate());
}

#[test]
fn impossible_states_are_refused() {
    let mut pit = periodic(1_000);
    pit.take_edges(at(5));
    let good = pit.save();
    for (path, value) in [
        ("/channels/0/element/Running/n", 0_i64),
        ("/channels/0/element/Running/n", 0x1_0001),
        ("/channels/0/element/Running/start", i64::MAX),
        ("/channels/0/element/Running/start", i64::MIN),
        ("/channels/0/control", 0x40),
        ("/channels/0/control", 0x04),
        ("/channels/1/register", 0),
        ("/channels/2/load_at", i64::MAX),
        ("/channels/0/seen", i64::MAX),
        ("/port61", 0x10),
        ("/port61", 0x01),
    ] {
        let mut state = serde_json::to_value(&good).unwrap();
        *state.pointer_mut(path).unwrap() = value.into();
        assert!(pit.restore(serde_json::from_value(state).unwrap()).is_err(), "{path}");
        assert_eq!(pit.save(), good);
    }
}

impl Subject for Pit {
    fn fresh() -> Self {
        Self::new()
    }

    fn act(&mut self, what: u8, _value: u32, now: Nanos) -> u64 {
        match what % 4 {
            0 => self.take_edges(now),
            1 => self.take_interrupt(now).into(),
            2 => self.speaker.output(clock(now)).into(),
            _ => {
                self.advance(now);
                0
            }
        }
    }

    fn look(&self) -> u64 {
        self.next_deadline().map_or(u64::MAX, |due| due.0)
    }
}

device_properties!(Pit, 5);

proptest::proptest! {
    /// However the channel was programmed: the edge comes at the deadline
    /// and not before, and asking often or seldom counts the same edges.
    #[test]
    fn edges_and_deadlines_agree(
        before in crate::testing::ops(4),
        pauses in proptest::collection::vec(0_u64..3_000_000, 1..20),
    ) {
        let mut now = Nanos(0);
        let mut often = Pit::new();
        for op in &before {
            crate::testing::step(&mut often, op, &mut now);
        }
        often.take_edges(now);
        let mut seldom = often.clone();
        let mut sum = 0;
        for pause in pauses {
            let until = Nanos(now.0 + pause);
            while let Some(due) = often.next_deadline().filter(|&due| due <= until) {
                if due.0 > now.0 {
                    proptest::prop_assert_eq!(often.clone().take_edges(Nanos(due.0 - 1)), 0);
                }
                let edges = often.take_edges(due.max(now));
                proptest::prop_assert_eq!(edges, 1);
                sum += edges;
            }
            proptest::prop_assert_eq!(often.take_edges(until), 0);
            now = until;
        }
        proptest::prop_assert_eq!(seldom.take_edges(now), sum);
    }
}
