//! Random programs of a few instructions for lock-step tests.
//!
//! [`Program::generate`] makes of a seed a program, its registers and its
//! surroundings. The guest that runs it and the host that reports a difference
//! both call it, so that a seed says everything. Nothing in a program depends
//! on time, on what ran before it, or on anything that CPUs may do as they
//! like (flags left undefined, identification).
//!
//! A program runs in one of the [`Mode`]s, in the window that [`layout`]
//! describes. Exceptions do not end it: it goes on behind the instruction that
//! raised one, for which [`Program::next_start`] knows the boundaries.
#![no_std]
#![forbid(unsafe_code)]

#[cfg(test)]
extern crate std;

mod asm;
mod control;
mod faults;
mod io;
pub mod layout;
mod memory;
mod mode;
mod plain;
mod program;
mod random;
mod system;
#[cfg(test)]
mod tests;

pub use mode::Mode;
pub use program::{CODE_MAX, Program};
pub use random::{Random, mix};

/// Which vendor's hypercall instruction a program uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Vendor {
    /// VMCALL.
    Intel,
    /// VMMCALL.
    Amd,
}
