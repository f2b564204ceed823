//! A configuration in TOML: several guests and their machine.
//!
//! [`parse`] reads and checks it, without fetching or building anything; a [`ConfigError`] names
//! for each fault file, line, key, what was found and what is allowed. [`Surroundings`] answers
//! what is known only where the text comes from: which files and test guests are there.
//! `docs/config.md` describes every key; tests hold it against the schema.

mod check;
mod fault;
mod schema;
pub mod table;
#[cfg(test)]
mod tests;
mod words;

pub use fault::ConfigError;
pub use words::{distance, similar};

use crate::{EscapeKey, GuestSettings, LogLevel, WhenEmpty};
use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;

/// Place that a configuration comes from.
pub trait Surroundings {
    /// Looks for the file `path`, relative to the configuration's folder.
    ///
    /// # Errors
    /// Words that say why there is no such file, and where it was looked for.
    fn file(&self, path: &str) -> Result<(), String>;

    /// Names of the tiny test guests.
    fn test_guests(&self) -> Vec<String>;

    /// The command line of a guest with this kernel whose configuration has none.
    fn cmdline(&self, kernel: &Kernel) -> &str;
}

/// A configuration that was found good.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// The hypervisor and the machine.
    pub host: Host,
    /// The guests, in the order of their start: at least one.
    pub plans: Vec<Plan>,
}

/// Settings of the hypervisor and the machine.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Host {
    /// How much to log, if the configuration says so.
    pub log: Option<LogLevel>,
    /// Behaviour when no guest is left.
    pub when_empty: WhenEmpty,
    /// The escape key.
    pub escape: EscapeKey,
    /// CPUs of the machine, if the configuration says so.
    pub cpus: Option<u32>,
    /// The machine's memory in bytes, if the configuration says so.
    pub memory: Option<u64>,
}

/// A guest whose files may still have to be fetched or built.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// Its settings; the names of its files are still empty.
    pub settings: GuestSettings,
    /// Its kernel.
    pub kernel: Kernel,
    /// Path of its initial ramdisk, if it names one.
    pub initrd: Option<String>,
    /// Paths of modules, and their command lines.
    pub modules: Vec<(String, String)>,
}

/// Source of a guest's kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kernel {
    /// Debian's cloud kernel; without an initial ramdisk, with ours.
    Debian,
    /// The built-in guest.
    BuiltIn,
    /// The tiny test guest of this name.
    Test(String),
    /// The file at this path.
    File(String),
}

impl Kernel {
    /// Whether such a guest has the debug-exit port, where its configuration does
    /// not say: ours end by it.
    const fn has_debug_exit(&self) -> bool {
        matches!(self, Self::BuiltIn | Self::Test(_))
    }
}

/// Reads and checks `text`, which stands in the file `name`. The machine has `cpus` CPUs; if that
/// is `None`, so many as the text says; if the text does not say, `usual`.
///
/// # Errors
/// [`ConfigError`] has everything that is wrong.
pub fn parse(
    name: &str,
    text: &str,
    cpus: Option<u32>,
    usual: Option<u32>,
    surroundings: &impl Surroundings,
) -> Result<Config, ConfigError> {
    let file: schema::File = toml::from_str(text).map_err(|error| {
        ConfigError::new(name, text, vec![fault::Fault::from_toml(&error, text)])
    })?;
    let mut checker = check::Checker { surroundings, cpus, faults: Vec::new() };
    let host = checker.host(&file.host);
    checker.cpus = checker.cpus.or(host.cpus).or(usual);
    let plans = checker.guests(&file.guest);
    let mut faults = checker.faults;
    if file.guest.is_empty() {
        faults.push(fault::Fault::new(0..0, "no guest", "at least one [[guest]]"));
    }
    if faults.is_empty() {
        Ok(Config { host, plans })
    } else {
        Err(ConfigError::new(name, text, faults))
    }
}
