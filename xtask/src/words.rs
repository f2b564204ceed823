//! Names that were probably meant.

use config::toml::distance;

/// At most `most` of `known` that contain what is nearest to `word`, the nearest first. A name
/// counts by the parts between its hyphens that are most like `word`: `word` may be a piece of it.
pub fn closest<'a>(word: &str, known: impl Iterator<Item = &'a str>, most: usize) -> Vec<&'a str> {
    let word = word.to_lowercase();
    let mut near: Vec<(usize, &str)> = known
        .map(|name| (least_distance(&word, name), name))
        .filter(|(distance, _)| *distance <= 1 + word.len() / 4)
        .collect();
    near.sort_unstable();
    near.into_iter().map(|(_, name)| name).take(most).collect()
}

/// The least distance of `word` from one of the runs of parts of `name`.
fn least_distance(word: &str, name: &str) -> usize {
    let name = name.to_lowercase();
    let starts = || std::iter::once(0).chain(name.match_indices('-').map(|(at, _)| at + 1));
    let ends = || name.match_indices('-').map(|(at, _)| at).chain([name.len()]);
    starts()
        .flat_map(|start| ends().filter_map(move |end| (start < end).then_some((start, end))))
        .filter_map(|(start, end)| name.get(start..end))
        .map(|part| distance(word, part))
        .min()
        .unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_piece_of_a_name_may_be_misspelt() {
        let known = || ["tiny-exits", "tiny-exits-vmx", "debian-shell", "iso-clock"].into_iter();
        assert_eq!(closest("tiny-exit", known(), 5), ["tiny-exits", "tiny-exits-vmx"]);
        assert_eq!(closest("tiny-exits-xmv", known(), 1), ["tiny-exits-vmx"]);
        assert_eq!(closest("shel", known(), 5), ["debian-shell"]);
        assert!(closest("nonsense", known(), 5).is_empty());
    }
}
