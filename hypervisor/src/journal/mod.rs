//! The journal: lines of the log, stages of the boot, refusals, panics, and the line that says
//! how the run has ended.

mod end;
mod log;

pub use self::end::{Status, end, power_off, reboot, refuse, refused, set_exit, set_key};
pub use self::log::{guests_run, init, line, lines, note, panicked, set_level, stage};
