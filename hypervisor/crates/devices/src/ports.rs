//! Ports of a device's registers.
//!
//! A device that answers at several places lays its blocks out one after the
//! other in its own offsets, and names each block with a [`PortRange`]. The
//! bus adds `port - first` to `offset` and knows nothing else.

/// One block of consecutive ports of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortRange {
    /// The block's first port.
    pub first: u16,
    /// The number of ports, at least 1.
    pub count: u16,
    /// The device's own offset of the first port.
    pub offset: u16,
}

impl PortRange {
    /// `count` ports from `first`, which are the device's offsets from `offset`.
    #[must_use]
    pub const fn new(first: u16, count: u16, offset: u16) -> Self {
        Self { first, count, offset }
    }
}
