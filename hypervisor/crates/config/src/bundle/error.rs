//! Why a bundle is refused.

use crate::GuestFault;
use crate::bundle::{MANIFEST_CRC_NAME, OLDEST_VERSION, VERSION};
use alloc::string::String;

/// A bundle that can't be used: what is wrong, where, and what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BundleError {
    /// The archive itself is broken.
    #[error("bundle: tar header at byte {offset:#x}: {fault}; make the image again")]
    Tar {
        /// Place of the header, in bytes from the bundle's start.
        offset: u64,
        /// The header's fault.
        fault: TarFault,
    },
    /// The archive ends in the middle of something.
    #[error(
        "bundle: truncated: {what} needs {wanted:#x} bytes, the bundle has {got:#x}; make the \
         image again"
    )]
    Truncated {
        /// The thing that was being read.
        what: String,
        /// Its end, in bytes from the bundle's start.
        wanted: u64,
        /// The bundle's size in bytes.
        got: u64,
    },
    /// A member stands where another is due.
    #[error(
        "bundle: found member \"{got}\" where \"{wanted}\" is due; make the image with `cargo \
         xtask image`"
    )]
    WrongMember {
        /// The member that is due.
        wanted: &'static str,
        /// The member that is there.
        got: String,
    },
    /// A member that the manifest lists is absent.
    #[error("bundle: member \"{name}\" is missing; make the image again")]
    MissingMember {
        /// The member's name.
        name: String,
    },
    /// A member that the manifest does not list, or that stands there twice.
    #[error(
        "bundle: member \"{name}\" at byte {offset:#x} is not listed in the manifest, or comes \
         twice; make the image again"
    )]
    UnexpectedMember {
        /// The member's name.
        name: String,
        /// Place of its header, in bytes from the bundle's start.
        offset: u64,
    },
    /// A member's size is not the one in the manifest.
    #[error(
        "bundle: member \"{name}\" has {got} bytes, the manifest says {wanted}; make the image \
         again"
    )]
    FileSize {
        /// The member's name.
        name: String,
        /// Bytes in the manifest.
        wanted: u64,
        /// Bytes in the archive.
        got: u64,
    },
    /// A member's contents are damaged.
    #[error(
        "bundle: member \"{name}\" is damaged: CRC-32 {got:#010x}, wanted {wanted:#010x}; make \
         the image again"
    )]
    FileCrc {
        /// The member's name.
        name: String,
        /// The checksum on record.
        wanted: u32,
        /// The checksum of what is there.
        got: u32,
    },
    /// The manifest's checksum is no number.
    #[error(
        "bundle: member \"{MANIFEST_CRC_NAME}\" does not hold eight hexadecimal digits; make the \
         image again"
    )]
    ManifestCrcFormat,
    /// The manifest is not the JSON that it should be.
    #[error("bundle: manifest.json, line {line}, column {column}: {message}")]
    Json {
        /// Line, from 1.
        line: usize,
        /// Column, from 1.
        column: usize,
        /// Words that say what was found and what is allowed.
        message: String,
    },
    /// The manifest is of another version.
    #[error(
        "bundle: manifest.json: version {got} is not supported, this image reads versions \
         {OLDEST_VERSION} to {VERSION}; make the image and its bundle with the same `xtask`"
    )]
    Version {
        /// The version in the manifest.
        got: u32,
    },
    /// There is no guest to run.
    #[error("bundle: manifest.json: \"guests\" is empty; name at least one guest")]
    NoGuests,
    /// A guest's settings are wrong.
    #[error("bundle: manifest.json: guests[{index}] \"{name}\": {fault}")]
    Guest {
        /// The guest's place in the list, from 0.
        index: usize,
        /// Its name.
        name: String,
        /// The fault of these settings.
        fault: GuestFault,
    },
    /// The list of files names a file twice.
    #[error("bundle: manifest.json: files[{index}]: \"{name}\" is listed twice; remove one")]
    DuplicateFile {
        /// The second one's place in the list, from 0.
        index: usize,
        /// The file's name.
        name: String,
    },
    /// A file's name can't be a member's name.
    #[error(
        "bundle: manifest.json: files[{index}]: \"{name}\" can't be a file's name: 1 to 100 \
         bytes, no NUL, and neither \"manifest.json\" nor \"manifest.crc32\""
    )]
    FileName {
        /// The file's place in the list, from 0.
        index: usize,
        /// The name.
        name: String,
    },
}

/// Faults of a tar header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TarFault {
    /// Not a ustar header.
    #[error("no \"ustar\" magic: this is no tar archive, or it is damaged")]
    Magic,
    /// The header's checksum does not hold.
    #[error("damaged header: checksum {got:#o}, wanted {wanted:#o}")]
    Checksum {
        /// The checksum on record.
        wanted: u64,
        /// The checksum of what is there.
        got: u64,
    },
    /// A numeric field is not octal digits.
    #[error("field \"{0}\" is not an octal number")]
    Number(&'static str),
    /// The name is empty, is not UTF-8 or uses the prefix field.
    #[error("the member's name is empty, not UTF-8, or longer than 100 bytes")]
    Name,
    /// Not a regular file.
    #[error("member type {0:#04x}: only regular files (0x30) are allowed")]
    Kind(u8),
    /// The size does not fit (when writing).
    #[error("{0} bytes don't fit into a tar header (at most 8 GiB - 1)")]
    Size(u64),
}
