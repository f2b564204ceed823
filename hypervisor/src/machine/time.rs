//! The machine's time: the wall clock, which is told better after a while, and the rate of
//! the TSC for guests that are yet to start.

use super::guest::Guest;
use super::{NANOS_PER_SECOND, World};
use crate::cpu::{asm, tsc};
use crate::drivers::{clocks, rtc};
use crate::hw::VendorCpu;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use timebase::Wall;
use vmm::clock::{HostTime, Scale, TscFrequency};

/// The wall clock is well known when it can't be off by more, in nanoseconds.
const GOOD_NANOS: u64 = 5_000_000;
/// The TSC is measured once more after so many seconds, and so many.
const MEASURED_AGAIN: [u64; 2] = [1, 10];
/// A rate that is further off than this is corrected, in parts per million.
const TOLERATED_PPM: u64 = 10;

/// The wall clock. Reading it takes no lock.
pub(super) struct HostClock {
    scale: Scale,
    /// The TSC at the machine's start.
    start: u64,
    /// Nanoseconds since 1970-01-01 UTC then.
    origin: AtomicU64,
    /// A second was seen to begin.
    exact: AtomicBool,
}

impl HostClock {
    /// A clock that shows 1970 at the tick `start`.
    pub(super) fn new(start: u64, scale: Scale) -> Self {
        Self { scale, start, origin: AtomicU64::new(0), exact: AtomicBool::new(false) }
    }

    /// The time at the tick `tsc`, which is not before the start.
    #[inline]
    pub(super) fn at(&self, tsc: u64) -> HostTime {
        let passed = self.scale.nanos(tsc.wrapping_sub(self.start));
        HostTime { tsc, wall: self.origin.load(Ordering::Relaxed).saturating_add(passed) }
    }

    /// Sets it. The moment may be before the start.
    pub(super) fn set(&self, wall: Wall) {
        let origin = match wall.tsc.checked_sub(self.start) {
            Some(passed) => wall.nanos.saturating_sub(self.scale.nanos(passed)),
            None => wall.nanos.saturating_add(self.scale.nanos(self.start - wall.tsc)),
        };
        self.origin.store(origin, Ordering::Relaxed);
        self.exact.store(wall.unsure <= GOOD_NANOS, Ordering::Relaxed);
    }

    /// Whether a second was seen to begin.
    pub(super) fn is_exact(&self) -> bool {
        self.exact.load(Ordering::Relaxed)
    }
}

/// State of the operator's looks at the machine's time, until all is known.
#[derive(Debug, Default)]
pub(super) struct Watch {
    /// How often the TSC was measured again.
    measured: usize,
}

impl Watch {
    /// Looks at what is not known well enough.
    pub(super) fn step<C: VendorCpu>(&mut self, world: &World<C>) {
        if !world.clock.is_exact() && rtc::look() {
            world.look_at_wall();
        }
        let now = asm::rdtsc();
        let due = MEASURED_AGAIN.get(self.measured).map(|seconds| seconds * NANOS_PER_SECOND);
        if due.is_some_and(|due| world.nanos(now) >= due) {
            self.measured += 1;
            measure_again();
        }
    }
}

/// Measures the TSC over the time since the boot began. Guests that run keep the rate that
/// they were told.
fn measure_again() {
    let before = tsc::khz();
    let Some(khz) = clocks::again() else { return };
    if khz.abs_diff(before) * 1_000_000 > before * TOLERATED_PPM {
        tsc::set_khz(khz);
        log::info!(
            "the TSC counts at {}.{:03} MHz, by a longer measurement: guests that start from now \
             on are told so",
            khz / 1000,
            khz % 1000
        );
    }
}

impl<C: VendorCpu> World<C> {
    /// The rate that a guest is told which starts now.
    pub(super) fn rate(&self) -> TscFrequency {
        TscFrequency::from_khz(tsc::khz()).unwrap_or(self.frequency)
    }

    /// Sets the wall clock, and that of the guests that run, if it is known well enough.
    fn look_at_wall(&self) {
        let Some(wall) = rtc::wall().filter(|wall| wall.unsure <= GOOD_NANOS) else { return };
        self.clock.set(wall);
        let guest = |at: usize| self.guests.read().get(at).cloned();
        for guest in (0..).map_while(guest) {
            self.correct_time_of(&guest);
        }
    }

    /// Tells a guest what time it is by now.
    pub(super) fn correct_time_of(&self, guest: &Guest<C>) {
        let now = self.time();
        let mut clock = guest.vm.clock.write();
        clock.correct_wall(now);
        guest.vm.chipset.correct_rtc(now.wall, clock.now(now.tsc));
    }
}
