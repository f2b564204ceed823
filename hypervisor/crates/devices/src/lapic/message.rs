//! Interrupt messages and their targets: the common part of I/O APICs, MSIs and
//! inter-processor interrupts.

use bitfield_struct::bitfield;
use serde::{Deserialize, Serialize};
use x86defs::{Low, Vector};

/// Effect of a message on its target (SDM: "Interrupt Command Register (ICR)").
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[repr(u8)]
pub enum DeliveryMode {
    /// Deliver the vector to every target.
    Fixed = 0,
    /// Deliver the vector to the target that runs at the lowest priority.
    LowestPriority = 1,
    /// System-management interrupt.
    Smi = 2,
    /// Reserved (once "remote read").
    Reserved = 3,
    /// Non-maskable interrupt.
    Nmi = 4,
    /// INIT.
    Init = 5,
    /// Start-up at page `vector`.
    StartUp = 6,
    /// The vector comes from an external (8259-compatible) controller.
    ExtInt = 7,
}

impl DeliveryMode {
    /// The mode with the number in bits 2:0 of `bits`.
    #[inline]
    #[must_use]
    pub const fn from_bits(bits: u8) -> Self {
        match bits & 7 {
            0 => Self::Fixed,
            1 => Self::LowestPriority,
            2 => Self::Smi,
            3 => Self::Reserved,
            4 => Self::Nmi,
            5 => Self::Init,
            6 => Self::StartUp,
            _ => Self::ExtInt,
        }
    }

    /// The number of the mode, 0 to 7.
    #[inline]
    #[must_use]
    pub(crate) const fn into_bits(self) -> u8 {
        self as u8
    }

    /// Whether the message carries a vector that lands in an IRR.
    #[inline]
    #[must_use]
    pub(crate) const fn uses_vector(self) -> bool {
        matches!(self, Self::Fixed | Self::LowestPriority)
    }
}

/// How an interrupt is signalled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Trigger {
    /// The interrupt is signalled once.
    Edge,
    /// It is signalled for as long as its line is asserted: its EOI is told to the I/O APICs.
    Level,
}

impl Trigger {
    /// The trigger of a "level" bit.
    #[inline]
    #[must_use]
    pub const fn from_level_bit(level: bool) -> Self {
        if level { Self::Level } else { Self::Edge }
    }
}

/// How a destination is compared with an APIC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum DestinationMode {
    /// The destination is compared with the APIC's identity.
    Physical,
    /// The destination is compared with the APIC's logical destination register.
    Logical,
}

impl DestinationMode {
    /// The mode of a "logical" bit.
    #[inline]
    #[must_use]
    pub(crate) const fn from_logical_bit(logical: bool) -> Self {
        if logical { Self::Logical } else { Self::Physical }
    }
}

/// Targets of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Destination {
    /// Identity or logical set; [`Destination::BROADCAST`] is everybody.
    pub id: u32,
    /// Meaning of `id`.
    pub mode: DestinationMode,
}

impl Destination {
    /// The `id` that every APIC answers to, in both modes.
    pub const BROADCAST: u32 = u32::MAX;

    /// A destination field of 8 bits: I/O APIC, MSI, or the command register
    /// of an APIC in xAPIC mode. 0xff reaches everybody.
    #[inline]
    #[must_use]
    pub const fn from_xapic(id: u8, mode: DestinationMode) -> Self {
        Self { id: if id == 0xff { Self::BROADCAST } else { id as u32 }, mode }
    }

    /// A destination field of 32 bits: the command register in x2APIC mode.
    #[inline]
    #[must_use]
    pub const fn from_x2apic(id: u32, mode: DestinationMode) -> Self {
        Self { id, mode }
    }
}

/// An interrupt on its way from a device or an I/O APIC to local APICs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct InterruptMessage {
    /// Targets of the message.
    pub destination: Destination,
    /// Effect on its target.
    pub mode: DeliveryMode,
    /// The vector, where the mode uses one.
    pub vector: Vector,
    /// Edge or level.
    pub trigger: Trigger,
}

/// The layout of an MSI's address (SDM: "Message Address Register Format").
#[bitfield(u32)]
struct MsiAddress {
    #[bits(2)]
    __: u8,
    logical: bool,
    /// Stored by guests, without effect here: every target is reached alike.
    redirection_hint: bool,
    __: u8,
    destination: u8,
    #[bits(12)]
    page: u16,
}

/// The layout of an MSI's data (SDM: "Message Data Register Format").
#[bitfield(u32)]
struct MsiData {
    vector: u8,
    #[bits(3)]
    mode: u8,
    #[bits(3)]
    __: u8,
    asserted: bool,
    level: bool,
    __: u16,
}

/// Bits 31:20 of the addresses that mean an MSI.
const MSI_PAGE: u16 = 0xfee;

impl InterruptMessage {
    /// The message that a write of `data` to `address` means, where the address
    /// lies in the MSI range 0xfee0_0000 to 0xfeef_ffff.
    #[must_use]
    pub fn from_msi(address: u64, data: u32) -> Option<Self> {
        let fields = MsiAddress::from_bits(u32::try_from(address).ok()?);
        if fields.page() != MSI_PAGE {
            return None;
        }
        let data = MsiData::from_bits(data);
        // The manual lets a clear redirection hint override the logical bit.
        // Hardware does not, and Linux sends logical MSIs without the hint.
        let mode = DestinationMode::from_logical_bit(fields.logical());
        Some(Self {
            destination: Destination::from_xapic(fields.destination(), mode),
            mode: DeliveryMode::from_bits(data.mode()),
            vector: data.vector(),
            trigger: Trigger::from_level_bit(data.level() && data.asserted()),
        })
    }
}

/// A shorthand for the targets of an inter-processor interrupt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Shorthand {
    /// The destination field counts.
    None,
    /// The sender.
    ToSelf,
    /// Everybody.
    AllIncludingSelf,
    /// Everybody but the sender.
    AllExcludingSelf,
}

impl Shorthand {
    /// The shorthand with the number in bits 1:0 of `bits`.
    #[inline]
    #[must_use]
    pub(super) const fn from_bits(bits: u8) -> Self {
        match bits & 3 {
            0 => Self::None,
            1 => Self::ToSelf,
            2 => Self::AllIncludingSelf,
            _ => Self::AllExcludingSelf,
        }
    }
}

/// An inter-processor interrupt that a guest's write to its command register asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct IpiCommand {
    /// The message; it is always an edge.
    pub message: InterruptMessage,
    /// Targets, unless the destination names them.
    pub shorthand: Shorthand,
}

/// The mode of a local APIC (SDM: "Local APIC Status and Location").
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[repr(u8)]
pub enum ApicMode {
    /// Off: the CPU behaves as one without an APIC.
    Disabled = 0,
    /// Registers in memory, identities of 8 bits.
    XApic = 1,
    /// Registers are MSRs, identities of 32 bits.
    X2Apic = 2,
}

impl ApicMode {
    const fn from_bits(bits: u8) -> Self {
        match bits {
            1 => Self::XApic,
            2 => Self::X2Apic,
            _ => Self::Disabled,
        }
    }

    const fn into_bits(self) -> u8 {
        self as u8
    }
}

/// A local APIC as others have to know it, to tell whether a message is for it;
/// 64 bits, so that it can be published in one atomic.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct ApicIdentity {
    /// The identity.
    pub id: u32,
    /// Bits 31:24 of the logical destination register in xAPIC mode.
    pub xapic_ldr: u8,
    /// Flat model in xAPIC mode (destination format register all ones), else cluster.
    pub flat: bool,
    /// The mode.
    #[bits(2)]
    pub mode: ApicMode,
    /// Enabled in the spurious-interrupt vector register: vectors are accepted.
    pub software_enabled: bool,
    #[bits(4)]
    __: u8,
    /// Rank in lowest-priority arbitration: the task priority, 0 to 255.
    pub priority: u8,
    __: u8,
}

impl ApicIdentity {
    /// The logical destination register of an APIC in x2APIC mode
    /// (SDM: "Deriving Logical x2APIC ID from the Local x2APIC ID").
    #[inline]
    #[must_use]
    pub(super) const fn x2apic_ldr(id: u32) -> u32 {
        (id >> 4) << 16 | 1 << (id & 15)
    }

    /// Whether a message to `destination` is for this APIC
    /// (SDM: "Determining IPI Destination").
    #[inline]
    #[must_use]
    pub fn matches(self, destination: Destination) -> bool {
        let wanted = destination.id;
        if matches!(self.mode(), ApicMode::Disabled) {
            return false;
        }
        if wanted == Destination::BROADCAST {
            return true;
        }
        match (destination.mode, self.mode()) {
            (DestinationMode::Physical, _) => wanted == self.id(),
            (DestinationMode::Logical, ApicMode::X2Apic) => {
                let own = Self::x2apic_ldr(self.id());
                own >> 16 == wanted >> 16 && own & wanted & 0xffff != 0
            }
            (DestinationMode::Logical, _) => {
                let own = self.xapic_ldr();
                let set = wanted.low8();
                wanted <= 0xff
                    && if self.flat() {
                        own & set != 0
                    } else {
                        own >> 4 == set >> 4 && own & set & 0xf != 0
                    }
            }
        }
    }
}

/// Of the candidates (index and identity), the one that a lowest-priority
/// message goes to: the least priority among those that accept vectors, and of
/// equals the first at or after index `turn`, so that a turning `turn` spreads
/// them (SDM: "Lowest Priority Delivery Mode").
#[must_use]
pub fn arbitrate(
    candidates: impl Iterator<Item = (usize, ApicIdentity)>,
    turn: usize,
) -> Option<usize> {
    candidates
        .filter(|(_, identity)| identity.software_enabled())
        .min_by_key(|(index, identity)| (identity.priority() >> 4, *index < turn, *index))
        .map(|(index, _)| index)
}
