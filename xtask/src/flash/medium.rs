//! A disk's node, or a file, as it is written and read back.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::process::Command;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::fs::{
    Access, Advice, FlockOperation, OFlags, access, fadvise, fcntl_getfl, fcntl_setfl, flock,
    major, minor,
};

use super::judge::Target;
use super::write::Medium;
use crate::cmd;

/// Bytes between two waits for the medium: without them all would be written at once into
/// this computer's memory, and progress would say nothing.
const STRIDE: u64 = 4 << 20;
/// Bytes that are read at a time past this computer's memory.
const DIRECT: usize = 64 * 1024;
/// Their place, on the disk and in memory, is a multiple of this.
const ALIGNED: usize = 4096;
/// How often, and how long after each other, what other programs may hold for a moment is
/// tried again.
const TRIES: u32 = 20;
const PAUSE: Duration = Duration::from_millis(100);

/// An open disk.
pub(super) struct Node {
    file: File,
    /// Bytes that were written since the last wait.
    since: u64,
    path: Option<String>,
    /// Reads go past this computer's memory, by way of this buffer.
    direct: Option<Vec<u8>>,
}

impl Node {
    /// Opens a disk for this program alone: the kernel refuses with `EBUSY` where the disk or
    /// a part of it is mounted or in use in another way (open(2): "O_EXCL"). The lock keeps
    /// udev from it meanwhile (systemd: "Locking Block Device Access").
    pub(super) fn open(target: &Target) -> io::Result<Self> {
        let flags = i32::try_from(OFlags::EXCL.bits()).map_err(io::Error::other)?;
        let file =
            OpenOptions::new().read(true).write(true).custom_flags(flags).open(&target.path)?;
        if !again(|| flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok()) {
            return Err(io::ErrorKind::ResourceBusy.into());
        }
        Ok(Self { path: Some(target.path.clone()), ..Self::of(file) })
    }

    /// An open file.
    pub(super) fn of(file: File) -> Self {
        Self { file, since: 0, path: None, direct: None }
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

    /// Has the kernel look at the new partitions. `false`: it still has the old ones.
    pub(super) fn finish(self) -> bool {
        let Self { file, path, .. } = self;
        drop(file);
        path.is_none_or(|path| {
            // Udev may be looking at it just now.
            again(|| cmd::output(Command::new("blockdev").args(["--rereadpt", &path])).is_ok())
        })
    }

    /// Has reads go past this computer's memory. A medium that can't be read so (a file in
    /// memory) is at least forgotten first.
    fn read_past_memory(&mut self) -> io::Result<()> {
        self.direct = None;
        let flags = fcntl_getfl(&self.file)?;
        if fcntl_setfl(&self.file, flags | OFlags::DIRECT).is_ok() {
            self.direct = Some(vec![0; DIRECT + ALIGNED]);
        }
        self.forget()
    }

    fn forget(&self) -> io::Result<()> {
        Ok(fadvise(&self.file, 0, None, Advice::DontNeed)?)
    }

    /// Has reads and writes go the usual way.
    fn read_usually(&mut self) -> io::Result<()> {
        if self.direct.take().is_some() {
            let flags = fcntl_getfl(&self.file)?;
            fcntl_setfl(&self.file, flags.difference(OFlags::DIRECT))?;
        }
        Ok(())
    }
}

/// Tries until it works, but not for ever: whether it did.
fn again(mut works: impl FnMut() -> bool) -> bool {
    (0..TRIES).any(|number| {
        if number > 0 {
            sleep(PAUSE);
        }
        works()
    })
}

impl Read for Node {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        let Self { file, direct: Some(buffer), .. } = self else { return self.file.read(to) };
        let first = buffer.as_ptr().align_offset(ALIGNED);
        let len = to.len().next_multiple_of(512).min(DIRECT);
        let aligned = buffer.get_mut(first..).and_then(|buffer| buffer.get_mut(..len));
        let at = file.stream_position()?;
        let read = match aligned {
            Some(aligned) if at.is_multiple_of(512) => file.read(aligned),
            _ => Err(io::ErrorKind::InvalidInput.into()),
        };
        match read {
            Ok(done) => {
                let done = done.min(to.len());
                to.get_mut(..done)
                    .unwrap_or_default()
                    .copy_from_slice(buffer.get(first..first + done).unwrap_or_default());
                file.seek(SeekFrom::Start(at + done as u64))?;
                Ok(done)
            }
            // Some places and media can't be read so.
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
                self.read_usually()?;
                self.forget()?;
                self.file.read(to)
            }
            Err(error) => Err(error),
        }
    }
}

impl Write for Node {
    fn write(&mut self, from: &[u8]) -> io::Result<usize> {
        self.read_usually()?;
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
        self.file
            .sync_all()
            .context("the disk did not take all that was written: try again, or another one")?;
        self.read_past_memory()
            .context("cannot have the disk read back past this computer's memory")
    }
}

/// Whether a file has content: neither holes alone nor nothing.
pub(super) fn has_content(file: &File) -> bool {
    rustix::fs::seek(file, rustix::fs::SeekFrom::Data(0)).is_ok()
}

/// Whether this program has the rights of root.
pub(super) fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|own| own.uid() == 0)
}

/// The node that a name means: links, as those by the disks' serial numbers, are followed.
pub(super) fn node(name: &str) -> String {
    let node = fs::canonicalize(name).ok().filter(|node| node.starts_with("/dev"));
    node.and_then(|node| node.into_os_string().into_string().ok())
        .unwrap_or_else(|| name.to_owned())
}

/// Whether this user may write a file or a disk.
pub(super) fn may_write(path: &str) -> bool {
    !matches!(access(path, Access::WRITE_OK), Err(rustix::io::Errno::ACCESS))
}

/// Whether both names are one file's.
pub(super) fn is_same_file(one: &Path, other: &Path) -> bool {
    let identity = |path: &Path| fs::metadata(path).map(|data| (data.dev(), data.ino())).ok();
    identity(one).is_some_and(|one| Some(one) == identity(other))
}

/// A number that nobody has had: for disks that have none of their own.
pub(super) fn random() -> io::Result<u128> {
    let mut bytes = [0; 16];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(u128::from_le_bytes(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file in the folder of what is built: that of temporary files may be in memory.
    fn scratch(name: &str) -> (Node, std::path::PathBuf) {
        let path = crate::paths::target().join(format!("medium-{name}-{}", std::process::id()));
        fs::create_dir_all(crate::paths::target()).unwrap();
        let options = OpenOptions::new().read(true).write(true).create(true).truncate(true).clone();
        (Node::of(options.open(&path).unwrap()), path)
    }

    #[test]
    fn what_was_written_is_read_past_memory_from_any_place() {
        let (mut node, path) = scratch("read");
        let bytes: Vec<u8> = (0..300_123_u32).map(|n| n.to_le_bytes()[0] ^ 0x5a).collect();
        node.write_all(&bytes).unwrap();
        node.settle().unwrap();
        let places =
            [(0, 300_123), (512, 1024), (4096, 100), (1, 700), (65_536, 65_536), (299_520, 603)];
        for (start, len) in places {
            node.settle().unwrap();
            node.seek(SeekFrom::Start(start)).unwrap();
            let mut back = vec![0; len];
            node.read_exact(&mut back).unwrap();
            let first = usize::try_from(start).unwrap();
            assert!(back == bytes[first..first + len], "{start} {len}");
        }
        // Writing goes on as before.
        node.seek(SeekFrom::Start(3)).unwrap();
        node.write_all(&[1, 2, 3]).unwrap();
        node.settle().unwrap();
        node.rewind().unwrap();
        let mut back = [0; 8];
        node.read_exact(&mut back).unwrap();
        assert_eq!(back, [bytes[0], bytes[1], bytes[2], 1, 2, 3, bytes[6], bytes[7]]);
        fs::remove_file(path).unwrap();
    }

    #[test]
    fn a_hole_is_no_content() {
        let (mut node, path) = scratch("hole");
        node.file.set_len(1 << 30).unwrap();
        assert!(!has_content(&node.file));
        node.seek(SeekFrom::Start(1 << 29)).unwrap();
        node.write_all(&[1]).unwrap();
        assert!(has_content(&node.file));
        fs::remove_file(path).unwrap();
    }

    #[test]
    fn a_link_is_followed_to_its_disk() {
        assert_eq!(super::node("/dev/no-such-disk"), "/dev/no-such-disk");
        assert_eq!(super::node("sdb"), "sdb");
        // A link that every system has.
        let target = fs::canonicalize("/dev/stdin").unwrap();
        assert_eq!(Path::new(&super::node("/dev/stdin")), target);
    }
}
