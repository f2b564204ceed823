//! `lint`: how large the image's source is, and where `unsafe` stands.
//!
//! "Resident lines" are the lines of Rust that can end up in the image: ours and
//! those of every dependency that cargo resolves for the bare target. Blank lines
//! and lines that are only comment do not count, nor do test modules in files of
//! their own.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::Value;

use crate::kernel::TARGET;
use crate::ui::Out;
use crate::{cmd, paths};

/// What is counted in a crate's source.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Counts {
    lines: usize,
    /// `unsafe` in any form: block, function, implementation, `extern`.
    unsafes: usize,
}

/// Prints the counts; status 1 if `unsafe` stands where none may be.
pub fn lint() -> Result<u8> {
    let output = cmd::output(cmd::cargo().current_dir(paths::root()).args([
        "metadata",
        "--format-version=1",
        "--filter-platform",
        TARGET,
    ]))?;
    let metadata: Value =
        serde_json::from_slice(&output).context("cannot read cargo's metadata")?;
    let resident = resident(&metadata)?;
    let members: BTreeSet<&str> = strings(&metadata["workspace_members"]).collect();

    writeln!(Out, "{:<28} {:>9} {:>8}", "crate", "lines", "unsafe")?;
    let mut bad = Vec::new();
    for package in packages(&metadata).filter(|package| members.contains(package.id)) {
        let counts = count_dir(&package.dir.join("src"))?;
        writeln!(Out, "{:<28} {:>9} {:>8}", package.name, counts.lines, counts.unsafes)?;
        let relative = package.dir.strip_prefix(paths::root()).unwrap_or(&package.dir);
        if counts.unsafes > 0
            && (relative.starts_with("hypervisor/crates") || relative.starts_with("xtask"))
        {
            bad.push(package.name);
        }
    }
    writeln!(Out)?;
    writeln!(Out, "{:<28} {:>9} {:>8}", "resident in the image", "lines", "unsafe")?;
    let mut ours = Counts::default();
    let mut others = Counts::default();
    for package in packages(&metadata).filter(|package| resident.contains(package.id)) {
        let counts = count_dir(&package.dir.join("src"))?;
        let sum = if members.contains(package.id) { &mut ours } else { &mut others };
        sum.lines += counts.lines;
        sum.unsafes += counts.unsafes;
        if !members.contains(package.id) {
            writeln!(Out, "  {:<26} {:>9} {:>8}", package.name, counts.lines, counts.unsafes)?;
        }
    }
    writeln!(Out, "{:<28} {:>9} {:>8}", "dependencies", others.lines, others.unsafes)?;
    writeln!(Out, "{:<28} {:>9} {:>8}", "ours", ours.lines, ours.unsafes)?;
    writeln!(
        Out,
        "{:<28} {:>9} {:>8}",
        "resident lines",
        ours.lines + others.lines,
        ours.unsafes + others.unsafes
    )?;
    for name in &bad {
        writeln!(Out, "error: `unsafe` in {name}: the pure crates and xtask may have none")?;
    }
    Ok(u8::from(!bad.is_empty()))
}

struct Package<'a> {
    id: &'a str,
    name: &'a str,
    dir: PathBuf,
}

fn packages(metadata: &Value) -> impl Iterator<Item = Package<'_>> {
    metadata["packages"].as_array().into_iter().flatten().filter_map(|package| {
        let manifest = Path::new(package["manifest_path"].as_str()?);
        Some(Package {
            id: package["id"].as_str()?,
            name: package["name"].as_str()?,
            dir: manifest.parent()?.to_path_buf(),
        })
    })
}

fn strings(value: &Value) -> impl Iterator<Item = &str> {
    value.as_array().into_iter().flatten().filter_map(Value::as_str)
}

/// The packages that the hypervisor reaches by normal dependencies. Procedural
/// macros run in the compiler and are not in the image, nor is what only they need.
fn resident(metadata: &Value) -> Result<BTreeSet<String>> {
    let macros: BTreeSet<&str> = metadata["packages"]
        .as_array()
        .into_iter()
        .flatten()
        .filter(|package| {
            package["targets"]
                .as_array()
                .into_iter()
                .flatten()
                .any(|target| strings(&target["kind"]).any(|kind| kind == "proc-macro"))
        })
        .filter_map(|package| package["id"].as_str())
        .collect();
    let mut edges: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for node in metadata["resolve"]["nodes"].as_array().into_iter().flatten() {
        let Some(id) = node["id"].as_str() else { continue };
        let normal = node["deps"].as_array().into_iter().flatten().filter(|dep| {
            dep["dep_kinds"].as_array().into_iter().flatten().any(|kind| kind["kind"].is_null())
        });
        edges.insert(id, normal.filter_map(|dep| dep["pkg"].as_str()).collect());
    }
    let root = packages(metadata)
        .find(|package| package.name == "hypervisor")
        .context("there is no package `hypervisor`")?;
    let mut found = BTreeSet::new();
    let mut open = vec![root.id];
    while let Some(id) = open.pop() {
        if !macros.contains(id) && found.insert(id.to_owned()) {
            open.extend(edges.get(id).into_iter().flatten().copied());
        }
    }
    Ok(found)
}

fn count_dir(dir: &Path) -> Result<Counts> {
    let mut counts = Counts::default();
    let Ok(entries) = fs::read_dir(dir) else { return Ok(counts) };
    for entry in entries.flatten() {
        let path = entry.path();
        let name = entry.file_name();
        let more = if path.is_dir() && name != "tests" {
            count_dir(&path)?
        } else if path.extension().is_some_and(|extension| extension == "rs") && name != "tests.rs"
        {
            let text =
                fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
            count(&String::from_utf8_lossy(&text))
        } else {
            continue;
        };
        counts.lines += more.lines;
        counts.unsafes += more.unsafes;
    }
    Ok(counts)
}

/// Counts in one file: reads it as far as needed to tell code from comments,
/// strings and characters.
fn count(text: &str) -> Counts {
    let mut counts = Counts::default();
    let mut code = String::new();
    strip(text, &mut code);
    for line in code.lines() {
        if line.trim().is_empty() {
            continue;
        }
        counts.lines += 1;
        let words = line.split(|c: char| !c.is_alphanumeric() && c != '_');
        counts.unsafes += words.filter(|word| *word == "unsafe").count();
    }
    counts
}

/// Copies `text` without comments; strings and characters become `""`.
fn strip(text: &str, out: &mut String) {
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let length = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            let end = block_comment(rest);
            keep_lines(rest, end, out);
            end
        } else if let Some(end) = raw_string(rest, out) {
            keep_string(rest, end, out);
            end
        } else if first == '"' {
            let end = quoted(rest, '"');
            keep_string(rest, end, out);
            end
        } else if let Some(end) = character(rest) {
            out.push_str("\"\"");
            end
        } else {
            out.push(first);
            first.len_utf8()
        };
        rest = rest.get(length..).unwrap_or_default();
    }
}

fn keep_lines(rest: &str, end: usize, out: &mut String) {
    out.extend(rest.get(..end).unwrap_or_default().chars().filter(|c| *c == '\n'));
}

fn keep_string(rest: &str, end: usize, out: &mut String) {
    // Each line of a string is a line of code.
    for c in rest.get(..end).unwrap_or_default().chars() {
        if c == '\n' {
            out.push_str("\"\n\"");
        }
    }
    out.push_str("\"\"");
}

fn block_comment(rest: &str) -> usize {
    let mut depth = 0_usize;
    let mut at = 0;
    while let Some(tail) = rest.get(at..).filter(|tail| !tail.is_empty()) {
        if tail.starts_with("/*") {
            depth += 1;
            at += 2;
        } else if tail.starts_with("*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return at;
            }
        } else {
            at += tail.chars().next().map_or(1, char::len_utf8);
        }
    }
    rest.len()
}

/// The length of a raw string here; what stands before tells it from a name.
fn raw_string(rest: &str, before: &str) -> Option<usize> {
    if before.chars().next_back().is_some_and(|c| (c.is_alphanumeric() || c == '_') && c != 'b') {
        return None;
    }
    let tail = rest.strip_prefix('r')?;
    let hashes = tail.chars().take_while(|c| *c == '#').count();
    let body = tail.get(hashes..)?.strip_prefix('"')?;
    let close = format!("\"{}", "#".repeat(hashes));
    let end = body.find(&close).map_or(body.len(), |at| at + close.len());
    Some(1 + hashes + 1 + end)
}

fn quoted(rest: &str, quote: char) -> usize {
    let mut escaped = false;
    for (at, c) in rest.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            _ if c == quote => return at + 1,
            _ => {}
        }
    }
    rest.len()
}

/// The length of a character literal here; a lifetime is none.
fn character(rest: &str) -> Option<usize> {
    let tail = rest.strip_prefix('\'')?;
    let first = tail.chars().next()?;
    if first == '\\' {
        return Some(quoted(rest, '\''));
    }
    let after = tail.get(first.len_utf8()..)?;
    after.starts_with('\'').then_some(first.len_utf8() + 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_and_blanks_do_not_count() {
        let text =
            "//! unsafe\n\nfn a() {} // unsafe\n/* unsafe\n unsafe */\n/// unsafe\nfn b() {}\n";
        assert_eq!(count(text), Counts { lines: 2, unsafes: 0 });
    }

    #[test]
    fn every_form_of_unsafe_counts() {
        let text = "unsafe fn a() {}\nfn b() { unsafe { a() } }\nunsafe impl X for Y {}\n#[unsafe(no_mangle)]\n";
        assert_eq!(count(text).unsafes, 4);
        assert_eq!(count("unsafe_code unsafely not_unsafe").unsafes, 0);
    }

    #[test]
    fn strings_and_characters_are_no_code() {
        let text = "let a = \"unsafe \\\" // x\"; let b = '\"'; unsafe {}\nlet c = r#\"unsafe \" \"#;\nfn f<'a>(x: &'a str) {}\n";
        assert_eq!(count(text), Counts { lines: 3, unsafes: 1 });
        assert_eq!(count("/* a /* b */ unsafe */ unsafe").unsafes, 1);
        assert_eq!(count("let c = b'\\''; unsafe").unsafes, 1);
    }

    #[test]
    fn lines_of_a_long_string_count() {
        assert_eq!(count("let a = \"one\ntwo\n\";\n").lines, 3);
    }
}
