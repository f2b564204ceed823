//! Keys of a terminal, from its bytes (ECMA-48: "Control functions"; the cursor
//! keys of a VT100, the editing keys of a VT220, and what Linux, xterm and
//! screen make of Home and End).

/// A key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Key {
    /// A printable ASCII character.
    Character(u8),
    /// Enter.
    Enter,
    /// Tab.
    Tab,
    /// Ctrl-C.
    Cancel,
    /// Backspace, Ctrl-H.
    Backspace,
    /// Delete, Ctrl-D.
    Delete,
    /// Cursor left, Ctrl-B.
    Left,
    /// Cursor right, Ctrl-F.
    Right,
    /// Cursor up, Ctrl-P.
    Up,
    /// Cursor down, Ctrl-N.
    Down,
    /// Home, Ctrl-A.
    Home,
    /// End, Ctrl-E.
    End,
    /// Ctrl-U: what stands before the cursor goes.
    KillBefore,
    /// Ctrl-K: what stands behind the cursor goes.
    KillBehind,
    /// Ctrl-W: the word before the cursor goes.
    KillWord,
    /// Ctrl-L: a fresh screen.
    Redraw,
    /// A key that means nothing here.
    Unknown,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    Ground,
    /// After a carriage return, which a line feed may follow.
    Return,
    /// After ESC.
    Escape,
    /// After `ESC O`.
    Single,
    /// After `ESC [`, with the first parameter's value.
    Control(u16),
    /// In the parameters behind the first one.
    Rest(u16),
}

/// Makes keys of bytes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Decoder {
    state: State,
}

impl Decoder {
    /// A decoder at the beginning of a key.
    #[must_use]
    pub const fn new() -> Self {
        Self { state: State::Ground }
    }

    /// Takes a byte; returns a key if the byte ends one.
    pub const fn feed(&mut self, byte: u8) -> Option<Key> {
        // These bytes end a sequence that is unfinished, so that a line that lost bytes recovers.
        let fresh = matches!(byte, 0x03 | 0x0d | 0x1b);
        let state = if fresh { State::Ground } else { self.state };
        self.state = State::Ground;
        match (state, byte) {
            (State::Return, b'\n') => None,
            (State::Ground | State::Return, _) => self.ground(byte),
            (State::Escape, b'[') => self.go(State::Control(0)),
            (State::Escape, b'O') => self.go(State::Single),
            // Alt with a key.
            (State::Escape, _) => Some(Key::Unknown),
            (State::Control(value), b'0'..=b'9') => {
                let digit = (byte - b'0') as u16;
                self.go(State::Control(value.saturating_mul(10).saturating_add(digit)))
            }
            (State::Control(value) | State::Rest(value), 0x20..=0x3f) => {
                self.go(State::Rest(value))
            }
            (State::Control(value) | State::Rest(value), b'~') => Some(match value {
                1 | 7 => Key::Home,
                4 | 8 => Key::End,
                3 => Key::Delete,
                _ => Key::Unknown,
            }),
            // Enter of the keypad.
            (State::Single, b'M') => Some(Key::Enter),
            (State::Control(_) | State::Rest(_) | State::Single, _) => Some(match byte {
                b'A' => Key::Up,
                b'B' => Key::Down,
                b'C' => Key::Right,
                b'D' => Key::Left,
                b'H' => Key::Home,
                b'F' => Key::End,
                _ => Key::Unknown,
            }),
        }
    }

    const fn go(&mut self, state: State) -> Option<Key> {
        self.state = state;
        None
    }

    const fn ground(&mut self, byte: u8) -> Option<Key> {
        Some(match byte {
            b' '..=b'~' => Key::Character(byte),
            b'\r' => {
                self.state = State::Return;
                Key::Enter
            }
            b'\n' => Key::Enter,
            b'\t' => Key::Tab,
            0x08 | 0x7f => Key::Backspace,
            0x01 => Key::Home,
            0x02 => Key::Left,
            0x03 => Key::Cancel,
            0x04 => Key::Delete,
            0x05 => Key::End,
            0x06 => Key::Right,
            0x0b => Key::KillBehind,
            0x0c => Key::Redraw,
            0x0e => Key::Down,
            0x10 => Key::Up,
            0x15 => Key::KillBefore,
            0x17 => Key::KillWord,
            0x1b => return self.go(State::Escape),
            // The later bytes of a character beyond ASCII: its first byte has rung the bell.
            0x00 | 0x80..=0xbf => return None,
            _ => Key::Unknown,
        })
    }
}
