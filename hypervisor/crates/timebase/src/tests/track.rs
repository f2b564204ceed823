use super::machine::{Health, Machine, PM_24, PM_32, boot, hpet, measured};
use crate::counter::{Counter, Sample, best_sample};
use crate::{Source, Track};
use proptest::prelude::*;

const QUIET: [(u64, u64); 4] = [(0, 0); 4];

#[test]
fn a_quiet_boot_is_measured_within_a_few_parts_per_million() {
    for hz in [600_000_000, 1_000_000_000, 2_596_123_456, 9_999_000_000] {
        let counters = [Counter::PIT, PM_24, PM_32, hpet()].map(|c| (c, Health::Counts));
        let tracks = boot(&mut Machine::new(hz), &counters, (200_000, 2_000, 20_000), QUIET);
        let found = measured(&tracks);
        assert_eq!(found.len(), 4);
        for m in found {
            assert!(m.rate.contains(hz), "{m:?} of {hz}");
            assert!(m.rate.spread_ppm() <= 15, "{m:?}");
            assert!(m.rate.apart_ppm(hz) <= 15, "{m:?}");
        }
    }
}

#[test]
fn counters_that_begin_anew_during_the_boot() {
    // The 24-bit timer begins anew every 4.7 s, the PIT every 55 ms.
    let hz = 2_400_000_000;
    let counters = [(Counter::PIT, Health::Counts), (PM_24, Health::Counts)];
    for boot_us in [50_000, 54_900, 55_000, 110_000, 4_600_000, 4_700_000, 9_500_000] {
        let tracks = boot(&mut Machine::new(hz), &counters, (boot_us, 2_000, 20_000), QUIET);
        let found = measured(&tracks);
        assert_eq!(found.len(), 2, "{boot_us}");
        assert!(found.iter().all(|m| m.rate.contains(hz)), "{boot_us}: {found:?}");
        assert!(found.iter().all(|m| m.rate.spread_ppm() <= 100), "{boot_us}: {found:?}");
    }
}

#[test]
fn a_cpu_that_is_away_in_a_sample_makes_the_rate_unsure_and_not_wrong() {
    let hz = 2_596_000_000;
    let counters = [(Counter::PIT, Health::Counts), (PM_24, Health::Counts)];
    for away in [(4_000, 0), (0, 4_000), (20_000, 20_000), (100_000, 0), (0, 100_000)] {
        for place in 0..4 {
            let mut times = QUIET;
            times[place] = away;
            let tracks = boot(&mut Machine::new(hz), &counters, (100_000, 2_000, 30_000), times);
            for m in measured(&tracks) {
                assert!(m.rate.contains(hz), "{away:?} in {place}: {m:?}");
            }
        }
    }
}

#[test]
fn a_counter_that_stands_or_is_not_there_tells_nothing() {
    for health in [Health::Stands, Health::Absent] {
        for counter in [Counter::PIT, PM_24, PM_32, hpet()] {
            let mut machine = Machine::new(3_000_000_000);
            let tracks = boot(&mut machine, &[(counter, health)], (90_000, 2_000, 30_000), QUIET);
            assert_eq!(tracks[0].rate(), None, "{counter:?} {health:?}");
        }
    }
}

#[test]
fn one_that_stands_is_not_taken_for_one_that_began_anew() {
    // Every window is a multiple of the PIT's 55 ms.
    let mut machine = Machine::new(3_000_000_000);
    let counters = [(Counter::PIT, Health::Stands)];
    let tracks = boot(&mut machine, &counters, (109_850, 54_925, 54_925), QUIET);
    assert_eq!(tracks[0].rate(), None);
}

#[test]
fn the_slowest_of_short_windows_counts() {
    // In the first one the CPU was away for three rounds of the PIT.
    let hz = 1_000_000_000;
    let mut machine = Machine::new(hz);
    let mut track = Track::new(Counter::PIT);
    for wait in [165_000 + 1_000, 1_000] {
        let start = machine.sample(Counter::PIT, Health::Counts, (0, 0));
        machine.wait_us(wait);
        let end = machine.sample(Counter::PIT, Health::Counts, (0, 0));
        track.note_short(start, end);
        track.push(start);
        track.push(end);
    }
    assert!(track.rate().is_some_and(|rate| rate.contains(hz)), "{:?}", track.rate());
}

/// A short window that was no short one has the rate far too high; what was concluded from it
/// goes with it.
#[test]
fn what_a_false_short_window_taught_is_forgotten() {
    let hz = 1_000_000_000;
    let mut machine = Machine::new(hz);
    let mut track = Track::new(Counter::PIT);
    for wait in [54_925 + 1_000, 1_000] {
        let start = machine.sample(Counter::PIT, Health::Counts, (0, 0));
        track.push(start);
        machine.wait_us(wait);
        let end = machine.sample(Counter::PIT, Health::Counts, (0, 0));
        track.note_short(start, end);
        track.push(end);
    }
    machine.wait_us(3_000_000);
    track.push(machine.sample(Counter::PIT, Health::Counts, (0, 0)));
    let rate = track.rate().unwrap();
    assert!(rate.contains(hz) && rate.spread_ppm() <= 100, "{rate:?}");
}

#[test]
fn a_counter_that_stops_keeps_what_it_told() {
    let hz = 1_000_000_000;
    let mut machine = Machine::new(hz);
    let counters = [(Counter::PIT, Health::Counts)];
    let mut track = boot(&mut machine, &counters, (90_000, 2_000, 30_000), QUIET).remove(0);
    let before = track.rate().unwrap();
    for _ in 0..9 {
        machine.wait_us(70_000);
        track.push(machine.sample(Counter::PIT, Health::Stands, (0, 0)));
    }
    let rate = track.rate().unwrap();
    assert!(rate.contains(hz) && before.contains(rate.middle()), "{rate:?}");
}

#[test]
fn a_full_track_keeps_its_beginning() {
    let hz = 1_234_567_890;
    let mut machine = Machine::new(hz);
    let mut track = Track::new(PM_32);
    let start = machine.sample(PM_32, Health::Counts, (0, 0));
    machine.wait_us(1_000);
    let end = machine.sample(PM_32, Health::Counts, (0, 0));
    track.note_short(start, end);
    track.push(start);
    for _ in 0..40 {
        machine.wait_us(100_000);
        track.push(machine.sample(PM_32, Health::Counts, (0, 0)));
    }
    let rate = track.rate().unwrap();
    assert!(rate.contains(hz) && rate.spread_ppm() <= 1, "{rate:?}");
}

#[test]
fn a_sample_is_taken_again_until_it_is_narrow() {
    let mut widths = [900, 300, 40, 700].into_iter();
    let mut take = || Sample { before: 0, count: 0, after: widths.next().unwrap_or(500) };
    assert_eq!(best_sample(50, &mut take).width(), 40);
    // None is narrow enough: the best, and not for ever.
    let mut taken = 0;
    let mut take = || {
        taken += 1;
        Sample { before: 0, count: 0, after: 1_000 - taken }
    };
    assert_eq!(best_sample(5, &mut take).width(), 984);
    assert_eq!(taken, 16);
}

#[test]
fn an_hpet_with_an_impossible_period_is_none() {
    assert_eq!(Counter::hpet(0), None);
    assert_eq!(Counter::hpet(100_000_001), None);
    assert_eq!(Counter::hpet(u32::MAX), None);
    assert_eq!(Counter::hpet(100_000_000).map(|c| c.source), Some(Source::Hpet));
}

proptest! {
    /// However long the CPU is away, and wherever: the true rate is never excluded.
    #[test]
    fn the_truth_is_never_excluded(
        hz in 100_000_000_u64..10_000_000_000,
        boot_us in 0_u64..3_000_000,
        rest_us in prop_oneof![0_u64..200_000, 0_u64..6_000_000],
        away in prop::array::uniform4((0_u64..60_000, 0_u64..60_000)),
        quiet in any::<[bool; 4]>(),
        phase in 0_u128..5_000_000_000_000_000,
        access in 100_000_000_u128..20_000_000_000,
    ) {
        let mut machine = Machine::new(hz);
        machine.now += phase;
        machine.access = access;
        let mut times = away;
        for (time, quiet) in times.iter_mut().zip(quiet) {
            if quiet { *time = (0, 0); }
        }
        // A short window that was no short one is not the PIT's: see the test above.
        times[1].1 = 0;
        times[2].0 = 0;
        let counters = [Counter::PIT, PM_24, PM_32, hpet()].map(|c| (c, Health::Counts));
        let tracks = boot(&mut machine, &counters, (boot_us, 1_500, rest_us), times);
        for m in measured(&tracks) {
            prop_assert!(m.rate.contains(hz), "{:?} of {}", m, hz);
        }
    }

    /// Any values at all: no overflow, no panic.
    #[test]
    fn any_samples(
        samples in prop::collection::vec((any::<u64>(), any::<u64>(), any::<u64>()), 0..12),
        short in any::<[u64; 6]>(),
        period in any::<u32>(),
    ) {
        let counter = Counter::hpet(period).unwrap_or(Counter::PIT);
        let mut track = Track::new(counter);
        let sample = |(before, count, after)| Sample { before, count, after };
        track.note_short(sample((short[0], short[1], short[2])), sample((short[3], short[4], short[5])));
        for one in samples {
            track.push(sample(one));
            let _ = track.rate();
        }
    }
}
