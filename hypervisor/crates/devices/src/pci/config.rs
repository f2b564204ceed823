//! A function's configuration space: 256 bytes of which the guest can change
//! some, base address registers that tell their size, and a capability list.
//!
//! PCI Local Bus Specification 3.0, "Configuration Space".

use alloc::boxed::Box;
use alloc::vec::Vec;
use serde::{Deserialize, Serialize};
use state::Saved;
use x86defs::{Low, Width};

use super::{ConfigEffect, PciFunction, config_bytes};
use crate::{Device, RestoreError};

/// Bytes of a configuration space.
pub const CONFIG_SIZE: usize = 256;

/// Offsets of the type 0 header.
pub mod header {
    /// Vendor identity, 16 bits.
    pub const VENDOR: u8 = 0x00;
    /// Device identity, 16 bits.
    pub const DEVICE: u8 = 0x02;
    /// Command, 16 bits.
    pub const COMMAND: u8 = 0x04;
    /// Status, 16 bits.
    pub const STATUS: u8 = 0x06;
    /// Revision, 8 bits; the class code's three bytes follow.
    pub const REVISION: u8 = 0x08;
    /// Cache line size, 8 bits.
    pub const CACHE_LINE: u8 = 0x0c;
    /// Latency timer, 8 bits.
    pub const LATENCY_TIMER: u8 = 0x0d;
    /// Header type, 8 bits.
    pub const HEADER_TYPE: u8 = 0x0e;
    /// The first of six base address registers of 32 bits.
    pub const BAR0: u8 = 0x10;
    /// Subsystem vendor identity, 16 bits.
    pub const SUBSYSTEM_VENDOR: u8 = 0x2c;
    /// Subsystem identity, 16 bits.
    pub const SUBSYSTEM: u8 = 0x2e;
    /// Offset of the first capability, 8 bits.
    pub const CAPABILITIES: u8 = 0x34;
    /// Interrupt line, 8 bits: scratch for the guest.
    pub const INTERRUPT_LINE: u8 = 0x3c;
    /// Interrupt pin, 8 bits: 0 none, 1 INTA# to 4 INTD#.
    pub const INTERRUPT_PIN: u8 = 0x3d;
    /// The header ends here; capabilities follow.
    pub const END: u8 = 0x40;
}

/// Bits of the command register.
pub mod command {
    /// Answers in I/O space.
    pub const IO_SPACE: u16 = 1 << 0;
    /// Answers in memory space.
    pub const MEMORY_SPACE: u16 = 1 << 1;
    /// May access memory by itself.
    pub const BUS_MASTER: u16 = 1 << 2;
    /// Keeps INTx quiet.
    pub const INTERRUPT_DISABLE: u16 = 1 << 10;
    /// Bits that keep what the guest writes: those above, and the parity and
    /// SERR# responses, which have nothing to respond to here.
    pub const WRITABLE: u16 =
        IO_SPACE | MEMORY_SPACE | BUS_MASTER | INTERRUPT_DISABLE | 1 << 6 | 1 << 8;
}

/// Bits of the status register.
pub mod status {
    /// INTx is asserted.
    pub const INTERRUPT: u16 = 1 << 3;
    /// There is a capability list.
    pub const CAPABILITIES: u16 = 1 << 4;
    /// Error bits, which the guest clears by writing ones.
    pub const CLEARABLE: u16 = 0xf900;
}

/// Identity of a function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Vendor.
    pub vendor: u16,
    /// Device of that vendor.
    pub device: u16,
    /// Base class, sub-class and programming interface, as in 0xbbsspp.
    pub class: u32,
    /// Revision.
    pub revision: u8,
    /// Subsystem vendor.
    pub subsystem_vendor: u16,
    /// Subsystem of that vendor.
    pub subsystem: u16,
}

/// Range that a base address register asks for. Sizes are powers of two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bar {
    /// I/O ports, 4 to 256.
    Io {
        /// Number of ports.
        size: u32,
    },
    /// Memory below 4 GiB, 16 bytes to 2 GiB.
    Memory32 {
        /// Bytes.
        size: u32,
        /// Reading has no side effects.
        prefetchable: bool,
    },
    /// Memory anywhere; takes two registers. 16 bytes or more.
    Memory64 {
        /// Bytes.
        size: u64,
        /// Reading has no side effects.
        prefetchable: bool,
    },
}

const BAR_IO: u64 = 1;
const BAR_64_BIT: u64 = 1 << 2;
const BAR_PREFETCHABLE: u64 = 1 << 3;
/// Registers that are BARs.
pub const BAR_COUNT: u8 = 6;

/// The place that the guest gave a BAR.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BarRange {
    /// I/O ports.
    Io {
        /// The first port.
        base: u16,
        /// Number of ports.
        size: u32,
    },
    /// Guest-physical memory.
    Memory {
        /// The first byte's address.
        base: u64,
        /// Bytes.
        size: u64,
    },
}

/// Why a configuration space can't be laid out as asked: a mistake in our own
/// device, found when it is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LayoutError {
    /// There is no such BAR, or it is taken.
    Bar,
    /// The size is no power of two, or out of the BAR's range.
    Size,
    /// No room is left for the capability.
    Room,
    /// A capability's mask and body differ in length.
    Mask,
}

/// A configuration space. Fill it in with the `add_` functions when the device
/// is made; then the guest's accesses go through [`PciFunction`].
#[derive(Clone, Debug)]
pub struct ConfigSpace {
    bytes: Box<[u8; CONFIG_SIZE]>,
    /// Bits that the guest can write.
    writable: Box<[u8; CONFIG_SIZE]>,
    /// Bits that the guest clears by writing ones.
    clearable: Box<[u8; CONFIG_SIZE]>,
    /// Values after a reset.
    initial: Box<[u8; CONFIG_SIZE]>,
    bars: [Option<Bar>; BAR_COUNT as usize],
    /// The place of the last capability's pointer to the next.
    last_pointer: u8,
    /// The next capability's place.
    free: u8,
}

fn value_at(bytes: &[u8; CONFIG_SIZE], offset: u8, count: u8) -> u64 {
    (0..count).rev().fold(0, |value, index| {
        let at = usize::from(offset) + usize::from(index);
        value << 8 | u64::from(bytes.get(at).copied().unwrap_or(0))
    })
}

fn set_at(bytes: &mut [u8; CONFIG_SIZE], offset: u8, count: u8, value: u64) {
    let slots = bytes.iter_mut().skip(offset.into()).take(count.into());
    for (slot, byte) in slots.zip(value.to_le_bytes()) {
        *slot = byte;
    }
}

impl ConfigSpace {
    /// A type 0 header of a function without BARs, capabilities or interrupt.
    #[must_use]
    pub fn new(identity: Identity) -> Self {
        let zero = || Box::new([0; CONFIG_SIZE]);
        let mut config = Self {
            bytes: zero(),
            writable: zero(),
            clearable: zero(),
            initial: zero(),
            bars: [None; BAR_COUNT as usize],
            last_pointer: header::CAPABILITIES,
            free: header::END,
        };
        config.set(header::VENDOR, 2, identity.vendor.into());
        config.set(header::DEVICE, 2, identity.device.into());
        let class = u64::from(identity.class) << 8 | u64::from(identity.revision);
        config.set(header::REVISION, 4, class);
        config.set(header::SUBSYSTEM_VENDOR, 2, identity.subsystem_vendor.into());
        config.set(header::SUBSYSTEM, 2, identity.subsystem.into());
        set_at(&mut config.writable, header::COMMAND, 2, command::WRITABLE.into());
        set_at(&mut config.clearable, header::STATUS, 2, status::CLEARABLE.into());
        for scratch in [header::CACHE_LINE, header::LATENCY_TIMER, header::INTERRUPT_LINE] {
            set_at(&mut config.writable, scratch, 1, 0xff);
        }
        config
    }

    /// Sets a value both now and for after a reset.
    fn set(&mut self, offset: u8, count: u8, value: u64) {
        set_at(&mut self.bytes, offset, count, value);
        set_at(&mut self.initial, offset, count, value);
    }

    /// Says that the device has other functions: bit 7 of the header type.
    pub fn set_multifunction(&mut self) {
        self.set(header::HEADER_TYPE, 1, 0x80);
    }

    /// Gives the function an interrupt pin: 1 for INTA# to 4 for INTD#, 0 for none.
    pub fn set_interrupt_pin(&mut self, pin: u8) {
        self.set(header::INTERRUPT_PIN, 1, pin.min(4).into());
    }

    /// Adds BAR `index`, 0 to 5 (a 64-bit one takes the next as well).
    ///
    /// # Errors
    /// No such BAR, or a size that can't be.
    pub fn add_bar(&mut self, index: u8, bar: Bar) -> Result<(), LayoutError> {
        let (size, flags, count, range) = match bar {
            Bar::Io { size } => (u64::from(size), BAR_IO, 4, 4..=256),
            Bar::Memory32 { size, prefetchable } => {
                let flags = if prefetchable { BAR_PREFETCHABLE } else { 0 };
                (size.into(), flags, 4, 16..=1 << 31)
            }
            Bar::Memory64 { size, prefetchable } => {
                let flags = if prefetchable { BAR_PREFETCHABLE } else { 0 };
                (size, flags | BAR_64_BIT, 8, 16..=1 << 63)
            }
        };
        if !size.is_power_of_two() || !range.contains(&size) {
            return Err(LayoutError::Size);
        }
        let last = index.checked_add(count / 4 - 1).ok_or(LayoutError::Bar)?;
        if last >= BAR_COUNT || (index..=last).any(|bar| self.bar_is_taken(bar)) {
            return Err(LayoutError::Bar);
        }
        *self.bars.get_mut(usize::from(index)).ok_or(LayoutError::Bar)? = Some(bar);
        let offset = header::BAR0 + 4 * index;
        self.set(offset, count, flags);
        set_at(&mut self.writable, offset, count, !(size - 1));
        Ok(())
    }

    fn bar_is_taken(&self, index: u8) -> bool {
        let at = |index: u8| self.bars.get(usize::from(index)).copied().flatten();
        at(index).is_some()
            || index
                .checked_sub(1)
                .is_some_and(|before| matches!(at(before), Some(Bar::Memory64 { .. })))
    }

    /// Appends a capability: `body` follows its identity and pointer, and
    /// `writable` says which of its bits the guest can write. Returns its offset.
    ///
    /// # Errors
    /// It does not fit, or body and mask differ in length.
    pub fn add_capability(
        &mut self,
        id: u8,
        body: &[u8],
        writable: &[u8],
    ) -> Result<u8, LayoutError> {
        if body.len() != writable.len() {
            return Err(LayoutError::Mask);
        }
        let offset = self.free;
        let end = usize::from(offset) + 2 + body.len();
        if end > CONFIG_SIZE || offset < header::END {
            return Err(LayoutError::Room);
        }
        self.set(offset, 1, id.into());
        self.set(offset + 1, 1, 0);
        for ((at, byte), mask) in (offset + 2..=u8::MAX).zip(body).zip(writable) {
            self.set(at, 1, (*byte).into());
            set_at(&mut self.writable, at, 1, (*mask).into());
        }
        self.set(self.last_pointer, 1, offset.into());
        self.last_pointer = offset + 1;
        // Capabilities begin at multiples of four; a full space has no next.
        self.free = u8::try_from(end.next_multiple_of(4)).unwrap_or(0);
        let status = value_at(&self.initial, header::STATUS, 2) | u64::from(status::CAPABILITIES);
        self.set(header::STATUS, 2, status);
        Ok(offset)
    }

    /// The command register.
    #[must_use]
    pub fn command(&self) -> u16 {
        value_at(&self.bytes, header::COMMAND, 2).low16()
    }

    /// The value of `width` at `offset`, without any effect; 0 beyond the end.
    #[must_use]
    pub fn value(&self, offset: u8, width: Width) -> u32 {
        value_at(&self.bytes, offset, config_bytes(width)).low32()
    }

    /// The device itself changes a register, whatever the guest may write.
    pub fn set_value(&mut self, offset: u8, width: Width, value: u32) {
        set_at(&mut self.bytes, offset, config_bytes(width), value.into());
    }

    /// Shows in the status register whether INTx is asserted.
    pub fn set_interrupt_status(&mut self, asserted: bool) {
        let status = value_at(&self.bytes, header::STATUS, 2);
        let bit = u64::from(status::INTERRUPT);
        let status = if asserted { status | bit } else { status & !bit };
        set_at(&mut self.bytes, header::STATUS, 2, status);
    }

    /// The places of all BARs, as [`bar_range`](Self::bar_range) has each.
    #[must_use]
    pub fn places(&self) -> [Option<BarRange>; BAR_COUNT as usize] {
        [0, 1, 2, 3, 4, 5].map(|index| self.bar_range(index))
    }

    /// The place that the guest gave BAR `index`, if the command register lets the
    /// function answer there and nothing of it is out of the address space.
    #[must_use]
    pub fn bar_range(&self, index: u8) -> Option<BarRange> {
        let bar = self.bars.get(usize::from(index)).copied().flatten()?;
        let offset = header::BAR0 + 4 * index;
        let memory = self.command() & command::MEMORY_SPACE != 0;
        match bar {
            Bar::Io { size } => {
                let base = value_at(&self.bytes, offset, 4) & !3;
                let base = u16::try_from(base).ok()?;
                (self.command() & command::IO_SPACE != 0).then_some(BarRange::Io { base, size })
            }
            Bar::Memory32 { size, .. } => {
                let base = value_at(&self.bytes, offset, 4) & !0xf;
                memory.then_some(BarRange::Memory { base, size: size.into() })
            }
            Bar::Memory64 { size, .. } => {
                let base = value_at(&self.bytes, offset, 8) & !0xf;
                // The last byte's address must exist.
                base.checked_add(size - 1)?;
                memory.then_some(BarRange::Memory { base, size })
            }
        }
    }
}

impl PciFunction for ConfigSpace {
    fn config_read(&mut self, offset: u8, width: Width) -> u32 {
        self.value(offset, width)
    }

    fn config_write(&mut self, offset: u8, width: Width, value: u32) -> ConfigEffect {
        let before = self.places();
        let count = config_bytes(width);
        let written = u64::from(value);
        let old = value_at(&self.bytes, offset, count);
        let writable = value_at(&self.writable, offset, count);
        let clearable = value_at(&self.clearable, offset, count);
        let new = (old & !writable | written & writable) & !(written & clearable);
        set_at(&mut self.bytes, offset, count, new);
        if self.places() == before { ConfigEffect::Nothing } else { ConfigEffect::BarsMoved }
    }
}

/// The saved state of a [`ConfigSpace`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfigState {
    bytes: Vec<u8>,
}

impl Saved for ConfigState {
    const NAME: &'static str = "pci-config";
    const VERSION: u16 = 1;
}

impl Device for ConfigSpace {
    type State = ConfigState;

    fn save(&self) -> ConfigState {
        ConfigState { bytes: self.bytes.to_vec() }
    }

    /// Refuses what differs in bits that neither the guest nor the device
    /// (interrupt status, error bits) changes in the header: that is another
    /// device's. Capabilities may have been changed by the device.
    fn restore(&mut self, state: ConfigState) -> Result<(), RestoreError> {
        let bytes: [u8; CONFIG_SIZE] = state
            .bytes
            .try_into()
            .map_err(|_| RestoreError("PCI: a configuration space has 256 bytes"))?;
        for at in 0..header::END {
            let get = |bytes| value_at(bytes, at, 1);
            let interrupt = if at == header::STATUS { u64::from(status::INTERRUPT) } else { 0 };
            let changes = get(&self.writable) | get(&self.clearable) | interrupt;
            if (get(&bytes) ^ get(&self.initial)) & !changes != 0 {
                return Err(RestoreError("PCI: the state is another device's"));
            }
        }
        *self.bytes = bytes;
        Ok(())
    }

    fn reset(&mut self) {
        self.bytes.copy_from_slice(self.initial.as_slice());
    }
}
