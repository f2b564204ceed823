//! How fast the machine's time-stamp counter (TSC) runs, and whether those of all its CPUs
//! show the same: the part that decides. It reads nothing; what was read comes as values.
//!
//! - A [`Counter`] is a clock of known rate (PIT, ACPI PM timer, HPET). A [`Sample`] is one
//!   look at it between two reads of the TSC: the counter's value is of some moment between
//!   them, however long the CPU was away. So every window between two samples gives a
//!   [`Rate`] *from … to*, never one that is wrong.
//! - A [`Track`] is what the samples of one counter say together.
//! - [`claims`] is what CPUID says, which is believed only where a counter confirms it.
//! - [`judge`] decides.
//! - [`Offset`] is how far apart two CPUs' TSCs are, from messages sent to and fro.
//! - [`SecondEdge`] finds the moment when the real-time clock's second begins.
//! - A [`Lookout`] says when to look for that.
#![no_std]
#![forbid(unsafe_code)]
#![cfg_attr(
    not(test),
    deny(
        clippy::arithmetic_side_effects,
        clippy::indexing_slicing,
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic
    )
)]

#[cfg(test)]
extern crate std;

mod claim;
mod counter;
mod edge;
mod lookout;
mod offset;
mod rate;
#[cfg(test)]
mod tests;
mod track;
mod verdict;

pub use claim::claims;
pub use counter::{Counter, PmWidth, Sample, Source, best_sample};
pub use edge::{SecondEdge, Wall};
pub use lookout::{Finding, Look, Lookout};
pub use offset::{Adjustments, Offset, Standing};
pub use rate::Rate;
pub use track::Track;
pub use verdict::{AGREEMENT_PPM, Claim, Figure, Measured, Verdict, Witness, judge};
