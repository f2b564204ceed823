//! Filter for a guest's output on its way to the operator's terminal.
//!
//! A terminal does more than show: some sequences make it send something back (its
//! position, its title, a colour, what a key was defined as), as if the operator had typed
//! it, and some change what keys send or how later bytes are read. A guest must not be able
//! to type into whatever reads the terminal next: the monitor, or a shell. [`Screen`] lets
//! through what is known to do no more than show, and leaves out the rest; a program that
//! asks its terminal something gets no answer, as on a terminal that does not know the
//! question.
//!
//! Output that passes: text (UTF-8; a lone byte of an older character set from 0xA0 on), the usual
//! control characters, and the sequences in `shows_only`, `MODES` and `shifts_only`:
//! cursor, erasing, scrolling, colours, cursor shape, alternate screen, line drawing. Each
//! comes out whole, in seven bits, never half.
//!
//! Changes that pass and outlast the guest's turn are undone by [`Screen::reset`] when somebody
//! else gets the terminal. Changes that nobody could undo on every terminal do not pass: tab stops,
//! lines of double size, positions that count from the scrolling region's start.
//!
//! For terminals that read UTF-8, or seven bits. One that takes the bytes 0x80 to 0x9f for
//! control characters even inside of a UTF-8 character can't be served without mangling
//! text.
//!
//! ECMA-48: "Control functions"; xterm: "XTerm Control Sequences".

mod modes;
#[cfg(test)]
mod tests;

use alloc::vec::Vec;
use arrayvec::ArrayVec;
use modes::Modes;

/// The longest sequence that can pass, in bytes.
pub const LONGEST: usize = 96;
/// The most digits of a parameter: a larger count than that is no terminal's.
const DIGITS: usize = 5;
/// The same where a character is repeated (REP), which no terminal limits to its screen: no
/// program repeats one for longer than a line, and more is a flood out of a few bytes.
const REPEAT_DIGITS: usize = 3;
/// DEC's private modes that a guest may set: cursor keys, reverse video, wrap, blinking and
/// visible cursor, the alternate screen, marks around what is pasted.
pub const MODES: [&[u8]; 10] =
    [b"1", b"5", b"7", b"12", b"25", b"47", b"1047", b"1048", b"1049", b"2004"];

const BEL: u8 = 0x07;
const ESC: u8 = 0x1b;
const CAN: u8 = 0x18;
const SUB: u8 = 0x1a;
const DEL: u8 = 0x7f;

/// Place of the output in a sequence.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    /// In none.
    #[default]
    Text,
    /// In a UTF-8 character, of which so many bytes are missing.
    Character(u8),
    /// Behind ESC.
    Escape,
    /// Behind ESC and an intermediate byte.
    Shift,
    /// Behind CSI.
    Control,
    /// In a control sequence that will not pass.
    Skipped,
    /// In a string that is for the terminal itself, and does not pass.
    String,
}

/// The filter for one guest: see the [module](self).
#[derive(Clone, Debug, Default)]
pub struct Screen {
    state: State,
    /// The beginning of a sequence that is not complete.
    held: ArrayVec<u8, LONGEST>,
    /// Changes of the terminal by all that was shown.
    modes: Modes,
}

impl Screen {
    /// A filter that has seen nothing.
    #[must_use]
    pub const fn new() -> Self {
        Self { state: State::Text, held: ArrayVec::new_const(), modes: Modes::new() }
    }

    /// How many bytes at the start of `bytes` are plain text, which
    /// [`feed`](Self::feed) would give back one by one.
    #[must_use]
    pub fn plain(&self, bytes: &[u8]) -> usize {
        if self.state != State::Text {
            return 0;
        }
        let special = |byte: &u8| !matches!(byte, b' '..=b'~' | b'\n' | b'\r' | b'\t' | 0x08);
        bytes.iter().position(special).unwrap_or(bytes.len())
    }

    /// Takes the next byte; `show` gets what can be shown now, if anything: at most
    /// [`LONGEST`] bytes, that belong together.
    pub fn feed(&mut self, byte: u8, show: &mut impl FnMut(&[u8])) {
        match (self.state, byte) {
            (State::Text, _) => self.text(byte, show),
            (State::Character(left), _) => self.character(left, byte, show),
            (State::String, BEL | CAN | SUB) => self.begin(State::Text),
            // A string that nobody ends must not swallow all that follows.
            (State::String, b'\n' | ESC) => self.text(byte, show),
            (State::String, _) => {}
            // From here on in a sequence.
            (_, ESC | CAN | SUB | 0x80..) => self.text(byte, show),
            (_, DEL) => {}
            (_, ..0x20) => self.control(byte, show),
            (State::Escape, b'[') => self.go_on(State::Control, byte),
            (State::Escape, b']' | b'P' | b'X' | b'^' | b'_') => self.begin(State::String),
            (State::Escape | State::Shift, b' '..=b'/') => self.go_on(State::Shift, byte),
            (State::Escape | State::Shift, _) => self.finish(byte, shifts_only, show),
            (State::Control, b' '..=b'?') => self.go_on(State::Control, byte),
            (State::Control, _) => self.finish(byte, shows_only, show),
            (State::Skipped, b' '..=b'?') => {}
            (State::Skipped, _) => self.begin(State::Text),
        }
    }

    /// Output that can be shown now that `bytes` have come.
    #[must_use]
    pub fn filter(&mut self, bytes: &[u8]) -> Vec<u8> {
        let mut out = Vec::with_capacity(bytes.len());
        for &byte in bytes {
            self.feed(byte, &mut |part| out.extend_from_slice(part));
        }
        out
    }

    /// Sequences that put the terminal back as it was before anything was shown: for when it goes
    /// to somebody else. None, if only text was shown, and sequences that change nothing for long.
    #[must_use]
    pub fn reset(&mut self) -> Vec<u8> {
        self.modes.reset()
    }

    /// Sequences that repeat what the guest's programs set once, and count on: for when the guest
    /// has the terminal again after a [reset](Self::reset).
    #[must_use]
    pub fn again(&mut self) -> Vec<u8> {
        self.modes.again()
    }

    /// The terminal got all of the bytes, not only those that pass: the next
    /// [reset](Self::reset) takes nothing for granted.
    pub fn doubt(&mut self) {
        self.modes.doubt();
    }

    /// The guest that wrote this is gone: nobody counts on anything any more.
    pub fn forget(&mut self) {
        self.modes.forget();
    }

    /// Forgets what is held.
    fn begin(&mut self, state: State) {
        self.held.clear();
        self.state = state;
    }

    /// Holds one more byte of a sequence; one that is too long will not pass.
    fn go_on(&mut self, state: State, byte: u8) {
        self.state = match self.held.try_push(byte) {
            Ok(()) => state,
            Err(_) => State::Skipped,
        };
    }

    /// The last byte of a sequence came: `passes` says whether it is shown.
    fn finish(
        &mut self,
        byte: u8,
        passes: impl FnOnce(&[u8], u8) -> bool,
        show: &mut impl FnMut(&[u8]),
    ) {
        if passes(&self.held, byte) && self.held.try_push(byte).is_ok() {
            self.modes.note(&self.held);
            show(&self.held);
        }
        self.begin(State::Text);
    }

    /// A control character, also one in the middle of a sequence. Left out: ENQ, which asks
    /// for an answer; DC1 to DC4, which stop and start what is typed; CAN and SUB, which end
    /// a sequence of which nothing was shown.
    fn control(&mut self, byte: u8, show: &mut impl FnMut(&[u8])) {
        if !matches!(byte, 0x05 | 0x11..=0x14 | CAN | SUB) {
            self.modes.note_control(byte);
            show(&[byte]);
        }
    }

    /// A byte outside of all sequences; a sequence that was not complete is dropped.
    fn text(&mut self, byte: u8, show: &mut impl FnMut(&[u8])) {
        self.begin(State::Text);
        match byte {
            ESC => self.go_on(State::Escape, byte),
            ..0x20 => self.control(byte, show),
            // The control characters of eight bits.
            0x80..=0x9f => {}
            0xc2..=0xdf => self.go_on(State::Character(1), byte),
            0xe0..=0xef => self.go_on(State::Character(2), byte),
            0xf0..=0xf4 => self.go_on(State::Character(3), byte),
            _ => show(&[byte]),
        }
    }

    /// A further byte of a UTF-8 character (Unicode: "Well-Formed UTF-8 Byte Sequences").
    fn character(&mut self, left: u8, byte: u8, show: &mut impl FnMut(&[u8])) {
        let fits = match self.held.as_slice() {
            [0xe0] => (0xa0..=0xbf).contains(&byte),
            [0xed] => (0x80..=0x9f).contains(&byte),
            [0xf0] => (0x90..=0xbf).contains(&byte),
            [0xf4] => (0x80..=0x8f).contains(&byte),
            _ => (0x80..=0xbf).contains(&byte),
        };
        if !fits {
            // No character: of its bytes only those that are no control characters.
            for lone in self.held.iter().filter(|lone| **lone >= 0xa0) {
                show(&[*lone]);
            }
            return self.text(byte, show);
        }
        self.go_on(State::Character(left.saturating_sub(1)), byte);
        if left <= 1 {
            // U+0080 to U+009F are the control characters of eight bits again.
            if !matches!(self.held.as_slice(), [0xc2, 0x80..=0x9f]) {
                show(&self.held);
            }
            self.begin(State::Text);
        }
    }
}

/// Whether the sequence `held`, which begins with ESC and is no control sequence, may end with
/// `last`: save and restore the cursor, index and next line, keypad, reset, a character set for G0
/// to G3, usual line size and alignment. Not those that invoke an answer (DECID), another encoding,
/// or controls of eight bits; nor a tab stop or a line of double size, which outlast the guest.
fn shifts_only(held: &[u8], last: u8) -> bool {
    match held {
        [ESC] => b"78DEM=>c".contains(&last),
        [ESC, b'(' | b')' | b'*' | b'+'] => b"0ABKU".contains(&last),
        [ESC, b'#'] => b"58".contains(&last),
        _ => false,
    }
}

/// Whether the control sequence `held`, which begins with CSI, may end with `last`.
fn shows_only(held: &[u8], last: u8) -> bool {
    let [ESC, b'[', body @ ..] = held else { return false };
    let (private, body) = match body {
        [b'?', body @ ..] => (true, body),
        _ => (false, body),
    };
    let end = body.iter().position(|byte| matches!(byte, b' '..=b'/')).unwrap_or(body.len());
    let (parameters, intermediate) = body.split_at_checked(end).unwrap_or_default();
    // Parts of a colour may stand behind colons.
    let known = |byte: &u8| matches!(byte, b'0'..=b'9' | b';') || *byte == b':' && last == b'm';
    let mut numbers = parameters.split(|byte| matches!(byte, b';' | b':'));
    if !parameters.iter().all(known) || numbers.any(|number| number.len() > DIGITS) {
        return false;
    }
    let mut numbers = parameters.split(|byte| *byte == b';');
    match (private, intermediate, last) {
        (true, b"", b'h' | b'l') => numbers.all(|number| MODES.contains(&number)),
        (true, b"", b'J' | b'K') => true,
        // With five it is no scrolling, but tracks the mouse.
        (false, b"", b'T') => numbers.count() == 1,
        // With parameters it is no saved cursor.
        (false, b"", b's' | b'u') => parameters.is_empty(),
        // Insert mode.
        (false, b"", b'h' | b'l') => numbers.all(|number| number == b"4"),
        (false, b"", b'b') => parameters.len() <= REPEAT_DIGITS,
        (false, b"", _) => b"@ABCDEFGHIJKLMPSXZ`adefmr".contains(&last),
        (false, b" ", b'q') => true,
        (false, b"!", b'p') => parameters.is_empty(),
        _ => false,
    }
}
