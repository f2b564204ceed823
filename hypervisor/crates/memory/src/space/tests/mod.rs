//! Tests of a guest's memory, on a machine whose frames are words.

mod books;
mod cpus;

use super::*;
use crate::Window;
use crate::backing::Backing;
use crate::frames::{Frame, Promise, Source};
use crate::holdings::Holdings;
use crate::slots::{Content, Region, Slot, SlotError};
use crate::stage2::{Attributes, HostTable, Mapper, Mapping, NestedFormat, NestedTables, Npt};
use std::boxed::Box;
use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::vec::Vec;

const WINDOW: Window = Window::new(0xffff_8000_0000_0000);
const MIB: u64 = 1 << 20;
const BLOCK_FRAMES: u64 = 512;
const ENTRIES: u64 = 512;
/// Frames begin here; tables lie below.
const FRAMES: u64 = 2048;
const GUEST: Owner = Owner::GUESTS;
/// Contents that an earlier guest left in a frame.
const LEFT: u64 = 0x5ec2e7;
/// An entry of a table that was freed.
const FREED: u64 = 0xdead << 40 | 1;

/// Tables that several threads may walk, as CPUs do. Some can't be had.
#[derive(Clone)]
pub(super) struct Tables(Arc<TablesInside>);

struct TablesInside {
    words: Vec<AtomicU64>,
    /// Tables that are to be had.
    free: Mutex<Vec<u64>>,
}

impl Tables {
    fn new(tables: u64) -> Self {
        let words = (0..tables * ENTRIES).map(|_| AtomicU64::new(FREED)).collect();
        Self(Arc::new(TablesInside { words, free: Mutex::new((0..tables).rev().collect()) }))
    }

    fn word(&self, table: HostPhysAddr, index: usize) -> &AtomicU64 {
        &self.0.words[usize::try_from(table.as_u64() / 8).unwrap() + index]
    }

    fn fill(&self, table: HostPhysAddr, value: u64) {
        (0..512).for_each(|index| self.word(table, index).store(value, Ordering::Release));
    }

    fn free(&self) -> usize {
        self.0.free.lock().unwrap().len()
    }
}

impl TableMemory for Tables {
    type Error = ();

    fn alloc_table(&mut self) -> Result<HostPhysAddr, ()> {
        let number = self.0.free.lock().unwrap().pop().ok_or(())?;
        let table = HostPhysAddr::new(number * 4096);
        self.fill(table, 0);
        Ok(table)
    }

    fn free_table(&mut self, table: HostPhysAddr) {
        self.fill(table, FREED);
        let mut free = self.0.free.lock().unwrap();
        assert!(!free.contains(&(table.as_u64() / 4096)), "a table was freed twice");
        // It is used again at once.
        free.push(table.as_u64() / 4096);
    }

    fn read(&self, table: HostPhysAddr, index: usize) -> u64 {
        self.word(table, index).load(Ordering::Acquire)
    }

    fn write(&mut self, table: HostPhysAddr, index: usize, entry: u64) {
        self.word(table, index).store(entry, Ordering::Release);
    }
}

/// A guest on a machine that has some frames more than it was promised.
pub(super) struct Guest {
    shared: Shared,
    inside: Mutex<Inside<Tables>>,
    frames: Mutex<FrameAllocator<'static>>,
    /// A word of each frame of the machine.
    contents: Vec<AtomicU64>,
    /// Done while a frame is zeroed: returns how many bytes are left.
    zeroing: Box<dyn Fn() -> usize + Send + Sync>,
    /// CPUs that were kicked.
    kicked: AtomicU64,
    promised: u64,
}

impl Guest {
    /// A guest with RAM from 0 to `ram`, on a machine of `machine` frames.
    fn new(ram: u64, promised: u64, machine: u64, tables: u64) -> Self {
        Self::with_cpus(ram, promised, machine, tables, 0)
    }

    fn with_cpus(ram: u64, promised: u64, machine: u64, tables: u64, cpus: usize) -> Self {
        let mut tables = Tables::new(tables);
        let window = Mapper::new(&mut tables, PageSize::Size2M).unwrap();
        let nested = NestedTables::new(&mut tables, NestedFormat::Npt).unwrap();
        let table = (0..FRAMES + machine).map(|_| Frame::ABSENT).collect::<Vec<_>>().leak();
        let mut frames = FrameAllocator::new(table);
        frames.add(Hfn::new(FRAMES), machine);
        let mut holdings = Holdings::new(GUEST);
        holdings.promise(&mut frames, promised).unwrap();
        let backing = Backing::new(ram + 2 * MIB).unwrap();
        let parts = Parts { tables, window, at: WINDOW, nested, backing, holdings };
        let guest = Self {
            shared: Shared::new(cpus),
            inside: Mutex::new(Inside::new(parts)),
            frames: Mutex::new(frames),
            contents: (0..machine).map(|_| AtomicU64::new(LEFT)).collect(),
            zeroing: Box::new(|| 0),
            kicked: AtomicU64::new(0),
            promised,
        };
        change(&guest, |slots| slots.push(Slot::ram(range(0..ram)))).unwrap();
        guest
    }

    fn populate(&self, at: u64, tree: Tree) -> Result<Populated, MemoryError> {
        populate(self, gpa(at), tree, Access::Read)
    }

    /// Lays memory from `offset` of the backing, or devices, over `over`; `None` uncovers it.
    fn lay_over(&self, over: Range<u64>, content: Option<Content>) -> u64 {
        let over = range(over);
        change(self, |slots| {
            slots.retain(|slot| slot.range != over);
            slots.extend(content.map(|content| Slot { range: over.clone(), content }));
        })
        .unwrap()
    }

    fn tables(&self) -> Tables {
        self.inside.lock().unwrap().parts.tables.clone()
    }

    fn query(&self, at: u64, tree: Tree) -> Option<Mapping> {
        let inside = self.inside.lock().unwrap();
        let Parts { tables, window, nested, .. } = &inside.parts;
        match tree {
            Tree::Nested => nested.query(tables, at),
            Tree::Window => window.query(tables, WINDOW.at(gpa(at), 1).unwrap()),
        }
    }

    fn frame(&self, hpa: HostPhysAddr) -> &AtomicU64 {
        &self.contents[number_of(hpa)]
    }

    /// All frames behind the guest's memory.
    fn backed(&self) -> Vec<HostPhysAddr> {
        let inside = self.inside.lock().unwrap();
        let end = inside.parts.backing.bytes();
        let all = Region { start: 0, end, offset: 0, rights: Rights::Ram };
        let found = (0..end).step_by(4096).map(|place| inside.found(gpa(place), &all));
        let backed = found.filter_map(|found| match found {
            Found::Backed(hpa, _) => Some(hpa),
            Found::Nothing(_) => None,
        });
        backed.collect()
    }

    /// Compares the books with the machine's and with the backing, and that with what the trees
    /// show of the first `ram` bytes; `away` frames are being zeroed. Returns how many frames are the
    /// guest's.
    fn audit(&self, ram: u64, away: u64) -> u64 {
        for at in (0..ram).step_by(4096) {
            let inside = self.inside.lock().unwrap();
            let Ok(region) = inside.region(gpa(at), Access::Read) else { continue };
            let found = inside.found(gpa(at), &region);
            drop(inside);
            let truth = match found {
                Found::Backed(hpa, _) => Some(hpa),
                Found::Nothing(_) => None,
            };
            for tree in [Tree::Nested, Tree::Window] {
                if let Some(mapping) = self.query(at, tree) {
                    assert_eq!(Some(mapping.hpa), truth, "{tree:?} lies at {at:#x}");
                    assert_eq!(mapping.attributes, tree.attributes(region.rights));
                }
            }
        }
        let backed = self.backed();
        let different: BTreeSet<_> = backed.iter().collect();
        assert_eq!(different.len(), backed.len(), "a frame is at two places");
        let mut inside = self.inside.lock().unwrap();
        let frames = self.frames.lock().unwrap();
        let (populated, stocked) = (inside.holdings().populated(), inside.holdings().stocked());
        assert_eq!(backed.len() as u64, populated);
        let all = FRAMES..FRAMES + self.contents.len() as u64;
        let owned = all.clone().filter(|n| frames.owner(Hfn::new(*n)) == GUEST).count() as u64;
        assert_eq!(owned, populated + stocked + away, "frames are lost");
        assert_eq!(frames.free_frames(), self.contents.len() as u64 - owned);
        assert_eq!(frames.promised_frames() + owned, self.promised, "a promise is wrong");
        populated
    }

    /// The guest is over: everything that it had is as before.
    fn end(self, tables: u64) {
        let mut inside = self.inside.into_inner().unwrap();
        let mut frames = self.frames.into_inner().unwrap();
        inside.take_apart(|first, order| frames.free(first, order, GUEST).unwrap());
        inside.holdings().withdraw(&mut frames);
        assert_eq!(frames.free_frames(), self.contents.len() as u64);
        assert_eq!(frames.promised_frames(), 0);
        assert_eq!(inside.parts.tables.free() as u64, tables, "tables are lost");
    }
}

impl Space for Guest {
    type Tables = Tables;
    type Guard<'a> = MutexGuard<'a, Inside<Tables>>;

    fn shared(&self) -> &Shared {
        &self.shared
    }

    fn lock(&self) -> MutexGuard<'_, Inside<Tables>> {
        self.inside.lock().unwrap()
    }

    fn try_lock(&self) -> Option<MutexGuard<'_, Inside<Tables>>> {
        self.inside.try_lock().ok()
    }

    fn frames<R>(&self, work: impl FnOnce(&mut FrameAllocator<'_>) -> R) -> Option<R> {
        Some(work(&mut self.frames.lock().unwrap()))
    }

    fn give_back(&self, first: Hfn, order: u8, owner: Owner) {
        let start = number_of(first.base());
        for frame in &self.contents[start..start + (1 << order)] {
            frame.store(LEFT, Ordering::Release);
        }
        self.frames.lock().unwrap().free(first, order, owner).unwrap();
    }

    fn zero(&self, first: Hfn, size: PageSize, offset: u64, len: usize) -> usize {
        let left = (self.zeroing)();
        let start = number_of(first.base()) + usize::try_from(offset / 4096).unwrap();
        assert!(offset + len as u64 <= size.bytes());
        for frame in &self.contents[start..start + (len - left) / 4096] {
            frame.store(0, Ordering::Release);
        }
        left
    }

    fn kick(&self, cpu: usize) {
        self.kicked.fetch_or(1 << cpu, Ordering::SeqCst);
    }
}

/// The number of a frame among the machine's.
fn number_of(hpa: HostPhysAddr) -> usize {
    usize::try_from(hpa.as_u64() / 4096 - FRAMES).unwrap()
}

fn gpa(at: u64) -> GuestPhysAddr {
    GuestPhysAddr::new(at)
}

fn range(range: Range<u64>) -> Range<GuestPhysAddr> {
    gpa(range.start)..gpa(range.end)
}

fn memory(offset: u64, rights: Rights) -> Option<Content> {
    Some(Content::Memory { offset, rights })
}

#[test]
fn what_is_covered_keeps_its_contents() {
    let ram = 8 * MIB;
    let guest = Guest::new(ram, 4 * BLOCK_FRAMES, 8 * BLOCK_FRAMES, 40);
    let over = 4 * MIB..4 * MIB + 0x1_0000;
    let at = over.start + 0x3000;
    for tree in [Tree::Nested, Tree::Window] {
        assert_eq!(guest.populate(at, tree), Ok(Populated::Now));
    }
    let under = guest.query(at, Tree::Nested).unwrap();
    assert_eq!((under.size, under.hpa.page_offset()), (PageSize::Size2M, 0));
    guest.frame(under.hpa).store(7, Ordering::Relaxed);

    guest.lay_over(over.clone(), memory(ram, Rights::Rom));
    assert_eq!(guest.query(at, Tree::Nested), None, "nobody sees the RAM any more");
    assert_eq!(
        populate(&guest, gpa(at), Tree::Nested, Access::Write),
        Err(MemoryError::ReadOnly(gpa(at)))
    );
    for tree in [Tree::Window, Tree::Nested] {
        assert_eq!(guest.populate(at, tree), Ok(Populated::Now));
        let rom = guest.query(at, tree).unwrap();
        assert_eq!((rom.size, guest.frame(rom.hpa).load(Ordering::Relaxed)), (PageSize::Size4K, 0));
        assert!(!rom.attributes.permissions.contains(Permissions::WRITE));
        // The RAM beside it is the block's.
        assert_eq!(guest.populate(over.end, tree), Ok(Populated::Now));
        assert_eq!(guest.query(over.end, tree).unwrap().hpa, under.hpa.wrapping_add(0xd000));
    }
    assert_eq!(
        guest.audit(ram, 0),
        BLOCK_FRAMES + 1,
        "the block is whole, and there is a page of ROM"
    );

    guest.lay_over(over.clone(), Some(Content::Devices));
    assert_eq!(guest.populate(at, Tree::Window), Err(MemoryError::NotRam(gpa(at))));
    assert_eq!(guest.shared.view.find(gpa(at)), None);
    assert!(guest.shared.view.find(gpa(over.end)).is_some());

    guest.lay_over(over, None);
    for tree in [Tree::Nested, Tree::Window] {
        assert_eq!(guest.populate(at, tree), Ok(Populated::Now));
        assert_eq!(
            guest.query(at, tree),
            Some(Mapping { attributes: tree.attributes(Rights::Ram), ..under })
        );
    }
    assert_eq!(guest.frame(under.hpa).load(Ordering::Relaxed), 7);
    guest.end(40);
}

#[test]
fn pages_that_are_nobodys_come_again() {
    let ram = 8 * MIB;
    let guest = Guest::new(ram, 4 * BLOCK_FRAMES, 8 * BLOCK_FRAMES, 40);
    let hole = 0xa_0000..0xe_0000;
    guest.lay_over(hole.clone(), Some(Content::Devices));
    let page = guest.locked(Inside::own_page).unwrap();
    let readable = Permissions::READ | Permissions::EXECUTE;
    assert!(guest.locked(|inside| inside.fix(hole.clone(), page, readable)));
    guest.lay_over(0xf_0000..0x10_0000, memory(0xf_0000, Rights::Rom));
    for at in [hole.start, hole.end - 4096] {
        let seen = guest.query(at, Tree::Nested).unwrap();
        assert_eq!((seen.hpa, seen.attributes), (page, Attributes::ram(readable)));
    }
    let slot = Slot::ram(range(hole.end - 4096..hole.end));
    assert_eq!(change(&guest, |slots| slots.push(slot)), Err(SlotError::Fixed));
    guest.locked(|inside| inside.protect_fixed(hole.start, Permissions::READ));
    guest.lay_over(0xf_0000..0x10_0000, None);
    let seen = guest.query(hole.start, Tree::Nested).unwrap();
    assert_eq!(seen.attributes, Attributes::ram(Permissions::READ));
    guest.end(40);
}

#[test]
fn a_change_that_is_too_large_changes_nothing() {
    let ram = 256 * MIB;
    let guest = Guest::new(ram, 256 * BLOCK_FRAMES / 2, 256 * BLOCK_FRAMES / 2, 400);
    // A table of small pages for each block: what is taken away has no room in limbo.
    let odd = |slots: &mut Vec<Slot>| {
        for block in 1..=24 {
            let start = block * 4 * MIB;
            slots.push(Slot { range: range(start..start + 4096), content: Content::Devices });
        }
    };
    assert_eq!(change(&guest, odd), Ok(2));
    for block in 1..=24 {
        for tree in [Tree::Nested, Tree::Window] {
            guest.populate(block * 4 * MIB + 8192, tree).unwrap();
        }
    }
    let all = |slots: &mut Vec<Slot>| slots.truncate(1);
    guest.shared.debts.enter(0);
    assert_eq!(change(&guest, |slots| slots.truncate(5)), Ok(3));
    let before = guest.shared.view.find(gpa(4 * MIB));
    assert_eq!(before, None);
    assert_eq!(guest.shared.debts.generation(), 3);
    let too_many = |slots: &mut Vec<Slot>| {
        for page in 0..40 {
            let start = 8 * MIB + page * 8192;
            slots.push(Slot { range: range(start..start + 4096), content: Content::Devices });
        }
    };
    assert_eq!(change(&guest, too_many), Err(crate::slots::SlotError::TooMany));
    assert_eq!(change(&guest, all).map(drop), Ok(()));
    guest.end(400);
}

#[test]
fn a_pinned_frame_outlives_its_guest() {
    let guest = Guest::with_cpus(8 * MIB, 4 * BLOCK_FRAMES, 8 * BLOCK_FRAMES, 40, 1);
    let pinned = pin(&guest, gpa(4 * MIB + 0x5000), Access::Write).unwrap();
    assert_eq!(guest.audit(8 * MIB, 0), BLOCK_FRAMES);
    let mut place = 0;
    while let Some(next) = close_and_release(&guest, place) {
        place = next;
    }
    let free = guest.frames.lock().unwrap().free_frames();
    assert_eq!(free, 8 * BLOCK_FRAMES - 1, "all but the pinned one");
    assert_eq!(guest.populate(0, Tree::Nested), Err(MemoryError::NotRam(gpa(0))));
    assert_eq!(pin(&guest, gpa(0), Access::Read), Err(MemoryError::NotRam(gpa(0))));
    let mut frames = guest.frames.lock().unwrap();
    assert!(frames.free(pinned.page(), 0, GUEST).is_err(), "it is not the guest's any more");
    assert_eq!(frames.unpin(pinned.page()), Ok(()));
    assert_eq!(frames.free_frames(), 8 * BLOCK_FRAMES);
    assert!(frames.unpin(pinned.page()).is_err());
    drop(frames);
    guest.end(40);
}

/// A CPU that has the space loaded keeps what was taken away from being used again.
#[test]
fn every_debt_is_paid_before_anything_is_freed() {
    let guest = Guest::with_cpus(8 * MIB, 4 * BLOCK_FRAMES, 8 * BLOCK_FRAMES, 40, 3);
    let debts = &guest.shared.debts;
    guest.populate(4 * MIB, Tree::Nested).unwrap();
    guest.lay_over(4 * MIB..4 * MIB + 4096, Some(Content::Devices));
    guest.populate(4 * MIB + 4096, Tree::Nested).unwrap();
    let tables = guest.tables();
    for cpu in [0, 2] {
        let paid = debts.enter(cpu);
        debts.pay(cpu, paid);
    }
    let before = tables.free();
    let generation = guest.lay_over(4 * MIB..4 * MIB + 4096, None);
    assert_eq!(guest.kicked.load(Ordering::SeqCst), 0b101, "those that have the space loaded");
    assert!(!debts.is_settled(generation));
    debts.pay(0, generation);
    settle(&guest);
    assert_eq!((tables.free(), debts.debtors().collect::<Vec<_>>()), (before, std::vec![2]));
    let paid = debts.enter(1);
    debts.pay(1, paid);
    settle(&guest);
    assert_eq!(tables.free(), before, "one that came later owes nothing, but the other does");
    debts.leave(2);
    assert!(debts.is_settled(generation) && debts.has_waiting());
    settle(&guest);
    assert_eq!((tables.free(), debts.has_waiting()), (before + 1, false));
    guest.end(40);
}

/// Things in limbo are freed in small steps, by whoever comes next.
#[test]
fn many_things_are_not_freed_at_once() {
    let guest = Guest::with_cpus(80 * MIB, 40 * BLOCK_FRAMES, 48 * BLOCK_FRAMES, 400, 1);
    let debts = &guest.shared.debts;
    let odd = |block: u64| (2 * block + 2) * MIB..(2 * block + 2) * MIB + 4096;
    for block in 0..20 {
        guest.lay_over(odd(block), Some(Content::Devices));
        guest.populate(odd(block).end, Tree::Nested).unwrap();
    }
    let paid = debts.enter(0);
    debts.pay(0, paid);
    for block in 0..20 {
        guest.lay_over(odd(block), None);
    }
    let before = guest.tables().free();
    debts.leave(0);
    for freed in [4, 8, 12, 16, 20] {
        assert!(debts.has_waiting());
        settle(&guest);
        assert_eq!(guest.tables().free(), before + freed);
    }
    assert!(!debts.has_waiting());
    guest.end(400);
}

/// Tables are missing that are free as soon as the CPU that asks has paid.
#[test]
fn tables_in_limbo_are_waited_for() {
    let guest = Guest::with_cpus(8 * MIB, 4 * BLOCK_FRAMES, 8 * BLOCK_FRAMES, 40, 1);
    let debts = &guest.shared.debts;
    guest.lay_over(4 * MIB..4 * MIB + 4096, Some(Content::Devices));
    let at = 4 * MIB + 8192;
    guest.populate(at, Tree::Nested).unwrap();
    let paid = debts.enter(0);
    debts.pay(0, paid);
    let generation = guest.lay_over(4 * MIB..4 * MIB + 8192, Some(Content::Devices));
    let mut tables = guest.tables();
    let all: Vec<_> = core::iter::from_fn(|| tables.alloc_table().ok()).collect();
    assert_eq!(guest.populate(at, Tree::Nested), Err(MemoryError::Moved(gpa(at))));
    debts.pay(0, generation);
    settle(&guest);
    assert_eq!(guest.populate(at, Tree::Nested), Ok(Populated::Now));
    debts.leave(0);
    all.into_iter().for_each(|table| tables.free_table(table));
    guest.end(40);
}

/// Memory that stands at other addresses than its own, in more blocks than limbo has room for, while
/// a CPU still looks: no table is lost.
#[test]
fn the_end_finds_all_tables() {
    let (alias, machine) = (1 << 30, 88 * BLOCK_FRAMES);
    let guest = Guest::with_cpus(160 * MIB, 80 * BLOCK_FRAMES, machine, 400, 1);
    let offset = 4096;
    guest.lay_over(alias..alias + 120 * MIB, memory(offset, Rights::Ram));
    for block in 0..60 {
        for tree in [Tree::Nested, Tree::Window] {
            guest.populate(alias + block * 2 * MIB, tree).unwrap();
        }
    }
    let paid = guest.shared.debts.enter(0);
    guest.shared.debts.pay(0, paid);
    let (mut place, mut tries) = (0, 0);
    while let Some(next) = close_and_release(&guest, place) {
        place = next;
        tries += 1;
        let refused = guest.populate(alias, Tree::Nested);
        assert_eq!(refused, Err(MemoryError::NotRam(gpa(alias))));
        if tries == 200 {
            guest.shared.debts.leave(0);
        }
    }
    assert!(tries > 200, "more is taken away than limbo has room for");
    assert_eq!(guest.frames.lock().unwrap().free_frames(), machine);
    guest.end(400);
}

/// Frames are given back when the last CPU has let go, and not before.
#[test]
fn the_end_waits_for_those_who_still_look() {
    let machine = 88 * BLOCK_FRAMES;
    let guest = Guest::with_cpus(160 * MIB, 80 * BLOCK_FRAMES, machine, 80, 1);
    for block in 0..80 {
        guest.populate(block * 2 * MIB, Tree::Window).unwrap();
    }
    let paid = guest.shared.debts.enter(0);
    guest.shared.debts.pay(0, paid);
    let (mut place, mut tries) = (0, 0);
    while let Some(next) = close_and_release(&guest, place) {
        place = next;
        tries += 1;
        if tries == 200 {
            assert_eq!(guest.frames.lock().unwrap().free_frames(), 8 * BLOCK_FRAMES);
            guest.shared.debts.leave(0);
        }
    }
    settle(&guest);
    assert!(tries > 200, "more is taken away than limbo has room for");
    assert_eq!(guest.frames.lock().unwrap().free_frames(), machine);
    guest.end(80);
}
