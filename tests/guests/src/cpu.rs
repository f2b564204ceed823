//! Instructions of the CPU that Rust has no words for.

use crate::catch_asm;
use crate::trap::Trap;
use core::arch::asm;

pub use core::arch::x86_64::CpuidResult;

/// CPUID of `leaf` and `subleaf`.
#[must_use]
pub fn cpuid(leaf: u32, subleaf: u32) -> CpuidResult {
    core::arch::x86_64::__cpuid_count(leaf, subleaf)
}

/// Whether the CPU is of AMD's family of vendors.
#[must_use]
pub fn is_amd() -> bool {
    let id = cpuid(0, 0);
    id.ebx == 0x6874_7541 || id.ebx == 0x6f67_7948
}

/// Highest basic leaf.
#[must_use]
pub fn max_leaf() -> u32 {
    cpuid(0, 0).eax
}

/// ECX and EDX of leaf 1.
#[must_use]
pub fn features() -> (u32, u32) {
    let leaf = cpuid(1, 0);
    (leaf.ecx, leaf.edx)
}

/// Leaf 7, subleaf 0, or zeroes where there is none.
#[must_use]
pub fn features7() -> CpuidResult {
    if max_leaf() >= 7 { cpuid(7, 0) } else { CpuidResult { eax: 0, ebx: 0, ecx: 0, edx: 0 } }
}

/// Reads a model-specific register; a fault is an `Err`.
///
/// # Errors
/// The exception that RDMSR raised.
pub fn rdmsr(number: u32) -> Result<u64, Trap> {
    let (low, high): (u32, u32);
    match catch_asm!(["rdmsr"], in("ecx") number, out("eax") low, out("edx") high) {
        None => Ok(u64::from(high) << 32 | u64::from(low)),
        Some(trap) => Err(trap),
    }
}

/// Writes a model-specific register; a fault is an `Err`.
///
/// # Errors
/// The exception that WRMSR raised.
pub fn wrmsr(number: u32, value: u64) -> Result<(), Trap> {
    let (low, high) = halves(value);
    match catch_asm!(["wrmsr"], in("ecx") number, in("eax") low, in("edx") high) {
        None => Ok(()),
        Some(trap) => Err(trap),
    }
}

/// Low and high 32 bits.
#[must_use]
pub fn halves(value: u64) -> (u32, u32) {
    let b = value.to_le_bytes();
    (u32::from_le_bytes([b[0], b[1], b[2], b[3]]), u32::from_le_bytes([b[4], b[5], b[6], b[7]]))
}

/// The low byte.
#[must_use]
pub fn low8(value: u64) -> u8 {
    value.to_le_bytes()[0]
}

/// The low 16 bits.
#[must_use]
pub fn low16(value: u64) -> u16 {
    let b = value.to_le_bytes();
    u16::from_le_bytes([b[0], b[1]])
}

/// The low 32 bits.
#[must_use]
pub fn low32(value: u64) -> u32 {
    halves(value).0
}

macro_rules! register_functions {
    ($($read:ident $write:ident $register:literal;)*) => {
        $(
            #[doc = concat!("Reads ", $register, ".")]
            #[must_use]
            pub fn $read() -> u64 {
                let value: u64;
                // SAFETY: reading a control or debug register changes nothing.
                unsafe { asm!(concat!("mov {}, ", $register), out(reg) value, options(nostack)) };
                value
            }

            #[doc = concat!("Writes ", $register, "; the exception, if it raised one.")]
            pub fn $write(value: u64) -> Option<Trap> {
                catch_asm!([concat!("mov ", $register, ", {v}")], v = in(reg) value)
            }
        )*
    };
}

register_functions! {
    cr0 set_cr0 "cr0";
    cr2 set_cr2 "cr2";
    cr3 set_cr3 "cr3";
    cr4 set_cr4 "cr4";
    cr8 set_cr8 "cr8";
    dr0 set_dr0 "dr0";
    dr1 set_dr1 "dr1";
    dr2 set_dr2 "dr2";
    dr3 set_dr3 "dr3";
    dr6 set_dr6 "dr6";
    dr7 set_dr7 "dr7";
}

/// RFLAGS now.
#[must_use]
pub fn rflags() -> u64 {
    let value: u64;
    // SAFETY: leaves the stack as it was.
    unsafe { asm!("pushfq", "pop {}", out(reg) value) };
    value
}

/// The time-stamp counter.
#[must_use]
pub fn rdtsc() -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: only reads a counter.
    unsafe {
        asm!("lfence", "rdtsc", out("eax") low, out("edx") high, options(nostack, preserves_flags));
    }
    u64::from(high) << 32 | u64::from(low)
}

/// Lets interrupts in.
pub fn sti() {
    // SAFETY: every vector has a handler.
    unsafe { asm!("sti", options(nostack)) };
}

/// Keeps interrupts out.
pub fn cli() {
    // SAFETY: only holds interrupts back.
    unsafe { asm!("cli", options(nostack)) };
}

/// Waits for an interrupt with interrupts on, then switches them off again.
/// No interrupt can slip in between STI and HLT.
pub fn wait_for_interrupt() {
    // SAFETY: every vector has a handler.
    unsafe { asm!("sti", "hlt", "cli", options(nostack)) };
}

/// Lets pending interrupts in for a few instructions.
pub fn interrupt_window() {
    // SAFETY: every vector has a handler.
    unsafe { asm!("sti", "nop", "nop", "nop", "cli", options(nostack)) };
}

/// The PAUSE instruction.
pub fn pause() {
    core::hint::spin_loop();
}

/// Writes an extended control register; the exception, if it raised one.
pub fn xsetbv(index: u32, value: u64) -> Option<Trap> {
    let (low, high) = halves(value);
    catch_asm!(["xsetbv"], in("ecx") index, in("eax") low, in("edx") high)
}

/// Reads an extended control register.
///
/// # Errors
/// The exception that XGETBV raised.
pub fn xgetbv(index: u32) -> Result<u64, Trap> {
    let (low, high): (u32, u32);
    match catch_asm!(["xgetbv"], in("ecx") index, out("eax") low, out("edx") high) {
        None => Ok(u64::from(high) << 32 | u64::from(low)),
        Some(trap) => Err(trap),
    }
}

/// Whether the guest runs straight on QEMU's emulated CPU, with no hypervisor
/// between: cases that its known omissions would fail are skipped there.
#[must_use]
pub fn on_bare_tcg() -> bool {
    let id = cpuid(0x4000_0000, 0);
    features().0 >> 31 == 1 && id.ebx == 0x5447_4354 && id.ecx == 0x4354_4743
}

/// Whether instructions that no hypervisor intercepts run on QEMU's emulated
/// CPU: found out on the bare machine, said by `host=qemu` on the command line
/// under a hypervisor. Checks that this CPU is known not to make are left out.
#[must_use]
pub fn tcg_underneath() -> bool {
    on_bare_tcg() || crate::info::option("host") == Some("qemu")
}

/// The same for Bochs, where `host=bochs` says so.
#[must_use]
pub fn bochs_underneath() -> bool {
    crate::info::option("host") == Some("bochs")
}
