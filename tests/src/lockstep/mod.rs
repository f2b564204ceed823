//! Lock step: the same random programs on several machines must see the same
//! and exit alike (`docs/lockstep.md`).
//!
//! Each machine runs all of them in one boot and prints a few characters for
//! each. If those differ, the programs in question run again and tell more:
//! the first difference is found and looked up among the [`known`] ones. One
//! that is not known fails the case, with the program's listing.

pub mod known;
pub mod listing;
pub mod text;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use micro::{Program, Vendor};
use xtask::machine::Machine;

use known::{Difference, Kind};
use text::{Digests, How, Outline};

/// One program in so many may differ on a machine: each is looked at closely.
const LOOKED_AT: u64 = 10;
/// One in so many may differ once and not when it is looked at, and one in so many
/// behind an RCL or RCR.
const SELDOM: u64 = 500;
/// Bytes of the numbers of the programs that are asked about in one boot: a command line
/// has at most 2,047.
const ASKED_AT_ONCE: usize = 1900;
/// How many unexplained differences are reported in full.
const REPORTED: usize = 3;
/// The machine that the others are compared with.
const REFERENCE: Machine = Machine::BochsVmx;
/// The others. The first emulates the same CPU as the reference: there all must
/// be the same. The second's CPU is another: known differences are left out.
const OTHERS: [(Machine, How); 2] =
    [(Machine::BochsSvm, How::Strict), (Machine::QemuSvm, How::Loose)];

/// Boots the lock-step guest on a machine with a command line, writes its
/// serial log to a file, and returns what it printed.
pub type Boot<'a> = dyn Fn(Machine, &str, &Path) -> Result<String> + 'a;

/// Compares `count` programs; the logs go to files beginning with `log`.
///
/// # Errors
/// Machines that did not get through, and differences that are not explained.
pub fn run(count: u64, log: &Path, boot: &Boot<'_>) -> Result<String> {
    let file =
        |machine: Machine, what: &str| log.with_extension(format!("{}{what}.log", machine.name()));
    let all = |machine| -> Result<BTreeMap<u64, Digests>> {
        let text = boot(machine, &format!("seed=0 count={count}"), &file(machine, ""))
            .with_context(|| machine.name().to_owned())?;
        let found = text::digests(&text).with_context(|| machine.name().to_owned())?;
        let missing = (0..count).find(|seed| !found.contains_key(seed));
        ensure!(missing.is_none(), "{}: no digest of seed {missing:?}", machine.name());
        for (seed, digests) in &found {
            let known = || {
                let program = Program::generate(*seed, Vendor::Intel);
                text::first_split(&text, *seed)
                    .is_some_and(|at| known::differs_by_itself(machine, &program, at))
            };
            ensure!(
                digests.hot_is_cold || known(),
                "{}: seed {seed} sees something else where the hot handler serves its exits",
                machine.name()
            );
        }
        Ok(found)
    };
    let reference = all(REFERENCE)?;
    let mut suspects = Vec::new();
    let mut asked = BTreeSet::new();
    for (machine, how) in OTHERS {
        let seeds = differing(&reference, &all(machine)?, how);
        ensure!(
            seeds.len() as u64 <= (count / LOOKED_AT).max(1),
            "{} of {count} programs differ between {} and {}, the first: {:?}",
            seeds.len(),
            REFERENCE.name(),
            machine.name(),
            seeds.iter().take(10).collect::<Vec<_>>()
        );
        asked.extend(seeds.iter().copied());
        suspects.push((machine, how, seeds));
    }
    if asked.is_empty() {
        return Ok(format!("{count} programs, no difference"));
    }
    let outlines = |machine, seeds: &BTreeSet<u64>| -> Result<BTreeMap<u64, Outline>> {
        let mut found = BTreeMap::new();
        for (turn, seeds) in lists(seeds, ASKED_AT_ONCE).iter().enumerate() {
            let words = format!("brief={seeds}");
            let log = file(machine, &format!("-brief-{turn}"));
            found.extend(text::outlines(&boot(machine, &words, &log)?)?);
        }
        Ok(found)
    };
    // Those that see and do the same on a machine of How::Strict may tell it there: its
    // serial line is five times as quick.
    let mut reference = BTreeMap::new();
    let mut left = asked;
    for (machine, _, seeds) in suspects.iter().filter(|(_, how, _)| *how == How::Strict) {
        let same = left.difference(seeds).copied().collect();
        left.retain(|seed| seeds.contains(seed));
        reference.extend(outlines(*machine, &same)?);
    }
    reference.extend(outlines(REFERENCE, &left)?);
    let mut explained: BTreeMap<&str, usize> = BTreeMap::new();
    let mut unexplained = Vec::new();
    let most = usize::try_from(count / SELDOM)?.max(1);
    for (machine, how, seeds) in suspects {
        let other = if seeds.is_empty() { BTreeMap::new() } else { outlines(machine, &seeds)? };
        for seed in &seeds {
            let program = Program::generate(*seed, Vendor::Intel);
            let (Some(a), Some(b)) = (reference.get(seed), other.get(seed)) else {
                bail!("{}: nothing told of seed {seed}", machine.name());
            };
            let difference = first_difference(a, b, how);
            let why = match &difference {
                Some(d) => known::explain(machine, &program, (a, b), d),
                // Only where real time has a part in it.
                None if how == How::Loose && same_now(a, b) => Some(known::NOT_AGAIN),
                None => None,
            };
            let why = why.map(|name| (name, explained.entry(name).or_default()));
            match why {
                Some((name, times)) if !known::SELDOM.contains(&name) || *times < most => {
                    *times += 1
                }
                _ => unexplained.push(report(machine, &program, difference.as_ref())),
            }
        }
    }
    if !unexplained.is_empty() {
        bail!(
            "{} difference(s) that nothing explains:\n{}\n\nAll of them:\n{}",
            unexplained.len(),
            unexplained.iter().take(REPORTED).cloned().collect::<Vec<_>>().join("\n"),
            unexplained.iter().filter_map(|one| one.lines().next()).collect::<Vec<_>>().join("\n")
        );
    }
    let told: Vec<String> =
        explained.iter().map(|(name, times)| format!("{name}: {times}")).collect();
    Ok(format!("{count} programs; explained differences: {}", told.join(", ")))
}

/// The numbers with commas between them, in as many lists as it takes for each to have
/// at most `most` bytes.
fn lists(seeds: &BTreeSet<u64>, most: usize) -> Vec<String> {
    let mut lists: Vec<String> = Vec::new();
    for seed in seeds {
        let seed = seed.to_string();
        match lists.last_mut().filter(|list| list.len() + 1 + seed.len() <= most) {
            Some(list) => {
                list.push(',');
                list.push_str(&seed);
            }
            None => lists.push(seed),
        }
    }
    lists
}

/// Programs whose digests differ.
fn differing(a: &BTreeMap<u64, Digests>, b: &BTreeMap<u64, Digests>, how: How) -> BTreeSet<u64> {
    let same = |a: &Digests, b: &Digests| {
        let seen = match how {
            How::Strict => a.strict == b.strict,
            How::Loose => a.loose == b.loose,
        };
        seen && a.exits == b.exits
    };
    a.iter()
        .filter(|(seed, digests)| b.get(seed).is_none_or(|other| !same(digests, other)))
        .map(|(seed, _)| *seed)
        .collect()
}

/// The first record or exit that differs: that which stands first in the program,
/// or else the record; nothing where only what was left at the end differs.
fn first_difference(a: &Outline, b: &Outline, how: How) -> Option<Difference> {
    let records = |step: &text::Step| (step.offset, step.what, step.seen(how).to_owned());
    let exits = |step: &text::Step| (step.offset, step.what, step.detail, step.digest.clone());
    let record = difference(Kind::Record, &a.records, &b.records, records);
    let exit = difference(Kind::Exit, &a.exits, &b.exits, exits);
    // On the reference: the other may be anywhere by now.
    let place = |difference: &Option<Difference>| difference.as_ref()?.a.as_ref()?.offset;
    match (place(&record), place(&exit)) {
        (Some(record), Some(before)) if before < record => exit,
        _ => record.or(exit),
    }
}

/// The two machines saw the same when they told.
fn same_now(a: &Outline, b: &Outline) -> bool {
    let loose = |outline: &Outline| outline.seen.get(4..).map(str::to_owned);
    loose(a).is_some() && loose(a) == loose(b)
}

fn difference<T: PartialEq>(
    kind: Kind,
    a: &[text::Step],
    b: &[text::Step],
    key: impl Fn(&text::Step) -> T,
) -> Option<Difference> {
    let index = (0..a.len().max(b.len()))
        .find(|index| a.get(*index).map(&key) != b.get(*index).map(&key))?;
    Some(Difference { kind, index, a: a.get(index).cloned(), b: b.get(index).cloned() })
}

fn report(machine: Machine, program: &Program, difference: Option<&Difference>) -> String {
    let what = match difference {
        None => "what it left at the end".to_owned(),
        Some(d) => format!("{:?} {}: {:x?}\n  against {:x?}", d.kind, d.index, d.a, d.b),
    };
    format!(
        "seed {} on {} and {}: {what}\n{}",
        program.seed,
        REFERENCE.name(),
        machine.name(),
        listing::of(program)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_boot_is_asked_about_no_more_than_its_command_line_takes() {
        let seeds: BTreeSet<u64> = (9_900..10_400).collect();
        let lists = lists(&seeds, ASKED_AT_ONCE);
        assert!(lists.iter().all(|list| list.len() <= ASKED_AT_ONCE));
        let back: BTreeSet<u64> = lists
            .iter()
            .flat_map(|list| list.split(','))
            .map(|seed| seed.parse().unwrap())
            .collect();
        assert_eq!((back, lists.len()), (seeds, 2));
    }

    #[test]
    fn what_was_seen_is_compared_loosely() {
        let of = |seen: &str| text::outlines(&format!("L 1 {seen}\n")).unwrap().remove(&1).unwrap();
        assert!(same_now(&of("AAAAbbb"), &of("CCCCbbb")));
        assert!(!same_now(&of("AAAAbbb"), &of("AAAAbbc")));
        assert!(!same_now(&Outline::default(), &Outline::default()));
    }

    fn outline(records: &str, exits: &str) -> Outline {
        let text = format!("R 1 {records}\nE 1 {exits}\n");
        text::outlines(&text).unwrap().remove(&1).unwrap()
    }

    #[test]
    fn the_first_difference_is_found() {
        let a = outline("+1.d.0.aaabbb +5.6.0.cccddd", "+1.3.0.abc");
        let b = outline("+1.d.0.xxxbbb +5.6.0.cccddd", "+1.3.0.abd");
        let strict = first_difference(&a, &b, How::Strict).unwrap();
        assert_eq!((strict.kind, strict.index), (Kind::Record, 0));
        let loose = first_difference(&a, &b, How::Loose).unwrap();
        assert_eq!((loose.kind, loose.index), (Kind::Exit, 0));
        assert_eq!(first_difference(&a, &a, How::Strict), None);
        // The exit stands before the record.
        let b = outline("+1.d.0.aaabbb +5.6.0.xxxxxx", "+1.3.1.abc");
        let before = first_difference(&a, &b, How::Strict).unwrap();
        assert_eq!((before.kind, before.index), (Kind::Exit, 0));
        let shorter = outline("+1.d.0.aaabbb", "+1.3.0.abc");
        let end = first_difference(&a, &shorter, How::Strict).unwrap();
        assert_eq!((end.index, end.b), (1, None));
    }

    #[test]
    fn seeds_differ_by_what_is_compared() {
        let a = text::digests("D 0 AAAAbbbccc AAAAbbbccc AAAAbbbccc\n").unwrap();
        let b = text::digests("D 0 AAAXbbbccc AAAAbbbccX AAAAbbbccc\n").unwrap();
        assert_eq!(differing(&a, &b, How::Strict), BTreeSet::from([0, 1]));
        assert_eq!(differing(&a, &b, How::Loose), BTreeSet::from([1]));
    }

    /// A boot that answers from a script, as if it were the guest.
    #[test]
    fn an_unexplained_difference_fails_and_a_known_one_does_not() {
        let boot = |odd: &'static str| {
            move |machine: Machine, words: &str, _: &Path| -> Result<String> {
                let own = machine == Machine::QemuSvm;
                Ok(match (words.starts_with("seed="), own) {
                    (true, false) => "D 0 AAAAbbbccc\n".to_owned(),
                    (true, true) => "D 0 AAAAbbXccc\n".to_owned(),
                    (false, false) => "R 0 +0.d.0.aaabbb\nE 0\n".to_owned(),
                    (false, true) => format!("R 0 {odd}\nE 0\n"),
                })
            }
        };
        let log = Path::new("x.log");
        let error = run(1, log, &boot("+0.d.0.aaaXXX")).unwrap_err();
        assert!(format!("{error:#}").contains("nothing explains"), "{error:#}");
        assert!(run(2, log, &boot("+0.d.0.aaaXXX")).is_err(), "a seed without a digest");
    }
}
