//! Interrupt lines: from a device's pin to the 8259 pair and the I/O APIC.

use alloc::vec::Vec;
use config::layout::IOAPIC_PIT_PIN;
use devices::ioapic::IoApic;
use devices::lapic::InterruptMessage;
use devices::pic::PicPair;
use x86defs::Vector;

/// State of a guest's interrupt controllers, for display.
#[derive(Clone, Debug)]
pub struct Lines {
    /// Pins of the I/O APIC that are asserted, or for which an interrupt could come.
    pub pins: Vec<Pin>,
    /// The 8259s' registers, the first's and the second's: requested, in service, masked.
    pub pics: [[u8; 3]; 2],
}

/// A pin of the I/O APIC.
#[derive(Clone, Copy, Debug)]
pub struct Pin {
    /// Number of the pin.
    pub number: u8,
    /// Vector of the entry.
    pub vector: u8,
    /// The entry is masked.
    pub masked: bool,
    /// Level-triggered.
    pub level: bool,
    /// The device asks for an interrupt.
    pub asserted: bool,
    /// An interrupt was accepted and has not ended (level-triggered pins).
    pub remote_irr: bool,
    /// The APIC ID, or the set, that it is sent to.
    pub destination: u32,
}

/// Both interrupt controllers; every line is wired to each.
#[derive(Debug)]
pub(crate) struct IrqChip {
    pic: PicPair,
    ioapic: IoApic,
}

/// The I/O APIC's input that the 8259 pair is wired to.
const PIC_PIN: u8 = 0;

/// The I/O APIC's pin for ISA interrupt `line`.
const fn pin(line: u8) -> u8 {
    if line == 0 { IOAPIC_PIT_PIN } else { line }
}

impl IrqChip {
    pub(crate) const fn new(pic: PicPair, ioapic: IoApic) -> Self {
        Self { pic, ioapic }
    }

    /// Sets ISA interrupt `line` to `level`.
    pub(crate) fn set(
        &mut self,
        line: u8,
        level: bool,
        deliver: &mut impl FnMut(InterruptMessage),
    ) {
        self.pic.set_irq(line, level);
        self.forward_pic(deliver);
        if let Some(message) = self.ioapic.set_line(pin(line), level) {
            deliver(message);
        }
    }

    /// One edge on ISA interrupt `line`.
    pub(crate) fn pulse(&mut self, line: u8, deliver: &mut impl FnMut(InterruptMessage)) {
        self.pic.pulse_irq(line);
        self.forward_pic(deliver);
        if let Some(message) = self.ioapic.pulse(pin(line)) {
            deliver(message);
        }
    }

    /// The pair's output is also input 0 of the I/O APIC, for guests that let
    /// it through there (mode ExtINT).
    pub(crate) fn forward_pic(&mut self, deliver: &mut impl FnMut(InterruptMessage)) {
        if let Some(message) = self.ioapic.set_line(PIC_PIN, self.pic.output()) {
            deliver(message);
        }
    }

    pub(crate) fn pic(&mut self) -> &mut PicPair {
        &mut self.pic
    }

    pub(crate) fn ioapic(&mut self) -> &mut IoApic {
        &mut self.ioapic
    }

    /// The controllers' registers, for display.
    pub(crate) fn look(&self) -> Lines {
        let pin = |number: u8| {
            let entry = self.ioapic.entry(number)?;
            let asserted = self.ioapic.is_asserted(number);
            (asserted || !entry.masked()).then(|| Pin {
                number,
                vector: entry.vector(),
                masked: entry.masked(),
                level: entry.level(),
                asserted,
                remote_irr: entry.remote_irr(),
                destination: entry.destination().into(),
            })
        };
        let pins = (0..devices::ioapic::PINS).filter_map(pin).collect();
        Lines { pins, pics: self.pic.registers() }
    }

    pub(crate) fn pic_output(&self) -> bool {
        self.pic.output()
    }

    pub(crate) fn pic_acknowledge(&mut self, deliver: &mut impl FnMut(InterruptMessage)) -> Vector {
        let vector = self.pic.acknowledge();
        self.forward_pic(deliver);
        vector
    }

    pub(crate) fn end_of_interrupt(
        &mut self,
        vector: Vector,
        deliver: &mut impl FnMut(InterruptMessage),
    ) {
        if self.ioapic.eoi(vector) {
            self.flush(deliver);
        }
    }

    /// Sends what register writes or EOIs released. Each pin sends at most
    /// once: a line stuck high can't hold us here.
    pub(crate) fn flush(&mut self, deliver: &mut impl FnMut(InterruptMessage)) {
        for _ in 0..devices::ioapic::PINS {
            let Some(message) = self.ioapic.next_message() else { break };
            deliver(message);
        }
    }
}
