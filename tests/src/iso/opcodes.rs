//! Instructions that a guest may try: each completes or faults, none ends the guest.

use crate::case::Case;

/// The cases.
pub(crate) fn cases() -> Vec<Case> {
    Vec::new()
}
