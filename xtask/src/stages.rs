//! The boot loader's stages: built once from the crate `bootloader`, then kept.
//!
//! That crate's build script compiles five small programs. It needs unstable
//! compiler features, which `RUSTC_BOOTSTRAP=1` allows on a stable compiler, for
//! this one build. Its own image builder cannot carry guests (see
//! [`crate::image`]), so only the finished stage files are used.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::ui::Step;
use crate::{cmd, paths};

/// The stage files.
#[derive(Debug, Clone)]
pub struct Stages {
    dir: PathBuf,
}

/// Environment variable by which the build script names a file, and our name.
const FILES: [(&str, &str); 5] = [
    ("BIOS_BOOT_SECTOR_PATH", "boot-sector.bin"),
    ("BIOS_STAGE_2_PATH", "stage-2.bin"),
    ("BIOS_STAGE_3_PATH", "stage-3.bin"),
    ("BIOS_STAGE_4_PATH", "stage-4.bin"),
    ("UEFI_BOOTLOADER_PATH", "uefi.efi"),
];

impl Stages {
    /// The stages, built now if they are not in the cache.
    pub fn ensure() -> Result<Stages> {
        let package = paths::root().join("xtask/boot-stages");
        let mut key = crc32fast::Hasher::new();
        for file in [
            package.join("Cargo.lock"),
            package.join("Cargo.toml"),
            paths::root().join("rust-toolchain.toml"),
        ] {
            key.update(
                &fs::read(&file).with_context(|| format!("cannot read {}", file.display()))?,
            );
        }
        let dir = paths::cache().join(format!("boot-stages-{:08x}", key.finalize()));
        let stages = Stages { dir };
        if stages.complete() {
            return Ok(stages);
        }
        let _lock = crate::lock::Lock::take("boot-stages")?;
        if !stages.complete() {
            build(&package, &stages.dir)?;
        }
        Ok(stages)
    }

    fn complete(&self) -> bool {
        FILES.iter().all(|(_, name)| self.dir.join(name).is_file())
    }

    fn read(&self, name: &str) -> Result<Vec<u8>> {
        let path = self.dir.join(name);
        fs::read(&path).with_context(|| format!("cannot read {}", path.display()))
    }

    /// The master boot record's code, 512 bytes.
    pub fn boot_sector(&self) -> Result<Vec<u8>> {
        self.read("boot-sector.bin")
    }

    /// The second stage: real mode, reads the FAT partition.
    pub fn stage_2(&self) -> Result<Vec<u8>> {
        self.read("stage-2.bin")
    }

    /// The third stage: to long mode.
    pub fn stage_3(&self) -> Result<Vec<u8>> {
        self.read("stage-3.bin")
    }

    /// The fourth stage: loads the ELF image.
    pub fn stage_4(&self) -> Result<Vec<u8>> {
        self.read("stage-4.bin")
    }

    /// The UEFI application.
    pub fn uefi(&self) -> Result<Vec<u8>> {
        self.read("uefi.efi")
    }
}

fn build(package: &Path, dir: &Path) -> Result<()> {
    let step = Step::new("building the boot stages (once, 3 to 7 minutes)");
    let mut command = cmd::cargo();
    command
        .current_dir(package)
        .args(["build", "--release", "--locked", "--message-format=json"])
        .arg("--target-dir")
        .arg(paths::root().join("target/boot-stages"))
        .env("RUSTC_BOOTSTRAP", "1");
    // The build script runs cargo itself: nothing meant for our own build may reach it.
    for name in [
        "CARGO_TARGET_DIR",
        "CARGO_BUILD_TARGET_DIR",
        "RUSTFLAGS",
        "CARGO_ENCODED_RUSTFLAGS",
        "CARGO_BUILD_RUSTFLAGS",
    ] {
        command.env_remove(name);
    }
    let messages = cmd::output_with_progress(&mut command, &step)?;
    let found = stage_paths(&String::from_utf8_lossy(&messages));
    fs::create_dir_all(dir)?;
    for (variable, name) in FILES {
        let Some((_, from)) = found.iter().find(|(key, _)| key == variable) else {
            bail!("the build of `bootloader` did not name {variable}");
        };
        // Copied under another name first: a file under its own name is whole.
        let partial = dir.join(format!("{name}.partial"));
        fs::copy(from, &partial).with_context(|| format!("cannot copy {from}"))?;
        fs::rename(&partial, dir.join(name))?;
    }
    step.done();
    Ok(())
}

/// The variables that build scripts set, from cargo's JSON messages.
fn stage_paths(messages: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    for line in messages.lines() {
        let Ok(message) = serde_json::from_str::<Value>(line) else { continue };
        if message["reason"] != "build-script-executed" {
            continue;
        }
        for pair in message["env"].as_array().into_iter().flatten() {
            if let (Some(name), Some(value)) = (pair[0].as_str(), pair[1].as_str()) {
                found.push((name.to_owned(), value.to_owned()));
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_build_script_s_variables_are_found() {
        let text = concat!(
            "{\"reason\":\"compiler-artifact\",\"env\":[[\"NO\",\"x\"]]}\n",
            "not json\n",
            "{\"reason\":\"build-script-executed\",\"env\":[[\"BIOS_STAGE_2_PATH\",\"/a/b\"]]}\n",
        );
        assert_eq!(stage_paths(text), [("BIOS_STAGE_2_PATH".to_owned(), "/a/b".to_owned())]);
    }
}
