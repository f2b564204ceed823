//! Finds room in a guest's memory, and keeps what is to be written until
//! everything was checked.

use super::LoadError;
use crate::e820::low_ram_end;
use crate::layout::{LEGACY_HOLE_END, LOW_RAM_END};
use crate::memory::{GuestMemory, MemoryError};
use alloc::borrow::Cow;
use alloc::vec::Vec;
use core::ops::Range;
use x86defs::GuestPhysAddr;
use x86defs::addr::PAGE_SIZE;

/// Loaders leave the first page alone: real-mode vectors and BIOS data.
const LOWEST: u64 = PAGE_SIZE;

/// Where to look first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    /// From low addresses up.
    Lowest,
    /// From high addresses down.
    Highest,
}

/// What is to be written, and where there is still room.
pub(super) struct Plan<'a> {
    ram: [Range<u64>; 2],
    used: Vec<Range<u64>>,
    writes: Vec<(u64, Cow<'a, [u8]>)>,
    zeros: Vec<Range<u64>>,
    /// The first of `writes` that is not done, and how many of its bytes are.
    next: usize,
    done: usize,
}

impl<'a> Plan<'a> {
    /// Nothing yet, in a guest with `memory` bytes.
    pub(super) fn new(memory: u64) -> Self {
        Self {
            ram: [LOWEST..LOW_RAM_END, LEGACY_HOLE_END..low_ram_end(memory)],
            used: Vec::new(),
            writes: Vec::new(),
            zeros: Vec::new(),
            next: 0,
            done: 0,
        }
    }

    /// Whether all of `range` is RAM that a guest may use.
    pub(super) fn is_ram(&self, range: &Range<u64>) -> bool {
        self.ram.iter().any(|ram| ram.start <= range.start && range.end <= ram.end)
    }

    /// Whether nothing of `range` is taken.
    pub(super) fn is_free(&self, range: &Range<u64>) -> bool {
        !self.used.iter().any(|used| used.start < range.end && range.start < used.end)
    }

    /// Takes a range that the caller has checked.
    pub(super) fn take(&mut self, range: Range<u64>) {
        if !range.is_empty() {
            self.used.push(range);
        }
    }

    /// Has `data` written at `start`, which was taken.
    pub(super) fn put(&mut self, start: u64, data: impl Into<Cow<'a, [u8]>>) {
        self.writes.push((start, data.into()));
    }

    /// Has `range`, which was taken, filled with zeros.
    pub(super) fn zero(&mut self, range: Range<u64>) {
        self.zeros.push(range);
    }

    /// Takes `size` bytes within `within`, at a multiple of `align` (a power of two).
    pub(super) fn place(
        &mut self,
        what: &'static str,
        size: u64,
        align: u64,
        within: Range<u64>,
        order: Order,
    ) -> Result<u64, LoadError> {
        // A place is as low (or as high) as can be: it starts a range of RAM or
        // touches something that is taken. At least a byte, so that an empty
        // module has an address of its own.
        let size_or_one = size.max(1);
        let up = |at: u64| at.checked_next_multiple_of(align);
        let down = |end: u64| Some(end.checked_sub(size_or_one)? & !(align - 1));
        let edges = self.ram.iter().chain(&self.used).chain([&within]);
        let candidates = edges.flat_map(|range| match order {
            Order::Lowest => [up(range.start), up(range.end)],
            Order::Highest => [down(range.start), down(range.end)],
        });
        let fitting = candidates.flatten().filter(|&start| {
            start.checked_add(size_or_one).is_some_and(|end| {
                let range = start..end;
                within.start <= start
                    && end <= within.end
                    && self.is_ram(&range)
                    && self.is_free(&range)
            })
        });
        let start = match order {
            Order::Lowest => fitting.min(),
            Order::Highest => fitting.max(),
        }
        .ok_or(LoadError::NoRoom { what, size, from: within.start, to: within.end })?;
        self.take(start..start + size_or_one);
        Ok(start)
    }

    /// Takes the lowest place for `data` and has it written there.
    pub(super) fn place_data(
        &mut self,
        what: &'static str,
        data: impl Into<Cow<'a, [u8]>>,
        align: u64,
        from: u64,
    ) -> Result<u64, LoadError> {
        let data = data.into();
        let start = self.place(what, data.len() as u64, align, from..u64::MAX, Order::Lowest)?;
        self.put(start, data);
        Ok(start)
    }

    /// Writes at most `bytes` more; whether something is left.
    pub(super) fn write(
        &mut self,
        memory: &impl GuestMemory,
        bytes: usize,
    ) -> Result<bool, MemoryError> {
        let page = [0; 4096];
        let mut left = bytes;
        while let Some(range) = self.zeros.last_mut() {
            let length = range.end.saturating_sub(range.start).min(PAGE_SIZE);
            let length = usize::try_from(length).unwrap_or(usize::MAX).min(left);
            memory
                .write(GuestPhysAddr::new(range.start), page.get(..length).unwrap_or_default())?;
            range.start += length as u64;
            left -= length;
            if range.is_empty() {
                self.zeros.pop();
            } else if left == 0 {
                return Ok(true);
            }
        }
        while let Some((start, data)) = self.writes.get(self.next) {
            let rest = data.get(self.done..).unwrap_or_default();
            let part = rest.get(..rest.len().min(left)).unwrap_or_default();
            memory.write(GuestPhysAddr::new(*start + self.done as u64), part)?;
            self.done += part.len();
            left -= part.len();
            if part.len() < rest.len() {
                return Ok(true);
            }
            (self.next, self.done) = (self.next + 1, 0);
        }
        Ok(false)
    }
}

/// `text` with the NUL at its end that C wants.
pub(super) fn c_string(text: &str) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(text.len() + 1);
    bytes.extend_from_slice(text.as_bytes());
    bytes.push(0);
    bytes
}
