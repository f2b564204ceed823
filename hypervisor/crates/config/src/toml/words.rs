//! Known words that a word may be a misspelling of.

use alloc::collections::BTreeMap;
use alloc::vec;
use alloc::vec::Vec;

/// The word of `known` that `word` is a misspelling of, if there is one.
pub fn similar<'a>(word: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let word = word.to_lowercase();
    known
        .map(|other| (distance(&word, &other.to_lowercase()), other))
        .filter(|(distance, other)| *distance <= 1 + other.len() / 4)
        .min()
        .map(|(_, other)| other)
}

/// Distance of two words by Damerau and Levenshtein: characters that have to be put in, left out,
/// replaced, or swapped with their neighbour to make one of the other.
#[must_use]
pub fn distance(one: &str, other: &str) -> usize {
    let other: Vec<char> = other.chars().collect();
    let far = one.chars().count() + other.len();
    // Distances of the beginnings of `one`, a row for each, from those of `other`.
    let mut rows: Vec<Vec<usize>> = vec![(0..=other.len()).collect()];
    let at = |rows: &[Vec<usize>], row: usize, column: usize| {
        rows.get(row).and_then(|line| line.get(column)).copied().unwrap_or(far)
    };
    // The last row, from 1, of each character of `one` so far.
    let mut seen: BTreeMap<char, usize> = BTreeMap::new();
    for (row, a) in one.chars().enumerate() {
        let mut line = vec![row + 1];
        // The last column, from 1, at which `other` had this row's character.
        let mut hit = 0usize;
        for (column, b) in other.iter().enumerate() {
            let before = seen.get(b).copied().unwrap_or(0);
            let replaced = at(&rows, row, column) + usize::from(a != *b);
            let left_out = at(&rows, row, column + 1) + 1;
            let put_in = line.last().map_or(far, |least| least + 1);
            let swapped = match (before.checked_sub(1), hit.checked_sub(1)) {
                (Some(up), Some(left)) => at(&rows, up, left) + (row - before) + 1 + (column - hit),
                _ => far,
            };
            line.push(replaced.min(left_out).min(put_in).min(swapped));
            if a == *b {
                hit = column + 1;
            }
        }
        rows.push(line);
        seen.insert(a, row + 1);
    }
    at(&rows, rows.len() - 1, other.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn misspellings() {
        let known = || ["weight", "watchdog", "memory", "cap"].into_iter();
        assert_eq!(similar("wieght", known()), Some("weight"));
        assert_eq!(similar("Memory", known()), Some("memory"));
        assert_eq!(similar("gap", known()), Some("cap"));
        assert_eq!(similar("priority", known()), None);
    }

    #[test]
    fn distances() {
        for (one, other, wanted) in [
            ("", "", 0),
            ("", "abc", 3),
            ("abc", "", 3),
            ("abc", "abc", 0),
            ("abc", "abd", 1),
            ("abc", "acb", 1),
            ("abc", "bc", 1),
            ("ca", "abc", 2),
            ("wixeght", "weight", 2),
            ("nmxae", "name", 2),
            ("kitten", "sitting", 3),
        ] {
            assert_eq!(distance(one, other), wanted, "{one} {other}");
            assert_eq!(distance(other, one), wanted, "{other} {one}");
        }
    }
}
