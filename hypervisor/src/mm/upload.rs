//! Memory for files that come while the machine runs: whole large pages, mapped
//! one behind the other in [`layout::UPLOADS`].
//!
//! An address is used once in the machine's life: no CPU has to be told when a
//! mapping ends, since nothing will stand there again. What CPUs remember of the tables
//! above it goes whenever they load CR3, as they do before they read a file.

use super::pool::Tables;
use super::{FRAMES, host, layout};
use core::sync::atomic::{AtomicU64, Ordering};
use paging::frames::{ORDER_2M, Owner};
use paging::stage2::{Attributes, Permissions};
use x86_64::VirtAddr;
use x86_64::instructions::tlb;

const BLOCK: u64 = 2 << 20;

/// The next address that was never used.
static NEXT: AtomicU64 = AtomicU64::new(layout::UPLOADS);

/// Memory for one file.
#[derive(Debug)]
pub struct FileMemory {
    base: u64,
    /// Bytes that are mapped: whole blocks.
    mapped: u64,
    size: usize,
}

impl FileMemory {
    /// Room for `size` bytes. `None` if there is none that guests were not
    /// promised.
    #[must_use]
    pub fn new(size: u64) -> Option<Self> {
        let bytes = size.checked_next_multiple_of(BLOCK).filter(|_| size != 0)?;
        // An address is never used again: none is spent for nothing.
        let (free, _) = super::frame_counts();
        if free.saturating_sub(super::guest::reserved_frames()) < bytes / 4096 {
            return None;
        }
        let limit = layout::UPLOADS + layout::SLOT_SIZE;
        let base = NEXT
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |next| {
                next.checked_add(bytes).filter(|end| *end <= limit)
            })
            .ok()?;
        let mut memory = Self { base, mapped: 0, size: usize::try_from(size).ok()? };
        while memory.mapped < bytes {
            memory.grow()?;
        }
        Some(memory)
    }

    fn grow(&mut self) -> Option<()> {
        let (frame, _) = FRAMES.lock().as_mut().and_then(|frames| {
            // Nothing is promised while the lock is held.
            let promised = super::guest::reserved_frames();
            let spare = frames.free_frames().checked_sub(promised)?;
            (spare >= BLOCK / 4096).then(|| frames.allocate(ORDER_2M, Owner::HYPERVISOR))?
        })?;
        let rw = Attributes::ram(Permissions::RW);
        let at = self.base + self.mapped;
        if host::kernel_mapper().map(&mut Tables, at, frame.base(), BLOCK, rw).is_err() {
            super::free_frames(frame, ORDER_2M);
            return None;
        }
        self.mapped += BLOCK;
        Some(())
    }

    /// Writes `bytes` at `offset`; `false` if they don't lie within the file.
    #[must_use]
    pub fn write(&mut self, offset: u64, bytes: &[u8]) -> bool {
        let fits = usize::try_from(offset)
            .ok()
            .and_then(|offset| offset.checked_add(bytes.len()))
            .is_some_and(|end| end <= self.size);
        if fits {
            // SAFETY: the range lies within the mapping, which is this file's
            // alone; `&mut self` keeps readers away.
            unsafe {
                core::ptr::copy_nonoverlapping(
                    bytes.as_ptr(),
                    (self.base + offset) as *mut u8,
                    bytes.len(),
                );
            }
        }
        fits
    }

    /// What is there.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: all of the file is mapped while `self` lives; frames hold
        // initialized bytes, whatever they are.
        unsafe { core::slice::from_raw_parts(self.base as *const u8, self.size) }
    }
}

impl Drop for FileMemory {
    fn drop(&mut self) {
        let mut mapper = host::kernel_mapper();
        let mut at = self.base;
        while at < self.base + self.mapped {
            let gone = |frame: x86defs::HostPhysAddr, _| super::free_frames(frame.page(), ORDER_2M);
            // What was mapped in large pages is unmapped in large pages.
            let _ = mapper.unmap(&mut Tables, at, BLOCK, gone);
            tlb::flush(VirtAddr::new(at));
            at += BLOCK;
        }
    }
}
