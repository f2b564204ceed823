//! From bytes to an [`Instruction`], by two decoders.

pub(crate) mod general;
pub(crate) mod hand_made;
mod kept;
mod names;
mod operands;
pub(crate) mod stream;
mod vector;

use crate::cpu::Mnemonic;
use crate::instruction::Instruction;
use x86defs::control::CpuMode;

pub use general::{instruction_length, warm_up};
pub use kept::Decoded;

/// Why bytes are no instruction to execute.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DecodeError {
    /// The instruction goes on beyond these bytes.
    Incomplete,
    /// The CPU raises #UD.
    Invalid,
    /// A CPU may know it; the emulator does not.
    Unsupported {
        /// Name of the instruction.
        mnemonic: Mnemonic,
        /// Length in bytes; if even that is unknown, of all that was given.
        length: u8,
    },
}

/// Choice of a decoder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decoder {
    /// The hand-made one where it knows the instruction, else the general one.
    Both,
    /// The general one, iced-x86.
    General,
    /// The hand-made one alone; what it does not know it calls
    /// [`DecodeError::Incomplete`].
    HandMade,
}

/// Decodes the instruction that starts `bytes` (at most the first 15 count) and
/// stands at `rip`.
///
/// # Errors
/// [`DecodeError`].
pub fn decode(
    bytes: &[u8],
    mode: CpuMode,
    rip: u64,
    decoder: Decoder,
) -> Result<Instruction, DecodeError> {
    let hand_made = match decoder {
        Decoder::General => None,
        Decoder::Both | Decoder::HandMade => hand_made::decode(bytes, mode, rip),
    };
    match (hand_made, decoder) {
        (Some(instruction), _) => Ok(instruction),
        (None, Decoder::HandMade) => Err(DecodeError::Incomplete),
        (None, _) => general::decode(bytes, mode, rip),
    }
}
