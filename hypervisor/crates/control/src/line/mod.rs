//! The monitor's line editor: bytes from a VT100-like terminal in, bytes for
//! its screen out, and lines.
//!
//! [`Editor::feed`] takes what is typed; [`keys`] makes keys of it. The line is
//! two stacks, one for what stands before the cursor and one for what stands
//! behind it, so that no key has to count. A line that is wider than the
//! terminal scrolls sideways: nothing here depends on how a terminal wraps.
//! Nothing is asked of the terminal either, so that a log on a slow line still
//! can be typed at. Lines are ASCII, as commands and guests' names are.
//!
//! Fuzz target: `monitor`.

pub mod keys;
#[cfg(test)]
mod tests;

use alloc::collections::VecDeque;
use alloc::string::String;
use alloc::vec::Vec;
use core::mem;
use keys::{Decoder, Key};

/// The longest line, in characters.
pub const MAX_LINE: usize = 240;
/// Lines that are remembered.
const HISTORY: usize = 32;
/// Candidates that Tab shows at the most.
const SHOWN: usize = 64;
/// The terminal's width in columns; the last one stays free, because terminals
/// differ in what they do behind it.
const COLUMNS: usize = 80;

const BELL: u8 = 7;

/// Knows how a line could go on.
pub trait Complete {
    /// How the last word of `before`, what stands before the cursor, could go on.
    fn complete(&self, before: &str) -> Completion;
}

/// How a word could go on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Completion {
    /// Start of the word, in bytes.
    pub start: usize,
    /// Whole words, each beginning with what is there.
    pub candidates: Vec<String>,
}

/// Result of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entered {
    /// This line.
    Line(String),
    /// Ctrl-C: no line.
    Cancelled,
}

/// The line that is being typed, and those before it.
#[derive(Debug)]
pub struct Editor {
    prompt: &'static str,
    decoder: Decoder,
    /// The characters before the cursor.
    left: Vec<u8>,
    /// The characters behind the cursor, the last one first.
    right: Vec<u8>,
    /// The first character on the screen.
    first: usize,
    /// Lines that were entered, the newest last.
    history: VecDeque<Vec<u8>>,
    /// How many lines back the operator went, and the line left for that.
    recalled: Option<(usize, Vec<u8>)>,
    /// The last key was Tab and could not add anything.
    stuck: bool,
}

impl Editor {
    /// An empty line behind `prompt`, which should be short ASCII.
    #[must_use]
    pub const fn new(prompt: &'static str) -> Self {
        Self {
            prompt,
            decoder: Decoder::new(),
            left: Vec::new(),
            right: Vec::new(),
            first: 0,
            history: VecDeque::new(),
            recalled: None,
            stuck: false,
        }
    }

    /// The line as it stands.
    #[must_use]
    pub fn line(&self) -> String {
        let bytes = self.left.iter().chain(self.right.iter().rev());
        bytes.map(|byte| char::from(*byte)).collect()
    }

    /// The cursor's place in the line, in characters.
    #[must_use]
    pub const fn cursor(&self) -> usize {
        self.left.len()
    }

    /// Takes the line off the screen, to let something else be printed.
    pub fn hide(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(b"\r\x1b[K");
    }

    /// Puts prompt and line on the screen, on the row where the cursor is.
    pub fn show(&mut self, out: &mut Vec<u8>) {
        let room = self.room();
        let (cursor, length) = (self.left.len(), self.left.len() + self.right.len());
        self.first = self
            .first
            .min(cursor)
            .min(length.saturating_sub(room))
            .max(cursor.saturating_sub(room));
        out.push(b'\r');
        out.extend_from_slice(self.prompt.as_bytes());
        let all = self.left.iter().chain(self.right.iter().rev());
        out.extend(all.skip(self.first).take(room));
        out.extend_from_slice(b"\x1b[K");
        let end = length.min(self.first + room);
        if let Some(back @ 1..) = end.checked_sub(cursor) {
            out.extend_from_slice(alloc::format!("\x1b[{back}D").as_bytes());
        }
    }

    fn room(&self) -> usize {
        (COLUMNS - 1).saturating_sub(self.prompt.len()).max(1)
    }

    /// Takes one byte that was typed. Bytes for the screen go to `out`.
    pub fn feed(
        &mut self,
        byte: u8,
        complete: &dyn Complete,
        out: &mut Vec<u8>,
    ) -> Option<Entered> {
        let key = self.decoder.feed(byte)?;
        let stuck = mem::take(&mut self.stuck);
        let mut fine = true;
        match key {
            Key::Character(character) => {
                fine = self.insert(character);
                // Most keys: nothing else moves.
                if fine && self.right.is_empty() && self.left.len() <= self.first + self.room() {
                    out.push(character);
                    return None;
                }
            }
            Key::Enter => {
                out.extend_from_slice(b"\r\n");
                return Some(Entered::Line(self.enter()));
            }
            Key::Cancel => {
                if self.left.len() + 2 <= self.first + self.room() {
                    out.extend_from_slice(b"^C");
                }
                out.extend_from_slice(b"\r\n");
                self.set(Vec::new());
                self.recalled = None;
                return Some(Entered::Cancelled);
            }
            Key::Tab => fine = self.tab(complete, stuck, out),
            Key::Backspace => fine = self.left.pop().is_some(),
            Key::Delete => fine = self.right.pop().is_some(),
            Key::Left => fine = shift(&mut self.left, &mut self.right),
            Key::Right => fine = shift(&mut self.right, &mut self.left),
            Key::Home => while shift(&mut self.left, &mut self.right) {},
            Key::End => while shift(&mut self.right, &mut self.left) {},
            Key::Up => fine = self.recall(true),
            Key::Down => fine = self.recall(false),
            Key::KillBefore => self.left.clear(),
            Key::KillBehind => self.right.clear(),
            Key::KillWord => {
                while self.left.pop_if(|byte| *byte == b' ').is_some() {}
                while self.left.pop_if(|byte| *byte != b' ').is_some() {}
            }
            Key::Redraw => out.extend_from_slice(b"\x1b[H\x1b[2J"),
            Key::Unknown => fine = false,
        }
        if !fine {
            out.push(BELL);
        }
        self.show(out);
        None
    }

    fn insert(&mut self, character: u8) -> bool {
        let fits =
            matches!(character, b' '..=b'~') && self.left.len() + self.right.len() < MAX_LINE;
        if fits {
            self.left.push(character);
        }
        fits
    }

    fn set(&mut self, line: Vec<u8>) {
        self.left = line;
        self.right.clear();
    }

    fn take(&mut self) -> Vec<u8> {
        let mut line = mem::take(&mut self.left);
        line.extend(self.right.drain(..).rev());
        line
    }

    fn enter(&mut self) -> String {
        let line = self.take();
        self.first = 0;
        self.recalled = None;
        let blank = line.iter().all(|byte| *byte == b' ');
        if !blank && self.history.back() != Some(&line) {
            if self.history.len() == HISTORY {
                self.history.pop_front();
            }
            self.history.push_back(line.clone());
        }
        line.into_iter().map(char::from).collect()
    }

    /// Goes to the line before, or behind, in the history.
    fn recall(&mut self, older: bool) -> bool {
        let back = self.recalled.as_ref().map_or(0, |(back, _)| *back);
        let Some(back) = (if older { back.checked_add(1) } else { back.checked_sub(1) }) else {
            return false;
        };
        if back == 0 {
            if let Some((_, draft)) = self.recalled.take() {
                self.set(draft);
            }
            return true;
        }
        let at = self.history.len().checked_sub(back);
        let Some(line) = at.and_then(|at| self.history.get(at)).cloned() else { return false };
        let draft = match self.recalled.take() {
            Some((_, draft)) => draft,
            None => self.take(),
        };
        self.recalled = Some((back, draft));
        self.set(line);
        true
    }

    /// Adds what all candidates have in common; if that is nothing, Tab once more shows them.
    fn tab(&mut self, complete: &dyn Complete, stuck: bool, out: &mut Vec<u8>) -> bool {
        let before = core::str::from_utf8(&self.left).unwrap_or_default();
        let Completion { start, candidates } = complete.complete(before);
        let begun = before.len().saturating_sub(start);
        let Some((first, others)) = candidates.split_first() else { return false };
        let common = others.iter().fold(first.len(), |common, other| {
            let same = first.bytes().zip(other.bytes()).take_while(|(a, b)| a == b);
            same.count().min(common)
        });
        let mut fine = true;
        let added = first.as_bytes().get(begun..common).unwrap_or_default();
        for byte in added {
            fine &= self.insert(*byte);
        }
        if others.is_empty() {
            return fine && (self.right.last() == Some(&b' ') || self.insert(b' '));
        }
        if !added.is_empty() {
            return fine;
        }
        self.stuck = true;
        if stuck {
            show_candidates(&candidates, out);
        }
        stuck
    }
}

/// Moves a character from one stack to the other.
fn shift(from: &mut Vec<u8>, to: &mut Vec<u8>) -> bool {
    from.pop().map(|byte| to.push(byte)).is_some()
}

fn show_candidates(candidates: &[String], out: &mut Vec<u8>) {
    let shown = candidates.get(..SHOWN).unwrap_or(candidates);
    let width = shown.iter().map(String::len).max().unwrap_or(0) + 2;
    let columns = ((COLUMNS - 1) / width).max(1);
    for row in shown.chunks(columns) {
        out.extend_from_slice(b"\r\n");
        for word in row {
            out.extend_from_slice(alloc::format!("{word:<width$}").as_bytes());
        }
    }
    if let Some(more @ 1..) = candidates.len().checked_sub(SHOWN) {
        out.extend_from_slice(alloc::format!("\r\nand {more} more").as_bytes());
    }
    out.extend_from_slice(b"\r\n");
}
