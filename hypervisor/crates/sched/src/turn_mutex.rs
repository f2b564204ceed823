//! A lock that CPUs get in the order in which they ask for it, where that is sound.
//!
//! On a machine's real CPUs a spin lock that the fastest gets can keep one CPU from it
//! for long. In a virtual machine whose CPUs take turns on fewer real ones, the order
//! is what hurts: the lock waits for a CPU that does not run, the others spin until it
//! does, and then wait for each other in the same way at every call (with two CPUs on
//! one, a guest kept 14 % of its time of 75). There the next that runs takes it.

use core::ops::{Deref, DerefMut};
use locks::{Held, Rank, hold};
use spin::mutex::{Mutex, MutexGuard, TicketMutex};

/// A spin lock around a `T`, in the order of asking or without.
#[derive(Debug)]
pub struct TurnMutex<T> {
    /// Held while the lock itself is waited for: the head of the line.
    turn: Option<TicketMutex<()>>,
    inner: Mutex<T>,
}

impl<T> TurnMutex<T> {
    /// A lock that CPUs get in the order of asking, unless the machine is `virtual_machine`.
    pub const fn new(value: T, virtual_machine: bool) -> Self {
        let turn = if virtual_machine { None } else { Some(TicketMutex::new(())) };
        Self { turn, inner: Mutex::new(value) }
    }

    /// Waits for the lock, spinning.
    ///
    /// # Panics
    /// With debug assertions, where the order of ranks forbids to wait.
    pub fn lock(&self) -> TurnGuard<'_, T> {
        let held = hold(Rank::Scheduler);
        let _turn = self.turn.as_ref().map(TicketMutex::lock);
        TurnGuard { inner: self.inner.lock(), _held: held }
    }
}

/// A [`TurnMutex`] that is held.
#[derive(Debug)]
pub struct TurnGuard<'a, T> {
    inner: MutexGuard<'a, T>,
    _held: Held,
}

impl<T> Deref for TurnGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.inner
    }
}

impl<T> DerefMut for TurnGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.inner
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use super::*;

    /// A thread asks while this one holds the lock, gives it back and takes it again at
    /// once: how often of `rounds` the other had it in between.
    fn had_between(lock: &TurnMutex<u32>, rounds: u32) -> u32 {
        (0..rounds).fold(0, |had, _| {
            std::thread::scope(|scope| {
                let held = lock.lock();
                let before = *held;
                scope.spawn(|| *lock.lock() += 1);
                let asks = || lock.turn.as_ref().is_none_or(TicketMutex::is_locked);
                while !asks() {
                    std::thread::yield_now();
                }
                drop(held);
                had + (*lock.lock() - before)
            })
        })
    }

    #[test]
    fn who_asked_first_gets_it_first() {
        assert_eq!(had_between(&TurnMutex::new(0, false), 50), 50);
    }

    #[test]
    fn a_virtual_machine_waits_for_nobody_who_does_not_run() {
        let lock = TurnMutex::new(0, true);
        assert!(lock.turn.is_none());
        let _ = had_between(&lock, 10);
        assert_eq!(*lock.lock(), 10);
    }
}
