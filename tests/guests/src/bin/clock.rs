//! Time: the TSC and its registers, the power-management timer, kvmclock, CPUID.
#![no_std]
#![no_main]

use guests::cpu::{self, cpuid, rdmsr, rdtsc, wrmsr};
use guests::harness::{Outcome, Shared, Tests};
use guests::trap::vector;
use guests::{check, check_eq, info, skip, time};

guests::entry!(main);

fn main() -> ! {
    let mut tests = Tests::new();
    tests.case("pm_timer_against_tsc", pm_timer_against_tsc);
    tests.case("pit_against_pm_timer", pit_against_pm_timer);
    tests.case("tsc_write", tsc_write);
    tests.case("tsc_adjust", tsc_adjust);
    tests.case("invariant_tsc", invariant_tsc);
    tests.case("cpuid_frequency", cpuid_frequency);
    tests.case("kvm_leaves", kvm_leaves);
    tests.case("kvmclock", kvmclock);
    tests.case("kvmclock_monotonic", kvmclock_monotonic);
    tests.case("kvmclock_after_tsc_write", kvmclock_after_tsc_write);
    tests.case("kvmclock_off", kvmclock_off);
    tests.case("wall_clock", wall_clock);
    tests.case("wall_clock_against_rtc", wall_clock_against_rtc);
    tests.finish()
}

fn pm_timer_against_tsc() -> Outcome {
    let mut rates = [0; 3];
    for rate in &mut rates {
        let start = rdtsc();
        let ticks = time::pm_wait(time::PM_HZ / 20);
        *rate = (rdtsc() - start) * time::PM_HZ / ticks;
    }
    for rate in rates {
        check!(
            time::close(rate, time::tsc_hz(), 10),
            "TSC at {rate} Hz, before at {}",
            time::tsc_hz()
        );
    }
    Ok(())
}

fn pit_against_pm_timer() -> Outcome {
    let mut best = u64::MAX;
    for _ in 0..3 {
        let Some(ticks) = time::pit_wait(50_000) else {
            check!(false, "the PIT's output never rose");
            break;
        };
        best = best.min(ticks * time::PIT_HZ / 50_000);
    }
    check!(
        time::close(best, time::tsc_hz(), 10),
        "TSC by the PIT {best}, by the PM timer {}",
        time::tsc_hz()
    );
    Ok(())
}

fn tsc_write() -> Outcome {
    if cpu::on_bare_tcg() {
        skip!("bare QEMU ignores the write");
    }
    let before = rdtsc();
    check!(wrmsr(0x10, 1 << 40).is_ok(), "TSC can't be written");
    let after = rdtsc();
    let read = rdmsr(0x10).unwrap_or(0);
    let _ = wrmsr(0x10, before);
    check!(
        after >= 1 << 40 && after - (1 << 40) < time::tsc_hz(),
        "TSC {after:#x} after writing {:#x}",
        1u64 << 40
    );
    check!(read >= after && read - after < time::tsc_hz(), "RDMSR {read:#x}, RDTSC {after:#x}");
    let back = rdtsc();
    check!(
        back >= before && back - before < time::tsc_hz(),
        "TSC {back:#x} after writing {before:#x}"
    );
    Ok(())
}

fn tsc_adjust() -> Outcome {
    if cpu::features7().ebx & 2 == 0 {
        skip!("not offered");
    }
    if cpu::on_bare_tcg() {
        skip!("bare QEMU does not have it");
    }
    let old = rdmsr(0x3b).unwrap_or(u64::MAX);
    let step = 1 << 44;
    let before = rdtsc();
    check!(wrmsr(0x3b, old.wrapping_add(step)).is_ok(), "can't be written");
    let after = rdtsc();
    let adjusted = rdmsr(0x3b).ok();
    let _ = wrmsr(0x3b, old);
    let back = rdtsc();
    check!(
        after - before >= step && after - before < step + time::tsc_hz(),
        "TSC went by {:#x}",
        after - before
    );
    check_eq!(adjusted, Some(old.wrapping_add(step)), "reads back");
    check!(back >= before && back - before < time::tsc_hz(), "TSC is {back:#x}, was {before:#x}");
    // A write of the TSC moves the adjustment by as much.
    let now = rdtsc();
    let _ = wrmsr(0x10, now.wrapping_add(step));
    let moved = rdmsr(0x3b).unwrap_or(0).wrapping_sub(old);
    let _ = wrmsr(0x3b, old);
    check!(moved.abs_diff(step) < time::tsc_hz(), "TSC_ADJUST moved by {moved:#x} with the TSC");
    Ok(())
}

fn invariant_tsc() -> Outcome {
    if cpu::on_bare_tcg() {
        skip!("bare QEMU does not offer it");
    }
    check!(cpuid(0x8000_0000, 0).eax >= 0x8000_0007, "leaf 0x80000007 is missing");
    check_eq!(cpuid(0x8000_0007, 0).edx & 0x100, 0x100, "invariant TSC");
    Ok(())
}

fn cpuid_frequency() -> Outcome {
    if cpu::max_leaf() < 0x15 {
        skip!("no leaf 0x15");
    }
    let leaf = cpuid(0x15, 0);
    if leaf.eax == 0 || leaf.ebx == 0 || leaf.ecx == 0 {
        skip!("leaf 0x15 says nothing");
    }
    let hz = u64::from(leaf.ecx) * u64::from(leaf.ebx) / u64::from(leaf.eax);
    check!(time::close(hz, time::tsc_hz(), 10), "leaf 0x15 says {hz}, measured {}", time::tsc_hz());
    Ok(())
}

/// KVM's CPUID base, where its signature is.
fn kvm() -> Option<u32> {
    [0x4000_0000, 0x4000_0100].into_iter().find(|base| {
        let id = cpuid(*base, 0);
        id.ebx == 0x4b4d_564b && id.ecx == 0x564b_4d56 && id.edx == 0x4d
    })
}

fn kvm_leaves() -> Outcome {
    let Some(base) = kvm() else { skip!("no KVM signature") };
    check!(cpuid(base, 0).eax > base, "highest leaf {:#x}", cpuid(base, 0).eax);
    let features = cpuid(base + 1, 0).eax;
    check!(features & 8 != 0, "the new clock MSRs are missing: {features:#x}");
    check!(features & 1 << 24 != 0, "the clock is not said to be stable: {features:#x}");
    Ok(())
}

/// The clock's page: version, padding, TSC, system time, multiplier, shift, flags.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug)]
struct Page {
    version: u32,
    padding: u32,
    tsc: u64,
    time: u64,
    multiplier: u32,
    shift: i8,
    flags: u8,
    padding2: [u8; 2],
}

static PAGE: Shared<Page> = Shared::new(Page {
    version: 0,
    padding: 0,
    tsc: 0,
    time: 0,
    multiplier: 0,
    shift: 0,
    flags: 0,
    padding2: [0; 2],
});

const SYSTEM_TIME: u32 = 0x4b56_4d01;
const WALL_CLOCK: u32 = 0x4b56_4d00;

fn enable() -> bool {
    wrmsr(SYSTEM_TIME, PAGE.address().addr() as u64 | 1).is_ok()
}

/// The clock in nanoseconds, by KVM's protocol.
fn now() -> Option<u64> {
    for _ in 0..1000 {
        let page = PAGE.get();
        if page.version & 1 != 0 {
            continue;
        }
        let delta = rdtsc().wrapping_sub(page.tsc);
        let scaled = if page.shift >= 0 {
            delta << page.shift.unsigned_abs()
        } else {
            delta >> page.shift.unsigned_abs()
        };
        let product = (u128::from(scaled) * u128::from(page.multiplier)) >> 32;
        if PAGE.get().version == page.version {
            return page.time.checked_add(u64::try_from(product).ok()?);
        }
    }
    None
}

fn kvmclock() -> Outcome {
    if kvm().is_none() {
        skip!("no KVM signature");
    }
    check!(enable(), "the MSR can't be written");
    let page = PAGE.get();
    check!(page.version != 0 && page.version & 1 == 0, "version {}", page.version);
    check!(page.multiplier != 0, "multiplier 0");
    check_eq!(page.flags & 1, 1, "stable flag");
    let (first, start) = (now().unwrap_or(0), rdtsc());
    let ticks = time::pm_wait(time::PM_HZ / 10);
    let (second, end) = (now().unwrap_or(0), rdtsc());
    let by_pm = ticks * 1_000_000_000 / time::PM_HZ;
    let by_tsc = (end - start) * 1000 / (time::tsc_hz() / 1_000_000);
    check!(
        time::close(second - first, by_pm, 10),
        "{} ns, by the PM timer {by_pm}",
        second - first
    );
    check!(time::close(second - first, by_tsc, 10), "{} ns, by the TSC {by_tsc}", second - first);
    check_eq!(
        rdmsr(SYSTEM_TIME).ok(),
        Some(PAGE.address().addr() as u64 | 1),
        "the MSR reads back"
    );
    Ok(())
}

fn kvmclock_monotonic() -> Outcome {
    if kvm().is_none() {
        skip!("no KVM signature");
    }
    check!(enable(), "the MSR can't be written");
    let mut last = now().unwrap_or(0);
    for i in 0..100_000u32 {
        if i % 100 == 0 {
            let _ = cpuid(0, 0);
        }
        let next = now().unwrap_or(0);
        check!(next >= last, "the clock went from {last} to {next}");
        last = next;
    }
    Ok(())
}

fn kvmclock_after_tsc_write() -> Outcome {
    if kvm().is_none() {
        skip!("no KVM signature");
    }
    check!(enable(), "the MSR can't be written");
    let before = now().unwrap_or(0);
    let tsc = rdtsc();
    let _ = wrmsr(0x10, tsc + time::tsc_hz() * 100);
    check!(enable(), "the MSR can't be written");
    let after = now().unwrap_or(0);
    let _ = wrmsr(0x10, tsc);
    let _ = enable();
    check!(
        after >= before && after - before < 5_000_000_000,
        "the clock went from {before} to {after}"
    );
    Ok(())
}

fn kvmclock_off() -> Outcome {
    if kvm().is_none() {
        skip!("no KVM signature");
    }
    check!(wrmsr(SYSTEM_TIME, 0).is_ok(), "can't be switched off");
    let version = PAGE.get().version;
    for _ in 0..1000 {
        let _ = cpuid(0, 0);
    }
    check_eq!(PAGE.get().version, version, "version of a page that was given back");
    // A page that is no RAM may not hurt anybody but the guest itself.
    match wrmsr(SYSTEM_TIME, 0xfee0_0001) {
        Ok(()) => {}
        Err(trap) => check_eq!(trap.vector, vector::GP, "a page that is no RAM"),
    }
    let _ = cpuid(0, 0);
    check!(wrmsr(SYSTEM_TIME, 0).is_ok(), "can't be switched off");
    Ok(())
}

#[repr(C, align(16))]
#[derive(Clone, Copy)]
struct Wall {
    version: u32,
    seconds: u32,
    nanoseconds: u32,
}
static WALL: Shared<Wall> = Shared::new(Wall { version: 0, seconds: 0, nanoseconds: 0 });

/// Seconds since 1970 when the guest started, and now.
fn wall() -> Option<(u64, u64)> {
    wrmsr(WALL_CLOCK, WALL.address().addr() as u64).ok()?;
    let wall = WALL.get();
    if wall.version == 0 || wall.version & 1 != 0 || wall.nanoseconds >= 1_000_000_000 || !enable()
    {
        return None;
    }
    Some((u64::from(wall.seconds), u64::from(wall.seconds) + now()? / 1_000_000_000))
}

fn wall_clock() -> Outcome {
    if kvm().is_none() {
        skip!("no KVM signature");
    }
    let wall = wall();
    check!(wall.is_some(), "version {}, {} ns", WALL.get().version, WALL.get().nanoseconds);
    let (_, now) = wall.unwrap_or_default();
    // Between 2023 and 2150.
    check!(now > 1_672_531_200 && now < 5_680_281_600, "{now} seconds since 1970");
    if let Some(expected) = info::number("epoch") {
        check!(now.abs_diff(expected) < 3600, "{now}, expected {expected}");
    }
    Ok(())
}

fn wall_clock_against_rtc() -> Outcome {
    use guests::pc::rtc;
    if kvm().is_none() {
        skip!("no KVM signature");
    }
    while rtc::read(10) & 0x80 != 0 {}
    let field = |index: u8| {
        let value = rtc::read(index);
        u64::from(if rtc::read(11) & 4 == 0 { (value >> 4) * 10 + (value & 15) } else { value })
    };
    let of_day = field(4) * 3600 + field(2) * 60 + field(0);
    let (_, now) = wall().unwrap_or_default();
    let difference = (now % 86_400).abs_diff(of_day);
    check!(
        difference.min(86_400 - difference) < 120,
        "time of day {of_day}, by the wall clock {}",
        now % 86_400
    );
    Ok(())
}
