//! Work that the scheduler runs beside vCPUs: what its users know of the scheduler.
#![no_std]
#![forbid(unsafe_code)]

mod stop;

pub use stop::Stop;
