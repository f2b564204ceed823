//! A machine to measure: its clocks run evenly, its CPU is away now and then.

use crate::counter::{Counter, PmWidth, Sample};
use crate::{Measured, Track};
use std::vec::Vec;

/// Behaviour of a counter of the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Health {
    Counts,
    /// Gated: the value stays what it was.
    Stands,
    /// Absent: all bits read as ones.
    Absent,
}

pub(super) struct Machine {
    /// The TSC's true rate.
    pub(super) hz: u64,
    /// Femtoseconds since power-up.
    pub(super) now: u128,
    /// Femtoseconds that an access to a device takes.
    pub(super) access: u128,
}

impl Machine {
    pub(super) fn new(hz: u64) -> Self {
        Self { hz, now: 7_000_000_000_123_456, access: 1_000_000_000 }
    }

    pub(super) fn tsc(&self) -> u64 {
        u64::try_from(self.now * u128::from(self.hz) / 1_000_000_000_000_000).unwrap()
    }

    pub(super) fn wait_us(&mut self, us: u64) {
        self.now += u128::from(us) * 1_000_000_000;
    }

    /// A sample during which the CPU is away for so many microseconds before and after the
    /// counter's value is taken.
    pub(super) fn sample(&mut self, counter: Counter, health: Health, away: (u64, u64)) -> Sample {
        let before = self.tsc();
        self.wait_us(away.0);
        self.now += self.access / 2;
        let count = match health {
            Health::Counts => {
                u64::try_from(self.now / counter.period() % u128::from(counter.modulus())).unwrap()
            }
            Health::Stands => 0x1234,
            Health::Absent => counter.modulus() - 1,
        };
        self.now += self.access / 2;
        self.wait_us(away.1);
        Sample { before, count, after: self.tsc() + 1 }
    }
}

pub(super) const PM_24: Counter = Counter::pm_timer(PmWidth::Bits24);
pub(super) const PM_32: Counter = Counter::pm_timer(PmWidth::Bits32);

pub(super) fn hpet() -> Counter {
    Counter::hpet(69_841_279).unwrap()
}

/// A boot: a sample at its beginning, a short window after `boot_us`, one more sample after
/// `rest_us`. `away` is how long the CPU is away in each of the four samples.
pub(super) fn boot(
    machine: &mut Machine,
    counters: &[(Counter, Health)],
    (boot_us, short_us, rest_us): (u64, u64, u64),
    away: [(u64, u64); 4],
) -> Vec<Track> {
    let mut tracks: Vec<Track> = counters.iter().map(|(c, _)| Track::new(*c)).collect();
    let all = |machine: &mut Machine, away| -> Vec<Sample> {
        counters.iter().map(|(c, health)| machine.sample(*c, *health, away)).collect()
    };
    let push = |tracks: &mut Vec<Track>, samples: &[Sample]| {
        tracks.iter_mut().zip(samples).for_each(|(track, sample)| track.push(*sample));
    };
    let first = all(machine, away[0]);
    push(&mut tracks, &first);
    machine.wait_us(boot_us);
    let start = all(machine, away[1]);
    machine.wait_us(short_us);
    let end = all(machine, away[2]);
    for ((track, start), end) in tracks.iter_mut().zip(&start).zip(&end) {
        track.note_short(*start, *end);
    }
    push(&mut tracks, &end);
    machine.wait_us(rest_us);
    let last = all(machine, away[3]);
    push(&mut tracks, &last);
    tracks
}

pub(super) fn measured(tracks: &[Track]) -> Vec<Measured> {
    let found =
        |track: &Track| Some(Measured { source: track.counter().source, rate: track.rate()? });
    tracks.iter().filter_map(found).collect()
}
