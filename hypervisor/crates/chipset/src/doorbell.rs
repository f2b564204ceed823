//! Doorbells: a guest's word to a device that there is work, which costs the vCPU next to nothing.
//!
//! A vCPU marks bits and owes the device a wake-up. It pays the debt for all that it has marked
//! when it leaves the guest for another reason, or soon: so a burst of marks wakes the device
//! once. Whoever marks first after a payment owes the next one.

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// The marks of one device, one bit for each of its queues.
#[derive(Debug, Default)]
pub struct Doorbell {
    bits: AtomicU64,
    /// Somebody owes the wake-up for the marks.
    owed: AtomicBool,
}

impl Doorbell {
    /// No marks.
    #[must_use]
    pub const fn new() -> Self {
        Self { bits: AtomicU64::new(0), owed: AtomicBool::new(false) }
    }

    /// Marks `bits`. Whether the caller owes the wake-up from now on: if not, somebody else does,
    /// who has not paid yet.
    #[inline]
    #[must_use]
    pub fn mark(&self, bits: u64) -> bool {
        self.bits.fetch_or(bits, Ordering::SeqCst);
        !self.owed.load(Ordering::SeqCst) && !self.owed.swap(true, Ordering::SeqCst)
    }

    /// Somebody who owes the wake-up is about to make it. Whoever marks from now on owes the next.
    pub(crate) fn pay(&self) {
        self.owed.store(false, Ordering::SeqCst);
    }

    /// The marks, which stay.
    #[must_use]
    pub fn marks(&self) -> u64 {
        self.bits.load(Ordering::SeqCst)
    }

    /// Marks what was [marked](Self::marks) when the device was saved. Nobody owes the wake-up: it
    /// comes when the device goes on.
    pub fn restore(&self, bits: u64) {
        self.bits.store(bits, Ordering::SeqCst);
    }

    /// Takes the marks: for the one who was woken.
    #[must_use]
    pub fn take(&self) -> u64 {
        self.bits.swap(0, Ordering::SeqCst)
    }
}
