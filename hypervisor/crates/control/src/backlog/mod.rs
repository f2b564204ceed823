//! Text for the machine's screen that nobody has drawn yet.

#[cfg(test)]
mod tests;

use alloc::collections::TryReserveError;
use alloc::string::String;

/// Bytes that can wait: a crash's dump, and more.
const SIZE: usize = 16 << 10;

/// Text that waits to be drawn on a screen of so many rows. Lines that later ones
/// would overwrite need not be drawn.
#[derive(Debug)]
pub struct Backlog {
    text: String,
    /// Place of the next character in the text.
    next: usize,
    /// Ends of lines from there on.
    ends: usize,
    /// Lines were left out.
    cut: bool,
}

impl Backlog {
    /// Nothing waits, and nothing can before it is [prepared](Self::prepare).
    #[must_use]
    pub const fn new() -> Self {
        Self { text: String::new(), next: 0, ends: 0, cut: false }
    }

    /// Takes all the memory that it ever needs.
    ///
    /// # Errors
    /// There is no memory.
    pub fn prepare(&mut self) -> Result<(), TryReserveError> {
        self.text.try_reserve_exact(SIZE.saturating_sub(self.text.len()))
    }

    /// Keeps `text`, in the order of the calls. Text that has no room is left out. Takes no memory:
    /// the text may be about the lack of memory.
    pub fn push(&mut self, text: &str, rows: usize) {
        if self.text.len() + text.len() > SIZE {
            self.leave_out(rows);
            self.text.drain(..self.next);
            self.next = 0;
        }
        if self.text.len() + text.len() > SIZE.min(self.text.capacity()) {
            return;
        }
        self.text.push_str(text);
        self.ends += text.matches('\n').count();
    }

    /// Leaves out the lines before the last `rows`. Returns whether lines were left out since the
    /// last call: then the next character begins a line.
    pub fn skip(&mut self, rows: usize) -> bool {
        self.leave_out(rows);
        core::mem::take(&mut self.cut)
    }

    fn leave_out(&mut self, rows: usize) {
        while self.ends > rows
            && let Some(end) = self.text.get(self.next..).and_then(|rest| rest.find('\n'))
        {
            self.next += end + 1;
            self.ends -= 1;
            self.cut = true;
        }
    }

    /// Takes the next character.
    pub fn pop(&mut self) -> Option<char> {
        let Some(character) = self.text.get(self.next..).and_then(|rest| rest.chars().next())
        else {
            self.text.clear();
            self.next = 0;
            return None;
        };
        self.next += character.len_utf8();
        self.ends -= usize::from(character == '\n');
        Some(character)
    }

    /// Whether nothing waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.next == self.text.len()
    }
}

impl Default for Backlog {
    fn default() -> Self {
        Self::new()
    }
}
