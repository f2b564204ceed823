//! Memory of the machine: who owns each frame, the hypervisor's own page
//! tables and heap, and the address space of each guest.
//!
//! [`init`] takes over from the bootloader: it builds the frame table, gives
//! the image new page tables (writable or executable, never both) and leaves
//! the bootloader's window on all memory behind. From then on the hypervisor
//! can reach its own memory ([`layout::DIRECT`]) and, while a guest's address
//! space is active, that guest's RAM; nothing else is mapped.

mod copy;
pub mod guest;
mod heap;
mod host;
pub mod layout;
mod pool;
mod stock;
pub mod upload;
mod zeroing;

pub use heap::{has_room_for, usage as heap_usage};
pub use host::{
    Handover, START_UP_BYTES, init, kernel_root, kernel_root_entry, map_device, map_firmware,
    map_low, map_stack, protect, with_root,
};
pub use pool::{
    Tables, allocate as allocate_page, allocate_run, free as free_page, used as pool_used,
};

use core::sync::atomic::{AtomicU64, Ordering};
use paging::frames::{FrameAllocator, FrameFlags, Owner};
use spin::Mutex;
use x86defs::HostPhysAddr;
use x86defs::addr::Hfn;

/// Every frame of the machine.
static FRAMES: Mutex<Option<FrameAllocator<'static>>> = Mutex::new(None);

/// Takes 2^`order` frames for `owner`. See [`FrameAllocator::allocate`].
#[must_use]
pub fn allocate_frames(order: u8, owner: Owner) -> Option<(Hfn, FrameFlags)> {
    FRAMES.lock().as_mut()?.allocate(order, owner)
}

/// Gives frames back.
pub fn free_frames(first: Hfn, order: u8) {
    let freed = FRAMES.lock().as_mut().is_some_and(|frames| frames.free(first, order));
    if !freed {
        log::error!("{first:?} was given back, but is not in use");
    }
}

/// Frames that are free, and frames in all.
#[must_use]
pub fn frame_counts() -> (u64, u64) {
    FRAMES.lock().as_ref().map_or((0, 0), |f| (f.free_frames(), f.total_frames()))
}

/// Where host-physical address 0 stands: the bootloader's window until our own
/// tables are in force, then [`layout::DIRECT`].
static DIRECT_BASE: AtomicU64 = AtomicU64::new(0);

/// The address at which the hypervisor sees a byte of its own memory.
#[must_use]
pub fn direct(address: HostPhysAddr) -> u64 {
    DIRECT_BASE.load(Ordering::Relaxed) + address.as_u64()
}
