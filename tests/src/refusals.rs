//! Refusals: machines and bundles that the hypervisor does not start with, and entries that it
//! breaks on purpose.

use anyhow::{Context, Result, ensure};
use xtask::machine::Machine;

use crate::case::{Case, Damage, Kernel, Script};
use crate::cases::refused;
use crate::drive::Drive;

/// All cases.
pub(crate) fn all() -> Vec<Case> {
    let mut cases = refusals();
    cases.extend(broken_entries());
    cases
}

/// Machines and bundles that the hypervisor refuses.
fn refusals() -> Vec<Case> {
    let hello = |name: &str, script| Case {
        name: name.to_owned(),
        script,
        seconds: 120,
        ..Case::tiny("hello")
    };
    vec![
        Case {
            cpu: Some("EPYC,-svm"),
            ..hello("refuse-no-svm", |drive| refused(drive, &["AMD-V", "VT-x", "Cure"]))
        },
        // VT-x of the first generation.
        Case {
            cpu: Some("corei5_lynnfield_750"),
            machine: Machine::BochsVmx,
            ..hello("refuse-old-vmx", |drive| refused(drive, &["unrestricted guest", "Cure"]))
        },
        Case {
            damage: Damage::File,
            ..hello("refuse-damaged-file", |drive| refused(drive, &["guest0/kernel", "CRC-32"]))
        },
        Case {
            damage: Damage::Manifest,
            ..hello("refuse-damaged-manifest", |drive| refused(drive, &["manifest.json"]))
        },
        Case {
            damage: Damage::Truncated,
            ..hello("refuse-truncated-bundle", |drive| refused(drive, &["truncated"]))
        },
        Case {
            kernel: Kernel::Garbage,
            ..hello("refuse-bad-kernel", |drive| refused(drive, &["guest0/kernel", "bzImage"]))
        },
        Case {
            memory: 512,
            machine_memory: Some(256),
            ..hello("refuse-little-memory", |drive| refused(drive, &["MiB are free", "Cure"]))
        },
    ]
}

/// Entries that are broken on purpose, one rule each: the checker names the rule and
/// the CPU refuses the entry.
fn broken_entries() -> Vec<Case> {
    let usual = "steward.broken-entries";
    let cases: [(&str, Machine, &'static str, Script); 3] = [
        ("broken-vmcbs", Machine::QemuSvm, usual, |drive| {
            entries_broken(drive, &["event-into-64-bit", "nested-cr3", "guest-pat"])
        }),
        // The two cases that are left out end the emulator.
        (
            "broken-vmcbs-bochs",
            Machine::BochsSvm,
            "steward.broken-entries long-mode-pe event-into-64-bit",
            |drive| entries_broken(drive, &["msr-map-end", "io-map-end", "cr3-wide"]),
        ),
        ("broken-vmcss", Machine::BochsVmx, usual, |drive| {
            entries_broken(
                drive,
                &[
                    "entry-smm",
                    "guest-paging",
                    "guest-debugctl",
                    "guest-activity-event",
                    "guest-step",
                ],
            )
        }),
    ];
    cases
        .into_iter()
        .map(|(name, machine, cmdline, script)| Case {
            name: name.to_owned(),
            cmdline: Some(cmdline),
            tells_host: false,
            machine,
            script,
            seconds: 600,
            ..Case::tiny("hello")
        })
        .collect()
}

/// At least twenty entries were refused for the rule that the checker named, and
/// those that were not are exactly `gaps`, what the emulator is known to let in (the
/// reasons are in `docs/design.md`).
fn entries_broken(drive: &mut Drive, gaps: &[&str]) -> Result<()> {
    drive.ends(0)?;
    check_broken_entries(drive.text(), gaps)
}

fn check_broken_entries(text: &str, gaps: &[&str]) -> Result<()> {
    let mut agreed = 0;
    let mut open = Vec::new();
    for line in text.lines() {
        let Some((_, rest)) = line.split_once("steward: broken: ") else { continue };
        let (name, says) = rest.split_once(": ").with_context(|| format!("no name in {line:?}"))?;
        ensure!(!says.contains("not one rule"), "the checker: {line}");
        if says.trim_end().ends_with("; agreed") {
            agreed += 1;
        } else {
            open.push(name);
        }
    }
    ensure!(agreed >= 20, "only {agreed} broken entries were refused");
    ensure!(open == gaps, "let in were {open:?}, known to be are {gaps:?}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn broken_entries_are_counted() {
        let good = |number| {
            format!(
                "steward: broken: case-{number}: checker says a (SDM: \"b\"); CPU says c; agreed\r\n"
            )
        };
        let mut text: String = (0..19).map(good).collect();
        assert!(check_broken_entries(&text, &[]).is_err());
        text.push_str(&good(19));
        check_broken_entries(&text, &[]).unwrap();
        // One that is let in has to be known, and one that is known has to be let in.
        assert!(check_broken_entries(&text, &["gap"]).is_err());
        text.push_str("steward: broken: gap: checker says a; CPU says nothing; NOT agreed\r\n");
        check_broken_entries(&text, &["gap"]).unwrap();
        assert!(check_broken_entries(&text, &[]).is_err());
        text.push_str("steward: broken: x: checker says not one rule; CPU says c; NOT agreed\n");
        assert!(check_broken_entries(&text, &["gap", "x"]).is_err());
    }
}
