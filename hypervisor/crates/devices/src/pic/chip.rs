//! One 8259A: request and service registers, priorities, command words.
//!
//! Data sheet: "8259A Programmable Interrupt Controller", chapters
//! "Programming the 8259A" and "Interrupt Sequence".

use serde::{Deserialize, Serialize};

/// Initialization command word 1.
mod icw1 {
    /// An ICW4 follows.
    pub(super) const IC4: u8 = 1 << 0;
    /// No other 8259A: no ICW3 follows.
    pub(super) const SINGLE: u8 = 1 << 1;
    /// MCS-80/85: call addresses are 4 bytes apart instead of 8.
    pub(super) const INTERVAL_4: u8 = 1 << 2;
    /// All inputs are level-triggered.
    pub(super) const LEVEL: u8 = 1 << 3;
    /// Tells ICW1 from OCW2 and OCW3.
    pub(super) const MARK: u8 = 1 << 4;
}

/// Initialization command word 4.
mod icw4 {
    /// 8086 mode: the second INTA reads a vector.
    pub(super) const MODE_8086: u8 = 1 << 0;
    /// Automatic end of interrupt.
    pub(super) const AUTO_EOI: u8 = 1 << 1;
    /// Special fully nested mode.
    pub(super) const FULLY_NESTED: u8 = 1 << 4;
}

/// Operation command word 3.
mod ocw3 {
    pub(super) const READ_ISR: u8 = 1 << 0;
    pub(super) const READ_REGISTER: u8 = 1 << 1;
    pub(super) const POLL: u8 = 1 << 2;
    /// Tells OCW3 from OCW2.
    pub(super) const MARK: u8 = 1 << 3;
    pub(super) const SPECIAL_MASK: u8 = 1 << 5;
    pub(super) const ENABLE_SPECIAL_MASK: u8 = 1 << 6;
}

/// Meaning of the next write to the odd port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Expects {
    Mask,
    Icw2,
    Icw3,
    Icw4,
}

/// Answer of the chip when the processor acknowledges.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Acknowledged {
    /// This input is now in service.
    Input(u8),
    /// The request had gone: input 7's number, and nothing in service.
    Spurious,
}

/// One 8259A. The inputs' numbers are 0 to 7.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Chip {
    /// The level of each input.
    lines: u8,
    /// Rising edges that were not acknowledged yet.
    edges: u8,
    /// Inputs that are level-triggered by the edge/level control register.
    level: u8,
    isr: u8,
    imr: u8,
    icw1: u8,
    icw2: u8,
    icw3: u8,
    icw4: u8,
    expects: Expects,
    /// The input of lowest priority; the one above it has the highest.
    lowest: u8,
    rotate_on_auto_eoi: bool,
    special_mask: bool,
    read_isr: bool,
    poll: bool,
}

impl Chip {
    pub(super) fn new() -> Self {
        Self {
            lines: 0,
            edges: 0,
            level: 0,
            isr: 0,
            imr: 0xff,
            icw1: 0,
            icw2: 0,
            icw3: 0,
            icw4: 0,
            expects: Expects::Mask,
            lowest: 7,
            rotate_on_auto_eoi: false,
            special_mask: false,
            read_isr: false,
            poll: false,
        }
    }

    /// Whether the parts of a state fit together.
    pub(super) fn is_possible(&self) -> bool {
        self.lowest < 8
    }

    /// Requests, inputs in service, and masks, for display.
    pub(super) fn registers(&self) -> [u8; 3] {
        [self.irr(), self.isr, self.imr]
    }

    fn level_triggered(&self) -> u8 {
        if self.icw1 & icw1::LEVEL != 0 { 0xff } else { self.level }
    }

    /// The interrupt request register.
    fn irr(&self) -> u8 {
        let level = self.level_triggered();
        self.edges & !level | self.lines & level
    }

    /// Drives an input. An edge is forgotten when its line falls before it was
    /// acknowledged, as in the chip.
    pub(super) fn set_line(&mut self, input: u8, high: bool) {
        let bit = 1 << (input & 7);
        if high {
            self.edges |= bit & !self.lines;
            self.lines |= bit;
        } else {
            self.edges &= !bit;
            self.lines &= !bit;
        }
    }

    /// The levels of the inputs.
    pub(super) fn lines(&self) -> u8 {
        self.lines
    }

    /// The inputs' levels from the start: no edge is seen.
    pub(super) fn set_lines(&mut self, lines: u8) {
        self.lines = lines;
    }

    /// A short pulse on an input: an edge that stays until acknowledged.
    pub(super) fn pulse(&mut self, input: u8) {
        let bit = 1 << (input & 7);
        self.edges |= bit & !self.lines & !self.level_triggered();
    }

    pub(super) fn elcr(&self) -> u8 {
        self.level
    }

    pub(super) fn set_elcr(&mut self, level: u8) {
        self.level = level;
    }

    #[cfg(test)]
    pub(super) fn special_mask(&self) -> bool {
        self.special_mask
    }

    /// `bits` turned so that the input of highest priority is bit 0.
    fn by_priority(&self, bits: u8) -> u8 {
        bits.rotate_right(u32::from(self.lowest) + 1)
    }

    /// The most urgent input among `bits`.
    fn most_urgent(&self, bits: u8) -> Option<u8> {
        let ranked = self.by_priority(bits);
        if ranked == 0 {
            return None;
        }
        let rank = ranked.trailing_zeros();
        (0..8).find(|input| self.by_priority(1 << input).trailing_zeros() == rank)
    }

    /// The request that the chip would have the processor serve now.
    fn request(&self) -> Option<u8> {
        let input = self.most_urgent(self.irr() & !self.imr)?;
        // In special mask mode a masked input in service holds nothing back.
        let in_service = if self.special_mask { self.isr & !self.imr } else { self.isr };
        let rank = self.by_priority(1 << input).trailing_zeros();
        let limit = self.by_priority(in_service).trailing_zeros();
        // In special fully nested mode a slave in service may ask again.
        let nests = self.icw4 & icw4::FULLY_NESTED != 0 && self.has_slave(input);
        (rank < limit || nests && rank == limit).then_some(input)
    }

    /// The INT pin. It is quiet during initialization.
    pub(super) fn output(&self) -> bool {
        self.expects == Expects::Mask && self.request().is_some()
    }

    /// Whether a slave hangs on `input`, as the guest has told the chip.
    pub(super) fn has_slave(&self, input: u8) -> bool {
        self.icw1 & icw1::SINGLE == 0 && self.icw3 & 1 << (input & 7) != 0
    }

    /// Whether the chip, as a slave, answers to this number on the cascade lines.
    pub(super) fn answers_to(&self, number: u8) -> bool {
        self.icw1 & icw1::SINGLE == 0 && self.icw3 & 7 == number
    }

    /// INTA: the request goes into service.
    pub(super) fn acknowledge(&mut self) -> Acknowledged {
        let Some(input) = self.request() else { return Acknowledged::Spurious };
        let bit = 1 << input;
        self.edges &= !bit;
        if self.icw4 & icw4::AUTO_EOI == 0 {
            self.isr |= bit;
        } else if self.rotate_on_auto_eoi {
            self.lowest = input;
        }
        Acknowledged::Input(input)
    }

    /// The byte that the chip puts on the bus for `input` in the second INTA cycle: a
    /// vector, or in MCS-80/85 mode the low byte of a call address.
    pub(super) fn vector(&self, input: u8) -> u8 {
        if self.icw4 & icw4::MODE_8086 != 0 {
            self.icw2 & 0xf8 | input
        } else if self.icw1 & icw1::INTERVAL_4 != 0 {
            self.icw1 & 0xe0 | input << 2
        } else {
            self.icw1 & 0xc0 | input << 3
        }
    }

    fn initialize(&mut self, value: u8) {
        self.icw1 = value;
        self.expects = Expects::Icw2;
        // The edge sense circuit is reset: an input that is high must fall first.
        self.edges = 0;
        self.imr = 0;
        self.isr = 0;
        self.lowest = 7;
        self.special_mask = false;
        self.read_isr = false;
        self.poll = false;
        self.rotate_on_auto_eoi = false;
        if value & icw1::IC4 == 0 {
            self.icw4 = 0;
        }
    }

    /// The operation command word 2: ends of interrupt and rotation.
    fn end_of_interrupt(&mut self, value: u8) {
        let named = value & 7;
        // A non-specific one means the most urgent in service; in special mask
        // mode the masked ones are left alone.
        let visible = if self.special_mask { self.isr & !self.imr } else { self.isr };
        let current = self.most_urgent(visible);
        match value >> 5 {
            0b000 => self.rotate_on_auto_eoi = false,
            0b100 => self.rotate_on_auto_eoi = true,
            command @ (0b001 | 0b101) => {
                if let Some(input) = current {
                    self.isr &= !(1 << input);
                    if command == 0b101 {
                        self.lowest = input;
                    }
                }
            }
            0b011 => self.isr &= !(1 << named),
            0b111 => {
                self.isr &= !(1 << named);
                self.lowest = named;
            }
            0b110 => self.lowest = named,
            // 0b010: no operation.
            _ => {}
        }
    }

    pub(super) fn write_command(&mut self, value: u8) {
        if value & icw1::MARK != 0 {
            self.initialize(value);
        } else if value & ocw3::MARK != 0 {
            if value & ocw3::ENABLE_SPECIAL_MASK != 0 {
                self.special_mask = value & ocw3::SPECIAL_MASK != 0;
            }
            self.poll = value & ocw3::POLL != 0;
            if value & ocw3::READ_REGISTER != 0 {
                self.read_isr = value & ocw3::READ_ISR != 0;
            }
        } else {
            self.end_of_interrupt(value);
        }
    }

    pub(super) fn write_data(&mut self, value: u8) {
        let last = if self.icw1 & icw1::IC4 != 0 { Expects::Icw4 } else { Expects::Mask };
        self.expects = match self.expects {
            Expects::Mask => {
                self.imr = value;
                Expects::Mask
            }
            Expects::Icw2 => {
                self.icw2 = value;
                if self.icw1 & icw1::SINGLE != 0 { last } else { Expects::Icw3 }
            }
            Expects::Icw3 => {
                self.icw3 = value;
                last
            }
            Expects::Icw4 => {
                self.icw4 = value;
                Expects::Mask
            }
        };
    }

    /// A read: of the mask where `odd`, else of the register that the guest
    /// chose. After a poll command, either acknowledges instead.
    pub(super) fn read(&mut self, odd: bool) -> Read {
        if core::mem::take(&mut self.poll) {
            return Read::Poll(match self.acknowledge() {
                Acknowledged::Input(input) => 0x80 | input,
                Acknowledged::Spurious => 7,
            });
        }
        Read::Register(self.register(odd))
    }

    #[inline]
    fn register(&self, odd: bool) -> u8 {
        match (odd, self.read_isr) {
            (true, _) => self.imr,
            (false, true) => self.isr,
            (false, false) => self.irr(),
        }
    }

    /// The value that [`Chip::read`] would give, if that changes nothing.
    #[inline]
    pub(super) fn peek(&self, odd: bool) -> Option<u8> {
        (!self.poll).then(|| self.register(odd))
    }
}

/// Result of a read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Read {
    /// A register; nothing changed.
    Register(u8),
    /// The poll word: an interrupt may have been acknowledged.
    Poll(u8),
}
