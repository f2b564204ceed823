//! The local APIC, as xAPIC or x2APIC, and the I/O APIC.

use crate::cpu::{cpuid, low32, rdmsr, wrmsr};
use crate::io::{mmio_read32, mmio_write32};

const BASE: u64 = 0xfee0_0000;
const APIC_BASE_MSR: u32 = 0x1b;
const X2APIC_ENABLE: u64 = 1 << 10;

/// Local APIC registers, as offsets in the xAPIC page.
pub mod reg {
    /// Identity.
    pub const ID: u32 = 0x20;
    /// Version.
    pub const VERSION: u32 = 0x30;
    /// Task priority.
    pub const TPR: u32 = 0x80;
    /// Processor priority.
    pub const PPR: u32 = 0xa0;
    /// End of interrupt.
    pub const EOI: u32 = 0xb0;
    /// Logical destination.
    pub const LDR: u32 = 0xd0;
    /// Destination format.
    pub const DFR: u32 = 0xe0;
    /// Spurious vector and enable.
    pub const SVR: u32 = 0xf0;
    /// In service, eight words.
    pub const ISR: u32 = 0x100;
    /// Level-triggered, eight words.
    pub const TMR: u32 = 0x180;
    /// Requested, eight words.
    pub const IRR: u32 = 0x200;
    /// Errors.
    pub const ESR: u32 = 0x280;
    /// Command, low half.
    pub const ICR: u32 = 0x300;
    /// Command, high half.
    pub const ICR_HIGH: u32 = 0x310;
    /// Timer.
    pub const LVT_TIMER: u32 = 0x320;
    /// The LINT0 input.
    pub const LVT_LINT0: u32 = 0x350;
    /// The LINT1 input.
    pub const LVT_LINT1: u32 = 0x360;
    /// Error interrupt.
    pub const LVT_ERROR: u32 = 0x370;
    /// Initial count.
    pub const TIMER_INITIAL: u32 = 0x380;
    /// Current count.
    pub const TIMER_CURRENT: u32 = 0x390;
    /// Divider.
    pub const TIMER_DIVIDE: u32 = 0x3e0;
}

/// Delivery modes and other bits of the command and LVT registers.
pub mod bits {
    /// Deliver as ExtINT.
    pub const EXTINT: u32 = 7 << 8;
    /// Deliver as NMI.
    pub const NMI: u32 = 4 << 8;
    /// Masked.
    pub const MASKED: u32 = 1 << 16;
    /// Periodic timer.
    pub const PERIODIC: u32 = 1 << 17;
    /// TSC-deadline timer.
    pub const TSC_DEADLINE: u32 = 2 << 17;
    /// Level-triggered (I/O APIC).
    pub const LEVEL: u32 = 1 << 15;
    /// The interrupt was accepted and not yet ended (I/O APIC).
    pub const REMOTE_IRR: u32 = 1 << 14;
    /// Destination shorthand: oneself.
    pub const SELF: u32 = 1 << 18;
    /// Level asserted.
    pub const ASSERT: u32 = 1 << 14;
}

/// How the local APIC's registers are reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lapic {
    /// In memory.
    X1,
    /// As MSRs.
    X2,
}

impl Lapic {
    /// The mode that the APIC is in now.
    #[must_use]
    pub fn now() -> Self {
        if rdmsr(APIC_BASE_MSR).is_ok_and(|base| base & X2APIC_ENABLE != 0) {
            Self::X2
        } else {
            Self::X1
        }
    }

    /// Whether CPUID offers x2APIC.
    #[must_use]
    pub fn x2apic_offered() -> bool {
        cpuid(1, 0).ecx & 1 << 21 != 0
    }

    /// Goes to x2APIC mode (there is no way back but a reset).
    #[must_use]
    pub fn to_x2apic() -> Self {
        if let Ok(base) = rdmsr(APIC_BASE_MSR) {
            let _ = wrmsr(APIC_BASE_MSR, base | X2APIC_ENABLE);
        }
        Self::now()
    }

    /// Reads a register.
    #[must_use]
    pub fn read(self, register: u32) -> u32 {
        match self {
            Self::X1 => mmio_read32(BASE + u64::from(register)),
            Self::X2 => low32(rdmsr(0x800 + register / 16).unwrap_or(0)),
        }
    }

    /// Writes a register.
    pub fn write(self, register: u32, value: u32) {
        match self {
            Self::X1 => mmio_write32(BASE + u64::from(register), value),
            Self::X2 => {
                let _ = wrmsr(0x800 + register / 16, u64::from(value));
            }
        }
    }

    /// Enables the APIC with spurious vector 0xff and everything masked.
    pub fn enable(self) {
        self.write(reg::SVR, 0x1ff);
        self.write(reg::TPR, 0);
        self.write(reg::LVT_TIMER, bits::MASKED);
        self.write(reg::LVT_LINT0, bits::MASKED);
        self.write(reg::LVT_LINT1, bits::MASKED);
        self.write(reg::LVT_ERROR, bits::MASKED);
        self.write(reg::TIMER_INITIAL, 0);
        while self.in_service().is_some() {
            self.eoi();
        }
    }

    /// Ends the interrupt in service.
    pub fn eoi(self) {
        self.write(reg::EOI, 0);
    }

    /// Sends oneself an interrupt.
    pub fn self_ipi(self, vector: u8) {
        self.command(bits::SELF | bits::ASSERT | u32::from(vector));
    }

    /// Sends oneself an NMI. With the shorthand only fixed interrupts may go,
    /// so it is addressed to one's own identity.
    pub fn self_nmi(self) {
        let nmi = bits::NMI | bits::ASSERT;
        match self {
            Self::X1 => {
                self.write(reg::ICR_HIGH, self.read(reg::ID));
                self.command(nmi);
            }
            Self::X2 => {
                let id = u64::from(self.read(reg::ID));
                let _ = wrmsr(0x830, id << 32 | u64::from(nmi));
            }
        }
    }

    /// Writes the command register's low half.
    pub fn command(self, value: u32) {
        self.write(reg::ICR, value);
    }

    /// A bit of one of the 256-bit registers.
    #[must_use]
    pub fn bit(self, register: u32, vector: u8) -> bool {
        let word = self.read(register + u32::from(vector / 32) * 16);
        word >> (vector % 32) & 1 != 0
    }

    /// The highest vector in service.
    #[must_use]
    pub fn in_service(self) -> Option<u8> {
        (0..8u8).rev().find_map(|word| {
            let bits = self.read(reg::ISR + u32::from(word) * 16);
            (0..32).rev().find(|bit| bits >> bit & 1 != 0).map(|bit| word * 32 + bit)
        })
    }
}

/// The I/O APIC at its usual place.
pub mod ioapic {
    use super::{mmio_read32, mmio_write32};
    const BASE: u64 = 0xfec0_0000;

    /// Reads an indirect register.
    #[must_use]
    pub fn read(index: u32) -> u32 {
        mmio_write32(BASE, index);
        mmio_read32(BASE + 0x10)
    }

    /// Writes an indirect register.
    pub fn write(index: u32, value: u32) {
        mmio_write32(BASE, index);
        mmio_write32(BASE + 0x10, value);
    }

    /// Number of inputs.
    #[must_use]
    pub fn pins() -> u32 {
        (read(1) >> 16 & 0xff) + 1
    }

    /// The low half of a redirection entry.
    #[must_use]
    pub fn entry(pin: u32) -> u32 {
        read(0x10 + pin * 2)
    }

    /// Routes a pin to CPU 0 with the low half given.
    pub fn route(pin: u32, low: u32) {
        write(0x10 + pin * 2, super::bits::MASKED);
        write(0x11 + pin * 2, 0);
        write(0x10 + pin * 2, low);
    }

    /// Masks every input.
    pub fn mask_all() {
        for pin in 0..pins() {
            write(0x10 + pin * 2, super::bits::MASKED);
        }
    }
}
