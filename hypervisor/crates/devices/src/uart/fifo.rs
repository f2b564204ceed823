//! A ring of sixteen characters.

use super::FIFO_SIZE;

/// First in, first out; at most [`FIFO_SIZE`] characters.
#[derive(Clone, Debug, Default)]
pub(super) struct Fifo {
    slots: [u8; FIFO_SIZE],
    head: usize,
    len: usize,
}

impl Fifo {
    #[inline]
    pub(super) fn len(&self) -> usize {
        self.len
    }

    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Appends `byte`; where all slots are taken, it is dropped.
    #[inline]
    pub(super) fn push(&mut self, byte: u8) {
        if self.len < FIFO_SIZE
            && let Some(slot) = self.slots.get_mut((self.head + self.len) % FIFO_SIZE)
        {
            *slot = byte;
            self.len += 1;
        }
    }

    #[inline]
    pub(super) fn pop(&mut self) -> Option<u8> {
        if self.len == 0 {
            return None;
        }
        let byte = self.slots.get(self.head).copied()?;
        self.head = (self.head + 1) % FIFO_SIZE;
        self.len -= 1;
        Some(byte)
    }

    pub(super) fn clear(&mut self) {
        self.len = 0;
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = u8> + '_ {
        self.slots.iter().cycle().skip(self.head).take(self.len).copied()
    }
}
