//! Frames of the hypervisor's own: page tables, VMCBs, permission maps.
//!
//! They come from blocks of 2 MiB, each mapped at its place in
//! [`layout::DIRECT`] when the pool takes it, so that
//! nothing but the hypervisor's own memory can be reached there.
//!
//! A guest's page tables are set aside when it is made, for the worst case: the pool takes
//! whole blocks while there are some, and never of what guests were promised as RAM. A big guest
//! takes hundreds of them: a few at a time ([`Growing`]), so that nobody waits for the pool
//! for long.

use super::{FRAMES, direct, layout};
use locks::{Mutex, Rank};
use memory::frames::{ORDER_2M, Owner, Promise, Source};
use memory::stage2::{Attributes, HostTable, Mapper, PageSize, Permissions, TableMemory};
use x86defs::HostPhysAddr;
use x86defs::addr::{Hfn, PAGE_SIZE};

/// Frames in a block.
const BLOCK_FRAMES: u64 = 512;
/// Bytes in a page.
const PAGE_BYTES: usize = 4096;
/// Blocks at the most: 2 GiB of page tables.
const BLOCKS: usize = 1024;
/// Blocks that are taken at a time for a guest's page tables: some ten microseconds.
const BLOCKS_AT_A_TIME: usize = 4;
/// The pool grows when it has fewer frames than this left: mapping a new block
/// may itself take two tables.
const RESERVE: u64 = 4;

struct Block {
    first: Hfn,
    /// A set bit is a free frame.
    free: [u64; 8],
    count: u64,
}

struct Pool {
    blocks: [Option<Block>; BLOCKS],
    free: u64,
    /// Of these: set aside.
    promised: u64,
    /// The shared half's tables, once they are in use.
    mapper: Option<Mapper<HostTable>>,
    /// It was said that the pool can't grow: guests may make it try again and again.
    told: bool,
}

static POOL: Mutex<Pool> = Mutex::new(
    Rank::Pool,
    Pool { blocks: [const { None }; BLOCKS], free: 0, promised: 0, mapper: None, told: false },
);

impl Pool {
    fn add(&mut self, first: Hfn) -> bool {
        let Some(slot) = self.blocks.iter_mut().find(|b| b.is_none()) else { return false };
        *slot = Some(Block { first, free: [u64::MAX; 8], count: BLOCK_FRAMES });
        self.free += BLOCK_FRAMES;
        true
    }

    fn take(&mut self) -> Option<Hfn> {
        let block = self.blocks.iter_mut().flatten().find(|b| b.count != 0)?;
        let (word, bits) = block.free.iter_mut().enumerate().find(|(_, bits)| **bits != 0)?;
        let bit = bits.trailing_zeros();
        *bits &= *bits - 1;
        block.count -= 1;
        self.free -= 1;
        block.first.checked_add(word as u64 * 64 + u64::from(bit))
    }

    fn give(&mut self, frame: Hfn) -> bool {
        let number = frame.number();
        for block in self.blocks.iter_mut().flatten() {
            let Some(offset) = number.checked_sub(block.first.number()) else { continue };
            if offset < BLOCK_FRAMES {
                let (word, bit) = ((offset / 64) as usize, 1u64 << (offset % 64));
                if block.free[word] & bit != 0 {
                    return false;
                }
                block.free[word] |= bit;
                block.count += 1;
                self.free += 1;
                return true;
            }
        }
        false
    }

    /// Takes back a frame; says so where it was not in use.
    fn take_back(&mut self, frame: HostPhysAddr) -> bool {
        let given = self.give(frame.page());
        if !given {
            log::error!("frame {frame} was given back to the pool, but is not in use");
        }
        given
    }

    /// Takes a block that no guest was promised. `promised` frames were promised to the caller
    /// for that, and are not any more. `false` if there is no block.
    fn grow(&mut self, promised: Promise) -> bool {
        let owner = Owner::HYPERVISOR;
        // Under one lock: nobody else takes them in between.
        let taken = FRAMES.lock().as_mut().and_then(|frames| {
            frames.withdraw(promised);
            self.mapper.as_ref()?;
            frames.allocate(ORDER_2M, owner, Source::Spare)
        });
        let Some(first) = taken else { return false };
        let Some(mut mapper) = self.mapper.take() else { return false };
        let mapped = mapper.map(
            &mut Inner(self),
            direct(first.base()),
            first.base(),
            BLOCK_FRAMES * PAGE_SIZE,
            Attributes::ram(Permissions::RW | Permissions::GLOBAL),
        );
        self.mapper = Some(mapper);
        let added = mapped.is_ok() && self.add(first);
        if !added {
            if !core::mem::replace(&mut self.told, true) {
                log::error!("the pool of the hypervisor's frames can't grow");
            }
            super::free_frames(first, ORDER_2M, owner);
        }
        added
    }

    /// Frames that are free and not set aside.
    const fn spare(&self) -> u64 {
        self.free.saturating_sub(self.promised)
    }

    /// Frames of the blocks that it takes so that `frames` more can be set aside. Tables for the
    /// growing itself stay beside them.
    const fn missing(&self, frames: u64) -> u64 {
        (frames + RESERVE).saturating_sub(self.spare()).next_multiple_of(BLOCK_FRAMES)
    }

    fn allocate(&mut self) -> Option<HostPhysAddr> {
        if self.spare() <= RESERVE {
            // If the pool can't grow, a frame may be left all the same.
            let _ = self.grow(Promise::NONE);
        }
        let base = (self.spare() != 0).then(|| self.take())??.base();
        zero(base);
        Some(base)
    }
}

fn zero(base: HostPhysAddr) {
    let page = direct(base) as *mut u8;
    // SAFETY: the frame belongs to the pool, is mapped at its direct address,
    // and nobody else has it.
    unsafe { page.write_bytes(0, PAGE_BYTES) };
}

/// Gives the pool its first block, which must be mapped at its direct address
/// in the tables in force.
pub(super) fn start(first: Hfn) {
    POOL.lock().add(first);
}

/// From now on the pool grows by itself, through the tables at `root`.
pub(super) fn let_grow(root: HostPhysAddr) {
    POOL.lock().mapper = Some(Mapper::from_root(root, PageSize::Size2M));
}

/// A zeroed frame of the hypervisor's own, mapped at its direct address.
#[must_use]
pub fn allocate() -> Option<HostPhysAddr> {
    POOL.lock().allocate()
}

/// Frames that are set aside for somebody's page tables, until they are used or this is dropped.
#[derive(Debug, Default)]
pub(super) struct SetAside(u64);

impl SetAside {
    /// One of them, zeroed, or one that is to spare when they are used up.
    fn take(&mut self) -> Option<HostPhysAddr> {
        let mut pool = POOL.lock();
        if self.0 == 0 {
            return pool.allocate();
        }
        self.0 -= 1;
        pool.promised -= 1;
        let base = pool.take()?.base();
        drop(pool);
        zero(base);
        Some(base)
    }

    /// Sets aside again what was taken.
    fn put_back(&mut self, frame: HostPhysAddr) {
        let pool = &mut *POOL.lock();
        if pool.take_back(frame) {
            self.0 += 1;
            pool.promised += 1;
        }
    }
}

impl Drop for SetAside {
    fn drop(&mut self) {
        POOL.lock().promised -= self.0;
    }
}

/// Frames that are being set aside, until they are as many as are wanted.
#[derive(Debug)]
pub(super) struct Growing {
    aside: SetAside,
    wanted: u64,
    /// Frames of the machine, of the blocks that the pool is still to take.
    to_come: Promise,
}

impl Growing {
    /// Begins to set `frames` aside. `None` if the machine has not so many to spare that no
    /// guest was promised.
    pub(super) fn new(frames: u64) -> Option<Self> {
        let mut pool = POOL.lock();
        let to_come = pool.missing(frames);
        // Nothing is taken for what can't be had in the end: others find these gone.
        let to_come = FRAMES.lock().as_mut()?.promise(to_come).ok()?;
        let mut growing = Self { aside: SetAside::default(), wanted: frames, to_come };
        growing.claim(&mut pool);
        Some(growing)
    }

    /// Sets aside what the pool has.
    fn claim(&mut self, pool: &mut Pool) {
        let more = pool.spare().saturating_sub(RESERVE).min(self.wanted - self.aside.0);
        pool.promised += more;
        self.aside.0 += more;
    }

    /// Lets the pool take a few blocks. Returns whether more are to come.
    ///
    /// # Errors
    /// There is no block of 2 MiB.
    pub(super) fn step(&mut self) -> Result<bool, NoFrame> {
        let mut pool = POOL.lock();
        for _ in 0..BLOCKS_AT_A_TIME {
            if self.aside.0 == self.wanted {
                return Ok(false);
            }
            if !pool.grow(self.to_come.split(BLOCK_FRAMES)) {
                return Err(NoFrame);
            }
            self.claim(&mut pool);
        }
        Ok(self.aside.0 != self.wanted)
    }

    /// The frames that are set aside by now.
    pub(super) fn finish(mut self) -> SetAside {
        core::mem::take(&mut self.aside)
    }
}

impl Drop for Growing {
    fn drop(&mut self) {
        if let Some(frames) = FRAMES.lock().as_mut() {
            frames.withdraw(core::mem::take(&mut self.to_come));
        }
    }
}

/// Frames that the machine has to have to spare so that `frames` can be set aside: none, or
/// whole blocks.
#[must_use]
pub(super) fn missing(frames: u64) -> u64 {
    POOL.lock().missing(frames)
}

/// Takes back a frame from [`allocate`].
pub fn free(frame: HostPhysAddr) {
    POOL.lock().take_back(frame);
}

/// Frames of the pool that are in use.
#[must_use]
pub fn used() -> u64 {
    let pool = POOL.lock();
    let all = pool.blocks.iter().flatten().count() as u64 * BLOCK_FRAMES;
    all - pool.free
}

fn entry(table: HostPhysAddr, index: usize) -> *mut u64 {
    (direct(table) as *mut u64).wrapping_add(index & 511)
}

fn read(table: HostPhysAddr, index: usize) -> u64 {
    // SAFETY: tables are frames of the pool, mapped at their direct address;
    // the index was cut to the table. The CPU may set bits at any time.
    unsafe { entry(table, index).read_volatile() }
}

fn write(table: HostPhysAddr, index: usize, value: u64) {
    // SAFETY: as for `read`; an aligned store of eight bytes is seen whole.
    unsafe { entry(table, index).write_volatile(value) };
}

/// No frame was left for a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoFrame;

/// Page tables that live in the pool.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tables;

impl TableMemory for Tables {
    type Error = NoFrame;

    fn alloc_table(&mut self) -> Result<HostPhysAddr, NoFrame> {
        allocate().ok_or(NoFrame)
    }

    fn free_table(&mut self, table: HostPhysAddr) {
        free(table);
    }

    fn read(&self, table: HostPhysAddr, index: usize) -> u64 {
        read(table, index)
    }

    fn write(&mut self, table: HostPhysAddr, index: usize, value: u64) {
        write(table, index, value);
    }
}

/// The same, counted, of frames that were set aside: the tables of one guest.
#[derive(Debug)]
pub(super) struct CountedTables {
    used: u64,
    aside: SetAside,
}

impl CountedTables {
    /// Of the frames that are set `aside`.
    pub(super) const fn new(aside: SetAside) -> Self {
        Self { used: 0, aside }
    }

    /// Frames that are in use.
    pub(super) const fn frames(&self) -> u64 {
        self.used
    }
}

impl TableMemory for CountedTables {
    type Error = NoFrame;

    fn alloc_table(&mut self) -> Result<HostPhysAddr, NoFrame> {
        let table = self.aside.take().ok_or(NoFrame)?;
        self.used += 1;
        Ok(table)
    }

    fn free_table(&mut self, table: HostPhysAddr) {
        self.aside.put_back(table);
        self.used = self.used.saturating_sub(1);
    }

    fn read(&self, table: HostPhysAddr, index: usize) -> u64 {
        read(table, index)
    }

    fn write(&mut self, table: HostPhysAddr, index: usize, value: u64) {
        write(table, index, value);
    }
}

/// The same, while the pool itself is at work.
struct Inner<'a>(&'a mut Pool);

impl TableMemory for Inner<'_> {
    type Error = NoFrame;

    fn alloc_table(&mut self) -> Result<HostPhysAddr, NoFrame> {
        let base = self.0.take().ok_or(NoFrame)?.base();
        zero(base);
        Ok(base)
    }

    fn free_table(&mut self, table: HostPhysAddr) {
        self.0.give(table.page());
    }

    fn read(&self, table: HostPhysAddr, index: usize) -> u64 {
        read(table, index)
    }

    fn write(&mut self, table: HostPhysAddr, index: usize, value: u64) {
        write(table, index, value);
    }
}

/// Slots of the root table that the pool's frames may lie in, for a machine
/// whose memory ends at `end`.
pub(super) fn direct_slots(end: HostPhysAddr) -> impl Iterator<Item = usize> {
    let count = end.as_u64().div_ceil(layout::SLOT_SIZE).clamp(1, layout::DIRECT_SLOTS);
    let first = layout::slot(layout::DIRECT);
    (first..).zip(0..count).map(|(slot, _)| slot)
}
