//! Instructions that a guest may try: each completes or faults, none ends the guest, nor on memory of
//! a device, where it comes out the same or is refused. And what
//! CPUID says of the hypervisor, where the settings say so.

use xtask::machine::Machine;

use crate::case::{Case, Scene, Tier};
use crate::cases::tiny_passes;

/// A guest that sees KVM's signature first.
const KVM_FIRST: &str = "\
[[guest]]
name = \"tiny\"
kernel = \"test:hypercalls\"
memory = \"64M\"
cmdline = \"kvm-first\"
signature = \"kvm\"
on_reset = \"end\"
";

/// The cases.
pub(crate) fn cases() -> Vec<Case> {
    let case = |name: &str, machine| Case {
        name: format!("iso-opcodes{name}"),
        machine,
        tier: Tier::Full,
        seconds: 1800,
        ..Case::tiny("opcodes")
    };
    let device = |name: &str, machine| Case {
        name: format!("iso-opcodes-device{name}"),
        cmdline: Some("device"),
        ..case("", machine)
    };
    let signature = |name: &str, machine| Case {
        machine,
        seconds: 240,
        ..Case::scene(name, Scene::Text(KVM_FIRST.to_owned()), tiny_passes)
    };
    vec![
        case("", Machine::QemuSvm),
        case("-bochs-svm", Machine::BochsSvm),
        case("-vmx", Machine::BochsVmx),
        device("", Machine::QemuSvm),
        device("-bochs-svm", Machine::BochsSvm),
        device("-vmx", Machine::BochsVmx),
        signature("iso-signature", Machine::QemuSvm),
        signature("iso-signature-vmx", Machine::BochsVmx),
    ]
}
