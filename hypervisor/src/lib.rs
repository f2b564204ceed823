//! Steward, a bare-metal type-1 hypervisor for x86-64.
//!
//! This package is the only one of the product with `unsafe` code and
//! assembly. [`boot`] brings the machine up stage by stage, [`cpu`] and
//! [`mm`] own processors and memory, [`hw`] turns virtualization on and runs
//! guests on it, [`drivers`] talk to the machine's devices and [`journal`] to
//! its operator. The pure crate `vmm` decides what to do with an exit.
#![no_std]

extern crate alloc;

pub mod boot;
pub mod cpu;
pub mod drivers;
pub mod error;
pub mod hw;
pub mod journal;
mod machine;
pub mod mm;
mod operator;
