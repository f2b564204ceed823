//! The hypervisor's own memory: violations of its rights are caught.

use crate::case::Case;

/// The cases.
pub(crate) fn cases() -> Vec<Case> {
    Vec::new()
}
