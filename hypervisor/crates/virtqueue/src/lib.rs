//! Split virtqueues (virtio 1.2, "Split Virtqueues"): a ring in memory that two share who do not
//! trust each other. The driver makes chains of buffers available; the device uses them and gives
//! them back.
//!
//! [`DeviceQueue`] is the device's half, for the hypervisor's devices: it reads each descriptor once,
//! checks it then, and takes nothing for granted that the driver may still write. [`DriverQueue`] is
//! the driver's half, for the machine's devices and for guests of our own, and believes the device as
//! little.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(test)]
extern crate std;

mod chain;
mod device;
mod driver;
mod layout;
mod memory;
mod suppress;
#[cfg(test)]
mod tests;

pub use chain::{Chain, Segment};
pub use device::{DeviceQueue, DeviceState, QueueError};
pub use driver::{Done, DriverQueue, Full, UsedError};
pub use layout::{Layout, LayoutError, MAX_SIZE};
pub use memory::RingMemory;
pub use suppress::passed;
