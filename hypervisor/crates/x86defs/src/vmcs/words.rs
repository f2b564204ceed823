//! [`ControlWords`]: which controls to use on a CPU, of those that its
//! capability MSRs allow (SDM: "VM-Execution Control Fields").

use super::check::Limits;
use super::controls::{
    ControlCapability, EntryControls, EptVpidCapabilities, ExitControls, MissingControls,
    PinControls, PrimaryControls, SecondaryControls,
};
use bitflags::Flags;
use core::fmt::{self, Write};

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
const CR8_EXITING: PrimaryControls =
    PrimaryControls::CR8_LOAD_EXITING.union(PrimaryControls::CR8_STORE_EXITING);
/// Controls that must be possible, but are set only when they are wanted: while an
/// event waits, and without the TPR shadow.
const AT_TIMES: PrimaryControls =
    PrimaryControls::INTERRUPT_WINDOW.union(PrimaryControls::NMI_WINDOW).union(CR8_EXITING);

const SECONDARY: SecondaryControls = SecondaryControls::EPT
    .union(SecondaryControls::UNRESTRICTED_GUEST)
    .union(SecondaryControls::WBINVD_EXITING);
/// Controls that follow the mode of the guest's APIC.
const APIC_BY_MODE: SecondaryControls =
    SecondaryControls::VIRTUAL_APIC_ACCESSES.union(SecondaryControls::VIRTUAL_X2APIC);
/// Controls by which a CPU delivers interrupts itself, beside the TPR shadow: with
/// fewer of them some accesses would neither exit nor work.
const APIC_DELIVERY: SecondaryControls = APIC_BY_MODE
    .union(SecondaryControls::APIC_REGISTER_VIRTUALIZATION)
    .union(SecondaryControls::VIRTUAL_INTERRUPT_DELIVERY);

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
/// Capabilities that VPIDs need.
const VPID: EptVpidCapabilities = EptVpidCapabilities::INVVPID
    .union(EptVpidCapabilities::INVVPID_SINGLE)
    .union(EptVpidCapabilities::INVVPID_ALL);

/// Controls that are needed and that the CPU lacks. Displays as their names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Missing {
    /// Pin-based controls.
    Pin(PinControls),
    /// Primary processor-based controls.
    Primary(PrimaryControls),
    /// Secondary processor-based controls.
    Secondary(SecondaryControls),
    /// Exit controls.
    Exit(ExitControls),
    /// Entry controls.
    Entry(EntryControls),
    /// Capabilities of EPT.
    Ept(EptVpidCapabilities),
}

impl Missing {
    /// Name of the control word that lacks them.
    #[must_use]
    pub const fn word(&self) -> &'static str {
        match self {
            Self::Pin(_) => "pin-based",
            Self::Primary(_) => "processor-based",
            Self::Secondary(_) => "secondary processor-based",
            Self::Exit(_) => "exit",
            Self::Entry(_) => "entry",
            Self::Ept(_) => "EPT",
        }
    }
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fn names<F: Flags>(f: &mut fmt::Formatter<'_>, set: &F) -> fmt::Result {
            for (number, (name, _)) in set.iter_names().enumerate() {
                f.write_str(if number == 0 { "" } else { ", " })?;
                for c in name.chars() {
                    f.write_char(if c == '_' { ' ' } else { c.to_ascii_lowercase() })?;
                }
            }
            Ok(())
        }
        match self {
            Self::Pin(set) => names(f, set),
            Self::Primary(set) => names(f, set),
            Self::Secondary(set) => names(f, set),
            Self::Exit(set) => names(f, set),
            Self::Entry(set) => names(f, set),
            Self::Ept(set) => names(f, set),
        }
    }
}

/// The control words for a CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ControlWords {
    /// Pin-based controls.
    pub pin: PinControls,
    /// Primary processor-based controls, without any window.
    pub primary: PrimaryControls,
    /// Secondary processor-based controls. Those of APIC virtualization are all that the
    /// CPU has: see [`for_apic_mode`](Self::for_apic_mode).
    pub secondary: SecondaryControls,
    /// Exit controls.
    pub exit: ExitControls,
    /// Entry controls, for a guest outside long mode.
    pub entry: EntryControls,
    /// The preemption timer counts once in 2^this ticks of the TSC, where there
    /// is one whose count outlasts an exit.
    pub preemption_timer: Option<u8>,
}

/// The mode of a guest's APIC, as far as APIC virtualization has a part in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ApicSpace {
    /// The APIC's registers are in memory.
    Memory,
    /// The APIC's registers are MSRs.
    Msrs,
    /// APIC virtualization has no part: the APIC is off, or its registers stand elsewhere.
    None,
}

fn settle<F: Flags<Bits = u32>>(
    capability: ControlCapability,
    required: F,
    optional: F,
    missing: impl Fn(F) -> Missing,
) -> Result<F, Missing> {
    match capability.settle(required.bits(), optional.bits()) {
        Ok(word) => Ok(F::from_bits_retain(word)),
        Err(MissingControls(bits)) => Err(missing(F::from_bits_retain(bits))),
    }
}

impl ControlWords {
    /// The required controls, the useful ones that the CPU has, and those that it
    /// insists on.
    ///
    /// # Errors
    /// [`Missing`] names what is required and not there.
    pub fn choose(cpu: &Limits) -> Result<Self, Missing> {
        let mut optional = SecondaryControls::RDTSCP
            | SecondaryControls::INVPCID
            | SecondaryControls::PAUSE_LOOP_EXITING
            // ENCLS would run if firmware has switched SGX on.
            | SecondaryControls::ENCLS_EXITING
            | APIC_DELIVERY;
        optional.set(SecondaryControls::VPID, cpu.ept.contains(VPID));
        let (pin, exit) = (PinControls::PREEMPTION_TIMER, ExitControls::SAVE_PREEMPTION_TIMER);
        let counts = cpu.pin.may & pin.bits() != 0 && cpu.exit.may & exit.bits() != 0;
        // Each of the two is of no use without the other.
        let (pin, exit) = if counts { (pin, exit) } else { Default::default() };
        let long = EntryControls::IA32E_GUEST;
        let shadow = PrimaryControls::TPR_SHADOW;
        let words = Self {
            pin: settle(cpu.pin, PIN, pin, Missing::Pin)?,
            primary: settle(cpu.primary, PRIMARY | AT_TIMES, shadow, Missing::Primary)? - AT_TIMES,
            secondary: settle(cpu.secondary, SECONDARY, optional, Missing::Secondary)?,
            exit: settle(cpu.exit, EXIT, exit, Missing::Exit)?,
            entry: settle(cpu.entry, ENTRY | long, EntryControls::empty(), Missing::Entry)? - long,
            preemption_timer: counts.then(|| cpu.misc.preemption_timer_rate()),
        };
        // Only a CPU with EPT tells its capabilities.
        match EPT - cpu.ept {
            lacking if lacking.is_empty() => Ok(words),
            lacking => Err(Missing::Ept(lacking)),
        }
    }

    /// Whether the CPU keeps the task priority.
    #[must_use]
    pub const fn keeps_task_priority(&self) -> bool {
        self.primary.contains(PrimaryControls::TPR_SHADOW)
    }

    /// Whether the CPU delivers the APIC's interrupts by itself.
    #[must_use]
    pub const fn delivers_interrupts(&self) -> bool {
        self.keeps_task_priority() && self.secondary.contains(APIC_DELIVERY)
    }

    /// Without delivery: the CPU keeps the task priority at most.
    #[must_use]
    pub fn without_delivery(mut self) -> Self {
        self.secondary -= APIC_DELIVERY - APIC_BY_MODE;
        if self.keeps_task_priority() { self } else { self.without_apic() }
    }

    /// Without any virtualization of the APIC: MOV CR8 exits.
    #[must_use]
    pub fn without_apic(mut self) -> Self {
        self.primary -= PrimaryControls::TPR_SHADOW;
        self.primary |= CR8_EXITING;
        self.secondary -= APIC_DELIVERY;
        self
    }

    /// The secondary controls while the guest's APIC is where `space` says.
    #[must_use]
    pub fn for_apic_mode(&self, space: ApicSpace) -> SecondaryControls {
        let wanted = match space {
            ApicSpace::Memory => SecondaryControls::VIRTUAL_APIC_ACCESSES,
            ApicSpace::Msrs => SecondaryControls::VIRTUAL_X2APIC,
            ApicSpace::None => SecondaryControls::empty(),
        };
        (self.secondary - APIC_BY_MODE) | (self.secondary & wanted)
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use super::*;
    use crate::vmcs::VmxMisc;
    use std::string::ToString;
    use std::vec::Vec;

    fn capability(value: u64) -> ControlCapability {
        ControlCapability::from_msr(value)
    }

    /// A CPU with everything, by its registers.
    fn cpu() -> Limits {
        Limits {
            pin: capability(0x7f_0000_0016),
            primary: capability(0xfff9_fffe_0400_6172),
            secondary: capability(0x0217_7fff_0000_0000),
            exit: capability(0x7f_ffff_0003_6dfb),
            entry: capability(0xffff_0000_11fb),
            ept: EptVpidCapabilities::from_bits_retain(0xf01_0633_4141),
            tertiary: 0,
            cr0: (0x8000_0021, 0xffff_ffff),
            cr4: (0x2000, 0x0037_67ff),
            physical_bits: 39,
            any_error_code: false,
            misc: VmxMisc::new().with_preemption_timer_rate(5),
            functions: 0,
            performance_counters: 0,
        }
    }

    /// Takes a bit away in one word of `cpu`.
    fn without(change: impl Fn(&mut Limits)) -> Result<ControlWords, Missing> {
        let mut cpu = cpu();
        change(&mut cpu);
        ControlWords::choose(&cpu)
    }

    #[test]
    fn everything_that_is_of_use_and_nothing_else() {
        let words = ControlWords::choose(&cpu()).unwrap();
        assert_eq!(words.pin.bits(), 0x16 | (PIN | PinControls::PREEMPTION_TIMER).bits());
        assert_eq!(
            words.primary.bits(),
            (PRIMARY | PrimaryControls::TPR_SHADOW).bits() | 0x0400_6172
        );
        assert_eq!(words.secondary.bits(), 0x17fb);
        let exit = EXIT | ExitControls::SAVE_PREEMPTION_TIMER;
        assert_eq!(words.exit.bits(), 0x36dfb | exit.bits());
        assert_eq!(words.preemption_timer, Some(5));
        assert_eq!(words.entry.bits(), 0x11fb | ENTRY.bits());
        assert!(words.delivers_interrupts());
    }

    #[test]
    fn each_bit_that_is_required_is_named() {
        for bit in PIN.iter() {
            assert_eq!(without(|cpu| cpu.pin.may &= !bit.bits()), Err(Missing::Pin(bit)));
        }
        for bit in (PRIMARY | AT_TIMES).iter() {
            assert_eq!(without(|cpu| cpu.primary.may &= !bit.bits()), Err(Missing::Primary(bit)));
        }
        for bit in SECONDARY.iter() {
            let refused = without(|cpu| cpu.secondary.may &= !bit.bits());
            assert_eq!(refused, Err(Missing::Secondary(bit)));
        }
        for bit in EXIT.iter() {
            assert_eq!(without(|cpu| cpu.exit.may &= !bit.bits()), Err(Missing::Exit(bit)));
        }
        for bit in (ENTRY | EntryControls::IA32E_GUEST).iter() {
            assert_eq!(without(|cpu| cpu.entry.may &= !bit.bits()), Err(Missing::Entry(bit)));
        }
        for bit in EPT.iter() {
            assert_eq!(without(|cpu| cpu.ept -= bit), Err(Missing::Ept(bit)));
        }
    }

    #[test]
    fn names() {
        let missing =
            Missing::Secondary(SecondaryControls::EPT | SecondaryControls::UNRESTRICTED_GUEST);
        assert_eq!(missing.word(), "secondary processor-based");
        assert_eq!(missing.to_string(), "ept, unrestricted guest");
    }

    #[test]
    fn what_is_optional_may_lack() {
        for bit in APIC_DELIVERY
            | SecondaryControls::RDTSCP
            | SecondaryControls::INVPCID
            | SecondaryControls::PAUSE_LOOP_EXITING
        {
            let words = without(|cpu| cpu.secondary.may &= !bit.bits()).unwrap();
            assert_eq!(words.secondary.bits(), 0x17fb & !bit.bits());
            assert_eq!(words.delivers_interrupts(), !APIC_DELIVERY.contains(bit), "{bit:?}");
        }
        for bit in VPID {
            let words = without(|cpu| cpu.ept -= bit).unwrap();
            assert!(!words.secondary.contains(SecondaryControls::VPID), "{bit:?}");
        }
        let words = without(|cpu| cpu.primary.may &= !PrimaryControls::TPR_SHADOW.bits()).unwrap();
        assert!(!words.delivers_interrupts());
    }

    #[test]
    fn half_a_preemption_timer_is_none() {
        let timer = (PinControls::PREEMPTION_TIMER, ExitControls::SAVE_PREEMPTION_TIMER);
        for words in [
            without(|cpu| cpu.pin.may &= !timer.0.bits()).unwrap(),
            without(|cpu| cpu.exit.may &= !timer.1.bits()).unwrap(),
        ] {
            assert_eq!(words.preemption_timer, None);
            assert!(!words.pin.contains(timer.0) && !words.exit.contains(timer.1));
        }
    }

    #[test]
    fn less_of_the_apic() {
        let all = ControlWords::choose(&cpu()).unwrap();
        let priority = all.without_delivery();
        assert_eq!(all.secondary - priority.secondary, APIC_DELIVERY - APIC_BY_MODE);
        assert!(priority.keeps_task_priority() && !priority.delivers_interrupts());
        assert!(!priority.primary.intersects(CR8_EXITING));
        let mut shadowless = all;
        shadowless.primary -= PrimaryControls::TPR_SHADOW;
        for none in [all.without_apic(), priority.without_apic(), shadowless.without_delivery()] {
            assert_eq!(all.secondary - none.secondary, APIC_DELIVERY);
            assert!(none.primary.contains(CR8_EXITING) && !none.keeps_task_priority());
        }
    }

    #[test]
    fn the_mode_chooses_one_space() {
        let all = ControlWords::choose(&cpu()).unwrap();
        let spaces = [ApicSpace::Memory, ApicSpace::Msrs, ApicSpace::None];
        let chosen: Vec<_> =
            spaces.iter().map(|space| all.for_apic_mode(*space) & APIC_BY_MODE).collect();
        let wanted = [
            SecondaryControls::VIRTUAL_APIC_ACCESSES,
            SecondaryControls::VIRTUAL_X2APIC,
            SecondaryControls::empty(),
        ];
        assert_eq!(chosen, wanted);
        let none = all.without_apic();
        assert_eq!(none.for_apic_mode(ApicSpace::Msrs), none.secondary);
    }
}
