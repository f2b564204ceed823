//! Arrows between our crates: the table in `docs/architecture.md` says which may use which.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

/// The heading above the table.
const HEADING: &str = "## Who may use whom";

/// Crates by name, and those that each may use.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Arrows(BTreeMap<String, BTreeSet<String>>);

impl Arrows {
    /// Reads the table: a crate, and those that it may use, each between backticks.
    pub(super) fn read(document: &str) -> Self {
        let rows = document.lines().skip_while(|line| *line != HEADING).skip(1);
        let rows = rows.take_while(|line| !line.starts_with('#'));
        let names = |cell: &str| -> Vec<String> {
            cell.split('`').skip(1).step_by(2).map(str::to_owned).collect()
        };
        Self(
            rows.filter_map(|row| {
                let cells: Vec<&str> = row.split('|').collect();
                let [_, user, used, _] = cells.as_slice() else { return None };
                let user = names(user).into_iter().next()?;
                Some((user, names(used).into_iter().collect()))
            })
            .collect(),
        )
    }

    /// Crates that our crates (`members`, by package name) use and may not, in normal
    /// dependencies.
    pub(super) fn faults(&self, metadata: &Value, members: &BTreeSet<&str>) -> Vec<String> {
        let mut faults = Vec::new();
        for name in self.0.keys().filter(|name| !members.contains(name.as_str())) {
            faults.push(format!("docs/architecture.md: there is no crate `{name}`"));
        }
        for package in metadata["packages"].as_array().into_iter().flatten() {
            let name = package["name"].as_str().unwrap_or_default();
            if package["source"].is_string() || !members.contains(name) {
                continue;
            }
            let Some(allowed) = self.0.get(name) else {
                faults.push(format!("docs/architecture.md: no row says what `{name}` may use"));
                continue;
            };
            let used = package["dependencies"].as_array().into_iter().flatten();
            let used = used.filter(|dependency| dependency["kind"].is_null());
            let used = used.filter_map(|dependency| dependency["name"].as_str());
            for other in used.filter(|other| members.contains(other) && !allowed.contains(*other)) {
                faults.push(format!("`{name}` may not use `{other}`: docs/architecture.md"));
            }
        }
        faults
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn only_what_the_table_names_may_be_used() {
        let arrows = Arrows::read(
            "# A\n\n## Who may use whom\n\n| crate | may use |\n|---|---|\n| `a` | `b`, `c` |\n\
             | `b` | nothing |\n| `gone` | `a` |\n\n## More\n\n| `c` | `a` |\n",
        );
        let package = |name: &str, used: &[(&str, Value)]| {
            let used: Vec<Value> =
                used.iter().map(|(name, kind)| json!({ "name": name, "kind": kind })).collect();
            json!({ "name": name, "source": null, "dependencies": used })
        };
        let metadata = json!({ "packages": [
            package("a", &[("b", Value::Null), ("serde", Value::Null)]),
            package("b", &[("a", Value::Null), ("c", json!("dev"))]),
            package("c", &[]),
        ] });
        let faults = arrows.faults(&metadata, &["a", "b", "c"].into());
        assert_eq!(
            faults,
            [
                "docs/architecture.md: there is no crate `gone`",
                "`b` may not use `a`: docs/architecture.md",
                "docs/architecture.md: no row says what `c` may use",
            ]
        );
    }
}
