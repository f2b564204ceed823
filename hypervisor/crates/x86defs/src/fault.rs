//! Faults that an access to a register can meet.

/// A general-protection fault with error code 0 is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("general-protection fault")]
pub struct Gp;
