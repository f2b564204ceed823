//! Work that the scheduler runs beside vCPUs: what its users know of the scheduler.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

mod service;
mod stop;
mod vectors;
mod wake;

pub use service::Service;
pub use stop::Stop;
pub use vectors::Vectors;
pub use wake::{Wake, Waker};
