//! The disk image: one that boots from BIOS and from UEFI, from a stick and from a disk.
//!
//! [`content`] puts together what the boot stages need; [`Content::disk`] lays it out on a
//! disk of any size (module `layout`): the file of an image, or a stick.

mod fat;
mod layout;
mod sparse;

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;

use anyhow::{Context, Result, bail};

use sha2::{Digest, Sha256};

use crate::stages::Stages;
use crate::ui;

pub use layout::Content;
pub use sparse::Sparse;

const SECTOR: usize = 512;
/// Bytes in a cylinder of 16 heads and 63 sectors: Bochs wants whole ones.
pub const CYLINDER: usize = 16 * 63 * SECTOR;
/// The BIOS stages put the kernel's file here; the ramdisk follows it.
const BIOS_LOAD_ADDRESS: u64 = 16 << 20;
/// The PCI hole begins here on machines with much memory (QEMU q35: 2 GiB).
const BIOS_LOAD_LIMIT: u64 = 2 << 30;
/// Firmware keeps tables at the end of low memory, and the last stage needs
/// frames for page tables and the loaded kernel.
const BIOS_LOAD_MARGIN: u64 = 64 << 20;

/// The boot loader is to print nothing itself. It would write over the
/// framebuffer and on the serial port what only its authors can use.
const BOOT_CONFIG: &str =
    r#"{"frame_buffer":{},"log_level":"Error","frame_buffer_logging":false,"serial_logging":true}"#;

/// The seed of an image's identity: the same input makes the same file.
pub const IMAGE: &str = "image";

/// Puts the hypervisor's ELF file and the bundle together with the boot stages. `memory` is
/// the machine's, in bytes.
pub fn content(stages: &Stages, kernel: &[u8], ramdisk: &[u8], memory: u64) -> Result<Content> {
    check_load_range(kernel.len() as u64, ramdisk.len() as u64, memory)?;
    Content::new(
        &stages.boot_sector()?,
        &stages.stage_2()?,
        &[
            ("boot-stage-3", &stages.stage_3()?),
            ("boot-stage-4", &stages.stage_4()?),
            ("kernel-x86_64", kernel),
            ("ramdisk", ramdisk),
            ("boot.json", BOOT_CONFIG.as_bytes()),
            ("EFI/BOOT/BOOTX64.EFI", &stages.uefi()?),
        ],
    )
}

/// Writes the smallest image with `content` to the file at `path`; holes stay holes.
pub fn write(content: &Content, path: &Path) -> Result<()> {
    let disk = content.disk(content.least(), IMAGE)?;
    let write = || -> std::io::Result<()> {
        let mut file = File::create(path)?;
        for (start, bytes) in disk.pieces() {
            if bytes.iter().any(|&byte| byte != 0) {
                file.seek(SeekFrom::Start(start))?;
                file.write_all(bytes)?;
            }
        }
        file.set_len(disk.len())
    };
    write().with_context(|| format!("cannot write {}", path.display()))
}

/// The SHA-256 of a file, as `sha256sum` writes it.
pub fn sha256(path: &Path) -> Result<String> {
    let mut hash = Sha256::new();
    let mut file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    let mut piece = vec![0; 1 << 20];
    loop {
        let len =
            file.read(&mut piece).with_context(|| format!("cannot read {}", path.display()))?;
        if len == 0 {
            break;
        }
        hash.update(piece.get(..len).unwrap_or_default());
    }
    Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Refuses an image whose bytes are not those of the SHA-256 that lies beside it. `false`: none
/// lies there.
pub fn check_sum(image: &Path) -> Result<bool> {
    let mut beside = image.as_os_str().to_owned();
    beside.push(".sha256");
    let Ok(text) = std::fs::read_to_string(&beside) else { return Ok(false) };
    let Some(wanted) = text.split_whitespace().next().filter(|word| word.len() == 64) else {
        bail!("{} has no SHA-256 in it: fetch it again, or delete it", beside.display())
    };
    let is = sha256(image)?;
    if !is.eq_ignore_ascii_case(wanted) {
        bail!(
            "{} is damaged, or another image than the one whose SHA-256 is in {}: it has {is}, and {wanted} \
             stands there. Fetch both again",
            image.display(),
            beside.display()
        );
    }
    Ok(true)
}

/// Refuses what the BIOS stages would load over something else. They load the
/// kernel's file at 16 MiB and the ramdisk behind it before they have read the
/// memory map, so nobody but us can notice.
fn check_load_range(kernel: u64, ramdisk: u64, memory: u64) -> Result<()> {
    let end = BIOS_LOAD_ADDRESS
        + kernel.next_multiple_of(4096)
        + ramdisk.next_multiple_of(fat::CLUSTER as u64);
    let limit = memory.min(BIOS_LOAD_LIMIT).saturating_sub(BIOS_LOAD_MARGIN);
    if end > limit {
        bail!(
            "the bundle does not fit: the boot loader puts the hypervisor ({}) and the bundle ({}) in memory \
             from 16 MiB upward, without looking at the memory map, and they would end at {}. They must end \
             {} below the end of memory ({}) and below the PCI hole (which may begin at {}). \
             Give the machine more memory or the guest smaller files",
            ui::size(kernel),
            ui::size(ramdisk),
            ui::size(end),
            ui::size(BIOS_LOAD_MARGIN),
            ui::size(memory),
            ui::size(BIOS_LOAD_LIMIT),
        );
    }
    Ok(())
}

#[cfg(test)]
pub(crate) mod tests;
