//! Devices on PCI bus 0: what the board asks of each ([`BoardDevice`]), and the part that all have
//! in common ([`PciInterface`]): configuration space, BARs and interrupts.

mod interface;
mod msi;
mod msix;
#[cfg(test)]
mod tests;

pub use interface::{Interrupts, PciInterface};
pub use msi::Msi;
pub use msix::Msix;

use crate::doorbell::Doorbell;
use crate::saved::Quiet;
use alloc::sync::Arc;
use core::fmt::Debug;
use devices::pci::{BAR_COUNT, BarRange, ConfigEffect, DevFn, PciFunction};
use service::Waker;
use state::{Sections, StateError, Writer};
use x86defs::Width;
use x86defs::time::Nanos;

/// A device on the PCI bus. It locks what it has to; nobody gets at its locks.
pub trait BoardDevice: Debug + Send + Sync {
    /// Reads configuration space. `offset` and `width` (1, 2 or 4 bytes) stay
    /// within one aligned group of four bytes.
    fn config_read(&self, offset: u8, width: Width) -> u32;

    /// Writes configuration space; the same holds. Accesses come one at a time.
    fn config_write(&self, offset: u8, width: Width, value: u32) -> ConfigEffect;

    /// Places of its BARs, as far as it answers there.
    fn places(&self) -> [Option<BarRange>; BAR_COUNT as usize];

    /// Reads `width` bytes at `offset` of BAR `bar`. The access stays within the BAR.
    fn read(&self, bar: u8, offset: u64, width: Width, now: Nanos) -> u64;

    /// Writes `width` bytes at `offset` of BAR `bar`; the same holds.
    fn write(&self, bar: u8, offset: u64, width: Width, value: u64, now: Nanos);

    /// Begins nothing new at a medium; whether nothing is in flight there. What the guest has not
    /// submitted stays in its rings, and marks of doorbells stay marks.
    fn quiesce(&self) -> Quiet;

    /// Ends what [`quiesce`](Self::quiesce) began.
    fn go_on(&self);

    /// Writes its sections, once it is quiet. Their instance is that of
    /// [`PciInterface::instance`].
    fn save(&self, writer: &mut Writer);

    /// Restores a device that has just been made.
    ///
    /// # Errors
    /// Names the section that is missing, or that can't be.
    fn restore(&self, sections: &mut Sections<'_>) -> Result<(), StateError>;

    /// The doorbells that it has among I/O ports, if any: the same ones at all times.
    fn port_bells(&self) -> Option<PortBells>;
}

/// Doorbells in an I/O BAR of a device: a write of any width and value to the port
/// `first + 4 * n` of the BAR rings bit `n`, for `n` below `count`.
#[derive(Clone, Debug)]
pub struct PortBells {
    /// The BAR.
    pub bar: u8,
    /// Offset of the first doorbell in the BAR.
    pub first: u8,
    /// How many there are: 1 to 64, as far as the BAR reaches.
    pub count: u8,
    /// The bits that they ring.
    pub doorbell: Arc<Doorbell>,
    /// The one who looks after the bits.
    pub waker: Waker,
}

/// A device at its place of the bus.
#[derive(Debug)]
pub(crate) struct OnBus(pub(crate) Arc<dyn BoardDevice>);

impl PciFunction for OnBus {
    fn config_read(&mut self, offset: u8, width: Width) -> u32 {
        self.0.config_read(offset, width)
    }

    fn config_write(&mut self, offset: u8, width: Width, value: u32) -> ConfigEffect {
        self.0.config_write(offset, width, value)
    }
}

/// A device and its place.
pub type Placed = (DevFn, Arc<dyn BoardDevice>);
