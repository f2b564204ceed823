//! The three parts of a split virtqueue, and where they lie.

use thiserror::Error;

/// The most entries that a split virtqueue may have (virtio 1.2, "Split Virtqueues").
pub const MAX_SIZE: u16 = 1 << 15;

/// Bytes of a descriptor.
pub(crate) const DESCRIPTOR: u64 = 16;
/// Offset of the first entry in the available and in the used ring.
const FIRST: u64 = 4;
/// Bytes of an entry of the used ring.
const USED_ENTRY: u64 = 8;

/// A ring that can't be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum LayoutError {
    /// The size is no power of two from 1 to [`MAX_SIZE`].
    #[error("a queue of {0} entries: must be a power of two, {MAX_SIZE} at the most")]
    Size(u16),
    /// A part is not aligned as it must be, or reaches over the end of the address space.
    #[error("the {0} at {1:#x} of a queue: not aligned, or beyond the end of memory")]
    Place(&'static str, u64),
}

/// Size and places of a split virtqueue. Places are addresses of the driver's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    size: u16,
    descriptors: u64,
    available: u64,
    used: u64,
}

impl Layout {
    /// A queue of `size` entries whose descriptor table, available ring and used ring are at
    /// these addresses.
    ///
    /// # Errors
    /// [`LayoutError`].
    pub fn new(
        size: u16,
        descriptors: u64,
        available: u64,
        used: u64,
    ) -> Result<Self, LayoutError> {
        if !size.is_power_of_two() || size > MAX_SIZE {
            return Err(LayoutError::Size(size));
        }
        let entries = u64::from(size);
        // Each ring has flags and an index before its entries, and an event index behind them.
        let parts = [
            ("descriptor table", descriptors, 16, DESCRIPTOR * entries),
            ("available ring", available, 2, FIRST + 2 * entries + 2),
            ("used ring", used, 4, FIRST + USED_ENTRY * entries + 2),
        ];
        for (name, at, alignment, bytes) in parts {
            if !at.is_multiple_of(alignment) || at.checked_add(bytes).is_none() {
                return Err(LayoutError::Place(name, at));
            }
        }
        Ok(Self { size, descriptors, available, used })
    }

    /// Entries of the queue.
    #[must_use]
    pub const fn size(&self) -> u16 {
        self.size
    }

    /// Places of the descriptor table, the available ring and the used ring.
    #[must_use]
    pub const fn places(&self) -> [u64; 3] {
        [self.descriptors, self.available, self.used]
    }

    /// The descriptor with this number, which is less than the size.
    pub(crate) const fn descriptor(&self, number: u16) -> u64 {
        self.descriptors.wrapping_add(DESCRIPTOR.wrapping_mul(number as u64))
    }

    pub(crate) const fn available_flags(&self) -> u64 {
        self.available
    }

    pub(crate) const fn available_index(&self) -> u64 {
        self.available.wrapping_add(2)
    }

    /// The entry of the available ring for an index, which counts on without end.
    pub(crate) const fn available_entry(&self, index: u16) -> u64 {
        let place = (index & self.size.wrapping_sub(1)) as u64;
        self.available.wrapping_add(FIRST).wrapping_add(2u64.wrapping_mul(place))
    }

    /// The driver's event index, behind the available ring.
    pub(crate) const fn used_event(&self) -> u64 {
        let entries = 2u64.wrapping_mul(self.size as u64);
        self.available.wrapping_add(FIRST).wrapping_add(entries)
    }

    pub(crate) const fn used_flags(&self) -> u64 {
        self.used
    }

    pub(crate) const fn used_index(&self) -> u64 {
        self.used.wrapping_add(2)
    }

    /// The entry of the used ring for an index, which counts on without end.
    pub(crate) const fn used_entry(&self, index: u16) -> u64 {
        let place = (index & self.size.wrapping_sub(1)) as u64;
        self.used.wrapping_add(FIRST).wrapping_add(USED_ENTRY.wrapping_mul(place))
    }

    /// The device's event index, behind the used ring.
    pub(crate) const fn available_event(&self) -> u64 {
        let entries = USED_ENTRY.wrapping_mul(self.size as u64);
        self.used.wrapping_add(FIRST).wrapping_add(entries)
    }
}
