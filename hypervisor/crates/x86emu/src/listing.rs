//! Code as text, for people.

use alloc::string::String;
use core::fmt::{self, Write};
use iced_x86::{Decoder, DecoderOptions, Formatter, IntelFormatter};
use x86defs::control::CpuMode;

/// Writes down the instructions in `code`, the first of which is at `rip`, one a
/// line. One that does not end in `code` is left out, and those behind it.
///
/// # Errors
/// Errors of `out`.
pub fn disassemble(code: &[u8], mode: CpuMode, rip: u64, out: &mut dyn Write) -> fmt::Result {
    let mut decoder = Decoder::with_ip(mode.bits(), code, rip, DecoderOptions::NONE);
    let mut formatter = IntelFormatter::new();
    while decoder.can_decode() {
        let instruction = decoder.decode();
        if instruction.is_invalid() {
            break;
        }
        let mut text = String::new();
        formatter.format(&instruction, &mut text);
        writeln!(out, "  {:#018x}  {text}", instruction.ip())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_a_line_as_far_as_they_go() {
        let mut text = String::new();
        // HLT; JMP back to it; the first byte of something longer.
        disassemble(&[0xf4, 0xeb, 0xfd, 0x48], CpuMode::Long64, 0x1000, &mut text).unwrap();
        assert_eq!(
            text,
            "  0x0000000000001000  hlt\n  0x0000000000001001  jmp short 0000000000001000h\n"
        );
    }
}
