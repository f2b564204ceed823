//! Abilities of this CPU's VT-x, and the control words that follow from them
//! (SDM: "VMX Capability Reporting Facility").

use crate::cpu::{self, msr};
use crate::error::HostError;
use alloc::string::ToString;
use core::fmt;
use vmm::cpuid::FeatureBit;
use x86_64::registers::control::{Cr0, Cr4, Cr4Flags};
use x86defs::Msr;
use x86defs::vmcs::check::Limits;
use x86defs::vmcs::{
    ControlCapability, ControlWords, EptVpidCapabilities, PrimaryControls, SecondaryControls,
    VmxBasic, VmxMisc,
};

/// VT-x's abilities and the control words made of them, computed once.
#[derive(Clone, Copy, Debug)]
pub struct Caps {
    /// Revision, sizes.
    pub basic: VmxBasic,
    /// The control words.
    pub words: ControlWords,
    /// Limits that an entry is checked against.
    pub limits: Limits,
}

fn read(msr: Msr) -> Result<u64, HostError> {
    msr::try_read(msr).ok_or(HostError::MissingFeature {
        feature: "VT-x's capability registers",
        cure: "a CPU of the last fifteen years",
    })
}

/// Limits that the CPU checks an entry against.
fn limits(basic: VmxBasic) -> Result<Limits, HostError> {
    let control = |msr| Ok::<_, HostError>(ControlCapability::from_msr(read(msr)?));
    let primary = control(Msr::VMX_TRUE_PROCBASED_CTLS)?;
    // Without secondary controls there is no register for them, nor for EPT.
    let optional = |msr| msr::try_read(msr).unwrap_or(0);
    let secondary = ControlCapability::from_msr(optional(Msr::VMX_PROCBASED_CTLS2));
    let [physical_bits, ..] = cpu::cpuid_checked(0x8000_0008, 0).eax.to_le_bytes();
    Ok(Limits {
        pin: control(Msr::VMX_TRUE_PINBASED_CTLS)?,
        exit: control(Msr::VMX_TRUE_EXIT_CTLS)?,
        entry: control(Msr::VMX_TRUE_ENTRY_CTLS)?,
        cr0: (read(Msr::VMX_CR0_FIXED0)?, read(Msr::VMX_CR0_FIXED1)?),
        cr4: (read(Msr::VMX_CR4_FIXED0)?, read(Msr::VMX_CR4_FIXED1)?),
        physical_bits: physical_bits.max(32).into(),
        any_error_code: basic.any_error_code(),
        misc: VmxMisc::from_bits(read(Msr::VMX_MISC)?),
        ept: EptVpidCapabilities::from_bits_retain(optional(Msr::VMX_EPT_VPID_CAP)),
        functions: if secondary.may & SecondaryControls::VMFUNC.bits() != 0 {
            read(Msr::VMX_VMFUNC)?
        } else {
            0
        },
        tertiary: if primary.may & PrimaryControls::TERTIARY.bits() != 0 {
            read(Msr::VMX_PROCBASED_CTLS3)?
        } else {
            0
        },
        performance_counters: performance_counters(),
        primary,
        secondary,
    })
}

/// The counters that PERF_GLOBAL_CTRL switches
/// (SDM: "Architectural Performance Monitoring").
fn performance_counters() -> u64 {
    let leaf = cpu::cpuid_checked(0xa, 0);
    let [_, general, ..] = leaf.eax.to_le_bytes();
    let ones = |count: u32| 1_u64.checked_shl(count).map_or(u64::MAX, |bit| bit - 1);
    ones(general.into()) | ones(leaf.edx & 0x1f) << 32
}

impl Caps {
    /// Reads them.
    ///
    /// # Errors
    /// [`HostError::MissingControls`] or [`HostError::MissingFeature`] names
    /// what is missing.
    pub fn read() -> Result<Self, HostError> {
        let basic = VmxBasic::from_bits(read(Msr::VMX_BASIC)?);
        let feature = |feature| HostError::MissingFeature {
            feature,
            cure: "a CPU of the last fifteen years",
        };
        if !basic.true_controls() {
            return Err(feature("VT-x's TRUE capability registers"));
        }
        let limits = limits(basic)?;
        let words = ControlWords::choose(&limits).map_err(|missing| {
            HostError::MissingControls { word: missing.word(), names: missing.to_string() }
        })?;
        let caps = Self { basic, words, limits };
        caps.check_control_registers()?;
        Ok(caps)
    }

    /// VMXON and every exit want certain bits of CR0 and CR4
    /// (SDM: "VMX-Fixed Bits in CR0", "VMX-Fixed Bits in CR4").
    fn check_control_registers(&self) -> Result<(), HostError> {
        let cr0 = Cr0::read_raw();
        let cr4 = Cr4::read_raw() | Cr4Flags::VIRTUAL_MACHINE_EXTENSIONS.bits();
        let fits = |value: u64, must: Msr, may: Msr| -> Result<bool, HostError> {
            let (must, may) = (read(must)?, read(may)?);
            Ok(value & must == must && value & !may == 0)
        };
        if fits(cr0, Msr::VMX_CR0_FIXED0, Msr::VMX_CR0_FIXED1)?
            && fits(cr4, Msr::VMX_CR4_FIXED0, Msr::VMX_CR4_FIXED1)?
        {
            return Ok(());
        }
        Err(HostError::MissingFeature {
            feature: "a VT-x that works with our control registers",
            cure: "tell us the CPU's model",
        })
    }

    /// Whether VPIDs are used.
    #[must_use]
    pub const fn has_vpid(&self) -> bool {
        self.words.secondary.contains(SecondaryControls::VPID)
    }

    /// Instructions that the CPU has but can't give to guests.
    #[must_use]
    pub const fn withheld(&self) -> &'static [FeatureBit] {
        let rdtscp = self.words.secondary.contains(SecondaryControls::RDTSCP);
        let invpcid = self.words.secondary.contains(SecondaryControls::INVPCID);
        match (rdtscp, invpcid) {
            (true, true) => &[],
            (true, false) => &[FeatureBit::INVPCID],
            (false, true) => &[FeatureBit::RDTSCP, FeatureBit::RDPID],
            (false, false) => &[FeatureBit::RDTSCP, FeatureBit::RDPID, FeatureBit::INVPCID],
        }
    }
}

impl fmt::Display for Caps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "VT-x revision {:#x}, EPT, unrestricted guest", self.basic.revision())?;
        if self.has_vpid() {
            f.write_str(", VPID")?;
        }
        for (there, name) in [
            (self.words.keeps_task_priority(), "TPR shadow"),
            (
                self.words.secondary.contains(SecondaryControls::VIRTUAL_APIC_ACCESSES),
                "APIC accesses",
            ),
            (self.words.secondary.contains(SecondaryControls::VIRTUAL_X2APIC), "x2APIC"),
            (self.words.delivers_interrupts(), "virtual-interrupt delivery"),
        ] {
            if there {
                write!(f, ", {name}")?;
            }
        }
        if self.words.preemption_timer.is_some() {
            f.write_str(", preemption timer")?;
        }
        Ok(())
    }
}
