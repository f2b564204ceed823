//! The lines of the table: for both vendors, then Intel's, then AMD's
//! (SDM: "Model-Specific Registers (MSRs)"; APM: "MSR Cross-Reference").

use super::{HardwareMsr, MsrLine, ReadAction, Rule, Slot, SpecialMsr, WriteAction};
use crate::cpuid::{CpuidTable, FeatureBit};
use crate::msr::mtrr::MtrrRegister;
use crate::pv::PvFeatures;
use alloc::vec::Vec;
use x86defs::cpuid::Vendor;
use x86defs::{Low, Msr};

/// A guest's settings that MSRs show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MsrConfig {
    /// Revision of the microcode, as bits 31:0 of AMD's PATCH_LEVEL and bits
    /// 63:32 of Intel's IA32_BIOS_SIGN_ID have it.
    pub microcode: u32,
    /// End of the RAM below 4 GiB.
    pub low_ram_end: u64,
    /// End of the RAM above 4 GiB; 4 GiB if there is none.
    pub high_ram_end: u64,
}

/// AMD: base of memory-mapped configuration space.
const MMIO_CFG_BASE: Msr = Msr(0xc001_0058);

const MISC_ENABLE_FAST_STRINGS: u64 = 1 << 0;
const MISC_ENABLE_PERFMON: u64 = 1 << 7;
const MISC_ENABLE_BTS_UNAVAILABLE: u64 = 1 << 11;
const MISC_ENABLE_PEBS_UNAVAILABLE: u64 = 1 << 12;
/// Messages of task priority on the bus, which no CPU with an x2APIC sends.
const MISC_ENABLE_XTPR_DISABLE: u64 = 1 << 23;

/// AMD: the four performance counters of the K7, which each CPU has without a bit of
/// CPUID: controls, then counters.
const K7_COUNTERS: core::ops::RangeInclusive<u32> = 0xc001_0000..=0xc001_0007;

/// A machine check is being handled and similar: bits 2:0.
const MCG_STATUS_BITS: u64 = 7;

const SYSCFG_FIXED_DRAM_ENABLE: u64 = 1 << 18;
const SYSCFG_FIXED_DRAM_MODIFY: u64 = 1 << 19;
const SYSCFG_VARIABLE_DRAM_ENABLE: u64 = 1 << 20;
const SYSCFG_TOM2_ENABLE: u64 = 1 << 21;
const SYSCFG_TOM2_WRITE_BACK: u64 = 1 << 22;

/// The TSC counts at the frequency of P-state 0; AMD's documents call its
/// absence a fault of the firmware.
const HWCR_TSC_FREQUENCY_P0: u64 = 1 << 24;
/// TLB cache disable, FFDIS, IGNNE emulation, machine-check status write
/// enable: settings without an effect on what is emulated here.
const HWCR_WRITABLE: u64 = 1 << 3 | 1 << 6 | 1 << 8 | 1 << 18;

/// Extended configuration space by port 0xcf8.
const NB_CFG_CF8_EXTENDED: u64 = 1 << 46;
/// LFENCE is serialising.
const DE_CFG_LFENCE_SERIALIZING: u64 = 1 << 1;

const fn constant(value: u64) -> MsrLine {
    MsrLine {
        read: ReadAction::Constant(value),
        write: WriteAction::Fault,
        rule: Rule::Any,
        reset: 0,
    }
}

const fn stored(slot: Slot, reset: u64, change: u64) -> MsrLine {
    MsrLine {
        read: ReadAction::Stored(slot),
        write: WriteAction::Stored(slot),
        rule: Rule::Change(change),
        reset,
    }
}

const fn hardware(which: HardwareMsr, rule: Rule) -> MsrLine {
    MsrLine {
        read: ReadAction::Hardware(which),
        write: WriteAction::Hardware(which),
        rule,
        reset: 0,
    }
}

const fn special(which: SpecialMsr) -> MsrLine {
    MsrLine {
        read: ReadAction::Special(which),
        write: WriteAction::Special(which),
        rule: Rule::Any,
        reset: 0,
    }
}

/// A performance counter that never counts, or its control: software that finds it
/// by the CPU's family writes to it.
const IDLE_COUNTER: MsrLine = MsrLine {
    read: ReadAction::Constant(0),
    write: WriteAction::Ignored,
    rule: Rule::Any,
    reset: 0,
};

/// Registers that exist on every CPU, and whose features every guest has.
const COMMON: &[(Msr, MsrLine)] = &[
    // The Pentium's machine-check registers: aliases of a bank, and there is
    // none.
    (Msr::P5_MC_ADDR, constant(0)),
    (Msr::P5_MC_TYPE, constant(0)),
    (Msr::TSC, special(SpecialMsr::Tsc)),
    (Msr::KVM_WALL_CLOCK_OLD, special(SpecialMsr::KvmWallClock)),
    (Msr::KVM_SYSTEM_TIME_OLD, special(SpecialMsr::KvmSystemTime)),
    (Msr::APIC_BASE, special(SpecialMsr::ApicBase)),
    // No banks, and no MCG_CTL.
    (Msr::MCG_CAP, constant(0)),
    (Msr::MCG_STATUS, stored(Slot::McgStatus, 0, MCG_STATUS_BITS)),
    (Msr::SYSENTER_CS, hardware(HardwareMsr::SysenterCs, Rule::Low32)),
    (Msr::SYSENTER_ESP, hardware(HardwareMsr::SysenterEsp, Rule::Canonical)),
    (Msr::SYSENTER_EIP, hardware(HardwareMsr::SysenterEip, Rule::Canonical)),
    (Msr::PAT, hardware(HardwareMsr::Pat, Rule::Pat)),
    // Branch recording and single-stepping by branch are not there, so that
    // all bits are reserved.
    (
        Msr::DEBUGCTL,
        MsrLine {
            read: ReadAction::Constant(0),
            write: WriteAction::Ignored,
            rule: Rule::Change(0),
            reset: 0,
        },
    ),
    (Msr::EFER, special(SpecialMsr::Efer)),
    (Msr::STAR, hardware(HardwareMsr::Star, Rule::Any)),
    (Msr::LSTAR, hardware(HardwareMsr::Lstar, Rule::Canonical)),
    (Msr::CSTAR, hardware(HardwareMsr::Cstar, Rule::Canonical)),
    (Msr::SFMASK, hardware(HardwareMsr::Sfmask, Rule::Low32)),
    (Msr::FS_BASE, hardware(HardwareMsr::FsBase, Rule::Canonical)),
    (Msr::GS_BASE, hardware(HardwareMsr::GsBase, Rule::Canonical)),
    (Msr::KERNEL_GS_BASE, hardware(HardwareMsr::KernelGsBase, Rule::Canonical)),
    (Msr::KVM_WALL_CLOCK, special(SpecialMsr::KvmWallClock)),
    (Msr::KVM_SYSTEM_TIME, special(SpecialMsr::KvmSystemTime)),
];

/// Registers of Intel's CPUs.
fn intel(config: &MsrConfig) -> [(Msr, MsrLine); 3] {
    [
        (Msr::PLATFORM_ID, constant(0)),
        // Software writes 0 and executes CPUID leaf 1, which puts the revision back: here it is
        // always in place.
        (
            Msr::BIOS_SIGN_ID,
            MsrLine {
                read: ReadAction::Constant(u64::from(config.microcode) << 32),
                write: WriteAction::Ignored,
                rule: Rule::Any,
                reset: 0,
            },
        ),
        (
            Msr::MISC_ENABLE,
            // The register's other bits are reserved: CPUID offers their features to no guest, or
            // they hide leaves and no-execute, which only firmware may do.
            MsrLine {
                rule: Rule::ChangeOrLose(
                    MISC_ENABLE_FAST_STRINGS | MISC_ENABLE_XTPR_DISABLE,
                    MISC_ENABLE_PERFMON
                        | MISC_ENABLE_BTS_UNAVAILABLE
                        | MISC_ENABLE_PEBS_UNAVAILABLE,
                ),
                ..stored(
                    Slot::MiscEnable,
                    MISC_ENABLE_FAST_STRINGS
                        | MISC_ENABLE_BTS_UNAVAILABLE
                        | MISC_ENABLE_PEBS_UNAVAILABLE,
                    0,
                )
            },
        ),
    ]
}

/// Registers of AMD's CPUs.
fn amd(config: &MsrConfig) -> [(Msr, MsrLine); 8] {
    let has_high_ram = config.high_ram_end > config::layout::HIGH_RAM_START;
    let tom2 = if has_high_ram { SYSCFG_TOM2_ENABLE | SYSCFG_TOM2_WRITE_BACK } else { 0 };
    [
        // AMD's PATCH_LEVEL has the number of Intel's BIOS_SIGN_ID.
        (Msr::BIOS_SIGN_ID, constant(config.microcode.into())),
        (
            Msr::SYSCFG,
            stored(
                Slot::Syscfg,
                SYSCFG_FIXED_DRAM_ENABLE | SYSCFG_VARIABLE_DRAM_ENABLE | tom2,
                // Extended types in fixed ranges tell DRAM from MMIO, which no
                // guest may change; the bit can be toggled as everywhere.
                SYSCFG_FIXED_DRAM_MODIFY,
            ),
        ),
        (Msr::HWCR, stored(Slot::Hwcr, HWCR_TSC_FREQUENCY_P0, HWCR_WRITABLE)),
        (Msr::TOP_MEM, constant(config.low_ram_end)),
        (Msr::TOP_MEM2, constant(if has_high_ram { config.high_ram_end } else { 0 })),
        (Msr::NB_CFG, stored(Slot::NbCfg, 0, NB_CFG_CF8_EXTENDED)),
        // Memory-mapped configuration space is not there: disabled.
        (MMIO_CFG_BASE, constant(0)),
        // Hardware takes a write that sets the bit that is set already.
        (
            Msr::DE_CFG,
            MsrLine {
                read: ReadAction::Constant(DE_CFG_LFENCE_SERIALIZING),
                write: WriteAction::Ignored,
                rule: Rule::Change(0),
                reset: DE_CFG_LFENCE_SERIALIZING,
            },
        ),
    ]
}

/// The MSRs that a guest has.
#[derive(Clone, Debug)]
pub struct MsrTable {
    /// Sorted by number.
    lines: Vec<(Msr, MsrLine)>,
    /// TSC_DEADLINE is among them.
    has_deadline: bool,
}

impl MsrTable {
    /// The table for a guest with this CPUID.
    #[must_use]
    pub fn new(cpuid: &CpuidTable, config: &MsrConfig) -> Self {
        let mut lines = Vec::from(COMMON);
        match cpuid.vendor() {
            Vendor::Intel => lines.extend(intel(config)),
            Vendor::Amd => {
                lines.extend(amd(config));
                lines.extend(K7_COUNTERS.map(|number| (Msr(number), IDLE_COUNTER)));
            }
            Vendor::Other => {}
        }
        if cpuid.has(FeatureBit::RDTSCP) || cpuid.has(FeatureBit::RDPID) {
            lines.push((Msr::TSC_AUX, hardware(HardwareMsr::TscAux, Rule::Low32)));
        }
        for (feature, msr, which) in [
            (FeatureBit::TSC_ADJUST, Msr::TSC_ADJUST, SpecialMsr::TscAdjust),
            (FeatureBit::TSC_DEADLINE, Msr::TSC_DEADLINE, SpecialMsr::TscDeadline),
        ] {
            if cpuid.has(feature) {
                lines.push((msr, special(which)));
            }
        }
        for (feature, msr, which) in [
            (PvFeatures::STEAL_TIME, Msr::KVM_STEAL_TIME, SpecialMsr::KvmStealTime),
            (PvFeatures::EOI, Msr::KVM_PV_EOI, SpecialMsr::KvmPvEoi),
        ] {
            if cpuid.pv().contains(feature) {
                lines.push((msr, special(which)));
            }
        }
        let mtrrs = (Msr::MTRR_CAP.0..=Msr::MTRR_DEF_TYPE.0)
            .filter_map(|number| Some((Msr(number), MtrrRegister::from_msr(Msr(number))?)));
        lines.extend(mtrrs.map(|(msr, which)| (msr, special(SpecialMsr::Mtrr(which)))));
        lines.sort_unstable_by_key(|(msr, _)| *msr);
        lines.shrink_to_fit();
        Self { lines, has_deadline: cpuid.has(FeatureBit::TSC_DEADLINE) }
    }

    /// The line of an MSR. The hottest are answered without a search.
    #[inline]
    #[must_use]
    pub fn lookup(&self, msr: Msr) -> Option<MsrLine> {
        match msr {
            Msr::TSC_DEADLINE if self.has_deadline => {
                Some(const { special(SpecialMsr::TscDeadline) })
            }
            Msr(0x800..=0x8ff) => Some(special(SpecialMsr::X2Apic(msr.0.low8()))),
            Msr::APIC_BASE => Some(const { special(SpecialMsr::ApicBase) }),
            _ => {
                let index = self.lines.binary_search_by_key(&msr, |(msr, _)| *msr).ok()?;
                self.lines.get(index).map(|(_, line)| *line)
            }
        }
    }

    /// All lines but those of the x2APIC's range, in the order of their
    /// numbers.
    pub fn lines(&self) -> impl Iterator<Item = (Msr, MsrLine)> {
        self.lines.iter().copied()
    }
}
