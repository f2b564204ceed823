//! A chain of buffers that the driver made available, as the device has read it.

use alloc::vec::Vec;

/// A buffer of the driver's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// The address of its first byte.
    pub at: u64,
    /// Bytes; not 0, and not beyond the end of the address space.
    pub len: u32,
}

/// A chain: buffers that the device reads, then buffers that it writes. Its descriptors have been
/// read once and are checked; the addresses are the driver's, and may be of no memory.
#[derive(Debug)]
pub struct Chain {
    head: u16,
    segments: Vec<Segment>,
    /// How many of them the device reads.
    readable: usize,
    bytes: u64,
}

impl Chain {
    /// Room for chains of up to `most` buffers, so that reading one takes no memory. It is empty.
    #[must_use]
    pub fn new(most: u16) -> Self {
        let segments = Vec::with_capacity(most.into());
        Self { head: 0, segments, readable: 0, bytes: 0 }
    }

    /// The number of its first descriptor, by which the device gives it back.
    #[must_use]
    pub const fn head(&self) -> u16 {
        self.head
    }

    /// Buffers that the device reads.
    #[must_use]
    pub fn readable(&self) -> &[Segment] {
        self.segments.get(..self.readable).unwrap_or_default()
    }

    /// Buffers that the device writes.
    #[must_use]
    pub fn writable(&self) -> &[Segment] {
        self.segments.get(self.readable..).unwrap_or_default()
    }

    /// Bytes of all its buffers: less than 2^32.
    #[must_use]
    pub const fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(crate) fn begin(&mut self, head: u16) {
        self.head = head;
        self.segments.clear();
        self.readable = 0;
        self.bytes = 0;
    }

    pub(crate) fn len(&self) -> usize {
        self.segments.len()
    }

    /// Adds a buffer.
    ///
    /// # Errors
    /// The chain can't be.
    pub(crate) fn push(&mut self, segment: Segment, writable: bool) -> Result<(), Unfit> {
        let bytes = self.bytes.saturating_add(segment.len.into());
        if bytes > u32::MAX.into() {
            return Err(Unfit::Bytes);
        }
        if self.segments.len() == self.segments.capacity() {
            return Err(Unfit::Room);
        }
        if !writable {
            if self.readable != self.segments.len() {
                return Err(Unfit::Order);
            }
            self.readable = self.readable.saturating_add(1);
        }
        self.bytes = bytes;
        self.segments.push(segment);
        Ok(())
    }
}

/// Why a buffer does not fit into a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unfit {
    /// All buffers together have 2^32 bytes or more.
    Bytes,
    /// There are too many.
    Room,
    /// It is read, behind one that is written.
    Order,
}
