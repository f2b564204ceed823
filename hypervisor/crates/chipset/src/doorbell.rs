//! Doorbells: a guest's word to a device that there is work, which costs the vCPU next to nothing.
//!
//! A vCPU marks bits and owes the device a wake-up. It pays the debt for all that it has marked
//! when it leaves the guest for another reason, or soon: so a burst of marks wakes the device
//! once. Whoever marks first after a payment owes the next one.

#[cfg(not(feature = "loom"))]
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
#[cfg(feature = "loom")]
use loom::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// The marks of one device, one bit for each of its queues. By default there are none.
#[derive(Debug, Default)]
pub struct Doorbell {
    bits: AtomicU64,
    /// Somebody owes the wake-up for the marks.
    owed: AtomicBool,
}

impl Doorbell {
    /// Marks `bits`. Whether the caller owes the wake-up from now on: if not, somebody else does,
    /// who has not paid yet.
    #[inline]
    #[must_use]
    pub fn mark(&self, bits: u64) -> bool {
        self.bits.fetch_or(bits, Ordering::SeqCst);
        !self.owed.load(Ordering::SeqCst) && !self.owed.swap(true, Ordering::SeqCst)
    }

    /// Somebody who owes the wake-up is about to make it. Whoever marks from now on owes the next.
    pub fn pay(&self) {
        // An exchange, which sees the marks of those who have counted on this payment.
        let _ = self.owed.swap(false, Ordering::SeqCst);
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

#[cfg(all(test, feature = "loom"))]
mod orders {
    use super::*;
    use loom::sync::Arc;
    use loom::thread;

    /// Tests all orders in which vCPUs may mark and pay, and the device take, with three
    /// interruptions of a thread at the most: no mark is left that nobody owes a wake-up for.
    #[test]
    fn no_mark_is_forgotten() {
        let mut builder = loom::model::Builder::new();
        builder.preemption_bound = Some(3);
        builder.check(|| {
            let bell = Arc::new(Doorbell::default());
            let taken = Arc::new(AtomicU64::new(0));
            let vcpu = |bit: u64| {
                let (bell, taken) = (bell.clone(), taken.clone());
                move || {
                    if bell.mark(bit) {
                        bell.pay();
                        // The wake-up: the device takes what it finds.
                        taken.fetch_or(bell.take(), Ordering::SeqCst);
                    }
                }
            };
            let others = [thread::spawn(vcpu(1)), thread::spawn(vcpu(2))];
            vcpu(4)();
            for other in others {
                other.join().unwrap();
            }
            assert_eq!((bell.marks(), taken.load(Ordering::SeqCst)), (0, 7));
        });
    }
}
