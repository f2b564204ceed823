//! A ring of sixteen characters.

use super::{FIFO_SIZE, LineErrors};

/// A received character and what was wrong with it.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Received {
    pub(super) byte: u8,
    pub(super) errors: LineErrors,
}

/// First in, first out; at most [`FIFO_SIZE`] items.
#[derive(Clone, Debug, Default)]
pub(super) struct Fifo<T> {
    slots: [T; FIFO_SIZE],
    head: usize,
    len: usize,
}

impl<T: Copy> Fifo<T> {
    #[inline]
    pub(super) fn len(&self) -> usize {
        self.len
    }

    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Appends `item`; where all slots are taken, it is dropped.
    #[inline]
    pub(super) fn push(&mut self, item: T) {
        if self.len < FIFO_SIZE
            && let Some(slot) = self.slots.get_mut((self.head + self.len) % FIFO_SIZE)
        {
            *slot = item;
            self.len += 1;
        }
    }

    #[inline]
    pub(super) fn pop(&mut self) -> Option<T> {
        let item = self.front_mut().copied()?;
        self.head = (self.head + 1) % FIFO_SIZE;
        self.len -= 1;
        Some(item)
    }

    #[inline]
    pub(super) fn front_mut(&mut self) -> Option<&mut T> {
        if self.len == 0 { None } else { self.slots.get_mut(self.head) }
    }

    pub(super) fn clear(&mut self) {
        self.len = 0;
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = T> + '_ {
        self.slots.iter().cycle().skip(self.head).take(self.len).copied()
    }
}
