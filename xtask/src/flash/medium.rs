//! A disk's node, or a file, as it is written and read back.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use rustix::fs::{Advice, OFlags, fadvise, major, minor};

use super::disks::Target;
use super::write::Medium;
use crate::cmd;

/// Bytes between two waits for the medium: without them all would be written at once into
/// this computer's memory, and progress would say nothing.
const STRIDE: u64 = 4 << 20;

/// An open disk.
pub(super) struct Node {
    file: File,
    since: u64,
    path: Option<String>,
}

impl Node {
    /// Opens a disk for this program alone: the kernel refuses with `EBUSY` where the disk or
    /// a part of it is mounted or in use in another way (open(2): "O_EXCL").
    pub(super) fn open(target: &Target) -> io::Result<Self> {
        let flags = i32::try_from(OFlags::EXCL.bits()).unwrap_or_default();
        let file =
            OpenOptions::new().read(true).write(true).custom_flags(flags).open(&target.path)?;
        Ok(Self { path: Some(target.path.clone()), ..Self::of(file) })
    }

    /// An open file.
    pub(super) fn of(file: File) -> Self {
        Self { file, since: 0, path: None }
    }

    /// Makes sure that what was opened is what was judged.
    pub(super) fn check(&mut self, target: &Target) -> Result<()> {
        let numbers = self.file.metadata()?.rdev();
        let numbers = format!("{}:{}", major(numbers), minor(numbers));
        let size = self.file.seek(SeekFrom::End(0))?;
        ensure!(
            numbers == target.numbers && size == target.size,
            "{} is another disk than a moment ago: nothing was written",
            target.path
        );
        Ok(())
    }

    /// Has the kernel look at the new partitions.
    pub(super) fn finish(self) {
        let Self { file, path, .. } = self;
        drop(file);
        if let Some(path) = path {
            // It does so by itself when the disk is plugged in again.
            let _ = cmd::output(Command::new("blockdev").args(["--rereadpt", &path]));
        }
    }
}

impl Read for Node {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        self.file.read(to)
    }
}

impl Write for Node {
    fn write(&mut self, from: &[u8]) -> io::Result<usize> {
        let done = self.file.write(from)?;
        self.since += done as u64;
        if self.since >= STRIDE {
            self.file.sync_data()?;
            self.since = 0;
        }
        Ok(done)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Seek for Node {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.file.seek(to)
    }
}

impl Medium for Node {
    fn settle(&mut self) -> Result<()> {
        self.file.sync_all()?;
        fadvise(&self.file, 0, None, Advice::DontNeed)
            .context("cannot have the disk read back past this computer's memory")
    }
}
