//! Spin locks that are taken in one order. Each kind of lock has a [`Rank`]; whoever holds one may
//! wait only for locks of a higher rank, so that no two CPUs wait for each other. Builds with
//! debug assertions check that at each lock that is waited for, on one word of the CPU that asks;
//! others pay nothing.
#![no_std]
#![forbid(unsafe_code)]
#![cfg_attr(
    not(test),
    deny(clippy::indexing_slicing, clippy::unwrap_used, clippy::expect_used, clippy::panic)
)]

#[cfg(any(test, feature = "std"))]
extern crate std;

mod held;
mod lock;
mod rank;

pub use held::{Held, check_by, hold};
pub use lock::{Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard};
pub use rank::Rank;
