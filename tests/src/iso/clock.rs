//! The rate of the clock: measured under load, without some sources, with CPUs that disagree.

use anyhow::{Context, Result, bail, ensure};
use xtask::emulator::Clock;
use xtask::machine::Machine;

use crate::case::{Build, Case, Scene, Tier};
use crate::drive::Drive;
use crate::starts::{Starts, rate_of};

/// A guest that says when seconds of its real-time clock begin.
const SECONDS: &str = "\
[host]
log = \"debug\"

[[guest]]
name = \"tiny\"
kernel = \"test:rate\"
memory = \"32M\"
cmdline = \"seconds=3\"
";
/// So close to the machine's seconds a guest's begin, in ticks of a nanosecond.
const CLOSE: u64 = 10_000_000;

/// The cases.
pub(crate) fn cases() -> Vec<Case> {
    vec![
        Case { starts: Some(busy_starts(10, 0)), ..rate("iso-clock-starts") },
        Case {
            tier: Tier::Full,
            starts: Some(busy_starts(200, 2)),
            seconds: 1800,
            ..rate("iso-clock-starts-200")
        },
        Case { starts: Some(machines_without()), ..rate("iso-clock-sources") },
        // CPUID of this model tells 3.5 GHz; its TSC counts instructions, a billion of them in a
        // second of its clocks.
        Case {
            machine: Machine::BochsVmx,
            cpu: Some("corei7_skylake_x"),
            script: wrong_leaf,
            ..rate("iso-clock-wrong-leaf-vmx")
        },
        // No hypervisor is said to be there, so that the missing bit is the CPU's own.
        Case { cpu: Some("EPYC,-hypervisor"), script: not_invariant, ..rate("iso-clock-variant") },
        // No machine at hand lacks all clocks: in this image they stand still.
        Case {
            tier: Tier::Full,
            fault: Some("clocks-stand"),
            script: refused,
            ..rate("iso-clock-none")
        },
        // Each CPU is asked for its counter after the one before it.
        Case { cpus: (4, 4), script: four, ..rate("iso-clock-four-cpus") },
        Case {
            machine: Machine::BochsVmx,
            cpus: (4, 4),
            script: four,
            ..rate("iso-clock-four-cpus-vmx")
        },
        Case {
            machine: Machine::BochsVmx,
            cpus: (2, 2),
            tier: Tier::Full,
            fault: Some("tsc-adjust"),
            script: mended,
            ..rate("iso-clock-tsc-adjust-vmx")
        },
        Case {
            machine: Machine::BochsVmx,
            cpus: (2, 2),
            tier: Tier::Full,
            fault: Some("tsc-adjust-stuck"),
            script: can_not_be_mended,
            ..rate("iso-clock-tsc-apart-vmx")
        },
        Case {
            tier: Tier::Full,
            fault: Some("no-rtc"),
            script: no_rtc,
            cmdline: Some("seconds=2"),
            ..rate("iso-clock-no-rtc")
        },
        // The machine's TSC and its real-time clock count the same nanoseconds from 0, so that
        // its seconds begin at whole billions of ticks.
        Case {
            tier: Tier::Full,
            clock: Clock::Instructions,
            machine_args: &["-rtc", "base=2026-01-01T00:00:00,clock=vm"],
            ..Case::scene("iso-clock-seconds", Scene::Text(SECONDS.to_owned()), seconds)
        },
    ]
}

fn rate(name: &str) -> Case {
    Case {
        name: name.to_owned(),
        build: Build::Debug,
        tells_host: false,
        script: |drive| drive.ends(0).map(|_| ()),
        ..Case::tiny("rate")
    }
}

/// `count` starts of the usual machine, four at a time, and so many threads beside them.
fn busy_starts(count: usize, busy: usize) -> Starts {
    Starts { each: vec![&[][..]; count], at_once: 4, busy }
}

/// Machines without some of the clocks: wherever one is left, the rate is right.
fn machines_without() -> Starts {
    let each = vec![
        &[][..],
        &["-machine", "pit=off"],
        &["-machine", "hpet=off"],
        // The PM timer alone.
        &["-machine", "pit=off,hpet=off"],
        // With the BIOS' own tables in place of QEMU's.
        &["-machine", "acpi=off"],
        &["-machine", "pit=off,hpet=off,acpi=off"],
    ];
    Starts { each, at_once: 2, busy: 0 }
}

fn wrong_leaf(drive: &mut Drive) -> Result<()> {
    drive.expect(" says 3500 MHz, which no clock confirms", 120)?;
    drive.ends(0)?;
    let khz = rate_of(drive.text())?;
    ensure!(khz.abs_diff(1_000_000) <= 100, "the guest is told {khz} kHz for 1 GHz");
    Ok(())
}

fn refused(drive: &mut Drive) -> Result<()> {
    drive.expect("refused: nothing tells how fast this machine's time-stamp counter runs", 60)?;
    for clock in ["the PIT", "the ACPI PM timer", "the HPET"] {
        drive.expect(&format!("{clock} does not count"), 5)?;
    }
    drive.expect("Cure: in the BIOS set-up", 5)?;
    drive.ends(2).map(|_| ())
}

fn four(drive: &mut Drive) -> Result<()> {
    drive.expect("processors: 4 running", 120)?;
    drive.expect(" kHz, invariant 1, stable 1", 60)?;
    drive.ends(0)?;
    ensure!(!drive.text().contains("WARN"), "something is warned of");
    Ok(())
}

fn not_invariant(drive: &mut Drive) -> Result<()> {
    drive.expect("this CPU's time-stamp counter may change its rate", 120)?;
    drive.expect(" kHz, invariant 0, stable 0", 60)?;
    drive.ends(0).map(|_| ())
}

/// The fault planted in this image has the second CPU 5,000,000 ticks behind.
fn mended(drive: &mut Drive) -> Result<()> {
    drive.expect("CPU 1 -5000000 ticks from the first one's (TSC_ADJUST): mended", 120)?;
    drive.expect(" kHz, invariant 1, stable 1", 60)?;
    drive.ends(0)?;
    ensure!(!drive.text().contains("can't be mended"), "it is said that it can't be mended");
    Ok(())
}

/// As [`mended`], but with a register that can't be written.
fn can_not_be_mended(drive: &mut Drive) -> Result<()> {
    drive.expect("the time-stamp counter of CPU 1 is about -", 120)?;
    drive.expect("can't be mended: guests are not told that their clock is stable", 10)?;
    drive.expect(" kHz, invariant 0, stable 0", 60)?;
    drive.ends(0).map(|_| ())
}

/// In this image the real-time clock reads as an empty bus does.
fn no_rtc(drive: &mut Drive) -> Result<()> {
    drive.expect("real-time clock shows no date: the wall clock begins in 1970", 120)?;
    drive.ends(0)?;
    let warnings = drive.text().matches("real-time clock").count();
    ensure!(warnings == 1, "the real-time clock is spoken of {warnings} times");
    Ok(())
}

/// The numbers that follow `words` in the text.
fn numbers_after(text: &str, words: &str) -> Result<Vec<u64>> {
    let number = |rest: &str| {
        let digits = rest.split(|c: char| !c.is_ascii_digit()).next().unwrap_or_default();
        digits.parse().with_context(|| format!("{digits:?} behind {words:?} is no number"))
    };
    text.split(words).skip(1).map(number).collect()
}

/// A guest that started before anybody knew when a second begins knows it after two more.
fn seconds(drive: &mut Drive) -> Result<()> {
    drive.ends(0)?;
    let begun = numbers_after(drive.text(), "its time began at the tick ")?;
    let begun = *begun.first().context("it is not said when the guest's time began")?;
    let mut edges = Vec::new();
    for line in drive.text().lines().filter(|line| line.starts_with("second: ")) {
        edges.extend(numbers_after(line, " at ")?);
    }
    let [_, _, last] = edges[..] else { bail!("{} seconds were seen to begin", edges.len()) };
    let into = (begun + last) % 1_000_000_000;
    let off = into.min(1_000_000_000 - into);
    ensure!(off <= CLOSE, "a second begins {off} ns from one of the machine's");
    Ok(())
}
