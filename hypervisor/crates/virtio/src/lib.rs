//! Virtio devices over PCI (virtio 1.2, "Virtio Over PCI Bus").
//!
//! [`VirtioDevice`] is what all kinds have in common: the modern interface, queues, interrupts,
//! reset, save and restore. A [`Kind`] serves requests.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod device;
pub mod feature;
pub mod registers;
pub mod request;
mod ring;
#[cfg(test)]
mod tests;

pub use device::{Broken, Kind, Place, Served, VirtioDevice};
pub use request::{Request, RequestError};
