//! `--config`: a TOML file that describes several guests and their machine.
//!
//! [`Config::load`] reads and checks it without fetching or building anything; a
//! [`ConfigError`] names for each fault file, line, key, what was found and what is
//! allowed. [`Config::guests`] then gets the guests' files. `docs/config.md`
//! describes every key; a test holds it against the schema.

mod check;
mod fault;
mod schema;
#[cfg(test)]
mod tests;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use config::{EscapeKey, GuestSettings, LogLevel, WhenEmpty};

use crate::bundle::Guest;
use crate::guest::{self, Debian};
use crate::kernel;

pub use fault::ConfigError;

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
    /// How much to log, if it says so.
    pub log: Option<LogLevel>,
    /// What to do when no guest is left.
    pub when_empty: WhenEmpty,
    /// The escape key.
    pub escape: EscapeKey,
    /// CPUs of the machine, if it says so.
    pub cpus: Option<u32>,
    /// The machine's memory in bytes, if it says so.
    pub memory: Option<u64>,
}

/// A guest whose files may still have to be fetched or built.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// Its settings; the names of its files are still empty.
    pub settings: GuestSettings,
    /// Its kernel.
    pub kernel: Kernel,
    /// Its initial ramdisk, if it names one.
    pub initrd: Option<PathBuf>,
    /// Modules and their command lines.
    pub modules: Vec<(PathBuf, String)>,
}

/// Where a guest's kernel comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kernel {
    /// Debian's cloud kernel; without an initial ramdisk, with ours.
    Debian,
    /// The built-in guest.
    BuiltIn,
    /// A tiny test guest.
    Test(String),
    /// A file.
    File(PathBuf),
}

impl Kernel {
    /// The command line of a guest whose configuration has none.
    fn cmdline(&self) -> &'static str {
        match self {
            Kernel::Debian => guest::CMDLINE,
            Kernel::BuiltIn | Kernel::Test(_) => "",
            Kernel::File(_) => guest::FILE_CMDLINE,
        }
    }

    /// Whether such a guest has the debug-exit port, where its configuration does
    /// not say: ours end by it.
    fn has_debug_exit(&self) -> bool {
        matches!(self, Kernel::BuiltIn | Kernel::Test(_))
    }
}

impl Config {
    /// Reads and checks the file `path`. The machine has `cpus` CPUs; if that is
    /// `None` so many as the file says; if it does not say, `usual`.
    ///
    /// # Errors
    /// Where the file can't be read, and [`ConfigError`].
    pub fn load(path: &Path, cpus: Option<u32>, usual: Option<u32>) -> Result<Config> {
        let text =
            fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        Ok(Config::parse(path, &text, cpus, usual)?)
    }

    fn parse(
        path: &Path,
        text: &str,
        cpus: Option<u32>,
        usual: Option<u32>,
    ) -> Result<Config, ConfigError> {
        let file: schema::File = toml::from_str(text).map_err(|error| {
            ConfigError::new(path, text, vec![fault::Fault::from_toml(&error, text)])
        })?;
        let folder = path.parent().unwrap_or(Path::new(""));
        let mut checker = check::Checker { folder, cpus, faults: Vec::new() };
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
            Err(ConfigError::new(path, text, faults))
        }
    }

    /// The guests with their files: fetches and builds what is not there.
    ///
    /// # Errors
    /// Where that can't be had.
    pub fn guests(&self) -> Result<Vec<Guest>> {
        let any = |wanted: fn(&Kernel) -> bool| self.plans.iter().any(|plan| wanted(&plan.kernel));
        let debian = any(|kernel| *kernel == Kernel::Debian)
            .then(Debian::ensure)
            .transpose()
            .context("the Debian guest cannot be had here; take kernel = \"builtin\"")?;
        let tiny = if any(|kernel| matches!(kernel, Kernel::BuiltIn | Kernel::Test(_))) {
            kernel::guests()?
        } else {
            Vec::new()
        };
        let tiny = |wanted: &str| {
            let found = tiny.iter().find(|(name, _)| name == wanted);
            found
                .map(|(_, path)| path.clone())
                .with_context(|| format!("there is no tiny guest `{wanted}`"))
        };
        self.plans
            .iter()
            .map(|plan| {
                let mut initrd = plan.initrd.clone();
                let kernel = match &plan.kernel {
                    Kernel::Debian => {
                        let debian = debian.as_ref().context("Debian was not fetched")?;
                        initrd = initrd.or_else(|| Some(debian.initrd.clone()));
                        debian.kernel.clone()
                    }
                    Kernel::BuiltIn => tiny(guest::BUILT_IN)?,
                    Kernel::Test(name) => tiny(name)?,
                    Kernel::File(path) => path.clone(),
                };
                let (settings, modules) = (plan.settings.clone(), plan.modules.clone());
                Ok(Guest { settings, kernel, initrd, modules })
            })
            .collect()
    }
}
