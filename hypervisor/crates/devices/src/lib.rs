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
pub mod firmware;
pub mod i8042;
pub mod pci;
pub mod pic;
pub mod pit;
pub mod port61;
pub mod ports;
pub mod pvpanic;
pub mod reset;
pub mod rtc;
#[cfg(test)]
mod testing;
pub mod uart;

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use x86defs::Width;

/// A point in a guest's time, in nanoseconds since the guest was started.
/// It stands still while the guest is paused.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[repr(transparent)]
pub struct Nanos(pub u64);

/// Nanoseconds in a second.
pub const NANOS_PER_SECOND: u64 = 1_000_000_000;

/// Why a register access failed. The bus decides what the guest sees of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AccessError {
    /// There is no register at this offset.
    NoRegister,
    /// The register can't be accessed at this width.
    Width,
}

/// A state that can't be restored, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RestoreError(pub &'static str);

/// What every device model can do beside serving accesses.
pub trait Device: Sized {
    /// Everything that the guest could notice, ready to be written down.
    type State: Serialize + DeserializeOwned + Clone + PartialEq + core::fmt::Debug;

    /// The state now.
    fn save(&self) -> Self::State;

    /// Puts a saved state in place, after checking it: a state may come from
    /// outside, and every index and size in it is untrusted.
    ///
    /// # Errors
    /// Names what is impossible about the state; the device is unchanged.
    fn restore(&mut self, state: Self::State) -> Result<(), RestoreError>;

    /// Stops the device from acting on its own (before it is saved). Nothing
    /// to do for most.
    fn quiesce(&mut self) {}

    /// The state after the machine's reset line was pulled.
    fn reset(&mut self);
}

/// A device on the I/O port bus.
pub trait PortDevice {
    /// IN at `offset` from the device's first port. The value stands in the
    /// low bits.
    ///
    /// # Errors
    /// [`AccessError`] where there is nothing to read.
    fn port_read(&mut self, offset: u16, width: Width, now: Nanos) -> Result<u32, AccessError>;

    /// OUT at `offset` from the device's first port.
    ///
    /// # Errors
    /// [`AccessError`] where there is nothing to write.
    fn port_write(
        &mut self,
        offset: u16,
        width: Width,
        value: u32,
        now: Nanos,
    ) -> Result<(), AccessError>;
}

/// A device in guest-physical memory.
pub trait MmioDevice {
    /// A read at `offset` from the device's first byte.
    ///
    /// # Errors
    /// [`AccessError`] where there is nothing to read.
    fn mmio_read(&mut self, offset: u64, width: Width, now: Nanos) -> Result<u64, AccessError>;

    /// A write at `offset` from the device's first byte.
    ///
    /// # Errors
    /// [`AccessError`] where there is nothing to write.
    fn mmio_write(
        &mut self,
        offset: u64,
        width: Width,
        value: u64,
        now: Nanos,
    ) -> Result<(), AccessError>;
}

/// A device that acts when time passes.
pub trait Timed {
    /// When it next wants [`advance`](Self::advance) to be called, if ever.
    fn next_deadline(&self) -> Option<Nanos>;

    /// Time has come to `now`: timers that ran out take effect.
    fn advance(&mut self, now: Nanos);
}
