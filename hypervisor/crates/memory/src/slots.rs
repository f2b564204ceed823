//! The places of a guest's memory: which guest-physical addresses are RAM, which are ROM, and which
//! bytes of its [backing](crate::backing) stand there. All other addresses are devices'.
//!
//! A list of [`Slot`]s says it, where a later one lies over those before it: ROM or a device over
//! RAM, as shadowed firmware and video memory want it. What is covered keeps its contents.
//! [`flatten`] makes [`Region`]s of the list, and a [`View`] shows them to readers that take no
//! lock.

use crate::sync::{self, AtomicU64, Ordering, fence};
use arrayvec::ArrayVec;
use core::ops::Range;
use x86defs::GuestPhysAddr;
use x86defs::addr::PAGE_SIZE;

/// Regions that a guest may have at the most. (Tests of all orders have not the time for more.)
pub const MOST_REGIONS: usize = if cfg!(feature = "loom") { 2 } else { 32 };

/// Access that is allowed to a guest, and to the hypervisor on its behalf.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rights {
    /// RAM: all.
    Ram,
    /// ROM: all but writes.
    Rom,
}

/// Contents of a [`Slot`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// Memory.
    Memory {
        /// The first byte of it in the guest's backing.
        offset: u64,
        /// Access that is allowed to it.
        rights: Rights,
    },
    /// No memory: accesses go to the devices.
    Devices,
}

/// A range of guest-physical addresses, and what stands there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slot {
    /// The addresses, in whole pages.
    pub range: Range<GuestPhysAddr>,
    /// The contents there.
    pub content: Content,
}

impl Slot {
    /// RAM in this range, which is backed by the bytes of the same numbers.
    #[must_use]
    pub const fn ram(range: Range<GuestPhysAddr>) -> Self {
        let offset = range.start.as_u64();
        Self { range, content: Content::Memory { offset, rights: Rights::Ram } }
    }
}

/// Why a list of slots is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SlotError {
    /// A range, or a place in the backing, does not begin and end with a page, is empty, or is
    /// beyond what there is.
    #[error("a range of a guest's memory that does not consist of pages of it")]
    Range,
    /// More than [`MOST_REGIONS`].
    #[error("a guest's memory in more than {MOST_REGIONS} pieces")]
    TooMany,
    /// There is a page of the board's.
    #[error("a range of a guest's memory in which there is a page of the board's")]
    Fixed,
    /// So much would change that what is taken away can't all be kept until each CPU has
    /// forgotten it. It can be done piece by piece.
    #[error("a change of more of a guest's memory than is possible at once")]
    TooMuch,
}

/// A range of memory without a seam.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    /// The first address.
    pub start: u64,
    /// The address behind it.
    pub end: u64,
    /// The first byte of it in the backing.
    pub offset: u64,
    /// Access that is allowed.
    pub rights: Rights,
}

impl Region {
    /// Whether `gpa` lies in it.
    #[inline(always)]
    #[must_use]
    pub const fn contains(&self, gpa: u64) -> bool {
        self.start <= gpa && gpa < self.end
    }

    /// The place in the backing of the byte at `gpa`, which lies in the region.
    #[inline(always)]
    #[must_use]
    pub const fn place(&self, gpa: u64) -> u64 {
        gpa.wrapping_sub(self.start).wrapping_add(self.offset)
    }

    /// Whether the `len` bytes (a power of two) around `gpa` lie in the region, at a place in the
    /// backing that is aligned as they are.
    #[inline(always)]
    #[must_use]
    pub const fn holds_whole(&self, gpa: u64, len: u64) -> bool {
        let mask = len.wrapping_sub(1);
        let start = gpa & !mask;
        start >= self.start
            && start | mask < self.end
            && self.start.wrapping_sub(self.offset) & mask == 0
    }

    /// Whether `next` goes on where this one ends.
    const fn goes_on_in(&self, next: &Self) -> bool {
        self.end == next.start
            && self.place(self.end) == next.offset
            && matches!(
                (self.rights, next.rights),
                (Rights::Ram, Rights::Ram) | (Rights::Rom, Rights::Rom)
            )
    }
}

/// The regions of a guest, in rising order.
pub type Regions = ArrayVec<Region, MOST_REGIONS>;

/// The regions that `slots` make, of a backing of `bytes` bytes.
///
/// # Errors
/// [`SlotError`].
pub fn flatten(slots: &[Slot], bytes: u64) -> Result<Regions, SlotError> {
    let mut regions = Regions::new();
    for slot in slots {
        let range = slot.range.start.as_u64()..slot.range.end.as_u64();
        let mut new = None;
        let mut wrong = range.is_empty()
            || range.end > GuestPhysAddr::END
            || (range.start | range.end) % PAGE_SIZE != 0;
        if let Content::Memory { offset, rights } = slot.content {
            let len = range.end.saturating_sub(range.start);
            wrong |=
                offset % PAGE_SIZE != 0 || offset.checked_add(len).is_none_or(|end| end > bytes);
            new = Some(Region { start: range.start, end: range.end, offset, rights });
        }
        if wrong {
            return Err(SlotError::Range);
        }
        regions = cover(&regions, &range)?;
        if let Some(new) = new {
            regions.try_push(new).map_err(|_| SlotError::TooMany)?;
        }
    }
    regions.sort_unstable_by_key(|region| region.start);
    let mut joined = Regions::new();
    for region in regions {
        match joined.last_mut() {
            Some(last) if last.goes_on_in(&region) => last.end = region.end,
            // There are no more of them than before.
            _ => joined.try_push(region).map_err(|_| SlotError::TooMany)?,
        }
    }
    Ok(joined)
}

/// `regions` without `range`.
fn cover(regions: &Regions, range: &Range<u64>) -> Result<Regions, SlotError> {
    let mut left = Regions::new();
    for region in regions {
        let below = Region { end: region.end.min(range.start), ..*region };
        let start = region.start.max(range.end);
        let above = Region { start, offset: region.place(start), ..*region };
        for part in [below, above].into_iter().filter(|part| part.start < part.end) {
            left.try_push(part).map_err(|_| SlotError::TooMany)?;
        }
    }
    Ok(left)
}

/// The region of `regions` that `gpa` lies in.
pub(crate) fn find(regions: &Regions, gpa: u64) -> Option<Region> {
    regions.iter().find(|region| region.contains(gpa)).copied()
}

/// The ranges of addresses at which `old` and `new` have not the same.
pub(crate) fn changed<'r>(
    old: &'r Regions,
    new: &'r Regions,
) -> impl Iterator<Item = Range<u64>> + Clone + 'r {
    let edges = |regions: &'r Regions| regions.iter().flat_map(|r| [r.start, r.end]);
    let mut all: ArrayVec<u64, { 4 * MOST_REGIONS }> = edges(old).chain(edges(new)).collect();
    all.sort_unstable();
    let next = all.clone().into_iter().skip(1);
    all.into_iter().zip(next).filter_map(move |(start, end)| {
        let there = |regions| find(regions, start).map(|r| (r.place(start), r.rights));
        (start < end && there(old) != there(new)).then_some(start..end)
    })
}

/// A region as words. One that is not there is empty.
#[derive(Debug, Default)]
struct Words {
    start: AtomicU64,
    end: AtomicU64,
    /// The place in the backing, in whole pages, and in the lowest bit whether it is ROM.
    place: AtomicU64,
}

impl Words {
    fn store(&self, region: Option<&Region>) {
        let rom = |r: &Region| u64::from(r.rights == Rights::Rom);
        let place = region.map_or(0, |r| r.offset | rom(r));
        self.place.store(place, Ordering::Relaxed);
        self.start.store(region.map_or(0, |r| r.start), Ordering::Relaxed);
        self.end.store(region.map_or(0, |r| r.end), Ordering::Relaxed);
    }

    /// The region, if there is one.
    fn region(&self) -> Option<Region> {
        self.load(self.start.load(Ordering::Relaxed))
    }

    /// The region, if `gpa` lies in it.
    #[inline(always)]
    fn load(&self, gpa: u64) -> Option<Region> {
        let start = self.start.load(Ordering::Relaxed);
        let end = self.end.load(Ordering::Relaxed);
        if gpa < start || gpa >= end {
            return None;
        }
        let place = self.place.load(Ordering::Relaxed);
        let rights = if place & 1 == 0 { Rights::Ram } else { Rights::Rom };
        Some(Region { start, end, offset: place & !1, rights })
    }
}

/// The regions of a guest as those see them who take no lock. One CPU at a time changes it.
#[derive(Debug)]
pub struct View {
    /// Odd while the regions are being changed.
    sequence: AtomicU64,
    /// The range that all regions but the largest lie in.
    others: [AtomicU64; 2],
    /// The largest region first.
    regions: [Words; MOST_REGIONS],
}

impl Default for View {
    fn default() -> Self {
        Self {
            sequence: AtomicU64::new(0),
            others: Default::default(),
            regions: core::array::from_fn(|_| Words::default()),
        }
    }
}

impl View {
    /// The region that `gpa` lies in, of those that were there at one moment of the call.
    #[inline(always)]
    #[must_use]
    pub fn find(&self, gpa: GuestPhysAddr) -> Option<Region> {
        self.read(|| self.look(gpa.as_u64())).0
    }

    /// The region that `gpa` lies in, and what [`is_at`](Self::is_at) is to be asked with the
    /// guest's lock held.
    #[inline(always)]
    pub(crate) fn find_with_sequence(&self, gpa: GuestPhysAddr) -> Option<(Region, u64)> {
        let (found, sequence) = self.read(|| self.look(gpa.as_u64()));
        Some((found?, sequence))
    }

    /// Whether the regions are what they were.
    #[inline(always)]
    pub(crate) fn is_at(&self, sequence: u64) -> bool {
        self.sequence.load(Ordering::Relaxed) == sequence
    }

    /// The first region that ends behind `gpa`, of those that were there at one moment of the call.
    #[must_use]
    pub fn next(&self, gpa: GuestPhysAddr) -> Option<Region> {
        let look = || {
            let all = self.regions.iter().filter_map(Words::region);
            all.filter(|region| region.end > gpa.as_u64()).min_by_key(|region| region.start)
        };
        self.read(look).0
    }

    /// The outcome of `look` at regions that were there at one moment, and their sequence.
    #[inline(always)]
    fn read<R>(&self, look: impl Fn() -> R) -> (R, u64) {
        loop {
            let before = self.sequence.load(Ordering::Acquire);
            let found = look();
            fence(Ordering::Acquire);
            if before & 1 == 0 && self.is_at(before) {
                return (found, before);
            }
            sync::spin();
        }
    }

    #[inline(always)]
    fn look(&self, gpa: u64) -> Option<Region> {
        let [largest, others @ ..] = &self.regions;
        if let Some(found) = largest.load(gpa) {
            return Some(found);
        }
        let [start, end] = self.others.each_ref().map(|at| at.load(Ordering::Relaxed));
        if gpa < start || gpa >= end {
            return None;
        }
        let mut there = others.iter().take_while(|words| words.end.load(Ordering::Relaxed) != 0);
        there.find_map(|words| words.load(gpa))
    }

    /// Shows `regions`.
    pub(crate) fn publish(&self, regions: &Regions) {
        let mut by_size = regions.clone();
        by_size.sort_unstable_by_key(|r| core::cmp::Reverse(r.end.wrapping_sub(r.start)));
        let before = self.sequence.load(Ordering::Relaxed);
        self.sequence.store(before.wrapping_add(1), Ordering::Relaxed);
        fence(Ordering::Release);
        let others = by_size.get(1..).unwrap_or_default();
        let start = others.iter().map(|region| region.start).min();
        let end = others.iter().map(|region| region.end).max();
        for (at, value) in self.others.iter().zip([start, end]) {
            at.store(value.unwrap_or(0), Ordering::Relaxed);
        }
        for (place, words) in self.regions.iter().enumerate() {
            words.store(by_size.get(place));
        }
        self.sequence.store(before.wrapping_add(2), Ordering::Release);
    }
}
