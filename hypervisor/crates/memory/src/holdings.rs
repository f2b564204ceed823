//! The frames of one guest: promised, being zeroed, zeroed ahead (eight blocks of 2 MiB at the
//! most), or in its RAM.
//!
//! Zeroing takes long, and the guest's lock is not held meanwhile. A CPU that zeroes a frame has
//! taken it out of the promise before, and reports afterwards. In between the frame is *away*:
//! others find nothing wrong with the guest's books, and if they are short of frames they know
//! that some may come back.

use crate::frames::{FrameAllocator, ORDER_1G, ORDER_2M, Owner, Promise, Source};
use crate::stage2::PageSize;
use x86defs::addr::Hfn;

/// Blocks zeroed ahead that are kept at the most.
pub(crate) const STOCK: usize = 8;
/// Bytes zeroed ahead in a step: some microseconds.
const STEP: u64 = 64 << 10;
/// Bytes in a block.
const BLOCK: u64 = PageSize::Size2M.bytes();
/// Frames in a block.
const BLOCK_FRAMES: u64 = frames_of(PageSize::Size2M);

/// The order of a block that is one page of this size.
#[must_use]
pub const fn order(size: PageSize) -> u8 {
    match size {
        PageSize::Size4K => 0,
        PageSize::Size2M => ORDER_2M,
        PageSize::Size1G => ORDER_1G,
    }
}

/// Frames in a page of this size.
const fn frames_of(size: PageSize) -> u64 {
    1 << order(size)
}

/// Why no frame was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Short {
    /// No frame is left.
    Gone,
    /// All frames that are left are away. The taker asks again: each of them is in the
    /// guest's RAM soon, or comes back.
    Away,
}

/// A part of a block, which its holder alone may zero.
#[derive(Debug, PartialEq, Eq)]
#[must_use]
pub(crate) struct Piece {
    /// The block.
    pub(crate) block: Hfn,
    /// Beginning of the part in the block, in bytes.
    pub(crate) offset: u64,
    /// Bytes in the part.
    pub(crate) len: usize,
}

/// The block that is being zeroed ahead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ahead {
    None,
    /// The block is zero up to this offset.
    Begun(Hfn, u64),
    /// Somebody has a piece of the block.
    Away,
}

/// One guest's frames.
#[derive(Debug)]
pub struct Holdings {
    owner: Owner,
    /// Promised, and not taken yet.
    promised: Promise,
    /// Taken for pages of the guest, and being zeroed.
    away: u64,
    populated: u64,
    stock: [Option<Hfn>; STOCK],
    /// Blocks in the stock, which come first.
    count: usize,
    ahead: Ahead,
}

impl Holdings {
    /// The books of a guest that has nothing yet, and is `owner`.
    #[must_use]
    pub const fn new(owner: Owner) -> Self {
        Self {
            owner,
            promised: Promise::NONE,
            away: 0,
            populated: 0,
            stock: [None; STOCK],
            count: 0,
            ahead: Ahead::None,
        }
    }

    /// The guest, as an owner of frames.
    #[must_use]
    pub const fn owner(&self) -> Owner {
        self.owner
    }

    /// Frames in the guest's RAM.
    #[must_use]
    pub const fn populated(&self) -> u64 {
        self.populated
    }

    /// Frames that are zeroed ahead, or are being so.
    #[must_use]
    pub fn stocked(&self) -> u64 {
        (self.blocks() as u64).saturating_mul(BLOCK_FRAMES)
    }

    /// Blocks in the stock, with the one that is to come there.
    fn blocks(&self) -> usize {
        self.count.saturating_add(usize::from(self.ahead != Ahead::None))
    }

    /// Promises the guest `count` frames more.
    ///
    /// # Errors
    /// Fewer are to spare; the error is their number.
    pub fn promise(&mut self, frames: &mut FrameAllocator<'_>, count: u64) -> Result<(), u64> {
        self.promised.join(frames.promise(count)?);
        Ok(())
    }

    /// Takes back what the guest was promised and has not taken.
    pub fn withdraw(&mut self, frames: &mut FrameAllocator<'_>) {
        frames.withdraw(core::mem::take(&mut self.promised));
    }

    /// A block that was promised, and taken, is only promised again.
    fn promise_again(&mut self, frames: &mut FrameAllocator<'_>, first: Hfn, order: u8) {
        // Under one lock: nobody else takes it in between.
        if frames.free(first, order, self.owner).is_ok() {
            let _ = self.promise(frames, 1 << order);
        }
    }

    /// Takes frames for a page of this size, to be zeroed: they are away until
    /// [`shown`](Self::shown), [`keep`](Self::keep) or [`undo`](Self::undo).
    ///
    /// # Errors
    /// See [`Short`].
    pub(crate) fn take(
        &mut self,
        frames: &mut FrameAllocator<'_>,
        size: PageSize,
    ) -> Result<Hfn, Short> {
        let (order, count) = (order(size), frames_of(size));
        // RAM that no large page can back needs what was zeroed ahead.
        while self.promised.frames() < count {
            let Some(block) = self.pop() else { break };
            self.promise_again(frames, block, ORDER_2M);
        }
        if self.promised.frames() < count {
            let ahead = if self.ahead == Ahead::Away { BLOCK_FRAMES } else { 0 };
            let all = self.promised.frames().saturating_add(self.away).saturating_add(ahead);
            return Err(if all < count { Short::Gone } else { Short::Away });
        }
        let source = Source::Promised(&mut self.promised);
        let first = frames.allocate(order, self.owner, source).ok_or(Short::Gone)?;
        self.away = self.away.saturating_add(count);
        Ok(first)
    }

    /// Frames that were taken for a page of this size are in the guest's RAM.
    pub(crate) fn shown(&mut self, size: PageSize) {
        self.away = self.away.saturating_sub(frames_of(size));
        self.populated = self.populated.saturating_add(frames_of(size));
    }

    /// `count` frames of the guest's RAM are not its any more.
    pub(crate) fn gone(&mut self, count: u64) {
        self.populated = self.populated.saturating_sub(count);
    }

    /// Frames that were taken, and are zero, are not needed: the stock keeps a block if there is
    /// room.
    pub(crate) fn keep(&mut self, frames: &mut FrameAllocator<'_>, first: Hfn, size: PageSize) {
        let room = self.blocks() < STOCK && size == PageSize::Size2M;
        match self.stock.get_mut(self.count).filter(|_| room) {
            Some(slot) => {
                *slot = Some(first);
                self.count = self.count.saturating_add(1);
                self.away = self.away.saturating_sub(frames_of(size));
            }
            None => self.undo(frames, first, size),
        }
    }

    /// Frames that were taken, and need not be zero, are only promised again.
    pub(crate) fn undo(&mut self, frames: &mut FrameAllocator<'_>, first: Hfn, size: PageSize) {
        self.away = self.away.saturating_sub(frames_of(size));
        self.promise_again(frames, first, order(size));
    }

    /// A block that was zeroed ahead.
    #[inline(always)]
    #[must_use]
    pub(crate) fn ready(&self) -> Option<Hfn> {
        *self.stock.get(self.count.checked_sub(1)?)?
    }

    /// The block that is [`ready`](Self::ready) is in the guest's RAM.
    #[inline(always)]
    pub(crate) fn ready_shown(&mut self) {
        self.count = self.count.wrapping_sub(1);
        self.populated = self.populated.wrapping_add(BLOCK_FRAMES);
    }

    /// Whether another block could be zeroed ahead.
    #[must_use]
    pub(crate) fn wants_block(&self) -> bool {
        self.ahead == Ahead::None && self.count < STOCK && self.promised.frames() >= BLOCK_FRAMES
    }

    /// Whether a block was begun to be zeroed ahead, and nobody is at it.
    #[must_use]
    pub const fn has_begun(&self) -> bool {
        matches!(self.ahead, Ahead::Begun(..))
    }

    /// Takes a block that was promised, to be zeroed ahead. There may be none.
    pub(crate) fn begin_block(&mut self, frames: &mut FrameAllocator<'_>) {
        if !self.wants_block() {
            return;
        }
        let source = Source::Promised(&mut self.promised);
        if let Some(block) = frames.allocate(ORDER_2M, self.owner, source) {
            self.ahead = Ahead::Begun(block, 0);
        }
    }

    /// The next piece to zero of the block that was begun. `None` if there is none, or somebody is
    /// zeroing a piece of it.
    pub(crate) fn begin_piece(&mut self) -> Option<Piece> {
        let Ahead::Begun(block, offset) = self.ahead else { return None };
        let len = usize::try_from(STEP.min(BLOCK.saturating_sub(offset))).ok()?;
        self.ahead = Ahead::Away;
        Some(Piece { block, offset, len })
    }

    /// The first bytes of `piece`, all but the `left` last ones, are zero.
    pub(crate) fn end_piece(&mut self, piece: Piece, left: usize) {
        let Piece { block, offset, len } = piece;
        let done = offset.saturating_add(len.saturating_sub(left) as u64);
        match self.stock.get_mut(self.count).filter(|_| done >= BLOCK) {
            Some(slot) => {
                *slot = Some(block);
                self.count = self.count.saturating_add(1);
                self.ahead = Ahead::None;
            }
            None => self.ahead = Ahead::Begun(block, done),
        }
    }

    /// Takes a block that need not be zero out of the stock; it is the owner's.
    pub fn pop(&mut self) -> Option<Hfn> {
        if let Ahead::Begun(block, _) = self.ahead {
            self.ahead = Ahead::None;
            return Some(block);
        }
        let block = self.ready()?;
        self.count = self.count.saturating_sub(1);
        Some(block)
    }
}
