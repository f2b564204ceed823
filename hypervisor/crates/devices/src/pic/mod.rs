//! The PC's two cascaded 8259A interrupt controllers.
//!
//! [`PicPair`] takes the sixteen ISA interrupt lines and drives the
//! processor's INTR line: after each change its owner looks at
//! [`PicPair::output`] and, when the processor takes the interrupt, asks
//! [`PicPair::acknowledge`] for the vector. The slave hangs on the master's
//! input 2. The registers' offsets: 0 and 1 the master (ports 0x20, 0x21),
//! 2 and 3 the slave (0xa0, 0xa1), 4 and 5 the edge/level control registers
//! (0x4d0, 0x4d1), as in [`PicPair::PORTS`].
//!
//! Data sheets: "8259A Programmable Interrupt Controller"; for the
//! edge/level registers "82371AB (PIIX4)", "Interrupt Controller Registers".

use serde::{Deserialize, Serialize};
use state::Saved;
use x86defs::{Low, Width};

use crate::ports::PortRange;
use crate::{AccessError, Device, PortDevice, RestoreError};
use x86defs::time::Nanos;

mod chip;
#[cfg(test)]
mod tests;

use chip::{Acknowledged, Chip, Read};

/// The master's input that the slave drives.
const CASCADE: u8 = 2;
/// Master inputs that can be level-triggered: not 0 (timer), 1 (keyboard), 2.
const MASTER_LEVEL_MASK: u8 = 0xf8;
/// Slave inputs that can be: not 8 (clock) and 13 (coprocessor).
const SLAVE_LEVEL_MASK: u8 = 0xde;
/// Byte that the processor reads when no chip answers an acknowledgement.
const FLOATING_BUS: u8 = 0xff;

/// The two interrupt controllers. See the module's description.
#[derive(Clone, Debug)]
pub struct PicPair {
    master: Chip,
    slave: Chip,
}

impl Default for PicPair {
    fn default() -> Self {
        Self::new()
    }
}

impl PicPair {
    /// Ports of the registers in a PC.
    pub const PORTS: [PortRange; 3] =
        [PortRange::new(0x20, 2, 0), PortRange::new(0xa0, 2, 2), PortRange::new(0x4d0, 2, 4)];

    /// Both controllers, not initialized: all inputs are masked.
    #[must_use]
    pub fn new() -> Self {
        Self { master: Chip::new(), slave: Chip::new() }
    }

    /// Drives interrupt line `line`, 0 to 15. Line 2 is the cascade's and
    /// there is none above 15: for those nothing happens.
    pub fn set_irq(&mut self, line: u8, level: bool) {
        match line {
            CASCADE | 16.. => return,
            0..8 => self.master.set_line(line, level),
            8.. => self.slave.set_line(line - 8, level),
        }
        self.cascade();
    }

    /// A short pulse on line `line`, as a timer gives: where the line is
    /// edge-triggered the request stays until it is acknowledged. Two pulses
    /// before that make one interrupt.
    pub fn pulse_irq(&mut self, line: u8) {
        match line {
            CASCADE | 16.. => return,
            0..8 => self.master.pulse(line),
            8.. => self.slave.pulse(line - 8),
        }
        self.cascade();
    }

    /// The INTR line: the processor is asked to take an interrupt.
    #[inline]
    #[must_use]
    pub fn output(&self) -> bool {
        self.master.output()
    }

    /// Acknowledges for the processor, and returns the vector that it gets. If the
    /// request has gone in the meantime, that is the spurious one of line 7 or 15.
    pub fn acknowledge(&mut self) -> u8 {
        let input = match self.master.acknowledge() {
            Acknowledged::Input(input) => input,
            Acknowledged::Spurious => return self.master.vector(7),
        };
        if !self.master.has_slave(input) {
            return self.master.vector(input);
        }
        if !self.slave.answers_to(input) {
            return FLOATING_BUS;
        }
        let slave_input = match self.slave.acknowledge() {
            Acknowledged::Input(input) => input,
            Acknowledged::Spurious => 7,
        };
        self.drop_cascade();
        self.slave.vector(slave_input)
    }

    /// Requests, inputs in service and masks of the first and the second chip, for
    /// display.
    #[must_use]
    pub fn registers(&self) -> [[u8; 3]; 2] {
        [self.master.registers(), self.slave.registers()]
    }

    /// A read of one byte at `offset` that changes nothing: not one that a poll
    /// command has made an acknowledgement.
    #[inline(always)]
    #[must_use]
    pub fn hot_read(&self, offset: u16) -> Option<u8> {
        match offset {
            0 | 1 => self.master.peek(offset == 1),
            2 | 3 => self.slave.peek(offset == 3),
            _ => None,
        }
    }

    /// Carries the slave's INT pin to the master.
    fn cascade(&mut self) {
        self.master.set_line(CASCADE, self.slave.output());
    }

    /// The slave's INT pin goes low after it was acknowledged, and comes up
    /// again where more is requested: a new edge for the master.
    fn drop_cascade(&mut self) {
        self.master.set_line(CASCADE, false);
        self.cascade();
    }
}

impl PortDevice for PicPair {
    fn port_read(&mut self, offset: u16, width: Width, _now: Nanos) -> Result<u32, AccessError> {
        if width != Width::B1 {
            return Err(AccessError::Width);
        }
        let read = match offset {
            0 | 1 => self.master.read(offset == 1),
            2 | 3 => {
                let read = self.slave.read(offset == 3);
                if let Read::Poll(_) = read {
                    self.drop_cascade();
                }
                read
            }
            4 => Read::Register(self.master.elcr()),
            5 => Read::Register(self.slave.elcr()),
            _ => return Err(AccessError::NoRegister),
        };
        let (Read::Register(value) | Read::Poll(value)) = read;
        Ok(value.into())
    }

    fn port_write(
        &mut self,
        offset: u16,
        width: Width,
        value: u32,
        _now: Nanos,
    ) -> Result<(), AccessError> {
        if width != Width::B1 {
            return Err(AccessError::Width);
        }
        let value = value.low8();
        match offset {
            0 => self.master.write_command(value),
            1 => self.master.write_data(value),
            2 => self.slave.write_command(value),
            3 => self.slave.write_data(value),
            4 => self.master.set_elcr(value & MASTER_LEVEL_MASK),
            5 => self.slave.set_elcr(value & SLAVE_LEVEL_MASK),
            _ => return Err(AccessError::NoRegister),
        }
        self.cascade();
        Ok(())
    }
}

/// The saved state of a [`PicPair`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PicState {
    master: Chip,
    slave: Chip,
}

impl Saved for PicState {
    const NAME: &'static str = "pic";
    const VERSION: u16 = 1;
}

impl Device for PicPair {
    type State = PicState;

    fn save(&self) -> PicState {
        PicState { master: self.master.clone(), slave: self.slave.clone() }
    }

    fn restore(&mut self, state: PicState) -> Result<(), RestoreError> {
        let PicState { master, slave } = state;
        if !master.is_possible() || !slave.is_possible() {
            return Err(RestoreError("PIC: impossible priority"));
        }
        if master.elcr() & !MASTER_LEVEL_MASK != 0 || slave.elcr() & !SLAVE_LEVEL_MASK != 0 {
            return Err(RestoreError("PIC: a line is level-triggered that can't be"));
        }
        *self = Self { master, slave };
        Ok(())
    }

    /// Back to power-on, but for the levels of the lines: their devices drive
    /// those, and are reset on their own.
    fn reset(&mut self) {
        let lines = [self.master.lines(), self.slave.lines()];
        *self = Self::new();
        let [master, slave] = lines;
        self.master.set_lines(master & !(1 << CASCADE));
        self.slave.set_lines(slave);
    }
}
