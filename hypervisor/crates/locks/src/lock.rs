//! Spin locks with a rank.

use crate::held::{Held, hold};
use crate::rank::Rank;
use core::fmt;
use core::ops::{Deref, DerefMut};

/// A spin lock around a `T`.
pub struct Mutex<T: ?Sized> {
    rank: Rank,
    inner: spin::Mutex<T>,
}

/// A [`Mutex`] that is held.
#[derive(Debug)]
pub struct MutexGuard<'a, T: ?Sized> {
    // The lock is given back before its rank is.
    inner: spin::MutexGuard<'a, T>,
    _held: Held,
}

impl<T> Mutex<T> {
    /// A lock of `rank`.
    pub const fn new(rank: Rank, value: T) -> Self {
        Self { rank, inner: spin::Mutex::new(value) }
    }
}

impl<T: ?Sized> Mutex<T> {
    /// Waits for the lock, spinning.
    ///
    /// # Panics
    /// With debug assertions, where the order of ranks forbids to wait.
    #[inline(always)]
    pub fn lock(&self) -> MutexGuard<'_, T> {
        let held = hold(self.rank);
        MutexGuard { inner: self.inner.lock(), _held: held }
    }

    /// The value, which nobody else can reach.
    pub fn get_mut(&mut self) -> &mut T {
        self.inner.get_mut()
    }

    /// Whether somebody holds the lock now.
    pub fn is_locked(&self) -> bool {
        self.inner.is_locked()
    }

    /// Takes the lock if nobody holds it. This never waits, so it is in nobody's order.
    #[inline(always)]
    pub fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
        Some(MutexGuard { inner: self.inner.try_lock()?, _held: Held::outside() })
    }
}

impl<T: ?Sized + fmt::Debug> fmt::Debug for Mutex<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}

impl<T: ?Sized> Deref for MutexGuard<'_, T> {
    type Target = T;

    #[inline(always)]
    fn deref(&self) -> &T {
        &self.inner
    }
}

impl<T: ?Sized> DerefMut for MutexGuard<'_, T> {
    #[inline(always)]
    fn deref_mut(&mut self) -> &mut T {
        &mut self.inner
    }
}

/// A spin lock around a `T` that many may read at a time.
pub struct RwLock<T: ?Sized> {
    rank: Rank,
    inner: spin::RwLock<T>,
}

/// A [`RwLock`] that is held to be read.
#[derive(Debug)]
pub struct RwLockReadGuard<'a, T: ?Sized> {
    inner: spin::RwLockReadGuard<'a, T>,
    _held: Held,
}

/// A [`RwLock`] that is held to be written.
#[derive(Debug)]
pub struct RwLockWriteGuard<'a, T: ?Sized> {
    inner: spin::RwLockWriteGuard<'a, T>,
    _held: Held,
}

impl<T> RwLock<T> {
    /// A lock of `rank`.
    pub const fn new(rank: Rank, value: T) -> Self {
        Self { rank, inner: spin::RwLock::new(value) }
    }
}

impl<T: ?Sized> RwLock<T> {
    /// Waits until nobody writes.
    ///
    /// # Panics
    /// With debug assertions, where the order of ranks forbids to wait.
    #[inline(always)]
    pub fn read(&self) -> RwLockReadGuard<'_, T> {
        let held = hold(self.rank);
        RwLockReadGuard { inner: self.inner.read(), _held: held }
    }

    /// Waits until nobody reads or writes.
    ///
    /// # Panics
    /// With debug assertions, where the order of ranks forbids to wait.
    #[inline(always)]
    pub fn write(&self) -> RwLockWriteGuard<'_, T> {
        let held = hold(self.rank);
        RwLockWriteGuard { inner: self.inner.write(), _held: held }
    }
}

impl<T: ?Sized + fmt::Debug> fmt::Debug for RwLock<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}

impl<T: ?Sized> Deref for RwLockReadGuard<'_, T> {
    type Target = T;

    #[inline(always)]
    fn deref(&self) -> &T {
        &self.inner
    }
}

impl<T: ?Sized> Deref for RwLockWriteGuard<'_, T> {
    type Target = T;

    #[inline(always)]
    fn deref(&self) -> &T {
        &self.inner
    }
}

impl<T: ?Sized> DerefMut for RwLockWriteGuard<'_, T> {
    #[inline(always)]
    fn deref_mut(&mut self) -> &mut T {
        &mut self.inner
    }
}

#[cfg(all(test, debug_assertions))]
mod tests {
    use super::*;
    use std::panic::{AssertUnwindSafe, catch_unwind};

    #[test]
    fn locks_are_taken_in_the_order_of_their_ranks() {
        let device = Mutex::new(Rank::Device, 1);
        let clock = RwLock::new(Rank::Clock, 2);
        {
            let read = clock.read();
            let mut held = device.lock();
            *held += *read;
        }
        assert_eq!(*device.lock(), 3);
        let held = device.lock();
        assert!(catch_unwind(AssertUnwindSafe(|| *clock.read())).is_err());
        assert!(catch_unwind(AssertUnwindSafe(|| *clock.write() = 1)).is_err());
        let other = Mutex::new(Rank::Device, 5);
        assert!(catch_unwind(AssertUnwindSafe(|| *other.lock())).is_err(), "two of one rank");
        assert_eq!(other.try_lock().map(|value| *value), Some(5), "that waits for nobody");
        assert!(device.try_lock().is_none());
        drop(held);
        *clock.write() = 4;
        assert_eq!(*clock.read(), 4);
    }
}
