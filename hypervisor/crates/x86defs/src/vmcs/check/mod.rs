//! Why an entry fails: the rules that the CPU checks, over a plain copy of the
//! VMCS (SDM: "Checks on VMX Controls and Host-State Area", "Checking and
//! Loading Guest State"). What can't be told from the VMCS alone (the contents
//! of MSR areas, structures of system-management mode) has no rule here.

mod controls;
mod guest;
mod host;
mod segments;
#[cfg(test)]
mod tests;

use super::controls::ControlCapability;
use super::{
    EntryControls, ExitControls, Field16, Field32, Field64, FieldNatural, InterruptionInfo,
    PinControls, PrimaryControls, SecondaryControls,
};
use crate::control::{Cr0, Cr4, Efer, Rflags};
use core::fmt;

/// All fields of a VMCS. A field that the CPU does not have is 0.
#[derive(Clone, Debug)]
pub struct Image {
    words16: [u16; Field16::ALL.len()],
    words32: [u32; Field32::ALL.len()],
    words64: [u64; Field64::ALL.len()],
    natural: [u64; FieldNatural::ALL.len()],
}

macro_rules! accessors {
    ($($field:ty, $value:ty, $group:ident, $get:ident, $set:ident;)*) => {
        impl Image {$(
            /// A field's value.
            #[must_use]
            pub fn $get(&self, field: $field) -> $value {
                let place = <$field>::ALL.iter().position(|(_, known)| *known == field);
                place.and_then(|place| self.$group.get(place)).copied().unwrap_or_default()
            }

            /// Sets a field.
            pub fn $set(&mut self, field: $field, value: $value) {
                let place = <$field>::ALL.iter().position(|(_, known)| *known == field);
                if let Some(slot) = place.and_then(|place| self.$group.get_mut(place)) {
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
            words16: [0; Field16::ALL.len()],
            words32: [0; Field32::ALL.len()],
            words64: [0; Field64::ALL.len()],
            natural: [0; FieldNatural::ALL.len()],
        }
    }
}

/// What the CPU allows (SDM: "VMX Capability Reporting Facility").
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Pin-based controls.
    pub pin: ControlCapability,
    /// Primary processor-based controls.
    pub primary: ControlCapability,
    /// Secondary ones.
    pub secondary: ControlCapability,
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
}

/// What the rules look at.
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
    /// What is wrong where it is broken.
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

/// Which check of the entry failed.
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
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Controls, Self::Host, Self::Guest];

    /// Its rules.
    pub fn rules(self) -> impl Iterator<Item = &'static Rule> {
        let (first, second): (&[Rule], &[Rule]) = match self {
            Self::Controls => (controls::RULES, &[]),
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
    ($section:literal: $($broken:literal => $holds:expr;)*) => {
        &[$($crate::vmcs::check::Rule { broken: $broken, section: $section, holds: $holds }),*]
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
