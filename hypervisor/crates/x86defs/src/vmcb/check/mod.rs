//! Why a VMRUN fails: the rules that the CPU checks, over a VMCB
//! (APM: "Canonicalization and Consistency Checks", "Event Injection", "Nested
//! Paging and VMRUN/#VMEXIT"). State outside the VMCB (the host's CR0.PG, U_CET)
//! has no rule here, nor have features that are never used: AVIC, virtual NMIs,
//! encrypted guests.
//!
//! A VMCB is checked before the entry. A refused entry may have overwritten
//! it: one emulator saves what it has of the guest even then.

#[cfg(test)]
mod tests;

use super::{IOPM_SIZE, Intercepts4, MSRPM_SIZE, Vmcb};
use crate::control::{Cr0, Cr4, Efer};
use crate::cpuid::CpuidSource;
use crate::event::Exception;
use crate::segment::Segment;
use core::fmt;

/// Limits of a CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Width of physical addresses, 32 to 52.
    pub physical_bits: u32,
    /// Bits of CR4 that may be 1.
    pub cr4: Cr4,
    /// Bits of EFER that may be 1.
    pub efer: Efer,
    /// There is nested paging.
    pub nested_paging: bool,
}

/// A CPUID leaf's register.
#[derive(Clone, Copy)]
enum Register {
    Eax,
    Ebx,
    Ecx,
    Edx,
}

/// Features and the bits that they bring: leaf, register, bit number, bits
/// (APM: "CR4 Register", "Extended Feature Enable Register (EFER)").
const CR4_FEATURES: &[(u32, Register, u32, Cr4)] = &[
    (1, Register::Edx, 1, Cr4::VME.union(Cr4::PVI)),
    (1, Register::Edx, 2, Cr4::DE),
    (1, Register::Edx, 3, Cr4::PSE),
    (1, Register::Edx, 4, Cr4::TSD),
    (1, Register::Edx, 6, Cr4::PAE),
    (1, Register::Edx, 7, Cr4::MCE),
    (1, Register::Edx, 13, Cr4::PGE),
    (1, Register::Edx, 24, Cr4::OSFXSR),
    (1, Register::Edx, 25, Cr4::OSXMMEXCPT),
    (1, Register::Ecx, 17, Cr4::PCIDE),
    (1, Register::Ecx, 26, Cr4::OSXSAVE),
    (7, Register::Ebx, 0, Cr4::FSGSBASE),
    (7, Register::Ebx, 7, Cr4::SMEP),
    (7, Register::Ebx, 20, Cr4::SMAP),
    (7, Register::Ecx, 2, Cr4::UMIP),
    (7, Register::Ecx, 3, Cr4::PKE),
    (7, Register::Ecx, 7, Cr4::CET),
    (7, Register::Ecx, 16, Cr4::LA57),
];

const EFER_FEATURES: &[(u32, Register, u32, Efer)] = &[
    (0x8000_0001, Register::Edx, 11, Efer::SCE),
    (0x8000_0001, Register::Edx, 20, Efer::NXE),
    (0x8000_0001, Register::Edx, 25, Efer::FFXSR),
    (0x8000_0001, Register::Edx, 29, Efer::LME.union(Efer::LMA)),
    (0x8000_0001, Register::Ecx, 2, Efer::SVME),
    (0x8000_0001, Register::Ecx, 17, Efer::TCE),
    (0x8000_0021, Register::Eax, 8, Efer::AUTOIBRS),
];

/// CPUID 8000_0008 EBX: EFER.LMSLE is not there.
const NO_LMSLE: u32 = 1 << 20;
/// CPUID 8000_000A EDX: nested paging.
const NESTED_PAGING: u32 = 1 << 0;

impl Limits {
    /// The limits of `cpu`, which answers 0 for leaves that it does not have.
    #[must_use]
    pub fn of(cpu: &impl CpuidSource) -> Self {
        let has = |leaf, register, bit: u32| {
            let answer = cpu.cpuid(leaf, 0);
            let word = match register {
                Register::Eax => answer.eax,
                Register::Ebx => answer.ebx,
                Register::Ecx => answer.ecx,
                Register::Edx => answer.edx,
            };
            word >> bit & 1 != 0
        };
        // RDPMC for user mode came with the first of them.
        let mut cr4 = Cr4::PCE;
        for (leaf, register, bit, brings) in CR4_FEATURES {
            cr4.set(*brings, has(*leaf, *register, *bit));
        }
        let sizes = cpu.cpuid(0x8000_0008, 0);
        let mut efer = if sizes.ebx & NO_LMSLE == 0 { Efer::LMSLE } else { Efer::empty() };
        for (leaf, register, bit, brings) in EFER_FEATURES {
            efer.set(*brings, has(*leaf, *register, *bit));
        }
        let [physical_bits, ..] = sizes.eax.to_le_bytes();
        Self {
            physical_bits: u32::from(physical_bits).clamp(32, 52),
            cr4,
            efer,
            nested_paging: cpu.cpuid(0x8000_000a, 0).edx & NESTED_PAGING != 0,
        }
    }
}

/// State that the rules look at.
#[derive(Clone, Copy, Debug)]
pub struct Subject<'a> {
    /// The VMCB.
    pub vmcb: &'a Vmcb,
    /// The CPU.
    pub limits: &'a Limits,
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
        write!(f, "{} (APM: \"{}\")", self.broken, self.section)
    }
}

impl fmt::Debug for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl<'a> Subject<'a> {
    /// The rules that the VMCB breaks.
    pub fn broken(&'a self) -> impl Iterator<Item = &'static Rule> + 'a {
        RULES.iter().filter(|rule| !(rule.holds)(self))
    }

    fn cr0(&self) -> Cr0 {
        Cr0::from_bits_retain(self.vmcb.save.cr0)
    }

    fn cr4(&self) -> Cr4 {
        Cr4::from_bits_retain(self.vmcb.save.cr4)
    }

    fn efer(&self) -> Efer {
        Efer::from_bits_retain(self.vmcb.save.efer)
    }

    /// Paging with EFER.LME: long mode.
    fn long_mode(&self) -> bool {
        self.efer().contains(Efer::LME) && self.cr0().contains(Cr0::PG)
    }

    fn cs(&self) -> Segment {
        let [_, cs, ..] = self.vmcb.save.segments;
        cs.into()
    }

    fn nested_paging(&self) -> bool {
        self.vmcb.control.nested_control & 1 != 0
    }

    /// Whether an address fits the CPU's width.
    fn physical(&self, address: u64) -> bool {
        address >> self.limits.physical_bits == 0
    }

    /// Whether a permission map of `size` bytes at `base`, whose low bits are
    /// ignored, ends within physical addresses.
    fn map_fits(&self, base: u64, size: usize) -> bool {
        let last = (base & !0xfff).checked_add(size as u64 - 1);
        last.is_some_and(|last| self.physical(last))
    }

    /// Type and vector of the event to inject, if any.
    fn injected(&self) -> Option<(u8, Exception)> {
        let event = self.vmcb.control.event_injection;
        event.valid().then(|| (event.kind(), Exception(event.vector())))
    }
}

/// EVENTINJ's type of exceptions.
const EXCEPTION: u8 = 3;
/// S_CET: shadow stacks, and writes to them.
const S_CET: u64 = 3;

/// Whether each byte of a PAT value is a memory type.
fn valid_pat(value: u64) -> bool {
    value.to_le_bytes().iter().all(|kind| matches!(kind, 0 | 1 | 4..=7))
}

macro_rules! rules {
    ($($section:literal { $($broken:literal => $holds:expr;)* })*) => {
        &[$($(Rule { broken: $broken, section: $section, holds: $holds },)*)*]
    };
}

/// The rules, in the order of the manual.
static RULES: &[Rule] = rules! {
    "Canonicalization and Consistency Checks" {
        "guest EFER.SVME = 0" => |s| s.efer().contains(Efer::SVME);
        "guest CR0.NW = 1 with CR0.CD = 0" =>
            |s| !s.cr0().contains(Cr0::NW) || s.cr0().contains(Cr0::CD);
        "guest CR0 is wider than 32 bits" => |s| s.cr0().bits() >> 32 == 0;
        "guest CR3 is wider than physical addresses in long mode" =>
            |s| !s.long_mode() || s.physical(s.vmcb.save.cr3);
        "guest CR4 has a bit that the CPU does not have" =>
            |s| s.limits.cr4.contains(s.cr4());
        "guest DR6 is wider than 32 bits" => |s| s.vmcb.save.dr6 >> 32 == 0;
        "guest DR7 is wider than 32 bits" => |s| s.vmcb.save.dr7 >> 32 == 0;
        // SVME and long mode have rules of their own.
        "guest EFER has a bit that the CPU does not have" =>
            |s| s.limits.efer.contains(s.efer() - Efer::SVME - Efer::LME - Efer::LMA);
        "guest EFER.LME = 1 or EFER.LMA = 1 without long mode in the CPU" =>
            |s| s.limits.efer.contains(Efer::LME)
                || !s.efer().intersects(Efer::LME | Efer::LMA);
        "guest CR4.PAE = 0 with EFER.LME = 1 and CR0.PG = 1" =>
            |s| !s.long_mode() || s.cr4().contains(Cr4::PAE);
        "guest CR0.PE = 0 with EFER.LME = 1 and CR0.PG = 1" =>
            |s| !s.long_mode() || s.cr0().contains(Cr0::PE);
        "guest CS.D = 1 with CS.L = 1 in long mode" =>
            |s| !(s.long_mode()
                && s.cr4().contains(Cr4::PAE)
                && s.cs().attributes.long()
                && s.cs().attributes.big());
        "VMRUN is not intercepted" =>
            |s| s.vmcb.control.intercepts4.contains(Intercepts4::VMRUN);
        "the MSR permission map ends beyond physical addresses" =>
            |s| s.map_fits(s.vmcb.control.msrpm_base, MSRPM_SIZE);
        "the I/O permission map ends beyond physical addresses" =>
            |s| s.map_fits(s.vmcb.control.iopm_base, IOPM_SIZE);
        "ASID 0, which is the host's" => |s| s.vmcb.control.asid != 0;
        "guest S_CET has a reserved bit" =>
            |s| !s.limits.cr4.contains(Cr4::CET) || s.vmcb.save.s_cet & !S_CET == 0;
        "guest CR4.CET = 1 with CR0.WP = 0" =>
            |s| !s.cr4().contains(Cr4::CET) || s.cr0().contains(Cr0::WP);
    }
    "Event Injection" {
        "the injected event is of a type that is reserved" =>
            |s| s.injected().is_none_or(|(kind, _)| matches!(kind, 0 | 2 | 3 | 4));
        "the injected exception's vector is not one of an exception" =>
            |s| s.injected().is_none_or(|(kind, exception)| {
                kind != EXCEPTION || exception.0 != 2 && exception.0 < 32
            });
        "#OF or #BR is injected in 64-bit mode" =>
            |s| s.injected().is_none_or(|(kind, exception)| {
                kind != EXCEPTION
                    || !matches!(exception, Exception::OF | Exception::BR)
                    || !(s.long_mode() && s.cs().attributes.long())
            });
    }
    "Enabling Nested Paging" {
        "nested paging without nested paging in the CPU" =>
            |s| !s.nested_paging() || s.limits.nested_paging;
    }
    "Nested Paging and VMRUN/#VMEXIT" {
        "nested CR3 is wider than physical addresses" =>
            |s| !s.nested_paging() || s.physical(s.vmcb.control.nested_cr3);
        "guest PAT has a byte that is no memory type" =>
            |s| !s.nested_paging() || valid_pat(s.vmcb.save.g_pat);
    }
};
