//! The frame table: who owns each 4 KiB frame of the machine, and a buddy
//! allocator over it.
//!
//! Free blocks are kept in doubly linked lists inside the table itself, one
//! list for each order, so that taking and giving back a block costs a few
//! steps whatever the machine's size. A block of order n is 2^n frames,
//! aligned to its size.
//!
//! Frames can be promised before they are taken ([`Promise`]). Whoever takes some says whether they
//! were promised to it ([`Source`]): nobody takes by accident what another one was promised.
//!
//! A frame in use can be pinned, for a device that reads or writes it by itself. A pinned frame
//! that its owner gives back stays out of others' reach until the last pin is taken out.

mod owners;
mod pins;
mod promise;

pub use owners::Owners;
pub use pins::NotPinned;
pub use promise::Promise;
use x86defs::addr::Hfn;

/// Orders 0 to 18: blocks of 4 KiB to 1 GiB.
const ORDERS: usize = 19;
/// The order of a block of 2 MiB.
pub const ORDER_2M: u8 = 9;
/// The order of a block of 1 GiB.
pub(crate) const ORDER_1G: u8 = 18;

/// Owner of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub struct Owner(pub u16);

impl Owner {
    /// Not RAM, or RAM that the firmware keeps.
    const NOBODY: Self = Self(0);
    /// Free.
    const FREE: Self = Self(1);
    /// The hypervisor.
    pub const HYPERVISOR: Self = Self(2);
    /// Nobody but pins.
    const PINS: Self = Self(3);
    /// The first number of a guest; [`Owners`] gives each its own.
    pub(crate) const GUESTS: Self = Self(16);
}

/// Free frames of which a block may be taken.
#[derive(Debug)]
pub enum Source<'p> {
    /// Frames that nobody was promised.
    Spare,
    /// Frames that the taker was promised: the promise shrinks by as many, and has to be as large.
    Promised(&'p mut Promise),
    /// All free frames, for uses that the machine can't go on without. Promises may break.
    Any,
}

/// Why a block was not taken back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotYours {
    /// The first frame of it that is not the giver's.
    pub frame: Hfn,
    /// The owner of that frame.
    pub owner: Owner,
}

/// One frame's entry.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Frame {
    owner: Owner,
    /// First frame of a free block of `order`.
    free_head: bool,
    order: u8,
    /// Users of a frame that is not free: its owner, and pins.
    references: u32,
    next: u32,
    previous: u32,
}

const _: () = assert!(size_of::<Frame>() == 16);

const NONE: u32 = u32::MAX;

impl Frame {
    /// The entry of a frame that nobody may use.
    pub const ABSENT: Self = Self {
        owner: Owner::NOBODY,
        free_head: false,
        order: 0,
        references: 0,
        next: NONE,
        previous: NONE,
    };
}

/// The allocator: a frame table and the heads of its lists.
#[derive(Debug)]
pub struct FrameAllocator<'a> {
    table: &'a mut [Frame],
    heads: [u32; ORDERS],
    free: u64,
    total: u64,
    /// Free frames that were promised.
    promised: u64,
}

impl<'a> FrameAllocator<'a> {
    /// An allocator over `table`, entry n of which is frame n; every frame is
    /// absent until [`add`](Self::add)ed. At most 2^32 − 1 frames are used.
    #[must_use]
    pub fn new(table: &'a mut [Frame]) -> Self {
        let len = table.len().min(NONE as usize);
        let table = table.get_mut(..len).unwrap_or_default();
        table.fill(Frame::ABSENT);
        Self { table, heads: [NONE; ORDERS], free: 0, total: 0, promised: 0 }
    }

    /// Frames that are free.
    #[must_use]
    pub const fn free_frames(&self) -> u64 {
        self.free
    }

    /// Frames that were promised and not taken yet.
    #[must_use]
    pub const fn promised_frames(&self) -> u64 {
        self.promised
    }

    /// Frames that are free and that nobody was promised.
    const fn spare_frames(&self) -> u64 {
        self.free.saturating_sub(self.promised)
    }

    /// Frames that were ever added.
    #[must_use]
    pub const fn total_frames(&self) -> u64 {
        self.total
    }

    /// Owner of `frame`.
    pub(crate) fn owner(&self, frame: Hfn) -> Owner {
        self.get(frame).map_or(Owner::NOBODY, |f| f.owner)
    }

    /// Makes `count` frames from `first` available. Frames that are beyond
    /// the table or were added before are passed over.
    pub fn add(&mut self, first: Hfn, count: u64) {
        for number in first.number()..first.number().saturating_add(count) {
            let frame = Hfn::new(number);
            if self.get(frame).is_some_and(|f| f.owner == Owner::NOBODY) {
                self.total = self.total.saturating_add(1);
                self.release(frame, 0);
            }
        }
    }

    /// Takes a block of 2^`order` frames for `owner`, aligned to its size.
    pub fn allocate(&mut self, order: u8, owner: Owner, source: Source<'_>) -> Option<Hfn> {
        let count = 1u32.checked_shl(order.into())?;
        let enough = match &source {
            Source::Spare => self.spare_frames() >= u64::from(count),
            Source::Promised(promise) => promise.frames() >= u64::from(count),
            Source::Any => true,
        };
        let first = enough.then(|| self.take(order, owner))??;
        if let Source::Promised(promise) = source {
            self.withdraw(promise.split(count.into()));
        }
        Some(first)
    }

    fn take(&mut self, order: u8, owner: Owner) -> Option<Hfn> {
        let found =
            (order..).take_while(|o| usize::from(*o) < ORDERS).find(|o| self.head(*o) != NONE)?;
        let head = self.head(found);
        self.unlink(head, found);
        // Halves that are not wanted go back, each one order lower.
        for smaller in (order..found).rev() {
            self.link(head.wrapping_add(1 << smaller), smaller);
        }
        let count = 1u32 << order;
        let block = head as usize..head.wrapping_add(count) as usize;
        let taken = Frame { owner, references: 1, ..Frame::ABSENT };
        self.table.get_mut(block)?.fill(taken);
        self.free = self.free.wrapping_sub(count.into());
        Some(Hfn::new(head.into()))
    }

    /// Gives back a block of 2^`order` frames that `owner` got from
    /// [`allocate`](Self::allocate), or a part of one, aligned to its own size.
    ///
    /// # Errors
    /// A frame of the block is somebody else's, or nobody's; then nothing is done.
    pub fn free(&mut self, first: Hfn, order: u8, owner: Owner) -> Result<(), NotYours> {
        let count = 1u64 << order.min(31);
        let all = first.number()..first.number().saturating_add(count);
        let other = all.map(Hfn::new).find(|frame| self.owner(*frame) != owner);
        let other = other.or_else(|| {
            let given = usize::from(order) < ORDERS
                && !matches!(owner, Owner::FREE | Owner::NOBODY)
                && first.number().is_multiple_of(count);
            (!given).then_some(first)
        });
        match other {
            Some(frame) => Err(NotYours { frame, owner: self.owner(frame) }),
            None => {
                self.let_go(first, order);
                Ok(())
            }
        }
    }

    /// Puts a block on its list, joined with its free buddies.
    fn release(&mut self, first: Hfn, mut order: u8) {
        let Ok(mut index) = u32::try_from(first.number()) else { return };
        let count = 1u32 << order;
        for frame in index..index.saturating_add(count) {
            if let Some(entry) = self.entry(frame) {
                *entry = Frame { owner: Owner::FREE, ..Frame::ABSENT };
            }
        }
        self.free = self.free.wrapping_add(count.into());
        while usize::from(order) + 1 < ORDERS {
            let buddy = index ^ (1 << order);
            let joins = self
                .get(Hfn::new(buddy.into()))
                .is_some_and(|f| f.owner == Owner::FREE && f.free_head && f.order == order);
            if !joins {
                break;
            }
            self.unlink(buddy, order);
            index &= !(1 << order);
            order = order.saturating_add(1);
        }
        self.link(index, order);
    }

    fn get(&self, frame: Hfn) -> Option<&Frame> {
        usize::try_from(frame.number()).ok().and_then(|n| self.table.get(n))
    }

    fn entry(&mut self, index: u32) -> Option<&mut Frame> {
        self.table.get_mut(index as usize)
    }

    fn head(&self, order: u8) -> u32 {
        self.heads.get(usize::from(order)).copied().unwrap_or(NONE)
    }

    fn set_head(&mut self, order: u8, index: u32) {
        if let Some(head) = self.heads.get_mut(usize::from(order)) {
            *head = index;
        }
    }

    fn link(&mut self, index: u32, order: u8) {
        let next = self.head(order);
        if let Some(entry) = self.entry(index) {
            *entry = Frame {
                owner: Owner::FREE,
                free_head: true,
                order,
                references: 0,
                next,
                previous: NONE,
            };
        }
        if let Some(entry) = self.entry(next) {
            entry.previous = index;
        }
        self.set_head(order, index);
    }

    fn unlink(&mut self, index: u32, order: u8) {
        let Some(entry) = self.entry(index) else { return };
        entry.free_head = false;
        let (next, previous) = (entry.next, entry.previous);
        if let Some(entry) = self.entry(next) {
            entry.previous = previous;
        }
        match self.entry(previous) {
            Some(entry) => entry.next = next,
            None => self.set_head(order, next),
        }
    }
}

#[cfg(test)]
mod tests;
