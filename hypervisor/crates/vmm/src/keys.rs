//! The operator's escape key on a guest's console: `Ctrl-]`.
//!
//! `Ctrl-] p` presses the guest's power button, `Ctrl-] 1` to `9` shows the
//! console of that guest; twice, it types one; with any other key both go to the
//! guest.

use arrayvec::ArrayVec;

/// `Ctrl-]`.
pub const ESCAPE: u8 = 0x1d;

/// What a typed byte comes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Typed {
    /// These bytes are for the guest; none while the escape key waits for its partner.
    Guest(ArrayVec<u8, 2>),
    /// The guest's power button is pressed.
    PowerButton,
    /// The operator wants to see the console of this guest, from 0.
    Attach(usize),
}

/// Recognises the escape key.
#[derive(Clone, Copy, Debug, Default)]
pub struct Keys {
    escaped: bool,
}

impl Keys {
    /// Takes one byte that was typed.
    pub fn feed(&mut self, byte: u8) -> Typed {
        let mut bytes = ArrayVec::new();
        match (core::mem::take(&mut self.escaped), byte) {
            (false, ESCAPE) => self.escaped = true,
            (true, b'p' | b'P') => return Typed::PowerButton,
            (true, b'1'..=b'9') => return Typed::Attach(usize::from(byte - b'1')),
            (true, ESCAPE) | (false, _) => bytes.push(byte),
            (true, _) => bytes.extend([ESCAPE, byte]),
        }
        Typed::Guest(bytes)
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use std::vec::Vec;

    /// What was typed for the guest, and everything else.
    fn typed(text: &[u8]) -> (Vec<u8>, Vec<Typed>) {
        let mut keys = Keys::default();
        let mut guest = Vec::new();
        let mut others = Vec::new();
        for byte in text {
            match keys.feed(*byte) {
                Typed::Guest(bytes) => guest.extend(bytes),
                other => others.push(other),
            }
        }
        (guest, others)
    }

    #[test]
    fn escape() {
        assert_eq!(typed(b"ab\x03"), (b"ab\x03".to_vec(), Vec::new()));
        assert_eq!(typed(b"a\x1dpb"), (b"ab".to_vec(), [Typed::PowerButton].into()));
        assert_eq!(typed(b"\x1d1\x1d9"), (Vec::new(), [0, 8].map(Typed::Attach).into()));
        assert_eq!(typed(b"\x1d0"), (b"\x1d0".to_vec(), Vec::new()));
        assert_eq!(typed(b"\x1d\x1dp"), (b"\x1dp".to_vec(), Vec::new()));
        assert_eq!(typed(b"\x1dx"), (b"\x1dx".to_vec(), Vec::new()));
    }
}
