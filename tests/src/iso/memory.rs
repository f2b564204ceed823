//! Memory between guests and between a guest's vCPUs: what an earlier guest left, and ranges that race.

use crate::case::Case;

/// The cases.
pub(crate) fn cases() -> Vec<Case> {
    Vec::new()
}
