//! When one half wants to hear of the other.

/// The device's flag: the driver need not notify it (`VIRTQ_USED_F_NO_NOTIFY`).
pub(crate) const NO_NOTIFY: u16 = 1;
/// The driver's flag: the device need not interrupt it (`VIRTQ_AVAIL_F_NO_INTERRUPT`).
pub(crate) const NO_INTERRUPT: u16 = 1;

/// Whether an index that went from `old` to `new` has passed the entry with the index `event`, of
/// which the other half wants to hear (virtio 1.2, "Used Buffer Notification Suppression"). All
/// three count on without end, and less than 2^16 entries lie between `old` and `new`.
#[must_use]
pub const fn passed(event: u16, old: u16, new: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}
