//! Tables that fit the terminal.

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt::Write;

/// Columns of the terminal, but for the last one.
pub(super) const WIDTH: usize = 79;
/// A text column is not made narrower than this.
const NARROWEST: usize = 6;

/// How a column stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Align {
    /// Text.
    Left,
    /// Figures.
    Right,
}
pub(super) use Align::{Left, Right};

/// A table with a heading.
pub(super) struct Table<const N: usize> {
    columns: [(&'static str, Align); N],
    rows: Vec<[String; N]>,
}

impl<const N: usize> Table<N> {
    pub(super) const fn new(columns: [(&'static str, Align); N]) -> Self {
        Self { columns, rows: Vec::new() }
    }

    pub(super) fn row(&mut self, cells: [String; N]) {
        self.rows.push(cells);
    }

    /// Writes the lines. If they would be too wide, text columns are cut, the widest first.
    pub(super) fn render(&self, out: &mut String) {
        let mut widths = self.columns.map(|(title, _)| title.len());
        for row in &self.rows {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = (*width).max(cell.chars().count());
            }
        }
        while widths.iter().sum::<usize>() + 2 * N.saturating_sub(1) > WIDTH {
            let text = widths.iter_mut().zip(&self.columns).filter(|(_, (_, a))| *a == Left);
            let widest = text.map(|(width, _)| width).max();
            let Some(width) = widest.filter(|width| **width > NARROWEST) else { break };
            *width -= 1;
        }
        self.line(self.columns.iter().map(|(title, _)| *title), &widths, out);
        for row in &self.rows {
            self.line(row.iter().map(String::as_str), &widths, out);
        }
    }

    fn line<'a>(
        &self,
        cells: impl Iterator<Item = &'a str>,
        widths: &[usize; N],
        out: &mut String,
    ) {
        let mut line = String::new();
        for ((cell, width), (_, align)) in cells.zip(widths).zip(&self.columns) {
            if !line.is_empty() {
                line.push_str("  ");
            }
            let cell = cut(cell, *width);
            // Writing to a string does not fail.
            let _ = match align {
                Left => write!(line, "{cell:<width$}"),
                Right => write!(line, "{cell:>width$}"),
            };
        }
        out.push_str(cut(line.trim_end(), WIDTH).trim_end());
        out.push('\n');
    }
}

/// At most `width` characters of `text`; `~` stands for the rest.
pub(super) fn cut(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.into();
    }
    text.chars().take(width.saturating_sub(1)).chain(['~']).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_stands_left_and_figures_right() {
        let mut table = Table::new([("NAME", Left), ("N", Right)]);
        table.row(["a".into(), "1".into()]);
        table.row(["longer".into(), "100".into()]);
        let mut text = String::new();
        table.render(&mut text);
        assert_eq!(text, "NAME      N\na         1\nlonger  100\n");
    }

    #[test]
    fn what_is_too_wide_is_cut() {
        let mut table = Table::new([("#", Right), ("NAME", Left), ("STATE", Left)]);
        table.row(["1".into(), "x".repeat(64), "y".repeat(40)]);
        let mut text = String::new();
        table.render(&mut text);
        for line in text.lines() {
            assert!(line.len() <= WIDTH, "{line}");
        }
        assert!(text.contains("x~") && text.contains("y~"), "{text}");
    }
}
