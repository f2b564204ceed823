//! Modes of the terminal that a guest's output has changed, and how they are put back.
//!
//! The terminal is not one guest's: the monitor, the next guest and the person's shell come
//! after it. [`Modes`] sees each sequence that passes the filter, so that what comes next
//! finds a terminal as it was, and a guest that only prints causes no byte.
//!
//! There is no one sequence for this: the soft reset (DECSTR) may leave the wrap of long lines off,
//! says nothing of the alternate screen, and simple terminals show its last byte. So each mode has
//! a sequence of its own, and only a mode that was set is put back: a terminal that does not know
//! the one sequence did not know the other.

use crate::screen::ESC;
use alloc::vec::Vec;
use bitflags::bitflags;

bitflags! {
    /// States of a terminal that a guest's output may leave changed.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    struct Changed: u32 {
        /// The alternate screen, by each of the modes that bring it.
        const SCREEN_1049 = 1 << 0;
        const SCREEN_1047 = 1 << 1;
        const SCREEN_47 = 1 << 2;
        /// Colours, concealed text and so on.
        const ATTRIBUTES = 1 << 3;
        /// The character set G0.
        const CHARSET = 1 << 4;
        /// G1 is shown in place of G0. G1 to G3 themselves may stay as they are: nobody sees
        /// them without a shift, and a guest that comes back counts on its own.
        const SHIFT = 1 << 5;
        /// The lines that scroll.
        const REGION = 1 << 6;
        const INSERT = 1 << 7;
        const REVERSE = 1 << 8;
        const NO_WRAP = 1 << 9;
        const BLINK = 1 << 10;
        const SHAPE = 1 << 11;
        const HIDDEN = 1 << 12;
        const CURSOR_KEYS = 1 << 13;
        const KEYPAD = 1 << 14;
        const PASTE = 1 << 15;
        /// Mouse reports: no filter lets them through, but output may reach the terminal beside it.
        const MOUSE = 1 << 16;

        const SCREENS = Self::SCREEN_1049.bits() | Self::SCREEN_1047.bits()
            | Self::SCREEN_47.bits();
        /// States that come back with a cursor that was saved, by whomever, or with the other
        /// screen: some terminals keep more with it than others.
        const RESTORED = Self::ATTRIBUTES.bits() | Self::CHARSET.bits() | Self::SHIFT.bits()
            | Self::NO_WRAP.bits();
        /// States that a program sets once and counts on until its end. All else it says again with
        /// the next thing that it draws.
        const KEPT = Self::SCREENS.bits() | Self::HIDDEN.bits() | Self::CURSOR_KEYS.bits()
            | Self::KEYPAD.bits() | Self::PASTE.bits();
    }
}

/// How each state is put back, and set again, in this order: the screens first, as attributes come
/// back with them. The cursor keeps its place.
const WAYS: [(Changed, &[u8], &[u8]); 17] = [
    (Changed::SCREEN_1049, b"\x1b[?1049l", b"\x1b[?1049h"),
    (Changed::SCREEN_1047, b"\x1b[?1047l", b"\x1b[?1047h"),
    (Changed::SCREEN_47, b"\x1b[?47l", b"\x1b[?47h"),
    (Changed::ATTRIBUTES, b"\x1b[0m", b""),
    (Changed::CHARSET, b"\x1b(B", b""),
    (Changed::SHIFT, b"\x0f", b""),
    // To set the region takes the cursor to the corner.
    (Changed::REGION, b"\x1b7\x1b[r\x1b8", b""),
    (Changed::INSERT, b"\x1b[4l", b""),
    (Changed::REVERSE, b"\x1b[?5l", b""),
    (Changed::NO_WRAP, b"\x1b[?7h", b""),
    (Changed::BLINK, b"\x1b[?12l", b""),
    (Changed::SHAPE, b"\x1b[0 q", b""),
    (Changed::HIDDEN, b"\x1b[?25h", b"\x1b[?25l"),
    (Changed::CURSOR_KEYS, b"\x1b[?1l", b"\x1b[?1h"),
    (Changed::KEYPAD, b"\x1b>", b"\x1b="),
    (Changed::PASTE, b"\x1b[?2004l", b"\x1b[?2004h"),
    (
        Changed::MOUSE,
        b"\x1b[?9l\x1b[?1000l\x1b[?1002l\x1b[?1003l\x1b[?1004l\x1b[?1005l\x1b[?1006l\x1b[?1015l",
        b"",
    ),
];

/// See the [module](self).
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Modes {
    /// States that may differ from the terminal's own. When in doubt, they do.
    changed: Changed,
    /// The states of [`Changed::KEPT`] that the guest wants, as it said last.
    wanted: Changed,
}

impl Modes {
    /// Nothing is changed.
    pub(super) const fn new() -> Self {
        Self { changed: Changed::empty(), wanted: Changed::empty() }
    }

    fn set(&mut self, what: Changed, on: bool) {
        self.changed.set(what, on);
        self.wanted.set(what & Changed::KEPT, on);
    }

    /// A control character was shown.
    pub(super) fn note_control(&mut self, byte: u8) {
        match byte {
            0x0e => self.set(Changed::SHIFT, true),
            0x0f => self.set(Changed::SHIFT, false),
            _ => {}
        }
    }

    /// A whole sequence was shown, which begins with ESC.
    pub(super) fn note(&mut self, sequence: &[u8]) {
        match sequence {
            [ESC, b'(', set] => self.set(Changed::CHARSET, *set != b'B'),
            [ESC, b'='] => self.set(Changed::KEYPAD, true),
            [ESC, b'>'] => self.set(Changed::KEYPAD, false),
            [ESC, b'8'] | [ESC, b'[', b'u'] => self.changed |= Changed::RESTORED,
            // Some terminals do not put everything back at a reset.
            [ESC, b'c'] => self.wanted = Changed::empty(),
            [ESC, b'[', b'!', b'p'] => {
                self.wanted = Changed::empty();
                self.changed |= Changed::NO_WRAP;
            }
            [ESC, b'[', b'?', numbers @ .., last @ (b'h' | b'l')] => {
                for number in numbers.split(|byte| *byte == b';') {
                    self.note_mode(number, *last == b'h');
                }
            }
            [ESC, b'[', .., last @ (b'h' | b'l')] => self.set(Changed::INSERT, *last == b'h'),
            [ESC, b'[', numbers @ .., b'm'] => {
                self.set(Changed::ATTRIBUTES, numbers.iter().any(|byte| *byte != b'0'));
            }
            // The flag stays set, as the other screen's region stays as it is.
            [ESC, b'[', _, .., b'r'] => self.changed |= Changed::REGION,
            [ESC, b'[', number @ .., b' ', b'q'] => {
                self.set(Changed::SHAPE, number.iter().any(|byte| *byte != b'0'));
            }
            _ => {}
        }
    }

    /// One of DEC's private modes was set or reset.
    fn note_mode(&mut self, number: &[u8], on: bool) {
        match number {
            b"1" => self.set(Changed::CURSOR_KEYS, on),
            b"5" => self.set(Changed::REVERSE, on),
            b"7" => self.set(Changed::NO_WRAP, !on),
            b"12" => self.set(Changed::BLINK, on),
            b"25" => self.set(Changed::HIDDEN, !on),
            b"2004" => self.set(Changed::PASTE, on),
            b"47" => self.set(Changed::SCREEN_47, on),
            b"1047" => self.set(Changed::SCREEN_1047, on),
            b"1049" => self.set(Changed::SCREEN_1049, on),
            _ => {}
        }
        if matches!(number, b"47" | b"1047" | b"1048" | b"1049") {
            self.changed |= Changed::RESTORED;
        }
    }

    /// The terminal got what the filter holds back: nothing is known but the screen, of
    /// which a guess would move the cursor, and the cursor's look, which is the person's.
    pub(super) fn doubt(&mut self) {
        let known = Changed::SCREENS | Changed::BLINK | Changed::SHAPE;
        self.changed |= Changed::all().difference(known);
    }

    /// Sequences that put the terminal back.
    pub(super) fn reset(&mut self) -> Vec<u8> {
        let mut changed = core::mem::take(&mut self.changed);
        if changed.intersects(Changed::SCREENS) {
            // Leaving the alternate screen brings back a saved state.
            changed |= Changed::RESTORED;
        }
        let ways = WAYS.iter().filter(|(what, ..)| changed.contains(*what));
        ways.flat_map(|(_, reset, _)| reset.iter().copied()).collect()
    }

    /// Sequences that bring back what the guest's programs count on.
    pub(super) fn again(&mut self) -> Vec<u8> {
        self.changed |= self.wanted;
        let ways = WAYS.iter().filter(|(what, ..)| self.wanted.contains(*what));
        ways.flat_map(|(.., again)| again.iter().copied()).collect()
    }

    /// Nobody counts on anything.
    pub(super) fn forget(&mut self) {
        self.wanted = Changed::empty();
    }
}
