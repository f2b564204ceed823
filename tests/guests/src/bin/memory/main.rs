//! Memory: RAM, holes, paging in every mode, protection, memory types.
#![no_std]
#![no_main]

mod modes;
mod paging;
mod ram;

use guests::harness::Tests;

guests::entry!(main);

fn main() -> ! {
    let mut tests = Tests::new();
    ram::run(&mut tests);
    paging::run(&mut tests);
    modes::run(&mut tests);
    tests.finish()
}
