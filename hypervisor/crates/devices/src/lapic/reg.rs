//! Register numbers and layouts of the local APIC.

use super::message::DeliveryMode;
use bitfield_struct::bitfield;
use bitflags::bitflags;
use serde::{Deserialize, Serialize};

/// A register: its xAPIC offset divided by 16, its x2APIC MSR less 0x800
/// (SDM: "x2APIC Register Address Space").
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub struct Reg(pub u8);

impl Reg {
    /// Identity.
    pub const ID: Self = Self(0x02);
    /// Version.
    pub const VERSION: Self = Self(0x03);
    /// Task priority.
    pub const TPR: Self = Self(0x08);
    /// Arbitration priority.
    pub const APR: Self = Self(0x09);
    /// Processor priority.
    pub const PPR: Self = Self(0x0a);
    /// End of interrupt.
    pub const EOI: Self = Self(0x0b);
    /// Remote read.
    pub const RRD: Self = Self(0x0c);
    /// Logical destination.
    pub const LDR: Self = Self(0x0d);
    /// Destination format.
    pub const DFR: Self = Self(0x0e);
    /// Spurious-interrupt vector.
    pub const SVR: Self = Self(0x0f);
    /// In-service register, first of eight.
    pub const ISR: Self = Self(0x10);
    /// Trigger mode, first of eight.
    pub const TMR: Self = Self(0x18);
    /// Interrupt request, first of eight.
    pub const IRR: Self = Self(0x20);
    /// Error status.
    pub const ESR: Self = Self(0x28);
    /// Interrupt command; all 64 bits in x2APIC mode.
    pub const ICR: Self = Self(0x30);
    /// Interrupt command, high half, in xAPIC mode.
    pub const ICR_HIGH: Self = Self(0x31);
    /// First entry of the local vector table.
    pub const LVT_FIRST: Self = Self(0x32);
    /// Last entry of the local vector table.
    pub const LVT_LAST: Self = Self(0x37);
    /// Initial count of the timer.
    pub const INITIAL_COUNT: Self = Self(0x38);
    /// Current count of the timer.
    pub const CURRENT_COUNT: Self = Self(0x39);
    /// Divide configuration of the timer.
    pub const DIVIDE: Self = Self(0x3e);
    /// Self-IPI, in x2APIC mode.
    pub const SELF_IPI: Self = Self(0x3f);
}

/// Six LVT entries, version 0x14, and EOI-broadcast suppression
/// (SDM: "Local APIC Version Register").
pub const VERSION: u32 = 0x0105_0014;

/// A source of interrupts in the local vector table, in the order of its registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Lvt {
    /// The timer.
    Timer = 0,
    /// The thermal sensor.
    Thermal = 1,
    /// Performance counters.
    Performance = 2,
    /// Pin LINT0.
    Lint0 = 3,
    /// Pin LINT1.
    Lint1 = 4,
    /// An error that the APIC found.
    Error = 5,
}

impl Lvt {
    /// The entry of register `reg`, if it is one.
    #[must_use]
    pub(super) const fn from_reg(reg: Reg) -> Option<Self> {
        Some(match reg.0 {
            0x32 => Self::Timer,
            0x33 => Self::Thermal,
            0x34 => Self::Performance,
            0x35 => Self::Lint0,
            0x36 => Self::Lint1,
            0x37 => Self::Error,
            _ => return None,
        })
    }

    /// The bits that software may set.
    #[must_use]
    pub(super) const fn writable(self) -> u32 {
        match self {
            Self::Timer => 0x0007_00ff,
            Self::Thermal | Self::Performance => 0x0001_07ff,
            Self::Lint0 | Self::Lint1 => 0x0001_a7ff,
            Self::Error => 0x0001_00ff,
        }
    }
}

/// An entry of the local vector table (SDM: "Local Vector Table").
#[bitfield(u32)]
#[derive(PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct LvtEntry {
    /// The vector.
    pub vector: u8,
    /// Delivery mode; the timer and error entries have none and read fixed.
    #[bits(3)]
    pub mode: DeliveryMode,
    __: bool,
    /// Delivery status: never set here, delivery is immediate.
    pub pending: bool,
    /// Pin polarity of LINT0 and LINT1. The pins are virtual and their levels
    /// logical, so this is only kept.
    pub active_low: bool,
    /// A level interrupt was accepted and not yet ended.
    pub remote_irr: bool,
    /// Level-triggered.
    pub level: bool,
    /// No interrupt is delivered.
    pub masked: bool,
    /// Mode of the timer.
    #[bits(2)]
    pub timer_mode: TimerMode,
    #[bits(13)]
    __: u16,
}

impl LvtEntry {
    /// After reset.
    pub(super) const RESET: Self = Self::new().with_masked(true);

    /// Bits that hardware owns: delivery status and remote IRR.
    pub(super) const READ_ONLY: u32 = 1 << 12 | Self::REMOTE_IRR;
    /// Remote IRR.
    pub(super) const REMOTE_IRR: u32 = 1 << 14;
}

/// Mode of the timer (SDM: "APIC Timer").
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum TimerMode {
    /// Counts down once.
    OneShot = 0,
    /// Counts down again and again.
    Periodic = 1,
    /// Fires when the TSC reaches a value.
    TscDeadline = 2,
    /// Reserved: the timer stands still.
    Reserved = 3,
}

impl TimerMode {
    const fn from_bits(bits: u8) -> Self {
        match bits & 3 {
            0 => Self::OneShot,
            1 => Self::Periodic,
            2 => Self::TscDeadline,
            _ => Self::Reserved,
        }
    }

    const fn into_bits(self) -> u8 {
        self as u8
    }

    /// Whether the initial count drives it.
    #[inline]
    #[must_use]
    pub(super) const fn counts(self) -> bool {
        matches!(self, Self::OneShot | Self::Periodic)
    }
}

/// Spurious-interrupt vector register (SDM: "Spurious Interrupt").
#[bitfield(u32)]
#[derive(PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Svr {
    /// The spurious vector.
    pub vector: u8,
    /// Software enable.
    pub enabled: bool,
    /// Focus-processor checking: kept, without effect as on today's CPUs.
    pub focus_checking: bool,
    #[bits(2)]
    __: u8,
    /// EOIs of level interrupts are not broadcast.
    pub suppress_eoi_broadcast: bool,
    #[bits(19)]
    __: u32,
}

impl Svr {
    /// After reset.
    pub(super) const RESET: Self = Self::new().with_vector(0xff);
    /// The bits that software may set.
    pub(super) const WRITABLE: u32 = 0x13ff;
}

/// The low half of the interrupt command register
/// (SDM: "Interrupt Command Register (ICR)").
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub(super) struct IcrLow {
    /// The vector.
    pub(super) vector: u8,
    /// Kind of interrupt to deliver.
    #[bits(3)]
    pub(super) mode: DeliveryMode,
    /// The destination is logical.
    pub(super) logical: bool,
    /// Delivery status: never set here.
    pub(super) pending: bool,
    __: bool,
    /// Assert, as opposed to de-assert.
    pub(super) assert: bool,
    /// Level-triggered: only INIT de-assert uses it.
    pub(super) level: bool,
    #[bits(2)]
    __: u8,
    /// Destination shorthand.
    #[bits(2)]
    pub(super) shorthand: u8,
    #[bits(12)]
    __: u16,
}

impl IcrLow {
    /// The bits that software may set.
    pub(super) const WRITABLE: u32 = 0x000c_cfff & !Self::STATUS;
    /// Delivery status.
    pub(super) const STATUS: u32 = 1 << 12;
}

/// Errors that an APIC finds (SDM: "Error Handling").
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(super) struct Esr(u32);

bitflags! {
    impl Esr: u32 {
        /// A vector below 16 was to be sent.
        const SEND_ILLEGAL_VECTOR = 1 << 5;
        /// A vector below 16 was received.
        const RECEIVE_ILLEGAL_VECTOR = 1 << 6;
        /// A reserved register was accessed, in xAPIC mode.
        const ILLEGAL_REGISTER = 1 << 7;
    }
}
