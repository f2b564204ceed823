//! State in which a guest leaves the terminal, on a model of one.

use super::*;

/// How terminals differ.
#[derive(Clone, Copy, Debug)]
struct Kind {
    /// Each screen has attributes and a character set of its own.
    apart: bool,
    /// A cursor that was saved brings back the wrap of long lines, too.
    saves_wrap: bool,
    /// A soft reset turns the wrap off, as DEC's terminals do.
    soft_stops_wrap: bool,
    /// A reset leaves the alternate screen.
    reset_leaves: bool,
}

/// State that goes with a cursor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Pen {
    attributes: bool,
    charset: u8,
    shifted: bool,
    wraps: bool,
    /// The cursor was taken to the corner.
    home: bool,
}

const PEN: Pen = Pen { attributes: false, charset: b'B', shifted: false, wraps: true, home: false };

/// State that a sequence may change for long, as far as the filter lets it through or the
/// reset speaks of it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Lasting {
    region: bool,
    insert: bool,
    hidden: bool,
    cursor_keys: bool,
    keypad: bool,
    paste: bool,
    mouse: bool,
    reverse: bool,
    blink: bool,
    shape: bool,
}

const LASTING: Lasting = Lasting {
    region: false,
    insert: false,
    hidden: false,
    cursor_keys: false,
    keypad: false,
    paste: false,
    mouse: false,
    reverse: false,
    blink: false,
    shape: false,
};

#[derive(Clone, Debug)]
struct Terminal {
    kind: Kind,
    pen: Pen,
    other_pen: Pen,
    saved: [Pen; 2],
    alternate: bool,
    lasting: Lasting,
    printed: usize,
}

impl Terminal {
    fn new(kind: Kind) -> Self {
        Self {
            kind,
            pen: PEN,
            other_pen: PEN,
            saved: [PEN; 2],
            alternate: false,
            lasting: LASTING,
            printed: 0,
        }
    }

    fn is_usual(&self) -> bool {
        !self.alternate && self.lasting == LASTING && Pen { home: false, ..self.pen } == PEN
    }

    fn save(&mut self) {
        self.saved[usize::from(self.alternate)] = self.pen;
    }

    fn restore(&mut self) {
        let wraps = self.pen.wraps;
        self.pen = self.saved[usize::from(self.alternate)];
        if !self.kind.saves_wrap {
            self.pen.wraps = wraps;
        }
    }

    fn go_to(&mut self, alternate: bool) {
        if self.alternate != alternate && self.kind.apart {
            core::mem::swap(&mut self.pen, &mut self.other_pen);
        }
        self.alternate = alternate;
    }

    fn take(&mut self, bytes: &[u8]) {
        let mut rest = bytes;
        while let Some((first, tail)) = rest.split_first() {
            rest = tail;
            match first {
                0x0e => self.pen.shifted = true,
                0x0f => self.pen.shifted = false,
                0x1b => {
                    let control = rest.first() == Some(&b'[');
                    let from = usize::from(control);
                    let low = if control { b' '..=b'?' } else { b' '..=b'/' };
                    let length = rest[from..].iter().take_while(|byte| low.contains(byte)).count();
                    let Some(last) = rest.get(from + length) else { return };
                    let body = std::str::from_utf8(&rest[from..from + length]).unwrap();
                    if control {
                        self.control(body, *last);
                    } else {
                        self.escape(body, *last);
                    }
                    rest = &rest[from + length + 1..];
                }
                0x20.. => self.printed += 1,
                _ => {}
            }
        }
    }

    fn escape(&mut self, body: &str, last: u8) {
        match (body, last) {
            ("", b'7') => self.save(),
            ("", b'8') => self.restore(),
            ("", b'=') => self.lasting.keypad = true,
            ("", b'>') => self.lasting.keypad = false,
            ("", b'c') => {
                let alternate = self.alternate && !self.kind.reset_leaves;
                *self = Self { printed: self.printed, alternate, ..Self::new(self.kind) };
            }
            ("(", set) => self.pen.charset = set,
            _ => {}
        }
    }

    fn control(&mut self, body: &str, last: u8) {
        let set = last == b'h';
        match (body, last) {
            ("", b's') => self.save(),
            ("", b'u') => self.restore(),
            ("4", b'h' | b'l') => self.lasting.insert = set,
            ("!", b'p') => {
                let home = self.pen.home;
                let wraps = self.pen.wraps && !self.kind.soft_stops_wrap;
                self.pen = Pen { home, wraps, ..PEN };
            }
            (_, b'm') => {
                for part in body.split(';') {
                    self.pen.attributes = !part.bytes().all(|byte| byte == b'0');
                }
            }
            (_, b'r') => {
                self.lasting.region = !body.is_empty();
                self.pen.home = true;
            }
            (_, b'q') => self.lasting.shape = !body.bytes().all(|byte| b"0 ".contains(&byte)),
            (_, b'h' | b'l') => {
                let Some(body) = body.strip_prefix('?') else { return };
                for mode in body.split(';') {
                    self.mode(mode, set);
                }
            }
            _ => {}
        }
    }

    fn mode(&mut self, mode: &str, set: bool) {
        match mode {
            "1" => self.lasting.cursor_keys = set,
            "5" => self.lasting.reverse = set,
            "7" => self.pen.wraps = set,
            "12" => self.lasting.blink = set,
            "25" => self.lasting.hidden = !set,
            "2004" => self.lasting.paste = set,
            "9" | "1000" | "1002" | "1003" | "1004" | "1006" => self.lasting.mouse = set,
            "47" | "1047" => self.go_to(set),
            "1048" | "1049" if set => {
                self.save();
                self.go_to(self.alternate || mode == "1049");
            }
            "1048" => self.restore(),
            "1049" => {
                self.go_to(false);
                self.restore();
            }
            _ => {}
        }
    }
}

const XTERM: Kind =
    Kind { apart: false, saves_wrap: false, soft_stops_wrap: false, reset_leaves: true };

fn kind() -> impl Strategy<Value = Kind> {
    any::<[bool; 4]>().prop_map(|[apart, saves_wrap, soft_stops_wrap, reset_leaves]| Kind {
        apart,
        saves_wrap,
        soft_stops_wrap,
        reset_leaves,
    })
}

/// Output that leaves a state changed, each piece by itself.
const LEAVING: [&str; 25] = [
    "\x1b[8m",
    "\x1b[0;31m",
    "\x1b[38:5:208m",
    "\x1b(0",
    "\x0e",
    "\x1b[?1049h",
    "\x1b[?1047h",
    "\x1b[?47h",
    "\x1b[1;1r",
    "\x1b[r\x1b[2r",
    "\x1b[?25l",
    "\x1b[4h",
    "\x1b=",
    "\x1b[?2004h",
    "\x1b[?1h",
    "\x1b[?7l",
    "\x1b[?5h",
    "\x1b[?12h",
    "\x1b[2 q",
    "\x1b[?25;1h\x1b[?25;7l",
    // A saved state comes back.
    "\x1b[8m\x1b7\x1b[m\x1b8",
    "\x1b(0\x1b[s\x1b(B\x1b[u",
    "\x0e\x1b[?1048h\x0f\x1b[?1048l",
    "\x1b[8m\x1b[?1049h\x1b[m",
    "\x1b[8m\x1b[?1049h\x1b[m\x1b[?1049l",
];

/// Output of somebody who is after the terminal.
fn modes() -> impl Strategy<Value = Vec<u8>> {
    let undo = ["\x1b[m", "\x1b(B", "\x0f", "\x1b[?1049l", "\x1b[?47l", "\x1b[r", "\x1b[?25h"];
    let more = ["\x1bc", "\x1b[!p", "\x1b7", "\x1b8", "\x1b[?1048l", "\x1b[?1h\x1b[?7h", "text"];
    let text = |text: &str| text.as_bytes().to_vec();
    let part = prop_oneof![
        3 => prop::sample::select(LEAVING.to_vec()).prop_map(text),
        2 => prop::sample::select(undo.to_vec()).prop_map(text),
        1 => prop::sample::select(more.to_vec()).prop_map(text),
        1 => output(),
    ];
    prop::collection::vec(part, 0..12).prop_map(|parts| parts.concat())
}

#[test]
fn what_a_guest_leaves_is_put_back() {
    for text in LEAVING {
        let (mut screen, mut terminal) = (Screen::new(), Terminal::new(XTERM));
        let out = screen.filter(text.as_bytes());
        assert_eq!(out, text.as_bytes());
        terminal.take(&out);
        assert!(!terminal.is_usual(), "{text:?}");
        terminal.take(&screen.reset());
        assert!(terminal.is_usual(), "{text:?}: {terminal:?}");
        // One reset is enough.
        assert_eq!(screen.reset(), b"", "{text:?}");
    }
}

#[test]
fn nothing_is_sent_for_a_guest_that_only_prints() {
    for text in [
        "plain text, 100 %\r\n\ttab \x08\x08 bell \x07 é 💡",
        "\x1b[1;32mroot@steward\x1b[0m:\x1b[01;34m~\x1b[00m# ls\x1b[K\x1b[m\r\n",
        "\x1b[H\x1b[2J\x1b[22;1Htext\x1b[2A\x1b[T\x1bM\x1b[9b",
        // A program that has put all back itself.
        "\x1b[?2004h\x1b[?2004l\x1b[?25l\x1b[?25h\x1b[?1h\x1b=\x1b[?1l\x1b>\x1b(0q\x1b(B\x0eq\x0f",
        // Sequences that do not reach the terminal.
        "\x1b[?1000h\x1b]0;title\x07\x1b[?6h",
        "",
    ] {
        let mut screen = Screen::new();
        let _ = screen.filter(text.as_bytes());
        assert_eq!(screen.reset(), b"", "{text:?}");
        assert_eq!(screen.again(), b"", "{text:?}");
    }
}

#[test]
fn a_guest_that_comes_back_finds_what_its_programs_count_on() {
    let mut screen = Screen::new();
    let _ = screen.filter(b"\x1b[?1049h\x1b[?1h\x1b=\x1b[?25l\x1b[?2004h\x1b[31m\x1b[2;9r");
    let mut terminal = Terminal::new(XTERM);
    let _ = screen.reset();
    let again = screen.again();
    terminal.take(&again);
    let Lasting { cursor_keys, keypad, hidden, paste, .. } = terminal.lasting;
    assert!(terminal.alternate && cursor_keys && keypad && hidden && paste, "{again:?}");
    // The reset leaves them as before.
    terminal.take(&screen.reset());
    assert!(terminal.is_usual(), "{terminal:?}");
    // The program has ended meanwhile, or the guest has.
    let _ = screen.filter(b"\x1b[?1049l\x1b[?1l\x1b>\x1b[?25h");
    assert_eq!(screen.again(), b"\x1b[?2004h");
    for end in [&b"\x1bc"[..], b"\x1b[!p"] {
        let _ = screen.filter(b"\x1b[?1049h\x1b[?1h");
        let _ = screen.filter(end);
        assert_eq!(screen.again(), b"");
    }
    let _ = screen.filter(b"\x1b[?1h");
    screen.forget();
    assert_eq!(screen.again(), b"");
}

#[test]
fn a_terminal_that_got_everything_is_put_back_as_well() {
    let mut terminal = Terminal::new(XTERM);
    terminal.take(b"\x1b[?1000;1002;1003;1006h\x1b[?1004h\x1b[?9;1h\x1b[3;8m");
    let mut screen = Screen::new();
    screen.doubt();
    let reset = screen.reset();
    terminal.take(&reset);
    assert!(terminal.is_usual(), "{terminal:?}");
    // Nobody was on the other screen: the cursor stays.
    assert!(!reset.windows(6).any(|part| part == b"\x1b[?104"), "{reset:?}");
}

proptest! {
    #[test]
    fn whoever_comes_next_finds_the_terminal_as_it_was(
        bytes in modes(), before in modes(), kind in kind(),
    ) {
        let mut terminal = Terminal::new(kind);
        // Another guest had it first, whose saved cursors are still there.
        for bytes in [before, bytes] {
            let mut screen = Screen::new();
            let mut out = screen.filter(&bytes);
            terminal.take(&out);
            let (was, printed) = (terminal.clone(), terminal.printed);
            out = screen.reset();
            terminal.take(&out);
            prop_assert!(terminal.is_usual(), "{:?}: {:?}", out, terminal);
            // Nothing is shown, and the cursor stays.
            prop_assert_eq!(terminal.printed, printed);
            if !was.alternate && !out.starts_with(b"\x1b[?") {
                prop_assert_eq!(terminal.pen.home, was.pen.home);
            }
            prop_assert_eq!(screen.reset(), b"");
        }
    }

    #[test]
    fn the_reset_passes_the_filter(bytes in modes()) {
        let mut screen = Screen::new();
        let _ = screen.filter(&bytes);
        let reset = screen.reset();
        prop_assert_eq!(filtered(&reset), reset);
    }
}
