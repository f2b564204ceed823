//! The lines that the guest `bench` prints.

use anyhow::{Context, Result, bail};

/// The guest's measurement of one operation, in instructions.
#[derive(Debug, Clone, PartialEq)]
pub struct Figure {
    /// The operation.
    pub name: String,
    /// How often it was done.
    pub n: u64,
    /// The least.
    pub min: u64,
    /// Half of them took at most so many.
    pub median: u64,
    /// Of a hundred, 99 took at most so many.
    pub p99: u64,
    /// The most.
    pub max: u64,
    /// On average: what a first touch costs when one exit maps many pages.
    pub mean: f64,
}

/// One line of the guest's.
#[derive(Debug, Clone, PartialEq)]
pub enum Line {
    /// Measured.
    Measured(Figure),
    /// The machine does not have the operation.
    Skipped {
        /// The operation.
        name: String,
        /// Why.
        why: String,
    },
    /// The machine has the operation, and it went wrong.
    Failed {
        /// The operation.
        name: String,
        /// Why.
        why: String,
    },
}

impl Line {
    /// Reads a line of the console; `None` if it is none of the bench's. A line that
    /// begins as one and is broken is an error.
    pub fn parse(line: &str) -> Option<Result<Line>> {
        let line = line.trim();
        if let Some(rest) = line.strip_prefix("bench ") {
            return Some(
                figure(rest)
                    .map(Line::Measured)
                    .with_context(|| format!("a broken line of the guest: {line:?}")),
            );
        }
        let told = |rest: &str| {
            let (name, why) = rest.split_once(": ").unwrap_or((rest, "no reason given"));
            (name.to_owned(), why.to_owned())
        };
        if let Some(rest) = line.strip_prefix("bench-skip ") {
            let (name, why) = told(rest);
            return Some(Ok(Line::Skipped { name, why }));
        }
        let (name, why) = told(line.strip_prefix("bench-failed ")?);
        Some(Ok(Line::Failed { name, why }))
    }

    /// The operation's name.
    pub fn name(&self) -> &str {
        match self {
            Line::Measured(figure) => &figure.name,
            Line::Skipped { name, .. } | Line::Failed { name, .. } => name,
        }
    }
}

fn figure(rest: &str) -> Result<Figure> {
    let mut words = rest.split_ascii_whitespace();
    let name = words.next().context("no name")?.to_owned();
    let words: Vec<&str> = words.collect();
    let text = |key: &str| {
        words
            .iter()
            .find_map(|word| word.strip_prefix(key)?.strip_prefix('='))
            .with_context(|| format!("no {key}"))
    };
    let number = |key| text(key)?.parse::<u64>().with_context(|| format!("{key} is no number"));
    let figure = Figure {
        n: number("n")?,
        min: number("min")?,
        median: number("median")?,
        p99: number("p99")?,
        max: number("max")?,
        mean: text("mean")?.parse().context("mean is no number")?,
        name,
    };
    if figure.n == 0
        || !(figure.min <= figure.median && figure.median <= figure.p99 && figure.p99 <= figure.max)
    {
        bail!("the figures contradict each other");
    }
    Ok(figure)
}

/// Everything that one run printed.
#[derive(Debug, Clone, PartialEq)]
pub struct Figures {
    lines: Vec<Line>,
    complete: bool,
}

impl Figures {
    /// Reads a console's text.
    ///
    /// # Errors
    /// A broken line of the bench's.
    pub fn parse(text: &str) -> Result<Figures> {
        Ok(Figures {
            lines: text.lines().filter_map(Line::parse).collect::<Result<_>>()?,
            complete: text.lines().any(|line| line.trim() == "bench-end"),
        })
    }

    /// The lines in the order of printing.
    pub fn lines(&self) -> &[Line] {
        &self.lines
    }

    /// Whether the guest came to its end.
    pub fn complete(&self) -> bool {
        self.complete
    }

    /// Whether an operation went wrong.
    pub fn failed(&self) -> bool {
        self.lines.iter().any(|line| matches!(line, Line::Failed { .. }))
    }

    /// The measurement of `name`.
    pub fn get(&self, name: &str) -> Option<&Figure> {
        self.lines.iter().find_map(|line| match line {
            Line::Measured(figure) if figure.name == name => Some(figure),
            _ => None,
        })
    }
}

/// The operation of which not each one causes an exit: judged by its average.
pub const FIRST_TOUCH: &str = "first_touch";

/// Why `figure` misses a limit, if it does.
pub fn misses(figure: &Figure, limit: u64) -> Option<String> {
    if figure.name == FIRST_TOUCH {
        #[expect(clippy::cast_precision_loss, reason = "a limit of a few hundred")]
        let over = figure.mean - limit as f64;
        return (over > 0.0).then(|| format!("on average {over:.1} over"));
    }
    let over = figure.median.checked_sub(limit).filter(|over| *over > 0)?;
    Some(format!("{over} over"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINE: &str = "bench cpuid_0 n=10000 min=110 median=112 p99=113 max=4000 mean=112.40";

    fn touch(median: u64, max: u64, mean: f64) -> Figure {
        Figure { name: FIRST_TOUCH.to_owned(), n: 100, min: 1, median, p99: max, max, mean }
    }

    #[test]
    fn a_measured_line() {
        let Some(Ok(Line::Measured(figure))) = Line::parse(LINE) else { panic!("not measured") };
        assert_eq!(figure.name, "cpuid_0");
        assert_eq!(
            (figure.n, figure.min, figure.median, figure.p99, figure.max),
            (10_000, 110, 112, 113, 4000)
        );
        assert!((figure.mean - 112.4).abs() < 1e-9);
        assert!(Line::parse(&format!("{LINE}\r")).unwrap().is_ok());
    }

    #[test]
    fn other_lines_are_none_and_broken_ones_are_errors() {
        assert!(Line::parse("steward: benchmarks").is_none());
        assert!(Line::parse("").is_none());
        for broken in [
            "bench cpuid_0 n=10000 min=110 median=112 p99=113",
            "bench cpuid_0 n=0 min=1 median=1 p99=1 max=1 mean=1.00",
            "bench cpuid_0 n=5 min=9 median=1 p99=1 max=1 mean=1.00",
            "bench cpuid_0 n=5 min=x median=1 p99=1 max=1 mean=1.00",
        ] {
            assert!(Line::parse(broken).unwrap().is_err(), "{broken}");
        }
    }

    #[test]
    fn a_console_with_everything() {
        let text = format!(
            "steward: hello\r\n{LINE}\r\nbench-skip hlt_wake: not offered\r\n\
             bench-failed self_ipi: the interrupt never arrived\r\nbench-end\r\n"
        );
        let figures = Figures::parse(&text).unwrap();
        assert_eq!(figures.lines().len(), 3);
        assert!(figures.complete() && figures.failed());
        assert_eq!(figures.get("cpuid_0").unwrap().median, 112);
        assert_eq!(figures.get("hlt_wake"), None);
        let cut = Figures::parse(LINE).unwrap();
        assert!(!cut.complete() && !cut.failed());
    }

    #[test]
    fn a_limit_holds_for_the_median() {
        let Some(Ok(Line::Measured(figure))) = Line::parse(LINE) else { panic!("not measured") };
        assert_eq!(misses(&figure, 112), None);
        assert_eq!(misses(&figure, 110).unwrap(), "2 over");
    }

    #[test]
    fn a_first_touch_is_judged_by_the_average() {
        assert_eq!(misses(&touch(290, 310, 4.9), 5), None);
        assert_eq!(misses(&touch(1, 300_000, 600.0), 5).unwrap(), "on average 595.0 over");
    }
}
