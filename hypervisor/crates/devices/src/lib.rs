//! Device models: registers in, effects out.
//!
//! A model is plain data. It never calls out: after each access, and whenever
//! its [`next_deadline`](Timed::next_deadline) has passed, its owner asks what
//! changed (the level of an interrupt line, bytes for a back end, a request to
//! power off) and acts on it. Offsets count from the device's own first
//! register; the bus decides what a failed access reads as.
#![no_std]
#![forbid(unsafe_code)]
#![cfg_attr(
    not(test),
    deny(clippy::indexing_slicing, clippy::unwrap_used, clippy::expect_used, clippy::panic)
)]

extern crate alloc;

pub mod ioapic;
pub mod lapic;

pub mod acpi_pm;
mod clock;
pub mod debug_exit;
mod device;
pub mod firmware;
pub mod i8042;
pub mod pci;
pub mod pic;
pub mod pit;
mod port61;
pub mod ports;
pub mod pvpanic;
pub mod reset;
pub mod rtc;
#[cfg(test)]
mod testing;
pub mod uart;

pub use device::{AccessError, Device, PortDevice, RestoreError, Timed};

// The Rust in a document, which `cargo test --doc` compiles and runs.
#[cfg(doctest)]
#[doc = include_str!("../../../../docs/how-to-device.md")]
mod how_to {}
