//! The operator's side: what the machine says of itself, and how it ends.

mod end;
mod log;

pub use self::end::{Status, end, refuse, set_exit};
pub use self::log::{init, note, panicked, set_level, stage};
