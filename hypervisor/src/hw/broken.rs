//! Entries that are broken on purpose, one rule each: the checker has to name
//! the rule, and the CPU to refuse the entry. An entry that the CPU lets in
//! although the manual forbids it is an emulator's gap, which the tests list.
//!
//! A guest whose command line begins with [`COMMAND`] is never started: its
//! vCPU goes through the table instead. The words behind it name cases to leave
//! out, because they would end the emulator.

use crate::journal;
use alloc::string::String;
use core::fmt::{self, Write};

/// The first word of a command line that asks for the broken entries.
const COMMAND: &str = "steward.broken-entries";

/// The names of cases to leave out, if `cmdline` asks for the others.
pub(crate) fn requested(cmdline: &str) -> Option<impl Iterator<Item = &str> + Clone> {
    let mut words = cmdline.split_ascii_whitespace();
    words.next().is_some_and(|first| first == COMMAND).then_some(words)
}

/// The CPU's answer to an entry.
#[derive(Debug)]
pub(super) struct Outcome {
    /// Whether the CPU refused the entry in the way that the broken rule wants.
    pub(super) as_expected: bool,
    /// The answer in words.
    pub(super) words: String,
}

/// How the cases are gone through.
#[derive(Clone, Copy, Debug)]
pub struct Plan<'a> {
    /// The command line, which names the cases to leave out.
    pub cmdline: &'a str,
    /// Ticks of the TSC after which, at about the latest, a guest exits that the CPU
    /// lets in.
    pub slice: u64,
}

impl Plan<'_> {
    /// Whether the case `name` is to be tried.
    pub(super) fn includes(&self, name: &str) -> bool {
        requested(self.cmdline).is_some_and(|mut out| out.all(|word| word != name))
    }
}

/// Counts what agreed.
#[derive(Debug, Default)]
pub(super) struct Tally {
    tried: usize,
    agreed: usize,
}

impl Tally {
    /// Prints the line of one case, whose one broken rule is `rule`: `None`
    /// where the checker found none or several.
    pub(super) fn note(&mut self, name: &str, rule: Option<&dyn fmt::Display>, cpu: &Outcome) {
        let mut verdict = String::new();
        // Writing to a string does not fail.
        let _ = match rule {
            Some(rule) => write!(verdict, "{rule}"),
            None => write!(verdict, "not one rule"),
        };
        let agreed = rule.is_some() && cpu.as_expected;
        self.tried += 1;
        self.agreed += usize::from(agreed);
        journal::stage(
            "broken",
            format_args!(
                "{name}: checker says {verdict}; CPU says {}; {}",
                cpu.words,
                if agreed { "agreed" } else { "NOT agreed" }
            ),
        );
    }

    /// Prints the sum.
    pub(super) fn finish(&self) {
        journal::stage(
            "broken entries",
            format_args!("{} tried, {} agreed", self.tried, self.agreed),
        );
    }
}
