//! MSI-X: a table of messages, each of which the guest can mask (PCI Local Bus Specification 3.0,
//! "MSI-X Capability and Table Structures").

use crate::fabric::Fabric;
use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;
use devices::RestoreError;
use devices::lapic::InterruptMessage;
use devices::pci::{ConfigSpace, LayoutError, command};
use locks::{Mutex, Rank};
use serde::{Deserialize, Serialize};
use x86defs::Width;
use x86defs::bits::{Low, high32, join};

/// The capability's identity.
const CAPABILITY: u8 = 0x11;
/// Offset of message control in the capability.
const CONTROL: u8 = 2;
/// Message control: MSI-X is enabled.
const ENABLE: u16 = 1 << 15;
/// Message control: all vectors are masked.
const FUNCTION_MASK: u16 = 1 << 14;
/// Bytes of a table's entry.
const ENTRY: u64 = 16;
/// Bits 1:0 of an address are always 0.
const ADDRESS_LOW: u32 = !3;
/// Vector control: the vector is masked.
const MASKED: u32 = 1;
/// Offset of the pending bits in the BAR. The table stands at its beginning.
const PENDING: u64 = 0x800;

/// An entry of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Entry {
    address: u64,
    data: u32,
    masked: bool,
    /// An interrupt came while the vector was masked.
    pending: bool,
}

impl Entry {
    const RESET: Self = Self { address: 0, data: 0, masked: true, pending: false };

    /// The word at `offset`, a multiple of 4 below [`ENTRY`].
    fn word(&self, offset: u64) -> u32 {
        match offset {
            0 => self.address.low32(),
            4 => high32(self.address),
            8 => self.data,
            _ => self.masked.into(),
        }
    }

    fn set_word(&mut self, offset: u64, value: u32) {
        match offset {
            0 => self.address = join(high32(self.address), value & ADDRESS_LOW),
            4 => self.address = join(value, self.address.low32()),
            8 => self.data = value,
            _ => self.masked = value & MASKED != 0,
        }
    }
}

/// The saved state of an [`Msix`], but for what stands in configuration space.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct MsixState {
    pub(super) entries: Vec<Entry>,
}

#[derive(Debug)]
struct State {
    control: u16,
    /// The device may access memory by itself: only then it sends.
    master: bool,
    entries: Vec<Entry>,
}

/// A device's table, with a lock of its own: masking, pending and sending are one step, so that no
/// interrupt comes after the guest has masked it, and none is lost.
#[derive(Debug)]
pub struct Msix {
    fabric: Arc<Fabric>,
    /// Offset of the capability in configuration space.
    capability: u8,
    /// The BAR that the table and the pending bits lie in.
    bar: u8,
    state: Mutex<State>,
}

impl Msix {
    /// The most vectors that a table has.
    pub const MAX_VECTORS: u8 = 128;
    /// Bytes of the table's BAR.
    pub const BAR_SIZE: u32 = 0x1000;

    /// A table of `vectors` entries (1 to [`MAX_VECTORS`](Self::MAX_VECTORS)), all masked, in BAR
    /// `bar`, which the device adds with [`BAR_SIZE`](Self::BAR_SIZE) bytes. The capability is
    /// added to `config`.
    ///
    /// # Errors
    /// There is no room for the capability, or for so many vectors.
    pub(super) fn new(
        config: &mut ConfigSpace,
        bar: u8,
        vectors: u8,
        fabric: Arc<Fabric>,
    ) -> Result<Self, LayoutError> {
        if vectors == 0 || vectors > Self::MAX_VECTORS {
            return Err(LayoutError::Room);
        }
        let [p0, p1, p2, p3] = (PENDING.low32() | u32::from(bar)).to_le_bytes();
        let body = [vectors - 1, 0, bar, 0, 0, 0, p0, p1, p2, p3];
        let [_, writable] = (ENABLE | FUNCTION_MASK).to_le_bytes();
        let writable = [0, writable, 0, 0, 0, 0, 0, 0, 0, 0];
        let capability = config.add_capability(CAPABILITY, &body, &writable)?;
        let state =
            State { control: 0, master: false, entries: vec![Entry::RESET; vectors.into()] };
        Ok(Self { fabric, capability, bar, state: Mutex::new(Rank::Messages, state) })
    }

    /// The BAR of the table.
    #[must_use]
    pub const fn bar(&self) -> u8 {
        self.bar
    }

    /// Whether the guest has enabled MSI-X: then the device uses no other interrupt.
    #[must_use]
    pub fn is_enabled(&self) -> bool {
        self.state.lock().control & ENABLE != 0
    }

    pub(super) fn save(&self) -> MsixState {
        MsixState { entries: self.state.lock().entries.clone() }
    }

    /// Messages that waited wait again; `config` has been restored. Nothing is sent.
    pub(super) fn restore(
        &self,
        config: &ConfigSpace,
        saved: MsixState,
    ) -> Result<(), RestoreError> {
        let State { control, master, entries } = &mut *self.state.lock();
        if saved.entries.len() != entries.len() {
            return Err(RestoreError("MSI-X: another number of vectors"));
        }
        if saved.entries.iter().any(|entry| entry.address.low32() & !ADDRESS_LOW != 0) {
            return Err(RestoreError("MSI-X: impossible address"));
        }
        (*control, *master) = self.look(config);
        *entries = saved.entries;
        Ok(())
    }

    /// Message control in `config`, and whether the device may send.
    fn look(&self, config: &ConfigSpace) -> (u16, bool) {
        let control = config.value(self.capability + CONTROL, Width::B2).low16();
        (control, config.command() & command::BUS_MASTER != 0)
    }

    /// The guest has written configuration space, which is `config` now.
    pub(super) fn configured(&self, config: &ConfigSpace) {
        let State { control, master, entries } = &mut *self.state.lock();
        (*control, *master) = self.look(config);
        for entry in entries {
            self.send_pending(*control, *master, entry);
        }
    }

    /// The device has an interrupt by `vector`; it is lost if there is no such vector, or MSI-X is
    /// not enabled.
    pub fn notify(&self, vector: u16) {
        let State { control, master, entries } = &mut *self.state.lock();
        if *control & ENABLE != 0
            && let Some(entry) = entries.get_mut(usize::from(vector))
        {
            entry.pending = true;
            self.send_pending(*control, *master, entry);
        }
    }

    /// Sends the interrupt of `entry` if it waits for nothing any more.
    fn send_pending(&self, control: u16, master: bool, entry: &mut Entry) {
        let is_open = master && control & (ENABLE | FUNCTION_MASK) == ENABLE && !entry.masked;
        if !is_open || !core::mem::take(&mut entry.pending) {
            return;
        }
        // An address where no local APIC listens: the write goes nowhere.
        if let Some(message) = InterruptMessage::from_msi(entry.address, entry.data) {
            self.fabric.deliver(&message);
        }
    }

    /// Reads table or pending bits: 4 or 8 bytes, aligned; all else reads as 0.
    #[must_use]
    pub fn read(&self, offset: u64, width: Width) -> u64 {
        let entries = &self.state.lock().entries;
        match (width, offset % 8) {
            (Width::B4, 0 | 4) => word(entries, offset).into(),
            (Width::B8, 0) => join(word(entries, offset + 4), word(entries, offset)),
            _ => 0,
        }
    }

    /// Writes the table: 4 or 8 bytes, aligned; all else is lost.
    pub fn write(&self, offset: u64, width: Width, value: u64) {
        let words = match (width, offset % 8) {
            (Width::B4, 0 | 4) => [Some(value.low32()), None],
            (Width::B8, 0) => [Some(value.low32()), Some(high32(value))],
            _ => return,
        };
        let State { control, master, entries } = &mut *self.state.lock();
        for (at, word) in (offset..).step_by(4).zip(words.into_iter().flatten()) {
            let entry = usize::try_from(at / ENTRY).ok().and_then(|n| entries.get_mut(n));
            if let Some(entry) = entry {
                entry.set_word(at % ENTRY, word);
                self.send_pending(*control, *master, entry);
            }
        }
    }

    /// The state after power-up; the capability is reset with the configuration space.
    pub(super) fn reset(&self) {
        let State { control, master, entries } = &mut *self.state.lock();
        (*control, *master) = (0, false);
        entries.fill(Entry::RESET);
    }
}

/// The word at `offset`, a multiple of 4, of the BAR.
fn word(entries: &[Entry], offset: u64) -> u32 {
    if let Some(place) = offset.checked_sub(PENDING) {
        let first = usize::try_from(place * 8).unwrap_or(usize::MAX);
        let pending = entries.iter().skip(first).take(32).enumerate();
        return pending.fold(0, |word, (n, entry)| word | u32::from(entry.pending) << n);
    }
    let entry = usize::try_from(offset / ENTRY).ok().and_then(|n| entries.get(n));
    entry.map_or(0, |entry| entry.word(offset % ENTRY))
}
