//! The layout of a disk that firmware of both kinds boots and partition checkers accept:
//! a partition table in the way of UEFI (GPT) and one in the way of the BIOS (MBR) that
//! names the same partitions.
//!
//! ```text
//! sector    0      boot sector, MBR: 1. stage 2   2. FAT   3. STEWDATA   4. the GPT
//!           1      GPT: header, 128 entries       (1. FAT  2. stage 2  3. STEWDATA)
//!          64      stage 2
//!        2048      FAT: boot stages, hypervisor, bundle    (module `fat`)
//!         ...      STEWDATA, from the next whole MiB on, to the last whole MiB
//!     the last     the GPT's copy
//! ```
//!
//! The order in the MBR is the boot stages': the boot sector takes the first entry for
//! stage 2, and stage 2 the one behind its own for the FAT. The entry that keeps other
//! programs' hands off the GPT covers the GPT alone, for over the whole disk it would
//! overlap the others (UEFI specification, "Legacy Master Boot Record").

use std::io::{Read, Seek, SeekFrom};

use anyhow::{Context, Result, bail, ensure};
use gptman::{GPT, GPTPartitionEntry};
use sha2::{Digest, Sha256};

use super::fat::{self, CLUSTER};
use super::sparse::Sparse;
use super::{CYLINDER, SECTOR};
use crate::ui;

/// Sectors in a MiB: partitions begin at whole ones.
const MIB: u64 = (1 << 20) / SECTOR as u64;
/// Bytes of whose multiple both ends of a partition are: some programs want 64 sectors.
pub(super) const ALIGNED: usize = 64 * SECTOR;
/// First sector of stage 2, behind the GPT.
const STAGE_2: u64 = 64;
/// First sector of the FAT.
const FAT: u64 = MIB;
/// Sectors of the smallest STEWDATA: FAT32 has at least 65,525 clusters.
const LEAST_DATA: u64 = 36 * MIB;
/// Places of the MBR's entries in the boot sector, and of a disk's signature.
const ENTRIES: usize = 446;
const SIGNATURE: usize = 440;
/// Types of partitions in the MBR: stage 2's, by which it knows itself; FAT12; FAT16 and
/// FAT32, by sectors; the GPT's.
const TYPE_STAGE_2: u8 = 0x20;
const TYPE_FAT12: u8 = 0x01;
const TYPE_FAT16: u8 = 0x0e;
const TYPE_FAT32: u8 = 0x0c;
const TYPE_GPT: u8 = 0xee;
/// A FAT12 volume has fewer clusters.
const FAT16_CLUSTERS: usize = 4085;

/// GUIDs as the GPT keeps them: the first three groups with the lowest byte first.
const fn guid(groups: (u32, u16, u16), rest: [u8; 8]) -> [u8; 16] {
    let ([a, b, c, d], [e, f], [g, h]) =
        (groups.0.to_le_bytes(), groups.1.to_le_bytes(), groups.2.to_le_bytes());
    let [i, j, k, l, m, n, o, p] = rest;
    [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p]
}

/// Types of partitions in the GPT: EFI system partition, BIOS boot, basic data.
const ESP: [u8; 16] =
    guid((0xc12a_7328, 0xf81f, 0x11d2), [0xba, 0x4b, 0x00, 0xa0, 0xc9, 0x3e, 0xc9, 0x3b]);
const BIOS_BOOT: [u8; 16] =
    guid((0x2168_6148, 0x6449, 0x6e6f), [0x74, 0x4e, 0x65, 0x65, 0x64, 0x45, 0x46, 0x49]);
const BASIC_DATA: [u8; 16] =
    guid((0xebd0_a0a2, 0xb9e5, 0x4433), [0x87, 0xc0, 0x68, 0xb6, 0xb7, 0x26, 0x99, 0xc7]);

/// Everything that the boot stages need on a disk; the rest follows from its size.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Content {
    boot_sector: Vec<u8>,
    stage_2: Vec<u8>,
    fat: Vec<u8>,
}

impl Content {
    /// Puts the stages and the FAT's files together.
    pub(super) fn new(boot_sector: &[u8], stage_2: &[u8], files: &[(&str, &[u8])]) -> Result<Self> {
        ensure!(
            boot_sector.len() == SECTOR && boot_sector.ends_with(&[0x55, 0xaa]),
            "the boot sector is not one: {} bytes",
            boot_sector.len()
        );
        let mut stage_2 = stage_2.to_vec();
        stage_2.resize(stage_2.len().next_multiple_of(ALIGNED), 0);
        ensure!(
            sectors(&stage_2) <= FAT - STAGE_2,
            "stage 2 takes {} bytes, and there is room for {}",
            stage_2.len(),
            (FAT - STAGE_2) * SECTOR as u64
        );
        let fat = fat::boot_volume(files, u32::try_from(FAT)?)?;
        Ok(Self { boot_sector: boot_sector.to_vec(), stage_2, fat })
    }

    /// Reads them back from an image, or says why it is none of ours.
    pub fn read(image: &mut (impl Read + Seek)) -> Result<Self> {
        let mut read = |start: u64, len: u64| -> Result<Vec<u8>> {
            image.seek(SeekFrom::Start(start * SECTOR as u64))?;
            let mut bytes = vec![0; usize::try_from(len * SECTOR as u64)?];
            image.read_exact(&mut bytes).context("it is cut off")?;
            Ok(bytes)
        };
        let boot_sector = read(0, 1)?;
        let entry = |number: usize| -> Result<(u8, u64, u64)> {
            let at = ENTRIES + number * 16;
            let Some(&[_, _, _, _, kind, _, _, _, a, b, c, d, e, f, g, h]) =
                boot_sector.get(at..at + 16)
            else {
                bail!("it has no partition table")
            };
            let word = |bytes| u64::from(u32::from_le_bytes(bytes));
            Ok((kind, word([a, b, c, d]), word([e, f, g, h])))
        };
        ensure!(boot_sector.ends_with(&[0x55, 0xaa]), "it has no partition table");
        let (stage_2, fat) = (entry(0)?, entry(1)?);
        ensure!(
            (stage_2.0, stage_2.1, fat.1) == (TYPE_STAGE_2, STAGE_2, FAT),
            "its partitions are not those of a Steward image"
        );
        ensure!(stage_2.2 <= FAT - STAGE_2 && fat.2 <= 256 * MIB, "its partitions are too large");
        Ok(Self { stage_2: read(stage_2.1, stage_2.2)?, fat: read(fat.1, fat.2)?, boot_sector })
    }

    /// Whether both are the same but for the identity of the disk that they were read from.
    pub fn is_same(&self, other: &Self) -> bool {
        let code = |content: &Self| content.boot_sector.get(..SIGNATURE).map(<[u8]>::to_vec);
        let fat = |content: &Self| {
            let mut fat = content.fat.clone();
            if let Some(id) = fat.get_mut(fat::VOLUME_ID) {
                id.fill(0);
            }
            fat
        };
        code(self) == code(other) && self.stage_2 == other.stage_2 && fat(self) == fat(other)
    }

    /// Bytes of the smallest disk for it, and of an image's file.
    pub fn least(&self) -> u64 {
        ((self.data_start() + LEAST_DATA + MIB) * SECTOR as u64).next_multiple_of(CYLINDER as u64)
    }

    /// Bytes of an image but for STEWDATA.
    pub fn without_data(&self) -> u64 {
        (self.data_start() + MIB) * SECTOR as u64
    }

    fn data_start(&self) -> u64 {
        (FAT + sectors(&self.fat)).next_multiple_of(MIB)
    }

    /// The whole disk of `len` bytes. `seed` decides its identity: what is made of the same
    /// seed has the same, and two disks in one machine should differ.
    pub fn disk(&self, len: u64, seed: &str) -> Result<Sparse> {
        ensure!(
            len >= self.least(),
            "the disk has {}, and {} are needed",
            ui::size(len),
            ui::size(self.least())
        );
        let total = len / SECTOR as u64;
        let data_start = self.data_start();
        // An end that the MBR and the GPT can both name: the MBR counts sectors with 32 bits.
        let data_end = (total - MIB).min(u64::from(u32::MAX)) / MIB * MIB;
        let data = data_end - data_start;
        let mut disk = Sparse::new(len);
        // Nothing that other programs look for outside the partitions is left of what the
        // disk had: labels of volume managers, the GPT's old copy.
        disk.zero(0, FAT * SECTOR as u64)?;
        let tail = data_end.max(total - 2 * MIB) * SECTOR as u64;
        disk.zero(tail, len - tail)?;
        let bytes = |sector: u64| sector * SECTOR as u64;
        disk.put(bytes(STAGE_2), &self.stage_2)?;
        disk.put(bytes(FAT), &self.fat)?;
        let [volume, data_volume] = [1, 3].map(|number| volume_id(seed, number));
        disk.put(bytes(FAT) + fat::VOLUME_ID.start as u64, &volume.to_le_bytes())?;
        // The first sectors of a file system's kind; labels of arrays stand at the end, too.
        disk.zero(bytes(data_start), 1 << 20)?;
        disk.zero(bytes(data_end) - (1 << 20), 1 << 20)?;
        let start = u32::try_from(data_start)?;
        let mut part = disk.part(bytes(data_start), bytes(data));
        fat::data_volume(&mut part, bytes(data), start, data_volume)?;
        disk.put(0, &self.first_sector((data_start, data), seed)?)?;
        let mut gpt = GPT::new_from(&mut disk, SECTOR as u64, identity(seed, 0))
            .context("cannot make the partition table")?;
        let mut entry = |number: u32, kind, start: u64, sectors: u64, name: &str| {
            gpt[number] = GPTPartitionEntry {
                partition_type_guid: kind,
                unique_partition_guid: identity(seed, number),
                starting_lba: start,
                ending_lba: start + sectors - 1,
                attribute_bits: 0,
                partition_name: name.into(),
            };
        };
        entry(1, ESP, FAT, sectors(&self.fat), "STEWARD");
        entry(2, BIOS_BOOT, STAGE_2, sectors(&self.stage_2), "BIOS stage 2");
        entry(3, BASIC_DATA, data_start, data, "STEWDATA");
        gpt.write_into(&mut disk).context("cannot write the partition table")?;
        Ok(disk)
    }

    /// The boot sector with the MBR's entries.
    fn first_sector(&self, data: (u64, u64), seed: &str) -> Result<Vec<u8>> {
        let mut sector = self.boot_sector.clone();
        let fat_kind =
            if self.fat.len() / CLUSTER < FAT16_CLUSTERS { TYPE_FAT12 } else { TYPE_FAT16 };
        let entries = [
            (true, TYPE_STAGE_2, STAGE_2, sectors(&self.stage_2)),
            (false, fat_kind, FAT, sectors(&self.fat)),
            (false, TYPE_FAT32, data.0, data.1),
            (false, TYPE_GPT, 1, STAGE_2 - 1),
        ];
        for (number, (active, kind, start, sectors)) in entries.into_iter().enumerate() {
            let at = ENTRIES + number * 16;
            let active = if active { 0x80 } else { 0 };
            // Cylinder, head and sector: further than they count.
            let mut entry = vec![active, 0xfe, 0xff, 0xff, kind, 0xfe, 0xff, 0xff];
            entry.extend(u32::try_from(start)?.to_le_bytes());
            entry.extend(u32::try_from(sectors)?.to_le_bytes());
            sector[at..at + 16].copy_from_slice(&entry);
        }
        let signature = identity(seed, u32::MAX);
        sector[SIGNATURE..SIGNATURE + 4].copy_from_slice(&signature[..4]);
        Ok(sector)
    }
}

fn sectors(bytes: &[u8]) -> u64 {
    (bytes.len() / SECTOR) as u64
}

/// The number of the FAT volume in a partition, by which systems tell volumes apart.
fn volume_id(seed: &str, number: u32) -> u32 {
    let [a, b, c, d, ..] = identity(seed, number);
    u32::from_le_bytes([a, b, c, d])
}

/// A GUID that `seed` and `number` decide: random to look at (RFC 9562, version 8).
fn identity(seed: &str, number: u32) -> [u8; 16] {
    let hash = Sha256::new()
        .chain_update("steward disk ")
        .chain_update(number.to_le_bytes())
        .chain_update(seed)
        .finalize();
    let mut guid = [0; 16];
    guid.copy_from_slice(&hash[..16]);
    // The version is in the highest bits of the third group, whose highest byte is last.
    guid[7] = 0x80 | (guid[7] & 0x0f);
    guid[8] = 0x80 | (guid[8] & 0x3f);
    guid
}
