//! Finds room in a guest's memory, and keeps what is to be written until
//! everything was checked.

use crate::e820::low_ram_end;
use crate::error::LoadError;
use alloc::borrow::Cow;
use alloc::vec::Vec;
use config::layout::{LEGACY_HOLE_END, LOW_RAM_END};
use core::ops::Range;
use memory::{GuestMemory, MemoryError};
use x86defs::GuestPhysAddr;
use x86defs::addr::PAGE_SIZE;

/// Loaders leave the first page alone: real-mode vectors and BIOS data.
const LOWEST: u64 = PAGE_SIZE;

/// Direction of the search for a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    /// The search goes from low addresses up.
    Lowest,
    /// The search goes from high addresses down.
    Highest,
}

/// Contents to be written, and the room that is left.
pub(crate) struct Plan<'a> {
    ram: [Range<u64>; 2],
    /// Ranges that are taken: in rising order, none touching another, so that a look at them
    /// all is short even with many modules.
    used: Vec<Range<u64>>,
    writes: Vec<(u64, Cow<'a, [u8]>)>,
    zeros: Vec<Range<u64>>,
    /// The first of `writes` that is not done, and how many of its bytes are.
    next: usize,
    done: usize,
}

impl<'a> Plan<'a> {
    /// A plan without contents, for a guest with `memory` bytes.
    pub(crate) fn new(memory: u64) -> Self {
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
    pub(crate) fn is_ram(&self, range: &Range<u64>) -> bool {
        self.ram.iter().any(|ram| ram.start <= range.start && range.end <= ram.end)
    }

    /// Whether nothing of `range` is taken.
    pub(crate) fn is_free(&self, range: &Range<u64>) -> bool {
        let behind = self.used.partition_point(|used| used.end <= range.start);
        self.used.get(behind).is_none_or(|used| range.end <= used.start)
    }

    /// Takes a range that the caller has checked.
    pub(crate) fn take(&mut self, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        let from = self.used.partition_point(|used| used.end < range.start);
        let to = self.used.partition_point(|used| used.start <= range.end);
        let joined = self.used.get(from..to).unwrap_or_default();
        let start = joined.first().map_or(range.start, |used| used.start.min(range.start));
        let end = joined.last().map_or(range.end, |used| used.end.max(range.end));
        self.used.splice(from..to.max(from), core::iter::once(start..end));
    }

    /// The ranges of RAM within `within` that are not taken.
    fn gaps(&self, within: &Range<u64>) -> impl Iterator<Item = Range<u64>> {
        // Before the first, between each two, behind the last.
        let starts = core::iter::once(0).chain(self.used.iter().map(|used| used.end));
        let ends = self.used.iter().map(|used| used.start).chain([u64::MAX]);
        let (from, to) = (within.start, within.end);
        let ram = self.ram.clone();
        starts.zip(ends).flat_map(move |(start, end)| {
            ram.clone().map(|ram| ram.start.max(start).max(from)..ram.end.min(end).min(to))
        })
    }

    /// Has `data` written at `start`, which was taken.
    pub(crate) fn put(&mut self, start: u64, data: impl Into<Cow<'a, [u8]>>) {
        self.writes.push((start, data.into()));
    }

    /// Has `range`, which was taken, filled with zeros.
    pub(crate) fn zero(&mut self, range: Range<u64>) {
        self.zeros.push(range);
    }

    /// Takes `size` bytes within `within`, at a multiple of `align` (a power of two).
    pub(crate) fn place(
        &mut self,
        what: &'static str,
        size: u64,
        align: u64,
        within: Range<u64>,
        order: Order,
    ) -> Result<u64, LoadError> {
        // At least a byte, so that an empty module has an address of its own.
        let size_or_one = size.max(1);
        let fits = |gap: &Range<u64>| match order {
            Order::Lowest => gap
                .start
                .checked_next_multiple_of(align)
                .filter(|start| start.checked_add(size_or_one).is_some_and(|end| end <= gap.end)),
            Order::Highest => gap
                .end
                .checked_sub(size_or_one)
                .map(|start| start & !(align - 1))
                .filter(|start| *start >= gap.start),
        };
        let gaps = self.gaps(&within);
        let start = match order {
            Order::Lowest => gaps.filter_map(|gap| fits(&gap)).min(),
            Order::Highest => gaps.filter_map(|gap| fits(&gap)).max(),
        }
        .ok_or(LoadError::NoRoom { what, size, from: within.start, to: within.end })?;
        self.take(start..start + size_or_one);
        Ok(start)
    }

    /// Takes the lowest place for `data` and has it written there.
    pub(crate) fn place_data(
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
    pub(crate) fn write(
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
pub(crate) fn c_string(text: &str) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(text.len() + 1);
    bytes.extend_from_slice(text.as_bytes());
    bytes.push(0);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MEMORY: u64 = 2 << 20;

    proptest! {
        /// Each place is the lowest, or the highest, of all that are free: found again page by
        /// page and byte by byte.
        #[test]
        fn places_are_the_first_that_fit(
            wanted in prop::collection::vec(
                (1u64..0x3_0000, 4u32..14, any::<bool>(), 0u64..MEMORY),
                1..24,
            ),
        ) {
            let mut plan = Plan::new(MEMORY);
            let mut taken: Vec<Range<u64>> = Vec::new();
            for (size, align, low, edge) in wanted {
                let align = 1u64 << align;
                let (within, order) =
                    if low { (edge..MEMORY, Order::Lowest) } else { (0..edge, Order::Highest) };
                let free = |start: &u64| {
                    let end = start + size;
                    within.start <= *start && end <= within.end
                        && plan.is_ram(&(*start..end))
                        && taken.iter().all(|t| t.end <= *start || end <= t.start)
                };
                let mut places = (0..MEMORY / align).map(|page| page * align);
                let wanted = if low { places.find(free) } else { places.rev().find(free) };
                let found = plan.place("x", size, align, within.clone(), order).ok();
                prop_assert_eq!(found, wanted);
                if let Some(start) = found {
                    prop_assert!(!plan.is_free(&(start..start + size)));
                    prop_assert!(!plan.is_free(&(start + size - 1..start + size + 1)));
                    taken.push(start..start + size);
                }
                prop_assert!(plan.used.windows(2).all(|pair| pair[0].end < pair[1].start));
                let all: u64 = plan.used.iter().map(|used| used.end - used.start).sum();
                prop_assert_eq!(all, taken.iter().map(|t| t.end - t.start).sum::<u64>());
            }
        }
    }
}
