//! The reader's fuzz target on random cases.
#![expect(unreachable_pub, reason = "a module that is a library's elsewhere")]

#[path = "../../../../tests/fuzz/src/state.rs"]
mod target;

use proptest::prelude::*;

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn state(data in prop::collection::vec(any::<u8>(), 0..200)) {
        target::run(&data);
    }
}
