//! Guests that sleep and wake so fast that it hurts: what is left to their neighbour.
//! Switches take their time here, and a sleeper may be due again within one.

extern crate std;

use config::CpuSet;
use std::vec::Vec;

use crate::tests::sim::*;
use crate::*;
use proptest::prelude::*;

/// Costs as measured, and a little more.
const COSTS: Costs = Costs { load: 3 * MICRO, save: 2 * MICRO, gap: MICRO, exit: MICRO };

/// Work that a guest of this weight gets done in half a second beside others of weight
/// 100, in per mille of the time.
fn beside(costs: Costs, weight: u32, victim: Work, others: &[Work]) -> f64 {
    let mut sim = Sim::new(1, 11);
    sim.costs = costs;
    let mine = sim.guest(Share { weight, ..Share::default() });
    sim.actor(mine, Kind::Vcpu, CpuSet::ALL, victim);
    for &work in others {
        let guest = sim.guest(Share::default());
        sim.actor(guest, Kind::Vcpu, CpuSet::ALL, work);
    }
    sim.run_for(50 * MILLI);
    let before = sim.inside(mine);
    sim.run_for(SECOND / 2);
    sim.settle_books();
    assert!(sim.faults.is_empty(), "{:?}", sim.faults);
    (sim.inside(mine) - before) as f64 * 1000.0 / (SECOND / 2) as f64
}

/// Costs up to twice what they are.
fn costs() -> impl Strategy<Value = Costs> {
    (0..6 * MICRO, 0..4 * MICRO, 0..3 * MICRO, 0..MICRO).prop_map(|(load, save, gap, exit)| Costs {
        load,
        save,
        gap,
        exit,
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever its neighbours' bursts and sleeps are, and whoever wakes them, a guest that
    /// computes keeps its share in time that it computes: the switches are theirs.
    #[test]
    fn who_computes_keeps_its_share(
        costs in costs(),
        burst in prop_oneof![1..40 * MICRO, 1..400 * MICRO],
        sleep in prop_oneof![1..10 * MICRO, 1..100 * MICRO],
        own in any::<bool>(),
        attackers in 1usize..4,
        weight in prop_oneof![2 => Just(100u32), 1 => Just(10_000), 1 => 50u32..400],
    ) {
        let work = if own { Work::Alarm } else { Work::Ticker };
        let others = std::vec![work(burst, sleep); attackers];
        let share = f64::from(weight) / (f64::from(weight) + 100.0 * attackers as f64);
        let got = beside(costs, weight, Work::Hog, &others);
        let least = 1000.0 * share * 0.92;
        prop_assert!(got >= least, "{got:.0} per mille of {:.0}", 1000.0 * share);
    }
}

/// The storms that have been worst.
#[test]
fn the_worst_storms_leave_a_neighbour_its_share() {
    for gap in [300, 2 * MICRO] {
        for sleep in [MICRO, 3 * MICRO, 6 * MICRO] {
            for burst in [1, 10, 25, 100, 400] {
                let costs = Costs { gap, ..COSTS };
                let work = Work::Alarm(burst * MICRO, sleep);
                for (weight, count, least) in [(100, 1, 480.0), (100, 3, 230.0), (10_000, 1, 970.0)]
                {
                    let got = beside(costs, weight, Work::Hog, &std::vec![work; count]);
                    assert!(got >= least, "{got:.0} beside {count} {work:?}, gaps of {gap}");
                }
            }
        }
    }
}

#[test]
fn brief_sleepers_keep_their_share() {
    for (burst, sleep, least) in [(200, 6, 0.45), (1000, 100, 0.48), (400, 1, 0.46)] {
        let work = Work::Alarm(burst * MICRO, sleep * MICRO);
        let alone = beside(COSTS, 100, work, &[]);
        let got = beside(COSTS, 100, work, &[Work::Hog]) / alone;
        assert!(got >= least, "{got:.2} of what it has alone, with bursts of {burst}");
    }
}

/// A storm of interrupts from another CPU to a vCPU that has nothing to do.
#[test]
fn a_storm_of_interrupts_is_limited() {
    for delay in [100, MICRO, 5 * MICRO, 10 * MICRO] {
        let got = beside(COSTS, 100, Work::Hog, &[Work::Ticker(1, delay)]);
        assert!(got >= 480.0, "{got:.0} with interrupts after {delay}");
    }
}

/// Work that a pinned guest of this weight gets done beside a vCPU that wakes a sibling before
/// each sleep, in per mille: the other's weight is spread over several when it leaves, and its
/// own alone when it comes back.
fn beside_a_family(weight: u32, siblings: usize, burst: u64, sleep: u64) -> f64 {
    let mut sim = Sim::new(1 + siblings, 11);
    sim.costs = COSTS;
    let victims: Vec<usize> = (0..=siblings)
        .map(|cpu| {
            let guest = sim.guest(Share { weight, ..Share::default() });
            sim.actor(guest, Kind::Vcpu, CpuSet::one(cpu), Work::Hog);
            guest
        })
        .collect();
    let attacker = sim.guest(Share::default());
    sim.actor(attacker, Kind::Vcpu, CpuSet::one(0), Work::Accomplice(burst, sleep));
    for cpu in 1..=siblings {
        // Each wakes the next one, the last one nobody.
        let never = 100 * SECOND;
        let work =
            if cpu == siblings { Work::Ticker(1, never) } else { Work::Accomplice(1, never) };
        sim.actor(attacker, Kind::Vcpu, CpuSet::one(cpu), work);
    }
    sim.run_for(50 * MILLI);
    let before = sim.inside(victims[0]);
    sim.run_for(SECOND / 2);
    sim.settle_books();
    assert!(sim.faults.is_empty(), "{:?}", sim.faults);
    (sim.inside(victims[0]) - before) as f64 * 1000.0 / (SECOND / 2) as f64
}

#[test]
fn who_wakes_a_sibling_before_it_sleeps_gains_nothing() {
    for (weight, siblings, least) in [(100, 1, 480.0), (100, 3, 480.0), (10_000, 1, 970.0)] {
        for (burst, sleep) in [(150, 100), (190, 60), (190, 100), (190, 150)] {
            let got = beside_a_family(weight, siblings, burst * MICRO, sleep * MICRO);
            assert!(
                got >= least,
                "{got:.0} of weight {weight} beside {siblings}, {burst} us, {sleep} us"
            );
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_family_takes_more_than_its_share(
        weight in prop_oneof![Just(100u32), Just(10_000)],
        siblings in 1usize..4,
        burst in prop_oneof![1..200 * MICRO, 1..MILLI],
        sleep in prop_oneof![1..200 * MICRO, 1..2 * MILLI],
    ) {
        let got = beside_a_family(weight, siblings, burst, sleep);
        let share = 1000.0 * f64::from(weight) / (f64::from(weight) + 100.0);
        prop_assert!(got >= share * 0.95, "{got:.0} per mille of {share:.0}");
    }
}
