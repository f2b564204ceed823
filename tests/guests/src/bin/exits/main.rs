//! Every kind of exit: instructions that a hypervisor intercepts must do what
//! the manual says and go on at the right place, in the right state.
#![no_std]
#![no_main]

mod delivery;
mod faults;
mod instructions;
mod ports;
mod registers;
mod stepping;

use guests::harness::Tests;

guests::entry!(main);

fn main() -> ! {
    let mut tests = Tests::new();
    instructions::run(&mut tests);
    registers::run(&mut tests);
    faults::run(&mut tests);
    ports::run(&mut tests);
    stepping::run(&mut tests);
    delivery::run(&mut tests);
    tests.finish()
}
