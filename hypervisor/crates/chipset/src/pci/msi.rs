//! MSI: up to 32 messages that differ in the low bits of their data, each of which the guest can
//! mask (PCI Local Bus Specification 3.0, "MSI Capability Structure").

use crate::fabric::Fabric;
use alloc::sync::Arc;
use devices::lapic::InterruptMessage;
use devices::pci::{ConfigSpace, LayoutError, command};
use locks::{Mutex, Rank};
use serde::{Deserialize, Serialize};
use x86defs::Width;
use x86defs::bits::{Low, join};

/// The capability's identity.
const CAPABILITY: u8 = 0x05;
/// Registers of the capability, in the form with addresses of 64 bits and masks.
const CONTROL: u8 = 2;
const ADDRESS: u8 = 4;
const ADDRESS_HIGH: u8 = 8;
const DATA: u8 = 0xc;
const MASK: u8 = 0x10;
const PENDING: u8 = 0x14;
/// Message control: MSI is enabled.
const ENABLE: u16 = 1 << 0;
/// Message control: how many messages the guest has enabled, as a power of two, in bits 6:4.
const ENABLED_SHIFT: u16 = 4;
/// Message control: addresses have 64 bits.
const HAS_64_BITS: u16 = 1 << 7;
/// Message control: messages can be masked.
const HAS_MASKS: u16 = 1 << 8;
/// Bits 1:0 of an address are always 0.
const ADDRESS_LOW: u8 = 0xfc;

#[derive(Debug, Default)]
struct State {
    control: u16,
    /// The device may access memory by itself: only then it sends.
    master: bool,
    address: u64,
    data: u16,
    mask: u32,
    pending: u32,
}

/// The saved state of an [`Msi`], but for what stands in configuration space.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct MsiState {
    pub(super) pending: u32,
}

/// A device's messages, with a lock of their own: masking, pending and sending are one step.
#[derive(Debug)]
pub struct Msi {
    fabric: Arc<Fabric>,
    /// Offset of the capability in configuration space.
    capability: u8,
    /// The device's messages, as a power of two.
    messages: u8,
    state: Mutex<State>,
}

impl Msi {
    /// 2^`messages` messages, 0 to 5. The capability is added to `config`.
    ///
    /// # Errors
    /// There is no room for the capability, or for so many messages.
    pub(super) fn new(
        config: &mut ConfigSpace,
        messages: u8,
        fabric: Arc<Fabric>,
    ) -> Result<Self, LayoutError> {
        if messages > 5 {
            return Err(LayoutError::Room);
        }
        let mut body = [0; 22];
        let mut writable = [0; 22];
        let control = u16::from(messages) << 1 | HAS_64_BITS | HAS_MASKS;
        let [first, second, ..] = &mut body;
        [*first, *second] = control.to_le_bytes();
        let [guest, _] = (ENABLE | 7 << ENABLED_SHIFT).to_le_bytes();
        let every = (u32::MAX >> (32 - (1_u32 << messages))).to_le_bytes();
        let masks = [guest, 0, ADDRESS_LOW, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff];
        for (place, mask) in writable.iter_mut().zip(masks.into_iter().chain([0; 2]).chain(every)) {
            *place = mask;
        }
        let capability = config.add_capability(CAPABILITY, &body, &writable)?;
        Ok(Self {
            fabric,
            capability,
            messages,
            state: Mutex::new(Rank::Messages, State::default()),
        })
    }

    /// Whether the guest has enabled MSI: then the device uses no other interrupt.
    #[must_use]
    pub fn is_enabled(&self) -> bool {
        self.state.lock().control & ENABLE != 0
    }

    pub(super) fn save(&self) -> MsiState {
        MsiState { pending: self.state.lock().pending }
    }

    /// Messages that waited wait again; `config` has been restored. Nothing is sent.
    pub(super) fn restore(&self, config: &ConfigSpace, saved: &MsiState) {
        let state = &mut *self.state.lock();
        self.look(config, state);
        state.pending = saved.pending;
    }

    /// The guest has written configuration space, which is `config` now.
    pub(super) fn configured(&self, config: &ConfigSpace) {
        let state = &mut *self.state.lock();
        self.look(config, state);
        self.send_pending(state);
    }

    /// Takes over what `config` has.
    fn look(&self, config: &ConfigSpace, state: &mut State) {
        let register = |offset, width| config.value(self.capability + offset, width);
        state.control = register(CONTROL, Width::B2).low16();
        state.address = join(register(ADDRESS_HIGH, Width::B4), register(ADDRESS, Width::B4));
        state.data = register(DATA, Width::B2).low16();
        state.mask = register(MASK, Width::B4);
        state.master = config.command() & command::BUS_MASTER != 0;
    }

    /// The device has an interrupt by `message`. One of those that the guest has not enabled
    /// becomes one that it has; all are lost while MSI is not enabled.
    pub fn notify(&self, message: u16) {
        let state = &mut *self.state.lock();
        if state.control & ENABLE != 0 {
            state.pending |= 1 << (message & (self.enabled(state) - 1));
            self.send_pending(state);
        }
    }

    /// How many messages the guest has enabled, of those that there are.
    fn enabled(&self, state: &State) -> u16 {
        1 << (state.control >> ENABLED_SHIFT & 7).min(self.messages.into())
    }

    /// Sends the interrupts that wait for nothing any more.
    fn send_pending(&self, state: &mut State) {
        if state.control & ENABLE == 0 || !state.master {
            return;
        }
        let low = self.enabled(state) - 1;
        for number in 0..32 {
            if state.pending & !state.mask & 1 << number != 0 {
                state.pending &= !(1 << number);
                let data = state.data & !low | number & low;
                // An address where no local APIC listens: the write goes nowhere.
                if let Some(message) = InterruptMessage::from_msi(state.address, data.into()) {
                    self.fabric.deliver(&message);
                }
            }
        }
    }

    /// Shows in `config`, which is about to be read, which messages wait.
    pub(super) fn show(&self, config: &mut ConfigSpace) {
        config.set_value(self.capability + PENDING, Width::B4, self.state.lock().pending);
    }

    /// The state after power-up; the capability is reset with the configuration space.
    pub(super) fn reset(&self) {
        *self.state.lock() = State::default();
    }
}
