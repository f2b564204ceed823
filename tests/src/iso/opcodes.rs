//! Instructions that a guest may try: each completes or faults, none ends the guest.

use xtask::machine::Machine;

use crate::case::{Case, Tier};

/// The cases.
pub(crate) fn cases() -> Vec<Case> {
    let case = |name: &str, machine| Case {
        name: format!("iso-opcodes{name}"),
        machine,
        tier: Tier::Full,
        seconds: 1800,
        ..Case::tiny("opcodes")
    };
    vec![
        case("", Machine::QemuSvm),
        case("-bochs-svm", Machine::BochsSvm),
        case("-vmx", Machine::BochsVmx),
    ]
}
