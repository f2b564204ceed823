//! Installs what is missing: rustup's target and components, Debian's packages.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::kernel::TARGET;
use crate::machine::{Firmware, Machine, Ovmf};
use crate::ui::{self, Step};
use crate::{cmd, paths};

/// Something that a task needs from the system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// QEMU for PCs.
    Qemu,
    /// UEFI firmware for QEMU.
    Ovmf,
    /// Bochs with its firmware and a display library.
    Bochs,
    /// ACPICA's compiler, which checks our ACPI tables.
    Iasl,
    /// A C++ compiler, for libFuzzer.
    Cxx,
    /// Checkers of partition tables and FAT volumes.
    Checkers,
}

impl Need {
    /// Everything.
    pub const ALL: [Need; 6] =
        [Need::Qemu, Need::Ovmf, Need::Bochs, Need::Iasl, Need::Cxx, Need::Checkers];

    fn packages(self) -> &'static [&'static str] {
        match self {
            Need::Qemu => &["qemu-system-x86"],
            Need::Ovmf => &["ovmf"],
            Need::Bochs => &["bochs", "bochs-sdl", "bochsbios", "vgabios"],
            Need::Iasl => &["acpica-tools"],
            Need::Cxx => &["g++"],
            Need::Checkers => &["gdisk", "dosfstools"],
        }
    }

    fn present(self) -> bool {
        match self {
            Need::Qemu => cmd::find("qemu-system-x86_64").is_some(),
            Need::Ovmf => Ovmf::find().is_some(),
            Need::Bochs => {
                cmd::find("bochs").is_some()
                    && Path::new("/usr/share/bochs/BIOS-bochs-latest").is_file()
                    && Path::new("/usr/share/bochs/VGABIOS-lgpl-latest").exists()
                    && has_bochs_sdl()
            }
            Need::Iasl => cmd::find("iasl").is_some(),
            Need::Cxx => cmd::find("c++").is_some(),
            Need::Checkers => ["sgdisk", "fsck.fat"].iter().all(|tool| cmd::find(tool).is_some()),
        }
    }
}

fn has_bochs_sdl() -> bool {
    [
        "/usr/lib/x86_64-linux-gnu/bochs/plugins",
        "/usr/lib/bochs/plugins",
        "/usr/lib64/bochs/plugins",
    ]
    .iter()
    .any(|dir| {
        ["libbx_sdl2_gui.so", "libbx_sdl2.so"].iter().any(|file| Path::new(dir).join(file).exists())
    })
}

/// Needs of a run on `machine` with `firmware`.
pub fn needs(machine: Machine, firmware: Firmware) -> Vec<Need> {
    match (machine, firmware) {
        (Machine::BochsVmx | Machine::BochsSvm, _) => vec![Need::Bochs],
        (_, Firmware::Uefi) => vec![Need::Qemu, Need::Ovmf],
        (_, Firmware::Bios) => vec![Need::Qemu],
    }
}

/// Makes sure of the toolchain and of these needs.
pub fn ensure(needs: &[Need]) -> Result<()> {
    rust()?;
    let missing: Vec<Need> = needs.iter().copied().filter(|need| !need.present()).collect();
    let packages: Vec<&str> = missing.iter().flat_map(|need| need.packages()).copied().collect();
    install(&packages)?;
    for need in missing {
        if !need.present() {
            bail!(
                "the packages {} are installed, and still what they should bring is missing",
                need.packages().join(", ")
            );
        }
    }
    Ok(())
}

/// The toolchain's target and components. Looked up as files: asking rustup takes
/// longer than a run's other checks together.
fn rust() -> Result<()> {
    let lib = rustlib()?;
    let mut missing = Vec::new();
    if !lib.join(TARGET).join("lib").is_dir() {
        missing.push(["target", "add", TARGET]);
    }
    if !lib.join("src/rust/library/core/src/lib.rs").is_file() {
        missing.push(["component", "add", "rust-src"]);
    }
    let tools = objcopy()?.is_some();
    if !tools {
        missing.push(["component", "add", "llvm-tools"]);
    }
    for args in missing {
        if cmd::find("rustup").is_none() {
            bail!(
                "the Rust toolchain lacks something and there is no rustup to add it. Please run: rustup {}",
                args.join(" ")
            );
        }
        let step = Step::new(format!("rustup {}", args.join(" ")));
        cmd::output_with_progress(
            Command::new("rustup").args(args).current_dir(paths::root()),
            &step,
        )?;
        step.done();
    }
    Ok(())
}

/// The toolchain's folder of targets and tools.
fn rustlib() -> Result<PathBuf> {
    let mut rustc = Command::new("rustc");
    let sysroot = cmd::output(rustc.args(["--print", "sysroot"]).current_dir(paths::root()))?;
    Ok(PathBuf::from(String::from_utf8_lossy(&sysroot).trim()).join("lib/rustlib"))
}

/// The `llvm-objcopy` of rustup's component `llvm-tools`.
pub(crate) fn objcopy() -> Result<Option<PathBuf>> {
    let lib = rustlib()?;
    let dirs = std::fs::read_dir(&lib).with_context(|| format!("cannot read {}", lib.display()))?;
    Ok(dirs.flatten().map(|dir| dir.path().join("bin/llvm-objcopy")).find(|path| path.is_file()))
}

/// Installs Debian packages, or says how.
fn install(packages: &[&str]) -> Result<()> {
    if packages.is_empty() {
        return Ok(());
    }
    let list = packages.join(" ");
    let manual = format!("apt-get update && apt-get install --no-install-recommends -y {list}");
    if cmd::find("apt-get").is_none() {
        bail!(
            "these are missing, and this is no Debian-like system: {list} (Debian's names). Please install them"
        );
    }
    if !is_root() {
        bail!("these packages are missing: {list}. Please run as root:\n    {manual}");
    }
    apt_update(false)?;
    let step = Step::new(format!("installing {list}"));
    let install = |step: &Step| {
        cmd::output_with_progress(
            Command::new("apt-get")
                .args(["install", "--no-install-recommends", "-y", "-q"])
                .args(packages)
                .env("DEBIAN_FRONTEND", "noninteractive"),
            step,
        )
    };
    if install(&step).is_err() {
        // The lists may be older than the archive.
        apt_update(true)?;
        install(&step).with_context(|| format!("please try yourself: {manual}"))?;
    }
    step.done();
    Ok(())
}

/// Fetches the package lists, unless there are some and `again` is not set.
pub(crate) fn apt_update(again: bool) -> Result<()> {
    let have = std::fs::read_dir("/var/lib/apt/lists")
        .map(|dir| {
            dir.flatten().any(|entry| entry.file_name().to_string_lossy().contains("_Packages"))
        })
        .unwrap_or(false);
    if (have && !again) || !is_root() {
        return Ok(());
    }
    let step = Step::new("apt-get update");
    cmd::output_with_progress(Command::new("apt-get").args(["update", "-q"]), &step)?;
    step.done();
    Ok(())
}

fn is_root() -> bool {
    cmd::output(Command::new("id").arg("-u")).is_ok_and(|out| out == b"0\n")
}

/// Tells what is there, for `cargo xtask setup`.
pub fn report() {
    for need in Need::ALL {
        ui::say(format!("{need:?}: {}", if need.present() { "there" } else { "missing" }));
    }
}
