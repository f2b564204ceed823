//! Advice about an emulator that did not come up: it names neither the reason, which this
//! computer shows, nor the option of ours that cures it.

use std::fs;

use crate::emulator::Launch;
use crate::machine::{HostFacts, Machine, nested_kvm};
use crate::ui;

/// Advice for a machine whose emulator ended early and `said` this.
pub(crate) fn of(launch: &Launch, said: &str) -> Option<String> {
    if said.contains("Cannot allocate memory") {
        let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
        return Some(memory(launch.memory, &text));
    }
    if launch.machine == Machine::Kvm {
        return kvm(&HostFacts::read());
    }
    None
}

/// Advice where nested KVM is not usable.
fn kvm(facts: &HostFacts) -> Option<String> {
    let why = nested_kvm(facts).err()?;
    Some(format!("nested KVM is not usable here: {why}; leave `--machine` out"))
}

/// Advice where the computer has not got the `wanted` bytes; `meminfo` is the kernel's table.
fn memory(wanted: u64, meminfo: &str) -> String {
    let of = |key: &str| {
        let line = meminfo.lines().find_map(|line| line.strip_prefix(key))?;
        let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
        kib.checked_mul(1024)
    };
    let has = match (of("MemTotal:"), of("MemAvailable:")) {
        (Some(all), Some(free)) => {
            format!("; this computer has {}, of which {} are free", ui::size(all), ui::size(free))
        }
        _ => String::new(),
    };
    format!(
        "the machine needs {}{has}: give the guests less (`--memory`, or `memory` in the \
         configuration), or the machine (`--machine-memory`)",
        ui::size(wanted)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_needs_too_much_is_told_how_much() {
        let meminfo = "MemTotal:        8388608 kB\nMemFree: 1 kB\nMemAvailable:    4194304 kB\n";
        let text = memory(384 << 30, meminfo);
        assert!(text.starts_with("the machine needs 384.00 GiB; this computer has 8.00 GiB, of which 4.00 GiB are free: give"), "{text}");
        assert!(memory(1 << 30, "").starts_with("the machine needs 1.00 GiB: give"));
    }

    #[test]
    fn nested_kvm_that_is_missing_is_the_reason() {
        let text = kvm(&HostFacts::default()).unwrap();
        assert!(text.contains("neither svm nor vmx; leave `--machine` out"), "{text}");
        let usable = HostFacts {
            svm: true,
            nested_amd: Some(true),
            kvm_opens: true,
            ..HostFacts::default()
        };
        assert_eq!(kvm(&usable), None, "then it is something else");
    }
}
