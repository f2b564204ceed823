extern crate std;

mod tables;

use super::{FixedTable, PmTimer, hpet_base, soft_off_types};
use proptest::prelude::*;

#[test]
fn packages_as_firmware_writes_them() {
    for (code, types) in [
        // Name (_S5, Package (4) { 0, 0, 0, 0 })
        (&b"\x08_S5_\x12\x06\x04\0\0\0\0"[..], [0, 0]),
        // Name (\_S5, Package (4) { 5, 5, 0, 0 })
        (b"xx\x08\\_S5_\x12\x08\x04\x0a\x05\x0a\x05\0\0", [5, 5]),
        // A length of two bytes; words.
        (b"\x08_S5_\x12\x4a\0\x02\x0b\x07\0\x01", [7, 1]),
        // Name (_S5, Package (1) { 7 })
        (b"\x08_S5_\x12\x04\x01\x0a\x07", [7, 0]),
        // Another name with it comes first.
        (b"\x10_S5_\x12\x06\x04\0\0\0\0\x08_S5_\x12\x06\x04\x01\x0a\x02\0\0", [1, 2]),
    ] {
        assert_eq!(soft_off_types(code), Some(types), "{code:x?}");
    }
}

#[test]
fn what_is_no_such_package() {
    for code in [
        &b""[..],
        b"_S5_",
        b"\x08_S5_",
        b"\x08_S5_\x12",
        b"\x08_S5_\x12\x86\0",
        b"\x08_S5_\x12\x06\x04",
        b"\x08_S5_\x12\x06\x04\x0b\x01",
        // A method's call in it, and a name that is only an alias of it.
        b"\x08_S5_\x12\x06\x04TYPE\0",
        b"\x06_S5_ABCD",
        b"\x08_S4_\x12\x06\x04\0\0\0\0",
    ] {
        assert_eq!(soft_off_types(code), None, "{code:x?}");
    }
}

/// A table with these fields, of this length.
fn table(fields: &[(usize, &[u8])], len: usize) -> std::vec::Vec<u8> {
    let mut table = std::vec![0; 276];
    for (at, bytes) in fields {
        table[*at..*at + bytes.len()].copy_from_slice(bytes);
    }
    table.truncate(len);
    table
}

#[test]
fn fixed_tables_old_and_new() {
    let old: [(usize, &[u8]); 5] = [
        (40, &[0, 0x10, 0xfe, 0x7f]),
        (48, &[0xb2, 0, 0, 0]),
        (52, &[0xa0]),
        (64, &[4, 0xb0, 0, 0]),
        (140, &[0xff; 8]),
    ];
    // One that ends before the extended fields, whatever stands behind it.
    let found =
        FixedTable { control: (0xb004, None), enable: Some((0xb2, 0xa0)), dsdt: 0x7ffe_1000 };
    assert_eq!(FixedTable::read(&table(&old, 116)), Some(found));
    assert_eq!(FixedTable::read(&table(&old, 147)), Some(found));
    assert_eq!(FixedTable::read(&table(&old, 148)).map(|t| t.dsdt), Some(u64::MAX));
    assert_eq!(FixedTable::read(&table(&old, 67)), None);
    // Extended fields go before the old ones, where they are ports.
    let wide = [&old[..4], &[(172, &[1, 16, 0, 2, 4, 6]), (184, &[1, 16, 0, 2, 8, 6])]].concat();
    let found = FixedTable { control: (0x604, Some(0x608)), ..found };
    assert_eq!(FixedTable::read(&table(&wide, 276)), Some(found));
    let memory = [&old[..4], &[(172, &[0, 16, 0, 2, 4, 6])]].concat();
    assert_eq!(FixedTable::read(&table(&memory, 276)).map(|t| t.control), Some((0xb004, None)));
    // A machine without the registers, and without a way to ask firmware for them.
    assert_eq!(FixedTable::read(&table(&old[..3], 276)), None);
    let plain = [(64, &[4, 0xb0][..])];
    assert_eq!(FixedTable::read(&table(&plain, 276)).map(|t| t.enable), Some(None));
}

#[test]
fn power_management_timers() {
    let narrow: [(usize, &[u8]); 1] = [(76, &[8, 0xb0, 0, 0])];
    let found = PmTimer { port: 0xb008, wide: false };
    assert_eq!(PmTimer::read(&table(&narrow, 116)), Some(found));
    assert_eq!(PmTimer::read(&table(&narrow, 115)), None);
    // 32 bits; the extended field.
    let wide: [(usize, &[u8]); 3] =
        [narrow[0], (112, &[0xa5, 1, 0, 0]), (208, &[1, 32, 0, 3, 8, 6, 0, 0, 0, 0, 0, 0])];
    assert_eq!(PmTimer::read(&table(&wide, 276)), Some(PmTimer { port: 0x608, wide: true }));
    // In memory: no port. None at all. A machine that has no such registers.
    let memory: [(usize, &[u8]); 1] = [(208, &[0, 32, 0, 3, 8, 6])];
    assert_eq!(PmTimer::read(&table(&memory, 276)), None);
    assert_eq!(PmTimer::read(&table(&[], 276)), None);
    let reduced: [(usize, &[u8]); 2] = [narrow[0], (112, &[0, 0, 0x10, 0])];
    assert_eq!(PmTimer::read(&table(&reduced, 276)), None);
}

#[test]
fn event_timers() {
    let base = |bytes: &[u8], len| hpet_base(&table(&[(36, bytes)], len));
    let usual = [1, 0xa2, 0x86, 0x80, 0, 64, 0, 0, 0, 0, 0xd0, 0xfe, 0, 0, 0, 0];
    assert_eq!(base(&usual, 56), Some(0xfed0_0000));
    assert_eq!(base(&usual, 51), None);
    let changed = |at: usize, to: u8| {
        let mut bytes = usual;
        bytes[at] = to;
        base(&bytes, 56)
    };
    // A port; between boundaries; nowhere.
    assert_eq!(changed(4, 1), None);
    assert_eq!(changed(8, 4), None);
    assert_eq!(base(&[0; 16], 56), None);
}

proptest! {
    #[test]
    fn any_table_is_read(table in proptest::collection::vec(any::<u8>(), 0..280)) {
        let _ = (FixedTable::read(&table), PmTimer::read(&table), hpet_base(&table));
    }

    #[test]
    fn anything_may_stand_there(
        before in proptest::collection::vec(any::<u8>(), 0..20),
        behind in proptest::collection::vec(any::<u8>(), 0..20),
    ) {
        let code = [&before[..], b"\x08_S5_\x12", &behind[..]].concat();
        if let Some(types) = soft_off_types(&code) {
            prop_assert!(types.iter().all(|one| *one < 8));
        }
    }
}
