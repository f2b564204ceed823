//! The page walk's fuzz target on random cases.
#![expect(
    unreachable_pub,
    reason = "modules that are a library's elsewhere; tests of 64-bit hosts"
)]

#[path = "../../../../tests/fuzz/src/input.rs"]
mod input;
#[path = "../../../../tests/fuzz/src/page_walk.rs"]
mod page_walk;

use proptest::prelude::*;

proptest! {
    #![proptest_config(ProptestConfig { cases: 10_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn page_walk(data in prop::collection::vec(any::<u8>(), 0..600)) {
        page_walk::run(&data);
    }
}
