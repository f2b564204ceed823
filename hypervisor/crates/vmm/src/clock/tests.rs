use super::*;
use core::cell::RefCell;
use proptest::prelude::*;

/// RAM from address 0, which remembers each write.
struct Ram {
    bytes: RefCell<[u8; 0x2000]>,
    versions: RefCell<alloc::vec::Vec<u32>>,
}

impl Ram {
    fn new() -> Self {
        Self { bytes: RefCell::new([0; 0x2000]), versions: RefCell::default() }
    }

    fn range(gpa: GuestPhysAddr, length: usize) -> Result<core::ops::Range<usize>, MemoryError> {
        let start = usize::try_from(gpa.as_u64()).unwrap();
        match start.checked_add(length) {
            Some(end) if end <= 0x2000 => Ok(start..end),
            _ => Err(MemoryError::NotRam(gpa)),
        }
    }

    fn at<const N: usize>(&self, gpa: u64) -> [u8; N] {
        let mut bytes = [0; N];
        self.read(GuestPhysAddr::new(gpa), &mut bytes).unwrap();
        bytes
    }

    fn u32(&self, gpa: u64) -> u32 {
        u32::from_le_bytes(self.at(gpa))
    }

    fn u64(&self, gpa: u64) -> u64 {
        u64::from_le_bytes(self.at(gpa))
    }
}

impl GuestMemory for Ram {
    fn read(&self, gpa: GuestPhysAddr, buffer: &mut [u8]) -> Result<(), MemoryError> {
        let range = Self::range(gpa, buffer.len())?;
        buffer.copy_from_slice(&self.bytes.borrow()[range]);
        Ok(())
    }

    fn write(&self, gpa: GuestPhysAddr, data: &[u8]) -> Result<(), MemoryError> {
        let range = Self::range(gpa, data.len())?;
        self.bytes.borrow_mut()[range].copy_from_slice(data);
        if let Ok(version) = data.try_into() {
            self.versions.borrow_mut().push(u32::from_le_bytes(version));
        }
        Ok(())
    }

    fn compare_exchange(
        &self,
        gpa: GuestPhysAddr,
        _: x86defs::Width,
        _: u64,
        _: u64,
    ) -> Result<u64, MemoryError> {
        Err(MemoryError::ReadOnly(gpa))
    }
}

/// kvmclock as a guest reads it from the structure at `gpa`.
fn read_as_guest(ram: &Ram, gpa: u64, tsc: u64) -> u64 {
    assert_eq!(ram.u32(gpa) % 2, 0, "an update is under way");
    let delta = tsc.wrapping_sub(ram.u64(gpa + 8));
    let [shift] = ram.at(gpa + 28).map(u8::cast_signed);
    let delta = if shift < 0 { delta >> -shift } else { delta << shift };
    let scaled = (u128::from(delta) * u128::from(ram.u32(gpa + 24))) >> 32;
    ram.u64(gpa + 16) + u64::try_from(scaled).unwrap()
}

fn frequency(khz: u64) -> TscFrequency {
    TscFrequency::from_khz(khz).unwrap()
}

fn host(tsc: u64) -> HostTime {
    HostTime { tsc, wall: 1_700_000_000_000_000_000 + tsc }
}

fn running(khz: u64, tsc: u64) -> VmClock {
    let mut clock = VmClock::new(frequency(khz));
    clock.resume(host(tsc), &mut [], &Ram::new(), Interruption::None).unwrap();
    clock
}

fn frequencies() -> impl Strategy<Value = u64> {
    prop_oneof![
        Just(1_000),
        Just(999_999),
        Just(1_000_000),
        Just(1_000_001),
        Just(2_593_907),
        Just(1_000_000_000),
        1_000u64..=1_000_000_000,
    ]
}

#[test]
fn frequencies_have_bounds() {
    assert_eq!(TscFrequency::from_khz(999), None);
    assert_eq!(TscFrequency::from_khz(1_000_000_001), None);
    assert_eq!(frequency(2_800_000).hz(), 2_800_000_000);
}

#[test]
fn known_scales() {
    for (khz, multiplier, shift) in [
        (1_000_000, 0x8000_0000, 1),
        (500_000, 0x8000_0000, 2),
        (2_000_000, 0x8000_0000, 0),
        (3_000_000, 0xaaaa_aaab, -1),
        (1_000, 0xfa00_0000, 10),
    ] {
        assert_eq!(Scale::new(frequency(khz)), Scale { multiplier, shift }, "{khz} kHz");
    }
}

#[test]
fn kvmclock_is_stable_only_on_a_host_that_is() {
    for (host_agrees, flags) in [(TscAgreement::Matched, 1), (TscAgreement::Apart, 0)] {
        let ram = Ram::new();
        let mut clock = running(1_000_000, 0).on_host(host_agrees);
        let mut vcpu = VcpuClock::default();
        clock.write_system_time(&mut vcpu, 0x1001, &ram, TscAgreement::Matched).unwrap();
        assert_eq!(ram.at(0x1000 + 29), [flags]);
        // A guest that is paused and goes on is on the same host.
        clock.pause(5);
        clock.resume_later(host(7));
        clock.catch_up(&mut vcpu, &ram, TscAgreement::Matched);
        assert_eq!(ram.at(0x1000 + 29), [flags | 2]);
    }
}

#[test]
fn the_wall_clock_is_corrected_for_a_guest_that_runs() {
    let mut clock = running(1_000_000, 1_000);
    let wrong = clock.wall(5_000);
    clock.correct_wall(HostTime { tsc: 5_000, wall: wrong + 400_000_000 });
    assert_eq!(clock.wall(5_000), wrong + 400_000_000);
    assert_eq!(clock.wall(6_000), wrong + 400_001_000);
    assert_eq!(clock.now(6_000), Nanos(5_000), "its own time goes on as it was");
}

#[test]
fn a_time_before_or_behind_all_tscs_is_their_first_or_last() {
    let scale = Scale::new(frequency(2_000_000));
    let line = |offset: i64| Timeline {
        scale,
        motion: Motion::Running { offset: offset.cast_unsigned() },
    };
    // A guest that was started when the host's TSC was 1,000.
    assert_eq!(line(-1_000).host_tsc_at(Nanos(50)), Some(1_100));
    assert_eq!(line(-1_000).host_tsc_at(Nanos(u64::MAX)), Some(u64::MAX));
    // One that is older than the host's TSC.
    assert_eq!(line(1_000).host_tsc_at(Nanos(600)), Some(200));
    assert_eq!(line(1_000).host_tsc_at(Nanos(50)), Some(0));
}

#[test]
fn time_starts_at_zero_and_stands_still_while_paused() {
    let mut clock = VmClock::new(frequency(2_000_000));
    assert_eq!(clock.now(12345), Nanos(0));
    assert_eq!(clock.host_tsc_at(Nanos(5)), None);
    let ram = Ram::new();
    clock.resume(host(1_000_000), &mut [], &ram, Interruption::None).unwrap();
    assert_eq!(clock.now(1_000_000), Nanos(0));
    // A CPU whose TSC lags a little sees 0, not the end of time.
    assert_eq!(clock.now(999_999), Nanos(0));
    assert_eq!(clock.now(1_002_000), Nanos(1000));
    clock.pause(1_002_000);
    assert_eq!(clock.now(9_000_000), Nanos(1000));
    clock.pause(9_000_000);
    assert_eq!(clock.now(9_000_000), Nanos(1000));
    clock.resume(host(10_000_000), &mut [], &ram, Interruption::Paused).unwrap();
    assert_eq!(clock.now(10_000_000), Nanos(1000));
    assert_eq!(clock.now(10_002_000), Nanos(2000));
    // The wall clock did not stand still.
    assert_eq!(clock.wall(10_000_000), host(10_000_000).wall);
}

#[test]
fn tsc_and_tsc_adjust_move_together() {
    let clock = running(1_000_000, 500);
    let mut vcpu = VcpuClock::default();
    assert_eq!(clock.tsc(&vcpu, 600), 100);
    assert_eq!(clock.write_tsc(&mut vcpu, 600, 1_000_000).offset, 999_400);
    assert_eq!(clock.tsc(&vcpu, 601), 1_000_001);
    assert_eq!(vcpu.tsc_adjust(), 999_900);
    let changed = clock.write_tsc_adjust(&mut vcpu, 999_800);
    assert_eq!(clock.tsc(&vcpu, 601), 999_901);
    assert_eq!(601u64.wrapping_add(changed.offset), 999_901);
    // Below zero it wraps, as the register does.
    let _ = clock.write_tsc(&mut vcpu, 600, 0);
    assert_eq!(vcpu.tsc_adjust(), 100u64.wrapping_neg());
    assert_eq!(clock.tsc(&vcpu, 607), 7);
    assert_eq!(clock.tsc_offset(&vcpu), 600u64.wrapping_neg());
    // The guest's time is not its TSC.
    assert_eq!(clock.now(607), Nanos(107));
}

#[test]
fn the_structure_of_kvmclock() {
    let clock = running(3_000_000, 777);
    let ram = Ram::new();
    let mut vcpu = VcpuClock::default();
    let _ = clock.write_tsc_adjust(&mut vcpu, 42);
    clock.write_system_time(&mut vcpu, 0x1001, &ram, TscAgreement::Matched).unwrap();
    assert_eq!(vcpu.system_time(), 0x1001);
    assert_eq!(ram.u32(0x1000), 2);
    assert_eq!(*ram.versions.borrow(), [1, 2]);
    assert_eq!(ram.u64(0x1008), 42);
    assert_eq!(ram.u64(0x1010), 0);
    assert_eq!(ram.u32(0x1018), 0xaaaa_aaab);
    assert_eq!(ram.at::<4>(0x101c), [0xff, 1, 0, 0]);
    // The structure ends after 32 bytes.
    assert_eq!(ram.u64(0x1020), 0);
    clock.publish(&mut vcpu, &ram, TscAgreement::Apart, Interruption::Paused).unwrap();
    assert_eq!(*ram.versions.borrow(), [1, 2, 3, 4]);
    assert_eq!(ram.at(0x101d), [2]);
    // The guest has not yet noticed: the flag stays until it clears it.
    clock.publish(&mut vcpu, &ram, TscAgreement::Matched, Interruption::None).unwrap();
    assert_eq!(ram.at(0x101d), [3]);
    ram.write(GuestPhysAddr::new(0x101d), &[1]).unwrap();
    clock.publish(&mut vcpu, &ram, TscAgreement::Matched, Interruption::None).unwrap();
    assert_eq!(ram.at(0x101d), [1]);
}

#[test]
fn registrations_are_checked() {
    let clock = running(1_000_000, 0);
    let ram = Ram::new();
    let mut vcpu = VcpuClock::default();
    for (value, legal) in [
        (0x1001, true),
        (0x1003, false),
        (0x1005, true),
        (0x1fe1, true),
        (0x1fe5, false),
        (0x5001, false),
        (0x5000, true),
    ] {
        let before = vcpu.system_time();
        let memory = *ram.bytes.borrow();
        let result = clock.write_system_time(&mut vcpu, value, &ram, TscAgreement::Matched);
        assert_eq!(result.is_ok(), legal, "{value:#x}");
        assert!(legal || *ram.bytes.borrow() == memory, "{value:#x}: refused, and written");
        assert_eq!(vcpu.system_time(), if legal { value } else { before });
    }
    ram.versions.borrow_mut().clear();
    clock.publish(&mut vcpu, &ram, TscAgreement::Matched, Interruption::None).unwrap();
    assert!(ram.versions.borrow().is_empty(), "bit 0 is clear: no structure");
}

#[test]
fn the_wall_clock_is_that_of_the_start() {
    let clock = running(1_000_000, 0);
    let ram = Ram::new();
    let mut vcpu = VcpuClock::default();
    ram.write(GuestPhysAddr::new(0x100), &7u32.to_le_bytes()).unwrap();
    ram.versions.borrow_mut().clear();
    let later = HostTime { tsc: 5_000_000_123, wall: 1_700_000_005_000_000_456 };
    clock.write_wall_clock(&mut vcpu, 0x100, &ram, later).unwrap();
    assert_eq!(*ram.versions.borrow(), [7, 8]);
    assert_eq!([ram.u32(0x104), ram.u32(0x108)], [1_700_000_000, 333]);
    assert_eq!(vcpu.wall_clock(), 0x100);
    assert_eq!(clock.write_wall_clock(&mut vcpu, 0x102, &ram, later), Err(Gp));
    let memory = *ram.bytes.borrow();
    assert_eq!(clock.write_wall_clock(&mut vcpu, 0x1ff8, &ram, later), Err(Gp));
    assert!(*ram.bytes.borrow() == memory, "refused, and written");
    assert_eq!(vcpu.wall_clock(), 0x100);
    assert_eq!(clock.write_wall_clock(&mut vcpu, 0, &ram, later), Ok(()));
    let pairing = clock.clock_pairing(&vcpu, later);
    assert_eq!((pairing.seconds, pairing.nanoseconds), (1_700_000_005, 456));
    assert_eq!(pairing.tsc, 5_000_000_123);
}

#[test]
fn resuming_serves_every_vcpu_and_names_the_first_that_failed() {
    let mut clock = running(1_000_000, 0);
    let ram = Ram::new();
    let (mut a, mut b, mut c) = Default::default();
    for (vcpu, value) in [(&mut a, 0x101), (&mut b, 0x201), (&mut c, 0x301)] {
        clock.write_system_time(vcpu, value, &ram, TscAgreement::Matched).unwrap();
    }
    let _ = clock.write_tsc_adjust(&mut c, 9);
    a.system_time = 0x9001;
    clock.pause(100);
    let result = clock.resume(host(500), &mut [&mut a, &mut b, &mut c], &ram, Interruption::Paused);
    assert_eq!(result.map_err(|(number, _)| number), Err(0));
    assert_eq!(ram.at(0x201 - 1 + 29), [2], "TSCs differ: paused, not stable");
    assert_eq!(ram.at(0x301 - 1 + 29), [2]);
    assert_eq!(ram.u64(0x308), 9);
    assert_eq!(clock.now(500), Nanos(100));
    a.reset();
    assert_eq!((a.system_time(), a.tsc_adjust()), (0, 0));
}

#[test]
fn agreement() {
    assert_eq!(TscAgreement::of([]), TscAgreement::Matched);
    assert_eq!(TscAgreement::of([1]), TscAgreement::Matched);
    assert_eq!(TscAgreement::of([0, 0]), TscAgreement::Matched);
    assert_eq!(TscAgreement::of([0, 0, 1]), TscAgreement::Apart);
}

#[test]
fn saved_clocks_stand_where_they_were() {
    let mut clock = running(2_000_000, 1000);
    let state = clock.save(5000);
    let text = serde_json::to_string(&state).unwrap();
    assert_eq!(text, r#"{"frequency":2000000,"ticks":4000}"#);
    assert_eq!(serde_json::from_str::<VmClockState>(&text).unwrap(), state);
    assert!(serde_json::from_str::<VmClockState>(r#"{"frequency":5,"ticks":0}"#).is_err());
    let mut restored = VmClock::restored(state, frequency(2_000_000)).unwrap();
    assert_eq!(restored.now(0), Nanos(2000));
    clock.pause(5000);
    let ram = Ram::new();
    for clock in [&mut restored, &mut clock] {
        clock.resume(host(70), &mut [], &ram, Interruption::Paused).unwrap();
        assert_eq!(clock.now(72), Nanos(2001));
    }
    assert_eq!(restored, clock);
    assert!(VmClock::restored(state, frequency(2_000_001)).is_err());
    let wild = VmClockState { ticks: u64::MAX, ..state };
    assert!(VmClock::restored(wild, frequency(2_000_000)).is_err());
}

#[test]
fn deadlines() {
    let clock = running(2_000_000, 0);
    let vcpu = VcpuClock { tsc_adjust: 100, ..VcpuClock::default() };
    // Guest TSC 1100 is tick 1000, nanosecond 500.
    assert_eq!(clock.deadline(&vcpu, 0, 1100), Nanos(500));
    // An odd tick lies within a nanosecond: the deadline is the next one.
    assert_eq!(clock.deadline(&vcpu, 0, 1101), Nanos(501));
    // A deadline that has gone by is now.
    assert_eq!(clock.deadline(&vcpu, 2000, 1100), Nanos(1000));
    assert_eq!(clock.deadline(&vcpu, 2000, 0), Nanos(1000));
    // The farthest deadline never comes, and nothing overflows.
    assert!(clock.deadline(&vcpu, 0, u64::MAX) > Nanos(1 << 62));
}

proptest! {
    #[test]
    fn scales_are_exact_to_32_bits(khz in frequencies()) {
        let scale = Scale::new(frequency(khz));
        prop_assert_eq!(scale.multiplier >> 31, 1);
        // One day: 86,400 s.
        let nanos = scale.nanos(khz * 1000 * 86_400);
        let error = nanos.abs_diff(86_400 * NANOS_PER_SECOND);
        // Less than 1 in 2^31 of a day's nanoseconds, and rounding.
        prop_assert!(error <= 86_400 * NANOS_PER_SECOND / (1 << 31) + 1, "{} ns a day", error);
    }

    #[test]
    fn scale_and_its_inverse(khz in frequencies(), ticks in 0u64..1 << 60, nanos in 0u64..1 << 50) {
        let scale = Scale::new(frequency(khz));
        let first = scale.ticks(nanos);
        prop_assert!(scale.nanos(first) >= nanos);
        if first > 0 && first < u64::MAX {
            prop_assert!(scale.nanos(first - 1) < nanos);
        }
        prop_assert!(scale.nanos(ticks) <= scale.nanos(ticks + 1));
        prop_assert!(scale.ticks(scale.nanos(ticks)) <= ticks);
    }

    #[test]
    fn time_runs_forward_through_pauses(
        khz in frequencies(),
        start in 0u64..1 << 40,
        steps in prop::collection::vec((0u64..1 << 30, 0u64..1 << 30, any::<u64>()), 1..20),
    ) {
        let ram = Ram::new();
        let mut clock = running(khz, start);
        let mut vcpu = VcpuClock::default();
        clock.write_system_time(&mut vcpu, 0x101, &ram, TscAgreement::Matched).unwrap();
        let (mut tsc, mut last, mut ticks) = (start, Nanos(0), 0);
        for (run, stop, adjust) in steps {
            // A vCPU that changes its TSC changes nobody's time.
            let _ = clock.write_tsc_adjust(&mut vcpu, adjust);
            clock.publish(&mut vcpu, &ram, TscAgreement::Matched, Interruption::None).unwrap();
            tsc += run;
            ticks += run;
            let now = clock.now(tsc);
            prop_assert!(now >= last);
            prop_assert_eq!(now, Nanos(Scale::new(frequency(khz)).nanos(ticks)));
            let guest_tsc = tsc.wrapping_add(clock.tsc_offset(&vcpu));
            prop_assert_eq!(guest_tsc, clock.tsc(&vcpu, tsc));
            prop_assert_eq!(guest_tsc, ticks.wrapping_add(adjust));
            // kvmclock and the devices' time are one.
            prop_assert_eq!(read_as_guest(&ram, 0x100, guest_tsc), now.0);
            clock.pause(tsc);
            tsc += stop;
            prop_assert_eq!(clock.now(tsc), now);
            clock.resume(host(tsc), &mut [&mut vcpu], &ram, Interruption::Paused).unwrap();
            prop_assert_eq!(clock.now(tsc), now);
            prop_assert_eq!(clock.tsc(&vcpu, tsc), guest_tsc);
            prop_assert_eq!(clock.wall(tsc), host(tsc).wall);
            last = now;
        }
    }

    #[test]
    fn timers_never_fire_early(khz in frequencies(), start in 0u64..1 << 40, ahead in 1u64..1 << 40, adjust in any::<u64>()) {
        let clock = running(khz, start);
        let vcpu = VcpuClock { tsc_adjust: adjust, ..VcpuClock::default() };
        let deadline = clock.tsc(&vcpu, start).wrapping_add(ahead);
        prop_assume!(deadline > clock.tsc(&vcpu, start));
        let at = clock.host_tsc_at(clock.deadline(&vcpu, start, deadline)).unwrap();
        prop_assert!(clock.tsc(&vcpu, at) >= deadline);
        // The deadline is late by no more than a nanosecond and the ticks that the shift leaves
        // out, which are less than another.
        prop_assert!(clock.tsc(&vcpu, at) - deadline <= 2 * (khz / 1_000_000 + 1));
    }
}

/// A machine's TSC that was measured wrong at first.
fn host_clocks() -> [(u64, TscFrequency); 3] {
    [999_000, 1_000_000, 1_000_100].map(|khz| (khz, TscFrequency::from_khz(khz).unwrap()))
}

#[test]
fn the_hosts_clock_follows_a_corrected_rate() {
    const DAY: u64 = 86_400;
    let [_, _, (khz, right)] = host_clocks();
    for (_, wrong) in host_clocks() {
        let (start, begun) = (123_456_789, 1_700_000_000 * NANOS_PER_SECOND);
        let truth = |seconds: u64| begun + seconds * NANOS_PER_SECOND;
        let tsc = |seconds: u64| start + seconds * khz * 1000;
        let clock = HostClock::new(start, Scale::new(wrong));
        // A second was seen to begin 2 s after the start, and the rate is corrected at 10 s.
        clock.set(tsc(2), truth(2));
        let before = clock.at(tsc(10)).wall;
        clock.correct(Scale::new(right));
        for (seconds, limit) in [(10, 1_000), (60, 1_000), (DAY, 10_000_000)] {
            let shown = clock.at(tsc(seconds)).wall;
            let off = shown.abs_diff(truth(seconds));
            assert!(off <= limit, "{wrong:?}: {off} ns off after {seconds} s");
        }
        // The clock leaps by its error, which is small so soon.
        assert!(before.abs_diff(truth(10)) <= 9_000_000, "{wrong:?}");
        // Moments before the clock was set are right, too.
        assert!(clock.at(tsc(1)).wall.abs_diff(truth(1)) <= 1_000);
    }
}

#[test]
fn the_hosts_clock_before_it_is_set() {
    let (_, frequency) = host_clocks()[1];
    let clock = HostClock::new(5_000, Scale::new(frequency));
    assert_eq!(clock.at(5_000).wall, 0);
    assert_eq!(clock.at(5_777), HostTime { tsc: 5_777, wall: 777 });
    assert_eq!(clock.at(4_000).wall, 0);
    clock.correct(Scale::new(TscFrequency::from_khz(2_000_000).unwrap()));
    assert_eq!(clock.at(7_000).wall, 1_000);
    clock.set(u64::MAX - 9, 100);
    assert_eq!(clock.at(10).wall, 110);
}

/// A reader never sees the moment of one change with the time of another: each change says
/// that the tick n is the nanosecond n.
#[test]
fn the_hosts_clock_is_read_whole() {
    extern crate std;
    let scales = host_clocks().map(|(_, frequency)| Scale::new(frequency));
    let clock = HostClock::new(0, scales[0]);
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            for _ in 0..300_000 {
                let wall = clock.at(500_000_000).wall;
                // The scales are up to a thousandth apart.
                assert!(wall.abs_diff(500_000_000) <= 600_000, "{wall}");
            }
        });
        let mut n = 1_u64;
        while !reader.is_finished() {
            n = n * 48_271 % 0x7fff_ffff;
            clock.set(n % 1_000_000_000, n % 1_000_000_000);
            clock.correct(scales[usize::try_from(n % 3).unwrap()]);
        }
    });
}
