//! Firmware's tables: the way from the root pointer to one of them ([`Tables`]), and the
//! machine's CPUs ([`processors`]).
//!
//! Firmware's bytes may be wrong, and whoever reads them must come to an end all the same:
//! every table is as long as it says and at most 16 MiB, its checksum holds, at most
//! 256 are looked at, and a list of variable entries ends at the first one that
//! does not fit.

use core::fmt;

/// The most bytes that a table may have.
const MOST_BYTES: u32 = 16 << 20;
/// The most tables that are looked at.
pub(crate) const MOST_TABLES: usize = 256;
/// Bytes of the header that tables begin with.
pub const HEADER: usize = 36;

/// [`HEADER`], in the type of a table's length.
const HEADER_BYTES: u32 = 36;
/// Bytes of the root pointer that its first checksum covers.
const OLD_ROOT: u32 = 20;
/// Bytes of the root pointer since ACPI 2.0.
const ROOT: u32 = 36;
/// Offset of the first entry in the list of interrupt controllers.
const MADT_ENTRIES: usize = 44;
/// MADT: the CPU is ready for use.
const ENABLED: u32 = 1 << 0;
/// The local-APIC identifier that means all CPUs, so that no CPU has it.
const BROADCAST: u32 = u32::MAX;

/// Firmware's memory.
pub trait Memory {
    /// `len` bytes at host-physical `at`; `None` where there is no such memory.
    fn bytes(&self, at: u64, len: u32) -> Option<&[u8]>;
}

/// Firmware's tables can't be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TableError {
    /// There is no memory where something should be.
    Address(u64),
    /// The root pointer's signature or checksum is wrong.
    Root,
    /// The root pointer names no table of tables.
    NoList,
    /// A table's first bytes are not its name.
    Name([u8; 4]),
    /// A table's length is impossible.
    Length([u8; 4], u32),
    /// A table's checksum is wrong.
    Checksum([u8; 4]),
    /// There is no such table.
    Missing([u8; 4]),
}

impl fmt::Display for TableError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(at) => write!(f, "there is no memory at {at:#x}"),
            Self::Root => f.write_str("the root pointer is damaged"),
            Self::NoList => f.write_str("the root pointer names no tables"),
            Self::Name(name) => write!(f, "no table {} where it should be", name.escape_ascii()),
            Self::Length(name, length) => {
                write!(f, "table {} can't have {length} bytes", name.escape_ascii())
            }
            Self::Checksum(name) => write!(f, "table {} is damaged", name.escape_ascii()),
            Self::Missing(name) => write!(f, "there is no table {}", name.escape_ascii()),
        }
    }
}

/// The tables that a root pointer leads to.
#[derive(Clone, Copy, Debug)]
pub struct Tables<'a, M> {
    memory: &'a M,
    /// The list of the other tables' addresses, without its header.
    list: &'a [u8],
    /// Bytes of an address in the list.
    width: usize,
}

impl<'a, M: Memory> Tables<'a, M> {
    /// Finds the tables from the root pointer at `root` (ACPI: "Root System Description Pointer
    /// (RSDP)"). The list of 64-bit addresses is preferred to the old one, if it is whole.
    ///
    /// # Errors
    /// [`TableError`] tells what is damaged.
    pub fn open(memory: &'a M, root: u64) -> Result<Self, TableError> {
        let missing = TableError::Address(root);
        let old = memory.bytes(root, OLD_ROOT).ok_or(missing)?;
        if !old.starts_with(b"RSD PTR ") || !sums_to_zero(old) {
            return Err(TableError::Root);
        }
        let new = (byte(old, 15) >= Some(2)).then(|| memory.bytes(root, ROOT)).flatten();
        if let Some(new) = new
            && sums_to_zero(new)
            && let Some(at) = long(new, 24).filter(|at| *at != 0)
            && let Ok(list) = table(memory, at, *b"XSDT")
        {
            return Ok(Self { memory, list: list.get(HEADER..).unwrap_or_default(), width: 8 });
        }
        let at = word(old, 16).filter(|at| *at != 0).ok_or(TableError::NoList)?;
        let list = table(memory, at.into(), *b"RSDT")?;
        Ok(Self { memory, list: list.get(HEADER..).unwrap_or_default(), width: 4 })
    }

    /// The first table with this name, header and all.
    ///
    /// # Errors
    /// There is no such table, or it is damaged.
    pub fn find(&self, name: [u8; 4]) -> Result<&'a [u8], TableError> {
        for entry in self.list.chunks_exact(self.width).take(MOST_TABLES) {
            let at = entry.iter().rev().fold(0, |at, byte| at << 8 | u64::from(*byte));
            let header = self.memory.bytes(at, HEADER_BYTES);
            if header.is_some_and(|header| header.starts_with(&name)) {
                return table(self.memory, at, name);
            }
        }
        Err(TableError::Missing(name))
    }
}

/// The table `name` at `at`, header and all (ACPI: "System Description Table Header").
///
/// # Errors
/// The table is not there, or damaged.
pub fn table<M: Memory>(memory: &M, at: u64, name: [u8; 4]) -> Result<&[u8], TableError> {
    let header = memory.bytes(at, HEADER_BYTES).ok_or(TableError::Address(at))?;
    if !header.starts_with(&name) {
        return Err(TableError::Name(name));
    }
    let length = word(header, 4).unwrap_or(0);
    if !(HEADER_BYTES..=MOST_BYTES).contains(&length) {
        return Err(TableError::Length(name, length));
    }
    let whole = memory.bytes(at, length).ok_or(TableError::Address(at))?;
    if sums_to_zero(whole) { Ok(whole) } else { Err(TableError::Checksum(name)) }
}

/// The local-APIC identifiers of the CPUs that are ready for use, in firmware's order, of a
/// whole table (ACPI: "Multiple APIC Description Table (MADT)"). One may come twice.
pub fn processors(madt: &[u8]) -> impl Iterator<Item = u32> {
    let mut rest = madt.get(MADT_ENTRIES..).unwrap_or_default();
    let entries = core::iter::from_fn(move || {
        let length = usize::from(byte(rest, 1)?);
        // An entry has its kind and its length at least, or the next one would be itself.
        let (entry, behind) = rest.split_at_checked(length.max(2))?;
        rest = behind;
        Some(entry)
    });
    entries.filter_map(|entry| {
        let (id, flags) = match byte(entry, 0)? {
            0 => (byte(entry, 3)?.into(), word(entry, 4)?),
            9 => (word(entry, 4)?, word(entry, 8)?),
            _ => return None,
        };
        (flags & ENABLED != 0 && id != BROADCAST).then_some(id)
    })
}

fn sums_to_zero(bytes: &[u8]) -> bool {
    bytes.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)) == 0
}

pub(super) fn byte(bytes: &[u8], at: usize) -> Option<u8> {
    bytes.get(at).copied()
}

pub(super) fn word(bytes: &[u8], at: usize) -> Option<u32> {
    let (word, _) = bytes.get(at..)?.split_first_chunk()?;
    Some(u32::from_le_bytes(*word))
}

pub(super) fn long(bytes: &[u8], at: usize) -> Option<u64> {
    let (long, _) = bytes.get(at..)?.split_first_chunk()?;
    Some(u64::from_le_bytes(*long))
}
