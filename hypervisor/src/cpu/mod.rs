//! The processor the code runs on: descriptor tables, traps, model-specific
//! registers, local APIC, time-stamp counter. It knows nothing that stands above it.

pub mod apic;
pub mod asm;
pub mod extable;
pub mod legacy;
pub mod msr;
pub mod percpu;
pub mod power;
pub mod tables;
pub mod traps;
pub mod tsc;
pub mod tsc_sync;
pub mod vectors;

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

/// CPUID leaf 1 ECX: a hypervisor's virtual machine.
const LEAF1_ECX_HYPERVISOR: u32 = 1 << 31;

/// Whether the machine is the virtual one of an outer hypervisor or emulator that says so: its
/// CPUs may stand still at any instruction while others run.
#[must_use]
pub fn is_virtual_machine() -> bool {
    cpuid(1, 0).ecx & LEAF1_ECX_HYPERVISOR != 0
}

/// The CPU's name from CPUID (SDM: "The Processor Brand String Method").
#[must_use]
pub fn brand() -> alloc::string::String {
    let mut bytes = [0u8; 48];
    if cpuid(0x8000_0000, 0).eax >= 0x8000_0004 {
        for (leaf, chunk) in (0x8000_0002..).zip(bytes.chunks_exact_mut(16)) {
            let r = cpuid(leaf, 0);
            for (word, place) in [r.eax, r.ebx, r.ecx, r.edx].iter().zip(chunk.chunks_exact_mut(4))
            {
                place.copy_from_slice(&word.to_le_bytes());
            }
        }
    }
    alloc::string::String::from_utf8_lossy(&bytes).trim_matches(['\0', ' ']).into()
}
