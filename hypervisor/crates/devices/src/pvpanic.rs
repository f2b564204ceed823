//! The pvpanic device: one port through which a guest's kernel says that it
//! panicked.
//!
//! QEMU: "PVPANIC DEVICE" (`docs/specs/pvpanic`).

use bitflags::bitflags;
use serde::{Deserialize, Serialize};
use state::Saved;
use x86defs::{Low, Width};

use crate::{AccessError, Device, PortDevice, RestoreError};
use x86defs::time::Nanos;

bitflags! {
    /// Events that a guest reports. They are a set: it may report again before
    /// the owner has looked.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct PanicEvents: u8 {
        /// The kernel panicked, and the guest is at an end.
        const PANICKED = 1 << 0;
        /// The kernel panicked, and loads its crash kernel.
        const CRASH_LOADED = 1 << 1;
    }
}

/// The device. Reading tells the guest which events it may report.
#[derive(Clone, Debug)]
pub struct PvPanic {
    events: PanicEvents,
}

impl Default for PvPanic {
    fn default() -> Self {
        Self::new()
    }
}

impl PvPanic {
    /// A device with nothing reported.
    #[must_use]
    pub const fn new() -> Self {
        Self { events: PanicEvents::empty() }
    }

    /// Events that were reported since this was called last, if any.
    pub fn take_event(&mut self) -> Option<PanicEvents> {
        let events = core::mem::replace(&mut self.events, PanicEvents::empty());
        (!events.is_empty()).then_some(events)
    }
}

impl PortDevice for PvPanic {
    fn port_read(&mut self, offset: u16, width: Width, _now: Nanos) -> Result<u32, AccessError> {
        match (offset, width) {
            (0, Width::B1) => Ok(PanicEvents::all().bits().into()),
            (0, _) => Err(AccessError::Width),
            _ => Err(AccessError::NoRegister),
        }
    }

    fn port_write(
        &mut self,
        offset: u16,
        width: Width,
        value: u32,
        _now: Nanos,
    ) -> Result<(), AccessError> {
        match (offset, width) {
            (0, Width::B1) => {
                // Bits of events that the guest was not offered mean nothing.
                self.events |= PanicEvents::from_bits_truncate(value.low8());
                Ok(())
            }
            (0, _) => Err(AccessError::Width),
            _ => Err(AccessError::NoRegister),
        }
    }
}

/// The saved state of a [`PvPanic`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PvPanicState {
    events: u8,
}

impl Saved for PvPanicState {
    const NAME: &'static str = "pvpanic";
    const VERSION: u16 = 1;
}

impl Device for PvPanic {
    type State = PvPanicState;

    fn save(&self) -> PvPanicState {
        PvPanicState { events: self.events.bits() }
    }

    fn restore(&mut self, state: PvPanicState) -> Result<(), RestoreError> {
        self.events =
            PanicEvents::from_bits(state.events).ok_or(RestoreError("pvpanic: unknown event"))?;
        Ok(())
    }

    fn reset(&mut self) {
        *self = Self::new();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Subject, device_properties};

    #[test]
    fn reports() {
        let mut device = PvPanic::new();
        assert_eq!(device.port_read(0, Width::B1, Nanos(0)), Ok(3));
        assert_eq!(device.take_event(), None);
        device.port_write(0, Width::B1, 0xfc, Nanos(0)).unwrap();
        assert_eq!(device.take_event(), None);
        device.port_write(0, Width::B1, 2, Nanos(0)).unwrap();
        device.port_write(0, Width::B1, 1, Nanos(0)).unwrap();
        assert_eq!(device.take_event(), Some(PanicEvents::all()));
        assert_eq!(device.take_event(), None);
        assert_eq!(device.port_write(0, Width::B2, 1, Nanos(0)), Err(AccessError::Width));
        assert_eq!(device.port_write(1, Width::B1, 1, Nanos(0)), Err(AccessError::NoRegister));
        assert_eq!(device.port_read(1, Width::B1, Nanos(0)), Err(AccessError::NoRegister));
        assert!(device.restore(PvPanicState { events: 4 }).is_err());
    }

    impl Subject for PvPanic {
        fn fresh() -> Self {
            Self::new()
        }

        fn act(&mut self, _what: u8, _value: u32, _now: Nanos) -> u64 {
            self.take_event().map_or(0, |events| events.bits().into())
        }

        fn look(&self) -> u64 {
            0
        }
    }

    device_properties!(PvPanic, 1);
}
