//! Lines of code, and `unsafe`, in the text of a file.

/// Counts of a crate's source.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Counts {
    pub(super) lines: usize,
    /// `unsafe` in any form: block, function, implementation, `extern`.
    pub(super) unsafes: usize,
}

impl std::ops::AddAssign for Counts {
    fn add_assign(&mut self, more: Self) {
        self.lines += more.lines;
        self.unsafes += more.unsafes;
    }
}

/// Counts in one file: reads it as far as needed to tell code from comments,
/// strings and characters.
pub(super) fn count(text: &str) -> Counts {
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
