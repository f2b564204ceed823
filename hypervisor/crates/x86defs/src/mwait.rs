//! MWAIT's hints: how deeply a CPU without work may sleep
//! (SDM: "MONITOR/MWAIT Extensions"; "CPUID", leaf 5).

use crate::cpuid::CpuidSource;

const LEAF1_ECX_MONITOR: u32 = 1 << 3;
const LEAF1_ECX_HYPERVISOR: u32 = 1 << 31;
const LEAF6_EAX_TIMER_ALWAYS_RUNS: u32 = 1 << 2;
const LEAF8000_0007_EDX_INVARIANT_TSC: u32 = 1 << 8;

/// The hints, in EAX of MWAIT, that a CPU understands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MwaitHints {
    /// For a short wait: C1.
    pub short: u32,
    /// For a long wait: C1E, or the first deeper state if the local APIC's timer and
    /// the TSC go on in it.
    pub long: u32,
}

impl MwaitHints {
    /// The hints of a CPU, if it has MWAIT. Under another hypervisor a CPU waits by
    /// HLT: MWAIT would keep the other from using its CPU.
    #[must_use]
    pub fn of(cpu: &impl CpuidSource) -> Option<Self> {
        let features = cpu.cpuid(1, 0).ecx;
        let highest = cpu.cpuid(0, 0).eax;
        if features & (LEAF1_ECX_MONITOR | LEAF1_ECX_HYPERVISOR) != LEAF1_ECX_MONITOR || highest < 5
        {
            return None;
        }
        let states = cpu.cpuid(5, 0).edx;
        // Bits 4n + 3 to 4n: how many sub-states Cn has; its hint is 0x10 * (n - 1).
        let has = |n: u32, sub_states: u32| states >> (4 * n) & 0xf >= sub_states;
        let timer_runs = highest >= 6 && cpu.cpuid(6, 0).eax & LEAF6_EAX_TIMER_ALWAYS_RUNS != 0;
        let tsc_runs = cpu.cpuid(0x8000_0000, 0).eax >= 0x8000_0007
            && cpu.cpuid(0x8000_0007, 0).edx & LEAF8000_0007_EDX_INVARIANT_TSC != 0;
        let deeper = (2..8).find(|n| timer_runs && tsc_runs && has(*n, 1)).map(|n| (n - 1) << 4);
        let long = deeper.unwrap_or_else(|| u32::from(has(1, 2)));
        Some(Self { short: 0, long })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpuid::CpuidResult;

    /// The hints by CPUID: ECX of leaf 1, EDX of leaf 5, EAX of leaf 6, EDX of
    /// leaf 8000_0007.
    fn hints(features: u32, states: u32, power: u32, extended: u32) -> Option<MwaitHints> {
        MwaitHints::of(&|leaf, _| {
            let mut result = CpuidResult::default();
            match leaf {
                0 => result.eax = 0xd,
                1 => result.ecx = features,
                5 => result.edx = states,
                6 => result.eax = power,
                0x8000_0000 => result.eax = 0x8000_0008,
                0x8000_0007 => result.edx = extended,
                _ => {}
            }
            result
        })
    }

    #[test]
    fn only_where_the_cpu_has_it_to_itself() {
        assert_eq!(hints(0, 0x1120, 4, 0x100), None);
        assert_eq!(hints(1 << 3 | 1 << 31, 0x1120, 4, 0x100), None);
        assert!(hints(1 << 3, 0x1120, 4, 0x100).is_some());
    }

    #[test]
    fn deep_sleep_needs_a_timer_and_a_clock_that_go_on() {
        let long = |states, power, extended| hints(1 << 3, states, power, extended).unwrap().long;
        assert_eq!(long(0x1120, 4, 0x100), 0x10);
        assert_eq!(long(0x1_1020, 4, 0x100), 0x20);
        // C1 with a second sub-state, and without.
        assert_eq!(long(0x1120, 0, 0x100), 1);
        assert_eq!(long(0x1120, 4, 0), 1);
        assert_eq!(long(0x10, 0, 0), 0);
        assert_eq!(long(0x11, 4, 0x100), 0);
    }
}
