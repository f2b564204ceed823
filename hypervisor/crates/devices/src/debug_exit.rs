//! A port that ends the guest: test kernels write their result to it.
//!
//! It exists only if a guest's settings ask for it. The value's meaning for the
//! exit status is the owner's affair. QEMU: "isa-debug-exit".

use serde::{Deserialize, Serialize};
use state::Saved;
use x86defs::Width;

use crate::{AccessError, Device, PortDevice, RestoreError};
use x86defs::time::Nanos;

/// The device: four ports, of which the first is written with 1, 2 or 4 bytes.
#[derive(Clone, Debug, Default)]
pub struct DebugExit {
    exit: Option<u32>,
}

impl DebugExit {
    /// Ports that the device covers.
    pub const PORT_COUNT: u16 = 4;

    /// A device that nobody has written to.
    #[must_use]
    pub const fn new() -> Self {
        Self { exit: None }
    }

    /// The value that the guest wrote, once. Of several the first counts.
    pub fn take_exit(&mut self) -> Option<u32> {
        self.exit.take()
    }
}

fn check(offset: u16, width: Width) -> Result<(), AccessError> {
    match (offset, width) {
        (0, Width::B8) => Err(AccessError::Width),
        (0, _) => Ok(()),
        _ => Err(AccessError::NoRegister),
    }
}

impl PortDevice for DebugExit {
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
        self.exit.get_or_insert(value);
        Ok(())
    }
}

/// The saved state of a [`DebugExit`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DebugExitState {
    exit: Option<u32>,
}

impl Saved for DebugExitState {
    const NAME: &'static str = "debug-exit";
    const VERSION: u16 = 1;
}

impl Device for DebugExit {
    type State = DebugExitState;

    fn save(&self) -> DebugExitState {
        DebugExitState { exit: self.exit }
    }

    fn restore(&mut self, state: DebugExitState) -> Result<(), RestoreError> {
        self.exit = state.exit;
        Ok(())
    }

    fn reset(&mut self) {
        self.exit = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Subject, device_properties};

    #[test]
    fn the_first_value_counts() {
        for (width, value) in [(Width::B1, 0x10), (Width::B2, 0x1234), (Width::B4, 0xdead_beef)] {
            let mut device = DebugExit::new();
            assert_eq!(device.take_exit(), None);
            device.port_write(0, width, value, Nanos(0)).unwrap();
            device.port_write(0, Width::B1, 0, Nanos(0)).unwrap();
            assert_eq!(device.take_exit(), Some(value));
            assert_eq!(device.take_exit(), None);
            assert_eq!(device.port_read(0, width, Nanos(0)), Ok(0));
        }
        let mut device = DebugExit::new();
        assert_eq!(device.port_write(0, Width::B8, 0, Nanos(0)), Err(AccessError::Width));
        assert_eq!(device.port_write(1, Width::B1, 0, Nanos(0)), Err(AccessError::NoRegister));
        assert_eq!(device.take_exit(), None);
    }

    impl Subject for DebugExit {
        fn fresh() -> Self {
            Self::new()
        }

        fn act(&mut self, _what: u8, _value: u32, _now: Nanos) -> u64 {
            self.take_exit().map_or(u64::MAX, u64::from)
        }

        fn look(&self) -> u64 {
            0
        }
    }

    device_properties!(DebugExit, 4);
}
