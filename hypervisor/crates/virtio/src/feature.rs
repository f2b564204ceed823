//! Feature bits that all devices have (virtio 1.2, "Reserved Feature Bits").

/// A descriptor may lead to a table of descriptors.
pub const INDIRECT_DESC: u64 = 1 << 28;
/// Notifications are suppressed by the index of an entry.
pub const EVENT_IDX: u64 = 1 << 29;
/// The device follows version 1 of the specification.
pub const VERSION_1: u64 = 1 << 32;

/// Features that the transport offers for every device.
pub const TRANSPORT: u64 = INDIRECT_DESC | EVENT_IDX | VERSION_1;
