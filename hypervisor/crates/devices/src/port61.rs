//! System control port B (0x61): the speaker, the gate of the PIT's channel 2,
//! and the NMI sources of the ISA board.
//!
//! The [PIT](crate::pit) owns the port and serves it. Data sheet: "82371AB (PIIX4)",
//! "NMISC—NMI Status and Control Register".

use serde::{Deserialize, Serialize};

/// The port's number on a PC.
pub(crate) const PORT: u16 = 0x61;

/// Bit 0: gate of timer channel 2.
const GATE: u8 = 1 << 0;
/// Bits 3:0 are read and written. Bit 1 lets the channel's output reach the speaker, bits 2
/// and 3 switch off NMIs for errors on the PCI and the ISA bus; as this machine has neither
/// speaker nor errors, they only read back.
const WRITABLE: u8 = 0x0f;
/// Bit 4: toggles with each refresh cycle of the memory.
const REFRESH: u8 = 1 << 4;
/// Bit 5: output of timer channel 2.
const TIMER: u8 = 1 << 5;
/// PIT clocks from one refresh cycle to the next: 15.085 µs.
const REFRESH_CLOCKS: u64 = 18;

/// The register's bits that are kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Port61(u8);

impl Port61 {
    /// The level of channel 2's gate.
    pub(crate) const fn gate(self) -> bool {
        self.0 & GATE != 0
    }

    pub(crate) fn write(&mut self, value: u8) {
        self.0 = value & WRITABLE;
    }

    /// Bits 7:6 report errors of the buses: never any.
    pub(crate) fn read(self, timer_output: bool, pit_clocks: u64) -> u8 {
        let refresh = if pit_clocks / REFRESH_CLOCKS % 2 == 1 { REFRESH } else { 0 };
        let timer = if timer_output { TIMER } else { 0 };
        self.0 | refresh | timer
    }

    pub(crate) fn is_possible(self) -> bool {
        self.0 & !WRITABLE == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits() {
        let mut port = Port61::default();
        port.write(0xfd);
        assert!(port.gate());
        assert_eq!(port.read(false, 0), 0x0d);
        assert_eq!(port.read(true, 18), 0x3d);
        assert_eq!(port.read(true, 35), 0x3d);
        assert_eq!(port.read(false, 36), 0x0d);
    }
}
