//! Devices of the real machine.

pub mod framebuffer;
pub mod rtc;
pub mod serial;
