//! Pins: users of a frame beside its owner.

use super::{FrameAllocator, NotYours, Owner};
use x86defs::addr::Hfn;

/// A frame has no pin that could be taken out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotPinned(pub Hfn);

impl FrameAllocator<'_> {
    /// Pins `frame`, which is of `owner`'s.
    ///
    /// # Errors
    /// The frame is somebody else's, or has 2^32 − 1 users.
    pub fn pin(&mut self, frame: Hfn, owner: Owner) -> Result<(), NotYours> {
        let found = self.owner(frame);
        let refused = NotYours { frame, owner: found };
        if found != owner || matches!(owner, Owner::FREE | Owner::NOBODY | Owner::PINS) {
            return Err(refused);
        }
        let index = u32::try_from(frame.number()).map_err(|_| refused)?;
        let entry = self.entry(index).ok_or(refused)?;
        entry.references = entry.references.checked_add(1).ok_or(refused)?;
        Ok(())
    }

    /// Takes a pin of `frame` out. If it was the last one, and the owner has given the frame back,
    /// it is free.
    ///
    /// # Errors
    /// The frame is not pinned.
    pub fn unpin(&mut self, frame: Hfn) -> Result<(), NotPinned> {
        let owner = self.owner(frame);
        let least = if owner == Owner::PINS { 0 } else { 1 };
        let entry = u32::try_from(frame.number()).ok().and_then(|index| self.entry(index));
        let entry = entry.filter(|e| e.references > least).ok_or(NotPinned(frame))?;
        entry.references = entry.references.saturating_sub(1);
        if entry.references == 0 {
            self.release(frame, 0);
        }
        Ok(())
    }

    /// The owner of a block lets go of it: what is not pinned is free.
    pub(super) fn let_go(&mut self, first: Hfn, order: u8) {
        let count = 1u64 << order.min(31);
        let pinned = |frames: &Self, frame| frames.get(frame).is_some_and(|f| f.references > 1);
        let all = first.number()..first.number().saturating_add(count);
        if !all.clone().map(Hfn::new).any(|frame| pinned(self, frame)) {
            return self.release(first, order);
        }
        for frame in all.map(Hfn::new) {
            if !pinned(self, frame) {
                self.release(frame, 0);
                continue;
            }
            let entry = u32::try_from(frame.number()).ok().and_then(|index| self.entry(index));
            if let Some(entry) = entry {
                entry.owner = Owner::PINS;
                entry.references = entry.references.saturating_sub(1);
            }
        }
    }
}
