//! Two runs at the same time must not fill the same cache.

use std::fs::{self, File};

use anyhow::{Context, Result};

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
