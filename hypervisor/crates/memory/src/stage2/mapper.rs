//! [`Mapper`]: one tree of tables and its edits.

use super::{
    Attributes, ENTRIES, Format, MapError, MapErrorKind, Mapping, PageSize, Permissions,
    TableMemory,
};
use core::marker::PhantomData;
use core::ops::Range;
use x86defs::HostPhysAddr;
use x86defs::addr::{PAGE_SHIFT, PAGE_SIZE};

/// The level of the root.
pub(super) const ROOT: u32 = 4;
/// In a slot of the root, where CPUs ignore the bit: the tables below belong to
/// another tree.
pub(super) const SHARED: u64 = 1 << 52;
/// In a slot of the root, where CPUs ignore the bit: the table below stays even
/// when it is empty, as other trees may share it.
const RESERVED: u64 = 1 << 53;

/// log2 of the bytes that one entry of a table at `level` stands for, 1 to 5.
const fn shift(level: u32) -> u32 {
    level.wrapping_sub(1).wrapping_mul(9).wrapping_add(PAGE_SHIFT)
}

/// Bytes that one entry of a table at `level` stands for.
const fn span(level: u32) -> u64 {
    1 << shift(level)
}

/// Bytes from `addr` to the end of what its entry of a table at `level` stands for.
const fn left_in(addr: u64, level: u32) -> u64 {
    let span = span(level);
    span.wrapping_sub(addr & span.wrapping_sub(1))
}

/// The entry of a table at `level` that translates `addr`.
pub(super) const fn index(addr: u64, level: u32) -> usize {
    #[expect(clippy::cast_possible_truncation, reason = "nine bits are left")]
    {
        (addr >> shift(level)) as usize % ENTRIES
    }
}

/// One tree of tables in format `F`. It does not free itself: see
/// [`Mapper::free_all`].
#[derive(Debug)]
pub struct Mapper<F: Format> {
    root: HostPhysAddr,
    max_leaf: PageSize,
    format: PhantomData<F>,
}

/// Progress of an edit.
struct Cursor {
    addr: u64,
    remaining: u64,
}

impl Cursor {
    fn advance(&mut self, bytes: u64) {
        self.addr = self.addr.wrapping_add(bytes);
        self.remaining = self.remaining.saturating_sub(bytes);
    }

    /// Whether the edit has left the table at `level` that it was in before the
    /// last [`Cursor::advance`].
    fn leaves(&self, level: u32) -> bool {
        self.remaining == 0 || index(self.addr, level) == 0 && self.addr.is_multiple_of(span(level))
    }
}

impl<F: Format> Mapper<F> {
    /// An empty tree. Pages of more than `max_leaf` bytes are never used.
    ///
    /// # Errors
    /// There is no table for the root.
    pub fn new<M: TableMemory>(mem: &mut M, max_leaf: PageSize) -> Result<Self, M::Error> {
        Ok(Self::from_root(mem.alloc_table()?, max_leaf))
    }

    /// The tree that hangs at `root`. There must be one mapper for it, no more, unless each
    /// edits entries of its own in tables that stay.
    #[must_use]
    pub const fn from_root(root: HostPhysAddr, max_leaf: PageSize) -> Self {
        Self { root, max_leaf, format: PhantomData }
    }

    /// The root table, for CR3, nCR3 or the EPT pointer.
    #[must_use]
    pub const fn root(&self) -> HostPhysAddr {
        self.root
    }

    /// The largest pages that the tree uses.
    #[must_use]
    pub const fn max_leaf(&self) -> PageSize {
        self.max_leaf
    }

    /// Maps `len` bytes at `addr` to those at `hpa`, with the largest pages that
    /// alignment and [`Mapper::max_leaf`] allow.
    ///
    /// # Errors
    /// Stops at what is mapped already, or when there is no table left; what it
    /// mapped until then stays, and [`MapError::done`] tells how much that is.
    /// Nothing is done if the arguments are wrong.
    pub fn map<M: TableMemory>(
        &mut self,
        mem: &mut M,
        addr: u64,
        hpa: HostPhysAddr,
        len: u64,
        attributes: Attributes,
    ) -> Result<(), MapError<M::Error>> {
        let early = |kind| MapError { kind, done: 0 };
        let mut cursor = Self::cursor(addr, len).map_err(early)?;
        if !hpa.is_aligned(PAGE_SIZE) {
            return Err(early(MapErrorKind::Misaligned));
        }
        if hpa.checked_add(len).is_none_or(|end| end.as_u64() > 1 << 52) {
            return Err(early(MapErrorKind::OutOfRange));
        }
        if !attributes.permissions.contains(Permissions::READ) {
            return Err(early(MapErrorKind::Unreadable));
        }
        let offset = hpa.as_u64().wrapping_sub(addr);
        self.map_in(mem, self.root, ROOT, &mut cursor, offset, attributes)
            .map_err(|kind| MapError { kind, done: len.saturating_sub(cursor.remaining) })
    }

    /// Takes away what is mapped in the range, calls `removed` with each page
    /// after its entry is gone, and frees tables that are empty. Large pages
    /// that reach beyond the range are split. Holes are no error.
    ///
    /// # Errors
    /// A page must be split and there is no table left.
    pub fn unmap<M: TableMemory>(
        &mut self,
        mem: &mut M,
        addr: u64,
        len: u64,
        mut removed: impl FnMut(HostPhysAddr, PageSize),
    ) -> Result<(), MapError<M::Error>> {
        let mut cursor = Self::cursor(addr, len).map_err(|kind| MapError { kind, done: 0 })?;
        self.unmap_in(mem, self.root, ROOT, &mut cursor, &mut removed)
            .map_err(|kind| MapError { kind, done: len.saturating_sub(cursor.remaining) })
    }

    /// Gives everything mapped in the range these attributes. Large pages that
    /// reach beyond the range are split. Holes are no error.
    ///
    /// # Errors
    /// A page must be split and there is no table left.
    pub fn protect<M: TableMemory>(
        &mut self,
        mem: &mut M,
        addr: u64,
        len: u64,
        attributes: Attributes,
    ) -> Result<(), MapError<M::Error>> {
        let mut cursor = Self::cursor(addr, len).map_err(|kind| MapError { kind, done: 0 })?;
        self.protect_in(mem, self.root, ROOT, &mut cursor, attributes)
            .map_err(|kind| MapError { kind, done: len.saturating_sub(cursor.remaining) })
    }

    /// The translation of `addr`, if it is mapped.
    pub fn query<M: TableMemory>(&self, mem: &M, addr: u64) -> Option<Mapping> {
        if !F::covers(addr, addr) {
            return None;
        }
        let mut table = self.root;
        for level in (1..=ROOT).rev() {
            let entry = mem.read(table, index(addr, level));
            if !F::is_present(entry) {
                return None;
            }
            if F::is_leaf(entry, level) {
                let size = PageSize::at_level(level)?;
                let mapping = mapping::<F>(entry, size);
                return Some(Mapping {
                    hpa: mapping.hpa.wrapping_add(addr & size.bytes().wrapping_sub(1)),
                    ..mapping
                });
            }
            table = F::next(entry);
        }
        None
    }

    /// Gives slot `slot` (0 to 511) of the root a table that stays for
    /// good, empty or not, so that other trees can [share](Mapper::share_slot)
    /// what will ever be mapped there.
    ///
    /// # Errors
    /// There is no table left, or the slot is shared from another tree.
    pub fn reserve_slot<M: TableMemory>(
        &mut self,
        mem: &mut M,
        slot: usize,
    ) -> Result<(), MapErrorKind<M::Error>> {
        let entry = Self::slot(mem, self.root, slot)?;
        if entry & SHARED != 0 {
            return Err(MapErrorKind::SharedSlot);
        }
        let entry = if F::is_present(entry) {
            entry
        } else {
            F::table(mem.alloc_table().map_err(MapErrorKind::NoTable)?)
        };
        mem.write(self.root, slot, entry | RESERVED);
        Ok(())
    }

    /// Makes slot `slot` of the root show what the tree at `owner` has there,
    /// now and later. The slot of the owner must be
    /// [reserved](Mapper::reserve_slot). This mapper will not edit it.
    ///
    /// # Errors
    /// The slot is in use here, or not reserved there.
    pub fn share_slot<M: TableMemory>(
        &mut self,
        mem: &mut M,
        slot: usize,
        owner: &Self,
    ) -> Result<(), MapErrorKind<M::Error>> {
        let theirs = Self::slot(mem, owner.root, slot)?;
        if F::is_present(Self::slot(mem, self.root, slot)?) || theirs & RESERVED == 0 {
            return Err(MapErrorKind::SharedSlot);
        }
        mem.write(self.root, slot, theirs & !RESERVED | SHARED);
        Ok(())
    }

    /// Takes the tree apart: calls `removed` with each page, frees every table
    /// and the root. Tables that are shared from other trees are left alone.
    pub fn free_all<M: TableMemory>(
        self,
        mem: &mut M,
        mut removed: impl FnMut(HostPhysAddr, PageSize),
    ) {
        Self::free_in(mem, self.root, ROOT, 0..ENTRIES, &mut removed);
        mem.free_table(self.root);
    }

    /// Frees every table and the root, but for those that are shared from other trees. The pages
    /// are somebody else's. The tree must not be used any more.
    pub fn free_tables<M: TableMemory>(&self, mem: &mut M) {
        Self::from_root(self.root, self.max_leaf).free_all(mem, |_, _| ());
    }

    /// Checks a range and makes a cursor at its start.
    fn cursor<E>(addr: u64, len: u64) -> Result<Cursor, MapErrorKind<E>> {
        if !(addr | len).is_multiple_of(PAGE_SIZE) {
            return Err(MapErrorKind::Misaligned);
        }
        if let Some(beyond_first) = len.checked_sub(1)
            && addr.checked_add(beyond_first).is_none_or(|last| !F::covers(addr, last))
        {
            return Err(MapErrorKind::OutOfRange);
        }
        Ok(Cursor { addr, remaining: len })
    }

    fn slot<M: TableMemory>(
        mem: &M,
        root: HostPhysAddr,
        slot: usize,
    ) -> Result<u64, MapErrorKind<M::Error>> {
        if slot < ENTRIES { Ok(mem.read(root, slot)) } else { Err(MapErrorKind::OutOfRange) }
    }

    fn map_in<M: TableMemory>(
        &self,
        mem: &mut M,
        table: HostPhysAddr,
        level: u32,
        cursor: &mut Cursor,
        offset: u64,
        attributes: Attributes,
    ) -> Result<(), MapErrorKind<M::Error>> {
        while cursor.remaining != 0 {
            let slot = index(cursor.addr, level);
            let entry = mem.read(table, slot);
            let present = F::is_present(entry);
            if present && entry & SHARED != 0 && level == ROOT {
                return Err(MapErrorKind::SharedSlot);
            }
            if present && F::is_leaf(entry, level) {
                return Err(MapErrorKind::AlreadyMapped);
            }
            let hpa = cursor.addr.wrapping_add(offset);
            match PageSize::at_level(level) {
                Some(size)
                    if !present
                        && size <= self.max_leaf
                        && (cursor.addr | hpa).is_multiple_of(size.bytes())
                        && cursor.remaining >= size.bytes() =>
                {
                    mem.write(table, slot, F::leaf(HostPhysAddr::new(hpa), size, attributes));
                    cursor.advance(size.bytes());
                }
                _ => {
                    let next = if present {
                        F::next(entry)
                    } else {
                        mem.alloc_table().map_err(MapErrorKind::NoTable)?
                    };
                    let result =
                        self.map_in(mem, next, level.wrapping_sub(1), cursor, offset, attributes);
                    // A new table is linked when it is filled: one that is freed again was
                    // never in reach of a CPU.
                    if !present && result.is_err() && is_empty(mem, next) {
                        mem.free_table(next);
                    } else if !present {
                        mem.write(table, slot, F::table(next));
                    }
                    result?;
                }
            }
            if cursor.leaves(level) {
                break;
            }
        }
        Ok(())
    }

    fn unmap_in<M: TableMemory>(
        &self,
        mem: &mut M,
        table: HostPhysAddr,
        level: u32,
        cursor: &mut Cursor,
        removed: &mut impl FnMut(HostPhysAddr, PageSize),
    ) -> Result<(), MapErrorKind<M::Error>> {
        while cursor.remaining != 0 {
            let slot = index(cursor.addr, level);
            let entry = mem.read(table, slot);
            let part = left_in(cursor.addr, level).min(cursor.remaining);
            if !F::is_present(entry) {
                cursor.advance(part);
            } else if entry & SHARED != 0 && level == ROOT {
                return Err(MapErrorKind::SharedSlot);
            } else if F::is_leaf(entry, level) && part == span(level) {
                mem.write(table, slot, 0);
                cursor.advance(part);
                if let Some(size) = PageSize::at_level(level) {
                    removed(F::page(entry, size), size);
                }
            } else {
                let next = Self::next_or_split(mem, table, slot, level)?;
                self.unmap_in(mem, next, level.wrapping_sub(1), cursor, removed)?;
                let pinned = level == ROOT && entry & RESERVED != 0;
                if !pinned && is_empty(mem, next) {
                    mem.write(table, slot, 0);
                    mem.free_table(next);
                }
            }
            if cursor.leaves(level) {
                break;
            }
        }
        Ok(())
    }

    fn protect_in<M: TableMemory>(
        &self,
        mem: &mut M,
        table: HostPhysAddr,
        level: u32,
        cursor: &mut Cursor,
        attributes: Attributes,
    ) -> Result<(), MapErrorKind<M::Error>> {
        while cursor.remaining != 0 {
            let slot = index(cursor.addr, level);
            let entry = mem.read(table, slot);
            let part = left_in(cursor.addr, level).min(cursor.remaining);
            let leaf = PageSize::at_level(level).filter(|_| F::is_leaf(entry, level));
            if !F::is_present(entry) {
                cursor.advance(part);
            } else if entry & SHARED != 0 && level == ROOT {
                return Err(MapErrorKind::SharedSlot);
            } else if let Some(size) = leaf {
                let old = mapping::<F>(entry, size);
                let new = F::normalize(attributes);
                if !new.permissions.contains(Permissions::READ) {
                    return Err(MapErrorKind::Unreadable);
                }
                if new == old.attributes {
                    cursor.advance(part);
                } else if part == span(level) {
                    let kept = entry & F::ACCESSED_DIRTY;
                    mem.write(table, slot, F::leaf(old.hpa, size, new) | kept);
                    cursor.advance(part);
                } else {
                    let next = Self::next_or_split(mem, table, slot, level)?;
                    self.protect_in(mem, next, level.wrapping_sub(1), cursor, attributes)?;
                }
            } else {
                self.protect_in(mem, F::next(entry), level.wrapping_sub(1), cursor, attributes)?;
            }
            if cursor.leaves(level) {
                break;
            }
        }
        Ok(())
    }

    /// The table below a present entry; a large page is first replaced by a
    /// table of the next smaller pages, which translates alike.
    fn next_or_split<M: TableMemory>(
        mem: &mut M,
        table: HostPhysAddr,
        slot: usize,
        level: u32,
    ) -> Result<HostPhysAddr, MapErrorKind<M::Error>> {
        let entry = mem.read(table, slot);
        let (Some(size), Some(smaller)) =
            (PageSize::at_level(level), PageSize::at_level(level.wrapping_sub(1)))
        else {
            return Ok(F::next(entry));
        };
        if !F::is_leaf(entry, level) {
            return Ok(F::next(entry));
        }
        let next = mem.alloc_table().map_err(MapErrorKind::NoTable)?;
        let old = mapping::<F>(entry, size);
        let mut hpa = old.hpa;
        for part in 0..ENTRIES {
            let leaf = F::leaf(hpa, smaller, old.attributes) | entry & F::ACCESSED_DIRTY;
            mem.write(next, part, leaf);
            hpa = hpa.wrapping_add(smaller.bytes());
        }
        mem.write(table, slot, F::table(next));
        Ok(next)
    }

    fn free_in<M: TableMemory>(
        mem: &mut M,
        table: HostPhysAddr,
        level: u32,
        slots: Range<usize>,
        removed: &mut impl FnMut(HostPhysAddr, PageSize),
    ) {
        for slot in slots {
            let entry = mem.read(table, slot);
            if !F::is_present(entry) {
                continue;
            }
            mem.write(table, slot, 0);
            if level == ROOT && entry & SHARED != 0 {
                continue;
            }
            if F::is_leaf(entry, level) {
                if let Some(size) = PageSize::at_level(level) {
                    removed(F::page(entry, size), size);
                }
            } else {
                let next = F::next(entry);
                Self::free_in(mem, next, level.wrapping_sub(1), 0..ENTRIES, removed);
                mem.free_table(next);
            }
        }
    }
}

/// The mapping that a leaf makes.
fn mapping<F: Format>(entry: u64, size: PageSize) -> Mapping {
    Mapping { hpa: F::page(entry, size), size, attributes: F::attributes(entry, size) }
}

fn is_empty<M: TableMemory>(mem: &M, table: HostPhysAddr) -> bool {
    (0..ENTRIES).all(|slot| mem.read(table, slot) == 0)
}
