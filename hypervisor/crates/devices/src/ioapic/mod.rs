//! The I/O APIC (Intel 82093AA data sheet; version 0x20 with the EOI register
//! of later chip sets, as the ICH data sheets describe it: "I/O APIC").
//!
//! [`IoApic`] turns the levels of 24 lines into [`InterruptMessage`]s. A line's
//! change yields at most one, at once. Writes to registers and EOIs can release
//! several: they queue up, at most one for each pin, until the owner has taken
//! them with [`IoApic::next_message`], right after the access. A line that is
//! stuck costs one message for each EOI of the guest, never a loop in here.
//!
//! An edge at a masked pin is lost, as the data sheet says of the mask bit. A
//! change of polarity, trigger mode or mask is never an edge by itself.
//! Delivery is immediate, so delivery status always reads idle.

use crate::lapic::{DeliveryMode, Destination, DestinationMode, InterruptMessage, Trigger};
use crate::{AccessError, Device, RestoreError};
use bitfield_struct::bitfield;
use serde::{Deserialize, Serialize};
use state::Saved;
use x86defs::{Low, Vector, Width};

#[cfg(test)]
mod tests;

/// The number of input pins.
pub const PINS: u8 = 24;
/// Version 0x20, 24 entries.
const VERSION: u32 = 0x0017_0020;
/// All pins, a bit each.
const ALL_PINS: u32 = (1 << PINS) - 1;

/// Offset of the register that selects a register.
const SELECT: u64 = 0x00;
/// Offset of the window to the register selected.
const WINDOW: u64 = 0x10;
/// Offset of the EOI register.
const EOI: u64 = 0x40;

/// Index of the identity.
const INDEX_ID: u8 = 0;
/// Index of the version.
const INDEX_VERSION: u8 = 1;
/// Index of the arbitration identity.
const INDEX_ARBITRATION: u8 = 2;
/// Index of the first redirection entry; each takes two.
const INDEX_TABLE: u8 = 0x10;

/// An entry of the redirection table (82093AA: "I/O Redirection Table Registers").
#[bitfield(u64)]
#[derive(PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RedirectionEntry {
    /// The vector.
    pub vector: u8,
    /// Kind of interrupt to deliver.
    #[bits(3)]
    pub mode: DeliveryMode,
    /// The destination is logical.
    pub logical: bool,
    /// Delivery status: read-only, always idle.
    pub pending: bool,
    /// The input is active low.
    pub active_low: bool,
    /// A level interrupt was sent and not yet ended; read-only.
    pub remote_irr: bool,
    /// Level-triggered.
    pub level: bool,
    /// No interrupt is sent.
    pub masked: bool,
    #[bits(39)]
    __: u64,
    /// APIC or set of APICs to send it to.
    pub destination: u8,
}

impl RedirectionEntry {
    /// After reset.
    const RESET: Self = Self::new().with_masked(true);
    /// The bits that software may set.
    const WRITABLE: u64 = 0xff00_0000_0001_afff;

    /// Whether the entry sends level interrupts. Modes that have no vector of their
    /// own are edges whatever the trigger bit says.
    const fn is_level(self) -> bool {
        self.level() && self.mode().uses_vector()
    }

    fn message(self) -> InterruptMessage {
        InterruptMessage {
            destination: Destination::from_xapic(
                self.destination(),
                DestinationMode::from_logical_bit(self.logical()),
            ),
            mode: self.mode(),
            vector: self.vector(),
            trigger: Trigger::from_level_bit(self.is_level()),
        }
    }
}

/// All that a guest could notice of an I/O APIC.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IoApicState {
    table: [RedirectionEntry; PINS as usize],
    /// Bits 27:24 of the identity register.
    id: u8,
    /// The index of the register selected.
    select: u8,
    /// Lines whose sources assert them, a bit each.
    asserted: u32,
    /// Pins that have a message to send.
    queued: u32,
}

impl Saved for IoApicState {
    const NAME: &'static str = "ioapic";
    const VERSION: u16 = 1;
}

/// An I/O APIC.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IoApic {
    s: IoApicState,
    reset_id: u8,
    /// Lines that are wired active low, a bit each: asserted means a low wire.
    wired_low: u32,
}

impl IoApic {
    /// An I/O APIC after power-up. Bits 3:0 of `id` are its identity. The bits
    /// of `wired_low` name the lines that are active low on the wire: a pin
    /// reads its line rightly when the polarity in its entry agrees, as the
    /// guest learns it from the ACPI tables.
    #[must_use]
    pub const fn new(id: u8, wired_low: u32) -> Self {
        Self {
            s: IoApicState {
                table: [RedirectionEntry::RESET; PINS as usize],
                id: id & 0xf,
                select: 0,
                asserted: 0,
                queued: 0,
            },
            reset_id: id & 0xf,
            wired_low: wired_low & ALL_PINS,
        }
    }

    /// Sets whether the source at `pin` asserts its line. Returns the message to
    /// send, if one is due. Pins from [`PINS`] on do not exist.
    pub fn set_line(&mut self, pin: u8, asserted: bool) -> Option<InterruptMessage> {
        let entry = self.entry(pin)?;
        let bit = 1 << pin;
        let was = self.is_active(pin, entry);
        if asserted {
            self.s.asserted |= bit;
        } else {
            self.s.asserted &= !bit;
        }
        if entry.masked() {
            return None;
        }
        if entry.is_level() {
            self.refresh(pin);
            self.take(pin)
        } else if self.is_active(pin, entry) && !was {
            Some(entry.message())
        } else {
            None
        }
    }

    /// The line at `pin` is asserted and at once released: one edge.
    pub fn pulse(&mut self, pin: u8) -> Option<InterruptMessage> {
        let message = self.set_line(pin, true);
        message.or(self.set_line(pin, false))
    }

    /// Notes that a local APIC ended the level-triggered `vector`. If a line is
    /// still asserted, its message is due again. Returns whether messages wait
    /// in [`next_message`](Self::next_message).
    pub fn eoi(&mut self, vector: Vector) -> bool {
        let mut ended = 0_u32;
        for (pin, entry) in (0_u8..).zip(&mut self.s.table) {
            if entry.vector() == vector && entry.remote_irr() {
                entry.set_remote_irr(false);
                ended |= 1 << pin;
            }
        }
        for pin in (0..PINS).filter(|pin| ended & 1 << pin != 0) {
            self.refresh(pin);
        }
        self.s.queued != 0
    }

    /// The next message that register writes or EOIs released.
    pub fn next_message(&mut self) -> Option<InterruptMessage> {
        if self.s.queued == 0 {
            return None;
        }
        self.take(self.s.queued.trailing_zeros().low8())
    }

    /// The entry of `pin`, for display.
    #[must_use]
    pub fn entry(&self, pin: u8) -> Option<RedirectionEntry> {
        self.s.table.get(usize::from(pin)).copied()
    }

    /// Whether the source at `pin` asserts its line, for display.
    #[must_use]
    pub fn is_asserted(&self, pin: u8) -> bool {
        pin < PINS && self.s.asserted & 1 << pin != 0
    }

    /// Whether `entry` sees its line as active, its polarity considered.
    const fn is_active(&self, pin: u8, entry: RedirectionEntry) -> bool {
        let wire_low = (self.s.asserted ^ self.wired_low) & 1 << pin == 0;
        wire_low == entry.active_low()
    }

    /// Queues the message of a level-triggered pin if it is due.
    fn refresh(&mut self, pin: u8) {
        let Some(entry) = self.entry(pin) else { return };
        let due = entry.is_level()
            && !entry.masked()
            && !entry.remote_irr()
            && self.is_active(pin, entry);
        if due {
            self.put(pin, entry.with_remote_irr(true));
            self.s.queued |= 1 << pin;
        }
    }

    /// Takes the queued message of `pin`.
    fn take(&mut self, pin: u8) -> Option<InterruptMessage> {
        let entry = self.entry(pin)?;
        if self.s.queued & 1 << pin == 0 {
            return None;
        }
        self.s.queued &= !(1 << pin);
        Some(entry.message())
    }

    fn put(&mut self, pin: u8, entry: RedirectionEntry) {
        if let Some(slot) = self.s.table.get_mut(usize::from(pin)) {
            *slot = entry;
        }
    }

    /// The pin and the half (0 low, 1 high) that register `index` belongs to.
    const fn table_index(index: u8) -> Option<(u8, Half)> {
        let Some(offset) = index.checked_sub(INDEX_TABLE) else { return None };
        if offset >= PINS * 2 {
            return None;
        }
        Some((offset / 2, if offset % 2 == 0 { Half::Low } else { Half::High }))
    }

    fn read_selected(&self) -> u32 {
        match self.s.select {
            INDEX_ID | INDEX_ARBITRATION => u32::from(self.s.id) << 24,
            INDEX_VERSION => VERSION,
            index => match Self::table_index(index) {
                Some((pin, half)) => {
                    let entry = self.entry(pin).unwrap_or(RedirectionEntry::RESET).into_bits();
                    match half {
                        Half::Low => entry.low32(),
                        Half::High => (entry >> 32).low32(),
                    }
                }
                None => 0,
            },
        }
    }

    fn write_selected(&mut self, value: u32) {
        match self.s.select {
            INDEX_ID => self.s.id = (value >> 24).low8() & 0xf,
            index => {
                if let Some((pin, half)) = Self::table_index(index) {
                    self.write_entry(pin, half, value);
                }
            }
        }
    }

    fn write_entry(&mut self, pin: u8, half: Half, value: u32) {
        let Some(old) = self.entry(pin) else { return };
        let (mask, value) = match half {
            Half::Low => (u64::from(u32::MAX), u64::from(value)),
            Half::High => (!u64::from(u32::MAX), u64::from(value) << 32),
        };
        let mask = mask & RedirectionEntry::WRITABLE;
        let new = RedirectionEntry::from_bits(old.into_bits() & !mask | value & mask);
        // An edge-triggered entry waits for no EOI: guests without the EOI
        // register clear a stuck remote IRR by switching to edge and back.
        let remote_irr = new.remote_irr() && new.is_level();
        self.put(pin, new.with_remote_irr(remote_irr));
        self.refresh(pin);
    }
}

/// A half of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Half {
    Low,
    High,
}

impl IoApic {
    /// A read at `offset` from its first byte.
    ///
    /// # Errors
    /// [`AccessError`] if there is nothing to read.
    pub fn mmio_read(&self, offset: u64, width: Width) -> Result<u64, AccessError> {
        match (offset, width) {
            (SELECT, Width::B4 | Width::B1) => Ok(u64::from(self.s.select)),
            (WINDOW, Width::B4) => Ok(u64::from(self.read_selected())),
            // Write-only.
            (EOI, Width::B4) => Ok(0),
            (SELECT | WINDOW | EOI, _) => Err(AccessError::Width),
            _ => Err(AccessError::NoRegister),
        }
    }

    /// A write at `offset` from its first byte. The owner takes what this releases with
    /// [`IoApic::next_message`].
    ///
    /// # Errors
    /// [`AccessError`] if there is nothing to write.
    pub fn mmio_write(&mut self, offset: u64, width: Width, value: u64) -> Result<(), AccessError> {
        match (offset, width) {
            (SELECT, Width::B4 | Width::B1) => self.s.select = value.low8(),
            (WINDOW, Width::B4) => self.write_selected(value.low32()),
            (EOI, Width::B4) => {
                self.eoi(value.low8());
            }
            (SELECT | WINDOW | EOI, _) => return Err(AccessError::Width),
            _ => return Err(AccessError::NoRegister),
        }
        Ok(())
    }
}

impl Device for IoApic {
    type State = IoApicState;

    fn save(&self) -> IoApicState {
        self.s.clone()
    }

    fn restore(&mut self, state: IoApicState) -> Result<(), RestoreError> {
        let allowed =
            RedirectionEntry::WRITABLE | RedirectionEntry::new().with_remote_irr(true).into_bits();
        let entry_is_possible = |entry: &RedirectionEntry| {
            entry.into_bits() & !allowed == 0 && (entry.is_level() || !entry.remote_irr())
        };
        if !state.table.iter().all(entry_is_possible) {
            return Err(RestoreError("I/O APIC: redirection entry"));
        }
        if state.id > 0xf {
            return Err(RestoreError("I/O APIC: identity"));
        }
        if (state.asserted | state.queued) & !ALL_PINS != 0 {
            return Err(RestoreError("I/O APIC: pins"));
        }
        self.s = state;
        Ok(())
    }

    /// Power-up state. The lines' levels are their sources' and stay.
    fn reset(&mut self) {
        let asserted = self.s.asserted;
        *self = Self::new(self.reset_id, self.wired_low);
        self.s.asserted = asserted;
    }
}
