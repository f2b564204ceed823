//! The exit decoders' fuzz targets on random cases.
#![expect(
    unreachable_pub,
    clippy::cast_possible_truncation,
    reason = "modules that are a library's elsewhere; tests of 64-bit hosts"
)]

#[path = "../../../../tests/fuzz/src/exits_svm.rs"]
mod exits_svm;
#[path = "../../../../tests/fuzz/src/exits_vmx.rs"]
mod exits_vmx;
#[path = "../../../../tests/fuzz/src/input.rs"]
mod input;

use proptest::prelude::*;

proptest! {
    #![proptest_config(ProptestConfig { cases: 20_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn exits_vmx(data in any::<[u8; 49]>()) {
        exits_vmx::run(&data);
    }

    #[test]
    fn exits_svm(data in any::<[u8; 35]>()) {
        exits_svm::run(&data);
    }
}
