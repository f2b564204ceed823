//! The part that all PCI devices have in common.

use super::{Msi, Msix};
use crate::fabric::Fabric;
use alloc::sync::Arc;
use devices::Device;
use devices::pci::{
    BAR_COUNT, Bar, BarRange, ConfigEffect, ConfigSpace, DevFn, LayoutError, PciFunction, command,
};
use locks::{Mutex, Rank};
use x86defs::Width;

/// Ways in which a device interrupts. A guest chooses among those that the device has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interrupts {
    /// BAR and vectors (1 to 128) of MSI-X.
    pub msix: Option<(u8, u8)>,
    /// Messages of MSI, as a power of two (0 to 5).
    pub msi: Option<u8>,
    /// INTA#.
    pub intx: bool,
}

/// Configuration space, BARs and interrupts of a device at one place of the bus.
#[derive(Debug)]
pub struct PciInterface {
    place: DevFn,
    fabric: Arc<Fabric>,
    config: Mutex<Config>,
    msix: Option<Msix>,
    msi: Option<Msi>,
}

#[derive(Debug)]
struct Config {
    space: ConfigSpace,
    /// The device asks for an interrupt by INTA#.
    asserted: bool,
}

impl PciInterface {
    /// A device at `place`, whose configuration space is `space` and what `interrupts` adds to it.
    ///
    /// # Errors
    /// There is no room in the configuration space.
    pub fn new(
        place: DevFn,
        mut space: ConfigSpace,
        interrupts: Interrupts,
        fabric: Arc<Fabric>,
    ) -> Result<Self, LayoutError> {
        let msix = match interrupts.msix {
            Some((bar, vectors)) => {
                let memory = Bar::Memory32 { size: Msix::BAR_SIZE, prefetchable: false };
                space.add_bar(bar, memory)?;
                Some(Msix::new(&mut space, bar, vectors, Arc::clone(&fabric))?)
            }
            None => None,
        };
        let msi = match interrupts.msi {
            Some(messages) => Some(Msi::new(&mut space, messages, Arc::clone(&fabric))?),
            None => None,
        };
        space.set_interrupt_pin(interrupts.intx.into());
        let config = Mutex::new(Rank::Device, Config { space, asserted: false });
        Ok(Self { place, fabric, config, msix, msi })
    }

    /// Reads configuration space, as [`BoardDevice::config_read`](super::BoardDevice::config_read).
    pub fn config_read(&self, offset: u8, width: Width) -> u32 {
        let space = &mut self.config.lock().space;
        if let Some(msi) = &self.msi {
            msi.show(space);
        }
        space.config_read(offset, width)
    }

    /// Writes configuration space, as
    /// [`BoardDevice::config_write`](super::BoardDevice::config_write).
    pub fn config_write(&self, offset: u8, width: Width, value: u32) -> ConfigEffect {
        let config = &mut *self.config.lock();
        let effect = config.space.config_write(offset, width, value);
        if let Some(msix) = &self.msix {
            msix.configured(&config.space);
        }
        if let Some(msi) = &self.msi {
            msi.configured(&config.space);
        }
        self.drive(config);
        effect
    }

    /// Places of the BARs.
    #[must_use]
    pub fn places(&self) -> [Option<BarRange>; BAR_COUNT as usize] {
        self.config.lock().space.places()
    }

    /// Whether the device may access memory by itself.
    #[must_use]
    pub fn is_bus_master(&self) -> bool {
        self.config.lock().space.command() & command::BUS_MASTER != 0
    }

    /// The table of MSI-X, if the device has one.
    #[must_use]
    pub const fn msix(&self) -> Option<&Msix> {
        self.msix.as_ref()
    }

    /// The device has an interrupt: by `vector` of MSI-X, or else by MSI's message of that number,
    /// whichever the guest has enabled. A device that the guest has not made a bus master sends
    /// nothing.
    pub fn notify(&self, vector: u16) {
        if !self.is_bus_master() {
            return;
        }
        match (&self.msix, &self.msi) {
            (Some(msix), _) if msix.is_enabled() => msix.notify(vector),
            (_, Some(msi)) => msi.notify(vector),
            _ => {}
        }
    }

    /// The device asks, or no longer asks, for an interrupt by INTA#. The line stays quiet while
    /// the guest uses messages or has disabled it.
    pub fn set_intx(&self, asserted: bool) {
        let config = &mut *self.config.lock();
        config.asserted = asserted;
        self.drive(config);
    }

    fn drive(&self, config: &mut Config) {
        config.space.set_interrupt_status(config.asserted);
        let quiet = config.space.command() & command::INTERRUPT_DISABLE != 0
            || self.msix.as_ref().is_some_and(Msix::is_enabled)
            || self.msi.as_ref().is_some_and(Msi::is_enabled);
        self.fabric.set_intx(self.place.device(), 0, config.asserted && !quiet);
    }

    /// The state after power-up. Its BARs are nowhere then: the bus is to be told.
    pub fn reset(&self) {
        let config = &mut *self.config.lock();
        config.space.reset();
        config.asserted = false;
        if let Some(msix) = &self.msix {
            msix.reset();
        }
        if let Some(msi) = &self.msi {
            msi.reset();
        }
        self.drive(config);
    }
}
