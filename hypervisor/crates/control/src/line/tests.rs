//! Tests of the line editor against a model of the terminal.

extern crate std;
use super::*;
use alloc::format;
use proptest::prelude::*;
use std::string::ToString;
use std::vec;

#[path = "../../../../../tests/fuzz/src/monitor.rs"]
#[expect(unreachable_pub, reason = "public where the fuzz targets call it")]
mod fuzz;

const PROMPT: &str = "steward> ";

struct Words(&'static [&'static str]);

impl Complete for Words {
    fn complete(&self, before: &str) -> Completion {
        let start = before.rfind(' ').map_or(0, |space| space + 1);
        let matching = self.0.iter().filter(|word| word.starts_with(&before[start..]));
        Completion { start, candidates: matching.map(|word| (*word).to_string()).collect() }
    }
}

const WORDS: Words = Words(&["list", "resume", "restart", "reboot"]);

/// The row of a terminal where its cursor is.
#[derive(Default)]
struct Screen {
    row: Vec<char>,
    column: usize,
    above: Vec<String>,
    bells: usize,
}

impl Screen {
    fn text(&self) -> String {
        self.row.iter().collect::<String>().trim_end().to_string()
    }

    fn print(&mut self, bytes: &[u8]) {
        let mut bytes = bytes.iter().copied();
        while let Some(byte) = bytes.next() {
            match byte {
                7 => self.bells += 1,
                b'\r' => self.column = 0,
                b'\n' => {
                    self.above.push(self.text());
                    self.row.clear();
                }
                0x1b => {
                    assert_eq!(bytes.next(), Some(b'['));
                    let mut number = String::new();
                    let end = loop {
                        match bytes.next().unwrap() {
                            digit @ b'0'..=b'9' => number.push(digit.into()),
                            end => break end,
                        }
                    };
                    match end {
                        b'K' => self.row.truncate(self.column),
                        b'D' => self.column -= number.parse::<usize>().unwrap(),
                        b'H' => self.column = 0,
                        b'J' => self.row.clear(),
                        other => panic!("{other}"),
                    }
                }
                b' '..=b'~' => {
                    assert!(self.column < COLUMNS - 1, "it would wrap");
                    let length = self.row.len().max(self.column + 1);
                    self.row.resize(length, ' ');
                    self.row[self.column] = byte.into();
                    self.column += 1;
                }
                other => panic!("{other:#x}"),
            }
        }
    }
}

struct Terminal {
    editor: Editor,
    screen: Screen,
    entered: Vec<Entered>,
}

impl Terminal {
    fn new() -> Self {
        let mut new =
            Self { editor: Editor::new(PROMPT), screen: Screen::default(), entered: vec![] };
        new.show();
        new
    }

    fn show(&mut self) {
        let mut out = Vec::new();
        self.editor.show(&mut out);
        self.screen.print(&out);
    }

    fn type_bytes(&mut self, bytes: &[u8]) {
        for byte in bytes {
            let mut out = Vec::new();
            let entered = self.editor.feed(*byte, &WORDS, &mut out);
            self.screen.print(&out);
            if let Some(entered) = entered {
                self.entered.push(entered);
                self.show();
            }
            self.check();
        }
    }

    /// The screen shows the part of the line around the cursor.
    fn check(&self) {
        let line = self.editor.line();
        assert!(line.len() <= MAX_LINE && self.editor.cursor() <= line.len());
        let room = COLUMNS - 1 - PROMPT.len();
        let first = self.editor.first;
        let end = line.len().min(first + room);
        assert_eq!(self.screen.text(), format!("{PROMPT}{}", &line[first..end]).trim_end());
        assert_eq!(self.screen.column, PROMPT.len() + self.editor.cursor() - first);
    }
}

/// The line after these bytes; `|` stands for the cursor.
fn after(bytes: &[u8]) -> String {
    let mut terminal = Terminal::new();
    terminal.type_bytes(bytes);
    let mut line = terminal.editor.line();
    line.insert(terminal.editor.cursor(), '|');
    line
}

#[test]
fn editing() {
    let table: [(&[u8], &str); 22] = [
        (b"abc", "abc|"),
        (b"abc\x1b[D\x1b[Dx", "ax|bc"),
        (b"abc\x1bOD\x02\x06", "ab|c"),
        (b"abc\x1b[D\x1b[C\x1b[C", "abc|"),
        (b"abc\x01x\x05y", "xabcy|"),
        (b"abc\x1b[Hx\x1b[Fy", "xabcy|"),
        (b"abc\x1b[1~x\x1b[4~y", "xabcy|"),
        (b"abc\x1b[7~x\x1b[8~y", "xabcy|"),
        (b"abc\x1bOHx\x1bOFy", "xabcy|"),
        (b"abc\x7f\x08", "a|"),
        (b"abc\x01\x1b[3~\x04", "|c"),
        (b"abc def\x02\x02\x15", "|ef"),
        (b"abc def\x02\x02\x0b", "abc d|"),
        (b"abc def  \x17", "abc |"),
        (b"abc def\x17\x17\x17", "|"),
        (b"abc\x1b[D\x0c", "ab|c"),
        // Unknown keys: with modifiers a cursor key is still one.
        (b"abc\x1b[1;5Dx\x1b[24~\x1bq\x1b[Z", "abx|c"),
        // A sequence that lost its end, then a fresh one.
        (b"abc\x1b[1\x1b[Dx", "abx|c"),
        ("aäb".as_bytes(), "ab|"),
        (b"\x00a\x00", "a|"),
        (b"li\t", "list |"),
        (b"li x\x01\x06\x06\t", "list| x"),
    ];
    for (bytes, wanted) in table {
        assert_eq!(after(bytes), wanted, "{}", bytes.escape_ascii());
    }
}

#[test]
fn each_kind_of_enter_is_one() {
    let mut terminal = Terminal::new();
    terminal.type_bytes(b"a\rb\nc\r\n\r\nd");
    let lines: Vec<_> = ["a", "b", "c", ""].map(|line| Entered::Line(line.to_string())).to_vec();
    assert_eq!(terminal.entered, lines);
    assert_eq!(terminal.editor.line(), "d");
    terminal.type_bytes(b"\x03");
    assert_eq!(terminal.entered.pop(), Some(Entered::Cancelled));
    assert_eq!(terminal.editor.line(), "");
    assert_eq!(terminal.screen.above.last().unwrap(), "steward> d^C");
}

#[test]
fn history() {
    let mut terminal = Terminal::new();
    terminal.type_bytes(b"one\rtwo\rtwo\r  \rdraft");
    let mut see = |bytes: &[u8]| {
        terminal.type_bytes(bytes);
        terminal.editor.line()
    };
    assert_eq!(see(b"\x1b[A"), "two");
    assert_eq!(see(b"\x1b[A"), "one");
    assert_eq!(see(b"\x1b[A"), "one");
    assert_eq!(see(b"!\x0e"), "two");
    assert_eq!(see(b"\x1b[B"), "draft");
    assert_eq!(see(b"\x1b[B"), "draft");
    assert_eq!(see(b"\x10\x10\x03\x10"), "two");
    assert!(terminal.screen.bells == 2, "{}", terminal.screen.bells);
    for n in 0..100 {
        terminal.type_bytes(format!("{n}\r").as_bytes());
    }
    terminal.type_bytes(&b"\x10".repeat(200));
    assert_eq!(terminal.editor.line(), "68");
}

#[test]
fn tab_adds_what_is_common_and_shows_the_rest() {
    let mut terminal = Terminal::new();
    terminal.type_bytes(b"r\t");
    assert_eq!((terminal.editor.line().as_str(), terminal.screen.bells), ("re", 0));
    terminal.type_bytes(b"\t");
    assert_eq!((terminal.editor.line().as_str(), terminal.screen.bells), ("re", 1));
    assert!(terminal.screen.above.is_empty());
    terminal.type_bytes(b"\t");
    assert_eq!(terminal.screen.above, ["steward> re", "resume   restart  reboot"]);
    terminal.type_bytes(b"st\tx\t");
    assert_eq!((terminal.editor.line().as_str(), terminal.screen.bells), ("restart x", 2));
}

#[test]
fn a_long_line_scrolls_and_ends() {
    let mut terminal = Terminal::new();
    let text: Vec<u8> = (0..MAX_LINE + 5).map(|n| b'a' + u8::try_from(n % 26).unwrap()).collect();
    terminal.type_bytes(&text);
    assert_eq!(terminal.editor.line().as_bytes(), &text[..MAX_LINE]);
    assert_eq!(terminal.screen.bells, 5);
    terminal.type_bytes(&b"\x02".repeat(MAX_LINE));
    assert_eq!(terminal.editor.cursor(), 0);
    terminal.type_bytes(b"\x05\x15");
    assert_eq!(terminal.screen.text(), PROMPT.trim_end());
}

#[test]
fn something_else_can_be_printed_meanwhile() {
    let mut terminal = Terminal::new();
    terminal.type_bytes(b"abc\x02");
    let mut out = Vec::new();
    terminal.editor.hide(&mut out);
    out.extend_from_slice(b"a guest ended\r\n");
    terminal.editor.show(&mut out);
    terminal.screen.print(&out);
    assert_eq!(terminal.screen.above, ["a guest ended"]);
    terminal.check();
}

proptest! {
    #[test]
    fn whatever_is_typed_the_screen_shows_the_line(
        pieces in proptest::collection::vec(
            prop_oneof![
                "[ -~]{1,30}".prop_map(String::into_bytes),
                proptest::sample::select(vec![
                    "\r", "\t", "\t\t", "\x1b[A", "\x1b[B", "\x1b[C", "\x1b[D", "\x1b[H", "\x1b[F",
                    "\x1b[3~", "\x7f", "\x01", "\x05", "\x15", "\x0b", "\x17", "\x0c", "\x03",
                ]).prop_map(|keys: &str| keys.as_bytes().to_vec()),
                proptest::collection::vec(any::<u8>(), 1..5),
            ],
            0..60,
        ),
    ) {
        let mut terminal = Terminal::new();
        terminal.type_bytes(&pieces.concat());
    }

    #[test]
    fn the_fuzz_target_holds(bytes in proptest::collection::vec(any::<u8>(), 0..500)) {
        fuzz::run(&bytes);
    }
}
