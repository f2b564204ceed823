//! Documents that are made of code: the table of settings.

use std::fs;

use anyhow::{Context, Result};
use config::toml::table;

use crate::paths;

/// The document that has the table.
const SETTINGS: &str = "docs/config.md";

/// Compares the documents with what they have to be; with `write`, makes them so.
pub(super) fn faults(write: bool) -> Result<Vec<String>> {
    let path = paths::root().join(SETTINGS);
    let text =
        fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let Some(renewed) = table::renewed(&text) else {
        return Ok(vec![format!("{SETTINGS}: the marks of a table of settings are missing")]);
    };
    if renewed == text {
        return Ok(Vec::new());
    }
    if write {
        fs::write(&path, renewed).with_context(|| format!("cannot write {}", path.display()))?;
        return Ok(Vec::new());
    }
    Ok(vec![format!(
        "{SETTINGS}: its tables are not those of the crate `config`; run `cargo xtask lint --write`"
    )])
}
