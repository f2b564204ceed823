//! `--config`: the guests that a configuration plans, and their files.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use config::GuestSettings;
use config::toml::{Config, Host, Kernel, Surroundings};

use crate::bundle::Guest;
use crate::guest::{self, Debian};
use crate::{kernel, paths};

/// A configuration and where it stands.
#[derive(Debug, Clone)]
pub struct Plans {
    config: Config,
    folder: PathBuf,
}

/// The folder of a configuration.
struct Folder<'a>(&'a Path);

impl Surroundings for Folder<'_> {
    fn file(&self, path: &str) -> Result<(), String> {
        let path = self.0.join(path);
        if path.is_file() {
            return Ok(());
        }
        let why = if path.exists() { "is no file" } else { "does not exist" };
        Err(format!("{} {why}", path.display()))
    }

    fn test_guests(&self) -> Vec<String> {
        test_guests()
    }

    fn cmdline(&self, kernel: &Kernel) -> &str {
        match kernel {
            Kernel::Debian => guest::CMDLINE,
            Kernel::BuiltIn | Kernel::Test(_) => "",
            Kernel::File(_) => guest::FILE_CMDLINE,
        }
    }
}

impl Plans {
    /// Reads and checks the file `path`. The machine has `cpus` CPUs; if that is
    /// `None` so many as the file says; if it does not say, `usual`.
    ///
    /// # Errors
    /// If the file can't be read, and [`ConfigError`](config::toml::ConfigError).
    pub fn load(path: &Path, cpus: Option<u32>, usual: Option<u32>) -> Result<Plans> {
        let text =
            fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        let folder = path.parent().unwrap_or(Path::new("")).to_owned();
        let name = path.display().to_string();
        let config = config::toml::parse(&name, &text, cpus, usual, &Folder(&folder))?;
        Ok(Plans { config, folder })
    }

    /// The hypervisor and the machine.
    pub fn host(&self) -> Host {
        self.config.host
    }

    /// The guests with their files: fetches and builds what is not there.
    ///
    /// # Errors
    /// If a file can't be fetched or built.
    pub fn guests(&self) -> Result<Vec<Guest>> {
        let any =
            |wanted: fn(&Kernel) -> bool| self.config.plans.iter().any(|plan| wanted(&plan.kernel));
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
        self.config
            .plans
            .iter()
            .map(|plan| {
                let mut initrd = plan.initrd.as_ref().map(|path| self.folder.join(path));
                let kernel = match &plan.kernel {
                    Kernel::Debian => {
                        let debian = debian.as_ref().context("Debian was not fetched")?;
                        initrd = initrd.or_else(|| Some(debian.initrd.clone()));
                        debian.kernel.clone()
                    }
                    Kernel::BuiltIn => tiny(guest::BUILT_IN)?,
                    Kernel::Test(name) => tiny(name)?,
                    Kernel::File(path) => self.folder.join(path),
                };
                let settings: GuestSettings = plan.settings.clone();
                let modules = plan.modules.iter();
                let modules = modules.map(|(path, line)| (self.folder.join(path), line.clone()));
                let modules = modules.collect();
                Ok(Guest { settings, kernel, initrd, modules })
            })
            .collect()
    }
}

/// The packages whose programs are tiny test guests.
const PACKAGES: [&str; 2] = ["tests/guests", "tests/kernels"];

/// The names of the tiny test guests.
fn test_guests() -> Vec<String> {
    let folders = PACKAGES.map(|package| paths::root().join(package).join("src/bin"));
    let mut names: Vec<String> = folders
        .into_iter()
        .flat_map(fs::read_dir)
        .flatten()
        .flatten()
        .filter_map(|entry| entry.path().file_stem()?.to_str().map(str::to_owned))
        .collect();
    names.sort();
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_guests_are_the_programs_of_their_packages() {
        let known = test_guests();
        let manifests = PACKAGES.map(|package| {
            fs::read_to_string(paths::root().join(package).join("Cargo.toml")).unwrap()
        });
        for name in ["hello", "exits", "tasks"] {
            assert!(known.iter().any(|other| other == name), "{known:?}");
        }
        for name in &known {
            assert!(manifests.concat().contains(&format!("name = \"{name}\"")), "{name}");
        }
    }

    #[test]
    fn a_file_that_is_not_there_is_named() {
        let error = Plans::load(Path::new("/nonexistent/guests.toml"), None, None).unwrap_err();
        assert!(error.to_string().contains("/nonexistent/guests.toml"));
    }

    #[test]
    fn every_example_is_good() {
        let mut count = 0;
        for entry in fs::read_dir(paths::root().join("examples")).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|extension| extension == "toml") {
                Plans::load(&path, None, Some(1)).unwrap();
                count += 1;
            }
        }
        assert!(count >= 3);
    }
}
