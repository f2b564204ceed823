//! The share of the CPU beside guests that attack the scheduler.

use crate::case::Case;

/// The cases.
pub(crate) fn cases() -> Vec<Case> {
    Vec::new()
}
