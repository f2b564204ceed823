//! Tests of the ACPI tables: checksums, pointers, fields, and ACPICA's opinion.

extern crate std;

use super::*;
use config::layout::TABLES_START;
use std::process::Command;
use std::string::String;
use std::{env, eprintln, format, fs, println};

fn tables(vcpus: u32) -> Vec<Table> {
    build(GuestPhysAddr::new(TABLES_START), vcpus)
}

fn table(vcpus: u32, name: &str) -> Table {
    tables(vcpus).into_iter().find(|table| table.name == name).unwrap()
}

fn sum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

#[test]
fn every_table_is_found_from_the_rsdp() {
    let tables = tables(4);
    for pair in tables.windows(2) {
        // In rising order without overlap, but for the XSDT's place in the list.
        let end = pair[0].address.wrapping_add(pair[0].bytes.len() as u64);
        assert!(end <= pair[1].address, "{} overlaps {}", pair[0].name, pair[1].name);
    }
    let at = |address: u64| {
        let found = tables.iter().find(|table| table.address.as_u64() == address).unwrap();
        (found.name, found.bytes.as_slice())
    };
    let (name, rsdp) = at(TABLES_START);
    assert_eq!((name, &rsdp[..8]), ("RSDP", b"RSD PTR ".as_slice()));
    assert_eq!(sum(&rsdp[..20]), 0);
    assert_eq!(sum(rsdp), 0);
    let (_, xsdt) = at(u64_at(rsdp, 24));
    assert_eq!(&xsdt[..4], b"XSDT");
    let names: Vec<_> = (36..xsdt.len()).step_by(8).map(|i| at(u64_at(xsdt, i)).0).collect();
    assert_eq!(names, ["FACP", "APIC"]);
    let (_, fadt) = at(u64_at(xsdt, 36));
    assert_eq!(at(u32_at(fadt, 36).into()).0, "FACS");
    assert_eq!(at(u32_at(fadt, 40).into()).0, "DSDT");
    assert_eq!(at(u64_at(fadt, 140)).0, "DSDT");
    for table in &tables {
        if table.name != "RSDP" {
            assert_eq!(&table.bytes[..4], table.name.as_bytes());
            assert_eq!(u32_at(&table.bytes, 4) as usize, table.bytes.len());
        }
        if table.name != "FACS" {
            assert_eq!(sum(&table.bytes), 0, "{}", table.name);
        } else {
            assert!(table.address.is_aligned(64));
        }
    }
}

#[test]
fn fadt_fields() {
    let bytes = table(1, "FACP").bytes;
    assert_eq!(bytes[8], 6);
    assert_eq!(bytes.len(), 276);
    assert_eq!(bytes[46], SCI_IRQ);
    assert_eq!(u32_at(&bytes, 48), 0, "no SMI command port");
    assert_eq!(u32_at(&bytes, 56), u32::from(PM1A_EVENT_PORT));
    assert_eq!(u32_at(&bytes, 64), u32::from(PM1A_CONTROL_PORT));
    assert_eq!(u32_at(&bytes, 76), u32::from(PM_TIMER_PORT));
    assert_eq!(bytes[88..92], [4, 2, 0, 4]);
    assert_eq!(bytes[108], 0x32, "century");
    let flags = u32_at(&bytes, 112);
    assert_eq!(flags & 1 << 4, 0, "the power button is a fixed feature");
    assert_ne!(flags & 1 << 5, 0, "there is no sleep button");
    assert_ne!(flags & 1 << 8, 0, "the timer has 32 bits");
    assert_ne!(flags & 1 << 10, 0, "there is a reset register");
    assert_eq!(bytes[116..128], [1, 8, 0, 1, 0xf9, 0xc, 0, 0, 0, 0, 0, 0]);
    assert_eq!(bytes[128], RESET_VALUE);
}

/// The entries of a MADT.
fn entries(bytes: &[u8]) -> Vec<Vec<u8>> {
    let mut at = 44;
    let mut entries = Vec::new();
    while at < bytes.len() {
        let size = usize::from(bytes[at + 1]);
        entries.push(bytes[at..at + size].to_vec());
        at += size;
    }
    assert_eq!(at, bytes.len());
    entries
}

#[test]
fn madt_entries() {
    let bytes = table(2, "APIC").bytes;
    assert_eq!(u32_at(&bytes, 36), 0xfee0_0000);
    assert_eq!(u32_at(&bytes, 40), 1);
    assert_eq!(
        entries(&bytes),
        [
            alloc::vec![0, 8, 0, 0, 1, 0, 0, 0],
            alloc::vec![0, 8, 1, 1, 1, 0, 0, 0],
            alloc::vec![1, 12, 0, 0, 0, 0, 0xc0, 0xfe, 0, 0, 0, 0],
            alloc::vec![2, 10, 0, 0, 2, 0, 0, 0, 0, 0],
            alloc::vec![2, 10, 0, 9, 9, 0, 0, 0, 0x0d, 0],
            alloc::vec![4, 6, 0xff, 0, 0, 1],
        ]
    );
    let many = entries(&table(257, "APIC").bytes);
    let kinds = |kind| many.iter().filter(|entry| entry[0] == kind).count();
    assert_eq!((kinds(0), kinds(9), kinds(10)), (255, 2, 1));
    let last = many.iter().rfind(|entry| entry[0] == 9).unwrap();
    assert_eq!(last[4..], [0, 1, 0, 0, 1, 0, 0, 0, 0, 1, 0, 0]);
}

/// Has ACPICA's compiler disassemble each table and compile what it got: any
/// error or warning fails. Without the compiler there is nothing to test.
#[test]
fn acpica_agrees() {
    if Command::new("iasl").arg("-v").output().is_err() {
        assert!(env::var_os("STEWARD_REQUIRE_IASL").is_none(), "iasl is not installed");
        eprintln!("skipped: iasl (acpica-tools) is not installed");
        return;
    }
    let folder = env::temp_dir().join(format!("steward-acpi-{}", std::process::id()));
    fs::create_dir_all(&folder).unwrap();
    for vcpus in [1, 4] {
        // The RSDP is no table with a header: iasl does not take it.
        for table in tables(vcpus).iter().filter(|table| table.name != "RSDP") {
            let stem = format!("{}-{vcpus}", table.name);
            let run = |arguments: &[&str]| {
                let output =
                    Command::new("iasl").current_dir(&folder).args(arguments).output().unwrap();
                let text = String::from_utf8_lossy(&output.stdout).into_owned()
                    + &String::from_utf8_lossy(&output.stderr);
                assert!(output.status.success(), "{stem}: {text}");
                text
            };
            fs::write(folder.join(format!("{stem}.dat")), &table.bytes).unwrap();
            let text = run(&["-d", &format!("{stem}.dat")]);
            assert!(!text.contains("Warning") && !text.contains("Error"), "{stem}: {text}");
            let text = run(&["-we", &format!("{stem}.dsl")]);
            assert!(text.contains("0 Errors, 0 Warnings"), "{stem}: {text}");
            // Compiled again, the table is the same, but for the compiler's name
            // in the header, its checksum and different ways to code the same.
            let again = fs::read(folder.join(format!("{stem}.aml"))).unwrap();
            if table.name != "DSDT" {
                let skip = if table.name == "FACS" { 4 } else { 36 };
                assert_eq!(again[skip..], table.bytes[skip..], "{stem}");
            }
            println!("{stem}: {} bytes", table.bytes.len());
        }
    }
    fs::remove_dir_all(&folder).unwrap();
}
