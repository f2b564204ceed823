//! Other people's code: under which licences, from where, whether twice, and whether it is used.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::Value;

/// Licences that allow what the project's own allow; a package needs one of them, or all that
/// it names with AND.
const LICENCES: [&str; 10] = [
    "0BSD",
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "ISC",
    "MIT",
    "Unicode-3.0",
    "Unlicense",
    "Zlib",
];

/// Packages of which the image has two versions, and why that can't be helped.
const TWICE: [(&str, &str); 1] =
    [("spin", "iced-x86 brings an older one, by way of lazy_static, which has no newer one")];

/// The reasons against the packages that cargo resolved: one line each.
pub(super) fn faults(metadata: &Value, resident: &BTreeSet<String>) -> Vec<String> {
    let mut faults = Vec::new();
    let mut versions: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    let mut registries = BTreeSet::new();
    for package in metadata["packages"].as_array().into_iter().flatten() {
        let (name, version) = (text(&package["name"]), text(&package["version"]));
        let licence = text(&package["license"]);
        if !is_allowed(licence) {
            faults.push(format!(
                "{name} {version}: the licence `{licence}` is not among those allowed"
            ));
        }
        match package["source"].as_str() {
            // Ours.
            None => {}
            Some(source) if source.starts_with("registry+") => {
                registries.insert(source);
            }
            Some(_) => faults.push(format!("{name} {version}: comes from no registry of packages")),
        }
        if resident.contains(text(&package["id"])) {
            versions.entry(name).or_default().push(version);
        }
    }
    if registries.len() > 1 {
        faults.push(format!("packages come from {} registries", registries.len()));
    }
    let is_known = |name: &str| TWICE.iter().any(|(known, _)| *known == name);
    for (name, versions) in versions.iter().filter(|(_, versions)| versions.len() > 1) {
        if is_known(name) {
            continue;
        }
        faults.push(format!(
            "{name}: {} versions are in the image: {}",
            versions.len(),
            versions.join(", ")
        ));
    }
    faults
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// Dependencies of our crates (`members`) that no file of theirs names.
pub(super) fn unused(metadata: &Value, members: &BTreeSet<&str>) -> Result<Vec<String>> {
    let mut faults = Vec::new();
    for package in metadata["packages"].as_array().into_iter().flatten() {
        let name = text(&package["name"]);
        if package["source"].is_string() || !members.contains(name) {
            continue;
        }
        let folder = Path::new(text(&package["manifest_path"])).parent().unwrap_or(Path::new(""));
        let mut sources = String::new();
        for part in ["src", "tests", "build.rs"] {
            read(&folder.join(part), &mut sources)?;
        }
        for dependency in package["dependencies"].as_array().into_iter().flatten() {
            let used = text(&dependency["name"]);
            if !names(&sources, &used.replace('-', "_")) {
                faults.push(format!("`{name}` does not use its dependency `{used}`"));
            }
        }
    }
    Ok(faults)
}

/// Whether a text of Rust names a crate.
fn names(sources: &str, name: &str) -> bool {
    sources.match_indices(name).any(|(at, _)| {
        let before = sources[..at].chars().next_back();
        let behind = &sources[at + name.len()..];
        let is_whole = !before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == ':');
        is_whole
            && (behind.starts_with("::") || behind.starts_with(';') || behind.starts_with(" as "))
    })
}

/// Appends what stands in the files of Rust in `path`, and in those that they include from
/// elsewhere by `#[path]`.
fn read(path: &Path, sources: &mut String) -> Result<()> {
    if path.is_dir() {
        for entry in fs::read_dir(path)? {
            read(&entry?.path(), sources)?;
        }
    } else if path.extension().is_some_and(|extension| extension == "rs") && path.exists() {
        let text = fs::read_to_string(path)?;
        let folder = path.parent().unwrap_or(Path::new(""));
        for line in text.lines() {
            let included = line.trim().strip_prefix("#[path = \"");
            if let Some(elsewhere) = included.and_then(|rest| rest.strip_suffix("\"]")) {
                let elsewhere = folder.join(elsewhere);
                sources.push_str(&fs::read_to_string(&elsewhere).with_context(|| {
                    format!("{} includes {}", path.display(), elsewhere.display())
                })?);
            }
        }
        sources.push_str(&text);
    }
    Ok(())
}

/// Whether a licence expression (SPDX) can be satisfied.
fn is_allowed(expression: &str) -> bool {
    let is_one = |licence: &str| LICENCES.contains(&licence.trim());
    // Older packages write a slash.
    let choices = expression.replace('/', " OR ");
    let mut parts = choices.split(" AND ").map(|part| part.trim().trim_matches(['(', ')']));
    !expression.is_empty() && parts.all(|part| part.split(" OR ").any(is_one))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_licence_is_allowed_if_one_of_its_choices_is() {
        for good in
            ["MIT", "MIT OR GPL-2.0", "GPL-3.0/Apache-2.0", "(MIT OR Apache-2.0) AND Unicode-3.0"]
        {
            assert!(is_allowed(good), "{good}");
        }
        for bad in ["", "GPL-2.0", "MIT AND GPL-2.0", "MITX", "(MIT OR ISC) AND LGPL-2.1"] {
            assert!(!is_allowed(bad), "{bad}");
        }
    }

    #[test]
    fn a_crate_is_named_by_a_path_of_its_own() {
        for (text, is_named) in [
            ("use serde::Serialize;", true),
            ("pub use serde;", true),
            ("extern crate serde as s;", true),
            ("#[derive(serde::Serialize)]", true),
            ("use serde_json::Value;", false),
            ("my::serde::x", false),
            ("// about serde", false),
        ] {
            assert_eq!(names(text, "serde"), is_named, "{text}");
        }
    }

    #[test]
    fn sources_and_versions_are_looked_at() {
        let package = |name: &str, version: &str, source: Value| {
            json!({ "id": format!("{name} {version}"), "name": name, "version": version,
                    "license": "MIT", "source": source })
        };
        let packages = [
            package("ours", "1", Value::Null),
            package("good", "1", json!("registry+x")),
            package("twice", "1", json!("registry+x")),
            package("twice", "2", json!("registry+x")),
            package("spin", "1", json!("registry+x")),
            package("spin", "2", json!("registry+x")),
            package("tool", "1", json!("registry+x")),
            package("tool", "2", json!("registry+x")),
            package("away", "1", json!("git+y")),
        ];
        let resident = ["ours 1", "good 1", "twice 1", "twice 2", "tool 1", "spin 1", "spin 2"]
            .map(str::to_owned)
            .into();
        let faults = faults(&json!({ "packages": packages }), &resident);
        assert_eq!(faults.len(), 2, "{faults:?}");
        assert!(faults[0].starts_with("away 1: comes from no registry"), "{faults:?}");
        assert_eq!(faults[1], "twice: 2 versions are in the image: 1, 2");
    }
}
