//! Two ways to pull the machine's reset line: the reset control register at
//! 0xcf9 and system control port A at 0x92, which has the fast A20 gate too.
//!
//! Offset 0 is port 0xcf9, offset 1 port 0x92. The PCI configuration address
//! register at 0xcf8 covers 0xcf9, but only with accesses of four bytes; the
//! bus sends single bytes at 0xcf9 here.
//!
//! Data sheet: "82371AB (PIIX4)", "RC—Reset Control Register" and "Port 92".

use serde::{Deserialize, Serialize};
use state::Saved;
use x86defs::{Low, Width};

use crate::ports::PortRange;
use crate::{AccessError, Device, PortDevice, RestoreError};
use x86defs::time::Nanos;

/// Reset control: bit 1 chooses a hard reset, a rising bit 2 does it, bit 3
/// asks for a full power cycle.
mod rc {
    pub(super) const SYSTEM_RESET: u8 = 1 << 1;
    pub(super) const RESET_CPU: u8 = 1 << 2;
    pub(super) const FULL_RESET: u8 = 1 << 3;
    pub(super) const KEPT: u8 = SYSTEM_RESET | RESET_CPU | FULL_RESET;
}

/// Port 0x92.
mod port92 {
    pub(super) const FAST_INIT: u8 = 1 << 0;
    pub(super) const A20: u8 = 1 << 1;
    pub(super) const KEPT: u8 = FAST_INIT | A20;
}

/// How the guest wants to be reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ResetKind {
    /// The processor's INIT: the devices keep their state.
    Soft,
    /// The whole machine.
    Hard,
    /// The whole machine, as after power-on.
    PowerCycle,
}

/// Both registers. See the module's description.
#[derive(Clone, Debug)]
pub struct ResetControl {
    control: u8,
    port92: u8,
    request: Option<ResetKind>,
}

impl Default for ResetControl {
    fn default() -> Self {
        Self::new()
    }
}

impl ResetControl {
    /// Ports of the registers in a PC.
    pub const PORTS: [PortRange; 2] = [PortRange::new(0xcf9, 1, 0), PortRange::new(0x92, 1, 1)];

    /// Registers as firmware leaves them: address line 20 is on.
    #[must_use]
    pub const fn new() -> Self {
        Self { control: 0, port92: port92::A20, request: None }
    }

    /// The reset that the guest asked for since this was called last. Of
    /// several the first counts.
    pub fn take_reset(&mut self) -> Option<ResetKind> {
        self.request.take()
    }
}

fn check(offset: u16, width: Width) -> Result<(), AccessError> {
    match (offset, width) {
        (0 | 1, Width::B1) => Ok(()),
        (0 | 1, _) => Err(AccessError::Width),
        _ => Err(AccessError::NoRegister),
    }
}

impl PortDevice for ResetControl {
    fn port_read(&mut self, offset: u16, width: Width, _now: Nanos) -> Result<u32, AccessError> {
        check(offset, width)?;
        Ok(if offset == 0 { self.control } else { self.port92 }.into())
    }

    fn port_write(
        &mut self,
        offset: u16,
        width: Width,
        value: u32,
        _now: Nanos,
    ) -> Result<(), AccessError> {
        check(offset, width)?;
        let value = value.low8();
        let request = if offset == 0 {
            let rises = value & !self.control & rc::RESET_CPU != 0;
            self.control = value & rc::KEPT;
            match (value & rc::SYSTEM_RESET != 0, value & rc::FULL_RESET != 0) {
                _ if !rises => None,
                (false, _) => Some(ResetKind::Soft),
                (true, false) => Some(ResetKind::Hard),
                (true, true) => Some(ResetKind::PowerCycle),
            }
        } else {
            let rises = value & !self.port92 & port92::FAST_INIT != 0;
            self.port92 = value & port92::KEPT;
            rises.then_some(ResetKind::Soft)
        };
        self.request = self.request.or(request);
        Ok(())
    }
}

/// The saved state of a [`ResetControl`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResetControlState {
    control: u8,
    port92: u8,
    request: Option<ResetKind>,
}

impl Saved for ResetControlState {
    const NAME: &'static str = "reset-control";
    const VERSION: u16 = 1;
}

impl Device for ResetControl {
    type State = ResetControlState;

    fn save(&self) -> ResetControlState {
        ResetControlState { control: self.control, port92: self.port92, request: self.request }
    }

    fn restore(&mut self, state: ResetControlState) -> Result<(), RestoreError> {
        let ResetControlState { control, port92, request } = state;
        if control & !rc::KEPT != 0 || port92 & !port92::KEPT != 0 {
            return Err(RestoreError("reset control: unknown bits"));
        }
        *self = Self { control, port92, request };
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

    fn write(device: &mut ResetControl, offset: u16, value: u32) -> Option<ResetKind> {
        device.port_write(offset, Width::B1, value, Nanos(0)).unwrap();
        device.take_reset()
    }

    #[test]
    fn reset_control_register() {
        let mut device = ResetControl::new();
        assert_eq!(write(&mut device, 0, 0x02), None, "the kind first");
        assert_eq!(device.port_read(0, Width::B1, Nanos(0)), Ok(0x02));
        assert_eq!(write(&mut device, 0, 0x06), Some(ResetKind::Hard));
        assert_eq!(write(&mut device, 0, 0x06), None, "the bit has to rise");
        assert_eq!(write(&mut device, 0, 0x00), None);
        assert_eq!(write(&mut device, 0, 0x04), Some(ResetKind::Soft));
        assert_eq!(write(&mut device, 0, 0xfa), None);
        assert_eq!(device.port_read(0, Width::B1, Nanos(0)), Ok(0x0a));
        assert_eq!(write(&mut device, 0, 0x0e), Some(ResetKind::PowerCycle));
    }

    #[test]
    fn port_92() {
        let mut device = ResetControl::new();
        assert_eq!(device.port_read(1, Width::B1, Nanos(0)), Ok(0x02), "address line 20 is on");
        assert_eq!(write(&mut device, 1, 0x00), None);
        assert_eq!(device.port_read(1, Width::B1, Nanos(0)), Ok(0x00));
        assert_eq!(write(&mut device, 1, 0xff), Some(ResetKind::Soft));
        assert_eq!(device.port_read(1, Width::B1, Nanos(0)), Ok(0x03));
        assert_eq!(write(&mut device, 1, 0x03), None);
    }

    #[test]
    fn first_request_counts() {
        let mut device = ResetControl::new();
        device.port_write(0, Width::B1, 6, Nanos(0)).unwrap();
        device.port_write(1, Width::B1, 1, Nanos(0)).unwrap();
        assert_eq!(device.take_reset(), Some(ResetKind::Hard));
        assert_eq!(device.take_reset(), None);
    }

    #[test]
    fn bounds() {
        let mut device = ResetControl::new();
        assert_eq!(device.port_write(0, Width::B2, 6, Nanos(0)), Err(AccessError::Width));
        assert_eq!(device.port_read(2, Width::B1, Nanos(0)), Err(AccessError::NoRegister));
        let state = ResetControlState { control: 1, ..device.save() };
        assert!(device.restore(state).is_err());
    }

    impl Subject for ResetControl {
        fn fresh() -> Self {
            Self::new()
        }

        fn act(&mut self, _what: u8, _value: u32, _now: Nanos) -> u64 {
            self.take_reset().map_or(9, |kind| kind as u64)
        }

        fn look(&self) -> u64 {
            self.port92.into()
        }
    }

    device_properties!(ResetControl, 2);
}
