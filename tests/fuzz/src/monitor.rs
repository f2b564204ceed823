//! Whatever is typed at the monitor, each line is a command or an error in
//! words, and the editor's output stays in proportion.

// The crate under test, which includes this file, has no prelude of `std`.
extern crate alloc;

use alloc::string::ToString;
use alloc::vec::Vec;
use control::Known;
use control::command::{Command, Completer, parse};
use control::line::{Editor, Entered, MAX_LINE};

/// One case: what is typed.
pub fn run(data: &[u8]) {
    let guests = [Known { number: 1, name: "debian" }, Known { number: 2, name: "dos" }];
    let completer = Completer { guests: &guests };
    let mut editor = Editor::new("steward> ");
    for byte in data {
        let mut out = Vec::new();
        let entered = editor.feed(*byte, &completer, &mut out);
        assert!(out.len() < 2000, "{}", out.len());
        assert!(editor.line().len() <= MAX_LINE);
        let Some(Entered::Line(line)) = entered else { continue };
        match parse(&line) {
            Ok(Some(Command::Help(text))) => assert!(!text.is_empty()),
            Ok(None) => assert!(line.trim().is_empty()),
            Ok(Some(_)) => {}
            Err(error) => assert!(!error.to_string().is_empty()),
        }
    }
}
