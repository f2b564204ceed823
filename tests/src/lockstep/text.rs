//! Output of the lock-step guest.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};

/// How exactly a machine is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum How {
    /// All that programs see.
    Strict,
    /// Without what emulated CPUs are known to do otherwise.
    Loose,
}

/// The digests of one program on one machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Digests {
    /// Of all that it saw.
    pub strict: String,
    /// Of that without what emulated CPUs are known to do otherwise.
    pub loose: String,
    /// Of its exits.
    pub exits: String,
    /// It saw the same whether or not the hot handler served its exits.
    pub hot_is_cold: bool,
}

/// Reads the lines `D FIRST DIGESTS…`.
///
/// # Errors
/// A line that is not as the guest writes it.
pub fn digests(text: &str) -> Result<BTreeMap<u64, Digests>> {
    let mut found = BTreeMap::new();
    for line in text.lines().filter_map(|line| line.trim_end().strip_prefix("D ")) {
        let mut words = line.split(' ');
        let first = words.next().and_then(|word| word.parse::<u64>().ok());
        let first = first.with_context(|| format!("no seed in {line:?}"))?;
        for (seed, word) in (first..).zip(words) {
            let bare = word.trim_end_matches('!');
            ensure!(bare.len() == 10 && bare.is_ascii(), "no digests: {word:?}");
            let part = |from: usize, to: usize| bare.get(from..to).unwrap_or_default().to_owned();
            found.insert(
                seed,
                Digests {
                    strict: part(0, 4),
                    loose: part(4, 7),
                    exits: part(7, 10),
                    hot_is_cold: bare.len() == word.len(),
                },
            );
        }
    }
    Ok(found)
}

/// One exception, interrupt or exit of an outlined program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// Its place: an offset in the program, or nothing if it was elsewhere.
    pub offset: Option<usize>,
    /// The vector, or the kind of exit (`vmm::trace`).
    pub what: u32,
    /// The error code, DR6 for a debug exception, or the exit's detail.
    pub detail: u64,
    /// Its digest: of a record strict and loose, of a debug exception the same without
    /// DR6, too.
    pub digest: String,
}

impl Step {
    /// The part of the digest that is compared.
    #[must_use]
    pub fn seen(&self, how: How) -> &str {
        self.part(how, 0)
    }

    /// The same without DR6: nothing but of a debug exception.
    #[must_use]
    pub fn seen_but_dr6(&self, how: How) -> &str {
        self.part(how, 6)
    }

    fn part(&self, how: How, from: usize) -> &str {
        let from = from + if how == How::Loose { 3 } else { 0 };
        self.digest.get(from..from + 3).unwrap_or_default()
    }
}

/// Report on a program by `brief=`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Outline {
    /// Exceptions and interrupts.
    pub records: Vec<Step>,
    /// Exits.
    pub exits: Vec<Step>,
    /// The digests of all that it saw: strict (4) and loose (3).
    pub seen: String,
}

/// Reads the lines `R SEED RECORDS…`, `L SEED DIGESTS` and `E SEED EXITS…`.
///
/// # Errors
/// A line that is not as the guest writes it.
pub fn outlines(text: &str) -> Result<BTreeMap<u64, Outline>> {
    let mut found: BTreeMap<u64, Outline> = BTreeMap::new();
    for line in text.lines().map(str::trim_end) {
        if let Some((seed, seen)) = line.strip_prefix("L ").and_then(|rest| rest.split_once(' ')) {
            let seed = seed.parse().with_context(|| format!("no seed in {line:?}"))?;
            seen.clone_into(&mut found.entry(seed).or_default().seen);
            continue;
        }
        let (records, line) = match (line.strip_prefix("R "), line.strip_prefix("E ")) {
            (Some(rest), _) => (true, rest),
            (_, Some(rest)) => (false, rest),
            _ => continue,
        };
        let mut words = line.split(' ');
        let seed = words.next().and_then(|word| word.parse::<u64>().ok());
        let seed = seed.with_context(|| format!("no seed in {line:?}"))?;
        let steps = words.map(step).collect::<Result<Vec<Step>>>()?;
        let outline = found.entry(seed).or_default();
        *(if records { &mut outline.records } else { &mut outline.exits }) = steps;
    }
    Ok(found)
}

/// The first of the exceptions that the two runs of a program saw differently.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Split {
    /// The offset in the program; `None`: it was elsewhere.
    pub place: Option<usize>,
    /// Bits of RFLAGS that differ, where nothing else does.
    pub flags: Option<u64>,
}

/// Looks for it among the records of program `seed` (`C` and `H`).
pub fn first_split(text: &str, seed: u64) -> Option<Split> {
    let records = |run: &str| {
        let start = format!("{run} {seed} ");
        let lines = text.lines().map(str::trim_end);
        lines.filter_map(move |line| Some(line.strip_prefix(&start)?.to_owned()))
    };
    let (cold, hot) = records("C").zip(records("H")).find(|(cold, hot)| cold != hot)?;
    let [cold, hot] = [&cold, &hot].map(|line| line.split(' ').collect::<Vec<_>>());
    let place = cold.get(3)?.strip_prefix('+').and_then(|at| usize::from_str_radix(at, 16).ok());
    let flags = |words: &[&str]| u64::from_str_radix(words.get(FLAGS)?, 16).ok();
    let rest = |words: &[&str]| -> Vec<String> {
        let words = words.iter().enumerate().filter(|(at, _)| *at != FLAGS);
        words.map(|(_, word)| (*word).to_owned()).collect()
    };
    let only_flags = rest(&cold) == rest(&hot);
    let flags = flags(&cold).zip(flags(&hot)).filter(|_| only_flags).map(|(a, b)| a ^ b);
    Some(Split { place, flags })
}

/// Which word of a record is RFLAGS.
const FLAGS: usize = 6;

fn step(word: &str) -> Result<Step> {
    let parts: Vec<&str> = word.split('.').collect();
    let [at, what, detail, digest] = parts.as_slice() else {
        anyhow::bail!("no step: {word:?}");
    };
    let number = |text: &str| {
        u64::from_str_radix(text, 16).with_context(|| format!("no number in {word:?}"))
    };
    let offset = match at.strip_prefix('+') {
        Some(text) => Some(usize::try_from(number(text)?)?),
        None => None,
    };
    Ok(Step {
        offset,
        what: u32::try_from(number(what)?)?,
        detail: number(detail)?,
        digest: (*digest).to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_are_read() {
        let found = digests("x\nD 20 AAAAbbbccc AAAABBBCCC!\r\nD 30 abcdefghi+\r\n").unwrap();
        assert_eq!(found.keys().copied().collect::<Vec<_>>(), [20, 21, 30]);
        assert_eq!(found[&20].strict, "AAAA");
        assert_eq!(found[&20].loose, "bbb");
        assert_eq!(found[&20].exits, "ccc");
        assert!(found[&20].hot_is_cold);
        assert!(!found[&21].hot_is_cold);
        assert!(digests("D 20 AAAA\n").is_err());
        assert!(digests("D x AAAAbbbccc\n").is_err());
    }

    #[test]
    fn where_two_runs_part_is_found() {
        let text = "C 7 13 0 0 +a 18 10 202\r\nC 7 14 0 40 +f 18 10 206 rax=4\r\n\
                    H 7 13 0 0 +a 18 10 202\r\nH 7 14 0 40 +f 18 10 202 rax=4\r\nH 8 1\r\n";
        assert_eq!(first_split(text, 7), Some(Split { place: Some(0xf), flags: Some(4) }));
        assert_eq!(first_split(text, 8), None);
        let text = "C 9 14 18 4000a001 4000a001 8 10 47206 rax=4\r\n\
                    H 9 14 18 4000a001 4000a001 8 10 47226 rax=4\r\n";
        assert_eq!(first_split(text, 9), Some(Split { place: None, flags: Some(0x20) }));
        let text = text.replace("47226 rax=4", "47226 rax=5");
        assert_eq!(first_split(&text, 9), Some(Split { place: None, flags: None }));
    }

    #[test]
    fn outlines_are_read() {
        let text = "R 7 +1a.d.0.abcdef 2002ed.82.0.ABCDEF\r\nE 7 +1a.2.fee00300.abc\r\nE 8\r\n";
        let found = outlines(text).unwrap();
        assert_eq!(found.len(), 2);
        let seven = &found[&7];
        assert_eq!(seven.records.len(), 2);
        assert_eq!(seven.records[0].offset, Some(0x1a));
        assert_eq!(seven.records[0].what, 13);
        assert_eq!(seven.records[1].offset, None);
        assert_eq!(seven.exits[0].detail, 0xfee0_0300);
        assert!(found[&8].exits.is_empty());
        assert!(outlines("R 7 +1a.d.0\n").is_err());
    }
}
