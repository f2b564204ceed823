//! The control line: JSON requests and answers, one a line, over the machine's
//! second serial port.
//!
//! [`Session`] makes [`Request`]s of bytes and lines of answers; [`EventLog`]
//! keeps what happened for readers that come back; [`Uploads`] takes files in
//! pieces. The other end uses the same types ([`Request::to_line`],
//! [`Reply::from_line`]). Everything has a bound, and nothing that a line holds
//! can make the reader of lines lose the next one.
//!
//! `docs/control.md` describes the protocol. Fuzz target: `control`.

pub mod event;
pub mod session;
#[cfg(test)]
mod tests;
pub mod uploads;
mod wire;

pub use event::{Event, EventKind, EventLog, Events};
pub use session::{Input, Session};
pub use uploads::{Storage, UploadState, Uploads};
pub use wire::{OPERATIONS, Reply, Request};

use crate::answer::{Hello, Limits};
use alloc::string::String;

/// The version of the protocol that this code speaks.
pub const VERSION: u32 = 1;
/// The longest request in bytes, without its line feed.
pub const MAX_LINE: usize = 16 << 10;
/// The longest answer in bytes, without its line feed.
pub const MAX_ANSWER: usize = 1 << 20;
/// The longest id of a request, in bytes.
pub const MAX_ID: usize = 64;
/// The largest piece of a file, in bytes.
pub const MAX_CHUNK: usize = 8 << 10;
/// The longest name of a file, in bytes.
pub const MAX_FILE_NAME: usize = 100;
/// The longest command line of a guest, in bytes.
pub const MAX_CMDLINE: usize = 4 << 10;
/// Modules of a guest at the most.
pub const MAX_MODULES: usize = 16;
/// Events in one answer at the most.
pub const MAX_EVENTS: u32 = 64;

/// How the image introduces itself: its version, and what tells this start of
/// the machine from others.
#[must_use]
pub fn hello(version: &str, boot: &str, uploads: u32, upload_bytes: u64) -> Hello {
    let limits = Limits {
        line: MAX_LINE as u64,
        chunk: MAX_CHUNK as u64,
        uploads,
        upload_bytes,
        events: MAX_EVENTS,
    };
    Hello { program: "steward".into(), version: version.into(), boot: boot.into(), limits }
}

/// At most `most` bytes of `text`, cut between characters.
fn shortened(text: &str, most: usize) -> String {
    let mut end = most.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.get(..end).unwrap_or_default().into()
}
