//! The part that all PCI devices have in common.

use super::msi::MsiState;
use super::msix::MsixState;
use super::{Msi, Msix};
use crate::fabric::Fabric;
use crate::saved::refused;
use alloc::sync::Arc;
use devices::pci::{
    BAR_COUNT, Bar, BarRange, ConfigEffect, ConfigSpace, ConfigState, DevFn, LayoutError,
    PciFunction, command,
};
use devices::{Device, RestoreError};
use locks::{Mutex, Rank};
use serde::{Deserialize, Serialize};
use state::{Saved, Sections, StateError, Writer};
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

/// The saved state of a [`PciInterface`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct InterfaceState {
    config: ConfigState,
    asserted: bool,
    msix: Option<MsixState>,
    msi: Option<MsiState>,
}

impl Saved for InterfaceState {
    const NAME: &'static str = "pci-interface";
    const VERSION: u16 = 1;
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

    /// Instance of the device's sections in a saved machine: its place.
    #[must_use]
    pub fn instance(&self) -> u32 {
        u32::from(self.place.device()) << 3 | u32::from(self.place.function())
    }

    /// Writes its section.
    pub fn save(&self, writer: &mut Writer) {
        writer.put(self.instance(), &self.state());
    }

    fn state(&self) -> InterfaceState {
        let config = self.config.lock();
        InterfaceState {
            config: config.space.save(),
            asserted: config.asserted,
            msix: self.msix.as_ref().map(Msix::save),
            msi: self.msi.as_ref().map(Msi::save),
        }
    }

    /// Restores an interface that has just been made. Its interrupts are as they were, and none is
    /// sent; the INTA# line is restored with the interrupt controllers.
    ///
    /// # Errors
    /// The section is missing, or another device's.
    pub fn restore(&self, sections: &mut Sections<'_>) -> Result<(), StateError> {
        let state = sections.take(self.instance())?;
        self.put_back(state).map_err(refused::<InterfaceState>(self.instance()))
    }

    fn put_back(&self, state: InterfaceState) -> Result<(), RestoreError> {
        let InterfaceState { config: saved, asserted, msix, msi } = state;
        let config = &mut *self.config.lock();
        config.space.restore(saved)?;
        config.asserted = asserted;
        match (&self.msix, msix) {
            (Some(msix), Some(saved)) => msix.restore(&config.space, saved)?,
            (None, None) => {}
            _ => return Err(RestoreError("PCI: one has MSI-X, and the other has not")),
        }
        match (&self.msi, msi) {
            (Some(msi), Some(saved)) => msi.restore(&config.space, &saved),
            (None, None) => {}
            _ => return Err(RestoreError("PCI: one has MSI, and the other has not")),
        }
        Ok(())
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fabric::Kick;
    use alloc::boxed::Box;
    use devices::pci::{Identity, header};

    #[test]
    fn the_state_is_laid_out_as_it_was() {
        state::golden::check(env!("CARGO_MANIFEST_DIR"), || {
            let fabric = Arc::new(Fabric::new(1, Kick(Box::new(|_| ()))));
            let space = ConfigSpace::new(Identity {
                vendor: 0x1234,
                device: 1,
                class: 0xff_00_00,
                revision: 1,
                subsystem_vendor: 0,
                subsystem: 0,
            });
            let interrupts = Interrupts { msix: Some((2, 3)), msi: Some(2), intx: true };
            let place = DevFn::new(3, 0).unwrap();
            let pci = PciInterface::new(place, space, interrupts, fabric).unwrap();
            let _ = pci.config_write(header::COMMAND, Width::B2, 7);
            let _ = pci.config_write(header::BAR0 + 8, Width::B4, 0xc000_0000);
            pci.set_intx(true);
            let msix = pci.msix().unwrap();
            msix.write(16, Width::B8, 0xfee0_1000);
            msix.write(24, Width::B8, 0x31);
            pci.state()
        });
    }
}
