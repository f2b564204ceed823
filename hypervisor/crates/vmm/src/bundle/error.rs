//! Why a bundle is refused.

use super::guest::{
    MAX_BACK_OFF_MS, MAX_CONSOLE_RING, MAX_CPU, MAX_MEMORY, MAX_MODULES, MAX_NAME, MAX_VCPUS,
    MAX_WATCHDOG_MS, MIN_BACK_OFF_MS, MIN_CONSOLE_RING, MIN_MEMORY, MIN_WATCHDOG_MS,
};
use super::{MANIFEST_CRC_NAME, OLDEST_VERSION, VERSION};
use crate::sched::{MAX_CAP, MAX_WEIGHT, MIN_WEIGHT};
use alloc::string::String;

/// A bundle that can't be used: what is wrong, where, and what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BundleError {
    /// The archive itself is broken.
    #[error("bundle: tar header at byte {offset:#x}: {fault}; make the image again")]
    Tar {
        /// Where the header stands, in bytes from the bundle's start.
        offset: u64,
        /// What is wrong with it.
        fault: TarFault,
    },
    /// The archive ends in the middle of something.
    #[error(
        "bundle: truncated: {what} needs {wanted:#x} bytes, the bundle has {got:#x}; make the \
         image again"
    )]
    Truncated {
        /// What was being read.
        what: String,
        /// Where it ends, in bytes from the bundle's start.
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
        /// What is due.
        wanted: &'static str,
        /// What is there.
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
        /// Where its header stands, in bytes from the bundle's start.
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
        /// What was found and what is allowed.
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
        /// What is wrong.
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

/// What is wrong with a tar header.
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

/// What is wrong with a guest's settings.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GuestFault {
    /// The name is empty, too long or has characters that a console can't show.
    #[error("\"name\" must be 1 to {MAX_NAME} of the characters A-Z a-z 0-9 . _ -")]
    Name,
    /// Another guest has the name.
    #[error("\"name\" is also that of guests[{0}]; give each guest its own")]
    DuplicateName(usize),
    /// The memory size is not possible.
    #[error(
        "\"memory\" is {0} bytes; it must be a multiple of 4096 from {MIN_MEMORY} (1 MiB) to \
         {MAX_MEMORY} ({gib} GiB)",
        gib = MAX_MEMORY >> 30
    )]
    Memory(u64),
    /// The number of vCPUs is not possible.
    #[error("\"vcpus\" is {0}; it must be 1 to {MAX_VCPUS}")]
    Vcpus(u32),
    /// Another guest has the UUID.
    #[error("\"uuid\" is also that of guests[{0}]; give each guest its own")]
    DuplicateUuid(usize),
    /// The weight is not possible.
    #[error("\"weight\" is {0}; it must be {MIN_WEIGHT} to {MAX_WEIGHT}")]
    Weight(u32),
    /// The cap is not possible.
    #[error("\"cap\" is {0}; it must be 1 to {MAX_CAP} percent of one CPU")]
    Cap(u32),
    /// The affinity list is empty.
    #[error("\"affinity\" names no CPU; name at least one, or leave it out")]
    NoCpu,
    /// The affinity list names a CPU that no machine has.
    #[error("\"affinity\" names CPU {0}; CPUs are 0 to {MAX_CPU}")]
    Cpu(u8),
    /// The affinity list names a CPU twice.
    #[error("\"affinity\" names CPU {0} twice; remove one")]
    CpuTwice(u8),
    /// A time of the back-off is not possible.
    #[error("\"{key}\" is {value}; it must be {MIN_BACK_OFF_MS} to {MAX_BACK_OFF_MS} (one day)")]
    BackOff {
        /// The settings' key.
        key: &'static str,
        /// Its value in milliseconds.
        value: u32,
    },
    /// The longest wait is shorter than the first.
    #[error(
        "\"back_off.most_ms\" is {most_ms}; it must be at least \"back_off.first_ms\", {first_ms}"
    )]
    BackOffOrder {
        /// The first wait in milliseconds.
        first_ms: u32,
        /// The longest in milliseconds.
        most_ms: u32,
    },
    /// The watchdog's time is not possible.
    #[error(
        "\"watchdog_ms\" is {0}; it must be {MIN_WATCHDOG_MS} to {MAX_WATCHDOG_MS} (one day), or \
         null"
    )]
    Watchdog(u32),
    /// The console's ring is not possible.
    #[error(
        "\"console_ring\" is {0} bytes; it must be {MIN_CONSOLE_RING} (4 KiB) to \
         {MAX_CONSOLE_RING} (16 MiB)"
    )]
    ConsoleRing(u32),
    /// A file that the bundle does not have.
    #[error("\"{key}\" names the file \"{name}\", which is not listed in \"files\"; add it")]
    NoFile {
        /// The settings' key.
        key: &'static str,
        /// The file's name.
        name: String,
    },
    /// The number of modules.
    #[error("\"modules\" has {0} entries; at most {MAX_MODULES} are possible")]
    Modules(usize),
    /// A command line with a NUL in it.
    #[error("\"{0}\" holds a NUL character at byte {1}; remove it")]
    Nul(&'static str, usize),
}
