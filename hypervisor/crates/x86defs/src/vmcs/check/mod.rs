//! Why an entry fails: the rules that the CPU checks, over a plain copy of the
//! VMCS (SDM: "Checks on VMX Controls and Host-State Area", "Checking and
//! Loading Guest State"). State outside the VMCS (the contents of MSR areas and of
//! the page at the VMCS link pointer, structures of system-management mode,
//! whether Processor Trace runs) has no rule here, nor
//! have the fields behind tertiary controls, RTIT_CTL, LBR_CTL and UINV, which
//! are not used.

mod controls;
mod events;
mod guest;
mod host;
mod segments;
#[cfg(test)]
mod tests;

use super::controls::{ControlCapability, EptVpidCapabilities, VmxMisc};
use super::{
    EntryControls, ExitControls, Field16, Field32, Field64, FieldNatural, InterruptionInfo,
    PinControls, PrimaryControls, SecondaryControls,
};
use crate::control::{Cr0, Cr4, Efer, Rflags};
use core::fmt;

/// Slots for the fields of one width: an encoding's type (control, exit,
/// guest, host) in bits 11:10 and its index in bits 9:1 (SDM: "Structure of
/// VMCS Component Encoding"). `PER_TYPE` is more than any known index.
#[derive(Clone, Debug)]
struct Group<T, const PER_TYPE: usize> {
    slots: [[T; PER_TYPE]; 4],
}

impl<T: Copy + Default, const PER_TYPE: usize> Group<T, PER_TYPE> {
    fn new() -> Self {
        Self { slots: [[T::default(); PER_TYPE]; 4] }
    }

    fn place(code: u16) -> (usize, usize) {
        (usize::from(code >> 10 & 3), usize::from(code >> 1 & 0x1ff))
    }

    fn get(&self, code: u16) -> T {
        let (kind, index) = Self::place(code);
        self.slots.get(kind).and_then(|slots| slots.get(index)).copied().unwrap_or_default()
    }

    fn slot(&mut self, code: u16) -> Option<&mut T> {
        let (kind, index) = Self::place(code);
        self.slots.get_mut(kind)?.get_mut(index)
    }
}

/// All fields of a VMCS. A field that the CPU does not have is 0.
#[derive(Clone, Debug)]
pub struct Image {
    words16: Group<u16, 12>,
    words32: Group<u32, 26>,
    words64: Group<u64, 32>,
    natural: Group<u64, 24>,
}

macro_rules! accessors {
    ($($field:ty, $value:ty, $group:ident, $get:ident, $set:ident;)*) => {
        impl Image {$(
            /// A field's value.
            #[must_use]
            pub fn $get(&self, field: $field) -> $value {
                self.$group.get(field.0)
            }

            /// Sets a field.
            pub fn $set(&mut self, field: $field, value: $value) {
                if let Some(slot) = self.$group.slot(field.0) {
                    *slot = value;
                }
            }
        )*}
    };
}

accessors! {
    Field16, u16, words16, get16, set16;
    Field32, u32, words32, get32, set32;
    Field64, u64, words64, get64, set64;
    FieldNatural, u64, natural, get, set;
}

impl Default for Image {
    fn default() -> Self {
        Self {
            words16: Group::new(),
            words32: Group::new(),
            words64: Group::new(),
            natural: Group::new(),
        }
    }
}

/// Limits of a CPU (SDM: "VMX Capability Reporting Facility").
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Pin-based controls.
    pub pin: ControlCapability,
    /// Primary processor-based controls.
    pub primary: ControlCapability,
    /// Secondary processor-based controls.
    pub secondary: ControlCapability,
    /// Tertiary processor-based controls that may be 1.
    pub tertiary: u64,
    /// Exit controls.
    pub exit: ControlCapability,
    /// Entry controls.
    pub entry: ControlCapability,
    /// Bits of CR0 that must be 1, and that may be.
    pub cr0: (u64, u64),
    /// Bits of CR4 that must be 1, and that may be.
    pub cr4: (u64, u64),
    /// Width of physical addresses, 32 to 52.
    pub physical_bits: u32,
    /// A hardware exception may be injected with or without an error code.
    pub any_error_code: bool,
    /// Activity states, CR3 targets, injection without a length.
    pub misc: VmxMisc,
    /// Capabilities of EPT and VPID.
    pub ept: EptVpidCapabilities,
    /// Functions that VMFUNC may be given.
    pub functions: u64,
    /// Bits of PERF_GLOBAL_CTRL that exist.
    pub performance_counters: u64,
}

/// State that the rules look at.
#[derive(Clone, Copy, Debug)]
pub struct Subject<'a> {
    /// The VMCS.
    pub image: &'a Image,
    /// The CPU.
    pub limits: &'a Limits,
    /// The task priority in the virtual-APIC page, if there is one.
    pub task_priority: Option<u8>,
}

/// A rule of the manual.
pub struct Rule {
    /// Fault of a state that breaks the rule, in words.
    pub broken: &'static str,
    /// The manual's section.
    pub section: &'static str,
    holds: fn(&Subject<'_>) -> bool,
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (SDM: \"{}\")", self.broken, self.section)
    }
}

impl fmt::Debug for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Stage of the entry's checks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// The control fields: VM-instruction error 7.
    Controls,
    /// The host-state area: VM-instruction error 8.
    Host,
    /// The guest state: an exit that says so.
    Guest,
}

impl Stage {
    /// All stages, in the order of the checks.
    pub const ALL: [Self; 3] = [Self::Controls, Self::Host, Self::Guest];

    /// The rules of this stage.
    fn rules(self) -> impl Iterator<Item = &'static Rule> {
        let (first, second): (&[Rule], &[Rule]) = match self {
            Self::Controls => (controls::RULES, events::RULES),
            Self::Host => (host::RULES, &[]),
            Self::Guest => (guest::RULES, segments::RULES),
        };
        first.iter().chain(second)
    }

    /// The rules that `subject` breaks.
    pub fn broken<'a>(self, subject: &'a Subject<'a>) -> impl Iterator<Item = &'static Rule> + 'a {
        self.rules().filter(|rule| !(rule.holds)(subject))
    }
}

macro_rules! rules {
    ($($section:literal { $($broken:literal => $holds:expr;)* })*) => {
        &[$($($crate::vmcs::check::Rule {
            broken: $broken,
            section: $section,
            holds: $holds,
        },)*)*]
    };
}
use rules;

/// If `condition` then `then`.
fn implies(condition: bool, then: bool) -> bool {
    !condition || then
}

/// Whether bits 63:47 are all alike.
fn canonical(address: u64) -> bool {
    crate::GuestVirtAddr::new(address).is_canonical()
}

/// Whether each byte of a PAT value is a memory type.
fn valid_pat(value: u64) -> bool {
    value.to_le_bytes().iter().all(|kind| matches!(kind, 0 | 1 | 4..=7))
}

/// Whether an S_CET value can be one: bits 9:6 are 0, no tracking at once
/// suppressed and waited for, the bitmap at a canonical address.
fn valid_s_cet(value: u64) -> bool {
    value & 0x3c0 == 0 && value & 0xc00 != 0xc00 && canonical(value)
}

/// Whether a shadow-stack pointer can be one.
fn valid_ssp(value: u64) -> bool {
    value & 3 == 0 && canonical(value)
}

/// Whether EFER has only bits that Intel's CPUs have.
fn valid_efer(value: u64) -> bool {
    value & !(Efer::SCE | Efer::LME | Efer::LMA | Efer::NXE).bits() == 0
}

fn allowed(value: u32, capability: ControlCapability) -> bool {
    value & capability.must == capability.must && value & !capability.may == 0
}

impl Subject<'_> {
    fn pin(&self) -> PinControls {
        PinControls::from_bits_retain(self.image.get32(Field32::PIN_CONTROLS))
    }

    fn primary(&self) -> PrimaryControls {
        PrimaryControls::from_bits_retain(self.image.get32(Field32::PRIMARY_CONTROLS))
    }

    /// The secondary controls; none where they do not apply.
    fn secondary(&self) -> SecondaryControls {
        if !self.primary().contains(PrimaryControls::SECONDARY) {
            return SecondaryControls::empty();
        }
        SecondaryControls::from_bits_retain(self.image.get32(Field32::SECONDARY_CONTROLS))
    }

    fn exit(&self) -> ExitControls {
        ExitControls::from_bits_retain(self.image.get32(Field32::EXIT_CONTROLS))
    }

    fn entry(&self) -> EntryControls {
        EntryControls::from_bits_retain(self.image.get32(Field32::ENTRY_CONTROLS))
    }

    fn unrestricted(&self) -> bool {
        self.secondary().contains(SecondaryControls::UNRESTRICTED_GUEST)
    }

    fn long_mode(&self) -> bool {
        self.entry().contains(EntryControls::IA32E_GUEST)
    }

    fn cr0(&self) -> Cr0 {
        Cr0::from_bits_retain(self.image.get(FieldNatural::GUEST_CR0))
    }

    fn cr4(&self) -> Cr4 {
        Cr4::from_bits_retain(self.image.get(FieldNatural::GUEST_CR4))
    }

    fn efer(&self) -> Efer {
        Efer::from_bits_retain(self.image.get64(Field64::GUEST_EFER))
    }

    fn rflags(&self) -> Rflags {
        Rflags::from_bits_retain(self.image.get(FieldNatural::GUEST_RFLAGS))
    }

    fn virtual_8086(&self) -> bool {
        self.rflags().contains(Rflags::VM)
    }

    /// The event to inject, if any.
    fn injected(&self) -> Option<InterruptionInfo> {
        let info = InterruptionInfo::from_bits(self.image.get32(Field32::ENTRY_INTERRUPTION_INFO));
        info.valid().then_some(info)
    }

    /// Whether a physical address is aligned and no wider than the CPU's.
    fn physical(&self, address: u64, align: u64) -> bool {
        address.is_multiple_of(align) && address >> self.limits.physical_bits == 0
    }
}
