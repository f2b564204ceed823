//! Builds what runs on the bare machine: the hypervisor and the tiny guests.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::ui::Step;
use crate::{cmd, paths, setup};

/// The bare target.
pub const TARGET: &str = "x86_64-unknown-none";

/// How to build.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Profile {
    /// With the release profile.
    pub release: bool,
    /// With this planted fault (`--cfg planted="…"`), in a target folder of its own.
    pub planted: Option<String>,
    /// With each entry into a guest checked first, as the tests want it.
    pub check_entries: bool,
    /// With every exit stamped, which tells where the time goes.
    pub stamp_exits: bool,
    /// Not at all: this ELF file was built before.
    pub elf: Option<PathBuf>,
}

/// Builds the hypervisor and returns its ELF file.
pub fn hypervisor(profile: &Profile) -> Result<PathBuf> {
    if let Some(elf) = &profile.elf {
        return Ok(elf.clone());
    }
    let built = build("hypervisor", &["--bin", "steward"], profile)?;
    let (_, elf) = built
        .into_iter()
        .find(|(name, _)| name == "steward")
        .context("the build of `hypervisor` made no program called `steward`")?;
    strip(
        &elf,
        match (profile.check_entries, profile.stamp_exits) {
            (true, _) => "checked",
            (false, true) => "stamped",
            (false, false) => "stripped",
        },
    )
}

/// Copies the ELF file without its debugging information, most of it, which the boot
/// loader would load at every start. The copy has the extension `name`: builds that
/// differ in features leave their programs in the same place.
fn strip(elf: &Path, name: &str) -> Result<PathBuf> {
    let Some(objcopy) = setup::objcopy()? else { return Ok(elf.to_path_buf()) };
    let stripped = elf.with_extension(name);
    // Another xtask may be reading the last one.
    let partial = elf.with_extension(format!("partial-{}", std::process::id()));
    cmd::output(Command::new(objcopy).arg("--strip-all").arg(elf).arg(&partial))?;
    fs::rename(&partial, &stripped)
        .with_context(|| format!("cannot write {}", stripped.display()))?;
    Ok(stripped)
}

/// Builds the tiny guests and returns their names and ELF files.
pub fn guests() -> Result<Vec<(String, PathBuf)>> {
    build("guests", &["--package", "kernels", "--bins"], &Profile::default())
}

fn build(package: &str, which: &[&str], profile: &Profile) -> Result<Vec<(String, PathBuf)>> {
    let step = Step::new(match &profile.planted {
        Some(fault) => format!("building {package} with the planted fault {fault}"),
        None => format!("building {package}"),
    });
    let mut command = cmd::cargo();
    command
        .current_dir(paths::root())
        .args(["build", "--package", package, "--target", TARGET])
        .args(which)
        .arg("--message-format=json-render-diagnostics");
    if profile.release {
        command.arg("--release");
    }
    if profile.check_entries {
        command.args(["--features", "check-entries"]);
    }
    if profile.stamp_exits {
        command.args(["--features", "stamp-exits"]);
    }
    if let Some(fault) = &profile.planted {
        // Joined with the flags that .cargo/config.toml has for this target.
        let flags = format!("target.{TARGET}.rustflags=[\"--cfg\", \"planted=\\\"{fault}\\\"\"]");
        command.args(["--config", &flags]).arg("--target-dir").arg(paths::target().join("planted"));
    }
    let messages = cmd::output_with_progress(&mut command, &step)?;
    step.done();
    Ok(executables(&String::from_utf8_lossy(&messages)))
}

/// Names and paths of the programs that cargo's JSON messages report.
pub(crate) fn executables(messages: &str) -> Vec<(String, PathBuf)> {
    let mut found = Vec::new();
    for line in messages.lines() {
        let Ok(message) = serde_json::from_str::<Value>(line) else { continue };
        if message["reason"] != "compiler-artifact" {
            continue;
        }
        if let (Some(name), Some(path)) =
            (message["target"]["name"].as_str(), message["executable"].as_str())
        {
            found.push((name.to_owned(), PathBuf::from(path)));
        }
    }
    found.sort();
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_found_and_libraries_are_not() {
        let text = concat!(
            "{\"reason\":\"compiler-artifact\",\"target\":{\"name\":\"vmm\"},\"executable\":null}\n",
            "{\"reason\":\"compiler-artifact\",\"target\":{\"name\":\"steward\"},\"executable\":\"/t/steward\"}\n",
        );
        assert_eq!(executables(text), [("steward".to_owned(), PathBuf::from("/t/steward"))]);
    }
}
