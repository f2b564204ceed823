//! Makes the table: each leaf's numbers, then its feature bits.

use super::features::{FEATURE_WORDS, Feature, FeatureWord, Register, Rule};
use super::{
    ApicBit, CpuidConfig, CpuidTable, FeatureBit, Indexing, NO_SLOT, RANGE_LEAVES, RANGES, Slot,
    read_register,
};
use crate::cpuid::xstate::{AVX512, Xstate};
use alloc::vec::Vec;
use config::{FeatureSet, Signature};
use hvabi::kvm;
use x86defs::cpuid::{CpuidResult, CpuidSource, Vendor};
use x86defs::{Low, Xcr0};

/// End of the name of a bit that repeats one of leaf 1.
const AGAIN: &str = " (again)";
/// Leaf 0xd, subleaf 1, EAX: XSAVEC.
pub(super) const XSAVEC: u32 = 1 << 1;

/// The highest basic leaf that has content on Intel's CPUs, without and with
/// the second topology leaf.
const INTEL_HIGHEST: u32 = 0x16;
const INTEL_TOPOLOGY2: u32 = 0x1f;
/// The highest basic leaf that has content elsewhere.
const AMD_HIGHEST: u32 = 0xd;
/// The highest extended leaf with content on Intel's CPUs, and the least that
/// any guest gets.
const INTEL_HIGHEST_EXTENDED: u32 = 0x8000_0008;
/// The highest extended leaf with content elsewhere.
const AMD_HIGHEST_EXTENDED: u32 = 0x8000_0021;
/// First leaves of the two ranges of hypervisors: a signature, then what it stands for.
/// The one is Steward's, the other KVM's.
const FIRST_SIGNATURE: u32 = 0x4000_0000;
const SECOND_SIGNATURE: u32 = 0x4000_0100;
/// The highest leaves of the two ranges: the leaf with frequencies has the number that it has in
/// other hypervisors, too.
const FIRST_HIGHEST: u32 = hvabi::CPUID_LEAF_TIMING;
const SECOND_HIGHEST: u32 = SECOND_SIGNATURE + 1;
/// The parts of KVM's interface that are always there.
const KVM_FEATURES: u32 =
    kvm::feature::CLOCKSOURCE | kvm::feature::NOP_IO_DELAY | kvm::feature::CLOCKSOURCE2;

/// Cache subleaves beyond this many are not looked for.
const MAX_CACHES: u32 = 8;
/// Fewest and most bits of a physical address.
const PHYSICAL_BITS: (u8, u8) = (36, 52);

/// Everything that the rules of a leaf look at.
struct Builder<'a, H> {
    host: &'a H,
    config: &'a CpuidConfig<'a>,
    vendor: Vendor,
    xstate: Xstate,
    highest_basic: u32,
    highest_extended: u32,
    host_highest_basic: u32,
    host_highest_extended: u32,
    physical_bits: u8,
    /// Bits of the APIC id that number the cores of the socket.
    core_bits: u32,
}

pub(super) fn build<H: CpuidSource>(host: &H, config: &CpuidConfig<'_>) -> CpuidTable {
    let leaf0 = host.cpuid(0, 0);
    let vendor = Vendor::of(leaf0);
    let host_highest_extended = host.cpuid(0x8000_0000, 0).eax;
    let host_physical_bits = match host_highest_extended {
        0x8000_0008.. => host.cpuid(0x8000_0008, 0).eax.low8(),
        _ => PHYSICAL_BITS.0,
    };
    let (highest_basic, highest_extended) = match vendor {
        Vendor::Intel if leaf0.eax >= INTEL_TOPOLOGY2 => (INTEL_TOPOLOGY2, INTEL_HIGHEST_EXTENDED),
        Vendor::Intel => (INTEL_HIGHEST, INTEL_HIGHEST_EXTENDED),
        Vendor::Amd | Vendor::Other => {
            (AMD_HIGHEST, host_highest_extended.clamp(INTEL_HIGHEST_EXTENDED, AMD_HIGHEST_EXTENDED))
        }
    };
    let builder = Builder {
        host,
        config,
        vendor,
        xstate: Xstate::from_host(host, config.xcr0 - hidden_states(config.hidden)),
        highest_basic,
        highest_extended,
        host_highest_basic: leaf0.eax,
        host_highest_extended,
        physical_bits: config
            .physical_address_bits
            .min(host_physical_bits)
            .clamp(PHYSICAL_BITS.0, PHYSICAL_BITS.1),
        core_bits: u32::BITS - config.max_apic_id.leading_zeros(),
    };
    builder.table()
}

/// The extended states that go with features that are hidden.
fn hidden_states(hidden: FeatureSet) -> Xcr0 {
    let states = [
        ("xsave", Xcr0::all()),
        ("avx", Xcr0::AVX.union(AVX512)),
        ("avx512f", AVX512),
        ("pku", Xcr0::PKRU),
    ];
    let hidden = states.into_iter().filter(|(name, _)| hidden.contains(name));
    hidden.fold(Xcr0::empty(), |all, (_, states)| all | states)
}

impl<H: CpuidSource> Builder<'_, H> {
    fn table(self) -> CpuidTable {
        let mut entries = Vec::new();
        let mut slots = [[NO_SLOT; RANGE_LEAVES]; RANGES.len()];
        for (base, range) in RANGES.into_iter().zip(&mut slots) {
            let leaves =
                base..=base.saturating_add(RANGE_LEAVES.low32() - 1).min(self.highest(base));
            for (leaf, slot) in leaves.zip(range) {
                let first = entries.len().low16();
                let indexing = match leaf {
                    4 | 7 | 0xb | 0xd | 0x1f | 0x8000_001d => Indexing::Subleaves,
                    _ => Indexing::None,
                };
                for subleaf in 0..self.subleaves(leaf) {
                    let mut result = self.numbers(leaf, subleaf);
                    self.set_features(leaf, subleaf, &mut result);
                    entries.push(result);
                }
                *slot = Slot { first, count: entries.len().low16() - first, indexing };
            }
        }
        let apic_bit_repeated = if self.host_has(0x8000_0001, 0, Register::Edx, 9) {
            ApicBit::Repeated
        } else {
            ApicBit::InLeaf1
        };
        entries.shrink_to_fit();
        CpuidTable {
            vendor: self.vendor,
            xstate: self.xstate,
            physical_address_bits: self.physical_bits,
            pv: self.config.pv,
            calls: self.config.calls,
            highest_basic: self.highest_basic,
            highest_extended: self.highest_extended,
            apic_bit_repeated,
            entries,
            slots,
        }
    }

    /// The highest leaf of the range that starts at `base`.
    fn highest(&self, base: u32) -> u32 {
        match base {
            0 => self.highest_basic,
            FIRST_SIGNATURE => FIRST_HIGHEST,
            SECOND_SIGNATURE => SECOND_HIGHEST,
            _ => self.highest_extended,
        }
    }

    /// Owner of the signature in the range that has `leaf`.
    fn owner(&self, leaf: u32) -> Signature {
        match (leaf < SECOND_SIGNATURE, self.config.signature) {
            (true, first) => first,
            (false, Signature::Steward) => Signature::Kvm,
            (false, Signature::Kvm) => Signature::Steward,
        }
    }

    /// The host's answer, zeros for a leaf that it does not have.
    fn host(&self, leaf: u32, subleaf: u32) -> CpuidResult {
        let there = match leaf {
            ..0x8000_0000 => leaf <= self.host_highest_basic,
            _ => leaf <= self.host_highest_extended,
        };
        if there { self.host.cpuid(leaf, subleaf) } else { CpuidResult::default() }
    }

    fn host_has(&self, leaf: u32, subleaf: u32, register: Register, bit: u32) -> bool {
        // Subleaves of leaf 7 beyond its last are undefined on some hosts.
        let there = leaf != 7 || subleaf <= self.host(7, 0).eax;
        there && read_register(&self.host(leaf, subleaf), register) >> bit & 1 != 0
    }

    /// How many entries a leaf has, counted from subleaf 0.
    fn subleaves(&self, leaf: u32) -> u32 {
        match leaf {
            4 | 0x8000_001d => self.caches(leaf),
            7 => 2,
            0xb | 0x1f => 2,
            0xd if self.xstate.offered().is_empty() => 0,
            0xd => 64 - self.xstate.offered().bits().leading_zeros().min(62),
            _ => 1,
        }
    }

    /// How many caches the host's leaf 4 or 8000_001d tells of.
    fn caches(&self, leaf: u32) -> u32 {
        if leaf == 0x8000_001d && !self.feature(FeatureBit::TOPOEXT)
            || leaf == 4 && self.vendor != Vendor::Intel
        {
            return 0;
        }
        (0..MAX_CACHES)
            .take_while(|subleaf| self.host(leaf, *subleaf).eax & 0x1f != 0)
            .count()
            .low32()
    }

    /// Whether a feature is offered.
    fn feature(&self, feature: FeatureBit) -> bool {
        FEATURE_WORDS
            .iter()
            .filter(|word| {
                (word.leaf, word.subleaf, word.register)
                    == (feature.leaf, feature.subleaf, feature.register)
            })
            .flat_map(|word| word.features.iter().map(move |line| (word, line)))
            .any(|(word, line)| line.bit == feature.bit && self.offered(word, line))
    }

    fn offered(&self, word: &FeatureWord, feature: &Feature) -> bool {
        let bit = FeatureBit {
            leaf: word.leaf,
            subleaf: word.subleaf,
            register: word.register,
            bit: feature.bit,
        };
        let host = || self.host_has(word.leaf, word.subleaf, word.register, feature.bit);
        let several = self.config.vcpus > 1;
        !self.config.withheld.contains(&bit)
            && !self.config.hidden.contains(feature.name.trim_end_matches(AGAIN))
            && match feature.rule {
                Rule::Emulated => true,
                Rule::Host => host(),
                Rule::State(state) => host() && self.xstate.offered().contains(state),
                Rule::Multiprocessor => several,
                Rule::MultiprocessorAmd => several && self.vendor == Vendor::Amd,
                Rule::Dynamic | Rule::DynamicIfHost => false,
            }
    }

    fn set_features(&self, leaf: u32, subleaf: u32, result: &mut CpuidResult) {
        for word in FEATURE_WORDS.iter().filter(|word| (word.leaf, word.subleaf) == (leaf, subleaf))
        {
            let bits = word
                .features
                .iter()
                .filter(|feature| self.offered(word, feature))
                .fold(0, |bits, feature| bits | 1 << feature.bit);
            match word.register {
                Register::Eax => result.eax |= bits,
                Register::Ebx => result.ebx |= bits,
                Register::Ecx => result.ecx |= bits,
                Register::Edx => result.edx |= bits,
            }
        }
    }

    /// The parts of a leaf that are numbers.
    fn numbers(&self, leaf: u32, subleaf: u32) -> CpuidResult {
        let host = self.host(leaf, subleaf);
        let nothing = CpuidResult::default();
        match leaf {
            0 => CpuidResult { eax: self.highest_basic, ..host },
            1 => CpuidResult {
                eax: host.eax,
                // Bits 15:8: size of a cache line.
                ebx: host.ebx & 0xff00 | self.logical_processors() << 16,
                ..nothing
            },
            2 if self.vendor == Vendor::Intel => host,
            4 => self.intel_cache(host),
            // The number of the last subleaf.
            7 if subleaf == 0 => CpuidResult { eax: host.eax.min(1), ..nothing },
            0xb | 0x1f => self.topology_level(subleaf),
            0xd => self.xsave(subleaf),
            0x15 if self.vendor == Vendor::Intel => self.crystal(),
            0x16 if self.vendor == Vendor::Intel => self.frequencies(),
            FIRST_SIGNATURE | SECOND_SIGNATURE => {
                let letters = match self.owner(leaf) {
                    Signature::Steward => hvabi::CPUID_SIGNATURE,
                    Signature::Kvm => kvm::CPUID_SIGNATURE,
                };
                signature(self.highest(leaf), letters)
            }
            0x4000_0001 | 0x4000_0101 => match self.owner(leaf) {
                Signature::Steward => CpuidResult {
                    eax: hvabi::INTERFACE_VERSION,
                    ebx: self.config.calls.features().0,
                    ..nothing
                },
                Signature::Kvm => CpuidResult { eax: self.kvm_features(), ..nothing },
            },
            hvabi::CPUID_LEAF_TIMING => CpuidResult {
                eax: u32::try_from(self.config.tsc.khz()).unwrap_or(0),
                ebx: self.config.apic_timer_hz / 1000,
                ..nothing
            },
            0x8000_0000 => CpuidResult { eax: self.highest_extended, ..host },
            0x8000_0001 if self.vendor == Vendor::Amd => {
                // EAX repeats the signature; EBX 31:28 is the package type.
                CpuidResult { eax: host.eax, ebx: host.ebx & 0xf000_0000, ..nothing }
            }
            // The brand, then caches, TLBs, and their sizes for large pages.
            0x8000_0002..=0x8000_0006 | 0x8000_0019 | 0x8000_001a => host,
            0x8000_0008 => self.address_sizes(),
            0x8000_001d => self.amd_cache(host),
            _ => nothing,
        }
    }

    /// APIC ids that are set aside for the socket: a power of two.
    fn socket_ids(&self) -> u32 {
        1u32.checked_shl(self.core_bits).unwrap_or(u32::MAX)
    }

    /// Leaf 1 EBX 23:16: on AMD's CPUs the processors of the socket, elsewhere
    /// the APIC ids that are set aside for them.
    fn logical_processors(&self) -> u32 {
        match self.vendor {
            Vendor::Amd => u32::from(self.config.vcpus).min(0xff),
            Vendor::Intel | Vendor::Other => self.socket_ids().min(0x80),
        }
    }

    /// Leaf 4: caches of level 3 belong to the socket, others to one core.
    fn intel_cache(&self, host: CpuidResult) -> CpuidResult {
        let cores = (self.socket_ids() - 1).min(0x3f);
        let cache = self.shared_cache(host);
        CpuidResult { eax: cache.eax | cores << 26, ..cache }
    }

    /// Leaf 8000_001d: as leaf 4, without the number of cores.
    fn amd_cache(&self, host: CpuidResult) -> CpuidResult {
        self.shared_cache(host)
    }

    /// A cache with the number of vCPUs that share it in bits 25:14.
    fn shared_cache(&self, host: CpuidResult) -> CpuidResult {
        let level = host.eax >> 5 & 7;
        let sharing = if level >= 3 { (self.socket_ids() - 1).min(0xfff) } else { 0 };
        CpuidResult { eax: host.eax & 0x3fff | sharing << 14, ..host }
    }

    /// Leaves 0xb and 0x1f: one thread a core, then the cores of the socket.
    /// The subleaf's number and the APIC id are added at lookup.
    fn topology_level(&self, subleaf: u32) -> CpuidResult {
        const SMT: u32 = 1 << 8;
        const CORE: u32 = 2 << 8;
        match subleaf {
            0 => CpuidResult { eax: 0, ebx: 1, ecx: SMT, edx: 0 },
            _ => CpuidResult {
                eax: self.core_bits,
                ebx: self.config.vcpus.into(),
                ecx: CORE,
                edx: 0,
            },
        }
    }

    /// Leaf 0xd. Sizes for the current XCR0 are put in at lookup.
    fn xsave(&self, subleaf: u32) -> CpuidResult {
        let offered = self.xstate.offered();
        match subleaf {
            0 => CpuidResult {
                eax: offered.bits().low32(),
                ecx: self.xstate.standard_size(offered),
                ..CpuidResult::default()
            },
            1 => CpuidResult::default(),
            component => {
                self.xstate.component(component).map_or_else(CpuidResult::default, |component| {
                    CpuidResult {
                        eax: component.size,
                        ebx: component.offset,
                        ecx: component.flags,
                        edx: 0,
                    }
                })
            }
        }
    }

    /// KVM's features. Its clock is as stable as the TSC under it.
    fn kvm_features(&self) -> u32 {
        let stable = match self.config.withheld.contains(&FeatureBit::INVARIANT_TSC) {
            true => 0,
            false => kvm::feature::CLOCKSOURCE_STABLE,
        };
        KVM_FEATURES | stable | self.config.pv.bits()
    }

    /// Leaf 0x15: the TSC counts EBX/EAX times what the crystal does, whose
    /// frequency in Hz is ECX. The local APIC's timer runs from that crystal.
    ///
    /// Linux multiplies crystal kHz and EBX in 32 bits: where that would
    /// overflow, the ratio is "not enumerated" (zeros), and software measures.
    fn crystal(&self) -> CpuidResult {
        let crystal = u64::from(self.config.apic_timer_hz / 1000);
        let tsc = self.config.tsc.khz();
        let divisor = gcd(crystal, tsc).max(1);
        let (Ok(eax), Ok(ebx)) = (u32::try_from(crystal / divisor), u32::try_from(tsc / divisor))
        else {
            return CpuidResult::default();
        };
        if crystal * u64::from(ebx) > u64::from(u32::MAX) {
            return CpuidResult::default();
        }
        CpuidResult { eax, ebx, ecx: self.config.apic_timer_hz, edx: 0 }
    }

    /// Leaf 0x16: base, highest and bus frequency in MHz, 16 bits each.
    fn frequencies(&self) -> CpuidResult {
        let mhz = |khz: u64| u32::from(u16::try_from(khz / 1000).unwrap_or(u16::MAX));
        let tsc = mhz(self.config.tsc.khz());
        let bus = mhz(u64::from(self.config.apic_timer_hz / 1000));
        CpuidResult { eax: tsc, ebx: tsc, ecx: bus, edx: 0 }
    }

    /// Leaf 8000_0008: address sizes; on AMD's CPUs the cores as well.
    fn address_sizes(&self) -> CpuidResult {
        const LINEAR_BITS: u32 = 48;
        let ecx = match self.vendor {
            Vendor::Amd => {
                let cores = u32::from(self.config.vcpus.saturating_sub(1)).min(0xff);
                cores | self.core_bits.min(0xf) << 12
            }
            Vendor::Intel | Vendor::Other => 0,
        };
        CpuidResult { eax: LINEAR_BITS << 8 | u32::from(self.physical_bits), ebx: 0, ecx, edx: 0 }
    }
}

/// A signature's leaf: the highest leaf of its range, then twelve letters.
fn signature(highest: u32, letters: [u8; 12]) -> CpuidResult {
    let [b0, b1, b2, b3, c0, c1, c2, c3, d0, d1, d2, d3] = letters;
    CpuidResult {
        eax: highest,
        ebx: u32::from_le_bytes([b0, b1, b2, b3]),
        ecx: u32::from_le_bytes([c0, c1, c2, c3]),
        edx: u32::from_le_bytes([d0, d1, d2, d3]),
    }
}

const fn gcd(a: u64, b: u64) -> u64 {
    let (mut a, mut b) = (a, b);
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a
}
