//! The port by which the machine's ROM says that it was entered: a BIOS call, a fault that
//! nobody handles, a jump to the reset vector.
//!
//! The ROM is a few instructions without any service in it. An entry is worth a line of the log,
//! once for each kind of call; a guest that calls on and on is told about no further.

use alloc::vec::Vec;
use arrayvec::ArrayVec;
use core::fmt;
use serde::{Deserialize, Serialize};
use state::Saved;
use x86defs::Width;

use crate::{AccessError, Device, PortDevice, RestoreError};
use x86defs::time::Nanos;

/// How the ROM was entered. In the port's value: bits 31:24 are the kind, 23:16 the vector,
/// 15:0 what AX held.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FirmwareEntry {
    /// The ROM was entered by an interrupt's vector, and answered "not supported" or what it could.
    Vector {
        /// The vector.
        vector: u8,
        /// AX: for a BIOS call the function.
        ax: u16,
    },
    /// The ROM was entered by the reset vector.
    Reset,
}

/// Kinds in the port's value.
mod kind {
    pub(super) const VECTOR: u8 = 0;
    pub(super) const RESET: u8 = 1;
}

impl FirmwareEntry {
    /// Value that the ROM writes to the port when it is entered by its reset vector.
    pub const RESET_VALUE: u32 = (kind::RESET as u32) << 24;

    const fn from_value(value: u32) -> Option<Self> {
        let [ax_low, ax_high, vector, kind] = value.to_le_bytes();
        match kind {
            kind::VECTOR => {
                Some(Self::Vector { vector, ax: u16::from_le_bytes([ax_low, ax_high]) })
            }
            kind::RESET => Some(Self::Reset),
            _ => None,
        }
    }
}

impl fmt::Display for FirmwareEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Vector { vector, ax } => {
                write!(f, "calls a BIOS, which is not there: INT {vector:#04x}, AX {ax:#06x}")
            }
            Self::Reset => f.write_str("jumps to the BIOS' reset vector: its machine is reset"),
        }
    }
}

/// An entry into the ROM that is to be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FirmwareNews {
    /// The entry is the first of its kind.
    Entry(FirmwareEntry),
    /// The entry is the first of its kind, and no further kinds will be told.
    Last(FirmwareEntry),
}

/// The device: one port of four bytes.
#[derive(Clone, Debug, Default)]
pub struct FirmwarePort {
    told: ArrayVec<FirmwareEntry, MAX_TOLD>,
    news: Option<FirmwareNews>,
}

/// Kinds of entries that are told of a guest between two starts.
const MAX_TOLD: usize = 16;

impl FirmwarePort {
    /// Ports that the device covers.
    pub const PORT_COUNT: u16 = 4;

    /// A device of which the ROM made no use yet.
    #[must_use]
    pub const fn new() -> Self {
        Self { told: ArrayVec::new_const(), news: None }
    }

    /// Takes the latest entry that is to be told, if there is one since the last call.
    pub const fn take_news(&mut self) -> Option<FirmwareNews> {
        self.news.take()
    }
}

fn check(offset: u16, width: Width) -> Result<(), AccessError> {
    match (offset, width) {
        (0, Width::B4) => Ok(()),
        (0, _) => Err(AccessError::Width),
        _ => Err(AccessError::NoRegister),
    }
}

impl PortDevice for FirmwarePort {
    fn port_read(&mut self, offset: u16, width: Width, _now: Nanos) -> Result<u32, AccessError> {
        check(offset, width).map(|()| 0)
    }

    fn port_write(
        &mut self,
        offset: u16,
        width: Width,
        value: u32,
        _now: Nanos,
    ) -> Result<(), AccessError> {
        check(offset, width)?;
        if let Some(entry) = FirmwareEntry::from_value(value)
            && !self.told.contains(&entry)
            && self.told.try_push(entry).is_ok()
        {
            let last = self.told.is_full();
            self.news =
                Some(if last { FirmwareNews::Last(entry) } else { FirmwareNews::Entry(entry) });
        }
        Ok(())
    }
}

/// The saved state of a [`FirmwarePort`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FirmwarePortState {
    told: Vec<FirmwareEntry>,
    news: Option<FirmwareNews>,
}

impl Saved for FirmwarePortState {
    const NAME: &'static str = "firmware-port";
    const VERSION: u16 = 1;
}

impl Device for FirmwarePort {
    type State = FirmwarePortState;

    fn save(&self) -> FirmwarePortState {
        FirmwarePortState { told: self.told.to_vec(), news: self.news }
    }

    fn restore(&mut self, state: FirmwarePortState) -> Result<(), RestoreError> {
        self.told = state
            .told
            .as_slice()
            .try_into()
            .map_err(|_| RestoreError("firmware port: more entries than are told"))?;
        self.news = state.news;
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
    use alloc::vec;
    use x86defs::Low;

    fn write(device: &mut FirmwarePort, value: u32) -> Option<FirmwareNews> {
        device.port_write(0, Width::B4, value, Nanos(0)).unwrap();
        device.take_news()
    }

    #[test]
    fn each_kind_is_told_once_and_not_too_many() {
        let mut device = FirmwarePort::new();
        let call = |vector, ax| FirmwareEntry::Vector { vector, ax };
        assert_eq!(write(&mut device, 0x0015_e820), Some(FirmwareNews::Entry(call(0x15, 0xe820))));
        assert_eq!(write(&mut device, 0x0015_e820), None);
        assert_eq!(write(&mut device, 0x0015_e801), Some(FirmwareNews::Entry(call(0x15, 0xe801))));
        assert_eq!(write(&mut device, 0x0200_0000), None, "a kind that nothing has");
        for ax in 0..13 {
            assert_eq!(write(&mut device, ax), Some(FirmwareNews::Entry(call(0, ax.low16()))));
        }
        let reset = FirmwareEntry::RESET_VALUE;
        assert_eq!(write(&mut device, reset), Some(FirmwareNews::Last(FirmwareEntry::Reset)));
        assert_eq!(write(&mut device, 99), None, "one too many");
        assert_eq!(device.port_write(0, Width::B2, 0, Nanos(0)), Err(AccessError::Width));
        assert_eq!(device.port_write(1, Width::B4, 0, Nanos(0)), Err(AccessError::NoRegister));
        let told = vec![FirmwareEntry::Reset; MAX_TOLD + 1];
        assert!(device.restore(FirmwarePortState { told, news: None }).is_err());
    }

    #[test]
    fn words() {
        let call = FirmwareEntry::Vector { vector: 0x15, ax: 0xe820 };
        assert_eq!(
            alloc::format!("{call}"),
            "calls a BIOS, which is not there: INT 0x15, AX 0xe820"
        );
    }

    impl Subject for FirmwarePort {
        fn fresh() -> Self {
            Self::new()
        }

        fn act(&mut self, _what: u8, _value: u32, _now: Nanos) -> u64 {
            u64::from(self.take_news().is_some())
        }

        fn look(&self) -> u64 {
            self.told.len() as u64
        }
    }

    device_properties!(FirmwarePort, 4);
}
