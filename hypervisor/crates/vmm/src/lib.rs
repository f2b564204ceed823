//! Virtual machines: their vCPUs, exits, clocks and lives, and the policy for CPUID and MSRs.
//!
//! This crate never says VMX or SVM. Hardware reaches it as values of
//! [`x86defs`], and the host's services through small traits.
#![no_std]
#![forbid(unsafe_code)]
#![cfg_attr(
    not(any(test, feature = "scripted")),
    deny(clippy::indexing_slicing, clippy::unwrap_used, clippy::expect_used, clippy::panic)
)]

extern crate alloc;
// The fuzz targets' bodies, which tests include, name the crate as others do.
#[cfg(test)]
extern crate self as vmm;

pub mod access;
mod apic;
pub mod backend;
pub mod clock;
pub mod counters;
pub mod cpuid;
mod emulate;
pub mod end;
mod exits;
#[cfg(test)]
mod fuzz_short;
pub mod hot;
pub mod hypercall;
pub mod lifecycle;
pub mod msr;
pub mod predictors;
pub mod pv;
pub mod recorder;
pub mod refusals;
pub mod registers;
pub mod run;
#[cfg(any(test, feature = "scripted"))]
pub mod scripted;
pub mod stamps;
pub mod state;
pub mod stats;
pub mod stopwatch;
pub mod trace;
pub mod vcpu;
pub mod vm;

// The Rust in documents, which `cargo test --doc` compiles and runs.
#[cfg(doctest)]
#[doc = include_str!("../../../../docs/how-to-msr.md")]
mod how_to_msr {}
#[cfg(doctest)]
#[doc = include_str!("../../../../docs/how-to-exit.md")]
mod how_to_exit {}
