//! SDM: "APIC Timer", "TSC-Deadline Mode".

use super::*;
use crate::lapic::timer::MIN_PERIOD_NS;

const ONE_SHOT: u32 = 0;
const PERIODIC: u32 = 1 << 17;
const DEADLINE: u32 = 1 << 18;
const MASKED: u32 = 1 << 16;
const VECTOR: u8 = 0xec;

fn at(apic: &mut Lapic, offset: u64, value: u32, now: u64) {
    let _ = apic.mmio_write(offset, Width::B4, value, Ticks(now)).unwrap();
}

fn count(apic: &mut Lapic, now: u64) -> u32 {
    apic.mmio_read(0x390, Width::B4, Ticks(now)).unwrap()
}

fn armed(mode: u32, divide: u32, initial: u32, now: u64) -> Lapic {
    let mut apic = xapic(0);
    at(&mut apic, 0x3e0, divide, now);
    at(&mut apic, 0x320, mode | u32::from(VECTOR), now);
    at(&mut apic, 0x380, initial, now);
    apic
}

fn take(apic: &mut Lapic) {
    assert_eq!(apic.deliverable(), Some(VECTOR));
    apic.acknowledge(VECTOR);
    apic.eoi();
}

#[test]
fn one_shot() {
    let mut apic = armed(ONE_SHOT, 0b1011, 1000, 500);
    assert_eq!(apic.deadline(), Some(Ticks(1500)));
    assert_eq!(count(&mut apic, 500), 1000);
    assert_eq!(count(&mut apic, 1499), 1);
    assert!(!apic.advance(Ticks(1499)));
    assert!(apic.advance(Ticks(1500)));
    take(&mut apic);
    assert_eq!(apic.deadline(), None);
    assert_eq!(count(&mut apic, 1500), 0);
    assert!(!apic.advance(Ticks(9999)));
    assert_eq!(load(&mut apic, 0x380), 1000, "the initial count stays");
}

#[test]
fn divisors() {
    for (bits, divisor) in [(0, 2), (1, 4), (2, 8), (3, 16), (8, 32), (9, 64), (10, 128), (11, 1)] {
        let mut apic = armed(ONE_SHOT, bits, 100, 0);
        assert_eq!(apic.deadline(), Some(Ticks(100 * divisor)), "divisor {divisor}");
        assert_eq!(count(&mut apic, 50 * divisor), 50);
        assert_eq!(count(&mut apic, 50 * divisor + divisor - 1), 50);
    }
}

#[test]
fn the_divisor_can_change_under_way() {
    let mut apic = armed(ONE_SHOT, 0b1011, 1000, 0);
    at(&mut apic, 0x3e0, 0, 400);
    assert_eq!(count(&mut apic, 400), 600);
    assert_eq!(apic.deadline(), Some(Ticks(400 + 1200)));
}

#[test]
fn periodic_does_not_drift_and_merges_what_was_missed() {
    let mut apic = armed(PERIODIC, 0b1011, 100_000, 0);
    for round in 1..=5 {
        let due = round * 100_000;
        assert_eq!(apic.deadline(), Some(Ticks(due)));
        assert!(apic.advance(Ticks(due + 777)), "late, and yet");
        take(&mut apic);
        assert_eq!(count(&mut apic, due + 777), 100_000 - 777);
    }
    assert!(apic.advance(Ticks(3_050_000)));
    assert_eq!(apic.deadline(), Some(Ticks(3_100_000)));
    take(&mut apic);
    at(&mut apic, 0x380, 0, 3_060_000);
    assert_eq!(apic.deadline(), None, "0 stops it");
    assert_eq!(count(&mut apic, 3_060_000), 0);
}

#[test]
fn periods_are_exact_at_an_odd_frequency() {
    let ratio = TickRatio::from_khz(2_999_997);
    let mut apic = Lapic::new(0, ratio, Role::Bootstrap);
    at(&mut apic, 0xf0, 0x1ff, 0);
    at(&mut apic, 0x3e0, 0b1011, 0);
    at(&mut apic, 0x320, PERIODIC | u32::from(VECTOR), 0);
    at(&mut apic, 0x380, 1_000_000, 0);
    for round in 1..=10_000_u64 {
        let due = apic.deadline().unwrap();
        assert_eq!(ratio.to_nanos(due), round * 1_000_000);
        assert!(apic.advance(due));
    }
}

#[test]
fn a_tiny_period_cannot_flood() {
    let mut apic = armed(PERIODIC, 0b1011, 3, 0);
    assert!(apic.advance(Ticks(3)));
    assert_eq!(apic.deadline(), Some(Ticks(3 + MIN_PERIOD_NS)));
    assert_eq!(count(&mut apic, 3), 3);
    assert_eq!(count(&mut apic, 100), 2, "the count is truthful: 100 = 33 × 3 + 1");
}

#[test]
fn a_masked_timer_counts_and_does_not_wake() {
    let mut apic = armed(ONE_SHOT | MASKED, 0b1011, 1000, 0);
    assert_eq!(apic.deadline(), None);
    assert_eq!(count(&mut apic, 300), 700);
    at(&mut apic, 0x320, VECTOR.into(), 400);
    assert_eq!(apic.deadline(), Some(Ticks(1000)), "unmasked in time");
    at(&mut apic, 0x320, MASKED | u32::from(VECTOR), 500);
    at(&mut apic, 0x320, VECTOR.into(), 2000);
    assert_eq!(apic.deadline(), None);
    assert_eq!(apic.deliverable(), None, "it ran out while masked");
    let mut apic = armed(ONE_SHOT, 0b1011, 1000, 0);
    at(&mut apic, 0x320, MASKED | u32::from(VECTOR), 1001);
    assert_eq!(apic.deliverable(), Some(VECTOR), "it ran out before it was masked");
}

#[test]
fn one_shot_and_periodic_change_without_a_restart() {
    let mut apic = armed(ONE_SHOT, 0b1011, 50_000, 0);
    at(&mut apic, 0x320, PERIODIC | u32::from(VECTOR), 20_000);
    assert_eq!(apic.deadline(), Some(Ticks(50_000)));
    assert!(apic.advance(Ticks(50_000)));
    assert_eq!(apic.deadline(), Some(Ticks(100_000)));
    at(&mut apic, 0x320, VECTOR.into(), 60_000);
    assert!(apic.advance(Ticks(100_000)));
    assert_eq!(apic.deadline(), None);
}

#[test]
fn tsc_deadline() {
    let mut apic = armed(DEADLINE, 0b1011, 0, 0);
    apic.set_tsc_offset(5_000, Ticks(0));
    apic.write_tsc_deadline(7_000, Ticks(100));
    assert_eq!(apic.deadline(), Some(Ticks(2_000)));
    assert_eq!(apic.msr_read(Msr::TSC_DEADLINE, Ticks(100)), Ok(7_000));
    assert_eq!(apic.msr_read(Msr::TSC_DEADLINE, Ticks(2_000)), Ok(0), "fired");
    assert!(!apic.advance(Ticks(1_999)));
    assert!(apic.advance(Ticks(2_000)));
    take(&mut apic);
    assert_eq!(apic.deadline(), None);
    apic.write_tsc_deadline(9_000, Ticks(2_100));
    apic.write_tsc_deadline(0, Ticks(2_200));
    assert_eq!(apic.deadline(), None, "0 disarms");
    assert!(!apic.advance(Ticks(50_000)));
    apic.write_tsc_deadline(1, Ticks(60_000));
    take(&mut apic);
    assert_eq!(apic.tsc_deadline(Ticks(60_000)), 0, "the past fires at once");
}

#[test]
fn tsc_deadline_ignores_the_counter_and_the_counter_ignores_the_msr() {
    let mut apic = armed(DEADLINE, 0b1011, 1000, 0);
    assert_eq!(load(&mut apic, 0x380), 0);
    assert_eq!(count(&mut apic, 10), 0);
    assert_eq!(apic.deadline(), None);
    let mut apic = armed(ONE_SHOT, 0b1011, 1000, 0);
    assert_eq!(apic.msr_write(Msr::TSC_DEADLINE, 1, Ticks(0)), Ok(Effect::TimerChanged));
    assert_eq!(apic.deadline(), Some(Ticks(1000)));
    assert_eq!(apic.tsc_deadline(Ticks(0)), 0);
    let reserved = armed(3 << 17, 0b1011, 1000, 0);
    assert_eq!(reserved.deadline(), None);
}

#[test]
fn a_change_to_or_from_tsc_deadline_mode_disarms() {
    let mut apic = armed(DEADLINE, 0b1011, 0, 0);
    apic.write_tsc_deadline(500, Ticks(0));
    at(&mut apic, 0x320, VECTOR.into(), 100);
    assert_eq!(apic.deadline(), None);
    at(&mut apic, 0x320, DEADLINE | u32::from(VECTOR), 100);
    assert_eq!((apic.deadline(), apic.tsc_deadline(Ticks(100))), (None, 0));
    let mut apic = armed(ONE_SHOT, 0b1011, 1000, 0);
    at(&mut apic, 0x320, DEADLINE | u32::from(VECTOR), 100);
    assert_eq!(apic.deadline(), None);
    assert_eq!(load(&mut apic, 0x380), 0);
}

#[test]
fn a_due_deadline_is_not_lost_when_another_is_written() {
    let mut apic = armed(DEADLINE, 0b1011, 0, 0);
    apic.write_tsc_deadline(500, Ticks(0));
    apic.write_tsc_deadline(5_000, Ticks(600));
    take(&mut apic);
    assert_eq!(apic.deadline(), Some(Ticks(5_000)));
}

#[test]
fn the_guest_may_move_its_tsc_either_way() {
    let mut apic = armed(DEADLINE, 0b1011, 0, 0);
    let now = Ticks(1 << 40);
    // The guest's counter starts at 0 when the VM is long up.
    apic.set_tsc_offset(0_u64.wrapping_sub(now.0), now);
    assert_eq!(apic.guest_tsc(now), 0);
    apic.write_tsc_deadline(1_000, now);
    assert_eq!(apic.deadline(), Some(Ticks(now.0 + 1_000)));
    // Set forward by 600, it has 400 left; set to the far end, none.
    apic.set_tsc_offset(600_u64.wrapping_sub(now.0), now);
    assert_eq!(apic.deadline(), Some(Ticks(now.0 + 400)));
    assert_eq!(apic.tsc_deadline(now), 1_000);
    apic.set_tsc_offset(u64::MAX - now.0, now);
    take(&mut apic);
    // "Never" stays never.
    apic.set_tsc_offset(0, now);
    apic.write_tsc_deadline(u64::MAX, now);
    assert!(!apic.advance(Ticks(u64::MAX - 1)));
}
