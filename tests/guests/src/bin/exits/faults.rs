//! x
pub(crate) fn run(_tests: &mut guests::harness::Tests) {}
