//! Memory for files that come while the machine runs: whole large pages, mapped
//! one behind the other in [`layout::UPLOADS`].
//!
//! Addresses are used again. A CPU may have cached what stood at one before, used or not: each
//! CPU forgets all of it ([`settle`]) before it looks at a file that was mapped since.

use super::pool::Tables;
use super::{FRAMES, host, layout};
use crate::cpu::percpu::{self, MAX_CPUS};
use core::sync::atomic::{AtomicU64, Ordering};
use memory::addresses::Addresses;
use memory::frames::{ORDER_2M, Owner, Source};
use memory::stage2::{Attributes, PageSize, Permissions};
use spin::Mutex;
use x86_64::instructions::tlb;

const BLOCK: u64 = 2 << 20;

/// Addresses that no file has.
static ADDRESSES: Mutex<Option<Addresses>> = Mutex::new(None);
/// How many files have been mapped.
static MAPPED: AtomicU64 = AtomicU64::new(0);
/// How many files had been mapped when each CPU last forgot what it had cached.
static SEEN: [AtomicU64; MAX_CPUS] = [const { AtomicU64::new(0) }; MAX_CPUS];

/// Makes the CPU forget what stood at the addresses of files before, before it looks at one.
/// A service calls this at the beginning of each step in which it reads files: it may have
/// moved.
pub fn settle() {
    let mapped = MAPPED.load(Ordering::Acquire);
    if SEEN[percpu::this().index() % MAX_CPUS].swap(mapped, Ordering::Relaxed) != mapped {
        // Files are not mapped as global pages.
        tlb::flush_all();
    }
}

/// Memory for one file.
#[derive(Debug)]
pub struct FileMemory {
    base: u64,
    /// Bytes that its addresses are for: whole blocks.
    addresses: u64,
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
        if super::frame_counts().spare() < bytes / 4096 {
            return None;
        }
        let size = usize::try_from(size).ok()?;
        let base = ADDRESSES.lock().get_or_insert_with(all).take(bytes)?;
        // A failure from here on gives the addresses back.
        let mut memory = Self { base, addresses: bytes, mapped: 0, size };
        while memory.mapped < bytes {
            memory.grow()?;
        }
        MAPPED.fetch_add(1, Ordering::Release);
        Some(memory)
    }

    fn grow(&mut self) -> Option<()> {
        let owner = Owner::HYPERVISOR;
        let frame = FRAMES.lock().as_mut()?.allocate(ORDER_2M, owner, Source::Spare)?;
        let rw = Attributes::ram(Permissions::RW);
        let (mut mapper, at) = (host::kernel_mapper(), self.base + self.mapped);
        let Ok(vacancy) = mapper.make_vacancy(&mut Tables, at, PageSize::Size2M) else {
            super::free_frames(frame, ORDER_2M, owner);
            return None;
        };
        mapper.fill(&mut Tables, vacancy, frame.base(), rw);
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
            settle();
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

    /// The file's content.
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
        let (mut at, end) = (self.base, self.base + self.mapped);
        while at < end {
            let mapping = mapper.query(&Tables, at);
            // The tables stay: a CPU may walk them any time, for whatever it guesses.
            mapper.vacate(&mut Tables, at, PageSize::Size2M);
            if let Some(mapping) = mapping {
                super::free_frames(mapping.hpa.page(), ORDER_2M, Owner::HYPERVISOR);
            }
            at += BLOCK;
        }
        ADDRESSES.lock().get_or_insert_with(all).give_back(self.base, self.addresses);
    }
}

/// The addresses that files may have.
fn all() -> Addresses {
    Addresses::new(layout::UPLOADS..layout::UPLOADS + layout::SLOT_SIZE)
}
