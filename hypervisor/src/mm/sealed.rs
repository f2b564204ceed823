//! Memory that is written once, at boot, and is read-only from then on: descriptor tables,
//! and the maps by which a CPU lets guests through to ports and registers. A program that
//! could write there would control the machine, and none has to.
//!
//! It lies in frames that are mapped nowhere else: no other address of theirs is writable.

use super::{FRAMES, free_frames, host};
use crate::error::HostError;
use memory::frames::{Owner, Source};
use x86_64::VirtAddr;
use x86_64::instructions::tlb;
use x86defs::HostPhysAddr;
use x86defs::addr::PAGE_SIZE;

/// Bytes of a page.
const PAGE: usize = 4096;
const _: () = assert!(PAGE as u64 == PAGE_SIZE);

/// Memory that can still be written, by the CPU that fills it and no other.
#[derive(Debug)]
pub struct Unsealed {
    /// Virtual address of the memory.
    at: u64,
    frames: HostPhysAddr,
    /// Bytes, in whole pages.
    len: usize,
}

impl Unsealed {
    /// At least `len` bytes, contiguous, aligned to a page, with anything in them.
    ///
    /// # Errors
    /// [`HostError::OutOfMemory`], naming `what`.
    pub fn new(len: usize, what: &'static str) -> Result<Self, HostError> {
        let len = len.next_multiple_of(PAGE);
        let order = (len / PAGE).next_power_of_two().trailing_zeros();
        let order = u8::try_from(order).unwrap_or(u8::MAX);
        let out = HostError::OutOfMemory(what);
        let owner = Owner::HYPERVISOR;
        let taken = FRAMES.lock().as_mut().and_then(|f| f.allocate(order, owner, Source::Spare));
        let Some(first) = taken else { return Err(out) };
        let Ok(at) = host::map_low(first.base(), len as u64) else {
            free_frames(first, order, owner);
            return Err(out);
        };
        Ok(Self { at, frames: first.base(), len })
    }

    /// Virtual address of the memory, for good.
    pub const fn address(&self) -> u64 {
        self.at
    }

    /// Host-physical address of the memory.
    pub const fn frames(&self) -> HostPhysAddr {
        self.frames
    }

    /// All of it.
    pub fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: mapped for this alone, writable until it is sealed, which takes `self`;
        // any byte of RAM is a value.
        unsafe { core::slice::from_raw_parts_mut(self.at as *mut u8, self.len) }
    }

    /// The memory, for good, and what makes it read-only.
    pub fn split(self) -> (&'static mut [u8], Seal) {
        let Self { at, len, .. } = self;
        // SAFETY: as in `bytes`; `self` is gone, so that nothing else refers to it.
        let memory = unsafe { core::slice::from_raw_parts_mut(at as *mut u8, len) };
        (memory, Seal { at, len })
    }

    /// From now on nobody writes there.
    pub fn seal(self) {
        Seal { at: self.at, len: self.len }.seal();
    }
}

/// Memory that is to be made read-only.
#[derive(Debug)]
#[must_use]
pub struct Seal {
    at: u64,
    len: usize,
}

impl Seal {
    /// From now on nobody writes there.
    pub fn seal(self) {
        if !host::make_read_only(self.at, self.len as u64) {
            // The memory's pages are small: nothing has to be split, so that it can't fail.
            log::warn!("{} bytes at {:#x} stay writable", self.len, self.at);
        }
        // No other CPU has used the mapping.
        for offset in (0..self.len as u64).step_by(PAGE) {
            tlb::flush(VirtAddr::new(self.at + offset));
        }
    }
}
