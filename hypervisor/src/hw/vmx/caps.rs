//! What this CPU's VT-x can do, and the control words that follow from it
//! (SDM: "VMX Capability Reporting Facility").

use super::apicv;
use crate::cpu::{self, msr};
use crate::error::HostError;
use alloc::string::String;
use bitflags::Flags;
use core::fmt;
use vmm::cpuid::FeatureBit;
use x86_64::registers::control::{Cr0, Cr4, Cr4Flags};
use x86defs::Msr;
use x86defs::bits::Low;
use x86defs::vmcs::check::Limits;
use x86defs::vmcs::{
    ControlCapability, EntryControls, EptVpidCapabilities, ExitControls, PinControls,
    PrimaryControls, SecondaryControls, VmxBasic, VmxMisc,
};

/// VT-x's abilities and the control words made of them, computed once.
#[derive(Clone, Copy, Debug)]
pub struct Caps {
    /// Revision, sizes.
    pub basic: VmxBasic,
    /// Pin-based controls.
    pub pin: PinControls,
    /// Primary processor-based controls, without any window.
    pub primary: PrimaryControls,
    /// Secondary ones.
    pub secondary: SecondaryControls,
    /// Exit controls.
    pub exit: ExitControls,
    /// Entry controls, for a guest outside long mode.
    pub entry: EntryControls,
    /// EPT and VPID.
    pub ept_vpid: EptVpidCapabilities,
    /// The preemption timer counts once in 2^this ticks of the TSC, where there
    /// is one whose count outlasts an exit.
    pub preemption_timer: Option<u8>,
    /// What an entry is checked against.
    pub limits: Limits,
}

const PIN: PinControls = PinControls::EXTERNAL_INTERRUPT_EXITING
    .union(PinControls::NMI_EXITING)
    .union(PinControls::VIRTUAL_NMIS);

const PRIMARY: PrimaryControls = PrimaryControls::TSC_OFFSETTING
    .union(PrimaryControls::HLT_EXITING)
    .union(PrimaryControls::MWAIT_EXITING)
    .union(PrimaryControls::MONITOR_EXITING)
    .union(PrimaryControls::RDPMC_EXITING)
    .union(PrimaryControls::IO_BITMAPS)
    .union(PrimaryControls::MSR_BITMAP)
    .union(PrimaryControls::SECONDARY);
/// Must be possible, but are set only where they are wanted: while an event
/// waits, and without the TPR shadow.
const WINDOWS: PrimaryControls = PrimaryControls::INTERRUPT_WINDOW
    .union(PrimaryControls::NMI_WINDOW)
    .union(PrimaryControls::CR8_LOAD_EXITING)
    .union(PrimaryControls::CR8_STORE_EXITING);

const SECONDARY: SecondaryControls = SecondaryControls::EPT
    .union(SecondaryControls::UNRESTRICTED_GUEST)
    .union(SecondaryControls::WBINVD_EXITING);
const SECONDARY_OPTIONAL: SecondaryControls =
    SecondaryControls::RDTSCP.union(SecondaryControls::INVPCID);

const EXIT: ExitControls = ExitControls::SAVE_DEBUG
    .union(ExitControls::HOST_64_BIT)
    .union(ExitControls::LOAD_PAT)
    .union(ExitControls::LOAD_EFER);

const ENTRY: EntryControls =
    EntryControls::LOAD_DEBUG.union(EntryControls::LOAD_PAT).union(EntryControls::LOAD_EFER);

const EPT: EptVpidCapabilities = EptVpidCapabilities::FOUR_LEVELS
    .union(EptVpidCapabilities::WRITE_BACK)
    .union(EptVpidCapabilities::PAGES_2M)
    .union(EptVpidCapabilities::INVEPT)
    .union(EptVpidCapabilities::INVEPT_SINGLE);

/// What VPIDs need.
const VPID: EptVpidCapabilities = EptVpidCapabilities::INVVPID
    .union(EptVpidCapabilities::INVVPID_SINGLE)
    .union(EptVpidCapabilities::INVVPID_ALL);

fn read(msr: Msr) -> Result<u64, HostError> {
    msr::try_read(msr).ok_or(HostError::MissingFeature {
        feature: "VT-x's capability registers",
        cure: "a CPU of the last fifteen years",
    })
}

fn names<F: Flags>(missing: &F) -> String {
    let mut text = String::new();
    for (name, _) in missing.iter_names() {
        if !text.is_empty() {
            text.push_str(", ");
        }
        text.push_str(&name.to_ascii_lowercase().replace('_', " "));
    }
    text
}

/// A control word: all of `required`, what there is of `optional`, and what
/// the CPU insists on.
fn settle<F: Flags<Bits = u32>>(
    msr: Msr,
    word: &'static str,
    required: F,
    optional: F,
) -> Result<F, HostError> {
    let capability = ControlCapability::from_msr(read(msr)?);
    match capability.settle(required.bits(), optional.bits()) {
        Ok(value) => Ok(F::from_bits_retain(value)),
        Err(missing) => {
            Err(HostError::MissingControls { word, names: names(&F::from_bits_retain(missing.0)) })
        }
    }
}

/// The rate of the preemption timer, if the CPU has all that `wanted` says
/// (SDM: "VMX-Preemption Timer").
fn preemption_timer(wanted: (PinControls, ExitControls)) -> Result<Option<u8>, HostError> {
    const RATE: u64 = 0x1f;
    let has = |msr, bits: u32| {
        let capability = ControlCapability::from_msr(read(msr)?);
        Ok::<_, HostError>(capability.settle(bits, 0).is_ok())
    };
    let (pin, exit) = wanted;
    let there =
        has(Msr::VMX_TRUE_PINBASED_CTLS, pin.bits())? && has(Msr::VMX_TRUE_EXIT_CTLS, exit.bits())?;
    let rate = (read(Msr::VMX_MISC)? & RATE).low8();
    Ok(there.then_some(rate))
}

/// What the CPU checks an entry against.
fn limits(basic: VmxBasic) -> Result<Limits, HostError> {
    let control = |msr| Ok::<_, HostError>(ControlCapability::from_msr(read(msr)?));
    let primary = control(Msr::VMX_TRUE_PROCBASED_CTLS)?;
    let secondary = control(Msr::VMX_PROCBASED_CTLS2)?;
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
        ept: EptVpidCapabilities::from_bits_retain(read(Msr::VMX_EPT_VPID_CAP)?),
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
        let timer = (PinControls::PREEMPTION_TIMER, ExitControls::SAVE_PREEMPTION_TIMER);
        let preemption_timer = preemption_timer(timer)?;
        let timer = if preemption_timer.is_some() { timer } else { Default::default() };
        let pin =
            settle(Msr::VMX_TRUE_PINBASED_CTLS, "pin-based", PIN | timer.0, PinControls::empty())?;
        let primary = |optional| {
            settle(Msr::VMX_TRUE_PROCBASED_CTLS, "processor-based", PRIMARY | WINDOWS, optional)
        };
        let primary = primary(PrimaryControls::TPR_SHADOW)? - WINDOWS;
        let ept_vpid = EptVpidCapabilities::from_bits_truncate(read(Msr::VMX_EPT_VPID_CAP)?);
        let missing = EPT - ept_vpid;
        if !missing.is_empty() {
            return Err(HostError::MissingControls { word: "EPT", names: names(&missing) });
        }
        let mut optional = SECONDARY_OPTIONAL | apicv::OPTIONAL;
        optional.set(SecondaryControls::VPID, ept_vpid.contains(VPID));
        let secondary =
            settle(Msr::VMX_PROCBASED_CTLS2, "secondary processor-based", SECONDARY, optional)?;
        let exit = settle(Msr::VMX_TRUE_EXIT_CTLS, "exit", EXIT | timer.1, ExitControls::empty())?;
        let long = EntryControls::IA32E_GUEST;
        let entry =
            settle(Msr::VMX_TRUE_ENTRY_CTLS, "entry", ENTRY | long, EntryControls::empty())? - long;
        let limits = limits(basic)?;
        let caps = Self {
            basic,
            pin,
            primary,
            secondary,
            exit,
            entry,
            ept_vpid,
            preemption_timer,
            limits,
        };
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
        self.secondary.contains(SecondaryControls::VPID)
    }

    /// Instructions that the CPU has but can't give to guests.
    #[must_use]
    pub const fn withheld(&self) -> &'static [FeatureBit] {
        let rdtscp = self.secondary.contains(SecondaryControls::RDTSCP);
        let invpcid = self.secondary.contains(SecondaryControls::INVPCID);
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
        let shadow = self.primary.contains(PrimaryControls::TPR_SHADOW);
        for (there, name) in [
            (shadow, "TPR shadow"),
            (self.secondary.contains(SecondaryControls::VIRTUAL_APIC_ACCESSES), "APIC accesses"),
            (self.secondary.contains(SecondaryControls::VIRTUAL_X2APIC), "x2APIC"),
            (
                self.secondary.contains(SecondaryControls::VIRTUAL_INTERRUPT_DELIVERY),
                "virtual-interrupt delivery",
            ),
        ] {
            if there {
                write!(f, ", {name}")?;
            }
        }
        if self.preemption_timer.is_some() {
            f.write_str(", preemption timer")?;
        }
        Ok(())
    }
}
