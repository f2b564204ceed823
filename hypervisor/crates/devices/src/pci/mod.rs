//! The PCI bus as the guest configures it: mechanism #1 at ports 0xcf8 and
//! 0xcfc, with a host bridge at 00:00.0.
//!
//! [`PciBus`] finds the function that the guest addresses and passes the
//! access on; anything that is a [`PciFunction`] can stand on it (boxed, an
//! enum, or a handle to a device behind a lock). [`ConfigSpace`] is the usual
//! insides of one. The functions' states are saved by their owners, the
//! host bridge's with the bus.
//!
//! Offsets 0 to 3 are the address register, 4 to 7 the data register. The
//! address register answers to accesses of four bytes only: single bytes at
//! 0xcf9 are the [reset control register](crate::reset)'s.
//!
//! PCI Local Bus Specification 3.0, "Software Generation of Configuration
//! Transactions".

use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use serde::{Deserialize, Serialize};
use state::Saved;
use x86defs::{Low, Width};

use crate::ports::PortRange;
use crate::{AccessError, Device, PortDevice, RestoreError};
use x86defs::time::Nanos;

mod config;
#[cfg(test)]
mod tests;

pub use config::{
    BAR_COUNT, Bar, BarRange, CONFIG_SIZE, ConfigSpace, ConfigState, Identity, LayoutError,
    command, header, status,
};

/// Bit 31 of the address register: accesses to the data register are
/// configuration accesses.
const ENABLE: u32 = 1 << 31;
/// Bits of the address register that hold something.
const ADDRESS_BITS: u32 = ENABLE | 0x00ff_fffc;

/// The host bridge: an Intel 440FX, which every operating system knows.
const HOST_BRIDGE: Identity = Identity {
    vendor: 0x8086,
    device: 0x1237,
    class: 0x06_00_00,
    revision: 2,
    subsystem_vendor: 0,
    subsystem: 0,
};

/// Consequence of a write to configuration space for the owner of the bus.
#[must_use]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConfigEffect {
    /// None.
    Nothing,
    /// The function answers at other places than before: a BAR or the command register has
    /// changed.
    BarsMoved,
}

/// A function at an address of the PCI bus.
pub trait PciFunction {
    /// Reads configuration space. `offset` and `width` (1, 2 or 4 bytes) stay
    /// within one aligned group of four bytes.
    fn config_read(&mut self, offset: u8, width: Width) -> u32;

    /// Writes configuration space; the same holds.
    fn config_write(&mut self, offset: u8, width: Width, value: u32) -> ConfigEffect;
}

impl<F: PciFunction + ?Sized> PciFunction for Box<F> {
    fn config_read(&mut self, offset: u8, width: Width) -> u32 {
        (**self).config_read(offset, width)
    }

    fn config_write(&mut self, offset: u8, width: Width, value: u32) -> ConfigEffect {
        (**self).config_write(offset, width, value)
    }
}

/// Device and function number on bus 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct DevFn(u8);

impl DevFn {
    /// The host bridge.
    pub const HOST_BRIDGE: Self = Self(0);

    /// Device 0 to 31, function 0 to 7; `None` beyond.
    #[must_use]
    pub const fn new(device: u8, function: u8) -> Option<Self> {
        if device < 32 && function < 8 { Some(Self(device << 3 | function)) } else { None }
    }

    /// The device, 0 to 31.
    #[must_use]
    pub const fn device(self) -> u8 {
        self.0 >> 3
    }

    /// The function, 0 to 7.
    #[must_use]
    pub const fn function(self) -> u8 {
        self.0 & 7
    }
}

/// The bus and its mechanism #1. See the module's description.
#[derive(Debug)]
pub struct PciBus<F> {
    address: u32,
    host_bridge: ConfigSpace,
    functions: BTreeMap<DevFn, F>,
    /// A function whose places have changed by the last access, and nobody has asked yet.
    moved: Option<DevFn>,
}

impl<F: PciFunction> Default for PciBus<F> {
    fn default() -> Self {
        Self::new()
    }
}

impl<F: PciFunction> PciBus<F> {
    /// Ports of the registers in a PC.
    pub const PORTS: PortRange = PortRange::new(0xcf8, 8, 0);

    /// A bus with nothing but the host bridge on it.
    #[must_use]
    pub fn new() -> Self {
        Self {
            address: 0,
            host_bridge: ConfigSpace::new(HOST_BRIDGE),
            functions: BTreeMap::new(),
            moved: None,
        }
    }

    /// Puts a function on the bus.
    ///
    /// # Errors
    /// Gives the function back where the place is taken.
    pub fn add(&mut self, place: DevFn, function: F) -> Result<(), F> {
        if place == DevFn::HOST_BRIDGE || self.functions.contains_key(&place) {
            return Err(function);
        }
        self.functions.insert(place, function);
        Ok(())
    }

    /// The function at `place`, other than the host bridge.
    pub fn function_mut(&mut self, place: DevFn) -> Option<&mut F> {
        self.functions.get_mut(&place)
    }

    /// All functions but the host bridge, in the order of their places.
    pub fn functions_mut(&mut self) -> impl Iterator<Item = (DevFn, &mut F)> {
        self.functions.iter_mut().map(|(place, function)| (*place, function))
    }

    /// The function that the next access of the data register goes to, if the
    /// address is enabled; whether or not there is one.
    #[must_use]
    pub fn selected(&self) -> Option<DevFn> {
        let [_, devfn, bus, _] = self.address.to_le_bytes();
        (self.address & ENABLE != 0 && bus == 0).then_some(DevFn(devfn))
    }

    /// Reads a function's configuration space; all ones where there is none.
    pub fn config_read(&mut self, place: DevFn, offset: u8, width: Width) -> u32 {
        let value = match self.functions.get_mut(&place) {
            Some(function) => function.config_read(offset, width),
            None if place == DevFn::HOST_BRIDGE => self.host_bridge.config_read(offset, width),
            None => u32::MAX,
        };
        width.truncate(value.into()).low32()
    }

    /// Writes a function's configuration space; nothing where there is none. The owner then asks
    /// for what has [moved](Self::take_moved).
    pub fn config_write(&mut self, place: DevFn, offset: u8, width: Width, value: u32) {
        let effect = match self.functions.get_mut(&place) {
            Some(function) => function.config_write(offset, width, value),
            None if place == DevFn::HOST_BRIDGE => {
                self.host_bridge.config_write(offset, width, value)
            }
            None => ConfigEffect::Nothing,
        };
        if effect == ConfigEffect::BarsMoved {
            self.moved = Some(place);
        }
    }

    /// The function whose places the last access has changed, if any; once.
    #[must_use]
    pub fn take_moved(&mut self) -> Option<DevFn> {
        self.moved.take()
    }

    /// The configuration offset of the data register's byte `offset` (4 to 7).
    fn config_offset(&self, offset: u16) -> u8 {
        let [register, ..] = self.address.to_le_bytes();
        register | u32::from(offset & 3).low8()
    }
}

/// Bytes of a configuration access.
const fn config_bytes(width: Width) -> u8 {
    match width {
        Width::B1 => 1,
        Width::B2 => 2,
        Width::B4 | Width::B8 => 4,
    }
}

/// Register that an access goes to.
enum Register {
    Address,
    Data,
}

fn register(offset: u16, width: Width) -> Result<Register, AccessError> {
    match (offset, width) {
        (0..8, Width::B8) => Err(AccessError::Width),
        (0, Width::B4) => Ok(Register::Address),
        (0..4, _) => Err(AccessError::NoRegister),
        // One access must not reach over the register's end.
        (4..8, _) if offset + u16::from(config_bytes(width)) <= 8 => Ok(Register::Data),
        (4..8, _) => Err(AccessError::Width),
        _ => Err(AccessError::NoRegister),
    }
}

impl<F: PciFunction> PortDevice for PciBus<F> {
    fn port_read(&mut self, offset: u16, width: Width, _now: Nanos) -> Result<u32, AccessError> {
        Ok(match register(offset, width)? {
            Register::Address => self.address,
            Register::Data if self.address & ENABLE == 0 => return Err(AccessError::NoRegister),
            Register::Data => match self.selected() {
                Some(place) => self.config_read(place, self.config_offset(offset), width),
                // Another bus: there is none.
                None => width.mask().low32(),
            },
        })
    }

    fn port_write(
        &mut self,
        offset: u16,
        width: Width,
        value: u32,
        _now: Nanos,
    ) -> Result<(), AccessError> {
        match register(offset, width)? {
            Register::Address => self.address = value & ADDRESS_BITS,
            Register::Data if self.address & ENABLE == 0 => return Err(AccessError::NoRegister),
            Register::Data => {
                if let Some(place) = self.selected() {
                    self.config_write(place, self.config_offset(offset), width, value);
                }
            }
        }
        Ok(())
    }
}

/// The saved state of a [`PciBus`], without its functions.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PciBusState {
    address: u32,
    host_bridge: ConfigState,
}

impl Saved for PciBusState {
    const NAME: &'static str = "pci-bus";
    const VERSION: u16 = 1;
}

impl<F: PciFunction> Device for PciBus<F> {
    type State = PciBusState;

    fn save(&self) -> PciBusState {
        PciBusState { address: self.address, host_bridge: self.host_bridge.save() }
    }

    fn restore(&mut self, state: PciBusState) -> Result<(), RestoreError> {
        if state.address & !ADDRESS_BITS != 0 {
            return Err(RestoreError("PCI: impossible configuration address"));
        }
        self.host_bridge.restore(state.host_bridge)?;
        self.address = state.address;
        Ok(())
    }

    /// Resets the bus and the host bridge; the functions are reset by their
    /// owners.
    fn reset(&mut self) {
        self.address = 0;
        self.host_bridge.reset();
    }
}
