//! Work that the scheduler runs beside vCPUs: what its users know of the scheduler.
#![no_std]
#![forbid(unsafe_code)]

mod service;
mod stop;

pub use service::Service;
pub use stop::Stop;
