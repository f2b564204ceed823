//! Settings that are refused.

use crate::limits::{
    MAX_BACK_OFF_MS, MAX_CAP, MAX_CONSOLE_RING, MAX_CPU, MAX_MEMORY, MAX_MODULES, MAX_NAME,
    MAX_VCPUS, MAX_WATCHDOG_MS, MAX_WEIGHT, MIN_BACK_OFF_MS, MIN_CONSOLE_RING, MIN_MEMORY,
    MIN_WATCHDOG_MS, MIN_WEIGHT,
};
use alloc::string::String;

/// Faults of a guest's settings.
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
        /// The longest wait in milliseconds.
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
    /// The number of modules is not possible.
    #[error("\"modules\" has {0} entries; at most {MAX_MODULES} are possible")]
    Modules(usize),
    /// A command line with a NUL in it.
    #[error("\"{0}\" holds a NUL character at byte {1}; remove it")]
    Nul(&'static str, usize),
}
