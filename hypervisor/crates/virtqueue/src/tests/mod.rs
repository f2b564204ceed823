//! Tests of both halves against each other, against a reference, and against hostile rings.

mod halves;
mod hostile;
#[cfg(feature = "loom")]
mod orders;
mod threads;

use crate::{Layout, RingMemory};
use core::sync::atomic::{AtomicU16, Ordering, fence};
use std::vec::Vec;

/// First address of the [`Words`].
pub(super) const BASE: u64 = 0x1_0000;

/// A page or more of memory, in words that threads share.
#[derive(Debug)]
pub(super) struct Words(Vec<AtomicU16>);

impl Words {
    pub(super) fn new(bytes: usize) -> Self {
        Self((0..bytes.div_ceil(2)).map(|_| AtomicU16::new(0)).collect())
    }

    fn word(&self, at: u64) -> Result<&AtomicU16, u64> {
        let offset = at.checked_sub(BASE).filter(|offset| offset.is_multiple_of(2)).ok_or(at)?;
        self.0.get(usize::try_from(offset / 2).map_err(|_| at)?).ok_or(at)
    }

    /// Writes 16 bits, whoever uses them.
    pub(super) fn poke(&self, at: u64, value: u16) {
        self.word(at).unwrap().store(value, Ordering::Relaxed);
    }
}

impl RingMemory for Words {
    type Error = u64;

    fn load(&self, at: u64) -> Result<u16, u64> {
        Ok(self.word(at)?.load(Ordering::Acquire))
    }

    fn store(&self, at: u64, value: u16) -> Result<(), u64> {
        self.word(at)?.store(value, Ordering::Release);
        Ok(())
    }

    fn read<const N: usize>(&self, at: u64) -> Result<[u8; N], u64> {
        let mut bytes = [0; N];
        for (at, pair) in (at..).step_by(2).zip(bytes.as_chunks_mut().0) {
            *pair = self.word(at)?.load(Ordering::Relaxed).to_le_bytes();
        }
        Ok(bytes)
    }

    fn write(&self, at: u64, bytes: &[u8]) -> Result<(), u64> {
        for (at, pair) in (at..).step_by(2).zip(bytes.as_chunks().0) {
            self.word(at)?.store(u16::from_le_bytes(*pair), Ordering::Relaxed);
        }
        Ok(())
    }

    fn fence(&self) {
        fence(Ordering::SeqCst);
    }
}

/// A queue of `size` entries at the beginning of memory, and the bytes that it takes.
pub(super) fn layout(size: u16) -> (Layout, usize) {
    let entries = u64::from(size);
    let available = BASE + 16 * entries;
    let used = (available + 6 + 2 * entries).next_multiple_of(4);
    let end = used + 6 + 8 * entries;
    (Layout::new(size, BASE, available, used).unwrap(), usize::try_from(end - BASE).unwrap())
}

#[test]
fn layouts() {
    use crate::LayoutError;
    let place = |name, at| Err(LayoutError::Place(name, at));
    assert_eq!(Layout::new(0, 0, 0, 0), Err(LayoutError::Size(0)));
    assert_eq!(Layout::new(3, 0, 0, 0), Err(LayoutError::Size(3)));
    assert!(Layout::new(1, 0, 0, 0).is_ok());
    assert!(Layout::new(1 << 15, 0, 0, 0).is_ok());
    assert_eq!(Layout::new(4, 8, 0, 0), place("descriptor table", 8));
    assert_eq!(Layout::new(4, 16, 1, 0), place("available ring", 1));
    assert_eq!(Layout::new(4, 16, 2, 2), place("used ring", 2));
    assert_eq!(Layout::new(4, u64::MAX - 15, 2, 4), place("descriptor table", u64::MAX - 15));
    assert_eq!(Layout::new(4, 0, u64::MAX - 11, 4), place("available ring", u64::MAX - 11));
    assert_eq!(Layout::new(4, 0, 0, u64::MAX - 35), place("used ring", u64::MAX - 35));
}
