//! Device memory that behaves like RAM: with it, tests run an instruction once
//! on the CPU and once through the emulator and compare what it did.

use alloc::vec;
use alloc::vec::Vec;
use serde::{Deserialize, Serialize};
use state::{Saved, Sections, StateError};
use x86defs::Width;

/// Guest-physical address of the memory.
pub(crate) const SCRATCH_BASE: u64 = 0xfed4_0000;
/// Bytes of the memory.
pub(crate) const SCRATCH_SIZE: u64 = 0x1_0000;

#[derive(Debug)]
pub(crate) struct Scratch(Vec<u8>);

/// The saved contents of a [`Scratch`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ScratchState(Vec<u8>);

impl Saved for ScratchState {
    const NAME: &'static str = "scratch";
    const VERSION: u16 = 1;
}

impl Scratch {
    pub(crate) fn new() -> Self {
        Self(vec![0; usize::try_from(SCRATCH_SIZE).unwrap_or(0)])
    }

    pub(crate) fn save(&self) -> ScratchState {
        ScratchState(self.0.clone())
    }

    pub(crate) fn restore(&mut self, sections: &mut Sections<'_>) -> Result<(), StateError> {
        let ScratchState(bytes) = sections.take(0)?;
        if bytes.len() != self.0.len() {
            return Err(StateError::refused(ScratchState::NAME, 0, "the memory has another size"));
        }
        self.0 = bytes;
        Ok(())
    }

    pub(crate) fn read(&self, offset: u64, width: Width) -> Option<u64> {
        let offset = usize::try_from(offset).ok()?;
        let bytes = self.0.get(offset..offset.checked_add(width.bytes())?)?;
        Some(bytes.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte)))
    }

    pub(crate) fn write(&mut self, offset: u64, width: Width, value: u64) {
        let place = usize::try_from(offset)
            .ok()
            .and_then(|o| Some(o..o.checked_add(width.bytes())?))
            .and_then(|range| self.0.get_mut(range));
        if let Some(place) = place {
            for (byte, new) in place.iter_mut().zip(value.to_le_bytes()) {
                *byte = new;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_state_is_laid_out_as_it_was() {
        state::golden::check(env!("CARGO_MANIFEST_DIR"), || ScratchState(vec![1, 2, 0xff]));
    }
}
