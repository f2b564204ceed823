//! Tests of the SMBIOS tables: a parser of our own, and dmidecode where it is
//! installed.

extern crate std;

use super::*;
use std::process::Command;
use std::string::String;
use std::{env, eprintln, format, fs};

const UUID: [u8; 16] = [
    0x00, 0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88, 0x99, 0xaa, 0xbb, 0xcc, 0xdd, 0xee, 0xff,
];
const GIB: u64 = 1 << 30;
const MIB: u64 = 1 << 20;

/// A structure: its type, its formatted part, its strings.
type Parsed = (u8, Vec<u8>, Vec<String>);

fn parse(base: u64, bytes: &[u8]) -> Vec<Parsed> {
    let word = |at: usize| usize::from(u16::from_le_bytes([bytes[at], bytes[at + 1]]));
    let sum = |bytes: &[u8]| bytes.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
    assert_eq!(&bytes[..4], b"_SM_");
    assert_eq!(&bytes[0x10..0x15], b"_DMI_");
    assert_eq!(sum(&bytes[..0x1f]), 0);
    assert_eq!(sum(&bytes[0x10..0x1f]), 0);
    assert_eq!(bytes[5..8], [0x1f, 2, 8]);
    let address = u32::from_le_bytes(bytes[0x18..0x1c].try_into().unwrap());
    let start = usize::try_from(u64::from(address) - base).unwrap();
    let end = start + word(0x16);
    assert_eq!(end, bytes.len());

    let mut at = start;
    let mut parsed = Vec::new();
    let mut largest = 0;
    while at < end {
        let first = at;
        let size = usize::from(bytes[at + 1]);
        let formatted = bytes[at..at + size].to_vec();
        at += size;
        let mut strings = Vec::new();
        if bytes[at] == 0 {
            at += 1;
        }
        while bytes[at] != 0 {
            let length = bytes[at..].iter().position(|&byte| byte == 0).unwrap();
            strings.push(String::from_utf8(bytes[at..at + length].to_vec()).unwrap());
            at += length + 1;
        }
        at += 1;
        largest = largest.max(at - first);
        parsed.push((formatted[0], formatted, strings));
    }
    assert_eq!(parsed.len(), word(0x1c));
    assert_eq!(largest, word(8));
    let mut handles: Vec<_> = parsed.iter().map(|(_, bytes, _)| [bytes[2], bytes[3]]).collect();
    handles.sort_unstable();
    handles.dedup();
    assert_eq!(handles.len(), parsed.len(), "handles are unique");
    parsed
}

fn tables(memory: u64) -> Vec<Parsed> {
    let base = 0xf_0000;
    parse(base, &build(GuestPhysAddr::new(base), memory, 4, UUID))
}

fn one(parsed: &[Parsed], kind: u8) -> &Parsed {
    let mut all = parsed.iter().filter(|(found, ..)| *found == kind);
    let first = all.next().unwrap();
    assert!(all.next().is_none());
    first
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(bytes[at..at + 2].try_into().unwrap())
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

#[test]
fn identity() {
    let parsed = tables(512 * MIB);
    let kinds: Vec<_> = parsed.iter().map(|(kind, ..)| *kind).collect();
    assert_eq!(kinds, [0, 1, 3, 4, 16, 17, 19, 32, 127]);
    let sizes: Vec<_> = parsed.iter().map(|(_, bytes, _)| bytes.len()).collect();
    assert_eq!(sizes, [0x18, 0x1b, 0x16, 0x2a, 0x17, 0x28, 0x1f, 0xb, 4]);
    let (_, system, strings) = one(&parsed, 1);
    assert_eq!(strings[..2], ["Steward", "Steward virtual machine"]);
    assert_eq!(system[4..8], [1, 2, 3, 0]);
    assert_eq!(system[8..16], [0x33, 0x22, 0x11, 0x00, 0x55, 0x44, 0x77, 0x66]);
    assert_eq!(system[16..24], UUID[8..]);
    let (_, processor, _) = one(&parsed, 4);
    assert_eq!(processor[0x23..0x26], [4, 4, 4]);
}

#[test]
fn memory_sizes() {
    let device = |memory| {
        let parsed = tables(memory);
        let bytes = &one(&parsed, 17).1;
        (u16_at(bytes, 0xc), u32_at(bytes, 0x1c))
    };
    assert_eq!(device(512 * MIB), (512, 0));
    assert_eq!(device(MIB + 4096), (0x8000 | 1028, 0));
    assert_eq!(device(31 * GIB), (31 * 1024, 0));
    assert_eq!(device(32 * GIB), (0x7fff, 32 * 1024));
    let array = |memory| {
        let parsed = tables(memory);
        let bytes = &one(&parsed, 16).1;
        (u32_at(bytes, 7), u64_at(bytes, 0xf))
    };
    assert_eq!(array(512 * MIB), (512 * 1024, 0));
    assert_eq!(array(1024 * GIB), (1024 * 1024 * 1024, 0));
    assert_eq!(array(2048 * GIB), (0x8000_0000, 2048 * GIB));
}

#[test]
fn memory_addresses() {
    let ranges = |memory| -> Vec<_> {
        let parsed = tables(memory);
        let mapped = parsed.iter().filter(|(kind, ..)| *kind == 19);
        mapped.map(|(_, bytes, _)| (u32_at(bytes, 4), u32_at(bytes, 8))).collect()
    };
    assert_eq!(ranges(128 * MIB), [(0, 128 * 1024 - 1)]);
    let (low, high) = (3 * 1024 * 1024 - 1, 4 * 1024 * 1024);
    assert_eq!(ranges(6 * GIB), [(0, low), (high, 7 * 1024 * 1024 - 1)]);
    let parsed = tables(8192 * GIB);
    let (_, bytes, _) = parsed.iter().rfind(|(kind, ..)| *kind == 19).unwrap();
    assert_eq!((u32_at(bytes, 4), u32_at(bytes, 8)), (u32::MAX, u32::MAX));
    assert_eq!((u64_at(bytes, 0xf), u64_at(bytes, 0x17)), (4 * GIB, 8193 * GIB - 1));
}

#[test]
fn dmidecode_agrees() {
    // The program's dumps are laid out as ours: the entry point, the table at 0x20.
    let file = env::temp_dir().join(format!("steward-smbios-{}", std::process::id()));
    fs::write(&file, build(GuestPhysAddr::ZERO, 6 * GIB, 4, UUID)).unwrap();
    let output = Command::new("dmidecode").arg("--from-dump").arg(&file).output();
    fs::remove_file(&file).unwrap();
    let Ok(output) = output else {
        eprintln!("skipped: dmidecode is not installed");
        return;
    };
    let text = String::from_utf8(output.stdout).unwrap();
    for line in [
        "SMBIOS 2.8 present.",
        "Manufacturer: Steward",
        "Product Name: Steward virtual machine",
        "UUID: 00112233-4455-6677-8899-aabbccddeeff",
        "System is a virtual machine",
        "Core Count: 4",
        "Maximum Capacity: 6 GB",
        "Size: 6 GB",
        "Ending Address: 0x001BFFFFFFF",
        "End Of Table",
    ] {
        assert!(text.contains(line), "no \"{line}\" in:\n{text}");
    }
    for word in ["bad", "Wrong", "Invalid", "OUT OF SPEC", "broken", "TRUNCATED"] {
        assert!(!text.contains(word), "\"{word}\" in:\n{text}");
    }
}
