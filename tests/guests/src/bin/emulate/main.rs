//! Instructions on device memory against the same instructions on RAM.
//!
//! A window of linear addresses is mapped to RAM, then to the test machine's
//! scratch device (memory-mapped storage that the hypervisor serves by emulating
//! the instruction); both times the same instruction runs with the same
//! registers. Registers, defined flags and memory must come out the same.
//! `seed=N` and `rounds=N` on the command line steer the random part; with
//! `ram` the scratch device is replaced by RAM, which tests the generator. With `families` it is
//! other instructions: general ones beside moves and plain arithmetic, the stack, descriptors,
//! vectors.
#![no_std]
#![no_main]

mod encode;
mod execute;
mod families;
mod faults;
mod forms;
mod lapic;
mod tables;
mod vectors;

use guests::harness::Tests;
use guests::info;

guests::entry!(main);

fn main() -> ! {
    let mut tests = Tests::new();
    if info::flag("families") {
        families::run(&mut tests);
        tests.finish()
    }
    lapic::run(&mut tests);
    faults::run(&mut tests);
    forms::run(&mut tests);
    tests.finish()
}
