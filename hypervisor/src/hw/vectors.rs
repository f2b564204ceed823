//! The vector registers of the vCPU that has this CPU. The hypervisor uses none of them, so they are
//! where the guest left them.

use super::extra::xgetbv_if_enabled;
use core::arch::asm;
use x86defs::{VectorRegister, Xcr0};

/// A register's bytes; those that it does not have are zero.
type Bytes = [u8; 32];

/// FSW.ES: an exception waits that is not masked.
const ERROR_SUMMARY: u16 = 1 << 7;

/// Runs an instruction on the register of this number, which must be one of those after the
/// semicolon, and on the memory at `$at`: its text is `$before`, the number, `$after`.
macro_rules! by_number {
    ($number:expr, $at:expr, $before:literal, $after:literal; $($n:literal)*) => {
        match $number {
            $($n => {
                // SAFETY: the registers are the guest's, which the instruction means to read or
                // change; the memory is 32 bytes, as long as the longest of them; what enables the
                // instruction has been seen to.
                unsafe {
                    asm!(concat!($before, $n, $after), in(reg) $at,
                         options(nostack, preserves_flags));
                }
            })*
            _ => {}
        }
    };
}

/// Reads a register. `None`: an exception of the x87 waits, which an access to an MMX register
/// would raise here.
pub(super) fn read(register: VectorRegister) -> Option<Bytes> {
    let mut value = [0; 32];
    let at = value.as_mut_ptr();
    match register {
        VectorRegister::Mmx(_) if x87_waits() => return None,
        VectorRegister::Mmx(number) => {
            by_number!(number, at, "movq [{}], mm", ""; 0 1 2 3 4 5 6 7);
        }
        VectorRegister::Ymm(number) if has_ymm() => {
            by_number!(number, at, "vmovdqu [{}], ymm", "";
                       0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15);
        }
        VectorRegister::Xmm(number) | VectorRegister::Ymm(number) => {
            by_number!(number, at, "movdqu [{}], xmm", "";
                       0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15);
        }
        VectorRegister::Mxcsr => {
            // SAFETY: the memory is longer than the register.
            unsafe { asm!("stmxcsr [{}]", in(reg) at, options(nostack, preserves_flags)) };
        }
    }
    Some(value)
}

/// Writes a register; `None` as with [`read`].
pub(super) fn write(register: VectorRegister, value: &Bytes) -> Option<()> {
    let at = value.as_ptr();
    match register {
        VectorRegister::Mmx(_) if x87_waits() => return None,
        VectorRegister::Mmx(number) => {
            by_number!(number, at, "movq mm", ", [{}]"; 0 1 2 3 4 5 6 7);
        }
        VectorRegister::Ymm(number) if has_ymm() => {
            by_number!(number, at, "vmovdqu ymm", ", [{}]";
                       0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15);
        }
        VectorRegister::Xmm(number) | VectorRegister::Ymm(number) => {
            by_number!(number, at, "movdqu xmm", ", [{}]";
                       0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15);
        }
        VectorRegister::Mxcsr => {
            let [a, b, ..] = *value;
            let value = u32::from(u16::from_le_bytes([a, b]));
            // SAFETY: bits 31:16 are clear, and every CPU of 64 bits has the others; the hypervisor
            // computes with no vectors.
            unsafe {
                asm!("ldmxcsr [{}]", in(reg) &raw const value, options(nostack, preserves_flags));
            }
        }
    }
    Some(())
}

/// Whether the vCPU, whose XCR0 the CPU has, has enabled YMM registers.
fn has_ymm() -> bool {
    let both = Xcr0::SSE | Xcr0::AVX;
    xgetbv_if_enabled().is_some_and(|xcr0| Xcr0::from_bits_retain(xcr0).contains(both))
}

/// Whether an exception of the x87 waits.
fn x87_waits() -> bool {
    let status: u16;
    // SAFETY: the instruction raises no exception, and changes nothing but AX.
    unsafe { asm!("fnstsw ax", out("ax") status, options(nomem, nostack, preserves_flags)) };
    status & ERROR_SUMMARY != 0
}
