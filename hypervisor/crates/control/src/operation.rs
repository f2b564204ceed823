//! Operations that the operator can ask for.

use crate::guests::GuestRef;
use alloc::boxed::Box;
use alloc::string::String;
use alloc::vec::Vec;
use config::{GuestSettings, LogLevel};

/// Seconds that a guest has after its power button was pressed, unless it is
/// said otherwise.
pub const STOP_SECONDS: u32 = 30;
/// The most seconds that a guest can be given.
pub const MAX_STOP_SECONDS: u32 = 3600;

/// An operation that the operator asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operation {
    /// The program that answers, and its limits.
    Hello,
    /// The guests.
    List,
    /// Show this guest's console on the terminal.
    Attach(GuestRef),
    /// Halt its vCPUs and its time.
    Pause(GuestRef),
    /// Let them go on.
    Resume(GuestRef),
    /// Press its power button, end it by force later.
    Stop {
        /// The guest that is meant.
        guest: GuestRef,
        /// After how many seconds, 0 to [`MAX_STOP_SECONDS`].
        seconds: u32,
    },
    /// End it now.
    Kill(GuestRef),
    /// Start it.
    Start(GuestRef),
    /// Stop it as [`Stop`](Self::Stop) does, then start it.
    Restart {
        /// The guest that is meant.
        guest: GuestRef,
        /// As in [`Stop`](Self::Stop).
        seconds: u32,
    },
    /// Statistics of a guest, or of the machine and all guests.
    Stats(Option<GuestRef>),
    /// A guest's registers, page walk and code.
    Dump {
        /// The guest that is meant.
        guest: GuestRef,
        /// Of this vCPU alone.
        vcpu: Option<u32>,
    },
    /// The last exits of a guest.
    Trace {
        /// The guest that is meant.
        guest: GuestRef,
        /// Of this vCPU alone.
        vcpu: Option<u32>,
    },
    /// Reasons why its vCPUs wait.
    Why(GuestRef),
    /// The machine's memory.
    Memory,
    /// The machine's CPUs.
    Cpus,
    /// Log this level and what is graver.
    Log(LogLevel),
    /// Start the machine again.
    Reboot,
    /// Switch the machine off.
    PowerOff,
    /// Events after the one with this number.
    Events {
        /// The number of the last event that is known already; 0 for none.
        since: u64,
        /// At most so many.
        max: u32,
    },
    /// A file for guests will come.
    UploadBegin {
        /// The file's name.
        name: String,
        /// Its bytes.
        size: u64,
        /// The CRC-32 of all of it.
        crc32: u32,
    },
    /// A piece of a file.
    UploadChunk {
        /// The file's name.
        name: String,
        /// Place of the piece in the file, in bytes.
        offset: u64,
        /// The piece.
        data: Vec<u8>,
        /// Its CRC-32.
        crc32: u32,
    },
    /// The file is whole.
    UploadEnd {
        /// Its name.
        name: String,
    },
    /// The file is not needed any more, whole or not.
    UploadDelete {
        /// Its name.
        name: String,
    },
    /// There shall be this guest. Its files are uploads.
    Define(Box<GuestSettings>),
    /// Forget a guest that does not run.
    Delete(GuestRef),
    /// Could this guest be defined and started now?
    DryRun(Box<GuestSettings>),
}
