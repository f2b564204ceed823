//! Memory zeroed ahead: a few blocks of 2 MiB that a guest's first touches
//! take, so that nobody waits for the zeroing.
//!
//! A block is zeroed in steps, each by the CPU that has time for it ([`zeroing`]).

use super::{FRAMES, zeroing};
use paging::frames::{ORDER_2M, Owner, Source};
use paging::stage2::PageSize;
use x86defs::addr::Hfn;

/// Blocks kept at the most.
const BLOCKS: usize = 8;
/// Bytes zeroed in a step: some microseconds.
const STEP: usize = 64 << 10;
/// Bytes in a block.
const BLOCK: usize = 2 << 20;

/// One guest's stock.
#[derive(Debug)]
pub(super) struct Stock {
    ready: [Option<Hfn>; BLOCKS],
    count: usize,
    /// The block that is being zeroed, and how far.
    begun: Option<(Hfn, usize)>,
}

impl Stock {
    pub(super) const fn new() -> Self {
        Self { ready: [None; BLOCKS], count: 0, begun: None }
    }

    /// Whether it could take another block.
    pub(super) const fn wants_block(&self) -> bool {
        self.count < BLOCKS && self.begun.is_none()
    }

    /// Whether a block is being zeroed.
    pub(super) const fn is_at_work(&self) -> bool {
        self.begun.is_some()
    }

    /// Takes a block of 2 MiB that the guest was promised, to be zeroed. `false` if there
    /// is none.
    pub(super) fn begin(&mut self, owner: Owner) -> bool {
        let promised = Source::Promised;
        let taken = FRAMES.lock().as_mut().and_then(|f| f.allocate(ORDER_2M, owner, promised));
        let Some((frame, _)) = taken else { return false };
        self.begun = Some((frame, 0));
        true
    }

    /// Zeroes a little more of the block that was begun. `false` if there is none.
    pub(super) fn step(&mut self) -> bool {
        let Some((frame, done)) = self.begun else { return false };
        let left = zeroing::zero(frame.base(), PageSize::Size2M, done as u64, STEP);
        let done = done + STEP - left;
        self.begun = Some((frame, done));
        if done == BLOCK {
            self.begun = None;
            if let Some(slot) = self.ready.get_mut(self.count) {
                *slot = Some(frame);
                self.count += 1;
            }
        }
        true
    }

    /// The block that [`take`](Self::take) would give.
    #[inline(always)]
    pub(super) fn peek(&self) -> Option<Hfn> {
        *self.ready.get(self.count.checked_sub(1)?)?
    }

    /// Takes a zeroed block.
    #[inline(always)]
    pub(super) fn take(&mut self) -> Option<Hfn> {
        let block = self.peek()?;
        self.count -= 1;
        Some(block)
    }

    /// Takes a block that need not be zero.
    pub(super) fn pop(&mut self) -> Option<Hfn> {
        self.begun.take().map(|(block, _)| block).or_else(|| self.take())
    }

    /// Gives all blocks, which are `owner`'s, back to the machine.
    pub(super) fn give_back(&mut self, owner: Owner) {
        while let Some(block) = self.pop() {
            super::free_frames(block, ORDER_2M, owner);
        }
    }
}
