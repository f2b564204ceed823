//! The disk image: one that boots from BIOS and from UEFI.
//!
//! ```text
//! sector 0        boot sector and partition table (MBR)
//! partition 1     stage 2 (type 0x20, the boot sector's mark)
//! partition 2     FAT: boot-stage-3, boot-stage-4, kernel-x86_64, ramdisk,
//!                 boot.json, EFI/BOOT/BOOTX64.EFI
//! ```
//! Stage 2 is a small FAT reader in real mode, and its limits shape the volume:
//! - It takes a volume for FAT32, which it cannot read, as soon as the 16-bit
//!   sector count is zero, so there may be at most 65,535 sectors; beyond 31 MiB
//!   the volume counts in sectors of 4 KiB.
//! - It reads a cluster at a time through a buffer of 16 KiB, and the cluster's
//!   FAT entry by itself: clusters of 16 KiB make the fewest calls to the BIOS.
//! - It reads the whole root directory into that buffer: 512 entries at most.
//! - A name may take one long-name entry: 13 characters.
//! - It insists on a FAT partition type, so the partition cannot have the type of
//!   an EFI system partition. UEFI firmware looks for `BOOTX64.EFI` on every FAT
//!   volume of a disk without such a partition.

use std::io::{Cursor, Seek, SeekFrom, Write};

use anyhow::{Context, Result, bail};

use crate::stages::Stages;
use crate::ui;

const SECTOR: usize = 512;
/// Bytes in a cylinder of 16 heads and 63 sectors: Bochs wants whole ones.
pub const CYLINDER: usize = 16 * 63 * SECTOR;
/// Bytes in a cluster; see the module's text.
const CLUSTER: usize = 16 * 1024;
/// Entries of the root directory, 32 bytes each.
const ROOT_ENTRIES: u16 = 512;
/// Where the BIOS stages put the kernel's file; the ramdisk follows it.
const BIOS_LOAD_ADDRESS: u64 = 16 << 20;
/// The PCI hole begins here on machines with much memory (QEMU q35: 2 GiB).
const BIOS_LOAD_LIMIT: u64 = 2 << 30;
/// Firmware keeps tables at the end of low memory, and the last stage needs
/// frames for page tables and the loaded kernel.
const BIOS_LOAD_MARGIN: u64 = 64 << 20;

/// What the boot loader may print itself: nothing. It would write over the
/// framebuffer and on the serial port what only its authors can use.
const BOOT_CONFIG: &str =
    r#"{"frame_buffer":{},"log_level":"Error","frame_buffer_logging":false,"serial_logging":true}"#;

/// Makes the image from the hypervisor's ELF file and the bundle. `memory` is the
/// machine's, in bytes.
pub fn build(stages: &Stages, kernel: &[u8], ramdisk: &[u8], memory: u64) -> Result<Vec<u8>> {
    check_load_range(kernel.len() as u64, ramdisk.len() as u64, memory)?;
    let fat = fat_volume(&[
        ("boot-stage-3", &stages.stage_3()?),
        ("boot-stage-4", &stages.stage_4()?),
        ("kernel-x86_64", kernel),
        ("ramdisk", ramdisk),
        ("boot.json", BOOT_CONFIG.as_bytes()),
        ("EFI/BOOT/BOOTX64.EFI", &stages.uefi()?),
    ])?;
    disk(&stages.boot_sector()?, &stages.stage_2()?, &fat)
}

/// Refuses what the BIOS stages would load over something else. They load the
/// kernel's file at 16 MiB and the ramdisk behind it before they have read the
/// memory map, so nobody but us can notice.
fn check_load_range(kernel: u64, ramdisk: u64, memory: u64) -> Result<()> {
    let end = BIOS_LOAD_ADDRESS
        + kernel.next_multiple_of(4096)
        + ramdisk.next_multiple_of(CLUSTER as u64);
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

/// A FAT volume with these files, in the layout that stage 2 can read.
fn fat_volume(files: &[(&str, &[u8])]) -> Result<Vec<u8>> {
    let data: usize = files.iter().map(|(_, bytes)| bytes.len().next_multiple_of(CLUSTER)).sum();
    // Two directories, the FATs (4 bytes a cluster are plenty for two), the root, the boot sector.
    let overhead = 4 * CLUSTER + (data / CLUSTER) * 4 + usize::from(ROOT_ENTRIES) * 32 + 64 * 1024;
    let total = (data + overhead).next_multiple_of(CLUSTER).max(2 << 20);
    let sector: u16 = if total / SECTOR <= 0xfff0 { 512 } else { 4096 };
    let sectors = total / usize::from(sector);
    if sectors > 0xffff {
        bail!(
            "the image's files take {}: the boot loader's FAT reader knows volumes of at most 65,535 sectors \
             of 4 KiB, 255 MiB",
            ui::size(data as u64)
        );
    }
    let mut volume = Cursor::new(vec![0_u8; total]);
    let options = fatfs::FormatVolumeOptions::new()
        .bytes_per_sector(sector)
        .bytes_per_cluster(u32::try_from(CLUSTER)?)
        .total_sectors(u32::try_from(sectors)?)
        .max_root_dir_entries(ROOT_ENTRIES)
        .fats(2)
        .volume_id(0x5354_4557)
        .volume_label(*b"STEWARD    ");
    fatfs::format_volume(&mut volume, options).context("cannot format the FAT volume")?;
    let fs = fatfs::FileSystem::new(&mut volume, fatfs::FsOptions::new())
        .context("cannot open the FAT volume")?;
    if fs.fat_type() == fatfs::FatType::Fat32 {
        bail!("internal error: the FAT volume came out as FAT32");
    }
    {
        let root = fs.root_dir();
        for (path, bytes) in files {
            if let Some((parents, _)) = path.rsplit_once('/') {
                let mut at = String::new();
                for part in parents.split('/') {
                    at = if at.is_empty() { part.to_owned() } else { format!("{at}/{part}") };
                    root.create_dir(&at).with_context(|| format!("cannot make folder {at}"))?;
                }
            }
            let mut file = root.create_file(path).with_context(|| format!("cannot make {path}"))?;
            file.write_all(bytes).with_context(|| format!("cannot write {path}"))?;
            file.flush()?;
        }
    }
    fs.unmount().context("cannot finish the FAT volume")?;
    Ok(volume.into_inner())
}

/// A partition table entry.
struct Partition {
    kind: u8,
    start: u32,
    sectors: u32,
}

impl Partition {
    fn write(&self, entry: &mut impl Write) -> Result<()> {
        // Bootable; the addresses by cylinder, head and sector stay empty.
        entry.write_all(&[0x80, 0, 0, 0, self.kind, 0, 0, 0])?;
        entry.write_all(&self.start.to_le_bytes())?;
        entry.write_all(&self.sectors.to_le_bytes())?;
        Ok(())
    }
}

fn disk(boot_sector: &[u8], stage_2: &[u8], fat: &[u8]) -> Result<Vec<u8>> {
    if boot_sector.len() != SECTOR || boot_sector.get(510..) != Some(&[0x55, 0xaa]) {
        bail!("the boot sector is not one: {} bytes", boot_sector.len());
    }
    let sectors = |bytes: usize| u32::try_from(bytes.div_ceil(SECTOR));
    let second = Partition { kind: 0x20, start: 1, sectors: sectors(stage_2.len())? };
    // On a 4 KiB boundary: the volume may count in sectors of 4 KiB.
    let fat_start = (second.start + second.sectors).next_multiple_of(8);
    let boot = Partition { kind: 0x0e, start: fat_start, sectors: sectors(fat.len())? };
    let end = (fat_start as usize) * SECTOR + fat.len();
    let mut image = Cursor::new(vec![0_u8; end.next_multiple_of(CYLINDER)]);
    image.write_all(boot_sector)?;
    image.seek(SeekFrom::Start(446))?;
    second.write(&mut image)?;
    boot.write(&mut image)?;
    image.seek(SeekFrom::Start(SECTOR as u64))?;
    image.write_all(stage_2)?;
    image.seek(SeekFrom::Start(u64::from(fat_start) * SECTOR as u64))?;
    image.write_all(fat)?;
    Ok(image.into_inner())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    fn le16(bytes: &[u8], at: usize) -> u16 {
        u16::from_le_bytes([bytes[at], bytes[at + 1]])
    }

    #[test]
    fn a_volume_keeps_stage_2_s_limits_at_every_size() {
        for size in [1_usize, 20 << 20, 30 << 20, 31 << 20, 33 << 20, 70 << 20, 200 << 20] {
            let content = vec![0x5a_u8; size];
            let volume =
                fat_volume(&[("ramdisk", &content), ("EFI/BOOT/BOOTX64.EFI", b"MZ")]).unwrap();
            let sector = le16(&volume, 11);
            assert_eq!(usize::from(sector) * usize::from(volume[13]), CLUSTER, "cluster at {size}");
            assert_ne!(le16(&volume, 19), 0, "16-bit sector count at {size}");
            assert!(le16(&volume, 17) <= 512);
            assert_eq!(sector == 512, size < 32 << 20, "sector size at {size}");
            let fs = fatfs::FileSystem::new(Cursor::new(volume), fatfs::FsOptions::new()).unwrap();
            let mut back = Vec::new();
            fs.root_dir().open_file("ramdisk").unwrap().read_to_end(&mut back).unwrap();
            assert!(back == content, "content at {size}");
            assert!(fs.root_dir().open_file("EFI/BOOT/BOOTX64.EFI").is_ok());
        }
    }

    #[test]
    fn more_than_the_volume_can_hold_is_refused() {
        let content = vec![0_u8; 256 << 20];
        let error = fat_volume(&[("ramdisk", &content)]).unwrap_err().to_string();
        assert!(error.contains("255 MiB"), "{error}");
    }

    #[test]
    fn a_bundle_that_would_reach_a_reserved_range_is_refused() {
        assert!(check_load_range(4 << 20, 100 << 20, 512 << 20).is_ok());
        let error = check_load_range(4 << 20, 100 << 20, 128 << 20).unwrap_err().to_string();
        assert!(error.contains("16 MiB upward"), "{error}");
        // Much memory does not help: the PCI hole stays.
        assert!(check_load_range(4 << 20, 2 << 30, 8 << 30).is_err());
    }

    #[test]
    fn the_partition_table_names_both_partitions() {
        let mut sector = vec![0_u8; 512];
        sector[510] = 0x55;
        sector[511] = 0xaa;
        let image = disk(&sector, &[1; 600], &[2; 4096]).unwrap();
        assert_eq!(image.len() % CYLINDER, 0);
        assert_eq!(image[446 + 4], 0x20);
        assert_eq!(le16(&image, 446 + 8), 1);
        assert_eq!(le16(&image, 446 + 12), 2);
        assert_eq!(image[462 + 4], 0x0e);
        assert_eq!(le16(&image, 462 + 8), 8);
        assert_eq!(image[512], 1);
        assert_eq!(image[8 * 512], 2);
        assert!(disk(&sector[..100], &[], &[]).is_err());
    }
}
