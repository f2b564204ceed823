//! Mapping single pages in two steps: an empty entry is found (and the tables above it are
//! made) first; then one store maps the page, which can't fail.
//!
//! So what has to be right before anybody sees the page can be put right in between, and
//! nothing that a CPU may have seen has to be taken back.

use super::mapper::{ROOT, SHARED, index};
use super::{Attributes, Format, MapErrorKind, Mapper, PageSize, TableMemory};
use core::marker::PhantomData;
use x86defs::HostPhysAddr;

/// An empty entry for one page, in the tree of the mapper that found it.
#[derive(Debug)]
#[must_use]
pub struct Vacancy<F: Format> {
    table: HostPhysAddr,
    slot: usize,
    size: PageSize,
    format: PhantomData<F>,
}

/// The part of a tree that stands for a block of 2 MiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Detached {
    /// Nothing.
    Nothing,
    /// One page.
    Page,
    /// A table of small pages.
    Table(HostPhysAddr),
}

impl<F: Format> Mapper<F> {
    /// Whether a page of this size could stand at `addr` in this tree.
    #[inline(always)]
    fn could_hold(&self, addr: u64, size: PageSize) -> bool {
        size <= self.max_leaf() && addr.is_multiple_of(size.bytes()) && F::covers(addr, addr)
    }

    /// The empty entry for a page at `addr`. `None` where something is mapped in its range,
    /// where a table above it is missing, or where no such page can stand.
    #[inline(always)]
    pub fn vacancy<M: TableMemory>(
        &self,
        mem: &M,
        addr: u64,
        size: PageSize,
    ) -> Option<Vacancy<F>> {
        let mut table = self.root();
        let mut level = ROOT;
        while level > size.level() {
            let entry = mem.read(table, index(addr, level));
            let shared = level == ROOT && entry & SHARED != 0;
            if !F::is_present(entry) || F::is_leaf(entry, level) || shared {
                return None;
            }
            table = F::next(entry);
            level = level.wrapping_sub(1);
        }
        let slot = index(addr, level);
        let empty = !F::is_present(mem.read(table, slot));
        (empty && self.could_hold(addr, size)).then_some(Vacancy {
            table,
            slot,
            size,
            format: PhantomData,
        })
    }

    /// Finds the empty entry as [`vacancy`](Self::vacancy) does, but makes the tables that are
    /// missing. They are linked as one, when the last of them is there: none is ever taken back.
    ///
    /// # Errors
    /// There is no table left, something is mapped in the page's range, or no such page can
    /// stand there.
    pub fn make_vacancy<M: TableMemory>(
        &mut self,
        mem: &mut M,
        addr: u64,
        size: PageSize,
    ) -> Result<Vacancy<F>, MapErrorKind<M::Error>> {
        if !self.could_hold(addr, size) {
            return Err(MapErrorKind::Misaligned);
        }
        let mut table = self.root();
        for level in (size.level().wrapping_add(1)..=ROOT).rev() {
            let slot = index(addr, level);
            let entry = mem.read(table, slot);
            if level == ROOT && F::is_present(entry) && entry & SHARED != 0 {
                return Err(MapErrorKind::SharedSlot);
            }
            if !F::is_present(entry) {
                let top = Self::chain(mem, addr, level.wrapping_sub(1), size.level())?;
                mem.write(table, slot, F::table(top));
                break;
            }
            if F::is_leaf(entry, level) {
                return Err(MapErrorKind::AlreadyMapped);
            }
            table = F::next(entry);
        }
        self.vacancy(mem, addr, size).ok_or(MapErrorKind::AlreadyMapped)
    }

    /// Maps the page at `hpa` (aligned to its size), with one store.
    /// [`Permissions::READ`](super::Permissions::READ) is among what `attributes` allow.
    #[inline(always)]
    pub fn fill<M: TableMemory>(
        &mut self,
        mem: &mut M,
        vacancy: Vacancy<F>,
        hpa: HostPhysAddr,
        attributes: Attributes,
    ) {
        let Vacancy { table, slot, size, .. } = vacancy;
        mem.write(table, slot, F::leaf(hpa, size, attributes));
    }

    /// Maps a page at `addr`, where nothing is, and makes the tables that are missing.
    ///
    /// # Errors
    /// Those of [`make_vacancy`](Self::make_vacancy).
    pub fn place<M: TableMemory>(
        &mut self,
        mem: &mut M,
        addr: u64,
        hpa: HostPhysAddr,
        size: PageSize,
        attributes: Attributes,
    ) -> Result<(), MapErrorKind<M::Error>> {
        let vacancy = self.make_vacancy(mem, addr, size)?;
        self.fill(mem, vacancy, hpa, attributes);
        Ok(())
    }

    /// The table and the entry in it for a page of this size at `addr`, if all tables above it
    /// exist and are this tree's own.
    fn entry_for<M: TableMemory>(
        &self,
        mem: &M,
        addr: u64,
        size: PageSize,
    ) -> Option<(HostPhysAddr, usize)> {
        let mut table = self.root();
        for level in (size.level().wrapping_add(1)..=ROOT).rev() {
            let entry = mem.read(table, index(addr, level));
            let shared = level == ROOT && entry & SHARED != 0;
            if !F::is_present(entry) || F::is_leaf(entry, level) || shared {
                return None;
            }
            table = F::next(entry);
        }
        Some((table, index(addr, size.level())))
    }

    /// Takes a page away; the tables above it stay, so that several CPUs may do this at once
    /// to pages of their own. `false` if no page of this size is mapped at `addr`.
    pub fn vacate<M: TableMemory>(&mut self, mem: &mut M, addr: u64, size: PageSize) -> bool {
        let Some((table, slot)) = self.entry_for(mem, addr, size) else { return false };
        let entry = mem.read(table, slot);
        let found = F::is_present(entry) && F::is_leaf(entry, size.level());
        if found {
            mem.write(table, slot, 0);
        }
        found
    }

    /// The part of the tree that stands for the 2 MiB around `addr`.
    pub fn attached<M: TableMemory>(&self, mem: &M, addr: u64) -> Detached {
        let found = self.entry_for(mem, addr, PageSize::Size2M);
        let entry = found.map_or(0, |(table, slot)| mem.read(table, slot));
        match entry {
            entry if !F::is_present(entry) => Detached::Nothing,
            entry if F::is_leaf(entry, PageSize::Size2M.level()) => Detached::Page,
            entry => Detached::Table(F::next(entry)),
        }
    }

    /// Takes away what stands for the 2 MiB around `addr`, with one store. CPUs may still have it
    /// cached, and walk a table of it: whoever gets it here frees it when they can't any more.
    pub fn detach<M: TableMemory>(&mut self, mem: &mut M, addr: u64) -> Detached {
        let attached = self.attached(mem, addr);
        if attached != Detached::Nothing
            && let Some((table, slot)) = self.entry_for(mem, addr, PageSize::Size2M)
        {
            mem.write(table, slot, 0);
        }
        attached
    }

    /// Tables for `addr` from `level` down to `last`, each but the last with the next one in it.
    fn chain<M: TableMemory>(
        mem: &mut M,
        addr: u64,
        level: u32,
        last: u32,
    ) -> Result<HostPhysAddr, MapErrorKind<M::Error>> {
        let table = mem.alloc_table().map_err(MapErrorKind::NoTable)?;
        if level > last {
            match Self::chain(mem, addr, level.wrapping_sub(1), last) {
                Ok(next) => mem.write(table, index(addr, level), F::table(next)),
                Err(error) => {
                    mem.free_table(table);
                    return Err(error);
                }
            }
        }
        Ok(table)
    }
}
