//! The default guest's initial ramdisk: busybox, the kernel modules that a PC's
//! power button needs, and our `init`.
//!
//! The kernel unpacks any number of cpio archives, compressed or not, one behind
//! the other (kernel documentation: "initramfs buffer format"). The large one is
//! made once; a small one with a run's own files is appended for each run.

use std::io::Write;

use anyhow::{Context, Result};
use flate2::Compression;
use flate2::write::GzEncoder;

use super::deb::Package;

const INIT: &str = include_str!("init.sh");
const EXEC: &str = include_str!("exec.sh");
const POWER: &str = include_str!("power.sh");
const PROFILE: &str = include_str!("profile.sh");

/// Drivers, in the order in which they are loaded: through the first two a panic of the
/// kernel is reported to the hypervisor, the third is the power button's, the fourth hands
/// its key to a program.
const MODULES: [&str; 4] = ["pvpanic.ko", "pvpanic-mmio.ko", "button.ko", "evdev.ko"];

/// Changes when our own files do.
pub(crate) fn fingerprint() -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    for text in [INIT, EXEC, POWER, PROFILE].into_iter().chain(MODULES) {
        hasher.update(text.as_bytes());
    }
    hasher.finalize()
}

/// A cpio archive in the "newc" form that is being written.
pub(crate) struct Archive {
    bytes: Vec<u8>,
    next_inode: u32,
}

impl Archive {
    /// An empty archive.
    pub(crate) fn new() -> Archive {
        Archive { bytes: Vec::new(), next_inode: 1 }
    }

    fn entry(&mut self, path: &str, mode: u32, contents: &[u8]) -> Result<()> {
        let builder = cpio::newc::Builder::new(path).mode(mode).nlink(1).ino(self.next_inode);
        self.next_inode += 1;
        let mut writer = builder.write(&mut self.bytes, u32::try_from(contents.len())?);
        writer.write_all(contents)?;
        writer.finish()?;
        Ok(())
    }

    /// Adds a folder.
    pub(crate) fn dir(&mut self, path: &str) -> Result<()> {
        self.entry(path, 0o040_755, &[])
    }

    /// Adds a file that can be run.
    pub(crate) fn program(&mut self, path: &str, contents: &[u8]) -> Result<()> {
        self.entry(path, 0o100_755, contents)
    }

    /// Adds a file.
    pub(crate) fn file(&mut self, path: &str, contents: &[u8]) -> Result<()> {
        self.entry(path, 0o100_644, contents)
    }

    fn link(&mut self, path: &str, to: &str) -> Result<()> {
        self.entry(path, 0o120_777, to.as_bytes())
    }

    /// Ends the archive.
    pub(crate) fn finish(mut self) -> Result<Vec<u8>> {
        cpio::newc::trailer(&mut self.bytes)?;
        Ok(self.bytes)
    }
}

/// Puts `second` behind `first`, where the kernel looks for it.
pub(crate) fn append(first: &[u8], second: &[u8]) -> Vec<u8> {
    let mut bytes = first.to_vec();
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes.extend_from_slice(second);
    bytes
}

/// Makes the initial ramdisk.
pub(crate) fn build(linux: &Package, busybox: &Package) -> Result<Vec<u8>> {
    let mut archive = Archive::new();
    for dir in [
        "bin",
        "dev",
        "etc",
        "etc/acpi",
        "etc/acpi/PWRF",
        "lib",
        "lib/modules",
        "proc",
        "root",
        "run",
        "sys",
        "tmp",
    ] {
        archive.dir(dir)?;
    }
    archive.link("sbin", "bin")?;
    archive.program("init", INIT.as_bytes())?;
    archive.program("bin/steward-exec", EXEC.as_bytes())?;
    archive.program("etc/acpi/PWRF/00000080", POWER.as_bytes())?;
    archive.file("etc/profile", PROFILE.as_bytes())?;
    archive.file("etc/passwd", b"root::0:0:root:/root:/bin/sh\n")?;
    archive.file("etc/group", b"root:x:0:\n")?;
    archive.file("etc/hostname", b"steward\n")?;
    let (_, program) = busybox
        .entry(|name| name == "bin/busybox" || name == "usr/bin/busybox")
        .context("no busybox in its package")?;
    archive.program("bin/busybox", program)?;
    archive.link("bin/sh", "busybox")?;
    for (place, name) in MODULES.iter().enumerate() {
        // A kernel that has it built in has no module for it.
        let ending = format!("/{name}");
        if let Some((_, module)) = linux.entry(|path| path.ends_with(&ending)) {
            archive.file(&format!("lib/modules/{place}-{name}"), module)?;
        }
    }
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(&archive.finish()?)?;
    Ok(encoder.finish()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_reads_back() {
        let mut archive = Archive::new();
        archive.dir("etc").unwrap();
        archive.file("etc/x", b"abc").unwrap();
        let bytes = archive.finish().unwrap();
        let mut input = &bytes[..];
        let mut names = Vec::new();
        loop {
            let mut reader = cpio::newc::Reader::new(input).unwrap();
            if reader.entry().is_trailer() {
                break;
            }
            names.push((reader.entry().name().to_owned(), reader.entry().mode()));
            std::io::copy(&mut reader, &mut std::io::sink()).unwrap();
            input = reader.finish().unwrap();
        }
        assert_eq!(names, [("etc".to_owned(), 0o040_755), ("etc/x".to_owned(), 0o100_644)]);
    }

    #[test]
    fn the_second_archive_starts_on_four_bytes() {
        assert_eq!(append(b"abcde", b"X"), b"abcde\0\0\0X");
        assert_eq!(append(b"abcd", b"X"), b"abcdX");
    }
}
