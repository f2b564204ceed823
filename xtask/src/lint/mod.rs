//! `lint`: how large the image's source is and what shape it has, where `unsafe` stands, and on
//! what terms other people's code is used.
//!
//! "Resident lines" are the lines of Rust that can end up in the image: ours and
//! those of every dependency that cargo resolves for the bare target. Blank lines
//! and lines that are only comment do not count, nor do test modules in files of
//! their own.

mod arrows;
mod circles;
mod count;
mod dependencies;
mod documents;
mod functions;
mod groups;
mod roots;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::Args;
use serde_json::Value;

use crate::kernel::TARGET;
use crate::ui::Out;
use crate::{cmd, paths};
use arrows::Arrows;
use count::{Counts, count};
use functions::Long;
use groups::Groups;

/// The most lines of a crate.
const LARGEST: usize = 12_000;

/// Files that may use each other: the package, the files, and the reason.
const CIRCLES: [(&str, [&str; 2], &str); 1] =
    [("vmm", ["backend.rs", "vcpu.rs"], "a vCPU and its hardware are one idea")];

/// Options of `lint`.
#[derive(Debug, Clone, Args)]
pub struct LintOptions {
    /// Write the tables of documents that are made of code
    #[arg(long)]
    pub write: bool,
}

/// Prints what was counted and found; status 1 where something is as it may not be.
pub fn lint(options: &LintOptions) -> Result<u8> {
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
    let ours: Vec<Package> =
        packages(&metadata).filter(|package| members.contains(package.id)).collect();

    let mut faults = crates(&ours)?;
    let others: Vec<Package> =
        packages(&metadata).filter(|package| !members.contains(package.id)).collect();
    let is_resident = |package: &&Package| resident.contains(package.id);
    image(ours.iter().filter(is_resident), others.iter().filter(is_resident))?;
    faults.extend(subjects(ours.iter().filter(is_resident))?);
    faults.extend(dependencies::faults(&metadata, &resident));
    let names: BTreeSet<&str> = ours.iter().map(|package| package.name).collect();
    faults.extend(Arrows::read(&architecture()?).faults(&metadata, &names));
    faults.extend(dependencies::unused(&metadata, &names)?);
    faults.extend(documents::faults(options.write)?);
    faults.extend(circles(&ours)?);
    faults.extend(first_files(&ours)?);
    long_functions(&ours)?;
    for fault in &faults {
        writeln!(Out, "error: {fault}")?;
    }
    Ok(u8::from(!faults.is_empty()))
}

fn row(name: &str, counts: Counts) -> Result<()> {
    Ok(writeln!(Out, "{name:<28} {:>9} {:>8}", counts.lines, counts.unsafes)?)
}

/// Our crates, tests and tools among them. Faults: `unsafe` in one that may have none.
fn crates(ours: &[Package]) -> Result<Vec<String>> {
    let mut faults = Vec::new();
    writeln!(Out, "{:<28} {:>9} {:>8}", "crate", "lines", "unsafe")?;
    for package in ours {
        let counts = package.counts()?;
        row(package.name, counts)?;
        if counts.lines > LARGEST {
            faults.push(format!(
                "{} has {} lines: a crate of more than {LARGEST} is more than one subject",
                package.name, counts.lines
            ));
        }
        let place = package.place();
        if counts.unsafes > 0
            && (place.starts_with("hypervisor/crates") || place.starts_with("xtask"))
        {
            faults.push(format!(
                "`unsafe` in {}: the pure crates and xtask may have none",
                package.name
            ));
        }
    }
    Ok(faults)
}

/// The crates that can end up in the image: ours and those of others.
fn image<'a>(
    ours: impl Iterator<Item = &'a Package<'a>>,
    others: impl Iterator<Item = &'a Package<'a>>,
) -> Result<()> {
    writeln!(Out, "\n{:<28} {:>9} {:>8}", "resident in the image", "lines", "unsafe")?;
    let (mut own, mut foreign) = (Counts::default(), Counts::default());
    for package in ours {
        own += package.counts()?;
    }
    for package in others {
        let counts = package.counts()?;
        row(&format!("  {}", package.name), counts)?;
        foreign += counts;
    }
    row("dependencies", foreign)?;
    row("ours", own)?;
    own += foreign;
    row("resident lines", own)
}

/// The document with the tables that are checked.
fn architecture() -> Result<String> {
    let document = paths::root().join("docs/architecture.md");
    fs::read_to_string(&document).with_context(|| format!("cannot read {}", document.display()))
}

/// Our part of the image by the groups of `docs/architecture.md`. Faults: files without a group,
/// and places of the table where nothing is.
fn subjects<'a>(ours: impl Iterator<Item = &'a Package<'a>>) -> Result<Vec<String>> {
    let groups = Groups::read(&architecture()?);
    let mut faults: Vec<String> = groups
        .missing(&paths::root())
        .into_iter()
        .map(|place| format!("docs/architecture.md: nothing is at {place}"))
        .collect();
    let mut counts = vec![Counts::default(); groups.names.len()];
    for package in ours {
        for file in sources(&package.dir.join("src"))? {
            let place = file.strip_prefix(paths::root()).unwrap_or(&file);
            match groups.of(place).and_then(|number| counts.get_mut(number)) {
                Some(group) => *group += count_file(&file)?,
                None => faults.push(format!(
                    "docs/architecture.md: no group of lines has {}",
                    place.display()
                )),
            }
        }
    }
    writeln!(Out, "\n{:<28} {:>9} {:>8}", "by subject", "lines", "unsafe")?;
    for (name, counts) in groups.names.iter().zip(counts) {
        row(name, counts)?;
    }
    Ok(faults)
}

/// Files of the image that use each other in a circle, but for those that may.
fn circles(ours: &[Package]) -> Result<Vec<String>> {
    let mut faults = Vec::new();
    for package in ours.iter().filter(|package| package.place().starts_with("hypervisor")) {
        let roots = ["src/lib.rs", "src/main.rs"].map(|root| package.dir.join(root));
        for root in roots.iter().filter(|root| root.exists()) {
            for circle in circles::Files::read(root)?.circles() {
                let names = circle.iter().map(|file| {
                    file.strip_prefix(package.dir.join("src")).unwrap_or(file).display().to_string()
                });
                let names: Vec<String> = names.collect();
                let is_known = |(other, files, _): &(&str, [&str; 2], &str)| {
                    *other == package.name && names == *files
                };
                if !CIRCLES.iter().any(is_known) {
                    let names = names.join(" ");
                    faults.push(format!("{}: files use each other: {names}", package.name));
                }
            }
        }
    }
    Ok(faults)
}

/// First files of the image's crates that hold code.
fn first_files(ours: &[Package]) -> Result<Vec<String>> {
    let mut faults = Vec::new();
    for package in ours.iter().filter(|package| package.place().starts_with("hypervisor")) {
        let path = package.dir.join("src/lib.rs");
        let text =
            fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        if roots::code(&text)? != 0 {
            faults.push(format!(
                "{}: lib.rs holds documentation, `mod` and `use`, and no code",
                package.name
            ));
        }
    }
    Ok(faults)
}

/// Tells of long functions.
fn long_functions(ours: &[Package]) -> Result<()> {
    writeln!(Out)?;
    for package in ours.iter().filter(|package| package.place().starts_with("hypervisor")) {
        for file in sources(&package.dir.join("src"))? {
            let text = fs::read_to_string(&file)
                .with_context(|| format!("cannot read {}", file.display()))?;
            for Long { lines, name, line, file } in functions::long(&file, &text)? {
                let place = file.strip_prefix(paths::root()).unwrap_or(&file).display();
                writeln!(Out, "{place}:{line}: `{name}` has {lines} lines")?;
            }
        }
    }
    Ok(())
}

struct Package<'a> {
    id: &'a str,
    name: &'a str,
    dir: PathBuf,
}

impl Package<'_> {
    fn counts(&self) -> Result<Counts> {
        let mut counts = Counts::default();
        for file in sources(&self.dir.join("src"))? {
            counts += count_file(&file)?;
        }
        Ok(counts)
    }

    /// The folder, from the project's root on.
    fn place(&self) -> &Path {
        self.dir.strip_prefix(paths::root()).unwrap_or(&self.dir)
    }
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

/// The files of Rust in a folder but for test modules in files of their own.
fn sources(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut all = Vec::new();
    let Ok(entries) = fs::read_dir(dir) else { return Ok(all) };
    for entry in entries {
        let path = entry.with_context(|| format!("cannot read {}", dir.display()))?.path();
        let name = path.file_name().unwrap_or_default();
        if path.is_dir() && name != "tests" {
            all.extend(sources(&path)?);
        } else if path.extension().is_some_and(|extension| extension == "rs") && name != "tests.rs"
        {
            all.push(path);
        }
    }
    all.sort();
    Ok(all)
}

fn count_file(path: &Path) -> Result<Counts> {
    let text = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(count(&String::from_utf8_lossy(&text)))
}
