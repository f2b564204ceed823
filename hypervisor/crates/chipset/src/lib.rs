//! A guest's board: the devices of its machine, their ports and interrupt lines, and the way
//! of interrupts to vCPUs.
//!
//! A device is locked for each access. Lines are set under that lock, so that they never lag
//! behind the device. [`locks::Rank`] has the order of locks; local APICs are reached by the
//! atomics of [`fabric`].
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
mod bus;
mod console;
pub mod doorbell;
pub mod fabric;
mod hot;
pub mod pci;
mod ports;
mod saved;
mod scratch;
mod state;
pub mod test_device;
pub mod trace_port;

pub use board::{Board, BoardEnd, PortOutcome};
pub use bus::HotPorts;
pub use console::{ConsoleSink, Flushed};
pub use hot::HotWrite;
pub use ports::has_device;
pub use saved::Quiet;
pub use trace_port::HOT_DECLINES;
