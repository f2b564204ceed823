//! The bits of each kind of table.

use super::{Attributes, PageSize, Permissions};
use x86defs::HostPhysAddr;
use x86defs::pte::{ADDRESS_MASK, EPT_MEMORY_TYPE_SHIFT, EptEntry, MemoryType, Pte};

/// Value of IA32_PAT on every CPU that uses tables of [`HostTable`] or
/// [`Npt`] (which AMD-V interprets through the host's PAT): entries 0 to 3 as
/// after reset (WB, WT, UC−, UC), then WP, WC, UC−, UC.
pub const HOST_PAT: u64 = 0x0007_0105_0007_0406;

/// PAT entry of [`HOST_PAT`] for each memory type.
const fn pat_index(memory_type: MemoryType) -> u64 {
    match memory_type {
        MemoryType::WriteBack => 0,
        MemoryType::WriteThrough => 1,
        MemoryType::Uncacheable => 3,
        MemoryType::WriteProtected => 4,
        MemoryType::WriteCombining => 5,
    }
}

/// The memory type that an index into [`HOST_PAT`] selects. UC− counts as UC.
const fn pat_type(index: u64) -> MemoryType {
    match index {
        0 => MemoryType::WriteBack,
        1 => MemoryType::WriteThrough,
        4 => MemoryType::WriteProtected,
        5 => MemoryType::WriteCombining,
        _ => MemoryType::Uncacheable,
    }
}

/// The layout of entries. A zero entry is absent in every format.
pub trait Format {
    /// The bits in which a CPU notes that the page was used, and written to.
    const ACCESSED_DIRTY: u64;

    /// An entry that refers to the next lower table and restricts nothing.
    fn table(table: HostPhysAddr) -> u64;

    /// An entry that maps the page at `hpa`, which is aligned to `size`.
    /// `attributes` include [`Permissions::READ`].
    fn leaf(hpa: HostPhysAddr, size: PageSize, attributes: Attributes) -> u64;

    /// Whether the entry maps a page or refers to a table.
    fn is_present(entry: u64) -> bool;

    /// Whether a present entry of a table at `level` (4 is the root) maps a page.
    fn is_leaf(entry: u64, level: u32) -> bool {
        level == 1 || level < 4 && entry & Pte::PS.bits() != 0
    }

    /// The table that a present entry refers to.
    fn next(entry: u64) -> HostPhysAddr {
        HostPhysAddr::new(entry & ADDRESS_MASK)
    }

    /// The first byte of the page that a leaf of this size maps.
    fn page(entry: u64, size: PageSize) -> HostPhysAddr {
        HostPhysAddr::new(entry & ADDRESS_MASK & !size.bytes().wrapping_sub(1))
    }

    /// How a leaf maps its page.
    fn attributes(entry: u64, size: PageSize) -> Attributes;

    /// `attributes` as [`Format::attributes`] will report them.
    fn normalize(attributes: Attributes) -> Attributes;

    /// Whether the tables can translate all of `first..=last`.
    fn covers(first: u64, last: u64) -> bool;
}

/// The bits that ordinary and nested tables have in common.
fn ordinary_leaf(hpa: HostPhysAddr, size: PageSize, attributes: Attributes) -> Pte {
    let index = pat_index(attributes.memory_type);
    let pat = match size {
        PageSize::Size4K => Pte::PAT,
        PageSize::Size2M | PageSize::Size1G => Pte::PAT_LARGE,
    };
    let mut bits = Pte::P;
    bits.set(Pte::W, attributes.permissions.contains(Permissions::WRITE));
    bits.set(Pte::NX, !attributes.permissions.contains(Permissions::EXECUTE));
    bits.set(Pte::PWT, index & 1 != 0);
    bits.set(Pte::PCD, index & 2 != 0);
    if size != PageSize::Size4K {
        bits.insert(Pte::PS);
    }
    if index & 4 != 0 {
        bits.insert(pat);
    }
    Pte::from_bits_retain(bits.bits() | hpa.as_u64())
}

fn ordinary_attributes(entry: u64, size: PageSize) -> Attributes {
    let pte = Pte::from_bits_retain(entry);
    let pat = match size {
        PageSize::Size4K => Pte::PAT,
        PageSize::Size2M | PageSize::Size1G => Pte::PAT_LARGE,
    };
    let mut permissions = Permissions::READ;
    permissions.set(Permissions::WRITE, pte.contains(Pte::W));
    permissions.set(Permissions::EXECUTE, !pte.contains(Pte::NX));
    let index = u64::from(pte.contains(Pte::PWT))
        | u64::from(pte.contains(Pte::PCD)) << 1
        | u64::from(pte.contains(pat)) << 2;
    Attributes { permissions, memory_type: pat_type(index) }
}

/// Permissions that second-stage tables express.
fn second_stage(attributes: Attributes) -> Attributes {
    Attributes { permissions: attributes.permissions & Permissions::RWX, ..attributes }
}

/// Whether `last` lies below 2^48.
fn below_48_bits(last: u64) -> bool {
    last < 1 << 48
}

/// AMD-V's nested tables: the ordinary format, where the CPU makes every access
/// as a user (APM: "Nested Table Walk").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Npt {}

impl Format for Npt {
    const ACCESSED_DIRTY: u64 = Pte::A.union(Pte::D).bits();

    fn table(table: HostPhysAddr) -> u64 {
        (Pte::P | Pte::W | Pte::U).bits() | table.as_u64()
    }

    fn leaf(hpa: HostPhysAddr, size: PageSize, attributes: Attributes) -> u64 {
        (ordinary_leaf(hpa, size, attributes) | Pte::U).bits()
    }

    fn is_present(entry: u64) -> bool {
        entry & Pte::P.bits() != 0
    }

    fn attributes(entry: u64, size: PageSize) -> Attributes {
        ordinary_attributes(entry, size)
    }

    fn normalize(attributes: Attributes) -> Attributes {
        second_stage(attributes)
    }

    fn covers(_first: u64, last: u64) -> bool {
        below_48_bits(last)
    }
}

/// The host's own tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostTable {}

impl Format for HostTable {
    const ACCESSED_DIRTY: u64 = Pte::A.union(Pte::D).bits();

    fn table(table: HostPhysAddr) -> u64 {
        (Pte::P | Pte::W | Pte::U).bits() | table.as_u64()
    }

    fn leaf(hpa: HostPhysAddr, size: PageSize, attributes: Attributes) -> u64 {
        let mut bits = ordinary_leaf(hpa, size, attributes);
        bits.set(Pte::U, attributes.permissions.contains(Permissions::USER));
        bits.set(Pte::G, attributes.permissions.contains(Permissions::GLOBAL));
        bits.bits()
    }

    fn is_present(entry: u64) -> bool {
        entry & Pte::P.bits() != 0
    }

    fn attributes(entry: u64, size: PageSize) -> Attributes {
        let mut attributes = ordinary_attributes(entry, size);
        let pte = Pte::from_bits_retain(entry);
        attributes.permissions.set(Permissions::USER, pte.contains(Pte::U));
        attributes.permissions.set(Permissions::GLOBAL, pte.contains(Pte::G));
        attributes
    }

    fn normalize(attributes: Attributes) -> Attributes {
        attributes
    }

    fn covers(first: u64, last: u64) -> bool {
        // Each canonical half; never a range over both, as what lies between is not canonical.
        last < 1 << 47 || first >= 0xffff_8000_0000_0000
    }
}

/// VT-x's extended page tables. The guest's PAT is honoured beside the type
/// that is given here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ept {}

impl Format for Ept {
    const ACCESSED_DIRTY: u64 = EptEntry::A.union(EptEntry::D).bits();

    fn table(table: HostPhysAddr) -> u64 {
        (EptEntry::R | EptEntry::W | EptEntry::X).bits() | table.as_u64()
    }

    fn leaf(hpa: HostPhysAddr, size: PageSize, attributes: Attributes) -> u64 {
        let mut bits = EptEntry::R;
        bits.set(EptEntry::W, attributes.permissions.contains(Permissions::WRITE));
        bits.set(EptEntry::X, attributes.permissions.contains(Permissions::EXECUTE));
        bits.set(EptEntry::PS, size != PageSize::Size4K);
        bits.bits() | (attributes.memory_type as u64) << EPT_MEMORY_TYPE_SHIFT | hpa.as_u64()
    }

    fn is_present(entry: u64) -> bool {
        entry & (EptEntry::R | EptEntry::W | EptEntry::X).bits() != 0
    }

    fn attributes(entry: u64, _size: PageSize) -> Attributes {
        let bits = EptEntry::from_bits_retain(entry);
        let mut permissions = Permissions::empty();
        permissions.set(Permissions::READ, bits.contains(EptEntry::R));
        permissions.set(Permissions::WRITE, bits.contains(EptEntry::W));
        permissions.set(Permissions::EXECUTE, bits.contains(EptEntry::X));
        let memory_type = match entry >> EPT_MEMORY_TYPE_SHIFT & 7 {
            1 => MemoryType::WriteCombining,
            4 => MemoryType::WriteThrough,
            5 => MemoryType::WriteProtected,
            6 => MemoryType::WriteBack,
            _ => MemoryType::Uncacheable,
        };
        Attributes { permissions, memory_type }
    }

    fn normalize(attributes: Attributes) -> Attributes {
        second_stage(attributes)
    }

    fn covers(_first: u64, last: u64) -> bool {
        below_48_bits(last)
    }
}
