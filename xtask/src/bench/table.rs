//! A machine's figures as a table, against its targets.

use serde_json::{Value, json};

use super::baseline::Target;
use super::figures::{Figure, Figures, Line, misses};
use crate::machine::Machine;

/// One operation, judged.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Row {
    line: Line,
    target: Option<Target>,
    /// Why the target is missed, where it is.
    miss: Option<String>,
}

impl Row {
    /// Whether there is a target and it is missed.
    pub(super) fn missed(&self) -> bool {
        self.miss.is_some()
    }

    /// For the file; nothing where nothing was measured.
    pub(super) fn json(&self) -> Option<Value> {
        let Line::Measured(figure) = &self.line else { return None };
        Some(json!({
            "name": figure.name,
            "n": figure.n,
            "min": figure.min,
            "median": figure.median,
            "p99": figure.p99,
            "max": figure.max,
            "mean": figure.mean,
            "figure": self.target.as_ref().map(|target| target.figure),
            "target": self.target.as_ref().map(|target| target.limit),
            "missed": self.miss,
        }))
    }

    fn cells(&self) -> [String; 8] {
        let numbers = |figure: &Figure| {
            [figure.n, figure.min, figure.median, figure.p99, figure.max].map(|n| n.to_string())
        };
        let name = self.line.name().to_owned();
        let limit =
            self.target.as_ref().map_or_else(String::new, |target| format!("<= {}", target.limit));
        match &self.line {
            Line::Measured(figure) => {
                let [n, min, median, p99, max] = numbers(figure);
                [name, n, min, median, p99, max, format!("{:.1}", figure.mean), limit]
            }
            Line::Skipped { .. } | Line::Failed { .. } => {
                let none = String::new;
                [name, "-".to_owned(), none(), none(), none(), none(), none(), limit]
            }
        }
    }

    fn verdict(&self) -> String {
        match (&self.line, &self.miss) {
            (Line::Failed { why, .. }, _) => format!("FAILED: {why}"),
            (Line::Skipped { why, .. }, None) => format!("skipped: {why}"),
            (_, Some(miss)) => format!("MISSED: {miss}"),
            (Line::Measured(_), None) if self.target.is_some() => "ok".to_owned(),
            (Line::Measured(_), None) => String::new(),
        }
    }
}

/// Sets the figures against targets. A target whose operation `filter` selects and
/// nobody measured is missed.
pub(super) fn judge(targets: &[Target], figures: &Figures, filter: Option<&str>) -> Vec<Row> {
    let of = |name: &str| targets.iter().find(|target| target.name == name).cloned();
    let mut rows: Vec<Row> = figures
        .lines()
        .iter()
        .map(|line| {
            let target = of(line.name());
            let miss = target.as_ref().and_then(|target| match line {
                Line::Measured(figure) => misses(figure, target.limit),
                Line::Skipped { why, .. } | Line::Failed { why, .. } => {
                    Some(format!("not measured: {why}"))
                }
            });
            Row { line: line.clone(), target, miss }
        })
        .collect();
    for target in targets {
        let wanted = filter.is_none_or(|filter| target.name.contains(filter));
        if wanted && !rows.iter().any(|row| row.line.name() == target.name) {
            rows.push(Row {
                line: Line::Skipped {
                    name: target.name.clone(),
                    why: "the guest does not know it".to_owned(),
                },
                target: Some(target.clone()),
                miss: Some("not measured".to_owned()),
            });
        }
    }
    rows
}

/// The table, and a line that counts the targets.
pub(super) fn render(machine: Machine, rows: &[Row]) -> String {
    let head = ["operation", "n", "min", "median", "p99", "max", "mean", "target"];
    let mut lines = vec![(head.map(str::to_owned), String::new())];
    lines.extend(rows.iter().map(|row| (row.cells(), row.verdict())));
    let mut widths = [0; 8];
    for (cells, _) in &lines {
        for (width, cell) in widths.iter_mut().zip(cells) {
            *width = cell.len().max(*width);
        }
    }
    let mut text = format!("{} (instructions seen by the guest)\n", machine.name());
    for (cells, verdict) in &lines {
        let mut line = String::new();
        for (column, (cell, width)) in cells.iter().zip(widths).enumerate() {
            line += &if column == 0 {
                format!("  {cell:<width$}")
            } else {
                format!("  {cell:>width$}")
            };
        }
        line += &format!("  {verdict}");
        text += line.trim_end();
        text.push('\n');
    }
    let with_target = rows.iter().filter(|row| row.target.is_some()).count();
    if with_target > 0 {
        let missed = rows.iter().filter(|row| row.missed()).count();
        text += &format!("  {} of {with_target} targets met\n", with_target - missed);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figures(text: &str) -> Figures {
        Figures::parse(text).unwrap()
    }

    const TEXT: &str = "bench rdtsc n=100 min=1 median=1 p99=1 max=1 mean=1.00\n\
        bench cpuid_0 n=100 min=120 median=131 p99=150 max=151 mean=131.20\n\
        bench pic_read n=100 min=200 median=260 p99=270 max=271 mean=260.10\n\
        bench-skip hlt_wake: the TSC deadline is not offered\n";

    fn targets() -> Vec<Target> {
        [("cpuid_0", 127, 130), ("pic_read", 257, 260), ("hlt_wake", 3400, 3468), ("new", 1, 4)]
            .map(|(name, figure, limit)| Target { name: name.to_owned(), figure, limit })
            .to_vec()
    }

    #[test]
    fn what_is_over_its_target_is_marked() {
        let rows = judge(&targets(), &figures(TEXT), None);
        let text = render(Machine::BochsVmx, &rows);
        let line = |name: &str| text.lines().find(|line| line.contains(name)).unwrap().to_owned();
        assert!(line("cpuid_0").ends_with("<= 130  MISSED: 1 over"), "{text}");
        assert!(line("pic_read").ends_with("<= 260  ok"), "{text}");
        assert!(line("rdtsc").ends_with("1.0"), "{text}");
        assert!(line("hlt_wake").contains("MISSED: not measured: the TSC deadline"), "{text}");
        // Two targets were not measured, and one is over.
        assert!(text.contains("1 of 4 targets met"), "{text}");
    }

    #[test]
    fn a_target_that_was_not_measured_is_missed_unless_filtered_out() {
        let missed = |filter| {
            let rows = judge(&targets(), &figures(TEXT), filter);
            rows.iter().filter(|row| row.missed()).count()
        };
        assert_eq!(missed(None), 3);
        assert_eq!(missed(Some("pic_read")), 2);
        assert_eq!(missed(Some("new")), 3);
    }

    #[test]
    fn without_targets_nothing_is_missed() {
        let rows = judge(&[], &figures(TEXT), None);
        assert_eq!(rows.len(), 4);
        assert!(!rows.iter().any(Row::missed));
        assert!(!render(Machine::QemuSvm, &rows).contains("targets"));
    }

    #[test]
    fn columns_line_up() {
        let rows = judge(&[], &figures(TEXT), None);
        let text = render(Machine::QemuSvm, &rows);
        let ends: Vec<usize> = ["median", "131", "260"]
            .iter()
            .map(|word| {
                let line = text.lines().find(|line| line.contains(word)).unwrap();
                line.find(word).unwrap() + word.len()
            })
            .collect();
        assert!(ends.iter().all(|end| Some(end) == ends.first()), "{text}");
    }

    #[test]
    fn the_file_has_what_was_measured() {
        let rows = judge(&targets(), &figures(TEXT), None);
        let values: Vec<Value> = rows.iter().filter_map(Row::json).collect();
        assert_eq!(values.len(), 3);
        assert_eq!(values[1]["figure"], 127);
        assert_eq!(values[1]["target"], 130);
        assert_eq!(values[1]["missed"], "1 over");
        assert_eq!(values[2]["missed"], Value::Null);
    }
}
