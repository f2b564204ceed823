//! Claims of CPUID about the TSC's rate.

use crate::verdict::{Claim, Witness};
use x86defs::cpuid::{CpuidSource, Vendor};

/// Leaf 1 ECX: software runs under a hypervisor.
const LEAF1_ECX_HYPERVISOR: u32 = 1 << 31;
/// Hypervisors' leaf with the TSC's rate in kHz: VMware's, which others have taken over.
const HYPERVISOR_TIMING: u32 = 0x4000_0010;

/// The crystals, in Hz, of CPUs whose leaf 0x15 has their ratio without them
/// (SDM: "Determining the Processor Base Frequency": family 6, by model).
const CRYSTALS: [(u32, u64); 6] = [
    (0x4e, 24_000_000),
    (0x5e, 24_000_000),
    (0x8e, 24_000_000),
    (0x9e, 24_000_000),
    (0x5c, 19_200_000),
    (0x5f, 25_000_000),
];

/// Claims of CPUID: the CPU's own, then that of the hypervisor that it may be a part of. None
/// of them is to be believed unless a clock confirms it: emulators, firmware and CPUs have
/// been wrong.
#[must_use]
pub fn claims(cpu: &impl CpuidSource) -> [Option<Claim>; 2] {
    [cpus_own(cpu), hypervisors(cpu)]
}

fn cpus_own(cpu: &impl CpuidSource) -> Option<Claim> {
    let leaf0 = cpu.cpuid(0, 0);
    if Vendor::of(leaf0) != Vendor::Intel || leaf0.eax < 0x15 {
        return None;
    }
    let ratio = cpu.cpuid(0x15, 0);
    let crystal = match ratio.ecx {
        0 => known_crystal(cpu.cpuid(1, 0).eax),
        hz => Some(hz.into()),
    };
    let hz = crystal.and_then(|crystal| {
        crystal.checked_mul(ratio.ebx.into())?.checked_div(ratio.eax.into()).filter(|hz| *hz != 0)
    });
    if let Some(hz) = hz {
        return Some(Claim { by: Witness::CpuidCrystal, hz });
    }
    let megahertz = if leaf0.eax < 0x16 { 0 } else { cpu.cpuid(0x16, 0).eax & 0xffff };
    let hz = u64::from(megahertz).saturating_mul(1_000_000);
    (hz != 0).then_some(Claim { by: Witness::CpuidBase, hz })
}

fn known_crystal(signature: u32) -> Option<u64> {
    let family = signature >> 8 & 0xf;
    let model = signature >> 4 & 0xf | signature >> 12 & 0xf0;
    let known = CRYSTALS.iter().find(|(number, _)| family == 6 && *number == model);
    known.map(|(_, hz)| *hz)
}

fn hypervisors(cpu: &impl CpuidSource) -> Option<Claim> {
    if cpu.cpuid(1, 0).ecx & LEAF1_ECX_HYPERVISOR == 0 {
        return None;
    }
    let highest = cpu.cpuid(0x4000_0000, 0).eax;
    // Hypervisors that answer every leaf with their own signature say nothing by it.
    let has = (HYPERVISOR_TIMING..HYPERVISOR_TIMING.saturating_add(0x100)).contains(&highest);
    let khz = if has { cpu.cpuid(HYPERVISOR_TIMING, 0).eax } else { 0 };
    let hz = u64::from(khz).saturating_mul(1000);
    (hz != 0).then_some(Claim { by: Witness::HypervisorLeaf, hz })
}
