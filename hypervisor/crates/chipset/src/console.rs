//! The serial port on its way to the guest's console.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt::Debug;
use devices::uart::Uart;
use serde::{Deserialize, Serialize};
use state::{Saved, Sections, StateError};

/// Bytes that wait at the most.
const ROOM: usize = 1024;

/// Whatever takes the output of a guest's console.
pub trait ConsoleSink: Debug + Send + Sync {
    /// How many bytes it would show or keep now; the guest waits with the others.
    fn room(&self) -> usize;

    /// Takes all of `bytes`, if need be for later.
    fn put(&self, bytes: &[u8]);
}

/// How far a guest's output has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flushed {
    /// Nothing is left.
    All,
    /// There was no room for more; something may be left.
    OutOfRoom,
}

/// The serial port with its outbox: bytes that the hot handler has let the
/// guest send. The general code fetches them, before what is in the port.
#[derive(Debug)]
pub(crate) struct Serial {
    pub(crate) uart: Uart,
    pub(crate) sent: Outbox,
    pub(crate) sink: Arc<dyn ConsoleSink>,
}

impl Serial {
    pub(crate) fn new(sink: Arc<dyn ConsoleSink>) -> Self {
        Self { uart: Uart::new(), sent: Outbox { bytes: [0; ROOM], first: 0, end: 0 }, sink }
    }
}

/// Bytes in the order in which they were sent.
#[derive(Debug)]
pub(crate) struct Outbox {
    bytes: [u8; ROOM],
    /// First byte that waits; the others follow, up to `end`.
    first: usize,
    end: usize,
}

/// The bytes in an [`Outbox`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct OutboxState(Vec<u8>);

impl Saved for OutboxState {
    const NAME: &'static str = "outbox";
    const VERSION: u16 = 1;
}

impl Outbox {
    pub(crate) fn save(&self) -> OutboxState {
        OutboxState(self.bytes.get(self.first..self.end).unwrap_or_default().to_vec())
    }

    pub(crate) fn restore(&mut self, sections: &mut Sections<'_>) -> Result<(), StateError> {
        let OutboxState(bytes) = sections.take(0)?;
        if bytes.len() > ROOM {
            return Err(StateError::refused(OutboxState::NAME, 0, "more bytes than there is room"));
        }
        (self.first, self.end) = (0, 0);
        bytes.into_iter().for_each(|byte| self.push(byte));
        Ok(())
    }

    /// Whether one more fits.
    #[inline(always)]
    pub(crate) const fn has_room(&self) -> bool {
        self.end < ROOM
    }

    /// Appends a byte, if it fits.
    #[inline(always)]
    pub(crate) fn push(&mut self, byte: u8) {
        if let Some(slot) = self.bytes.get_mut(self.end) {
            *slot = byte;
            self.end += 1;
        }
    }

    /// Moves what waits to `buffer`, as far as it fits; how much that was.
    pub(crate) fn take(&mut self, buffer: &mut [u8]) -> usize {
        let waiting = self.bytes.get(self.first..self.end).unwrap_or_default();
        let count = waiting.len().min(buffer.len());
        for (to, from) in buffer.iter_mut().zip(waiting) {
            *to = *from;
        }
        self.first += count;
        if self.first == self.end {
            self.first = 0;
            self.end = 0;
        }
        count
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_state_is_laid_out_as_it_was() {
        state::golden::check(env!("CARGO_MANIFEST_DIR"), || OutboxState(b"login".to_vec()));
    }
}
