use std::io::{Cursor, Read, Seek, SeekFrom};

use fatfs::{FileSystem, FsOptions};
use gptman::GPT;

use super::layout::Content;
use super::sparse::Sparse;
use super::{CYLINDER, SECTOR, check_load_range, fat};

fn le16(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn le32(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()))
}

#[test]
fn a_volume_keeps_stage_2_s_limits_at_every_size() {
    for size in [1_usize, 20 << 20, 30 << 20, 31 << 20, 33 << 20, 70 << 20, 200 << 20] {
        let content = vec![0x5a_u8; size];
        let files: [(&str, &[u8]); 2] = [("ramdisk", &content), ("EFI/BOOT/BOOTX64.EFI", b"MZ")];
        let volume = fat::boot_volume(&files, 2048).unwrap();
        let sector = le16(&volume, 11);
        assert_eq!(
            usize::from(sector) * usize::from(volume[13]),
            fat::CLUSTER,
            "cluster at {size}"
        );
        assert_ne!(le16(&volume, 19), 0, "16-bit sector count at {size}");
        assert!(le16(&volume, 17) <= 512);
        assert_eq!(sector == 512, size < 32 << 20, "sector size at {size}");
        assert_eq!(le32(&volume, 28), 2048, "hidden sectors");
        let fs = FileSystem::new(Cursor::new(volume), FsOptions::new()).unwrap();
        let mut back = Vec::new();
        fs.root_dir().open_file("ramdisk").unwrap().read_to_end(&mut back).unwrap();
        assert!(back == content, "content at {size}");
        assert!(fs.root_dir().open_file("EFI/BOOT/BOOTX64.EFI").is_ok());
    }
}

#[test]
fn folders_begin_with_their_own_entries_and_nothing_else() {
    let files: [(&str, &[u8]); 2] =
        [("EFI/BOOT/BOOTX64.EFI", b"MZ"), ("EFI/a long name.txt", b"x")];
    let volume = fat::boot_volume(&files, 2048).unwrap();
    let dots =
        |name: &[u8]| volume.windows(12).filter(|w| w[..11] == *name && w[11] == 0x10).count();
    assert_eq!((dots(b".          "), dots(b"..         ")), (2, 2));
    // A long name's piece for a dot: its first character, then the name's end.
    let long = |w: &[u8]| w[11] == 0x0f && w[0] == 0x41 && w[1..5] == [b'.', 0, 0, 0];
    assert!(!volume.windows(32).any(long));
    let fs = FileSystem::new(Cursor::new(volume), FsOptions::new()).unwrap();
    let mut back = String::new();
    let root = fs.root_dir();
    root.open_file("EFI/a long name.txt").unwrap().read_to_string(&mut back).unwrap();
    assert_eq!(back, "x");
    assert!(root.open_file("EFI/BOOT/BOOTX64.EFI").is_ok());
}

#[test]
fn more_than_the_volume_can_hold_is_refused() {
    let content = vec![0_u8; 256 << 20];
    let error = fat::boot_volume(&[("ramdisk", &content)], 2048).unwrap_err().to_string();
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

pub(crate) fn content() -> Content {
    let mut sector = vec![0_u8; SECTOR];
    sector[510..].copy_from_slice(&[0x55, 0xaa]);
    sector[0] = 0xfa;
    Content::new(&sector, &[1; 600], &[("ramdisk", &[7; 100_000]), ("EFI/BOOT/BOOTX64.EFI", b"MZ")])
        .unwrap()
}

fn bytes(disk: &mut Sparse, start: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    disk.seek(SeekFrom::Start(start)).unwrap();
    disk.read_exact(&mut bytes).unwrap();
    bytes
}

const GIB: u64 = 1 << 30;

#[test]
fn both_tables_name_the_same_partitions_at_every_size() {
    let content = content();
    assert!(content.disk(content.least() - 1, "x").is_err());
    // The last is beyond what the MBR can name.
    for len in [content.least(), GIB, 7_744_782_336, 64 * GIB, 3000 * GIB] {
        let mut disk = content.disk(len, "x").unwrap();
        let first = bytes(&mut disk, 0, SECTOR);
        assert_eq!(first[0], 0xfa);
        let entry = |n: usize| {
            let at = 446 + n * 16;
            (first[at], first[at + 4], le32(&first, at + 8), le32(&first, at + 12))
        };
        disk.rewind().unwrap();
        let gpt = GPT::read_from(&mut disk, SECTOR as u64).unwrap();
        assert_eq!(gpt.header.backup_lba, len / 512 - 1);
        let part = |n: u32| (gpt[n].starting_lba, gpt[n].size().unwrap());
        let (fat, stage_2, data) = (part(1), part(2), part(3));
        assert_eq!(entry(0), (0x80, 0x20, stage_2.0, stage_2.1));
        assert_eq!(entry(1), (0, 0x01, fat.0, fat.1));
        assert_eq!(entry(2), (0, 0x0c, data.0, data.1));
        assert_eq!(entry(3), (0, 0xee, 1, stage_2.0 - 1));
        assert_eq!((stage_2.1, fat.0, fat.1 % 64), (64, 2048, 0));
        assert_eq!((data.0 % 2048, (data.0 + data.1) % 2048), (0, 0));
        assert!(data.0 + data.1 <= gpt.header.last_usable_lba + 1, "at {len}");
        assert_eq!(bytes(&mut disk, stage_2.0 * 512, 601), [[1; 600].as_slice(), &[0]].concat());
        // The copy at the end is whole, too.
        let copy = bytes(&mut disk, len / 512 * 512 - 512, 8);
        assert_eq!(copy, b"EFI PART");
        let start = data.0 * 512;
        assert_eq!(le32(&bytes(&mut disk, start, 512), 28), data.0, "hidden sectors");
        assert_eq!(
            bytes(&mut disk, start, 512),
            bytes(&mut disk, start + 6 * 512, 512),
            "its copy"
        );
        let volume = disk.part(start, data.1 * 512);
        let fs = FileSystem::new(volume, FsOptions::new()).unwrap();
        assert_eq!(fs.fat_type(), fatfs::FatType::Fat32, "at {len}");
        assert_eq!(fs.volume_label(), "STEWDATA");
        let mut text = String::new();
        fs.root_dir().open_file("README.TXT").unwrap().read_to_string(&mut text).unwrap();
        assert!(text.contains("Steward"));
        drop(fs);
        // Old content is overwritten where it matters, and not elsewhere.
        assert!(disk.written() < len / 100 + (80 << 20), "{} of {len}", disk.written());
    }
}

#[test]
fn the_same_seed_makes_the_same_disk_and_another_one_differs_in_its_identity() {
    let content = content();
    let len = content.least();
    assert_eq!(len % CYLINDER as u64, 0);
    let disk = content.disk(len, "x").unwrap();
    let pieces = |disk: &Sparse| disk.pieces().map(|(at, b)| (at, b.to_vec())).collect::<Vec<_>>();
    assert!(pieces(&disk) == pieces(&content.disk(len, "x").unwrap()));
    let mut other = content.disk(len, "y").unwrap();
    let mut disk = disk;
    assert_ne!(bytes(&mut disk, 440, 4), bytes(&mut other, 440, 4));
    assert_ne!(bytes(&mut disk, 512 + 56, 16), bytes(&mut other, 512 + 56, 16));
    // Numbers of the FAT12 and the FAT32 volume.
    disk.rewind().unwrap();
    let data = GPT::read_from(&mut disk, SECTOR as u64).unwrap()[3].starting_lba * 512;
    for id in [(1 << 20) + 39, data + 67, data + 6 * 512 + 67] {
        assert_ne!(bytes(&mut disk, id, 4), bytes(&mut other, id, 4), "at {id}");
    }
    // A disk's remains are a stick's to lose: what was an array's label at the end of a partition.
    assert!(!disk.is_hole(len - (2 << 20), 1 << 20));
}

#[test]
fn an_image_that_is_not_the_one_of_the_sum_beside_it_is_refused() {
    let dir = std::env::temp_dir().join(format!("steward-sum-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let path = dir.join("x.img");
    std::fs::write(&path, b"abc").unwrap();
    assert!(!super::check_sum(&path).unwrap());
    // FIPS 180-4's example.
    let sum = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad  x.img\n";
    for sum in [sum, &sum.to_uppercase()] {
        std::fs::write(dir.join("x.img.sha256"), sum).unwrap();
        assert!(super::check_sum(&path).unwrap());
    }
    std::fs::write(&path, b"abd").unwrap();
    let error = super::check_sum(&path).unwrap_err().to_string();
    assert!(error.contains("x.img.sha256") && error.contains("BA7816BF"), "{error}");
    std::fs::write(dir.join("x.img.sha256"), "").unwrap();
    let error = super::check_sum(&path).unwrap_err().to_string();
    assert!(error.contains("no SHA-256 in it"), "{error}");
    std::fs::remove_dir_all(&dir).unwrap();
}

#[test]
fn a_content_is_read_back_from_an_image_and_nothing_else() {
    let content = content();
    let mut disk = content.disk(content.least(), "x").unwrap();
    disk.rewind().unwrap();
    let back = Content::read(&mut disk).unwrap();
    assert!(back.disk(GIB, "z").unwrap() == content.disk(GIB, "z").unwrap());
    for (damage, what) in [(510, "no partition table"), (446 + 4, "not those of a Steward image")] {
        let mut disk = content.disk(content.least(), "x").unwrap();
        disk.put(damage, &[0]).unwrap();
        let error = Content::read(&mut disk).unwrap_err().to_string();
        assert!(error.contains(what), "{error}");
    }
    assert!(Content::read(&mut Cursor::new(vec![0; 100])).is_err());
}
