//! `flash`: the image on a stick, or another disk, and the proof that it is there.

#[cfg(target_os = "linux")]
mod disks;
#[cfg(target_os = "linux")]
mod judge;
#[cfg(target_os = "linux")]
mod linux;
#[cfg(target_os = "linux")]
mod medium;
#[cfg(target_os = "linux")]
mod write;

use std::path::{Path, PathBuf};

use clap::Args;

/// Options of `flash`.
#[derive(Debug, Clone, Default, Args)]
pub struct FlashOptions {
    /// The disk, for example /dev/sdb, or a file that stands for one [default: asks which of the removable disks]
    #[arg(value_name = "DEVICE")]
    disk: Option<String>,
    /// The same, for scripts
    #[arg(long, value_name = "DEVICE", conflicts_with = "disk")]
    device: Option<String>,
    /// Do not ask: DEVICE is right, and what is on it may be lost
    #[arg(long)]
    yes: bool,
    /// Allow disks that are not removable, those of more than 512 GiB, and members of something larger that is not in use; asks a second time
    #[arg(long)]
    any_disk: bool,
    /// Say what would be done, and do nothing
    #[arg(long)]
    dry_run: bool,
    /// With the guests that this file describes (docs/config.md) [default: Debian]
    #[arg(long, value_name = "FILE", conflicts_with = "image")]
    config: Option<PathBuf>,
    /// Write this image, of `cargo xtask image`, instead of building one
    #[arg(long, value_name = "FILE")]
    image: Option<PathBuf>,
}

impl FlashOptions {
    /// The options of a script that has an image's file and knows its disk.
    pub fn script(device: &str, image: &Path) -> Self {
        Self {
            device: Some(device.to_owned()),
            yes: true,
            any_disk: true,
            image: Some(image.to_path_buf()),
            ..Self::default()
        }
    }

    /// The disk's name.
    #[cfg(target_os = "linux")]
    fn name(&self) -> Option<&str> {
        self.device.as_deref().or(self.disk.as_deref())
    }
}

/// Flashes, and returns the status to exit with.
#[cfg(target_os = "linux")]
pub use linux::flash;

/// Says what flashes in its place.
#[cfg(not(target_os = "linux"))]
pub fn flash(_: &FlashOptions) -> anyhow::Result<u8> {
    anyhow::bail!(
        "`flash` knows the disks of Linux only. Make the file with `cargo xtask image --release`, and write it \
         to the stick as it is: on Windows with Rufus (in its DD mode) or balenaEtcher, on macOS with \
         balenaEtcher, or `diskutil unmountDisk diskN` and `sudo dd if=FILE of=/dev/rdiskN bs=1m`"
    )
}
