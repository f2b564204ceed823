//! A guest's board: the devices of its machine, their ports and interrupt lines, and the way
//! of interrupts to vCPUs.
//!
//! A device is locked for each access. Lines are set under that lock, so that they never lag
//! behind the device. Lock order: device, then interrupt controllers, then (by the atomics of
//! [`fabric`]) local APICs.
#![no_std]
#![forbid(unsafe_code)]
#![cfg_attr(
    not(test),
    deny(clippy::indexing_slicing, clippy::unwrap_used, clippy::expect_used, clippy::panic)
)]

extern crate alloc;
#[cfg(test)]
extern crate std;

mod board;
pub mod fabric;
mod hot;
mod lines;
mod ports;
mod scratch;
mod serial;
pub mod trace_port;

pub use board::{Board, BoardEnd, PortOutcome};
pub use hot::HotWrite;
pub use lines::{Lines, Pin};
pub use ports::has_device;
pub use trace_port::HOT_DECLINES;
