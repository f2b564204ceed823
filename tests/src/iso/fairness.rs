//! The share of the CPU beside guests that attack the scheduler.
//!
//! The first guest is measured: what it computes in windows of its TSC while the
//! others are there, over what it does when they have ended.

use anyhow::{Context, Result, ensure};
use regex_lite::Regex;
use xtask::machine::Machine;

use crate::case::{Build, Case, Scene, Tier};
use crate::drive::Drive;

/// Ticks of a window, and of a phase of an attack: each window sees two phases at most.
/// A slice of 4 ms at either end is 2 % of it, so two neighbours are judged together.
const WINDOW: u64 = 250_000_000;
/// Bursts and sleeps of the attacks, in µs.
const SWEEP: &str = "bursts=10,25,50,100,200,400 sleeps=1,2,3,4,6,8,10 rounds=1";
/// Those that took most, on either machine, from a scheduler that forgot what a sleeper owed.
const WORST: &str = "bursts=25,50 sleeps=3,6,7 rounds=1";

/// The cases.
pub(crate) fn cases() -> Vec<Case> {
    let case = |name: &str, machine, scene, script| Case {
        machine,
        tier: Tier::Full,
        // The build that is released is measured.
        build: Build::Release,
        seconds: 3000,
        ..Case::scene(&format!("iso-{name}"), Scene::Text(scene), script)
    };
    let mut cases = vec![Case {
        tier: Tier::Usual,
        ..case("attack", Machine::QemuSvm, attack(1, 100, WORST), keeps::<1, 480>)
    }];
    for (on, machine) in [("vmx", Machine::BochsVmx), ("svm", Machine::QemuSvm)] {
        let case =
            |name: &str, scene, script| case(&format!("{name}-{on}"), machine, scene, script);
        cases.extend([
            case("attack-one", attack(1, 100, SWEEP), keeps::<1, 480>),
            case("attack-three", attack(3, 100, SWEEP), keeps::<3, 230>),
            case("attack-heavy", attack(1, 10_000, SWEEP), keeps::<1, 950>),
            case("sleeper-200", sleeper("bursts=200 sleeps=6"), keeps::<1, 400>),
            case("sleeper-1000", sleeper("bursts=1000 sleeps=100"), keeps::<1, 450>),
        ]);
    }
    cases.push(case("attack-vmx", Machine::BochsVmx, attack(1, 100, WORST), keeps::<1, 480>));
    // The emulators of AMD-V have one CPU, or CPUs that share one of the computer's.
    cases.push(case("storm-vmx", Machine::BochsVmx, storm(), keeps::<2, 450>));
    cases
}

fn guest(name: &str, kernel: &str, cmdline: &str, rest: &str) -> String {
    format!(
        "[[guest]]\nname = \"{name}\"\nkernel = \"test:{kernel}\"\nmemory = \"32M\"\n\
         cmdline = \"{cmdline}\"\n{rest}\n"
    )
}

/// A guest that computes, of this weight, beside attackers of weight 100.
fn attack(attackers: u32, weight: u32, how: &str) -> String {
    let victim = format!("windows=100000 ticks={WINDOW}");
    let mut text = String::from("[host]\ncpus = 1\nwhen_empty = \"stay\"\n");
    text.push_str(&guest("victim", "steady", &victim, &format!("weight = {weight}")));
    for number in 1..=attackers {
        let how = format!("{how} phase={WINDOW}");
        text.push_str(&guest(&format!("attacker-{number}"), "attack", &how, ""));
    }
    text
}

/// A guest that sleeps briefly beside one that computes.
fn sleeper(how: &str) -> String {
    let victim = guest("victim", "attack", &format!("{how} phase={WINDOW} rounds=100000"), "");
    let other = guest("computes", "steady", &format!("windows=8 ticks={WINDOW}"), "");
    format!("[host]\ncpus = 1\nwhen_empty = \"stay\"\n{victim}{other}")
}

/// A guest that computes on the second CPU, beside one of whose vCPUs one wakes the
/// other. Another guest on the first CPU keeps the two apart.
fn storm() -> String {
    const WINDOW: u64 = 100_000_000;
    let victim = format!("windows=100000 ticks={WINDOW}");
    let victim = guest("victim", "steady", &victim, "affinity = [1]");
    let other = format!("windows=10 ticks={WINDOW}");
    let other = guest("other", "steady", &other, "affinity = [0]");
    let how = format!("storm=1000 phase={WINDOW} rounds=8");
    let attacker = guest("attacker", "attack", &how, "vcpus = 2");
    format!("[host]\ncpus = 2\nwhen_empty = \"stay\"\n{victim}{other}{attacker}")
}

/// The shares of the windows in `text`, in per mille.
fn shares(text: &str) -> Vec<u64> {
    let line = Regex::new(r"window \d+ share=(\d+) [^\r]*\r").expect("the expression is constant");
    line.captures_iter(text).filter_map(|found| found.get(1)?.as_str().parse().ok()).collect()
}

/// The first guest keeps `LEAST` per mille of what it has when alone, in each two windows
/// beside `OTHERS` others.
fn keeps<const OTHERS: usize, const LEAST: u64>(drive: &mut Drive) -> Result<()> {
    for _ in 0..=OTHERS {
        drive.expect("\" starts: ", 300)?;
    }
    let begin = drive.text().rfind("\" starts: ").unwrap_or_default();
    for _ in 0..OTHERS {
        drive.expect("of RAM touched", 3000)?;
    }
    let [end, alone] = [drive.text().find("of RAM touched"), drive.text().rfind("of RAM touched")]
        .map(Option::unwrap_or_default);
    for _ in 0..4 {
        drive.expect("window ", 300)?;
    }
    // Windows in which somebody came or went tell nothing.
    let text = drive.text();
    let beside = shares(text.get(begin..end).unwrap_or_default());
    let beside = beside.get(1..).unwrap_or_default();
    let alone = shares(text.get(alone..).unwrap_or_default());
    let alone = alone.get(1..3).context("no windows when alone")?.iter().sum::<u64>() / 2;
    let pairs = beside.iter().zip(beside.iter().skip(1)).map(|(one, next)| (one + next) / 2);
    let least = pairs.min().unwrap_or_default();
    let mean = beside.iter().sum::<u64>() / (beside.len() as u64).max(1);
    let of = |share: u64| share as f64 / alone.max(1) as f64 * 1000.0;
    println!(
        "       beside {OTHERS}: {:.0} per mille on average, {:.0} at the least, of {alone} alone; {} windows",
        of(mean),
        of(least),
        beside.len()
    );
    ensure!(beside.len() >= 4, "only {} windows beside others: {beside:?}", beside.len());
    ensure!(of(least) >= LEAST as f64, "it kept {:.0} per mille: {beside:?} of {alone}", of(least));
    Ok(())
}
