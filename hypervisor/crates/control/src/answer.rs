//! Answers to operations.

use crate::protocol::event::Events;
use crate::protocol::uploads::UploadState;
use crate::status::{CpusStatus, Dump, ExitTrace, GuestInfo, MemoryStatus, Statistics, WaitStatus};
use alloc::boxed::Box;
use alloc::string::String;
use alloc::vec::Vec;
use serde::{Deserialize, Serialize};

/// How an [`Operation`](crate::Operation) is answered.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// It was done; there is nothing to say.
    Done,
    /// The program that answers.
    Hello(Hello),
    /// All guests, in the order of their numbers.
    Guests(Vec<GuestInfo>),
    /// A guest, as the operation left it. Work that takes longer has begun.
    Guest(Box<GuestInfo>),
    /// Statistics.
    Stats(Box<Statistics>),
    /// Registers, page walk and code.
    Dump(Dump),
    /// The last exits.
    Trace(ExitTrace),
    /// Reasons why vCPUs wait.
    Why(WaitStatus),
    /// Memory.
    Memory(MemoryStatus),
    /// CPUs.
    Cpus(CpusStatus),
    /// Events.
    Events(Events),
    /// How far a file has come.
    Upload(UploadState),
    /// Whether a guest could be started.
    Verdict(Verdict),
}

/// The program that answers at the other end of the control line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// The program: `steward`.
    pub program: String,
    /// Its version.
    pub version: String,
    /// Differs from one start of the machine to the next: with it, cursors of
    /// events and numbers of guests change their meaning.
    pub boot: String,
    /// Bounds of the [`protocol`](crate::protocol).
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
    /// Whether the operation would work.
    pub possible: bool,
    /// Why not, or what it would take.
    pub reason: String,
}
