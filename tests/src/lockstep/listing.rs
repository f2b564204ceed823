//! A program's listing, for reports.

use std::fmt::Write;

use iced_x86::{Decoder, DecoderOptions, Formatter, IntelFormatter};
use micro::Program;

/// The instruction at an offset of a program.
pub fn instruction(program: &Program, offset: usize) -> String {
    let code = program.code().get(offset..).unwrap_or_default();
    let at = program.code_at - program.code_base() + offset as u64;
    let mut decoder = Decoder::with_ip(
        u32::from(program.mode.bits()),
        code,
        at,
        DecoderOptions::NO_INVALID_CHECK,
    );
    let mut text = String::new();
    IntelFormatter::new().format(&decoder.decode(), &mut text);
    text
}

/// All of a program.
pub fn of(program: &Program) -> String {
    let mut text = format!(
        "seed {}: {:?} at {:#x}, flags {:#x}, CR0 {:#x}, CR4 {:#x}, SCE {}, DR7 {:#x} {:x?}, {} steps\n ",
        program.seed,
        program.mode,
        program.code_at,
        program.rflags,
        program.cr0,
        program.cr4,
        program.syscall,
        program.dr7,
        program.breakpoints,
        program.steps
    );
    for (number, value) in program.gprs.iter().enumerate() {
        // Writing to a string does not fail.
        let _ = write!(text, " r{number}={value:x}");
    }
    text.push('\n');
    for offset in program.starts() {
        let _ = writeln!(text, "  +{offset:03x}  {}", instruction(program, offset));
    }
    text
}
