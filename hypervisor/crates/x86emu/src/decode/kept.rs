//! Decoded instructions, kept for when they are executed again.

use crate::MAX_INSTRUCTION;
use crate::instruction::Instruction;
use core::fmt;
use x86defs::Low;
use x86defs::control::CpuMode;

/// Instructions that are kept.
const PLACES: usize = 64;

/// The bytes of an instruction and what may follow it, as a number.
fn number(code: &[u8; MAX_INSTRUCTION]) -> u128 {
    let mut bytes = [0; 16];
    if let Some(part) = bytes.get_mut(..MAX_INSTRUCTION) {
        part.copy_from_slice(code);
    }
    u128::from_le_bytes(bytes)
}

#[derive(Clone, Copy)]
struct Entry {
    rip: u64,
    mode: CpuMode,
    /// Ones where the instruction's bytes are.
    mask: u128,
    bytes: u128,
    instruction: Instruction,
}

/// The last instructions that were decoded, by their place. They are found again only if the same
/// bytes are there in the same mode: whoever asks has read them anew.
#[derive(Clone)]
pub struct Decoded([Option<Entry>; PLACES]);

impl Default for Decoded {
    fn default() -> Self {
        Self([None; PLACES])
    }
}

impl fmt::Debug for Decoded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} decoded instructions", self.0.iter().flatten().count())
    }
}

impl Decoded {
    /// The place of an instruction at `rip`. Those of one loop stand apart.
    fn place(rip: u64) -> usize {
        usize::from(rip.low8()) % PLACES
    }

    /// The instruction at `rip`, whose bytes begin `code`.
    #[inline]
    #[must_use]
    pub fn find(
        &self,
        code: &[u8; MAX_INSTRUCTION],
        mode: CpuMode,
        rip: u64,
    ) -> Option<Instruction> {
        let entry = self.0.get(Self::place(rip))?.as_ref()?;
        let same = (number(code) ^ entry.bytes) & entry.mask == 0;
        (entry.rip == rip && entry.mode == mode && same).then_some(entry.instruction)
    }

    /// Keeps `instruction`, which was decoded from `code`.
    pub fn keep(
        &mut self,
        code: &[u8; MAX_INSTRUCTION],
        mode: CpuMode,
        rip: u64,
        instruction: Instruction,
    ) {
        let Some(place) = self.0.get_mut(Self::place(rip)) else { return };
        let mask = 1_u128.wrapping_shl(u32::from(instruction.length) << 3).wrapping_sub(1);
        let bytes = number(code) & mask;
        *place = Some(Entry { rip, mode, mask, bytes, instruction });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decode::{Decoder, decode};
    use alloc::vec::Vec;
    use proptest::prelude::*;

    /// Code of few different bytes, at few places: much is met again, and much of it is changed.
    fn places() -> impl Strategy<Value = Vec<([u8; MAX_INSTRUCTION], bool, u64)>> {
        let byte = prop_oneof![
            Just(0x8b),
            Just(0x48),
            Just(0x05),
            Just(0x00),
            Just(0x0f),
            Just(0xb6),
            Just(0xc7),
            Just(0x47),
            Just(0x66),
            any::<u8>(),
        ];
        let code = proptest::array::uniform15(byte);
        proptest::collection::vec((code, any::<bool>(), 0..4_u64), 1..8)
    }

    proptest! {
        #[test]
        fn what_is_found_is_what_stands_there(places in places(), order in any::<[u8; 64]>()) {
            let mut kept = Decoded::default();
            let mut found = 0;
            for which in order {
                let (code, long, place) = places[usize::from(which) % places.len()];
                let mode = if long { CpuMode::Long64 } else { CpuMode::Protected32 };
                // Some share a place.
                let rip = 0x1000 + place * 64;
                let fresh = decode(&code, mode, rip, Decoder::Both);
                match (kept.find(&code, mode, rip), fresh) {
                    (Some(instruction), fresh) => {
                        prop_assert_eq!(Ok(instruction), fresh);
                        found += 1;
                    }
                    (None, Ok(instruction)) => {
                        kept.keep(&code, mode, rip, instruction);
                        prop_assert_eq!(kept.find(&code, mode, rip), Some(instruction));
                    }
                    (None, Err(_)) => {}
                }
            }
            // A lone place that decodes is found from the second time on.
            let (code, long, place) = places[0];
            let mode = if long { CpuMode::Long64 } else { CpuMode::Protected32 };
            if places.len() == 1 && decode(&code, mode, 0x1000 + place * 64, Decoder::Both).is_ok() {
                prop_assert_eq!(found, 63);
            }
        }
    }
}
