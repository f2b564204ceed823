extern crate std;

use crate::acpi::tables::{MOST_TABLES, Memory, TableError, Tables, processors};
use proptest::prelude::*;
use std::vec::Vec;

#[path = "../../../../../../tests/fuzz/src/acpi.rs"]
#[expect(unreachable_pub, reason = "public where the fuzz targets call it")]
mod fuzz;

/// Memory from address 0 on; beyond it there is none.
struct Bytes(Vec<u8>);

impl Memory for Bytes {
    fn bytes(&self, at: u64, len: u32) -> Option<&[u8]> {
        let start = usize::try_from(at).ok()?;
        self.0.get(start..start.checked_add(len as usize)?)
    }
}

fn seal(table: &mut [u8], at: usize) {
    let sum = table.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
    table[at] = table[at].wrapping_sub(sum);
}

/// A whole table.
fn sealed(name: &[u8; 4], body: &[u8]) -> Vec<u8> {
    let mut table = Vec::from(*name);
    table.extend(u32::try_from(36 + body.len()).unwrap().to_le_bytes());
    table.extend([0; 28]);
    table.extend(body);
    seal(&mut table, 9);
    table
}

/// A list of CPUs with these entries.
fn madt(entries: &[u8]) -> Vec<u8> {
    sealed(b"APIC", &[&[0, 0, 0xe0, 0xfe, 1, 0, 0, 0], entries].concat())
}

/// A root pointer of `revision` at 0, the two lists at 0x100 and 0x200, and `table` at
/// 0x1000, behind `unknown` others.
fn machine(revision: u8, old: u32, new: u64, unknown: usize, table: &[u8]) -> Bytes {
    let mut memory = std::vec![0; 0x2000];
    memory[..8].copy_from_slice(b"RSD PTR ");
    memory[15] = revision;
    memory[16..20].copy_from_slice(&old.to_le_bytes());
    memory[20] = 36;
    memory[24..32].copy_from_slice(&new.to_le_bytes());
    seal(&mut memory[..20], 8);
    seal(&mut memory[..36], 32);
    let addresses = || core::iter::repeat_n(0x40_u64, unknown).chain([0x1000]);
    let narrow: Vec<u8> =
        addresses().flat_map(|at| u32::try_from(at).unwrap().to_le_bytes()).collect();
    let wide: Vec<u8> = addresses().flat_map(u64::to_le_bytes).collect();
    for (at, table) in
        [(0x100, sealed(b"RSDT", &narrow)), (0x200, sealed(b"XSDT", &wide)), (0x1000, table.into())]
    {
        memory[at..at + table.len()].copy_from_slice(&table);
    }
    Bytes(memory)
}

const CPUS: &[u8] = &[
    0, 8, 0, 0, 1, 0, 0, 0, // local APIC 0
    1, 12, 2, 0, 0, 0, 0xc0, 0xfe, 0, 0, 0, 0, // an I/O APIC
    0, 8, 1, 1, 0, 0, 0, 0, // local APIC 1, not ready
    9, 16, 0, 0, 0, 1, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, // x2APIC 0x100
    9, 16, 0, 0, 0xff, 0xff, 0xff, 0xff, 1, 0, 0, 0, 3, 0, 0, 0, // no CPU
];

#[test]
fn cpus_by_either_list() {
    let table = madt(CPUS);
    for (revision, old, new) in [
        (0, 0x100, 0x200),
        (2, 0, 0x200),
        (2, 0x100, 0x200),
        // Without a list of 64-bit addresses the old one counts, whatever the revision.
        (2, 0x100, 0),
        (2, 0x100, 0x1000),
        (2, 0x100, u64::MAX),
    ] {
        let memory = machine(revision, old, new, 3, &table);
        let tables = Tables::open(&memory, 0).unwrap();
        let found: Vec<u32> = processors(tables.find(*b"APIC").unwrap()).collect();
        assert_eq!(found, [0, 0x100], "{revision} {old:#x} {new:#x}");
        assert_eq!(tables.find(*b"FACP"), Err(TableError::Missing(*b"FACP")));
    }
}

#[test]
fn what_is_damaged_is_named() {
    let open = |memory: &Bytes, at| Tables::open(memory, at).map(|_| ());
    let good = machine(0, 0x100, 0, 0, &madt(CPUS));
    assert_eq!(open(&good, 1 << 40), Err(TableError::Address(1 << 40)));
    assert_eq!(open(&good, 0x100), Err(TableError::Root));
    assert_eq!(open(&machine(0, 0, 0, 0, &[]), 0), Err(TableError::NoList));
    let mut bad = machine(0, 0x100, 0, 0, &madt(CPUS));
    bad.0[0x100 + 10] ^= 1;
    assert_eq!(open(&bad, 0), Err(TableError::Checksum(*b"RSDT")));
    bad.0[0x104..0x108].copy_from_slice(&35_u32.to_le_bytes());
    assert_eq!(open(&bad, 0), Err(TableError::Length(*b"RSDT", 35)));
    let mut bad = machine(0, 0x100, 0, 0, &madt(CPUS));
    bad.0[0x1008] ^= 1;
    let tables = Tables::open(&bad, 0).unwrap();
    assert_eq!(tables.find(*b"APIC"), Err(TableError::Checksum(*b"APIC")));
}

/// A list that is longer than any machine's is not read to its end.
#[test]
fn tables_are_counted() {
    let find = |others: usize| {
        let mut memory = machine(0, 0x2000, 0, 0, &madt(CPUS));
        let addresses = [[0x40, 0, 0, 0].repeat(others), std::vec![0, 0x10, 0, 0]].concat();
        memory.0.extend(sealed(b"RSDT", &addresses));
        Tables::open(&memory, 0).unwrap().find(*b"APIC").map(|_| ())
    };
    assert_eq!(find(MOST_TABLES - 1), Ok(()));
    assert_eq!(find(MOST_TABLES), Err(TableError::Missing(*b"APIC")));
}

/// Entries that are shorter than their own header, and one that ends behind the table.
#[test]
fn entries_that_do_not_fit() {
    for (entries, found) in [
        (&[0, 0, 0, 0, 1, 0, 0, 0][..], &[][..]),
        (&[0, 1, 0, 0, 1, 0, 0, 0], &[]),
        (&[0, 7, 0, 5, 1, 0, 0], &[]),
        (&[0, 8, 0, 5, 1, 0, 0, 0, 0, 8, 0, 6, 1, 0], &[5]),
        (&[0, 8, 0, 5, 1, 0, 0, 0, 0], &[5]),
        (&[0, 8, 0, 5, 1, 0, 0, 0, 9, 255], &[5]),
    ] {
        assert_eq!(processors(&madt(entries)).collect::<Vec<_>>(), found, "{entries:?}");
    }
}

proptest! {
    #[test]
    fn the_fuzz_target_holds(
        before in any::<[u8; 36]>(),
        behind in proptest::collection::vec(any::<u8>(), 0..400),
    ) {
        fuzz::run(&[&before[..], &behind].concat());
    }

    #[test]
    fn the_fuzz_target_holds_near_good_tables(at in 0..0x1100_usize, value in any::<u8>()) {
        let mut memory = machine(2, 0x24, 0x60, 0, &[]).0;
        memory.truncate(36);
        for table in [sealed(b"RSDT", &[0x90, 0, 0, 0]), sealed(b"XSDT", &[0; 16]), madt(CPUS)] {
            memory.extend(table);
        }
        let at = at % memory.len();
        memory[at] = value;
        fuzz::run(&memory);
    }
}
