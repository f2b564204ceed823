//! The traits of device models.

use state::Saved;
use x86defs::Width;
use x86defs::time::Nanos;

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

/// Operations of every device model, beside accesses.
pub trait Device: Sized {
    /// All state that the guest could notice. Times in it are the guest's.
    type State: Saved + Clone + PartialEq + core::fmt::Debug;

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
    /// [`AccessError`] if there is nothing to read.
    fn port_read(&mut self, offset: u16, width: Width, now: Nanos) -> Result<u32, AccessError>;

    /// OUT at `offset` from the device's first port.
    ///
    /// # Errors
    /// [`AccessError`] if there is nothing to write.
    fn port_write(
        &mut self,
        offset: u16,
        width: Width,
        value: u32,
        now: Nanos,
    ) -> Result<(), AccessError>;
}

/// A device that acts when time passes.
pub trait Timed {
    /// Time at which it next wants [`advance`](Self::advance) to be called, if ever.
    fn next_deadline(&self) -> Option<Nanos>;

    /// Time has come to `now`: timers that ran out take effect.
    fn advance(&mut self, now: Nanos);
}
