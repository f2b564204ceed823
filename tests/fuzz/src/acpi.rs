//! The reader of firmware's tables must come to an end, and hand out nothing but whole
//! tables whose checksums hold, whatever stands in memory.

// The crate under test, which includes this file, has no prelude of `std`.
extern crate std;

use std::string::ToString;
use x86defs::acpi::tables::{HEADER, Memory, Tables, processors, table};
use x86defs::acpi::{FixedTable, soft_off_types};

/// Firmware's memory: the case, from address 0 on.
struct Bytes<'a>(&'a [u8]);

impl Memory for Bytes<'_> {
    fn bytes(&self, at: u64, len: u32) -> Option<&[u8]> {
        let start = usize::try_from(at).ok()?;
        self.0.get(start..start.checked_add(len as usize)?)
    }
}

/// One case: the memory, with the root pointer at its beginning.
pub fn run(data: &[u8]) {
    // Each of them on its own, without a checksum in the way.
    assert!(processors(data).count() <= data.len() / 2);
    let _ = FixedTable::read(data);
    if let Some(types) = soft_off_types(data) {
        assert!(types.iter().all(|one| *one < 8));
    }

    let mut whole = data.to_vec();
    mend(&mut whole);
    let memory = Bytes(&whole);
    let tables = match Tables::open(&memory, 0) {
        Ok(tables) => tables,
        Err(error) => return assert!(!error.to_string().is_empty()),
    };
    for name in [*b"APIC", *b"FACP"] {
        let Ok(found) = tables.find(name) else { continue };
        assert!(found.len() >= HEADER && found.starts_with(&name));
        let sum = found.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
        assert_eq!(sum, 0);
        let length = u32::from_le_bytes([found[4], found[5], found[6], found[7]]);
        assert_eq!(length as usize, found.len());
        if let Some(fixed) = FixedTable::read(found) {
            let _ =
                table(&memory, fixed.dsdt, *b"DSDT").map(|code| soft_off_types(&code[HEADER..]));
        }
    }
}

/// Makes the checksums hold of what looks like a root pointer at the beginning and tables
/// behind it, which chance would never find.
fn mend(memory: &mut [u8]) {
    let fix = |part: &mut [u8], at: usize| {
        let sum = part.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
        if let Some(byte) = part.get_mut(at) {
            *byte = byte.wrapping_sub(sum);
        }
    };
    for (end, at) in [(20, 8), (36, 32)] {
        if let Some(root) = memory.get_mut(..end) {
            fix(root, at);
        }
    }
    let mut at = 36;
    while let Some(header) = memory.get(at..at + HEADER) {
        let length = u32::from_le_bytes([header[4], header[5], header[6], header[7]]) as usize;
        let Some(part) = memory.get_mut(at..at.saturating_add(length.max(HEADER))) else { return };
        fix(part, 9);
        at += length.max(HEADER);
    }
}
