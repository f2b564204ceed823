//! The rate of the clock: measured under load, without some sources, with CPUs that disagree.

use crate::case::Case;

/// The cases.
pub(crate) fn cases() -> Vec<Case> {
    Vec::new()
}
