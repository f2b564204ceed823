//! Two runs at the same time must not fill the same cache, nor write the same file.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::{paths, ui};

/// Held while a cache is being filled; released when dropped.
pub struct Lock {
    _file: File,
}

impl Lock {
    /// Takes the lock called `name`, waiting for another process if need be.
    pub fn take(name: &str) -> Result<Lock> {
        let dir = paths::cache();
        fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        let path = dir.join(format!("{name}.lock"));
        let file =
            File::create(&path).with_context(|| format!("cannot make {}", path.display()))?;
        if file.try_lock().is_err() {
            ui::say(format!("waiting for another xtask ({name})"));
            file.lock().with_context(|| format!("cannot lock {}", path.display()))?;
        }
        Ok(Lock { _file: file })
    }
}

/// A file that no other run writes; free again when dropped.
pub struct Claim {
    path: PathBuf,
    _lock: File,
}

/// Runs side by side that are sensible.
const MOST: u32 = 1000;

impl Claim {
    /// The first of `NAME.EXTENSION`, `NAME-2.EXTENSION` and so on in `dir` that no run
    /// going on has. Content that an earlier run left in it stays until it is written.
    pub fn take(dir: &Path, name: &str, extension: &str) -> Result<Claim> {
        fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
        for number in 1..=MOST {
            let suffix = if number == 1 { String::new() } else { format!("-{number}") };
            let path = dir.join(format!("{name}{suffix}.{extension}"));
            // Opened without a change: it may be another's.
            let lock = File::options().create(true).append(true).open(&path);
            let lock = lock.with_context(|| format!("cannot write {}", path.display()))?;
            if lock.try_lock().is_ok() {
                return Ok(Claim { path, _lock: lock });
            }
        }
        bail!("{MOST} runs write {name}.{extension} in {} already", dir.display())
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_side_by_side_have_files_of_their_own() {
        let dir = std::env::temp_dir().join(format!("steward-claims-{}", std::process::id()));
        let name = |claim: &Claim| claim.path().file_name().unwrap().to_owned();
        let first = Claim::take(&dir, "serial", "log").unwrap();
        fs::write(first.path(), "of the first").unwrap();
        let second = Claim::take(&dir, "serial", "log").unwrap();
        assert_eq!((name(&first), name(&second)), ("serial.log".into(), "serial-2.log".into()));
        let third = Claim::take(&dir, "serial", "log").unwrap();
        assert_eq!(name(&third), "serial-3.log");
        drop(second);
        assert_eq!(name(&Claim::take(&dir, "serial", "log").unwrap()), "serial-2.log");
        // Nobody has touched what another one writes.
        assert_eq!(fs::read_to_string(first.path()).unwrap(), "of the first");
        drop((first, third));
        assert_eq!(name(&Claim::take(&dir, "serial", "log").unwrap()), "serial.log");
        fs::remove_dir_all(&dir).unwrap();
    }
}
