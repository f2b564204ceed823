//! Which vCPU or service each CPU runs next, and for how long.
//!
//! Pure policy: no clock, no lock, no hardware. A [`Scheduler`] knows all CPUs
//! of the machine and stands behind one spin lock, which a CPU holds for one
//! call at a time; [`Scheduler::next`] and [`Scheduler::stopped`] allocate
//! nothing and look at the entities of one CPU (of all CPUs, where their own
//! has nothing to do). A CPU's loop:
//!
//! ```text
//! loop {
//!     match lock().next(cpu, now) {          // then send the kicks
//!         Run(choice) => run it until choice.until, a kick, or HLT,
//!         Idle(until) => halt until `until` or a kick,
//!     }
//!     lock().stopped(cpu, now, why, stay);   // if it ran something
//! }
//! ```
//!
//! Each CPU shares its time between the guests that have something runnable
//! there, by earliest eligible virtual deadline first (`queue`: virtual time;
//! `pick`: the choice); a guest's weight is spread over its runnable entities.
//! `balance` moves entities between CPUs, by what each was due and got.
//! Caps are buckets of time (`budget`). The algorithm, its literature and the
//! bounds that it keeps are in `docs/scheduler.md`.
//!
//! Times are ticks of the TSC. Should `now` go back between two CPUs, the
//! scheduler's time stands still.
#![no_std]
#![forbid(unsafe_code)]
#![cfg_attr(
    not(test),
    deny(clippy::indexing_slicing, clippy::unwrap_used, clippy::expect_used, clippy::panic)
)]

extern crate alloc;

mod alarms;
mod balance;
mod budget;
mod pick;
mod queue;
mod scheduler;
mod settings;
mod slots;
mod state;
mod stats;
#[cfg(test)]
mod tests;
mod times;
pub mod turn_mutex;
mod wake;

pub use alarms::Alarms;
pub use scheduler::Scheduler;
pub use settings::{
    Choice, Decision, EntityId, GuestId, Kicks, Kind, Reason, SchedError, Share, Stay, Timing,
};
pub use times::{CpuTimes, EntityTimes, GuestTimes};
