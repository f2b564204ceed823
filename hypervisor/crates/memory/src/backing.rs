//! The truth about a guest's memory: which frames hold its bytes.
//!
//! For each 2 MiB there is one word: nothing, a block, or a table of frames. Page tables, the
//! nested ones and those of the hypervisor's window, only repeat a part of it.

use crate::stage2::{PageSize, TableMemory};
use alloc::vec::Vec;
use x86defs::HostPhysAddr;
use x86defs::addr::{Hfn, PAGE_SIZE};

/// Bytes that a word stands for.
pub(crate) const BLOCK: u64 = PageSize::Size2M.bytes();
/// In a word: it names a block; or, in a table, a frame.
const MEMORY: u64 = 1;
/// In a word: it names a table.
const TABLE: u64 = 2;
const ADDRESS: u64 = !(PAGE_SIZE - 1);

/// The frames behind 2 MiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Held {
    /// None.
    Nothing,
    /// A block.
    Block(HostPhysAddr),
    /// Single frames, which this table names.
    Table(HostPhysAddr),
}

/// See the [module](self).
#[derive(Debug)]
pub struct Backing {
    words: Vec<u64>,
}

impl Backing {
    /// Room for `bytes` bytes, without a frame. `None`: the heap has no room for the words.
    #[must_use]
    pub fn new(bytes: u64) -> Option<Self> {
        let count = usize::try_from(bytes.div_ceil(BLOCK)).ok()?;
        let mut words = Vec::new();
        words.try_reserve_exact(count).ok()?;
        words.resize(count, 0);
        Some(Self { words })
    }

    /// Bytes of the heap that the words of so many bytes take.
    #[must_use]
    pub const fn heap_bytes(bytes: u64) -> u64 {
        bytes.div_ceil(BLOCK).wrapping_mul(8)
    }

    /// Bytes that it has room for.
    pub(crate) const fn bytes(&self) -> u64 {
        (self.words.len() as u64).wrapping_mul(BLOCK)
    }

    #[inline(always)]
    fn word(&mut self, place: u64) -> Option<&mut u64> {
        self.words.get_mut(usize::try_from(place / BLOCK).ok()?)
    }

    /// The frames behind the 2 MiB around `place`.
    #[inline(always)]
    pub(crate) fn held(&self, place: u64) -> Held {
        let word = usize::try_from(place / BLOCK).ok().and_then(|n| self.words.get(n));
        let word = word.copied().unwrap_or(0);
        let address = HostPhysAddr::new(word & ADDRESS);
        if word & MEMORY != 0 {
            Held::Block(address)
        } else if word & TABLE != 0 {
            Held::Table(address)
        } else {
            Held::Nothing
        }
    }

    /// The frame of `table` that holds the page at `place`.
    pub(crate) fn frame<M: TableMemory>(
        mem: &M,
        table: HostPhysAddr,
        place: u64,
    ) -> Option<HostPhysAddr> {
        let word = mem.read(table, index(place));
        (word & MEMORY != 0).then_some(HostPhysAddr::new(word & ADDRESS))
    }

    /// Puts a block behind the 2 MiB around `place`, where nothing is. `false`: something is.
    #[inline(always)]
    pub(crate) fn put_block(&mut self, place: u64, block: HostPhysAddr) -> bool {
        self.put(place, block.as_u64() | MEMORY)
    }

    /// Puts `table`, which names no frames yet, behind the 2 MiB around `place`, where nothing
    /// is. `false`: something is.
    pub(crate) fn put_table(&mut self, place: u64, table: HostPhysAddr) -> bool {
        self.put(place, table.as_u64() | TABLE)
    }

    #[inline(always)]
    fn put(&mut self, place: u64, new: u64) -> bool {
        let vacant = self.word(place).filter(|word| **word == 0);
        vacant.map(|word| *word = new).is_some()
    }

    /// Puts a frame behind the page at `place`, in `table`, where none is. `false`: one is.
    pub(crate) fn put_frame<M: TableMemory>(
        mem: &mut M,
        table: HostPhysAddr,
        place: u64,
        frame: HostPhysAddr,
    ) -> bool {
        let vacant = mem.read(table, index(place)) == 0;
        if vacant {
            mem.write(table, index(place), frame.as_u64() | MEMORY);
        }
        vacant
    }

    /// Takes away what is behind the 2 MiB around `place`.
    pub(crate) fn take(&mut self, place: u64) -> Held {
        let held = self.held(place);
        if let Some(word) = self.word(place) {
            *word = 0;
        }
        held
    }

    /// The frames that `table` names.
    pub(crate) fn frames<M: TableMemory>(
        mem: &M,
        table: HostPhysAddr,
    ) -> impl Iterator<Item = Hfn> {
        let places = (0..BLOCK).step_by(4096);
        places.filter_map(move |place| Self::frame(mem, table, place)).map(HostPhysAddr::page)
    }
}

/// The entry of a table for the page at `place`.
const fn index(place: u64) -> usize {
    (place / PAGE_SIZE) as usize % 512
}
