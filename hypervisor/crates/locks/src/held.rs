//! The ranks that a CPU holds.

use crate::Rank;
use core::sync::atomic::AtomicU32;
#[cfg(debug_assertions)]
use core::sync::atomic::Ordering;
use spin::Once;

/// How to find the word of the calling CPU.
static WORD: Once<fn() -> Option<&'static AtomicU32>> = Once::new();

/// From now on the order is checked, where debug assertions are: `word` gives the calling CPU's own
/// word, which nobody else touches, or `None` while the CPU has none.
pub fn check_by(word: fn() -> Option<&'static AtomicU32>) {
    WORD.call_once(|| word);
}

#[cfg(all(debug_assertions, not(any(test, feature = "std"))))]
fn own_word() -> Option<&'static AtomicU32> {
    WORD.get().and_then(|word| word())
}

/// A thread's own word.
#[cfg(all(debug_assertions, any(test, feature = "std")))]
fn own_word() -> Option<&'static AtomicU32> {
    std::thread_local! {
        static OWN: &'static AtomicU32 = std::boxed::Box::leak(std::boxed::Box::default());
    }
    match WORD.get() {
        Some(word) => word(),
        None => OWN.try_with(|own| *own).ok(),
    }
}

/// A rank that the CPU holds until this is dropped.
#[derive(Debug)]
#[must_use]
pub struct Held {
    #[cfg(debug_assertions)]
    taken: Option<(&'static AtomicU32, Rank)>,
}

/// The CPU is about to wait for a lock of `rank`, and holds it then: for locks that are not of this
/// crate.
///
/// # Panics
/// With debug assertions, if the CPU holds a lock of this rank or a higher one.
#[inline(always)]
pub fn hold(rank: Rank) -> Held {
    #[cfg(debug_assertions)]
    return Held { taken: checked(rank) };
    #[cfg(not(debug_assertions))]
    {
        let _ = rank;
        Held {}
    }
}

impl Held {
    /// The mark of a lock that was taken without waiting: it stops nobody, and is in nobody's order.
    #[inline(always)]
    pub(crate) const fn outside() -> Self {
        Self {
            #[cfg(debug_assertions)]
            taken: None,
        }
    }
}

#[cfg(debug_assertions)]
fn checked(rank: Rank) -> Option<(&'static AtomicU32, Rank)> {
    let word = own_word()?;
    let held = word.load(Ordering::Relaxed);
    assert!(held < rank.bit(), "{rank:?} is waited for while ranks {held:#x} are held");
    word.store(held | rank.bit(), Ordering::Relaxed);
    Some((word, rank))
}

#[cfg(debug_assertions)]
impl Drop for Held {
    fn drop(&mut self) {
        if let Some((word, rank)) = self.taken {
            let held = word.load(Ordering::Relaxed);
            word.store(held & !rank.bit(), Ordering::Relaxed);
        }
    }
}

#[cfg(all(test, debug_assertions))]
mod tests {
    use super::*;
    use std::panic::catch_unwind;

    #[test]
    fn ranks_rise() {
        let clock = hold(Rank::Clock);
        let device = hold(Rank::Device);
        for lower in [Rank::Operator, Rank::Clock, Rank::Pci, Rank::Device] {
            assert!(catch_unwind(|| hold(lower)).is_err(), "{lower:?}");
        }
        let frames = hold(Rank::Frames);
        drop(clock);
        drop(frames);
        assert!(catch_unwind(|| hold(Rank::Pci)).is_err(), "the device is still held");
        drop(device);
        drop(hold(Rank::Operator));
        // Another thread holds nothing of these.
        let _device = hold(Rank::Device);
        std::thread::spawn(|| drop(hold(Rank::Operator))).join().unwrap();
    }

    #[test]
    fn what_is_tried_is_in_nobody_s_order() {
        let _device = hold(Rank::Device);
        let _tried = Held::outside();
        drop(hold(Rank::Memory));
    }
}
