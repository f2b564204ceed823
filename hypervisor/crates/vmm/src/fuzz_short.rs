//! Fuzz targets that take more than one module, and those of the exit decoders, on random
//! cases.
#![expect(
    unreachable_pub,
    clippy::cast_possible_truncation,
    reason = "modules that are a library's elsewhere; tests of 64-bit hosts"
)]

#[path = "../../../../tests/fuzz/src/accesses.rs"]
mod accesses;
#[path = "../../../../tests/fuzz/src/exits_svm.rs"]
mod exits_svm;
#[path = "../../../../tests/fuzz/src/exits_vmx.rs"]
mod exits_vmx;
#[path = "../../../../tests/fuzz/src/hypercalls.rs"]
mod hypercalls;
#[path = "../../../../tests/fuzz/src/input.rs"]
mod input;
#[path = "../../../../tests/fuzz/src/prepared.rs"]
mod prepared;
#[path = "../../../../tests/fuzz/src/pv_msrs.rs"]
mod pv_msrs;
#[path = "../../../../tests/fuzz/src/restore.rs"]
mod restore;
#[path = "../../../../tests/fuzz/src/turn.rs"]
mod turn;

use proptest::prelude::*;

fn bytes(most: usize) -> impl Strategy<Value = alloc::vec::Vec<u8>> {
    proptest::collection::vec(any::<u8>(), 0..most)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn exits_vmx(data in bytes(60)) {
        exits_vmx::run(&data);
    }

    #[test]
    fn exits_svm(data in bytes(40)) {
        exits_svm::run(&data);
    }

    #[test]
    fn hypercalls(data in bytes(60)) {
        hypercalls::run(&data);
    }

    #[test]
    fn pv_msrs(data in bytes(300)) {
        pv_msrs::run(&data);
    }

    #[test]
    fn restore(data in bytes(1500)) {
        restore::run(&data);
    }

    #[test]
    fn turn(data in bytes(600)) {
        turn::run(&data);
    }
}
