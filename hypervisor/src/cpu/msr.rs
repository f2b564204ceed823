//! Model-specific registers of this CPU.

use core::arch::asm;
use x86defs::Msr;
use x86defs::bits::{Low, high32, join};

/// Reads `msr`.
///
/// # Safety
/// The register must exist, else the CPU raises #GP; where that is not known,
/// [`try_read`] is for it.
#[must_use]
pub unsafe fn read(msr: Msr) -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: the caller vouches for the register; reading has no other effect on memory.
    unsafe {
        asm!("rdmsr", in("ecx") msr.0, out("eax") low, out("edx") high,
             options(nomem, nostack, preserves_flags));
    }
    join(high, low)
}

/// Writes `msr`.
///
/// # Safety
/// The register must exist, take the value, and the change must not break
/// what other code relies on.
pub unsafe fn write(msr: Msr, value: u64) {
    // SAFETY: the caller vouches for the register, the value and the effect.
    unsafe {
        asm!("wrmsr", in("ecx") msr.0, in("eax") value.low32(), in("edx") high32(value),
             options(nostack, preserves_flags));
    }
}

/// Reads `msr`, or `None` where the CPU raises #GP because there is no such
/// register.
#[must_use]
pub fn try_read(msr: Msr) -> Option<u64> {
    let (low, high, failed): (u32, u32, u64);
    // SAFETY: a #GP at the RDMSR is caught by the exception table, which goes
    // on at the label behind it with a non-zero value in the flag register.
    unsafe {
        asm!(
            "xor {failed:e}, {failed:e}",
            "2: rdmsr",
            "jmp 4f",
            "3: mov {failed:e}, 1",
            "xor eax, eax",
            "xor edx, edx",
            "4:",
            ".pushsection extable, \"aR\"",
            ".balign 4",
            ".long 2b - .",
            ".long 3b - .",
            ".popsection",
            failed = out(reg) failed,
            in("ecx") msr.0, out("eax") low, out("edx") high,
            options(nomem, nostack),
        );
    }
    (failed == 0).then_some(join(high, low))
}

/// Writes `msr`; `false` where the CPU raises #GP.
///
/// # Safety
/// If the register exists and takes the value, the change must not break what
/// other code relies on.
#[must_use]
pub unsafe fn try_write(msr: Msr, value: u64) -> bool {
    let failed: u64;
    // SAFETY: a #GP at the WRMSR is caught by the exception table; the effect
    // is the caller's responsibility.
    unsafe {
        asm!(
            "xor {failed:e}, {failed:e}",
            "2: wrmsr",
            "jmp 4f",
            "3: mov {failed:e}, 1",
            "4:",
            ".pushsection extable, \"aR\"",
            ".balign 4",
            ".long 2b - .",
            ".long 3b - .",
            ".popsection",
            failed = out(reg) failed,
            in("ecx") msr.0, in("eax") value.low32(), in("edx") high32(value),
            options(nostack),
        );
    }
    failed == 0
}
