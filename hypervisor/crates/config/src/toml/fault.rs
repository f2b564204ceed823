//! Faults of a configuration, and their places: [`Fault`], [`ConfigError`].

use super::schema::quoted;
use super::words::similar;
use alloc::borrow::ToOwned;
use alloc::format;
use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;
use core::fmt;
use core::ops::Range;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Fault {
    /// Place in the text, in bytes.
    pub(super) span: Range<usize>,
    /// Words for the thing that was found there.
    pub(super) found: String,
    /// Words for the things that are allowed there.
    pub(super) allowed: String,
    /// The word that was probably meant.
    pub(super) hint: Option<String>,
    /// A key inside the place, where that is what is missing.
    pub(super) inside: Option<String>,
}

impl Fault {
    /// `found` at `span`, where `allowed` is.
    pub(super) fn new(
        span: Range<usize>,
        found: impl Into<String>,
        allowed: impl Into<String>,
    ) -> Fault {
        Fault { span, found: found.into(), allowed: allowed.into(), hint: None, inside: None }
    }

    /// The same fault, with the one of the `known` words that `word` was probably meant to be.
    pub(super) fn meaning<'a>(self, word: &str, known: impl Iterator<Item = &'a str>) -> Fault {
        let hint = similar(word, known).map(str::to_owned);
        Fault { hint, ..self }
    }

    /// The fault that serde or the parser found in `text`.
    pub(super) fn from_toml(error: &toml::de::Error, text: &str) -> Fault {
        let span = error.span().unwrap_or(0..0);
        if let Some(fault) = usual_slip(&span, text) {
            return fault;
        }
        let message = error.message();
        let words: Vec<&str> = quoted(message).collect();
        let known = || words.iter().skip(1).copied();
        let list = || known().collect::<Vec<_>>().join(", ");
        match (words.first(), message.split_once(", expected ")) {
            (Some(word), _) if message.starts_with("unknown field") => {
                Fault::new(span, "a key that does not exist", list()).meaning(word, known())
            }
            (Some(word), _) if message.starts_with("unknown variant") => {
                Fault::new(span, format!("\"{word}\""), list()).meaning(word, known())
            }
            (Some(word), _) if message.starts_with("missing field") => {
                let fault = Fault::new(span, "nothing", "this key is required");
                Fault { inside: Some((*word).to_owned()), ..fault }
            }
            (_, Some((found, allowed))) => {
                let found = found.trim_start_matches("invalid type: ");
                Fault::new(span, found.replace('`', ""), allowed)
            }
            _ => Fault::new(span, message.trim(), "TOML, as https://toml.io describes it"),
        }
    }
}

/// A fault for a slip of which the parser says what it found, and not what is wrong: a line that
/// ends behind its `=`, and the header `[guest]`.
fn usual_slip(span: &Range<usize>, text: &str) -> Option<Fault> {
    let start = text.get(..span.start)?.rfind('\n').map_or(0, |at| at + 1);
    let line = text.get(start..)?.lines().next()?;
    let code = line.split('#').next().unwrap_or_default().trim();
    // Only the line up to the fault counts: a string that holds such text is no slip.
    let before = text.get(start..span.start)?.trim();
    if code.ends_with('=') && !code.contains(['"', '\'']) && before == code {
        return Some(Fault::new(span.clone(), "no value behind `=`", "a value"));
    }
    let is_header = code.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    if is_header.map(str::trim) == Some("guest") {
        let allowed = "there may be several guests: write [[guest]]";
        return Some(Fault::new(span.clone(), "[guest]", allowed));
    }
    None
}

/// A configuration that can't be used: everything that is wrong with it.
#[derive(Debug)]
pub struct ConfigError {
    name: String,
    text: String,
    faults: Vec<Fault>,
}

impl ConfigError {
    pub(super) fn new(name: &str, text: &str, mut faults: Vec<Fault>) -> ConfigError {
        faults.sort_by_key(|fault| fault.span.start);
        ConfigError { name: name.to_owned(), text: text.to_owned(), faults }
    }
}

impl core::error::Error for ConfigError {}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let table = DeTable::parse(&self.text).ok();
        for (number, fault) in self.faults.iter().enumerate() {
            if number != 0 {
                writeln!(f)?;
            }
            let (line, column) = position(&self.text, fault.span.start);
            write!(f, "{}:{line}:{column}: ", self.name)?;
            let place = table.as_ref().and_then(|table| place(table.get_ref(), fault));
            if let Some(place) = place {
                write!(f, "{place}: ")?;
            }
            write!(f, "found {}; allowed: {}", fault.found, fault.allowed)?;
            if let Some(hint) = &fault.hint {
                write!(f, "; did you mean \"{hint}\"?")?;
            }
            let text = self.text.lines().nth(line - 1).unwrap_or_default();
            write!(f, "\n  {line} | {}", text.trim_end())?;
        }
        Ok(())
    }
}

/// Line and column, from 1, of a byte of the text.
fn position(text: &str, at: usize) -> (usize, usize) {
    let before = text.get(..at).unwrap_or(text);
    let line = before.matches('\n').count() + 1;
    let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
    (line, column)
}

/// The key that a fault is about, and the guest that it belongs to.
fn place(table: &DeTable<'_>, fault: &Fault) -> Option<String> {
    let mut keys = path(table, fault.span.start).unwrap_or_default();
    keys.extend(fault.inside.as_deref());
    if keys.is_empty() {
        return None;
    }
    let key = format!("key `{}`", keys.join("."));
    Some(match guest_name(table, &fault.span) {
        Some(name) => format!("guest \"{name}\": {key}"),
        None => key,
    })
}

/// The keys that lead to byte `at`: to the key there, or to that of the value there.
fn path<'a>(table: &'a DeTable<'_>, at: usize) -> Option<Vec<&'a str>> {
    table.iter().find_map(|(key, value)| {
        let inner = inside(value, at);
        let here = || {
            let hit = key.span().contains(&at) || value.span().contains(&at);
            hit.then(Vec::new)
        };
        let rest = inner.or_else(here)?;
        Some([vec![key.get_ref().as_ref()], rest].concat())
    })
}

fn inside<'a>(value: &'a Spanned<DeValue<'_>>, at: usize) -> Option<Vec<&'a str>> {
    match value.get_ref() {
        DeValue::Table(table) => path(table, at),
        DeValue::Array(array) => array.iter().find_map(|value| {
            inside(value, at).or_else(|| value.span().contains(&at).then(Vec::new))
        }),
        _ => None,
    }
}

/// The name of the guest that the place belongs to.
fn guest_name<'a>(table: &'a DeTable<'_>, span: &Range<usize>) -> Option<&'a str> {
    let guests = table.get("guest")?.get_ref().as_array()?;
    let guest = guests
        .iter()
        .find(|guest| inside(guest, span.start).is_some() || guest.span().contains(&span.start))?;
    guest.get_ref().as_table()?.get("name")?.get_ref().as_str()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_count_from_one_and_in_characters() {
        assert_eq!(position("ab\nc", 0), (1, 1));
        assert_eq!(position("ab\nc", 3), (2, 1));
        assert_eq!(position("é=x", 3), (1, 3));
        assert_eq!(position("ab\n", 99), (2, 1));
    }
}
