//! Refusals of operations.

use alloc::string::String;
use serde::{Deserialize, Serialize};

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
