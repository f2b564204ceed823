//! The hypervisor's own memory: violations of its rights are caught.

use anyhow::{Context, Result, bail, ensure};
use xtask::machine::Machine;

use crate::case::{Case, Script, Tier};
use crate::drive::Drive;

/// The page fault's error codes: a page is there, the access was a write, a fetch
/// (SDM: "Page-Fault Error Code").
const PRESENT: u32 = 1;
const WRITE: u32 = 2;
const FETCH: u32 = 16;

/// Violations, and the scripts that see what comes of them.
const VIOLATIONS: [(&str, Script); 10] = [
    ("write-code", faulted::<{ PRESENT | WRITE }>),
    ("run-data", faulted::<{ PRESENT | FETCH }>),
    ("run-guest", faulted::<{ PRESENT | FETCH }>),
    ("read-guest", faulted::<PRESENT>),
    ("write-guest", faulted::<{ PRESENT | WRITE }>),
    ("guard-page", faulted::<WRITE>),
    ("overflow", overflowed),
    ("gdt", faulted::<{ PRESENT | WRITE }>),
    ("idt", faulted::<{ PRESENT | WRITE }>),
    ("maps", faulted::<{ PRESENT | WRITE }>),
];

/// The cases.
pub(crate) fn cases() -> Vec<Case> {
    let machines = [(Machine::QemuSvm, "svm", None), (Machine::BochsVmx, "vmx", SMAP_MODEL)];
    let violations = VIOLATIONS.iter().flat_map(|(name, script)| {
        machines.map(|(machine, short, cpu)| Case {
            name: format!("iso-caught-{name}-{short}"),
            words: format!("steward.violation={name}"),
            cpu,
            ..case(machine, *script)
        })
    });
    violations.chain(unguarded()).collect()
}

/// The usual model of Bochs has no SMAP.
const SMAP_MODEL: Option<&'static str> = Some("corei7_skylake_x");

fn case(machine: Machine, script: Script) -> Case {
    Case { machine, script, cmdline: Some(""), tells_host: false, ..Case::tiny("hello") }
}

/// CPUs without one of the guards, and one with both: the boot tells.
fn unguarded() -> Vec<Case> {
    let cases: [(&str, Machine, Option<&'static str>, Tier, Script); 4] = [
        ("smap-vmx", Machine::BochsVmx, None, Tier::Usual, |drive| {
            told(drive, Some("without SMAP"))
        }),
        ("smep-svm", Machine::QemuSvm, Some("EPYC,-smep"), Tier::Full, |drive| {
            told(drive, Some("without SMEP"))
        }),
        ("both-svm", Machine::QemuSvm, Some("EPYC,-smep,-smap"), Tier::Usual, |drive| {
            told(drive, Some("without SMEP and SMAP"))
        }),
        ("none-svm", Machine::QemuSvm, None, Tier::Full, |drive| told(drive, None)),
    ];
    let make = |(name, machine, cpu, tier, script)| Case {
        name: format!("iso-unguarded-{name}"),
        cpu,
        tier,
        // The guest ends by itself.
        cmdline: Some("once"),
        ..case(machine, script)
    };
    cases.into_iter().map(make).collect()
}

/// The run ends in a panic that names a page fault with this error code.
fn faulted<const CODE: u32>(drive: &mut Drive) -> Result<()> {
    drive.ends(4)?;
    named(drive.text(), &format!("#PF page fault in the hypervisor, error code {CODE:#x},"))
}

/// A page fault that can't be delivered on a stack which is at its end.
fn overflowed(drive: &mut Drive) -> Result<()> {
    drive.ends(4)?;
    named(drive.text(), "#DF double fault in the hypervisor,")
}

fn named(text: &str, exception: &str) -> Result<()> {
    let mut lines = text.lines().filter(|line| line.contains(" in the hypervisor, error code "));
    let (first, more) = (lines.next(), lines.next());
    let first = first.context("no exception was reported")?;
    ensure!(first.contains(exception), "{first}");
    ensure!(more.is_none(), "{first}, and then {more:?}");
    Ok(())
}

/// The guest runs, and the boot has told what the CPU lacks.
fn told(drive: &mut Drive, words: Option<&str>) -> Result<()> {
    drive.ends(0)?;
    let line = drive.text().lines().find(|line| line.contains("processor: without "));
    match (words, line) {
        (Some(words), Some(line)) => {
            ensure!(line.contains(&format!("{words}:")), "{line}");
            Ok(())
        }
        (None, None) => Ok(()),
        (words, line) => bail!("wanted {words:?}, said {line:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_panics_own_words() {
        let text = "x\npanicked: #PF page fault in the hypervisor, error code 0x3, CR2 0x1\n";
        named(text, "#PF page fault in the hypervisor, error code 0x3,").unwrap();
        assert!(named(text, "#PF page fault in the hypervisor, error code 0x11,").is_err());
        assert!(named("", "#PF").is_err());
        assert!(named(&text.repeat(2), "#PF").is_err());
    }
}
