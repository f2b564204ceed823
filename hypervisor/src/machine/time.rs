//! The machine's time: the wall clock, which is told better after a while, and the rate of
//! the TSC for guests that are yet to start.

use super::runners::AnyMachine;
use super::world::World;
use crate::cpu::{asm, tsc};
use crate::drivers::{clocks, rtc};
use core::sync::atomic::Ordering;
use timebase::{Finding, Lookout};
use x86defs::time::{NANOS_PER_SECOND, Scale, TscFrequency};

/// The TSC is measured once more after so many seconds, and so many.
const MEASURED_AGAIN: [u64; 2] = [1, 10];
/// A rate that is further off than this is corrected, in parts per million.
const TOLERATED_PPM: u64 = 10;

/// State of the operator's looks at the machine's time.
#[derive(Debug)]
pub(crate) struct Watch {
    /// How often the TSC was measured again.
    measured: usize,
    /// When to look at the real-time clock.
    lookout: Lookout,
}

impl Watch {
    /// Nothing was looked at.
    pub(crate) const NEW: Self = Self { measured: 0, lookout: Lookout::NEW };

    /// Looks at what is not known well enough.
    pub(crate) fn step(&mut self, machine: &dyn AnyMachine) {
        let world = machine.world();
        let now = asm::rdtsc();
        let passed = world.nanos(now);
        let is_due = self.lookout.is_due(passed, world.clock.at(now).wall, rtc::forget);
        world.awaits_second.store(is_due, Ordering::Relaxed);
        if is_due {
            match self.lookout.saw(passed, rtc::look()) {
                Finding::None => {}
                Finding::First => {
                    world.set_clock();
                    correct_guests(machine);
                }
                // A guest that runs has a time of its own by now, which nobody puts back.
                Finding::Anew => world.set_clock(),
                Finding::NoClock => log::warn!(
                    "this machine's real-time clock shows no date: {}",
                    match rtc::wall() {
                        Some(_) => "the wall clock goes on from the last one that it showed",
                        None => "the wall clock begins in 1970",
                    }
                ),
                Finding::NoEdge => {
                    world.set_clock();
                    correct_guests(machine);
                    let unsure_ms = rtc::wall().map_or(0, |wall| wall.unsure / 1_000_000);
                    log::warn!(
                        "no second of this machine's real-time clock was seen to begin: the wall \
                         clock may be {unsure_ms} ms off, and all it is worth if that clock stands"
                    );
                }
            }
        }
        let due = MEASURED_AGAIN.get(self.measured).map(|seconds| seconds * NANOS_PER_SECOND);
        if due.is_some_and(|due| passed >= due) {
            self.measured += 1;
            world.measure_again();
        }
    }
}

impl World {
    /// The rate that a guest is told which starts now.
    pub(crate) fn rate(&self) -> TscFrequency {
        TscFrequency::from_khz(tsc::khz()).unwrap_or(self.frequency)
    }

    /// Measures the TSC over the time since the boot began. Guests that run keep the rate that
    /// they were told.
    fn measure_again(&self) {
        let before = tsc::khz();
        let Some(khz) = clocks::again() else { return };
        if khz.abs_diff(before) * 1_000_000 > before * TOLERATED_PPM {
            tsc::set_khz(khz);
            self.clock.correct(Scale::new(self.rate()));
            log::info!(
                "the TSC counts at {}.{:03} MHz, by a longer measurement: guests that start from \
                 now on are told so",
                khz / 1000,
                khz % 1000
            );
        }
    }

    /// Sets the machine's wall clock by what was seen of the real-time clock.
    fn set_clock(&self) {
        if let Some(wall) = rtc::wall() {
            self.clock.set(wall.tsc, wall.nanos);
        }
    }
}

/// Sets the wall clock of the guests that run.
fn correct_guests(machine: &dyn AnyMachine) {
    for guest in (0..).map_while(|at| machine.guest(at)) {
        guest.correct_time(machine.world());
    }
}
