//! Guests' consoles on the operator's one terminal: [`Ring`] keeps what a guest
//! writes while nobody looks, [`Keys`] finds the operator's own keys in what is
//! typed.

#[cfg(test)]
mod tests;

use alloc::collections::{TryReserveError, VecDeque};
use arrayvec::ArrayVec;

/// How far [`Ring::begin`] looks for the end of a line that was cut, in bytes.
const LONGEST_CUT: usize = 512;

/// The newest bytes of a guest's console. All its memory is taken at the start.
#[derive(Debug)]
pub struct Ring {
    bytes: VecDeque<u8>,
    size: usize,
    dropped: u64,
    written: u64,
}

impl Ring {
    /// A ring that keeps `size` bytes.
    ///
    /// # Errors
    /// There is no memory for it.
    pub fn new(size: usize) -> Result<Self, TryReserveError> {
        let mut bytes = VecDeque::new();
        bytes.try_reserve_exact(size)?;
        Ok(Self { bytes, size, dropped: 0, written: 0 })
    }

    /// Keeps `bytes`, the newest last; where there is no room, the oldest go and
    /// are counted.
    pub fn push(&mut self, bytes: &[u8]) {
        self.written = self.written.saturating_add(bytes.len() as u64);
        let surplus = bytes.len().saturating_sub(self.size);
        let kept = bytes.get(surplus..).unwrap_or_default();
        let room = self.size - self.bytes.len();
        let old = kept.len().saturating_sub(room);
        self.bytes.drain(..old);
        self.bytes.extend(kept);
        self.dropped = self.dropped.saturating_add((surplus + old) as u64);
    }

    /// The operator begins to look: returns how many bytes were dropped since this was last asked.
    /// If some were, the rest of the line that was cut, maybe in an escape sequence, goes with
    /// them.
    pub fn begin(&mut self) -> u64 {
        if self.dropped != 0
            && let Some(end) = self.bytes.iter().take(LONGEST_CUT).position(|byte| *byte == b'\n')
        {
            self.bytes.drain(..=end);
            self.dropped = self.dropped.saturating_add(end as u64 + 1);
        }
        core::mem::take(&mut self.dropped)
    }

    /// The bytes that are kept, the oldest first, as far as they lie in one piece: shown to the
    /// operator as the terminal has room, then [consumed](Self::consume).
    #[must_use]
    pub fn front(&self) -> &[u8] {
        self.bytes.as_slices().0
    }

    /// Forgets the `count` oldest bytes, which were shown.
    pub fn consume(&mut self, count: usize) {
        self.bytes.drain(..count.min(self.bytes.len()));
    }

    /// How many bytes are kept.
    #[must_use]
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Whether nothing is kept.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Bytes dropped since [`begin`](Self::begin).
    #[must_use]
    pub const fn dropped(&self) -> u64 {
        self.dropped
    }

    /// Bytes that the guest has written to this ring, ever.
    #[must_use]
    pub const fn written(&self) -> u64 {
        self.written
    }

    /// Bytes of memory that the ring takes.
    #[must_use]
    pub fn memory(&self) -> usize {
        self.bytes.capacity()
    }
}

/// The operator's key unless it is configured otherwise: `Ctrl-]`.
pub const ESCAPE: u8 = 0x1d;

/// Meaning of a typed byte.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Typed {
    /// These bytes are for the guest (or the monitor) that the terminal shows;
    /// none while the operator's key waits for its partner.
    Input(ArrayVec<u8, 2>),
    /// The console of the guest with this number, 1 to 9, is wanted.
    Attach(u32),
    /// The monitor is wanted.
    Monitor,
    /// The power button of the guest that was attached last is pressed.
    PowerButton,
    /// The terminal's side is to end: it should have kept this key to itself.
    /// There is nothing to do here.
    Quit,
}

/// Recognises the operator's key: with a digit it attaches to that guest, with
/// `m` to the monitor; `p` presses the power button; `q` is the terminal's;
/// twice, it types one; with any other key both go to the guest.
#[derive(Clone, Copy, Debug)]
pub struct Keys {
    escape: u8,
    escaped: bool,
}

impl Default for Keys {
    fn default() -> Self {
        Self::new(ESCAPE)
    }
}

impl Keys {
    /// With `escape` as the operator's key.
    #[must_use]
    pub const fn new(escape: u8) -> Self {
        Self { escape, escaped: false }
    }

    /// Takes one byte that was typed.
    pub fn feed(&mut self, byte: u8) -> Typed {
        let mut bytes = ArrayVec::new();
        match (core::mem::take(&mut self.escaped), byte) {
            (false, byte) if byte == self.escape => self.escaped = true,
            (false, _) => bytes.push(byte),
            // First: the operator's key may be configured to one of the letters.
            (true, byte) if byte == self.escape => bytes.push(byte),
            (true, b'1'..=b'9') => return Typed::Attach(u32::from(byte - b'0')),
            (true, b'm' | b'M') => return Typed::Monitor,
            (true, b'p' | b'P') => return Typed::PowerButton,
            (true, b'q' | b'Q') => return Typed::Quit,
            (true, _) => bytes.extend([self.escape, byte]),
        }
        Typed::Input(bytes)
    }
}
