//! The address space of one guest: its memory, as the guest sees it (nested tables) and as the
//! hypervisor does ([`layout::WINDOW`]); see [`memory::space`].
//!
//! RAM is promised when the guest is made, and has frames behind it when it is first touched, 2 MiB
//! at a time where that fits.

use super::pool::{self, CountedTables};
use super::{FRAMES, copy, empty, heap, host, layout, zeroing};
use crate::cpu::percpu;
use crate::error::HostError;
use alloc::vec::Vec;
use config::layout::{LEGACY_HOLE_END, LOW_HOLE, ROM_START};
use core::cell::Cell;
use core::ops::Range;
use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use devices::lapic::APIC_BASE_ADDRESS;
use locks::{Mutex, MutexGuard, Rank};
use memory::backing::Backing;
use memory::frames::{FrameAllocator, Owner, Owners};
use memory::holdings::Holdings;
use memory::slots::{Content, Rights, Slot, SlotError};
use memory::space::{self, Inside, Parts, Shared, Tree};
use memory::stage2::{
    HostTable, Mapper, NestedFormat, NestedTables, PageSize, Permissions, most_tables,
};
use memory::transfer::{self, Access, Populate, Populated};
use memory::{GuestMemory, GuestRam, HotRam, MemoryError};
use x86defs::addr::{Hfn, PAGE_SIZE};
use x86defs::{GuestPhysAddr, HostPhysAddr, Width};

const LARGE: u64 = 2 << 20;

/// Bytes of the heap that are free when a guest is made: several times what a guest's objects
/// and the report of its end take.
const HEAP_ROOM: u64 = 1 << 20;

/// The guests' numbers in the frame table.
static OWNERS: Mutex<Owners> = Mutex::new(Rank::Owners, Owners::new());

/// Memory of the machine that a guest's address space takes, in frames.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SpaceUsage {
    /// Promised as RAM.
    pub reserved: u64,
    /// Of these: the guest has them.
    pub populated: u64,
    /// Of these: zeroed ahead, not yet the guest's.
    pub stocked: u64,
    /// Page tables: nested ones, and the hypervisor's of the window; and the local APICs' page.
    pub tables: u64,
}

/// The address space of one guest.
pub struct GuestSpace {
    root: HostPhysAddr,
    nested_root: HostPhysAddr,
    /// Memory beside the RAM begins here in the backing.
    spare: u64,
    shared: Shared,
    /// Frames promised to this guest as RAM, or its by now.
    reserved: u64,
    /// Memory was touched first.
    touched: AtomicBool,
    /// Slots that stay: RAM and ROM.
    fixed_slots: AtomicUsize,
    inside: Mutex<Inside<CountedTables>>,
}

impl core::fmt::Debug for GuestSpace {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("GuestSpace")
            .field("root", &self.root)
            .field("shared", &self.shared)
            .finish_non_exhaustive()
    }
}

/// A guest's frames, and its number as their owner, until its address space has them.
#[derive(Debug)]
struct Account(Option<Holdings>);

impl Account {
    /// Promises `frames` to a new owner.
    ///
    /// # Errors
    /// There are only so many.
    fn new(frames: u64) -> Result<Self, u64> {
        let mut holdings = Holdings::new(OWNERS.lock().take().ok_or(0_u64)?);
        let promised = FRAMES.lock().as_mut().map_or(Err(0), |all| holdings.promise(all, frames));
        let account = Self(Some(holdings));
        promised.map(|()| account)
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        if let Some(holdings) = &mut self.0 {
            withdraw(holdings);
        }
    }
}

/// A guest without frames gives its promise and its number back.
fn withdraw(holdings: &mut Holdings) {
    if let Some(frames) = FRAMES.lock().as_mut() {
        holdings.withdraw(frames);
    }
    OWNERS.lock().give_back(holdings.owner());
}

/// Frames that a guest with RAM in `regions` takes in the worst case for page tables: two
/// trees of small pages, and as many tables of its backing. The page of its local APICs is a page
/// of the nested tree's.
fn table_frames(regions: &[Range<GuestPhysAddr>]) -> u64 {
    const APIC: u64 = APIC_BASE_ADDRESS;
    let ram = regions.iter().map(|r| r.start.as_u64()..r.end.as_u64());
    let below = ram.clone().filter(|r| r.start < APIC);
    let above = ram.clone().filter(|r| r.start >= APIC);
    let nested = below.chain(core::iter::once(APIC..APIC + PAGE_SIZE)).chain(above);
    let backing = ram.clone().map(|r| r.end.div_ceil(LARGE) - r.start / LARGE).sum::<u64>();
    most_tables(ram) + most_tables(nested) + backing + 1
}

/// Frames of RAM in `regions`.
fn ram_frames(regions: &[Range<GuestPhysAddr>]) -> u64 {
    let bytes = regions.iter().filter_map(|r| r.end.checked_offset_from(r.start));
    bytes.map(|bytes| bytes / PAGE_SIZE).sum()
}

/// Frames that must be to spare so that a guest with RAM in `regions` can be made.
#[must_use]
pub fn frames_needed(regions: &[Range<GuestPhysAddr>]) -> u64 {
    ram_frames(regions) + pool::missing(table_frames(regions))
}

/// Memory of the machine for an address space, while it is being set aside: all of
/// its RAM at once, and frames for all tables that it may take bit by bit. No other guest can have
/// them.
#[derive(Debug)]
pub struct Reservation {
    regions: Vec<Range<GuestPhysAddr>>,
    /// Bytes of memory beside the RAM.
    spare: u64,
    frames: u64,
    account: Account,
    tables: pool::Growing,
}

impl Reservation {
    /// Begins to set aside what a guest takes with RAM in `regions` (aligned to pages, in rising
    /// order) and `spare` bytes of memory beside it.
    ///
    /// # Errors
    /// [`HostError::GuestMemory`] or [`HostError::OutOfMemory`] when the machine has too
    /// little memory left,
    /// [`HostError::Guest`] when a region does not lie within [`layout::WINDOW`].
    pub fn new(
        name: &str,
        regions: Vec<Range<GuestPhysAddr>>,
        spare: u64,
    ) -> Result<Self, HostError> {
        let beyond = regions.iter().find(|r| {
            let bytes = r.end.checked_offset_from(r.start);
            bytes.is_none_or(|bytes| layout::WINDOW.at(r.start, bytes).is_none())
        });
        if let Some(beyond) = beyond {
            let why = alloc::format!(
                "its RAM from {} to {} reaches beyond {} address bits",
                beyond.start,
                beyond.end,
                GuestPhysAddr::BITS
            );
            return Err(HostError::Guest { guest: name.into(), why });
        }
        // Before its RAM is promised: a full machine's heap could not grow any more.
        let room = HEAP_ROOM + Backing::heap_bytes(end_of(&regions) + spare);
        if !usize::try_from(room).is_ok_and(heap::make_room) {
            return Err(HostError::OutOfMemory("the hypervisor's own objects"));
        }
        let frames = ram_frames(&regions) + spare / PAGE_SIZE;
        let account = Account::new(frames).map_err(|available| HostError::GuestMemory {
            guest: name.into(),
            wanted: frames / 256,
            available: available / 256,
        })?;
        let tables = table_frames(&regions) + spare.div_ceil(LARGE);
        let tables = pool::Growing::new(tables).ok_or(NO_TABLES)?;
        Ok(Self { regions, spare, frames, account, tables })
    }

    /// Sets a little more aside. `false` when that is all.
    ///
    /// # Errors
    /// [`HostError::OutOfMemory`].
    pub fn step(&mut self) -> Result<bool, HostError> {
        self.tables.step().map_err(|_| NO_TABLES)
    }
}

/// The end of RAM, in whole blocks.
fn end_of(regions: &[Range<GuestPhysAddr>]) -> u64 {
    regions.last().map_or(0, |region| region.end.as_u64().next_multiple_of(LARGE))
}

/// The machine has no memory left for a guest's page tables.
const NO_TABLES: HostError =
    HostError::OutOfMemory("a guest's page tables, which take blocks of 2 MiB");

impl GuestSpace {
    /// An address space of what was set aside.
    ///
    /// # Errors
    /// [`HostError::OutOfMemory`].
    pub fn new(reservation: Reservation, format: NestedFormat) -> Result<Self, HostError> {
        let Reservation { regions, spare, frames: reserved, mut account, tables } = reservation;
        let end = end_of(&regions);
        let backing = Backing::new(end + spare)
            .ok_or(HostError::OutOfMemory("the hypervisor's own objects"))?;
        let mut tables = CountedTables::new(tables.finish());
        let (window, nested) = roots(&mut tables, format).ok_or(NO_TABLES)?;
        let (root, nested_root) = (window.root(), nested.root());
        let holdings = account.0.take().ok_or(NO_TABLES)?;
        let at = layout::WINDOW;
        let parts = Parts { tables, window, at, nested, backing, holdings };
        let space = Self {
            root,
            nested_root,
            spare: end,
            shared: Shared::new(percpu::MAX_CPUS),
            reserved,
            touched: AtomicBool::new(false),
            fixed_slots: AtomicUsize::new(0),
            inside: Mutex::new(Rank::Memory, Inside::new(parts)),
        };
        // The guest reads all ones where there is nothing below 1 MiB, as from an empty bus. Writes
        // end there, and are lost; reads are emulated if there is no page for them.
        if let Some(page) = empty::page() {
            let readable = Permissions::READ | Permissions::EXECUTE;
            let _ = space.inside.lock().fix(LOW_HOLE, page, readable);
        }
        let ram = regions.into_iter().map(Slot::ram);
        space.change(|slots| slots.extend(ram)).map_err(|error| HostError::Guest {
            guest: alloc::string::String::new(),
            why: alloc::format!("{error}"),
        })?;
        Ok(space)
    }

    /// Root of the nested tables.
    #[must_use]
    pub fn nested_root(&self) -> HostPhysAddr {
        self.nested_root
    }

    /// The place in the backing of memory beside the RAM, if there is any.
    pub const fn spare(&self) -> u64 {
        self.spare
    }

    /// Runs `f` with this address space loaded, as it usually is already.
    pub fn enter<R>(&self, f: impl FnOnce() -> R) -> R {
        if host::is_active(self.root) {
            return f();
        }
        let (cpu, debts) = (percpu::this().index(), &self.shared.debts);
        let paid = debts.enter(cpu);
        let result = host::with_root(self.root, || {
            debts.pay(cpu, paid);
            f()
        });
        debts.leave(cpu);
        space::settle(&self.work());
        result
    }

    /// Lets `edit` change the places of the memory.
    ///
    /// # Errors
    /// Those of [`space::change`].
    fn change(&self, edit: impl FnOnce(&mut Vec<Slot>)) -> Result<u64, SlotError> {
        space::change(&self.work(), edit)
    }

    /// Lays `content` over the memory in `range`, instead of what was laid over any before; `None`
    /// uncovers all. The ROM [is sealed](Self::seal_rom). Returns the generation for which debts have to be
    /// [settled](Self::is_settled).
    ///
    /// # Errors
    /// Those of [`space::change`].
    pub fn lay_over(
        &self,
        range: Range<GuestPhysAddr>,
        content: Option<Content>,
    ) -> Result<u64, SlotError> {
        self.change(|slots| {
            slots.truncate(self.fixed_slots.load(Ordering::Relaxed));
            slots.extend(content.map(|content| Slot { range, content }));
        })
    }

    /// Whether no CPU uses any more what was there before the generation.
    pub fn is_settled(&self, generation: u64) -> bool {
        self.shared.debts.is_settled(generation)
    }

    /// Puts a page at the address of the local APIC's registers, for CPUs that
    /// watch it. Without such a CPU accesses would end there. A page that is there already serves
    /// the next guest with this memory, too.
    ///
    /// # Errors
    /// [`HostError::OutOfMemory`].
    pub fn add_apic_page(&self) -> Result<HostPhysAddr, HostError> {
        let inside = &mut *self.inside.lock();
        if let Some(page) = inside.fixed(APIC_BASE_ADDRESS) {
            return Ok(page);
        }
        let out = || HostError::OutOfMemory("the page of a guest's local APICs");
        let page = inside.own_page().ok_or_else(out)?;
        let bytes = super::direct(page) as *mut u8;
        // SAFETY: the page was just taken, and is mapped at its direct address. It reads as the bus
        // does where nothing answers, for an APIC that has no registers in memory.
        unsafe { bytes.write_bytes(0xff, 4096) };
        let at = APIC_BASE_ADDRESS..APIC_BASE_ADDRESS + PAGE_SIZE;
        if inside.fix(at, page, Permissions::RW) { Ok(page) } else { Err(out()) }
    }

    /// Frames that back the guest's RAM now.
    #[must_use]
    pub fn populated_frames(&self) -> u64 {
        self.inside.lock().holdings().populated()
    }

    /// Memory of the machine that it takes.
    #[must_use]
    pub fn usage(&self) -> SpaceUsage {
        let inside = self.inside.lock();
        let Parts { tables, holdings, .. } = inside.parts();
        SpaceUsage {
            reserved: self.reserved,
            populated: holdings.populated(),
            stocked: holdings.stocked(),
            tables: tables.frames(),
        }
    }

    /// Backs the first page of RAM at `gpa` or behind it, a large one if it can
    /// be; returns from where to go on, `None` behind the end of RAM.
    ///
    /// # Errors
    /// [`MemoryError::NoFrame`].
    pub fn populate_from(&self, gpa: GuestPhysAddr) -> Result<Option<GuestPhysAddr>, MemoryError> {
        let Some(region) = self.shared.view.next(gpa) else { return Ok(None) };
        let at = gpa.max(GuestPhysAddr::new(region.start));
        if self.populate_in(at, Tree::Nested, Access::Read)? == Populated::Soon {
            return Ok(Some(at));
        }
        let inside = self.inside.lock();
        let Parts { tables, nested, .. } = inside.parts();
        let page = nested.query(tables, at.as_u64());
        let size = page.map_or(PAGE_SIZE, |page| page.size.bytes());
        Ok(at.align_down(size).checked_add(size))
    }

    /// Gives some of the RAM from `gpa` on back to the machine, when the guest is over: nobody gets
    /// any more of it. Returns the address to go on from, `None` behind the end.
    pub fn release_from(&self, gpa: GuestPhysAddr) -> Option<GuestPhysAddr> {
        space::close_and_release(&self.work(), gpa.as_u64()).map(GuestPhysAddr::new)
    }

    /// From now on nothing is written to the ROM: it has its contents.
    ///
    /// # Errors
    /// Those of [`space::change`].
    pub fn seal_rom(&self) -> Result<(), SlotError> {
        let range = GuestPhysAddr::new(ROM_START)..GuestPhysAddr::new(LEGACY_HOLE_END);
        let content = Content::Memory { offset: ROM_START, rights: Rights::Rom };
        let sealed = self.change(|slots| {
            slots.push(Slot { range, content });
            self.fixed_slots.store(slots.len(), Ordering::Relaxed);
        });
        sealed.map(drop)
    }

    const fn work(&self) -> Work<'_> {
        Work { space: self, late: Cell::new(None) }
    }

    /// Makes `tree` show the page at `gpa`.
    fn populate_in(
        &self,
        gpa: GuestPhysAddr,
        tree: Tree,
        access: Access,
    ) -> Result<Populated, MemoryError> {
        self.touched.store(true, Ordering::Relaxed);
        let work = self.work();
        let populated = space::populate(&work, gpa, tree, access);
        // A slower vCPU goes on at once: it sees what the other one has not zeroed yet.
        if let Some((first, size, len)) = work.late.take().filter(|_| populated.is_ok()) {
            let _ = zeroing::zero(first.base(), size, 0, len);
        }
        populated
    }

    /// Zeroes some memory ahead, for first touches to come. `false` if there is
    /// nothing to do; else call again when there is time.
    pub fn prepare(&self) -> bool {
        space::zero_ahead(&self.work())
    }

    /// Whether a block was begun to be zeroed ahead, and nobody is at it.
    pub fn has_begun(&self) -> bool {
        self.inside.lock().holdings().has_begun()
    }

    /// Whether memory was touched first since the last call: the stock may not be full any more.
    pub fn take_touched(&self) -> bool {
        self.touched.load(Ordering::Relaxed) && self.touched.swap(false, Ordering::Relaxed)
    }

    /// [`GuestMemory::load`] where the window does not show the memory, or is not loaded.
    #[cold]
    fn load_anywhere<const N: usize>(
        &self,
        places: [GuestPhysAddr; N],
        width: Width,
    ) -> Result<[u64; N], MemoryError> {
        memory::read_each(self, places, width)
    }

    /// Copies `len` bytes between the hypervisor's memory and RAM: `copy` gets an address in the
    /// window, how many bytes are before it, and how many follow, and returns how many of them it
    /// did not copy. What the window shows may be accessed as it shows it.
    fn transfer(
        &self,
        gpa: GuestPhysAddr,
        len: usize,
        access: Access,
        mut copy: impl FnMut(u64, usize, usize) -> usize,
    ) -> Result<(), MemoryError> {
        let copied = |at: GuestPhysAddr, done, part: usize| {
            let room = GuestPhysAddr::END.saturating_sub(at.as_u64());
            let inside = part.min(usize::try_from(room).unwrap_or(usize::MAX));
            let window = layout::WINDOW.at(at, inside as u64);
            window.map_or(part, |window| copy(window, done, inside) + (part - inside))
        };
        self.enter(|| transfer::transfer(self, gpa, len, access, copied))
    }

    /// A local APIC of the guest has its registers in memory, or not.
    fn protect_apic_page(&self, permissions: Permissions) {
        self.inside.lock().protect_fixed(APIC_BASE_ADDRESS, permissions);
    }

    /// Forgets what the window has shown up to `generation`.
    #[cold]
    fn pay_now(&self, generation: u64) {
        host::load(self.root);
        self.shared.debts.pay(percpu::this().index(), generation);
        space::settle(&self.work());
    }
}

/// A guest's memory, while a CPU works on it.
struct Work<'a> {
    space: &'a GuestSpace,
    /// With a fault planted: what is zeroed too late.
    late: Cell<Option<(Hfn, PageSize, usize)>>,
}

impl space::Space for Work<'_> {
    type Tables = CountedTables;
    type Guard<'g>
        = MutexGuard<'g, Inside<CountedTables>>
    where
        Self: 'g;

    #[inline(always)]
    fn shared(&self) -> &Shared {
        &self.space.shared
    }

    fn lock(&self) -> MutexGuard<'_, Inside<CountedTables>> {
        self.space.inside.lock()
    }

    #[inline(always)]
    fn try_lock(&self) -> Option<MutexGuard<'_, Inside<CountedTables>>> {
        self.space.inside.try_lock()
    }

    fn frames<R>(&self, work: impl FnOnce(&mut FrameAllocator<'_>) -> R) -> Option<R> {
        FRAMES.lock().as_mut().map(work)
    }

    fn give_back(&self, first: Hfn, order: u8, owner: Owner) {
        super::free_frames(first, order, owner);
    }

    fn zero(&self, first: Hfn, size: PageSize, offset: u64, len: usize) -> usize {
        if cfg!(planted = "memory-zeroed-late") && len as u64 == size.bytes() {
            self.late.set(Some((first, size, len)));
            return 0;
        }
        zeroing::zero(first.base(), size, offset, len)
    }

    fn kick(&self, cpu: usize) {
        let others = percpu::cpu(cpu).filter(|cpu| cpu.index() != percpu::this().index());
        if let Some(other) = others {
            other.request(percpu::LOOK);
        }
    }
}

impl Populate for GuestSpace {
    fn generation(&self) -> u64 {
        self.shared.debts.generation()
    }

    fn populate(&self, gpa: GuestPhysAddr, access: Access) -> Result<Populated, MemoryError> {
        self.populate_in(gpa, Tree::Window, access)
    }
}

impl GuestMemory for GuestSpace {
    fn read(&self, gpa: GuestPhysAddr, buffer: &mut [u8]) -> Result<(), MemoryError> {
        let target = buffer.as_mut_ptr();
        self.transfer(gpa, buffer.len(), Access::Read, |window, done, part| {
            // SAFETY: the source lies in the active guest's window; the target
            // is the part of `buffer` that starts at `done`.
            unsafe { copy::copy(window, target.wrapping_add(done) as u64, part) }
        })
    }

    fn write(&self, gpa: GuestPhysAddr, data: &[u8]) -> Result<(), MemoryError> {
        let source = data.as_ptr();
        self.transfer(gpa, data.len(), Access::Write, |window, done, part| {
            // SAFETY: the target lies in the active guest's window; the source
            // is the part of `data` that starts at `done`.
            unsafe { copy::copy(source.wrapping_add(done) as u64, window, part) }
        })
    }

    #[inline]
    fn load<const N: usize>(
        &self,
        places: [GuestPhysAddr; N],
        width: Width,
    ) -> Result<[u64; N], MemoryError> {
        let within = places.map(|gpa| layout::WINDOW.at(gpa, width.bytes() as u64));
        if within.iter().all(Option::is_some) && host::is_active(self.root) {
            let sources = within.map(Option::unwrap_or_default);
            // SAFETY: the addresses lie in the active guest's window, which shows no more than may
            // be read.
            if let Ok(values) = unsafe { copy::load(sources, width) } {
                return Ok(values);
            }
        }
        self.load_anywhere(places, width)
    }

    fn compare_exchange(
        &self,
        gpa: GuestPhysAddr,
        width: Width,
        current: u64,
        new: u64,
    ) -> Result<u64, MemoryError> {
        let bytes = width.bytes() as u64;
        let at = layout::WINDOW.at(gpa, bytes).filter(|_| gpa.is_aligned(bytes));
        let at = at.ok_or(MemoryError::NotRam(gpa))?;
        self.enter(|| {
            transfer::exchange(self, gpa, || {
                // SAFETY: the address lies in the active guest's window and is aligned.
                unsafe { copy::compare_exchange(at, width, current, new) }.ok()
            })
        })
    }
}

impl GuestRam for GuestSpace {
    #[inline]
    fn rights(&self, gpa: GuestPhysAddr) -> Option<Rights> {
        self.shared.view.find(gpa).map(|region| region.rights)
    }

    fn changed_to(&self) -> u64 {
        space::changed_to(&self.work())
    }

    #[inline]
    fn pay(&self, seen: &mut u64) -> bool {
        let generation = self.shared.debts.generation();
        if *seen == generation {
            return false;
        }
        self.pay_now(generation);
        *seen = generation;
        true
    }

    fn populate(&self, gpa: GuestPhysAddr) -> Result<(), MemoryError> {
        self.populate_in(gpa, Tree::Nested, Access::Read).map(drop)
    }

    fn open_apic_page(&self) {
        self.protect_apic_page(Permissions::RW);
    }

    fn close_apic_page(&self) {
        self.protect_apic_page(Permissions::READ);
    }
}

impl HotRam for GuestSpace {
    fn touch(&self, gpa: GuestPhysAddr) -> bool {
        let touched = space::touch(&self.work(), gpa);
        if touched {
            self.touched.store(true, Ordering::Relaxed);
        }
        touched
    }
}

impl Drop for GuestSpace {
    fn drop(&mut self) {
        let inside = self.inside.get_mut();
        let owner = inside.holdings().owner();
        inside.take_apart(|first, order| super::free_frames(first, order, owner));
        withdraw(inside.holdings());
    }
}

/// Empty tables for a guest: the window, in which the hypervisor sees itself too, and the nested
/// ones. `None` if there is no frame for one; then none is kept.
fn roots(
    tables: &mut CountedTables,
    format: NestedFormat,
) -> Option<(Mapper<HostTable>, NestedTables)> {
    let mut window = Mapper::<HostTable>::new(tables, PageSize::Size2M).ok()?;
    let owner = host::kernel_mapper();
    let shares = host::shared_slots().all(|slot| window.share_slot(tables, slot, &owner).is_ok());
    let nested = shares.then(|| NestedTables::new(tables, format).ok()).flatten();
    if let Some(nested) = nested {
        return Some((window, nested));
    }
    window.free_tables(tables);
    None
}
