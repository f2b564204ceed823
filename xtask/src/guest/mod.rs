//! The default guest: Debian's cloud kernel and a small user land of our own
//! making; where there is no package manager, a tiny guest that is built in.

mod deb;
mod initrd;

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::bundle::Guest;
use crate::kernel;
use crate::lock::Lock;
use crate::paths;
use crate::ui::{self, Step};

use deb::Source;

pub use deb::package_file;
pub(crate) use initrd::{Archive, append};

/// Linux's command line: the console is the first serial port, a panic ends the
/// guest after a second.
pub const CMDLINE: &str = "console=ttyS0 panic=1";

/// The command line of a kernel from a file, where none is given.
pub const FILE_CMDLINE: &str = "console=ttyS0";

/// The tiny guest that is built in.
pub const BUILT_IN: &str = "hello";

/// Raised when the initial ramdisk that we make changes.
const INITRD_VERSION: u32 = 1;

/// The default guest's files in the cache.
pub struct Debian {
    /// The kernel.
    pub kernel: PathBuf,
    /// The initial ramdisk.
    pub initrd: PathBuf,
}

impl Debian {
    /// Fetches and builds what is not in the cache.
    pub fn ensure() -> Result<Debian> {
        Self::ensure_from("debian", Source::Native, "linux-image-cloud-amd64")
    }

    /// The same with Debian's 32-bit kernel (with PAE) and programs.
    pub fn ensure_32_bit() -> Result<Debian> {
        Self::ensure_from("debian32", Source::Foreign("i386"), "linux-image-686-pae")
    }

    fn ensure_from(name: &str, source: Source, package: &str) -> Result<Debian> {
        let dir = paths::cache().join("guests");
        let debian = Debian {
            kernel: dir.join(format!("{name}-kernel")),
            initrd: dir
                .join(format!("{name}-initrd-{INITRD_VERSION}-{:08x}", initrd::fingerprint())),
        };
        if debian.complete() {
            return Ok(debian);
        }
        let _lock = Lock::take("guests")?;
        if debian.complete() {
            return Ok(debian);
        }
        fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        let step = Step::new("fetching Debian's kernel and busybox");
        let concrete = deb::concrete(source, package, "linux-image-")?;
        let linux = deb::Package::fetch(source, &concrete)?;
        let busybox = deb::Package::fetch(source, "busybox-static")?;
        step.detail("making the initial ramdisk");
        let kernel = linux.find(|name| name.starts_with("boot/vmlinuz-"))?;
        write_whole(&debian.kernel, &kernel)?;
        write_whole(&debian.initrd, &initrd::build(&linux, &busybox)?)?;
        step.done();
        Ok(debian)
    }

    fn complete(&self) -> bool {
        self.kernel.is_file() && self.initrd.is_file()
    }
}

/// An initial ramdisk with nothing but `/init`.
///
/// # Errors
/// The program is too large for a file of the archive's.
pub fn ramdisk_of(init: &[u8]) -> Result<Vec<u8>> {
    let mut archive = Archive::new();
    archive.dir("dev")?;
    archive.program("init", init)?;
    archive.finish()
}

/// Writes a file so that it is whole whenever it exists.
pub(crate) fn write_whole(path: &std::path::Path, bytes: &[u8]) -> Result<()> {
    let partial = path.with_extension("partial");
    fs::write(&partial, bytes).with_context(|| format!("cannot write {}", partial.display()))?;
    fs::rename(&partial, path).with_context(|| format!("cannot write {}", path.display()))
}

/// The default guest with this much memory.
pub fn default_guest(memory: u64) -> Result<Guest> {
    match Debian::ensure() {
        Ok(debian) => {
            let mut guest = Guest::new("debian", memory, debian.kernel);
            guest.initrd = Some(debian.initrd);
            guest.settings.cmdline = CMDLINE.to_owned();
            Ok(guest)
        }
        Err(error) => {
            ui::say(format!(
                "no Debian kernel can be had here ({error:#}); running the built-in guest instead"
            ));
            built_in(memory)
        }
    }
}

fn built_in(memory: u64) -> Result<Guest> {
    let guests = kernel::guests()?;
    let (_, kernel) = guests
        .into_iter()
        .find(|(name, _)| name == BUILT_IN)
        .context("there is no built-in guest")?;
    let mut guest = Guest::new(BUILT_IN, memory, kernel);
    guest.settings.debug_exit = true;
    Ok(guest)
}
