//! The board's fuzz target on random cases.
#![expect(
    unreachable_pub,
    reason = "modules that are a library's elsewhere; tests of 64-bit hosts"
)]

#[path = "../../../../tests/fuzz/src/accesses.rs"]
mod accesses;
#[path = "../../../../tests/fuzz/src/board.rs"]
mod board;
#[path = "../../../../tests/fuzz/src/input.rs"]
mod input;

use proptest::prelude::*;

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn board(data in prop::collection::vec(any::<u8>(), 0..600)) {
        board::run(&data);
    }
}
