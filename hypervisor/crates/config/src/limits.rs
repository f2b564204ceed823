//! Limits of what settings can ask for.

use crate::{MAX_CPUS, layout};

/// The least memory of a guest, in bytes.
pub const MIN_MEMORY: u64 = 1 << 20;
/// The most memory of a guest, in bytes: 383 GiB.
pub const MAX_MEMORY: u64 = layout::MAX_RAM;
/// The most vCPUs of a guest.
pub const MAX_VCPUS: u32 = 64;
/// The most modules of a guest: finding places for them is one step of its start.
pub const MAX_MODULES: usize = 64;
/// The longest name of a guest, in bytes.
pub const MAX_NAME: usize = 64;
/// The highest number of a CPU that an affinity list can name.
pub const MAX_CPU: u8 = 63;
const _: () = assert!(MAX_CPU as usize + 1 == MAX_CPUS);
/// The shortest time of a restart's back-off, in milliseconds.
pub const MIN_BACK_OFF_MS: u32 = 10;
/// The longest: a day.
pub const MAX_BACK_OFF_MS: u32 = 24 * 60 * 60 * 1000;
/// A reset within so many milliseconds of the start waits as a crash does.
pub const HASTY_RESET_MS: u32 = 5000;
/// The shortest time of a watchdog, in milliseconds.
pub const MIN_WATCHDOG_MS: u32 = 1000;
/// The longest: a day.
pub const MAX_WATCHDOG_MS: u32 = 24 * 60 * 60 * 1000;
/// The smallest ring for a console's output, in bytes.
pub const MIN_CONSOLE_RING: u32 = 4 << 10;
/// The ring of a guest whose settings name none, in bytes.
pub const DEFAULT_CONSOLE_RING: u32 = 16 << 10;
/// The largest.
pub const MAX_CONSOLE_RING: u32 = 16 << 20;

/// The lowest weight.
pub const MIN_WEIGHT: u32 = 1;
/// The weight of a guest whose configuration names none.
pub const DEFAULT_WEIGHT: u32 = 100;
/// The highest weight.
pub const MAX_WEIGHT: u32 = 10_000;

/// The highest cap, in percent of one CPU.
pub const MAX_CAP: u32 = 6400;

/// The memory of a guest whose configuration names none, in bytes.
pub const DEFAULT_MEMORY: u64 = 512 << 20;
/// The least memory of a machine, in bytes.
pub const MIN_MACHINE_MEMORY: u64 = 128 << 20;
/// The most memory of a machine that `run` starts, in bytes: 1 TiB.
pub const MAX_MACHINE_MEMORY: u64 = 1 << 40;
