//! The processor the code runs on: descriptor tables, traps, model-specific
//! registers, local APIC, time-stamp counter and extended state.

pub mod apic;
pub mod asm;
pub mod extable;
pub mod legacy;
pub mod msr;
pub mod percpu;
pub mod tables;
pub mod traps;
pub mod tsc;

use x86defs::cpuid::CpuidResult;

/// CPUID with EAX = `leaf` and ECX = `subleaf`.
#[must_use]
pub fn cpuid(leaf: u32, subleaf: u32) -> CpuidResult {
    let r = core::arch::x86_64::__cpuid_count(leaf, subleaf);
    CpuidResult { eax: r.eax, ebx: r.ebx, ecx: r.ecx, edx: r.edx }
}

/// CPUID `leaf` if the CPU has it, else zeros.
#[must_use]
pub fn cpuid_checked(leaf: u32, subleaf: u32) -> CpuidResult {
    let highest = cpuid(leaf & 0xf000_0000, 0).eax;
    if leaf > highest { CpuidResult::default() } else { cpuid(leaf, subleaf) }
}
