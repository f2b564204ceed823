//! The address space of one guest: its RAM, as the guest sees it (nested
//! tables) and as the hypervisor does ([`layout::WINDOW`]).
//!
//! RAM is reserved when the guest is made and backed by frames when it is
//! first touched, 2 MiB at a time where that fits. A frame is zeroed before
//! anything of the guest, or the hypervisor on its behalf, can reach it, and while nobody holds the
//! guest's lock ([`populate`]).

use super::pool::{self, CountedTables};
use super::{FRAMES, copy, empty, heap, host, layout, zeroing};
use crate::error::HostError;
use alloc::vec::Vec;
use config::layout::{LEGACY_HOLE_END, LOW_HOLE, ROM_START};
use core::cell::Cell;
use core::ops::Range;
use core::sync::atomic::{AtomicBool, Ordering};
use devices::lapic::APIC_BASE_ADDRESS;
use locks::{Mutex, Rank};
use memory::frames::{FrameAllocator, ORDER_2M, Owner, Owners};
use memory::holdings::{Holdings, order};
use memory::populate::{self, Backing, Guarded, Page};
use memory::stage2::{
    Attributes, Ept, Format, HostTable, Mapper, Mapping, Npt, PageSize, Permissions, TableMemory,
    most_tables,
};
use memory::transfer::{self, Populate, Populated};
use memory::{GuestMemory, GuestRam, HotRam, MemoryError};
use x86defs::addr::{Hfn, PAGE_SIZE};
use x86defs::{GuestPhysAddr, HostPhysAddr, Width};

const LARGE: u64 = 2 << 20;

/// Bytes of the heap that are free when a guest is made: several times what a guest's objects
/// and the report of its end take.
const HEAP_ROOM: usize = 1 << 20;

/// The guests' numbers in the frame table.
static OWNERS: Mutex<Owners> = Mutex::new(Rank::Owners, Owners::new());

/// The nested tables, in the format of the CPU's vendor.
#[derive(Debug)]
pub enum Nested {
    /// AMD-V.
    Npt(Mapper<Npt>),
    /// VT-x.
    Ept(Mapper<Ept>),
}

/// Which format of nested tables to build.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NestedFormat {
    /// AMD-V's.
    Npt,
    /// VT-x's.
    Ept,
}

impl Nested {
    fn map(
        &mut self,
        tables: &mut CountedTables,
        at: u64,
        hpa: HostPhysAddr,
        len: u64,
        permissions: Permissions,
    ) -> bool {
        let attributes = Attributes::ram(permissions);
        match self {
            Self::Npt(m) => m.map(tables, at, hpa, len, attributes).is_ok(),
            Self::Ept(m) => m.map(tables, at, hpa, len, attributes).is_ok(),
        }
    }

    fn protect(&mut self, tables: &mut CountedTables, at: u64, len: u64, permissions: Permissions) {
        let attributes = Attributes::ram(permissions);
        // A page of 4 KiB is never split: it can't fail.
        let _ = match self {
            Self::Npt(m) => m.protect(tables, at, len, attributes),
            Self::Ept(m) => m.protect(tables, at, len, attributes),
        };
    }

    /// See [`populate::make_room`].
    fn make_room(
        &mut self,
        tables: &mut CountedTables,
        window: &mut Mapper<HostTable>,
        page: &Page,
    ) -> Result<(), Backing> {
        match self {
            Self::Npt(m) => populate::make_room(tables, window, m, page),
            Self::Ept(m) => populate::make_room(tables, window, m, page),
        }
    }

    /// See [`populate::show`].
    #[inline(always)]
    fn show(
        &mut self,
        tables: &mut CountedTables,
        window: &mut Mapper<HostTable>,
        page: &Page,
        frame: HostPhysAddr,
    ) -> bool {
        match self {
            Self::Npt(m) => populate::show(tables, window, m, page, frame),
            Self::Ept(m) => populate::show(tables, window, m, page, frame),
        }
    }

    fn root(&self) -> HostPhysAddr {
        match self {
            Self::Npt(m) => m.root(),
            Self::Ept(m) => m.root(),
        }
    }
}

struct Inner {
    account: Account,
    tables: CountedTables,
    window: Mapper<HostTable>,
    nested: Nested,
    /// By what a CPU recognizes the local APIC's registers. It reads as the bus
    /// does where nothing answers, for an APIC that has none in memory.
    apic_page: Option<HostPhysAddr>,
}

impl Inner {
    fn protect_apic_page(&mut self, permissions: Permissions) {
        if self.apic_page.is_some() {
            self.nested.protect(&mut self.tables, APIC_BASE_ADDRESS, PAGE_SIZE, permissions);
        }
    }
}

impl Guarded for Inner {
    fn make_room(&mut self, page: &Page) -> Result<(), Backing> {
        self.nested.make_room(&mut self.tables, &mut self.window, page)
    }

    #[inline(always)]
    fn show(&mut self, page: &Page, frame: HostPhysAddr) -> bool {
        self.nested.show(&mut self.tables, &mut self.window, page, frame)
    }

    #[inline(always)]
    fn holdings(&mut self) -> &mut Holdings {
        &mut self.account.0
    }
}

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
    regions: Vec<Range<GuestPhysAddr>>,
    /// The largest of them, where nearly all accesses go.
    largest: Range<GuestPhysAddr>,
    /// Frames promised to this guest as RAM, or its by now.
    reserved: u64,
    /// The ROM is read-only for the hypervisor too.
    sealed: AtomicBool,
    /// Memory was touched first.
    touched: AtomicBool,
    inner: Mutex<Inner>,
}

impl core::fmt::Debug for GuestSpace {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("GuestSpace")
            .field("root", &self.root)
            .field("regions", &self.regions)
            .finish()
    }
}

/// A guest's frames, and its number as their owner.
#[derive(Debug)]
struct Account(Holdings);

impl Account {
    /// Promises `frames` to a new owner.
    ///
    /// # Errors
    /// There are only so many.
    fn new(frames: u64) -> Result<Self, u64> {
        let owner = OWNERS.lock().take().ok_or(0_u64)?;
        let mut account = Self(Holdings::new(owner));
        FRAMES.lock().as_mut().map_or(Err(0), |all| account.0.promise(all, frames))?;
        Ok(account)
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        if let Some(frames) = FRAMES.lock().as_mut() {
            self.0.withdraw(frames);
        }
        OWNERS.lock().give_back(self.0.owner());
    }
}

/// Frames that a guest with RAM in `regions` takes in the worst case for page tables: two
/// trees of small pages. The page of its local APICs is a page of the nested tree's.
fn table_frames(regions: &[Range<GuestPhysAddr>]) -> u64 {
    const APIC: u64 = APIC_BASE_ADDRESS;
    let ram = regions.iter().map(|r| r.start.as_u64()..r.end.as_u64());
    let below = ram.clone().filter(|r| r.start < APIC);
    let above = ram.clone().filter(|r| r.start >= APIC);
    let nested = below.chain(core::iter::once(APIC..APIC + PAGE_SIZE)).chain(above);
    most_tables(ram) + most_tables(nested) + 1
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
    frames: u64,
    account: Account,
    tables: pool::Growing,
}

impl Reservation {
    /// Begins to set aside what a guest takes with RAM in `regions` (aligned to pages, in rising
    /// order).
    ///
    /// # Errors
    /// [`HostError::GuestMemory`] or [`HostError::OutOfMemory`] when the machine has too
    /// little memory left,
    /// [`HostError::Guest`] when a region does not lie within [`layout::WINDOW`].
    pub fn new(name: &str, regions: Vec<Range<GuestPhysAddr>>) -> Result<Self, HostError> {
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
        if !heap::make_room(HEAP_ROOM) {
            return Err(HostError::OutOfMemory("the hypervisor's own objects"));
        }
        let frames = ram_frames(&regions);
        let account = Account::new(frames).map_err(|available| HostError::GuestMemory {
            guest: name.into(),
            wanted: frames / 256,
            available: available / 256,
        })?;
        let tables = pool::Growing::new(table_frames(&regions)).ok_or(NO_TABLES)?;
        Ok(Self { regions, frames, account, tables })
    }

    /// Sets a little more aside. `false` when that is all.
    ///
    /// # Errors
    /// [`HostError::OutOfMemory`].
    pub fn step(&mut self) -> Result<bool, HostError> {
        self.tables.step().map_err(|_| NO_TABLES)
    }
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
        let Reservation { regions, frames, account, tables } = reservation;
        let largest = regions.iter().max_by_key(|r| r.end.checked_offset_from(r.start));
        let largest = largest.cloned().unwrap_or_default();
        let mut tables = CountedTables::new(tables.finish());
        let (window, mut nested) =
            roots(&mut tables, format).ok_or(HostError::OutOfMemory("a guest's page tables"))?;
        // Reads are emulated if that fails.
        let _ = map_empty(&mut nested, &mut tables);
        Ok(Self {
            root: window.root(),
            nested_root: nested.root(),
            largest,
            regions,
            reserved: frames,
            sealed: AtomicBool::new(false),
            touched: AtomicBool::new(false),
            inner: Mutex::new(
                Rank::Memory,
                Inner { account, tables, window, nested, apic_page: None },
            ),
        })
    }

    /// Root of the hypervisor's tables while this guest runs.
    #[must_use]
    pub fn root(&self) -> HostPhysAddr {
        self.root
    }

    /// Root of the nested tables.
    #[must_use]
    pub fn nested_root(&self) -> HostPhysAddr {
        self.nested_root
    }

    /// Puts a page at the address of the local APIC's registers, for CPUs that
    /// watch it. Without such a CPU accesses would end there. A page that is there already serves
    /// the next guest with this memory, too.
    ///
    /// # Errors
    /// [`HostError::OutOfMemory`].
    pub fn add_apic_page(&self) -> Result<HostPhysAddr, HostError> {
        let mut inner = self.inner.lock();
        let inner = &mut *inner;
        let there = inner.apic_page;
        let page = there
            .or_else(|| map_apic_page(&mut inner.nested, &mut inner.tables))
            .ok_or(HostError::OutOfMemory("the page of a guest's local APICs"))?;
        inner.apic_page = Some(page);
        Ok(page)
    }

    /// Frames that back the guest's RAM now.
    #[must_use]
    pub fn populated_frames(&self) -> u64 {
        self.inner.lock().account.0.populated()
    }

    /// Memory of the machine that it takes.
    #[must_use]
    pub fn usage(&self) -> SpaceUsage {
        let inner = self.inner.lock();
        SpaceUsage {
            reserved: self.reserved,
            populated: inner.account.0.populated(),
            stocked: inner.account.0.stocked(),
            tables: inner.tables.frames(),
        }
    }

    #[inline]
    fn region(&self, gpa: GuestPhysAddr) -> Option<&Range<GuestPhysAddr>> {
        if self.largest.contains(&gpa) {
            return Some(&self.largest);
        }
        self.regions.iter().find(|r| r.contains(&gpa))
    }

    /// Backs the first page of RAM at `gpa` or behind it, a large one if it can
    /// be; returns from where to go on, `None` behind the end of RAM.
    ///
    /// # Errors
    /// [`MemoryError::NoFrame`].
    pub fn populate_from(&self, gpa: GuestPhysAddr) -> Result<Option<GuestPhysAddr>, MemoryError> {
        let at = self.regions.iter().filter(|r| r.end > gpa).map(|r| r.start.max(gpa)).min();
        let Some(at) = at else { return Ok(None) };
        if Populate::populate(self, at)? == Populated::Soon {
            return Ok(Some(at));
        }
        let inner = self.inner.lock();
        let size = page_of(&inner, at).map_or(PAGE_SIZE, |mapping| mapping.size.bytes());
        Ok(at.align_down(size).checked_add(size))
    }

    /// Gives a block of RAM (2 MiB) at `gpa` or behind it back to the machine, when
    /// the guest is over: nobody may look at its memory any more. Returns the
    /// address behind it, `None` behind the end of RAM.
    pub fn release_from(&self, gpa: GuestPhysAddr) -> Option<GuestPhysAddr> {
        let ahead = self.regions.iter().filter(|r| r.end > gpa);
        let region = ahead.min_by_key(|r| r.start)?;
        let at = region.start.max(gpa);
        let end = region.end.min(at.align_down(LARGE).wrapping_add(LARGE));
        let bytes = end.checked_offset_from(at)?;
        let from = layout::WINDOW.at(at, bytes)?;
        let inner = &mut *self.inner.lock();
        let owner = inner.account.0.owner();
        let gone = |page, size| give_back(page, size, owner);
        // No page reaches beyond the range: none has to be split.
        let _ = inner.window.unmap(&mut inner.tables, from, bytes, gone);
        Some(end)
    }

    /// From now on nothing is written to the ROM: it has its contents.
    pub fn seal_rom(&self) {
        self.sealed.store(true, Ordering::Relaxed);
    }

    /// The first byte of a range that lies in the sealed ROM.
    fn in_sealed_rom(&self, gpa: GuestPhysAddr, len: usize) -> Option<GuestPhysAddr> {
        let end = gpa.checked_add(len as u64)?;
        let hits = gpa.as_u64() < LEGACY_HOLE_END && end.as_u64() > ROM_START;
        (hits && self.sealed.load(Ordering::Relaxed))
            .then(|| gpa.max(GuestPhysAddr::new(ROM_START)))
    }

    /// The page of this size at `gpa`, `None` where the window has none.
    #[inline(always)]
    fn page(gpa: GuestPhysAddr, size: PageSize, nested: Permissions) -> Option<Page> {
        Some(Page {
            window: layout::WINDOW.at(gpa, size.bytes())?,
            nested: gpa.as_u64(),
            size,
            window_attributes: Attributes::ram(Permissions::RW | Permissions::USER),
            nested_attributes: Attributes::ram(nested),
        })
    }

    /// Backs a page of this size at `gpa`.
    fn back(&self, gpa: GuestPhysAddr, size: PageSize) -> Backing {
        // A large page never covers the ROM: the range of video memory before
        // it is not RAM.
        let mut permissions = Permissions::RWX;
        if self.is_rom(gpa) && !cfg!(planted = "nested-page-writable") {
            permissions.remove(Permissions::WRITE);
        }
        let Some(page) = Self::page(gpa, size, permissions) else { return Backing::NoFrame };
        self.touched.store(true, Ordering::Relaxed);
        let backer = Backer { space: self, late: Cell::new(None) };
        let backing = populate::back(&backer, &page);
        // A slower vCPU goes on at once: it sees what the other one has not zeroed yet.
        if let Some((first, len)) = backer.late.take().filter(|_| backing == Backing::Now) {
            let _ = zeroing::zero(first.base(), size, 0, len);
        }
        backing
    }

    /// Zeroes some memory ahead, for first touches to come. `false` if there is
    /// nothing to do; else call again when there is time.
    pub fn prepare(&self) -> bool {
        populate::zero_ahead(&Backer { space: self, late: Cell::new(None) })
    }

    /// Whether a block was begun to be zeroed ahead, and nobody is at it.
    pub fn has_begun(&self) -> bool {
        self.inner.lock().account.0.has_begun()
    }

    /// Whether memory was touched first since the last call: the stock may not be full any more.
    pub fn take_touched(&self) -> bool {
        self.touched.load(Ordering::Relaxed) && self.touched.swap(false, Ordering::Relaxed)
    }

    /// Backs the 2 MiB at `large` from the stock. `false`: nothing has changed.
    #[inline]
    fn back_from_stock(inner: &mut Inner, large: GuestPhysAddr) -> bool {
        // A large page never covers the ROM.
        Self::page(large, PageSize::Size2M, Permissions::RWX)
            .is_some_and(|page| populate::show_ready(inner, &page))
    }

    /// The 2 MiB around `gpa`, if they are all RAM.
    #[inline]
    fn large_around(&self, gpa: GuestPhysAddr) -> Option<GuestPhysAddr> {
        let region = self.region(gpa)?;
        let large = gpa.align_down(LARGE);
        let fits =
            large >= region.start && large.checked_add(LARGE).is_some_and(|e| e <= region.end);
        fits.then_some(large)
    }

    /// [`GuestMemory::load`] where the memory has to be backed first, or another guest's is active.
    #[cold]
    fn load_anywhere(&self, gpa: GuestPhysAddr, width: Width) -> Result<u64, MemoryError> {
        let mut bytes = [0; 8];
        if let Some(part) = bytes.get_mut(..width.bytes()) {
            self.read(gpa, part)?;
        }
        Ok(u64::from_le_bytes(bytes))
    }

    /// Copies `len` bytes between the hypervisor's memory and RAM, backing what is not
    /// backed yet: `copy` gets an address in the window, how many bytes are before it, and how
    /// many follow, and returns how many of them it did not copy.
    fn transfer(
        &self,
        gpa: GuestPhysAddr,
        len: usize,
        mut copy: impl FnMut(u64, usize, usize) -> usize,
    ) -> Result<(), MemoryError> {
        transfer::transfer(self, gpa, len, |at, done, part| {
            let window = layout::WINDOW.at(at, part as u64);
            window.map_or(part, |window| host::with_root(self.root, || copy(window, done, part)))
        })
    }
}

/// A guest's memory, while a CPU backs a page of it or zeroes ahead.
struct Backer<'a> {
    space: &'a GuestSpace,
    /// With a fault planted: what is zeroed too late.
    late: Cell<Option<(Hfn, usize)>>,
}

impl populate::Space for Backer<'_> {
    type Guarded = Inner;

    fn locked<R>(&self, work: impl FnOnce(&mut Inner) -> R) -> R {
        work(&mut self.space.inner.lock())
    }

    fn try_locked<R>(&self, work: impl FnOnce(&mut Inner) -> R) -> Option<R> {
        self.space.inner.try_lock().map(|mut inner| work(&mut inner))
    }

    fn frames<R>(&self, work: impl FnOnce(&mut FrameAllocator<'_>) -> R) -> Option<R> {
        FRAMES.lock().as_mut().map(work)
    }

    fn zero(&self, first: Hfn, size: PageSize, offset: u64, len: usize) -> usize {
        if cfg!(planted = "memory-zeroed-late") && len as u64 == size.bytes() {
            self.late.set(Some((first, len)));
            return 0;
        }
        zeroing::zero(first.base(), size, offset, len)
    }
}

impl Populate for GuestSpace {
    fn room(&self, gpa: GuestPhysAddr) -> Option<u64> {
        self.region(gpa)?.end.checked_offset_from(gpa)
    }

    fn populate(&self, gpa: GuestPhysAddr) -> Result<Populated, MemoryError> {
        self.region(gpa).ok_or(MemoryError::NotRam(gpa))?;
        if let Some(large) = self.large_around(gpa) {
            match self.back(large, PageSize::Size2M) {
                Backing::Now => return Ok(Populated::Now),
                Backing::Soon => return Ok(Populated::Soon),
                // A part of it has small pages, or there is no such block.
                Backing::Before | Backing::NoFrame => (),
            }
        }
        match self.back(gpa.align_down(PAGE_SIZE), PageSize::Size4K) {
            Backing::Now => Ok(Populated::Now),
            Backing::Before => Ok(Populated::Before),
            Backing::Soon => Ok(Populated::Soon),
            Backing::NoFrame => Err(MemoryError::NoFrame(gpa)),
        }
    }
}

impl GuestMemory for GuestSpace {
    fn read(&self, gpa: GuestPhysAddr, buffer: &mut [u8]) -> Result<(), MemoryError> {
        let target = buffer.as_mut_ptr();
        self.transfer(gpa, buffer.len(), |window, done, part| {
            // SAFETY: the source lies in the active guest's window; the target
            // is the part of `buffer` that starts at `done`.
            unsafe { copy::copy(window, target.wrapping_add(done) as u64, part) }
        })
    }

    fn write(&self, gpa: GuestPhysAddr, data: &[u8]) -> Result<(), MemoryError> {
        if let Some(first) = self.in_sealed_rom(gpa, data.len()) {
            return Err(MemoryError::ReadOnly(first));
        }
        let source = data.as_ptr();
        self.transfer(gpa, data.len(), |window, done, part| {
            // SAFETY: the target lies in the active guest's window; the source
            // is the part of `data` that starts at `done`.
            unsafe { copy::copy(source.wrapping_add(done) as u64, window, part) }
        })
    }

    #[inline]
    fn load(&self, gpa: GuestPhysAddr, width: Width) -> Result<u64, MemoryError> {
        let bytes = width.bytes() as u64;
        if self.largest.contains(&gpa)
            && self.largest.end.checked_offset_from(gpa) >= Some(bytes)
            && host::is_active(self.root)
            && let Some(at) = layout::WINDOW.at(gpa, bytes)
        {
            // SAFETY: the address lies in the active guest's window.
            if let Ok(value) = unsafe { copy::load(at, width) } {
                return Ok(value);
            }
        }
        self.load_anywhere(gpa, width)
    }

    fn compare_exchange(
        &self,
        gpa: GuestPhysAddr,
        width: Width,
        current: u64,
        new: u64,
    ) -> Result<u64, MemoryError> {
        let fits = self.room(gpa).is_some_and(|room| room >= width.bytes() as u64);
        if !fits || !gpa.is_aligned(width.bytes() as u64) {
            return Err(MemoryError::NotRam(gpa));
        }
        if let Some(first) = self.in_sealed_rom(gpa, width.bytes()) {
            return Err(MemoryError::ReadOnly(first));
        }
        let bytes = width.bytes() as u64;
        let at = layout::WINDOW.at(gpa, bytes).ok_or(MemoryError::NotRam(gpa))?;
        transfer::exchange(self, gpa, || {
            host::with_root(self.root, || {
                // SAFETY: the address lies in the active guest's window and is aligned.
                unsafe { copy::compare_exchange(at, width, current, new) }.ok()
            })
        })
    }
}

impl GuestRam for GuestSpace {
    fn is_ram(&self, gpa: GuestPhysAddr) -> bool {
        self.region(gpa).is_some()
    }

    fn is_rom(&self, gpa: GuestPhysAddr) -> bool {
        (ROM_START..LEGACY_HOLE_END).contains(&gpa.as_u64())
    }

    fn populate(&self, gpa: GuestPhysAddr) -> Result<(), MemoryError> {
        Populate::populate(self, gpa).map(drop)
    }

    fn open_apic_page(&self) {
        self.inner.lock().protect_apic_page(Permissions::RW);
    }

    fn close_apic_page(&self) {
        self.inner.lock().protect_apic_page(Permissions::READ);
    }
}

impl HotRam for GuestSpace {
    fn touch(&self, gpa: GuestPhysAddr) -> bool {
        // A large page never covers the ROM: the range of video memory before
        // it is not RAM.
        let Some(large) = self.large_around(gpa) else { return false };
        self.touched.store(true, Ordering::Relaxed);
        self.inner.try_lock().is_some_and(|mut inner| Self::back_from_stock(&mut inner, large))
    }
}

impl Drop for GuestSpace {
    fn drop(&mut self) {
        let inner = self.inner.get_mut();
        let owner = inner.account.0.owner();
        while let Some(block) = inner.account.0.pop() {
            super::free_frames(block, ORDER_2M, owner);
        }
        // The window goes first: its pages are the frames; the nested tables
        // refer to the same ones.
        Mapper::<HostTable>::from_root(self.root, PageSize::Size2M)
            .free_all(&mut inner.tables, |page, size| give_back(page, size, owner));
        match &inner.nested {
            Nested::Npt(m) => free_tables(m, &mut inner.tables),
            Nested::Ept(m) => free_tables(m, &mut inner.tables),
        }
        if let Some(page) = inner.apic_page {
            inner.tables.free_table(page);
        }
    }
}

/// Empty tables for a guest: the window, in which the hypervisor sees itself too, and the nested
/// ones. `None` if there is no frame for one; then none is kept.
fn roots(tables: &mut CountedTables, format: NestedFormat) -> Option<(Mapper<HostTable>, Nested)> {
    let mut window = Mapper::<HostTable>::new(tables, PageSize::Size2M).ok()?;
    let owner = host::kernel_mapper();
    let shares = host::shared_slots().all(|slot| window.share_slot(tables, slot, &owner).is_ok());
    let nested = match format {
        _ if !shares => None,
        NestedFormat::Npt => Mapper::new(tables, PageSize::Size2M).ok().map(Nested::Npt),
        NestedFormat::Ept => Mapper::new(tables, PageSize::Size2M).ok().map(Nested::Ept),
    };
    if let Some(nested) = nested {
        return Some((window, nested));
    }
    window.free_all(tables, |_, _| ());
    None
}

/// The page of RAM at `gpa`, if it is backed.
fn page_of(inner: &Inner, gpa: GuestPhysAddr) -> Option<Mapping> {
    inner.window.query(&inner.tables, layout::WINDOW.at(gpa, 1)?)
}

/// A page of a guest's RAM goes back to the machine.
fn give_back(hpa: HostPhysAddr, size: PageSize, owner: Owner) {
    super::free_frames(hpa.page(), order(size), owner);
}

/// Lets the guest read where it has nothing below 1 MiB. Writes still end there, and are lost.
fn map_empty(nested: &mut Nested, tables: &mut CountedTables) -> Option<()> {
    let page = empty::page()?;
    let readable = Permissions::READ | Permissions::EXECUTE;
    let mut pages = (LOW_HOLE.start..LOW_HOLE.end).step_by(4096);
    pages.all(|at| nested.map(tables, at, page, PAGE_SIZE, readable)).then_some(())
}

/// Takes a page for the local APIC's registers and maps it there.
fn map_apic_page(nested: &mut Nested, tables: &mut CountedTables) -> Option<HostPhysAddr> {
    let page = tables.alloc_table().ok()?;
    let bytes = super::direct(page) as *mut u8;
    // SAFETY: the page was just taken, and is mapped at its direct address.
    unsafe { bytes.write_bytes(0xff, 4096) };
    if nested.map(tables, APIC_BASE_ADDRESS, page, PAGE_SIZE, Permissions::RW) {
        return Some(page);
    }
    tables.free_table(page);
    None
}

fn free_tables<F: Format>(mapper: &Mapper<F>, tables: &mut CountedTables) {
    Mapper::<F>::from_root(mapper.root(), mapper.max_leaf()).free_all(tables, |_, _| ());
}
