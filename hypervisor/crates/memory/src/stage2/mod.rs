//! Building hierarchical tables of four levels, in one of three [formats](Format):
//! [`Npt`] (AMD-V's nested tables), [`HostTable`] (the host's own) and [`Ept`]
//! (VT-x's extended page tables).
//!
//! A [`Mapper`] owns one tree of tables and edits it through [`TableMemory`],
//! which knows where tables come from and how to reach them. Nothing here
//! flushes a translation cache: whoever changes or removes a mapping that a CPU
//! may have cached owes the flush, and [`TableMemory::free_table`] must not
//! reuse a table before that has happened.
//!
//! SDM: "4-Level Paging and 5-Level Paging", "The Extended Page Table Mechanism
//! (EPT)"; APM: "Long-Mode Page Translation", "Nested Paging".

mod format;
mod mapper;
mod nested;
#[cfg(test)]
mod tests;
mod vacancy;

use bitflags::bitflags;
use core::ops::Range;
use x86defs::HostPhysAddr;
use x86defs::pte::MemoryType;

pub use format::{Ept, Format, HOST_PAT, HostTable, Npt};
pub use mapper::Mapper;
pub use nested::{NestedFormat, NestedTables};
pub use vacancy::{Detached, Vacancy};

/// Entries in a table.
pub(crate) const ENTRIES: usize = 512;

/// How many tables a tree has at most, its root among them, that maps no more than these
/// ranges of addresses, however small the pages are. The ranges are in rising order and do
/// not overlap.
pub fn most_tables(ranges: impl Iterator<Item = Range<u64>> + Clone) -> u64 {
    let of_level = |shift: u32| {
        // The first stretch that has no table yet, and how many have one.
        let (mut next, mut count) = (0, 0);
        for range in ranges.clone().filter(|range| range.start < range.end) {
            let end = (range.end.wrapping_sub(1) >> shift).wrapping_add(1);
            let fresh = end.saturating_sub(next.max(range.start >> shift));
            count = fresh.saturating_add(count);
            next = next.max(end);
        }
        count
    };
    [21, 30, 39].map(of_level).iter().fold(1, |sum: u64, count| sum.saturating_add(*count))
}

/// Memory of tables.
pub trait TableMemory {
    /// Why no table could be had.
    type Error;

    /// A table of 4 KiB for the mapper's own use, all zero.
    ///
    /// # Errors
    /// There is none left.
    fn alloc_table(&mut self) -> Result<HostPhysAddr, Self::Error>;

    /// Takes back a table that is no longer linked. CPUs may still have it
    /// cached: it must not be reused before their caches were flushed.
    fn free_table(&mut self, table: HostPhysAddr);

    /// Entry `index` (0 to 511) of `table`.
    fn read(&self, table: HostPhysAddr, index: usize) -> u64;

    /// Sets entry `index` (0 to 511) of `table`, in one store that a
    /// CPU sees whole.
    fn write(&mut self, table: HostPhysAddr, index: usize, entry: u64);
}

/// The size of a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PageSize {
    /// 4 KiB.
    Size4K,
    /// 2 MiB.
    Size2M,
    /// 1 GiB.
    Size1G,
}

impl PageSize {
    /// The number of bytes.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        match self {
            Self::Size4K => 1 << 12,
            Self::Size2M => 1 << 21,
            Self::Size1G => 1 << 30,
        }
    }

    /// The level of the tables whose entries map such pages.
    pub(crate) const fn level(self) -> u32 {
        match self {
            Self::Size4K => 1,
            Self::Size2M => 2,
            Self::Size1G => 3,
        }
    }

    /// The page that an entry of a table at `level` (1 is the lowest) maps.
    pub(crate) const fn at_level(level: u32) -> Option<Self> {
        match level {
            1 => Some(Self::Size4K),
            2 => Some(Self::Size2M),
            3 => Some(Self::Size1G),
            _ => None,
        }
    }
}

bitflags! {
    /// Rights of a mapping. Each format keeps what it can express
    /// ([`Format::normalize`]).
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    pub struct Permissions: u8 {
        /// Reads. No mapping can be made without it.
        const READ = 1 << 0;
        /// Writes.
        const WRITE = 1 << 1;
        /// Instruction fetches.
        const EXECUTE = 1 << 2;
        /// User pages ([`HostTable`] only).
        const USER = 1 << 3;
        /// Kept over a change of CR3 ([`HostTable`] only).
        const GLOBAL = 1 << 4;
    }
}

impl Permissions {
    /// Reads, writes and fetches.
    pub const RWX: Self = Self::READ.union(Self::WRITE).union(Self::EXECUTE);
    /// Reads and writes.
    pub const RW: Self = Self::READ.union(Self::WRITE);
}

/// How a page is mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Attributes {
    /// Rights of the page.
    pub permissions: Permissions,
    /// Memory type of the page; MTRRs and, below second-stage tables, the guest's PAT
    /// have their say beside it.
    pub memory_type: MemoryType,
}

impl Attributes {
    /// Ordinary RAM with these permissions: write-back.
    #[must_use]
    pub const fn ram(permissions: Permissions) -> Self {
        Self { permissions, memory_type: MemoryType::WriteBack }
    }

    /// Device registers: read, write, uncacheable.
    #[must_use]
    pub const fn device() -> Self {
        Self { permissions: Permissions::RW, memory_type: MemoryType::Uncacheable }
    }
}

/// Translation of an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Mapping {
    /// The address that was asked for, translated (its offset in the page included).
    pub hpa: HostPhysAddr,
    /// The size of the page that it lies in.
    pub size: PageSize,
    /// How the page is mapped.
    pub attributes: Attributes,
}

/// Why an edit failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MapErrorKind<E> {
    /// An address or the length is not a multiple of 4 KiB.
    Misaligned,
    /// The range leaves what the tables can translate (48 bits; for the host's
    /// own tables each canonical half), or host addresses of 52 bits.
    OutOfRange,
    /// The attributes lack [`Permissions::READ`].
    Unreadable,
    /// Something is mapped there already.
    AlreadyMapped,
    /// The slot of the root belongs to another tree ([`Mapper::share_slot`]),
    /// or is taken where it should be free.
    SharedSlot,
    /// No table could be had.
    NoTable(E),
}

/// Why an edit failed, and what it had done by then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapError<E> {
    /// Kind of the failure.
    pub kind: MapErrorKind<E>,
    /// The first so many bytes of the range were dealt with; the rest is as it was.
    pub done: u64,
}
