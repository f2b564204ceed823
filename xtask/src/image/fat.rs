//! The two FAT volumes: the one that firmware and the boot stages read, and STEWDATA.
//!
//! Stage 2 is a small FAT reader in real mode, and its limits shape the first:
//! - It takes a volume for FAT32, which it cannot read, as soon as the 16-bit
//!   sector count is zero, so there may be at most 65,535 sectors; beyond 31 MiB
//!   the volume counts in sectors of 4 KiB.
//! - It reads a cluster at a time through a buffer of 16 KiB, and the cluster's
//!   FAT entry by itself: clusters of 16 KiB make the fewest calls to the BIOS.
//! - It reads the whole root directory into that buffer: 512 entries at most.
//! - A name may take one long-name entry: 13 characters.

use std::io::{Cursor, Read, Seek, SeekFrom, Write};

use anyhow::{Context, Result, bail, ensure};
use fatfs::{FatType, FileSystem, FormatVolumeOptions, FsOptions};

use super::SECTOR;
use super::layout::ALIGNED;
use crate::ui;

/// Bytes in a cluster of the boot volume.
pub(super) const CLUSTER: usize = 16 * 1024;
/// Entries of its root directory.
const ROOT_ENTRIES: u16 = 512;
/// Bytes of an entry of a directory.
const ENTRY: usize = 32;
/// The attributes of a folder, and those that mark a piece of a long name.
const FOLDER: u8 = 0x10;
const LONG_NAME: u8 = 0x0f;
/// Places in a volume's first sector (Microsoft's FAT specification, "BPB"): sectors
/// before the volume, and where FAT32 keeps a copy of the first sector.
const HIDDEN_SECTORS: u64 = 28;
const COPY_OF_FIRST: u64 = 50;
/// The number of a FAT12 or FAT16 volume.
pub(super) const VOLUME_ID: std::ops::Range<usize> = 39..43;

/// The volume of the boot stages, with these files. `start` is the sector of the disk
/// where it will be; its number ([`VOLUME_ID`]) is 0.
pub(super) fn boot_volume(files: &[(&str, &[u8])], start: u32) -> Result<Vec<u8>> {
    let data: usize = files.iter().map(|(_, bytes)| bytes.len().next_multiple_of(CLUSTER)).sum();
    // Two directories, the FATs (4 bytes a cluster are plenty for two), the root, the boot sector.
    let overhead =
        4 * CLUSTER + (data / CLUSTER) * 4 + usize::from(ROOT_ENTRIES) * ENTRY + 64 * 1024;
    let total = (data + overhead).next_multiple_of(ALIGNED).max(2 << 20);
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
    let options = FormatVolumeOptions::new()
        .bytes_per_sector(sector)
        .bytes_per_cluster(u32::try_from(CLUSTER)?)
        .total_sectors(u32::try_from(sectors)?)
        .max_root_dir_entries(ROOT_ENTRIES)
        .fats(2)
        .volume_id(0)
        .volume_label(*b"STEWARD    ");
    fatfs::format_volume(&mut volume, options).context("cannot format the FAT volume")?;
    let kind = fill(&mut volume, files)?;
    ensure!(kind != FatType::Fat32, "internal error: the FAT volume came out as FAT32");
    let mut bytes = volume.into_inner();
    mend_folders(&mut bytes)?;
    set_hidden_sectors(&mut Cursor::new(&mut bytes), kind, start)?;
    Ok(bytes)
}

/// Makes `volume`, of `len` bytes, an empty FAT32 volume called STEWDATA but for one file
/// that says what it is for. `start` is the sector of the disk where it is, `id` its number.
pub(super) fn data_volume(
    volume: &mut (impl Read + Write + Seek),
    len: u64,
    start: u32,
    id: u32,
) -> Result<()> {
    let options = FormatVolumeOptions::new()
        .fat_type(FatType::Fat32)
        .bytes_per_cluster(data_cluster(len))
        .total_sectors(u32::try_from(len / SECTOR as u64)?)
        .volume_id(id)
        .volume_label(*b"STEWDATA   ");
    fatfs::format_volume(&mut *volume, options).context("cannot format the volume STEWDATA")?;
    let kind = fill(volume, &[("README.TXT", README.as_bytes())])?;
    ensure!(kind == FatType::Fat32, "internal error: STEWDATA came out as {kind:?}");
    set_hidden_sectors(volume, kind, start)
}

/// Bytes in a cluster of a FAT32 volume: what Windows and mkfs.fat choose.
fn data_cluster(len: u64) -> u32 {
    const GIB: u64 = 1 << 30;
    match len {
        0..=0x1040_0000 => 512,
        _ if len <= 8 * GIB => 4096,
        _ if len <= 16 * GIB => 8192,
        _ if len <= 32 * GIB => 16 << 10,
        _ => 32 << 10,
    }
}

const README: &str = "\
This partition, STEWDATA, is yours and Steward's: a later version will keep\r
guests, their settings and reports of runs here. This version does not read\r
it and does not write to it. Flashing the stick again empties it.\r
";

/// Puts the files into a formatted volume, and says of what kind it is.
fn fill(volume: &mut (impl Read + Write + Seek), files: &[(&str, &[u8])]) -> Result<FatType> {
    volume.rewind()?;
    let fs = FileSystem::new(volume, FsOptions::new()).context("cannot open the FAT volume")?;
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
    let kind = fs.fat_type();
    fs.unmount().context("cannot finish the FAT volume")?;
    Ok(kind)
}

/// Says in the volume's first sector, and in the copy that FAT32 has, how many sectors of
/// the disk lie before it: BIOS boot code and partition checkers look there.
fn set_hidden_sectors(
    volume: &mut (impl Read + Write + Seek),
    kind: FatType,
    start: u32,
) -> Result<()> {
    let mut put = |at: u64| -> Result<()> {
        volume.seek(SeekFrom::Start(at + HIDDEN_SECTORS))?;
        volume.write_all(&start.to_le_bytes())?;
        Ok(())
    };
    put(0)?;
    if kind == FatType::Fat32 {
        let mut copy = [0; 2];
        volume.seek(SeekFrom::Start(COPY_OF_FIRST))?;
        volume.read_exact(&mut copy)?;
        volume.seek(SeekFrom::Start(
            u64::from(u16::from_le_bytes(copy)) * SECTOR as u64 + HIDDEN_SECTORS,
        ))?;
        volume.write_all(&start.to_le_bytes())?;
    }
    Ok(())
}

/// `fatfs` 0.3.6 puts a long name before `.` and `..`, the first two entries of every
/// folder, where nothing but these two may be. Takes the long names out.
fn mend_folders(volume: &mut [u8]) -> Result<()> {
    let shape = Shape::of(volume)?;
    let mut folders = folders(volume.get(shape.root.clone()).unwrap_or_default());
    while let Some(cluster) = folders.pop() {
        let start = shape.data + (usize::from(cluster) - 2) * CLUSTER;
        let Some(folder) = volume.get_mut(start..start + CLUSTER) else {
            bail!("internal error: a folder lies outside the FAT volume");
        };
        let attributes = |entry: usize| folder.get(entry * ENTRY + 11).copied();
        if attributes(0) == Some(LONG_NAME) && attributes(2) == Some(LONG_NAME) {
            folder.copy_within(ENTRY..2 * ENTRY, 0);
            folder.copy_within(3 * ENTRY..4 * ENTRY, ENTRY);
            folder.copy_within(4 * ENTRY.., 2 * ENTRY);
            let end = folder.len() - 2 * ENTRY;
            folder[end..].fill(0);
        }
        let own = folder.starts_with(b".          ") && folder[ENTRY..].starts_with(b"..         ");
        ensure!(own, "internal error: a folder does not begin with its own entries");
        folders.extend(self::folders(&folder[2 * ENTRY..]));
    }
    Ok(())
}

/// The first clusters of the folders in a directory's entries.
fn folders(entries: &[u8]) -> Vec<u16> {
    entries
        .chunks_exact(ENTRY)
        .take_while(|entry| entry[0] != 0)
        .filter(|entry| entry[11] & FOLDER != 0 && entry[11] != LONG_NAME && entry[0] != 0xe5)
        .map(|entry| u16::from_le_bytes([entry[26], entry[27]]))
        .collect()
}

/// The bytes of a FAT12 or FAT16 volume where its root directory is, and where its
/// clusters begin.
struct Shape {
    root: std::ops::Range<usize>,
    data: usize,
}

impl Shape {
    fn of(volume: &[u8]) -> Result<Self> {
        let word = |at: usize| match volume.get(at..at + 2) {
            Some(&[low, high]) => Ok(usize::from(u16::from_le_bytes([low, high]))),
            _ => bail!("internal error: the FAT volume is cut off"),
        };
        let (sector, reserved, entries, fat) = (word(11)?, word(14)?, word(17)?, word(22)?);
        let fats = volume.get(16).copied().map_or(0, usize::from);
        let root = (reserved + fats * fat) * sector;
        let data = root + (entries * ENTRY).next_multiple_of(sector);
        Ok(Self { root: root..data, data })
    }
}
