//! Single steps, by hand.

extern crate std;

use crate::tests::sim::{MICRO, MILLI, timing};
use crate::*;
use config::{CpuSet, GuestSettings};
use service::Stop;

fn one(cpus: usize) -> (Scheduler, GuestId) {
    let mut sched = Scheduler::new(cpus, timing());
    let guest = sched.add_guest(Share::default(), 0).unwrap();
    (sched, guest)
}

fn runs(decision: Decision) -> Option<EntityId> {
    match decision {
        Decision::Run(choice) => Some(choice.id),
        Decision::Idle { .. } => None,
    }
}

#[test]
fn settings_out_of_range_are_refused() {
    let (mut sched, guest) = one(2);
    let with = |weight, cap, reserve| Share { weight, cap, reserve };
    for (settings, error) in [
        (with(0, None, 0), SchedError::Weight(0)),
        (with(10_001, None, 0), SchedError::Weight(10_001)),
        (with(1, Some(0), 0), SchedError::Cap(0)),
        (with(1, Some(6401), 0), SchedError::Cap(6401)),
        (with(1, None, 51), SchedError::Reserve(51)),
    ] {
        assert_eq!(sched.add_guest(settings, 0), Err(error));
    }
    let error = sched.add(guest, Kind::Vcpu, CpuSet::one(2), 0).unwrap_err();
    assert_eq!(std::format!("{error}"), "affinity {2}: this machine has the CPUs 0 to 1");
    let kicks = sched.remove_guest(guest, 0).unwrap();
    assert!(kicks.0.is_empty());
    assert_eq!(sched.add(guest, Kind::Vcpu, CpuSet::ALL, 0), Err(SchedError::NoGuest));
}

#[test]
fn names_are_not_used_again() {
    let (mut sched, guest) = one(1);
    let first = sched.add(guest, Kind::Vcpu, CpuSet::ALL, 0).unwrap();
    let _ = sched.remove(first, 0).unwrap();
    let second = sched.add(guest, Kind::Vcpu, CpuSet::ALL, 0).unwrap();
    assert_ne!(first, second);
    assert!(!sched.has(first) && sched.has(second));
    let _ = sched.wake(first, 0, Reason::Other);
    assert_eq!(runs(sched.next(0, 1).0), None);
    assert_eq!(sched.remove(first, 1), Err(SchedError::NoEntity));
}

#[test]
fn a_wake_up_on_the_way_to_sleep_is_not_lost() {
    let (mut sched, guest) = one(1);
    let id = sched.add(guest, Kind::Vcpu, CpuSet::ALL, 0).unwrap();
    let _ = sched.wake(id, 0, Reason::Other);
    assert_eq!(runs(sched.next(0, 10).0), Some(id));
    // The interrupt comes while the CPU serves the HLT.
    assert!(sched.wake(id, 20, Reason::Interrupt).0.is_empty());
    let _ = sched.stopped(0, 30, Stop::Blocked, Stay::default());
    assert_eq!(runs(sched.next(0, 30).0), Some(id));
    let _ = sched.stopped(0, 40, Stop::Blocked, Stay::default());
    assert_eq!(sched.next(0, 40).0, Decision::Idle { until: None });
    assert_eq!(sched.wake(id, 50, Reason::Interrupt).0, CpuSet::one(0));
}

#[test]
fn idle_cpus_are_woken_and_steal() {
    let (mut sched, guest) = one(2);
    assert_eq!(sched.next(0, 0).0, Decision::Idle { until: None });
    let first = sched.add(guest, Kind::Vcpu, CpuSet::ALL, 0).unwrap();
    let second = sched.add(guest, Kind::Vcpu, CpuSet::one(0), 0).unwrap();
    assert_eq!(sched.wake(first, 0, Reason::Other).0, CpuSet::one(0));
    let _ = sched.wake(second, 0, Reason::Other);
    // CPU 1 comes up later and takes what may leave CPU 0.
    assert_eq!(runs(sched.next(1, 5).0), Some(first));
    assert_eq!(runs(sched.next(0, 5).0), Some(second));
    let times = sched.entity_times(first, 5).unwrap();
    assert_eq!((times.ready, times.migrations, times.longest_ready), (5, 1, 5));
    // Nobody else waits for CPU 1 when its time is over: it runs on.
    let _ = sched.stopped(1, MILLI, Stop::Ready, Stay::default());
    assert_eq!(runs(sched.next(1, MILLI).0), Some(first));
}

#[test]
fn pausing_is_idempotent_and_keeps_wake_ups() {
    let (mut sched, guest) = one(1);
    let id = sched.add(guest, Kind::Vcpu, CpuSet::ALL, 0).unwrap();
    assert_eq!(runs(sched.next(0, 0).0), None);
    assert_eq!(sched.pause(guest, 0).unwrap().0, CpuSet::EMPTY);
    assert_eq!(sched.pause(guest, 0).unwrap().0, CpuSet::EMPTY);
    assert_eq!(sched.wake(id, 10, Reason::Interrupt).0, CpuSet::EMPTY);
    assert_eq!(runs(sched.next(0, 20).0), None);
    assert_eq!(sched.resume(guest, 30).unwrap().0, CpuSet::one(0));
    assert_eq!(sched.resume(guest, 30).unwrap().0, CpuSet::EMPTY.or(CpuSet::EMPTY));
    assert_eq!(runs(sched.next(0, 40).0), Some(id));
    let times = sched.entity_times(id, 50).unwrap();
    assert_eq!((times.wait, times.paused, times.ready, times.run), (10, 20, 10, 10));
}

#[test]
fn a_removed_guest_goes_when_its_last_cpu_has_stopped() {
    let (mut sched, guest) = one(2);
    let id = sched.add(guest, Kind::Vcpu, CpuSet::ALL, 0).unwrap();
    let _ = sched.wake(id, 0, Reason::Other);
    assert_eq!(runs(sched.next(0, 0).0), Some(id));
    assert_eq!(sched.remove_guest(guest, 10).unwrap().0, CpuSet::one(0));
    assert!(sched.has_guest(guest) && sched.has(id));
    let _ = sched.stopped(0, 20, Stop::Ready, Stay::default());
    assert!(!sched.has_guest(guest) && !sched.has(id));
    assert_eq!(runs(sched.next(0, 20).0), None);
}

#[test]
fn an_interrupt_preempts_a_slice_but_no_step() {
    for (kind, kicked) in [(Kind::Vcpu, true), (Kind::Service, false)] {
        let (mut sched, guest) = one(1);
        let hog = sched.add(guest, kind, CpuSet::ALL, 0).unwrap();
        let other = sched.add_guest(Share::default(), 0).unwrap();
        let sleeper = sched.add(other, Kind::Vcpu, CpuSet::ALL, 0).unwrap();
        let _ = sched.wake(hog, 0, Reason::Other);
        assert_eq!(runs(sched.next(0, 0).0), Some(hog));
        let kicks = sched.wake(sleeper, 110 * MICRO, Reason::Interrupt);
        assert_eq!(kicks.0.contains(0), kicked);
        let _ = sched.stopped(0, 120 * MICRO, Stop::Ready, Stay::default());
        let Decision::Run(choice) = sched.next(0, 120 * MICRO).0 else { panic!("idle") };
        assert_eq!((choice.id, choice.until), (sleeper, 320 * MICRO));
    }
}

#[test]
fn nobody_is_preempted_before_the_least() {
    let (mut sched, guest) = one(1);
    let hog = sched.add(guest, Kind::Vcpu, CpuSet::ALL, 0).unwrap();
    let other = sched.add_guest(Share::default(), 0).unwrap();
    let sleeper = sched.add(other, Kind::Vcpu, CpuSet::ALL, 0).unwrap();
    let _ = sched.wake(hog, 0, Reason::Other);
    let Decision::Run(choice) = sched.next(0, 0).0 else { panic!("idle") };
    assert_eq!(choice.least, 100 * MICRO);
    assert!(!sched.is_hurried(0, 10 * MICRO));
    // No kick, for it would cost the running one an exit: the CPU asks.
    assert!(sched.wake(sleeper, 20 * MICRO, Reason::Interrupt).0.is_empty());
    assert!(sched.is_hurried(0, 100 * MICRO));
    let _ = sched.stopped(0, 101 * MICRO, Stop::Ready, Stay::default());
    assert_eq!(runs(sched.next(0, 101 * MICRO).0), Some(sleeper));
    assert!(!sched.is_hurried(0, 102 * MICRO));
}

#[test]
fn clocks_that_differ_lose_no_wake_up() {
    let (mut sched, guest) = one(2);
    let hog = sched.add(guest, Kind::Vcpu, CpuSet::one(0), 0).unwrap();
    let other = sched.add_guest(Share::default(), 0).unwrap();
    let sleeper = sched.add(other, Kind::Vcpu, CpuSet::one(0), 0).unwrap();
    let _ = sched.wake(hog, 0, Reason::Other);
    assert_eq!(runs(sched.next(0, 0).0), Some(hog));
    assert!(!sched.is_hurried(0, 100 * MICRO));
    // The other CPU's clock is behind; the first one asks no more.
    assert!(sched.wake(sleeper, 99 * MICRO, Reason::Interrupt).0.contains(0));
}

/// Service that a guest is owed, or owes (less than 0), in microseconds.
fn owed(sched: &mut Scheduler, guest: GuestId, now: u64) -> i64 {
    let v = sched.virtual_time(0, now).v;
    let guest = sched.guests.resolve(guest.0).unwrap();
    let guest = sched.guests.get(guest).unwrap();
    let cell = guest.cells[0];
    let ticks = guest.virtual_ticks(1, cell.n.max(1));
    i64::try_from(((v - cell.v) / ticks + 500).div_euclid(1000)).unwrap()
}

#[test]
fn a_debt_is_paid_with_service_of_others_alone() {
    let (mut sched, debtor) = one(1);
    let sleeper = sched.add(debtor, Kind::Vcpu, CpuSet::ALL, 0).unwrap();
    let other = sched.add_guest(Share::default(), 0).unwrap();
    let hog = sched.add(other, Kind::Vcpu, CpuSet::ALL, 0).unwrap();
    let _ = sched.wake(sleeper, 0, Reason::Other);
    assert_eq!(runs(sched.next(0, 0).0), Some(sleeper));
    let _ = sched.wake(hog, 0, Reason::Other);
    let _ = sched.stopped(0, MILLI, Stop::Blocked, Stay::default());
    assert_eq!(owed(&mut sched, debtor, MILLI), -500);
    // The CPU takes its time to decide, and sleeps: nobody gets anything of that.
    assert_eq!(owed(&mut sched, debtor, 2 * MILLI), -500);
    assert_eq!(runs(sched.next(0, 2 * MILLI).0), Some(hog));
    let _ = sched.wake(sleeper, 2 * MILLI + 600 * MICRO, Reason::Other);
    assert_eq!(owed(&mut sched, debtor, 2 * MILLI + 600 * MICRO), -200);
}

/// Service on a CPU, in microseconds, whatever the weight is.
fn lag(sched: &mut Scheduler, guest: GuestId, cpu: usize, now: u64) -> i64 {
    let v = sched.virtual_time(cpu, now).v;
    let guest = sched.guests.resolve(guest.0).unwrap();
    let cell = sched.guests.get(guest).unwrap().cells[cpu];
    let ticks = ((v - cell.v) * i128::from(cell.weight)) >> 32;
    i64::try_from((ticks + 500).div_euclid(1000)).unwrap()
}

#[test]
fn a_debt_outlives_every_change_of_weight() {
    let mut sched = Scheduler::new(2, timing());
    let debtor = sched.add_guest(Share::default(), 0).unwrap();
    let [first, second] =
        [0, 1].map(|cpu| sched.add(debtor, Kind::Vcpu, CpuSet::one(cpu), 0).unwrap());
    for cpu in [0, 1] {
        let other = sched.add_guest(Share::default(), 0).unwrap();
        let hog = sched.add(other, Kind::Vcpu, CpuSet::one(cpu), 0).unwrap();
        if cpu == 0 {
            let _ = sched.wake(first, 0, Reason::Other);
            assert_eq!(runs(sched.next(cpu, 0).0), Some(first));
        }
        let _ = sched.wake(hog, 0, Reason::Other);
    }
    assert!(runs(sched.next(1, 0).0).is_some());
    let now = MILLI;
    assert_eq!(lag(&mut sched, debtor, 0, now), -500);
    let _ = sched.wake(second, now, Reason::Other);
    assert_eq!(lag(&mut sched, debtor, 0, now), -500, "a sibling wakes");
    let _ = sched.stopped(0, now, Stop::Blocked, Stay::default());
    assert_eq!(lag(&mut sched, debtor, 0, now), -500, "it sleeps");
    let _ = sched.remove(second, now).unwrap();
    let _ = sched.wake(first, now, Reason::Other);
    assert_eq!(lag(&mut sched, debtor, 0, now), -500, "it wakes alone");
}

#[test]
fn what_a_sleeper_is_owed_it_is_owed_when_it_wakes() {
    let (mut sched, brief) = one(1);
    let sleeper = sched.add(brief, Kind::Vcpu, CpuSet::ALL, 0).unwrap();
    let other = sched.add_guest(Share::default(), 0).unwrap();
    let hog = sched.add(other, Kind::Vcpu, CpuSet::ALL, 0).unwrap();
    let _ = sched.wake(hog, 0, Reason::Other);
    assert_eq!(runs(sched.next(0, 0).0), Some(hog));
    let _ = sched.wake(sleeper, 0, Reason::Other);
    let _ = sched.stopped(0, 2 * MILLI, Stop::Ready, Stay::default());
    assert_eq!(runs(sched.next(0, 2 * MILLI).0), Some(sleeper));
    let _ = sched.stopped(0, 2 * MILLI + 200 * MICRO, Stop::Blocked, Stay::default());
    let now = 2 * MILLI + 200 * MICRO;
    assert_eq!(runs(sched.next(0, now).0), Some(hog));
    // Sleep adds nothing, and takes nothing for a round.
    let now = now + 11 * MILLI;
    let _ = sched.wake(sleeper, now, Reason::Interrupt);
    assert_eq!(owed(&mut sched, brief, now), 900);
    let _ = sched.stopped(0, now, Stop::Ready, Stay::default());
    assert_eq!(runs(sched.next(0, now).0), Some(sleeper));
    let _ = sched.stopped(0, now, Stop::Blocked, Stay::default());
    assert_eq!(runs(sched.next(0, now).0), Some(hog));
    let _ = sched.wake(sleeper, now + 13 * MILLI, Reason::Interrupt);
    assert_eq!(owed(&mut sched, brief, now + 13 * MILLI), 0);
}

#[test]
fn who_causes_a_switch_pays_for_it() {
    let (mut sched, first) = one(1);
    let hog = sched.add(first, Kind::Vcpu, CpuSet::ALL, 0).unwrap();
    let second = sched.add_guest(Share::default(), 0).unwrap();
    let sleeper = sched.add(second, Kind::Vcpu, CpuSet::ALL, 0).unwrap();
    let _ = sched.wake(hog, 0, Reason::Other);
    assert_eq!(runs(sched.next(0, 0).0), Some(hog));
    let _ = sched.wake(sleeper, 50 * MICRO, Reason::Interrupt);
    // It leaves at 100, is saved until 110, and the other is loaded from 115 to 125.
    let stay = Stay { entered: 0, left: 100 * MICRO };
    let _ = sched.stopped(0, 110 * MICRO, Stop::Ready, stay);
    assert_eq!(runs(sched.next(0, 115 * MICRO).0), Some(sleeper));
    // 50 µs of the first that the second waited for, and 30 of its own.
    assert_eq!(owed(&mut sched, second, 130 * MICRO), 10);
    // It sleeps: the way back is its doing, too, as far as it is known how long that takes.
    let stay = Stay { entered: 125 * MICRO, left: 135 * MICRO };
    let _ = sched.stopped(0, 140 * MICRO, Stop::Blocked, stay);
    assert_eq!(runs(sched.next(0, 140 * MICRO).0), Some(hog));
    let change = sched.cpus[0].change;
    assert_eq!(change, 15 * MICRO / 8);
    assert_eq!(owed(&mut sched, first, 140 * MICRO + change), owed(&mut sched, first, 140 * MICRO));
}

#[test]
fn a_guest_that_owes_can_leave() {
    let (mut sched, debtor) = one(1);
    let sleeper = sched.add(debtor, Kind::Vcpu, CpuSet::ALL, 0).unwrap();
    let other = sched.add_guest(Share::default(), 0).unwrap();
    let hog = sched.add(other, Kind::Vcpu, CpuSet::ALL, 0).unwrap();
    let _ = sched.wake(sleeper, 0, Reason::Other);
    let _ = sched.wake(hog, 0, Reason::Other);
    let _ = sched.next(0, 0);
    let _ = sched.stopped(0, MILLI, Stop::Blocked, Stay::default());
    assert_eq!(sched.cpus[0].active.len(), 2);
    let _ = sched.remove_guest(debtor, MILLI).unwrap();
    assert!(!sched.has_guest(debtor));
    assert_eq!(sched.cpus[0].active.len(), 1);
    // The place in the table is used again: by one that owes nothing.
    let third = sched.add_guest(Share::default(), MILLI).unwrap();
    let new = sched.add(third, Kind::Vcpu, CpuSet::ALL, MILLI).unwrap();
    let _ = sched.wake(new, MILLI, Reason::Interrupt);
    assert_eq!(owed(&mut sched, third, MILLI), 0);
    assert_eq!(runs(sched.next(0, MILLI).0), Some(new));
}

#[test]
fn a_capped_guest_tells_the_cpu_when_it_may_go_on() {
    let mut sched = Scheduler::new(1, timing());
    let settings = Share { cap: Some(10), ..Share::default() };
    let guest = sched.add_guest(settings, 0).unwrap();
    let id = sched.add(guest, Kind::Vcpu, CpuSet::ALL, 0).unwrap();
    let _ = sched.wake(id, 0, Reason::Other);
    let mut now = 0;
    let until = loop {
        match sched.next(0, now).0 {
            Decision::Run(choice) => now = choice.until,
            Decision::Idle { until } => break until.unwrap(),
        }
        let _ = sched.stopped(0, now, Stop::Ready, Stay::default());
    };
    // A full bucket (4 ms), and what drips in meanwhile.
    assert!((4 * MILLI..5 * MILLI).contains(&now), "{now}");
    // A millisecond takes ten to drip in, less what is there: under a half.
    assert!((now + 5 * MILLI..=now + 10 * MILLI).contains(&until), "{now} to {until}");
    // A CPU that looks before, when half of it is there, learns the same.
    let early = now + 5 * MILLI;
    assert_eq!(sched.next(0, early).0, Decision::Idle { until: Some(until) });
    assert_eq!(runs(sched.next(0, until).0), Some(id));
    let throttled = sched.guest_times(guest, until).unwrap().throttled;
    assert_eq!(throttled, until - now);
}

#[test]
fn what_a_cap_lets_in_early_does_not_hide_others() {
    // Two vCPUs of a capped guest: one has set all the time aside, the other
    // sends CPU 1 to sleep.
    let mut sched = Scheduler::new(2, timing());
    let settings = Share { cap: Some(100), ..Share::default() };
    let capped = sched.add_guest(settings, 0).unwrap();
    let first = sched.add(capped, Kind::Vcpu, CpuSet::one(0), 0).unwrap();
    let second = sched.add(capped, Kind::Vcpu, CpuSet::one(1), 0).unwrap();
    let _ = sched.wake(first, 0, Reason::Other);
    assert_eq!(runs(sched.next(0, 0).0), Some(first));
    let _ = sched.wake(second, 0, Reason::Other);
    assert!(matches!(sched.next(1, 0).0, Decision::Idle { until: Some(_) }));
    let other = sched.add_guest(Share::default(), 0).unwrap();
    let third = sched.add(other, Kind::Vcpu, CpuSet::one(0), 0).unwrap();
    let fourth = sched.add(other, Kind::Vcpu, CpuSet::one(0), 0).unwrap();
    let _ = sched.wake(third, 0, Reason::Other);
    let _ = sched.wake(fourth, 0, Reason::Other);
    // The first blocks early and gives its time back; CPU 1 must look again.
    let now = 10 * MICRO;
    let _ = sched.stopped(0, now, Stop::Blocked, Stay::default());
    let (decision, kicks) = sched.next(0, now);
    assert!(runs(decision).is_some());
    assert!(kicks.0.contains(1));
    assert_eq!(runs(sched.next(1, now).0), Some(second));
}

#[test]
fn nothing_breaks_on_nonsense() {
    let (mut sched, guest) = one(1);
    let id = sched.add(guest, Kind::Vcpu, CpuSet::ALL, 100).unwrap();
    let _ = sched.stopped(0, 0, Stop::Blocked, Stay::default());
    let _ = sched.stopped(77, 0, Stop::Blocked, Stay::default());
    assert_eq!(sched.next(64, 0).0, Decision::Idle { until: None });
    let _ = sched.wake(id, 50, Reason::Other);
    let _ = sched.wake(id, 50, Reason::Interrupt);
    // Asked twice without a stop between: the first turn counts as over.
    assert_eq!(runs(sched.next(0, 100).0), Some(id));
    assert_eq!(runs(sched.next(0, 90).0), Some(id));
    let _ = sched.stopped(0, 120, Stop::Blocked, Stay::default());
    assert_eq!(runs(sched.next(0, 130).0), None);
    assert_eq!(sched.running(0), None);
}

#[test]
fn a_guest_s_share_is_what_its_settings_say() {
    let mut guest = GuestSettings::new("g", 1 << 20, "kernel");
    assert_eq!(Share::of(&guest), Share::default());
    guest.weight = 7;
    guest.cap = Some(150);
    assert_eq!(Share::of(&guest), Share { weight: 7, cap: Some(150), reserve: 0 });
}
