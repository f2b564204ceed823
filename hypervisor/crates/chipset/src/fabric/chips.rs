//! Interrupt lines: from a device's pin to the 8259 pair and the I/O APIC, and from these into the
//! mailboxes.

use super::{Fabric, Requests};
use alloc::vec::Vec;
use config::layout::{IOAPIC_ID, IOAPIC_PIT_PIN, PCI_FIRST_PIN, PCI_PINS, pci_ioapic_pin};
use core::sync::atomic::Ordering;
use devices::ioapic::IoApic;
use devices::lapic::InterruptMessage;
use devices::pic::PicPair;
use devices::{AccessError, PortDevice};
use locks::MutexGuard;
use x86defs::time::Nanos;
use x86defs::{Vector, Width};

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

/// The I/O APIC's input that the 8259 pair is wired to.
const PIC_PIN: u8 = 0;

/// The I/O APIC's inputs of PCI, a bit each: they are wired active low.
const PCI_LINES: u32 = ((1 << PCI_PINS) - 1) << PCI_FIRST_PIN;

/// The I/O APIC's pin for ISA interrupt `line`.
const fn pin(line: u8) -> u8 {
    if line == 0 { IOAPIC_PIT_PIN } else { line }
}

/// Both interrupt controllers. Each ISA line is wired to both, PCI's to the I/O APIC.
#[derive(Debug)]
pub(super) struct Chips {
    pub(super) pic: PicPair,
    pub(super) ioapic: IoApic,
    /// For each pin of PCI's: the slots whose devices assert it.
    pub(super) asserting: [u32; PCI_PINS as usize],
}

impl Chips {
    pub(super) fn new() -> Self {
        Self {
            pic: PicPair::new(),
            ioapic: IoApic::new(IOAPIC_ID, PCI_LINES),
            asserting: [0; PCI_PINS as usize],
        }
    }
}

/// The controllers, locked, with the way to the vCPUs.
struct Wired<'a> {
    chips: MutexGuard<'a, Chips>,
    fabric: &'a Fabric,
}

impl Wired<'_> {
    fn deliver(&self, message: Option<InterruptMessage>) {
        if let Some(message) = message {
            self.fabric.deliver(&message);
        }
    }

    /// The pair's output goes to the first vCPU. It is also input 0 of the I/O APIC, for guests
    /// that let it through there (mode ExtINT).
    fn forward_pic(&mut self) {
        if self.publish_pic() {
            self.fabric.request(0, Requests::KICK);
        }
    }

    /// Shows the pair's output; whether it has changed.
    fn publish_pic(&mut self) -> bool {
        let output = self.chips.pic.output();
        let changed = self.fabric.pic.load(Ordering::Relaxed) != output;
        if changed {
            self.fabric.pic.store(output, Ordering::SeqCst);
        }
        let message = self.chips.ioapic.set_line(PIC_PIN, output);
        self.deliver(message);
        changed
    }

    /// Sends what register writes or EOIs released. Each pin sends at most
    /// once: a line stuck high can't hold us here.
    fn flush(&mut self) {
        for _ in 0..devices::ioapic::PINS {
            let message = self.chips.ioapic.next_message();
            if message.is_none() {
                break;
            }
            self.deliver(message);
        }
    }
}

impl Fabric {
    fn wired(&self) -> Wired<'_> {
        Wired { chips: self.chips.lock(), fabric: self }
    }

    /// Sets ISA interrupt `line` to `level`.
    pub fn set_line(&self, line: u8, level: bool) {
        let mut wired = self.wired();
        wired.chips.pic.set_irq(line, level);
        wired.forward_pic();
        let message = wired.chips.ioapic.set_line(pin(line), level);
        wired.deliver(message);
    }

    /// One edge on ISA interrupt `line`.
    pub fn pulse(&self, line: u8) {
        let mut wired = self.wired();
        wired.chips.pic.pulse_irq(line);
        wired.forward_pic();
        let message = wired.chips.ioapic.pulse(pin(line));
        wired.deliver(message);
    }

    /// Sets INTA# (`pin` 0) to INTD# (3) of the PCI device in `slot`, 0 to 31: whether it asks for
    /// an interrupt. Devices share the I/O APIC's inputs.
    pub fn set_intx(&self, slot: u8, pin: u8, asserted: bool) {
        let input = pci_ioapic_pin(slot, pin);
        let mut wired = self.wired();
        let Some(slots) = wired.chips.asserting.get_mut(usize::from(input - PCI_FIRST_PIN)) else {
            return;
        };
        let slot = 1 << (slot & 31);
        if asserted {
            *slots |= slot;
        } else {
            *slots &= !slot;
        }
        let level = *slots != 0;
        let message = wired.chips.ioapic.set_line(input, level);
        wired.deliver(message);
    }

    /// Whether the 8259 pair asks for an interrupt. The first vCPU takes it.
    #[inline]
    #[must_use]
    pub fn pic_output(&self) -> bool {
        self.pic.load(Ordering::SeqCst)
    }

    /// The vector of the interrupt that the 8259 pair asks for. The first vCPU takes it, which looks
    /// at the output itself: it is not told.
    pub fn pic_acknowledge(&self) -> Vector {
        let mut wired = self.wired();
        let vector = wired.chips.pic.acknowledge();
        wired.publish_pic();
        vector
    }

    /// A local APIC ended level-triggered `vector`.
    pub fn end_of_interrupt(&self, vector: Vector) {
        let mut wired = self.wired();
        if wired.chips.ioapic.eoi(vector) {
            wired.flush();
        }
    }

    /// The controllers' registers, for display.
    #[must_use]
    pub fn lines(&self) -> Lines {
        let chips = self.chips.lock();
        let pin = |number: u8| {
            let entry = chips.ioapic.entry(number)?;
            let asserted = chips.ioapic.is_asserted(number);
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
        Lines { pins, pics: chips.pic.registers() }
    }

    pub(crate) fn pic_read(
        &self,
        offset: u16,
        width: Width,
        now: Nanos,
    ) -> Result<u32, AccessError> {
        let mut wired = self.wired();
        let result = wired.chips.pic.port_read(offset, width, now);
        // A poll acknowledges.
        wired.forward_pic();
        result
    }

    pub(crate) fn pic_write(
        &self,
        offset: u16,
        width: Width,
        value: u32,
        now: Nanos,
    ) -> Result<(), AccessError> {
        let mut wired = self.wired();
        let result = wired.chips.pic.port_write(offset, width, value, now);
        wired.forward_pic();
        result
    }

    /// A read of the 8259s that changes nothing, if nobody uses them now.
    #[inline(always)]
    pub(crate) fn hot_pic_read(&self, offset: u16) -> Option<u8> {
        self.chips.try_lock()?.pic.hot_read(offset)
    }

    pub(crate) fn ioapic_read(&self, offset: u64, width: Width) -> Option<u64> {
        self.chips.lock().ioapic.mmio_read(offset, width).ok()
    }

    pub(crate) fn ioapic_write(&self, offset: u64, width: Width, value: u64) {
        let mut wired = self.wired();
        // A width or register that is not there: the write is lost, as on hardware.
        let _ = wired.chips.ioapic.mmio_write(offset, width, value);
        wired.flush();
    }
}
