//! The hypervisor's own page tables, and the hand-over from the bootloader.

use super::pool::{self, Tables};
use super::{DIRECT_BASE, FRAMES, copy, heap, layout};
use crate::cpu::{self, msr};
use crate::error::HostError;
use bootloader_api::BootInfo;
use bootloader_api::info::MemoryRegionKind;
use core::mem::MaybeUninit;
use core::sync::atomic::{AtomicU64, Ordering};
use memory::frames::{Frame, FrameAllocator};
use memory::stage2::{
    Attributes, Format, HOST_PAT, HostTable, Mapper, PageSize, Permissions, TableMemory,
};
use spin::Mutex;
use x86_64::PhysAddr;
use x86_64::registers::control::{Cr3, Cr3Flags, Cr4, Cr4Flags};
use x86_64::structures::paging::PhysFrame;
use x86defs::addr::{Hfn, PAGE_SIZE};
use x86defs::cpuid::Guards;
use x86defs::pte::{MemoryType, Pte};
use x86defs::{HostPhysAddr, Msr};

/// Memory below this is left alone: firmware's tables, and the page that
/// application processors start in.
const LOW_MEMORY_END: u64 = 1 << 20;
/// The old video memory, behind which there is no RAM to start a CPU in.
const VIDEO_MEMORY: u64 = 0xa_0000;
const BLOCK: u64 = 2 << 20;
/// No table of firmware's is larger.
const MOST_FIRMWARE: u64 = 16 << 20;
/// Bytes of low memory for starting application processors.
pub const START_UP_BYTES: u64 = 4 * PAGE_SIZE;

/// Root of the tables that only the hypervisor itself is mapped in.
static KERNEL_ROOT: AtomicU64 = AtomicU64::new(0);
/// The next free address among the device mappings.
static NEXT_DEVICE: Mutex<u64> = Mutex::new(layout::DEVICES);
/// The next free address among the stacks.
static NEXT_STACK: Mutex<u64> = Mutex::new(layout::STACKS);

/// Data that the bootloader left, checked.
#[derive(Debug)]
pub struct Handover {
    /// The bundle.
    pub ramdisk: &'static [u8],
    /// Host-physical address of the ACPI root pointer, if there is one.
    pub rsdp: Option<HostPhysAddr>,
    /// [`START_UP_BYTES`] of free memory below 640 KiB, page-aligned.
    pub low_pages: Option<HostPhysAddr>,
}

/// Takes memory over from the bootloader; see the [module](super).
///
/// # Errors
/// [`HostError`] when the bootloader passed too little, or the machine has too
/// little memory for the hypervisor.
pub(super) fn init(info: &'static mut BootInfo) -> Result<Handover, HostError> {
    let window = info
        .physical_memory_offset
        .into_option()
        .ok_or(HostError::BootInfo("window on physical memory"))?;
    let ramdisk = info.ramdisk_addr.into_option().ok_or(HostError::BootInfo("ramdisk"))?;
    DIRECT_BASE.store(window, Ordering::Relaxed);

    let end = usable(info).map(|(_, end)| end).max().unwrap_or(0);
    let table_bytes = (end / PAGE_SIZE * size_of::<Frame>() as u64).next_multiple_of(BLOCK);
    let taken_bytes = BLOCK + table_bytes;
    // The highest place that fits: memory below 4 GiB is precious to devices.
    let start = usable(info)
        .filter_map(|(start, end)| {
            let place = end.checked_sub(taken_bytes)? & !(BLOCK - 1);
            (place >= start).then_some(place)
        })
        .max()
        .ok_or(HostError::OutOfMemory("the frame table"))?;
    pool::start(HostPhysAddr::new(start).page());
    let frame_table = HostPhysAddr::new(start + BLOCK);

    let root = build(info, HostPhysAddr::new(start), frame_table, table_bytes, end)?;
    enter(root);
    DIRECT_BASE.store(layout::DIRECT, Ordering::Relaxed);
    KERNEL_ROOT.store(root.as_u64(), Ordering::Relaxed);

    let entries = (end / PAGE_SIZE) as usize;
    // SAFETY: the range was mapped for the table alone, writable, for good;
    // what it holds counts as uninitialized until it is filled.
    let table = unsafe {
        core::slice::from_raw_parts_mut(layout::FRAME_TABLE as *mut MaybeUninit<Frame>, entries)
    };
    for slot in table.iter_mut() {
        slot.write(Frame::ABSENT);
    }
    // SAFETY: every entry was just written.
    let table = unsafe { table.assume_init_mut() };
    let mut frames = FrameAllocator::new(table);
    for (from, to) in usable(info) {
        for (from, to) in [(from, to.min(start)), (from.max(start + taken_bytes), to)] {
            let first = from.div_ceil(PAGE_SIZE);
            if let Some(count) = (to / PAGE_SIZE).checked_sub(first) {
                frames.add(Hfn::new(first), count);
            }
        }
    }
    *FRAMES.lock() = Some(frames);
    pool::let_grow(root);
    if !heap::start(root) {
        return Err(HostError::OutOfMemory("the heap"));
    }
    let len = usize::try_from(info.ramdisk_len).unwrap_or(0);
    // SAFETY: the bootloader mapped the ramdisk there and `build` kept the
    // mapping; nothing writes to it.
    let ramdisk = unsafe { core::slice::from_raw_parts(ramdisk as *const u8, len) };
    let rsdp = info.rsdp_addr.into_option().map(HostPhysAddr::new);
    Ok(Handover { ramdisk, rsdp, low_pages: low_pages(info) })
}

/// Usable ranges above the first MiB.
fn usable(info: &BootInfo) -> impl Iterator<Item = (u64, u64)> + '_ {
    info.memory_regions
        .iter()
        .filter(|r| r.kind == MemoryRegionKind::Usable)
        .map(|r| (r.start.max(LOW_MEMORY_END), r.end))
        .filter(|(start, end)| start < end)
}

/// The highest free place below the old video memory, but not page 0.
fn low_pages(info: &BootInfo) -> Option<HostPhysAddr> {
    info.memory_regions
        .iter()
        .filter(|r| r.kind == MemoryRegionKind::Usable)
        .filter_map(|r| {
            let place = r.end.min(VIDEO_MEMORY).checked_sub(START_UP_BYTES)? & !(PAGE_SIZE - 1);
            (place >= r.start.max(PAGE_SIZE)).then_some(HostPhysAddr::new(place))
        })
        .max()
}

/// New tables: the pool's first block, the frame table, and what the
/// bootloader mapped in the image's slot.
fn build(
    info: &BootInfo,
    block: HostPhysAddr,
    frame_table: HostPhysAddr,
    table_bytes: u64,
    end: u64,
) -> Result<HostPhysAddr, HostError> {
    let out = |_| HostError::OutOfMemory("page tables");
    let full = || HostError::OutOfMemory("page tables");
    let mem = &mut Tables;
    let mut mapper = Mapper::<HostTable>::new(mem, PageSize::Size2M).map_err(out)?;
    let slots = pool::direct_slots(HostPhysAddr::new(end)).chain(
        [
            layout::FRAME_TABLE,
            layout::DEVICES,
            layout::STACKS,
            layout::HEAP,
            layout::UPLOADS,
            layout::IMAGE,
        ]
        .map(layout::slot),
    );
    for slot in slots {
        mapper.reserve_slot(mem, slot).map_err(|_| full())?;
    }
    let rw = Attributes::ram(Permissions::RW | Permissions::GLOBAL);
    mapper.map(mem, layout::DIRECT + block.as_u64(), block, BLOCK, rw).map_err(|_| full())?;
    mapper.map(mem, layout::FRAME_TABLE, frame_table, table_bytes, rw).map_err(|_| full())?;

    let framebuffer = info.framebuffer.as_ref().map(|f| {
        let start = f.buffer().as_ptr() as u64;
        start & !(PAGE_SIZE - 1)..start + f.info().byte_len as u64
    });
    let boot_root = HostPhysAddr::new(Cr3::read().0.start_address().as_u64());
    each_page(boot_root, |address, entry| {
        let mut permissions = Permissions::READ | Permissions::GLOBAL;
        permissions.set(Permissions::WRITE, entry & Pte::W.bits() != 0);
        permissions.set(Permissions::EXECUTE, entry & Pte::NX.bits() == 0);
        if permissions.contains(Permissions::WRITE | Permissions::EXECUTE) {
            return Err(HostError::WritableCode(address));
        }
        let memory_type = match &framebuffer {
            Some(range) if range.contains(&address) => MemoryType::WriteCombining,
            _ => MemoryType::WriteBack,
        };
        let hpa = HostTable::page(entry, PageSize::Size4K);
        mapper
            .map(mem, address, hpa, PAGE_SIZE, Attributes { permissions, memory_type })
            .map_err(|_| full())
    })?;
    Ok(mapper.root())
}

/// Calls `visit` with each small page that the bootloader mapped in the
/// image's slot.
fn each_page(
    root: HostPhysAddr,
    mut visit: impl FnMut(u64, u64) -> Result<(), HostError>,
) -> Result<(), HostError> {
    let next = |table: HostPhysAddr, index: usize| {
        let entry = Tables.read(table, index);
        HostTable::is_present(entry).then(|| HostTable::next(entry))
    };
    let Some(level3) = next(root, layout::slot(layout::IMAGE)) else {
        return Err(HostError::BootInfo("mapping of the image"));
    };
    for i3 in 0..512 {
        let Some(level2) = next(level3, i3) else { continue };
        for i2 in 0..512 {
            let Some(level1) = next(level2, i2) else { continue };
            for i1 in 0..512 {
                let entry = Tables.read(level1, i1);
                if HostTable::is_present(entry) {
                    let offset = ((i3 * 512 + i2) * 512 + i1) as u64 * PAGE_SIZE;
                    visit(layout::IMAGE + offset, entry)?;
                }
            }
        }
    }
    Ok(())
}

/// Puts the tables at `root` in force, with the memory types and guards that
/// they count on.
fn enter(root: HostPhysAddr) {
    // SAFETY: every 64-bit CPU has PAT, and the value holds valid types; the
    // bootloader's tables use entries 0 and 3 only, which stay what they were.
    unsafe { msr::write(Msr::PAT, HOST_PAT) };
    load(root);
    protect();
}

/// Switches on what guards user pages, and the global bit, on the calling CPU,
/// which uses the hypervisor's tables.
pub fn protect() {
    let guards = Guards::of(&cpu::cpuid_checked);
    let mut cr4 = Cr4::read() | Cr4Flags::PAGE_GLOBAL;
    cr4.set(Cr4Flags::SUPERVISOR_MODE_EXECUTION_PROTECTION, guards.smep);
    cr4.set(Cr4Flags::SUPERVISOR_MODE_ACCESS_PREVENTION, guards.smap);
    // SAFETY: the CPU has the features; no supervisor page is marked as the user's.
    unsafe { Cr4::write(cr4) };
    copy::set_smap(guards.smap);
}

/// Loads the tables at `root`. The CPU forgets what it has cached of those before, and of these, but
/// for what is marked as global.
pub(super) fn load(root: HostPhysAddr) {
    let frame = PhysFrame::containing_address(PhysAddr::new(root.as_u64()));
    // SAFETY: every root that this module hands out maps the image, the stacks
    // and all else that the hypervisor uses.
    unsafe { Cr3::write(frame, Cr3Flags::empty()) };
}

/// Root of the tables in which no guest is mapped.
#[must_use]
pub fn kernel_root() -> HostPhysAddr {
    HostPhysAddr::new(KERNEL_ROOT.load(Ordering::Relaxed))
}

/// Entry `index` of the root table in which no guest is mapped.
#[must_use]
pub fn kernel_root_entry(index: usize) -> u64 {
    Tables.read(kernel_root(), index)
}

/// The tables of the hypervisor alone.
pub(super) fn kernel_mapper() -> Mapper<HostTable> {
    Mapper::from_root(kernel_root(), PageSize::Size2M)
}

/// Slots that every address space shares.
pub(super) fn shared_slots() -> impl Iterator<Item = usize> {
    (257..512).filter(|slot| {
        let entry = Tables.read(kernel_root(), *slot);
        HostTable::is_present(entry)
    })
}

/// Whether the address space at `root` is active.
#[inline]
pub(super) fn is_active(root: HostPhysAddr) -> bool {
    Cr3::read_raw().0.start_address().as_u64() == root.as_u64()
}

/// Runs `f` in the address space at `root`.
pub(super) fn with_root<R>(root: HostPhysAddr, f: impl FnOnce() -> R) -> R {
    let active = HostPhysAddr::new(Cr3::read().0.start_address().as_u64());
    load(root);
    let result = f();
    load(active);
    result
}

/// Maps `len` bytes of device registers at `base`, uncached, for good, and
/// returns where.
///
/// # Errors
/// [`HostError::OutOfMemory`] if there is no frame for a table.
pub fn map_device(base: HostPhysAddr, len: u64) -> Result<u64, HostError> {
    let mut attributes = Attributes::device();
    attributes.permissions |= Permissions::GLOBAL;
    map(base, len, attributes)
}

fn map(base: HostPhysAddr, len: u64, attributes: Attributes) -> Result<u64, HostError> {
    let first = base.align_down(PAGE_SIZE);
    let bytes = (base.page_offset() + len).next_multiple_of(PAGE_SIZE);
    let mut next = NEXT_DEVICE.lock();
    let address = *next;
    kernel_mapper()
        .map(&mut Tables, address, first, bytes, attributes)
        .map_err(|_| HostError::OutOfMemory("device registers"))?;
    *next += bytes;
    Ok(address + base.page_offset())
}

/// Maps `len` bytes of firmware's tables at `base`, read-only, for good, and
/// returns where; `None` if that is beyond sense or there is no frame for a table.
#[must_use]
pub fn map_firmware(base: HostPhysAddr, len: u64) -> Option<u64> {
    let attributes = Attributes::ram(Permissions::READ | Permissions::GLOBAL);
    (len <= MOST_FIRMWARE).then(|| map(base, len, attributes).ok())?
}

/// Takes away the right to write to `len` bytes at `at`, which [`map_low`] mapped. Cached
/// translations are the caller's to forget. `false`: there was no frame for a table.
pub(super) fn make_read_only(at: u64, len: u64) -> bool {
    let attributes = Attributes::ram(Permissions::READ | Permissions::GLOBAL);
    // Nobody edits the tables of this slot meanwhile.
    let _alone = NEXT_DEVICE.lock();
    kernel_mapper().protect(&mut Tables, at, len, attributes).is_ok()
}

/// Maps `len` bytes of free memory at `base`, writable, for good, and
/// returns where.
///
/// # Errors
/// [`HostError::OutOfMemory`] if there is no frame for a table.
pub fn map_low(base: HostPhysAddr, len: u64) -> Result<u64, HostError> {
    map(base, len, Attributes::ram(Permissions::RW | Permissions::GLOBAL))
}

/// Makes a stack of `pages` pages between unmapped ones and returns its top.
///
/// # Errors
/// [`HostError::OutOfMemory`] if there are no frames left.
pub fn map_stack(pages: u64) -> Result<u64, HostError> {
    let out = || HostError::OutOfMemory("a stack");
    let mut next = NEXT_STACK.lock();
    let bottom = *next + PAGE_SIZE;
    for page in 0..pages {
        let frame = pool::allocate().ok_or_else(out)?;
        kernel_mapper()
            .map(
                &mut Tables,
                bottom + page * PAGE_SIZE,
                frame,
                PAGE_SIZE,
                Attributes::ram(Permissions::RW | Permissions::GLOBAL),
            )
            .map_err(|_| out())?;
    }
    *next = bottom + pages * PAGE_SIZE;
    Ok(*next)
}
