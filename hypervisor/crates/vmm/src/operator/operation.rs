//! What the operator can ask for, and how it is answered or refused.

use super::guests::GuestRef;
use super::protocol::event::Events;
use super::protocol::uploads::UploadState;
use super::snapshot::{
    CpusSnapshot, DumpSnapshot, GuestInfo, MemorySnapshot, StatsSnapshot, TraceSnapshot,
    WhySnapshot,
};
use alloc::boxed::Box;
use alloc::string::String;
use alloc::vec::Vec;
use config::{GuestSettings, LogLevel};
use serde::{Deserialize, Serialize};

/// Seconds that a guest has after its power button was pressed, unless it is
/// said otherwise.
pub const STOP_SECONDS: u32 = 30;
/// The most that it can be given.
pub const MAX_STOP_SECONDS: u32 = 3600;

/// What the operator asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operation {
    /// What this is, and its limits.
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
        /// Whom.
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
        /// Whom.
        guest: GuestRef,
        /// As in [`Stop`](Self::Stop).
        seconds: u32,
    },
    /// Statistics of a guest, or of the machine and all guests.
    Stats(Option<GuestRef>),
    /// A guest's registers, page walk and code.
    Dump {
        /// Whose.
        guest: GuestRef,
        /// Of this vCPU alone.
        vcpu: Option<u32>,
    },
    /// The last exits of a guest.
    Trace {
        /// Whose.
        guest: GuestRef,
        /// Of this vCPU alone.
        vcpu: Option<u32>,
    },
    /// What its vCPUs wait for.
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
    /// What happened after the event with this number.
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
        /// Where in the file it belongs, in bytes.
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

/// How an [`Operation`] is answered.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// It was done; there is nothing to say.
    Done,
    /// What this is.
    Hello(Hello),
    /// All guests, in the order of their numbers.
    Guests(Vec<GuestInfo>),
    /// A guest, as the operation left it. What takes longer has begun.
    Guest(Box<GuestInfo>),
    /// Statistics.
    Stats(Box<StatsSnapshot>),
    /// Registers, page walk and code.
    Dump(DumpSnapshot),
    /// The last exits.
    Trace(TraceSnapshot),
    /// What vCPUs wait for.
    Why(WhySnapshot),
    /// Memory.
    Memory(MemorySnapshot),
    /// CPUs.
    Cpus(CpusSnapshot),
    /// Events.
    Events(Events),
    /// How far a file has come.
    Upload(UploadState),
    /// Whether a guest could be started.
    Verdict(Verdict),
}

/// Who answers at the other end of the control line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// The program: `steward`.
    pub program: String,
    /// Its version.
    pub version: String,
    /// Differs from one start of the machine to the next: with it, cursors of
    /// events and numbers of guests change their meaning.
    pub boot: String,
    /// What [`protocol`](super::protocol) allows.
    pub limits: Limits,
}

/// Bounds that a client has to know.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// The longest request in bytes, without its line feed.
    pub line: u64,
    /// The largest piece of a file in bytes, before base64.
    pub chunk: u64,
    /// Files that can be there at once.
    pub uploads: u32,
    /// Bytes that they may have together.
    pub upload_bytes: u64,
    /// Events that one answer holds at the most.
    pub events: u32,
}

/// The answer of a dry run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    /// Whether it would work.
    pub possible: bool,
    /// Why not, or what it would take.
    pub reason: String,
}

/// Why an operation was not done, for programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ErrorCode {
    /// The line is no JSON, or not of the shape that the operation needs.
    BadRequest,
    /// The line is longer than a request may be.
    TooLong,
    /// The request is of another version of the protocol.
    Version,
    /// There is no such operation.
    UnknownOperation,
    /// An argument is missing.
    MissingArgument,
    /// An argument is there that the operation does not take, or its value is
    /// not allowed.
    BadArgument,
    /// The request's id was used for another request.
    IdReused,
    /// There is no such guest.
    NoGuest,
    /// There is no such vCPU.
    NoVcpu,
    /// The guest's state does not allow it.
    WrongState,
    /// There is a guest or file of that name already.
    Exists,
    /// There is no such file.
    NoUpload,
    /// The piece does not belong where the file ends so far.
    UploadOffset,
    /// A checksum does not hold.
    UploadChecksum,
    /// The file is not whole, or would become too large.
    UploadSize,
    /// There is no memory for it.
    NoMemory,
    /// There are too many.
    TooMany,
    /// The events' cursor is not one of this start of the machine.
    BadCursor,
    /// This machine can't do it.
    NotSupported,
    /// The answer would be too large; ask for less.
    TooLarge,
    /// A vCPU did not leave its CPU for a while; ask again.
    Busy,
    /// A bug of ours.
    Internal,
}

/// Why an operation was not done. Nothing has changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[error("{message}")]
pub struct Refusal {
    /// For programs.
    pub code: ErrorCode,
    /// For people: what was found, and what is allowed.
    pub message: String,
}

impl Refusal {
    /// A refusal.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }
}
