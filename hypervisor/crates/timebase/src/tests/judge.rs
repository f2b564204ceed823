use super::machine::{Health, Machine, PM_24, boot, hpet, measured};
use crate::counter::Counter;
use crate::{Claim, Figure, Measured, Rate, Source, Verdict, Witness, judge};
use proptest::prelude::*;
use std::vec;
use std::vec::Vec;

fn about(source: Source, hz: u64, ppm: u32) -> Measured {
    let off = (hz * u64::from(ppm)).div_ceil(1_000_000);
    Measured { source, rate: Rate::new(hz - off, hz + off).unwrap() }
}

fn claim(hz: u64) -> Claim {
    Claim { by: Witness::CpuidCrystal, hz }
}

const GHZ: u64 = 1_000_000_000;

#[test]
fn two_clocks_that_agree_are_believed() {
    let measured = [about(Source::Pit, GHZ, 20), about(Source::PmTimer, GHZ + 50_000, 40)];
    let Verdict::Agreed { hz, by } = judge(&measured, &[]) else { panic!() };
    assert!(hz.abs_diff(GHZ) <= 50_000, "{hz}");
    assert_eq!(by, [Source::Pit, Source::PmTimer].map(Witness::Counter));
}

#[test]
fn neither_may_be_off_by_more_than_they_agree() {
    let measured = [about(Source::Pit, GHZ, 20), about(Source::PmTimer, GHZ, 150)];
    assert!(matches!(judge(&measured, &[]), Verdict::Apart(..)));
}

#[test]
fn a_claim_that_clocks_contradict_is_not_believed() {
    // An emulator whose CPUID has the model's 3.5 GHz and whose TSC runs at 1 GHz.
    let measured = [about(Source::Pit, GHZ, 80), about(Source::PmTimer, GHZ, 60)];
    let Verdict::Agreed { hz, .. } = judge(&measured, &[claim(3_500_000_000)]) else { panic!() };
    assert!(hz.abs_diff(GHZ) < 1_000);
    let one = [about(Source::Pit, GHZ, 80)];
    let Verdict::Apart(best, next) = judge(&one, &[claim(3_500_000_000)]) else { panic!() };
    assert_eq!(best, Figure { by: Witness::Counter(Source::Pit), hz: GHZ });
    assert_eq!(next.hz, 3_500_000_000);
    // Two claims of one and the same source do not make a clock.
    let claims = [claim(3_500_000_000), Claim { by: Witness::CpuidBase, hz: 3_500_000_000 }];
    assert_eq!(judge(&[], &claims), Verdict::Nothing);
}

#[test]
fn a_claim_that_a_clock_confirms_is_more_exact() {
    let hz = 2_112_000_000;
    let one = [about(Source::Hpet, hz + 40_000, 50)];
    let expected = [Witness::Counter(Source::Hpet), Witness::CpuidCrystal];
    assert_eq!(judge(&one, &[claim(hz)]), Verdict::Agreed { hz, by: expected });
    // Out of what the clock allows, but near: the clock's.
    let one = [about(Source::Hpet, hz + 200_000, 50)];
    let Verdict::Agreed { hz: found, .. } = judge(&one, &[claim(hz)]) else { panic!() };
    assert_eq!(found, hz + 200_000);
}

#[test]
fn of_three_clocks_the_two_that_agree_win() {
    let measured = [
        about(Source::Pit, GHZ * 3, 1),
        about(Source::PmTimer, GHZ, 60),
        about(Source::Hpet, GHZ, 70),
    ];
    let Verdict::Agreed { hz, by } = judge(&measured, &[]) else { panic!() };
    assert!(hz.abs_diff(GHZ) < 1_000);
    assert_eq!(by, [Source::PmTimer, Source::Hpet].map(Witness::Counter));
}

#[test]
fn one_clock_alone_is_told_as_such() {
    let one = [about(Source::PmTimer, GHZ, 30)];
    let figure = Figure { by: Witness::Counter(Source::PmTimer), hz: GHZ };
    assert_eq!(judge(&one, &[]), Verdict::Alone(figure));
    assert_eq!(judge(&[], &[]), Verdict::Nothing);
    assert_eq!(std::format!("{figure}"), "the ACPI PM timer 1000.000 MHz");
}

/// Machines without some clocks: right, or unsure, or nothing.
#[test]
fn machines_without_some_clocks() {
    let hz = 2_596_000_000;
    let healths = [Health::Counts, Health::Stands, Health::Absent];
    for pit in healths {
        for pm in healths {
            for high in healths {
                let counters = [(Counter::PIT, pit), (PM_24, pm), (hpet(), high)];
                let mut machine = Machine::new(hz);
                let tracks = boot(&mut machine, &counters, (110_000, 2_000, 30_000), [(0, 0); 4]);
                let healthy = [pit, pm, high].iter().filter(|h| **h == Health::Counts).count();
                let near = |found: u64| found.abs_diff(hz) * 1_000_000 / hz <= 50;
                match (healthy, judge(&measured(&tracks), &[claim(3_500_000_000)])) {
                    (0, Verdict::Nothing) => {}
                    (1, Verdict::Apart(best, next)) => {
                        assert!(near(best.hz), "{best:?}");
                        assert_eq!(next.by, Witness::CpuidCrystal);
                    }
                    (2.., Verdict::Agreed { hz: found, .. }) => assert!(near(found), "{found}"),
                    other => panic!("{pit:?} {pm:?} {high:?}: {other:?}"),
                }
            }
        }
    }
}

/// A machine whose only clock is the PIT, where each access takes 10 µs, and where CPUs that do
/// not come cost seconds between the rough measurement and the last sample.
#[test]
fn the_pit_alone_is_believed_however_long_the_boot_takes() {
    let hz = 2_596_000_000;
    let counters = [(Counter::PIT, Health::Counts)];
    for rest_us in [0, 30_000, 400_000, 2_000_000, 4_000_000, 5_300_000] {
        for boot_us in [5_000, 30_000, 200_000] {
            let mut machine = Machine::new(hz);
            machine.access = 10_000_000_000;
            let tracks = boot(&mut machine, &counters, (boot_us, 1_000, rest_us), [(0, 0); 4]);
            let verdict = judge(&measured(&tracks), &[]);
            let Verdict::Alone(figure) = verdict else {
                panic!("{boot_us} {rest_us}: {verdict:?}")
            };
            // One sample is 10 µs wide, and one at each end.
            let exact = 1_000_000 * 12 / u64::min(boot_us + rest_us, 300_000);
            let ppm = figure.hz.abs_diff(hz) * 1_000_000 / hz;
            assert!(ppm <= exact, "{boot_us} {rest_us}: {ppm}");
        }
    }
}

proptest! {
    /// A rate that is agreed on is within a hundred parts per million of the truth, whatever
    /// the CPU did meanwhile, and if CPUID tells the truth or something quite different. A claim
    /// that is wrong by so little that the clocks allow it is believed: then it is two hundred.
    #[test]
    fn what_is_agreed_on_is_true(
        hz in 200_000_000_u64..6_000_000_000,
        boot_us in 0_u64..700_000,
        rest_us in 0_u64..100_000,
        away in prop::array::uniform4((0_u64..20_000, 0_u64..20_000)),
        quiet in any::<[bool; 4]>(),
        elsewhere in 200_000_000_u64..6_000_000_000,
        off_ppm in prop_oneof![Just(None), (-300_i64..=300).prop_map(Some)],
        clocks in prop::sample::subsequence(vec![Counter::PIT, PM_24, hpet()], 1..=3),
    ) {
        let mut times = away;
        for (time, quiet) in times.iter_mut().zip(quiet) {
            if quiet { *time = (0, 0); }
        }
        let counters: Vec<_> = clocks.into_iter().map(|c| (c, Health::Counts)).collect();
        let tracks = boot(&mut Machine::new(hz), &counters, (boot_us, 2_000, rest_us), times);
        let near = |ppm: i64| hz.saturating_add_signed(hz.cast_signed() / 1_000_000 * ppm);
        let said = off_ppm.map_or(elsewhere, near);
        let limit = match hz.abs_diff(said) * 1_000_000 / hz {
            1..=200 => 200,
            _ => 100,
        };
        if let Verdict::Agreed { hz: found, .. } = judge(&measured(&tracks), &[claim(said)]) {
            prop_assert!(found.abs_diff(hz) * 1_000_000 / hz <= limit, "{} for {}", found, hz);
        }
    }
}
