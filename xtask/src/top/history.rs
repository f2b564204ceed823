//! The CPU shares of the last minute.

use std::collections::{BTreeMap, VecDeque};

use super::picture::Row;

/// As long as shares are kept, in nanoseconds.
const MINUTE: u64 = 60 * 1_000_000_000;

/// A guest's share between two looks.
#[derive(Debug, Clone, Copy)]
struct Sample {
    from_ns: u64,
    to_ns: u64,
    cpu: u64,
}

/// The shares of all guests, by number and name.
#[derive(Debug, Default)]
pub(super) struct History(BTreeMap<(u32, String), VecDeque<Sample>>);

impl History {
    /// Forgets all.
    pub(super) fn clear(&mut self) {
        self.0.clear();
    }

    /// Adds what these guests used between two times, and forgets other guests.
    pub(super) fn push(&mut self, from_ns: u64, to_ns: u64, rows: &[Row]) {
        self.0.retain(|(number, name), _| {
            rows.iter().any(|row| (row.number, &row.name) == (*number, name))
        });
        for row in rows {
            let Some(cpu) = row.cpu else { continue };
            let samples = self.0.entry((row.number, row.name.clone())).or_default();
            samples.push_back(Sample { from_ns, to_ns, cpu });
            while samples.front().is_some_and(|sample| sample.to_ns.saturating_add(MINUTE) <= to_ns)
            {
                samples.pop_front();
            }
        }
    }

    /// The minute before `now` in equal parts: of each the highest share.
    pub(super) fn minute(&self, number: u32, name: &str, now: u64, parts: u16) -> Vec<Option<u64>> {
        let samples = self.0.get(&(number, name.to_owned()));
        let part = |index: u16| {
            // Counted back from now, as the machine may be younger than a minute.
            let back = |index: u16| MINUTE / u64::from(parts) * u64::from(index);
            let to = now.checked_sub(back(parts - 1 - index))?;
            let from = now.saturating_sub(back(parts - index));
            let within =
                samples?.iter().filter(|sample| sample.from_ns < to && from < sample.to_ns);
            within.map(|sample| sample.cpu).max()
        };
        (0..parts).map(part).collect()
    }
}
