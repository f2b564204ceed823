//! Memory of the machine: who owns each frame, the hypervisor's own page
//! tables and heap, and the address space of each guest.
//!
//! [`init`] takes over from the bootloader: it builds the frame table, gives
//! the image new page tables (writable or executable, never both) and leaves
//! the bootloader's window on all memory behind. From then on the hypervisor
//! can reach its own memory ([`layout::DIRECT`]) and, while a guest's address
//! space is active, that guest's RAM; nothing else is mapped.

mod copy;
mod empty;
pub mod guest;
mod heap;
mod host;
pub mod layout;
mod pool;
mod sealed;
pub mod upload;
mod zeroing;

pub use heap::{has_room_for, usage as heap_usage};
pub use host::{
    Handover, START_UP_BYTES, kernel_root, kernel_root_entry, map_device, map_firmware, map_low,
    map_stack, protect,
};
pub use pool::{Tables, allocate as allocate_page, free as free_page, used as pool_used};

pub use sealed::Unsealed;

use crate::error::HostError;
use bootloader_api::BootInfo;
use core::sync::atomic::{AtomicU64, Ordering};
use locks::{Mutex, Rank};
use memory::frames::{FrameAllocator, NotYours, Owner};
use x86defs::HostPhysAddr;
use x86defs::addr::Hfn;

/// Iterations of the machine's string copies so far: of one byte, and of eight.
#[cfg(feature = "stamp-exits")]
#[must_use]
pub fn copied() -> [u64; 2] {
    copy::stamped::all()
}

/// Takes the machine's memory over.
///
/// # Errors
/// [`HostError`] says what is short.
pub fn init(info: &'static mut BootInfo) -> Result<Handover, HostError> {
    let handover = host::init(info)?;
    zeroing::start().ok_or(HostError::OutOfMemory("page tables"))?;
    Ok(handover)
}

/// Every frame of the machine.
static FRAMES: Mutex<Option<FrameAllocator<'static>>> = Mutex::new(Rank::Frames, None);

/// Gives back a block of 2^`order` frames of `owner`'s.
fn free_frames(first: Hfn, order: u8, owner: Owner) {
    let Some(Err(refused)) = FRAMES.lock().as_mut().map(|f| f.free(first, order, owner)) else {
        return;
    };
    let NotYours { frame, owner: other } = refused;
    log::error!(
        "an internal error: {owner:?} gave 2^{order} frames at {first:?} back, but {frame:?} is \
         of {other:?}: they are lost until the machine starts anew"
    );
}

/// Counts of the machine's frames.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FrameCounts {
    /// Free.
    pub free: u64,
    /// Of these: promised to guests that have not taken them yet.
    pub promised: u64,
    /// In all, free or not.
    pub total: u64,
}

impl FrameCounts {
    /// Free, and promised to nobody.
    #[must_use]
    pub const fn spare(self) -> u64 {
        self.free.saturating_sub(self.promised)
    }
}

/// How many frames there are.
#[must_use]
pub fn frame_counts() -> FrameCounts {
    let frames = FRAMES.lock();
    frames.as_ref().map_or_else(FrameCounts::default, |frames| FrameCounts {
        free: frames.free_frames(),
        promised: frames.promised_frames(),
        total: frames.total_frames(),
    })
}

/// Virtual address of host-physical address 0: the bootloader's window until our own
/// tables are in force, then [`layout::DIRECT`].
static DIRECT_BASE: AtomicU64 = AtomicU64::new(0);

/// The address at which the hypervisor sees a byte of its own memory.
#[must_use]
pub fn direct(address: HostPhysAddr) -> u64 {
    DIRECT_BASE.load(Ordering::Relaxed) + address.as_u64()
}
