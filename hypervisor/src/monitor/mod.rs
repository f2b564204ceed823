//! The operator's side: what the machine says of itself, and how it ends.

mod end;
mod log;

pub use self::end::{Status, end, power_off, reboot, refuse, refused, set_exit, set_key};
pub use self::log::{guests_run, init, line, lines, note, panicked, set_level, stage};
