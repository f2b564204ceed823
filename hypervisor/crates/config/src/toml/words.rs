//! Known words that a word may be a misspelling of.

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

/// How many characters have to be put in, left out, replaced, or swapped with their neighbour to
/// make one word of the other; no character is touched twice.
#[must_use]
pub fn distance(one: &str, other: &str) -> usize {
    let other: Vec<char> = other.chars().collect();
    // Distances of the beginnings of `one` that are shorter by two and by one character from
    // each beginning of `other`.
    let mut before: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=other.len()).collect();
    let mut previous = None;
    for (row, a) in one.chars().enumerate() {
        let mut line = Vec::with_capacity(last.len());
        line.push(row + 1);
        for (column, b) in other.iter().enumerate() {
            let at =
                |line: &[usize], column: usize| line.get(column).copied().unwrap_or(usize::MAX);
            let mut least = at(&last, column).saturating_add(usize::from(a != *b));
            least = least.min(at(&last, column + 1).saturating_add(1));
            least = least.min(at(&line, column).saturating_add(1));
            let swapped = column
                .checked_sub(1)
                .filter(|left| previous == Some(*b) && other.get(*left) == Some(&a));
            if let Some(left) = swapped {
                least = least.min(at(&before, left).saturating_add(1));
            }
            line.push(least);
        }
        before = core::mem::replace(&mut last, line);
        previous = Some(a);
    }
    last.last().copied().unwrap_or(0)
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
            ("ca", "abc", 3),
            ("kitten", "sitting", 3),
        ] {
            assert_eq!(distance(one, other), wanted, "{one} {other}");
            assert_eq!(distance(other, one), wanted, "{other} {one}");
        }
    }
}
