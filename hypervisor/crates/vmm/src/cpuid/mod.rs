//! CPUID as a guest sees it: a table made once from the host's CPUID and the guest's settings,
//! looked up at each exit without a search.
//!
//! - [`features`]: the feature bits, one line each.
//! - [`VcpuView`]: registers that differ between vCPUs and change as they run.
//!
//! Leaves beyond the highest answer as hardware does: on Intel's CPUs with the
//! highest basic leaf, elsewhere with zeros (SDM: "CPUID—CPU Identification";
//! APM: "CPUID Instruction"). Leaves 0x4000_0000 to 0x4fff_ffff belong to
//! hypervisors and read as 0 where Steward has none.
//!
//! Linux looks for KVM's signature at each multiple of 0x100 from 0x4000_0000
//! to 0x4000_ff00 and takes the first match, so that Steward's own signature
//! may stand first. Some programs look at 0x4000_0000 only: a guest's setting
//! ([`Signature`]) puts KVM's there.

pub mod features;
mod leaves;
pub mod model;
#[cfg(test)]
mod tests;
pub mod xstate;

use crate::cpuid::xstate::Xstate;
use crate::pv::PvFeatures;
use alloc::vec::Vec;
use config::{FeatureSet, Signature};
pub use features::{FeatureBit, Register};
use hvabi::CallSet;
use x86defs::cpuid::{CpuidResult, CpuidSource, Vendor};
use x86defs::time::TscFrequency;
use x86defs::{Cr4, Efer, Low, Xcr0, msr};

/// A guest's settings that CPUID shows.
#[derive(Clone, Copy, Debug)]
pub struct CpuidConfig<'a> {
    /// How many vCPUs the guest has, at least 1: cores of one socket.
    pub vcpus: u16,
    /// The highest APIC id among them.
    pub max_apic_id: u32,
    /// The guest's TSC.
    pub tsc: TscFrequency,
    /// Frequency of the local APIC's timer before its divider, in Hz.
    pub apic_timer_hz: u32,
    /// Bits of a guest-physical address, 36 to 52; never more than the host
    /// has.
    pub physical_address_bits: u8,
    /// Extended states that may be offered, as far as the host has them.
    pub xcr0: Xcr0,
    /// The parts of KVM's interface that are offered beside the clock.
    pub pv: PvFeatures,
    /// The hypercalls that the guest may make.
    pub calls: CallSet,
    /// The signature that stands first.
    pub signature: Signature,
    /// Features that the backend can't virtualise on this CPU (on VT-x, those that need a control
    /// which is missing).
    pub withheld: &'a [FeatureBit],
    /// Features that the guest's settings hide.
    pub hidden: FeatureSet,
}

/// Input of CPUID beside the table: registers of the vCPU that asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VcpuView {
    /// CR4 as the guest sees it.
    pub cr4: Cr4,
    /// XCR0.
    pub xcr0: Xcr0,
    /// IA32_APIC_BASE.
    pub apic_base: u64,
    /// The vCPU's initial APIC id.
    pub apic_id: u32,
}

/// Whether a leaf looks at ECX.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Indexing {
    /// The same for every ECX.
    None,
    /// One entry for each subleaf from 0; zeros beyond.
    Subleaves,
}

/// Place of a leaf's entries in the table.
#[derive(Clone, Copy, Debug)]
struct Slot {
    first: u16,
    count: u16,
    indexing: Indexing,
}

const NO_SLOT: Slot = Slot { first: 0, count: 0, indexing: Indexing::None };
/// Leaves of one range that can have entries.
const RANGE_LEAVES: usize = 0x24;
/// The ranges of leaves: basic, two of hypervisors, extended.
const RANGES: [u32; 4] = [0, 0x4000_0000, 0x4000_0100, 0x8000_0000];

/// A guest's CPUID.
#[derive(Clone, Debug)]
pub struct CpuidTable {
    vendor: Vendor,
    xstate: Xstate,
    physical_address_bits: u8,
    pv: PvFeatures,
    calls: CallSet,
    highest_basic: u32,
    highest_extended: u32,
    /// Leaf 8000_0001 EDX repeats the APIC bit.
    apic_bit_repeated: ApicBit,
    entries: Vec<CpuidResult>,
    slots: [[Slot; RANGE_LEAVES]; RANGES.len()],
}

/// Whether leaf 8000_0001 EDX has a copy of leaf 1's APIC bit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ApicBit {
    InLeaf1,
    Repeated,
}

const LEAF1_EDX_APIC: u32 = 1 << 9;
const LEAF1_ECX_OSXSAVE: u32 = 1 << 27;
const LEAF7_ECX_OSPKE: u32 = 1 << 4;

/// The range that a leaf lies in, and its place there.
#[inline]
fn place(leaf: u32) -> Option<(usize, usize)> {
    let range = match leaf >> 8 {
        0 => 0,
        0x40_0000 => 1,
        0x40_0001 => 2,
        0x80_0000 => 3,
        _ => return None,
    };
    Some((range, usize::from(leaf.low8())))
}

impl CpuidTable {
    /// Makes the table for a guest on a host that answers CPUID as `host` does.
    pub fn new(host: &impl CpuidSource, config: &CpuidConfig<'_>) -> Self {
        leaves::build(host, config)
    }

    /// The CPU's maker, which the guest sees as well.
    #[must_use]
    pub const fn vendor(&self) -> Vendor {
        self.vendor
    }

    /// The extended states that the guest is offered.
    #[must_use]
    pub const fn xstate(&self) -> &Xstate {
        &self.xstate
    }

    /// The parts of KVM's interface that are offered beside the clock.
    #[must_use]
    pub const fn pv(&self) -> PvFeatures {
        self.pv
    }

    /// The hypercalls that the guest may make.
    #[must_use]
    pub const fn calls(&self) -> CallSet {
        self.calls
    }

    /// Bits of a guest-physical address.
    #[must_use]
    pub const fn physical_address_bits(&self) -> u8 {
        self.physical_address_bits
    }

    /// CPUID with EAX = `leaf` and ECX = `subleaf`, on the vCPU `vcpu`.
    #[inline]
    #[must_use]
    pub fn lookup(&self, leaf: u32, subleaf: u32, vcpu: &VcpuView) -> CpuidResult {
        let leaf = self.in_range(leaf);
        let mut result = self.fixed(leaf, subleaf);
        match leaf {
            1 => {
                result.ebx |= vcpu.apic_id << 24;
                if vcpu.cr4.contains(Cr4::OSXSAVE) {
                    result.ecx |= LEAF1_ECX_OSXSAVE;
                }
                if vcpu.apic_base & msr::APIC_BASE_ENABLE != 0 {
                    result.edx |= LEAF1_EDX_APIC;
                }
            }
            7 if subleaf == 0 && vcpu.cr4.contains(Cr4::PKE) => result.ecx |= LEAF7_ECX_OSPKE,
            0xb | 0x1f if leaf <= self.highest_basic => {
                // Every subleaf, those beyond the last level too, tells its
                // own number and the id.
                result.ecx |= u32::from(subleaf.low8());
                result.edx = vcpu.apic_id;
            }
            0xd if subleaf == 0 && result.eax != 0 => {
                result.ebx = self.xstate.standard_size(vcpu.xcr0);
            }
            0xd if subleaf == 1 && result.eax & leaves::XSAVEC != 0 => {
                result.ebx = self.xstate.compacted_size(vcpu.xcr0);
            }
            0x8000_0001
                if self.apic_bit_repeated == ApicBit::Repeated
                    && vcpu.apic_base & msr::APIC_BASE_ENABLE != 0 =>
            {
                result.edx |= LEAF1_EDX_APIC;
            }
            0x8000_001e if self.has(FeatureBit::TOPOEXT) => {
                result.eax = vcpu.apic_id;
                result.ebx |= u32::from(vcpu.apic_id.low8());
            }
            _ => {}
        }
        result
    }

    /// The leaf that answers for `leaf`.
    #[inline]
    fn in_range(&self, leaf: u32) -> u32 {
        let beyond = match leaf {
            ..0x4000_0000 => leaf > self.highest_basic,
            0x4000_0000..0x5000_0000 => false,
            0x8000_0000.. => leaf > self.highest_extended,
            _ => true,
        };
        if beyond && self.vendor == Vendor::Intel { self.highest_basic } else { leaf }
    }

    /// A leaf as the table has it, before the vCPU's registers count.
    #[inline]
    fn fixed(&self, leaf: u32, subleaf: u32) -> CpuidResult {
        let slot = place(leaf)
            .and_then(|(range, index)| self.slots.get(range)?.get(index))
            .copied()
            .unwrap_or(NO_SLOT);
        let index = match slot.indexing {
            Indexing::None => 0,
            Indexing::Subleaves => subleaf,
        };
        if index >= u32::from(slot.count) {
            return CpuidResult::default();
        }
        let entry = usize::from(slot.first) + usize::from(index.low16());
        self.entries.get(entry).copied().unwrap_or_default()
    }

    /// All answers of the table, before the vCPU's registers count: leaf, subleaf, answer.
    pub(crate) fn entries(&self) -> impl Iterator<Item = (u32, u32, CpuidResult)> {
        let slots = RANGES.into_iter().zip(&self.slots);
        let leaves = slots.flat_map(|(base, range)| (base..).zip(range));
        leaves.flat_map(move |(leaf, slot)| {
            (0..slot.count.into()).map(move |subleaf| (leaf, subleaf, self.fixed(leaf, subleaf)))
        })
    }

    /// Whether a leaf answers the same whatever ECX holds, and until a register
    /// of the [`VcpuView`] changes.
    pub(crate) fn is_flat(&self, leaf: u32) -> bool {
        let leaf = self.in_range(leaf);
        let slot = place(leaf).and_then(|(range, index)| self.slots.get(range)?.get(index));
        let indexed = slot.is_some_and(|slot| slot.indexing == Indexing::Subleaves);
        !indexed && !matches!(leaf, 7 | 0xb | 0xd | 0x1f)
    }

    /// Whether a leaf's answer depends on [`VcpuView::xcr0`].
    #[inline]
    #[must_use]
    pub fn shows_xcr0(&self, leaf: u32) -> bool {
        self.in_range(leaf) == 0xd
    }

    /// Whether the guest has a feature.
    #[must_use]
    pub fn has(&self, feature: FeatureBit) -> bool {
        let result = self.fixed(feature.leaf, feature.subleaf);
        read_register(&result, feature.register) >> feature.bit & 1 != 0
    }

    /// Whether the guest sees the feature with this name ([`features`]).
    #[must_use]
    pub fn shows(&self, name: &str) -> bool {
        features::FEATURE_WORDS.iter().any(|word| {
            let result = self.fixed(word.leaf, word.subleaf);
            let bits = read_register(&result, word.register);
            word.features.iter().any(|f| f.name == name && bits >> f.bit & 1 != 0)
        })
    }

    /// The bits of CR4 that the guest may set.
    #[must_use]
    pub fn cr4_allowed(&self) -> Cr4 {
        // Steward emulates machine checks and the TSC; and to allow user mode to read counters does
        // no harm, as there are none.
        let always = Cr4::MCE | Cr4::TSD | Cr4::PCE;
        CR4_FEATURES
            .iter()
            .filter(|(_, feature)| self.has(*feature))
            .fold(always, |allowed, (bit, _)| allowed | *bit)
    }

    /// The bits of EFER that the guest may set.
    #[must_use]
    pub fn efer_allowed(&self) -> Efer {
        EFER_FEATURES
            .iter()
            .filter(|(_, feature)| self.has(*feature))
            .fold(Efer::empty(), |allowed, (bits, _)| allowed | *bits)
    }
}

/// Which feature each bit of CR4 belongs to.
const CR4_FEATURES: &[(Cr4, FeatureBit)] = &[
    (Cr4::VME, FeatureBit::VME),
    (Cr4::PVI, FeatureBit::VME),
    (Cr4::DE, FeatureBit::DE),
    (Cr4::PSE, FeatureBit::PSE),
    (Cr4::PAE, FeatureBit::PAE),
    (Cr4::PGE, FeatureBit::PGE),
    (Cr4::OSFXSR, FeatureBit::FXSR),
    (Cr4::OSXMMEXCPT, FeatureBit::SSE),
    (Cr4::UMIP, FeatureBit::UMIP),
    (Cr4::FSGSBASE, FeatureBit::FSGSBASE),
    (Cr4::PCIDE, FeatureBit::PCID),
    (Cr4::OSXSAVE, FeatureBit::XSAVE),
    (Cr4::SMEP, FeatureBit::SMEP),
    (Cr4::SMAP, FeatureBit::SMAP),
    (Cr4::PKE, FeatureBit::PKU),
];

/// Which feature each bit of EFER belongs to.
const EFER_FEATURES: &[(Efer, FeatureBit)] = &[
    (Efer::SCE, FeatureBit::SYSCALL),
    (Efer::LME, FeatureBit::LM),
    (Efer::LMA, FeatureBit::LM),
    (Efer::NXE, FeatureBit::NX),
];

/// One register of an answer.
pub(crate) const fn read_register(result: &CpuidResult, register: Register) -> u32 {
    match register {
        Register::Eax => result.eax,
        Register::Ebx => result.ebx,
        Register::Ecx => result.ecx,
        Register::Edx => result.edx,
    }
}
