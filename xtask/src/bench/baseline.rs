//! Limits of what each operation may take: read from `docs/performance.md`, the one place where
//! the figures stand.
//!
//! The document has a table of hot exits and one of cold ones. A hot exit may take [`HOT_SLACK`]
//! instructions more than the document says, a cold one two in a hundred.

use anyhow::{Context, Result, bail, ensure};
use config::ApicAssist;

use crate::machine::Machine;

/// The document.
const DOCUMENT: &str = include_str!("../../../docs/performance.md");

/// Instructions that a hot exit may take beyond its figure.
pub const HOT_SLACK: u64 = 3;
/// Instructions that a cold exit may take beyond its figure, in hundredths of it.
pub const COLD_SLACK: u64 = 2;

/// How an exit is served, by which its slack goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// By the hot handler: see `vmm::hot::exit`.
    Hot,
    /// By the general code.
    Cold,
}

/// The document's figure for one operation on one machine, in instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Figure {
    /// With the local APIC in the CPU as far as that goes.
    pub full: u64,
    /// With the local APIC emulated, where that differs.
    pub emulated: Option<u64>,
}

/// One row of the document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// The operation, as the guest names it.
    pub name: String,
    /// How it is served.
    pub way: Way,
    vmx: Figure,
    svm: Figure,
}

/// The most that an operation's median may be on a machine, in instructions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// The operation.
    pub name: String,
    /// The document's figure.
    pub figure: u64,
    /// At most.
    pub limit: u64,
}

impl Way {
    /// The most that an operation may take whose figure is `figure`.
    #[must_use]
    pub const fn limit(self, figure: u64) -> u64 {
        match self {
            Way::Hot => figure.saturating_add(HOT_SLACK),
            Way::Cold => figure.saturating_add(figure.saturating_mul(COLD_SLACK) / 100),
        }
    }
}

/// All rows of the document.
///
/// # Errors
/// The document has no such tables, or a row of them can't be read.
pub fn rows() -> Result<Vec<Row>> {
    parse(DOCUMENT)
}

/// The targets of a machine whose guest has its local APIC so far in the CPU; where the
/// document has no figures for it, none.
///
/// # Errors
/// As [`rows`].
pub fn targets(machine: Machine, apic: ApicAssist) -> Result<Vec<Target>> {
    let target = |row: Row| {
        let figure = match machine {
            Machine::BochsVmx => row.vmx,
            Machine::BochsSvm => row.svm,
            _ => return None,
        };
        let figure = match (apic, figure.emulated) {
            (ApicAssist::None, Some(emulated)) => emulated,
            // Between the two the document has nothing.
            (ApicAssist::Priority, Some(_)) => return None,
            _ => figure.full,
        };
        Some(Target { name: row.name, figure, limit: row.way.limit(figure) })
    };
    Ok(rows()?.into_iter().filter_map(target).collect())
}

fn parse(document: &str) -> Result<Vec<Row>> {
    let mut rows: Vec<Row> = Vec::new();
    let mut way = None;
    for line in document.lines() {
        let Some(cells) = cells(line) else {
            way = None;
            continue;
        };
        match (way, cells.as_slice()) {
            (_, ["hot exit", "name", "`bochs-vmx`", "`bochs-svm`", ..]) => way = Some(Way::Hot),
            (_, ["cold exit", "name", "`bochs-vmx`", "`bochs-svm`", ..]) => way = Some(Way::Cold),
            (Some(_), [rule, ..]) if rule.starts_with("---") => {}
            (Some(way), [_, name, vmx, svm, ..]) => {
                let row = row(name, way, vmx, svm)
                    .with_context(|| format!("docs/performance.md: {line}"))?;
                ensure!(
                    !rows.iter().any(|other| other.name == row.name),
                    "docs/performance.md: {} has two rows",
                    row.name
                );
                rows.push(row);
            }
            (Some(_), _) => bail!("docs/performance.md: too few columns: {line}"),
            (None, _) => {}
        }
    }
    for way in [Way::Hot, Way::Cold] {
        ensure!(
            rows.iter().any(|row| row.way == way),
            "docs/performance.md: there is no table of {way:?} exits"
        );
    }
    Ok(rows)
}

/// The cells of a table's line.
fn cells(line: &str) -> Option<Vec<&str>> {
    let inner = line.trim().strip_prefix('|')?.strip_suffix('|')?;
    Some(inner.split('|').map(str::trim).collect())
}

fn row(name: &str, way: Way, vmx: &str, svm: &str) -> Result<Row> {
    let name = name.strip_prefix('`').and_then(|name| name.strip_suffix('`'));
    let name = name.filter(|name| !name.is_empty()).context("the name is not `so`")?.to_owned();
    Ok(Row { name, way, vmx: figure(vmx)?, svm: figure(svm)? })
}

/// `1,234`, or `1 (1,234)` where the second is that of an emulated local APIC.
fn figure(cell: &str) -> Result<Figure> {
    let number = |text: &str| {
        let digits = text.replace(',', "");
        digits.parse().with_context(|| format!("`{text}` is no number"))
    };
    match cell.split_once(' ') {
        None => Ok(Figure { full: number(cell)?, emulated: None }),
        Some((full, emulated)) => {
            let emulated = emulated.strip_prefix('(').and_then(|rest| rest.strip_suffix(')'));
            let emulated = emulated.with_context(|| format!("`{cell}` is not `N (N)`"))?;
            Ok(Figure { full: number(full)?, emulated: Some(number(emulated)?) })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
# Title

| another | name |
|---|---|
| x | `y` |

| hot exit | name | `bochs-vmx` | `bochs-svm` | aim |
|---|---|---|---|---|
| a thing | `thing` | 1 (1,312) | 161 | 130 |

| cold exit | name | `bochs-vmx` | `bochs-svm` |
|---|---|---|---|
| another | `other` | 1,786 | 1,310 |
";

    #[test]
    fn a_document_with_both_tables() {
        let plain = |full| Figure { full, emulated: None };
        assert_eq!(
            parse(TEXT).unwrap(),
            [
                Row {
                    name: "thing".to_owned(),
                    way: Way::Hot,
                    vmx: Figure { full: 1, emulated: Some(1312) },
                    svm: plain(161),
                },
                Row {
                    name: "other".to_owned(),
                    way: Way::Cold,
                    vmx: plain(1786),
                    svm: plain(1310),
                },
            ]
        );
    }

    #[test]
    fn what_cannot_be_read_is_an_error_that_shows_the_line() {
        for (good, bad) in [
            ("`thing`", "thing"),
            ("`other`", "`thing`"),
            ("1,786", "about 1,786"),
            ("1 (1,312)", "1 1,312"),
            ("| 1,786 | 1,310 |", "| 1,786 |"),
            ("| cold exit |", "| slow exit |"),
        ] {
            let error = parse(&TEXT.replace(good, bad)).unwrap_err();
            assert!(format!("{error:#}").contains("docs/performance.md: "), "{bad}: {error:#}");
        }
    }

    #[test]
    fn the_slack_goes_by_the_way() {
        assert_eq!(Way::Hot.limit(115), 118);
        assert_eq!(Way::Cold.limit(1786), 1821);
        assert_eq!(Way::Cold.limit(10), 10);
    }

    #[test]
    fn the_document_itself_can_be_read() {
        let names: Vec<String> = rows().unwrap().into_iter().map(|row| row.name).collect();
        for name in [
            "cpuid_0",
            "cpuid_1",
            "cpuid_d",
            "null_hypercall",
            "unknown_hypercall",
            "rdmsr_apic_base",
            "rdmsr_tsc",
            "rdmsr_efer",
            "tsc_deadline",
            "tsc_deadline_near",
            "x2apic_eoi",
            "pic_read",
            "pic_write",
            "pit_read",
            "port_61_read",
            "uart_lsr_read",
            "first_touch_exits",
            "fresh_2m",
            "self_ipi",
            "hlt_wake",
            "port_80_write",
            "hole_read",
            "hole_write",
            "lapic_mmio_read",
            "lapic_mmio_eoi",
            "ioapic_mmio_read",
        ] {
            assert!(names.iter().any(|other| other == name), "{name}: {names:?}");
        }
    }

    #[test]
    fn an_emulated_local_apic_has_its_own_figures() {
        let eoi = |machine, apic| {
            let targets = targets(machine, apic).unwrap();
            targets.iter().find(|target| target.name == "x2apic_eoi").map(|target| target.figure)
        };
        assert_eq!(eoi(Machine::BochsVmx, ApicAssist::Full), Some(1));
        assert!(eoi(Machine::BochsVmx, ApicAssist::None).unwrap() > 100);
        assert_eq!(eoi(Machine::BochsVmx, ApicAssist::Priority), None);
        assert!(eoi(Machine::BochsSvm, ApicAssist::Priority).is_some());
        assert_eq!(eoi(Machine::QemuSvm, ApicAssist::Full), None);
    }
}
