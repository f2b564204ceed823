extern crate std;

use super::soft_off_types;
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

proptest! {
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
