//! Isolation, fairness, the clock and the ends of runs: cases whose names begin with `iso-`.

mod accounting;
mod clock;
mod ends;
mod fairness;
mod hardening;
mod loaders;
mod memory;
mod opcodes;

use crate::case::Case;

/// All of them.
pub(crate) fn all() -> Vec<Case> {
    [
        accounting::cases(),
        clock::cases(),
        ends::cases(),
        fairness::cases(),
        hardening::cases(),
        loaders::cases(),
        memory::cases(),
        opcodes::cases(),
    ]
    .concat()
}
