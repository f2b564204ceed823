//! Resident lines by subject: the groups of the table in `docs/architecture.md`.

use std::collections::BTreeMap;
use std::path::Path;

/// The heading above the table.
const HEADING: &str = "## Lines by subject";

/// The groups, in their order, and the place of each path in them.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Groups {
    pub(super) names: Vec<String>,
    /// A folder or a file from the project's root, and the number of its group.
    places: BTreeMap<String, usize>,
}

impl Groups {
    /// Reads the table: `| group | place, place, … |`, each place between backticks.
    pub(super) fn read(document: &str) -> Self {
        let mut groups = Self::default();
        let rows = document.lines().skip_while(|line| *line != HEADING).skip(1);
        for row in rows.take_while(|line| !line.starts_with('#')) {
            let cells: Vec<&str> = row.split('|').map(str::trim).collect();
            let [_, name, places, _] = cells.as_slice() else { continue };
            let places: Vec<&str> = places.split('`').skip(1).step_by(2).collect();
            if places.is_empty() {
                continue;
            }
            groups.names.push((*name).to_owned());
            let number = groups.names.len() - 1;
            groups.places.extend(places.into_iter().map(|place| (place.to_owned(), number)));
        }
        groups
    }

    /// The group of a file: that of the longest place which is the file or a folder above it.
    pub(super) fn of(&self, file: &Path) -> Option<usize> {
        file.ancestors().find_map(|place| self.places.get(place.to_str()?)).copied()
    }

    /// Places at which nothing is.
    pub(super) fn missing(&self, root: &Path) -> Vec<&str> {
        let is_missing = |place: &&str| !root.join(place).exists();
        self.places.keys().map(String::as_str).filter(is_missing).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_belongs_to_the_nearest_place() {
        let document = "# A\n\n| not | `this` |\n\n## Lines by subject\n\nText.\n\n| group | files |\n|---|---|\n\
                        | one | `a/src`, `b` |\n| two | `a/src/deep`, `a/src/x.rs` |\n\n## More\n\n| no | `c` |\n";
        let groups = Groups::read(document);
        assert_eq!(groups.names, ["one", "two"]);
        for (file, group) in [
            ("a/src/y.rs", Some(0)),
            ("b/z/y.rs", Some(0)),
            ("a/src/deep/er/y.rs", Some(1)),
            ("a/src/x.rs", Some(1)),
            ("a/src/x.rs.bak", Some(0)),
            ("c/y.rs", None),
            ("this", None),
        ] {
            assert_eq!(groups.of(Path::new(file)), group, "{file}");
        }
        let missing = Groups::read(document).missing(Path::new("/nowhere")).len();
        assert_eq!(missing, 4);
    }
}
