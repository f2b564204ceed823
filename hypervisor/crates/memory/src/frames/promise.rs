//! [`Promise`]: frames that somebody is to get, whatever others take meanwhile.

use super::FrameAllocator;

/// A number of free frames that were promised, of whatever blocks. The holder takes them
/// ([`Source::Promised`](super::Source::Promised)) or gives them back
/// ([`FrameAllocator::withdraw`]): one that is dropped would be kept from everybody.
#[derive(Debug, Default, PartialEq, Eq)]
#[must_use]
pub struct Promise(u64);

impl Promise {
    /// Of no frame.
    pub const NONE: Self = Self(0);

    /// How many frames are promised.
    #[must_use]
    pub const fn frames(&self) -> u64 {
        self.0
    }

    /// Adds what `other` promises.
    pub fn join(&mut self, mut other: Self) {
        self.0 = self.0.saturating_add(core::mem::take(&mut other.0));
    }

    /// A promise of `count` frames of these, or of all if they are fewer.
    pub const fn split(&mut self, count: u64) -> Self {
        let part = if count < self.0 { count } else { self.0 };
        self.0 = self.0.saturating_sub(part);
        Self(part)
    }
}

#[cfg(test)]
impl Drop for Promise {
    fn drop(&mut self) {
        let forgotten = self.0 != 0 && !std::thread::panicking();
        assert!(!forgotten, "a promise of {} frames was forgotten", self.0);
    }
}

impl FrameAllocator<'_> {
    /// Promises `count` frames, of whatever blocks.
    ///
    /// # Errors
    /// Fewer are to spare; the error is their number.
    pub const fn promise(&mut self, count: u64) -> Result<Promise, u64> {
        let spare = self.spare_frames();
        if count > spare {
            return Err(spare);
        }
        self.promised = self.promised.saturating_add(count);
        Ok(Promise(count))
    }

    /// Takes a promise back.
    pub fn withdraw(&mut self, mut promise: Promise) {
        self.promised = self.promised.saturating_sub(core::mem::take(&mut promise.0));
    }
}
