use super::features::{FEATURE_WORDS, Rule};
use super::*;
use crate::pv::PvFeatures;
use alloc::vec::Vec;
use proptest::prelude::*;
use x86defs::cpuid::CpuidResult;

const ALL: u32 = u32::MAX;

fn regs(eax: u32, ebx: u32, ecx: u32, edx: u32) -> CpuidResult {
    CpuidResult { eax, ebx, ecx, edx }
}

/// A CPU that has every feature bit there is.
fn everything(vendor: Vendor) -> impl Fn(u32, u32) -> CpuidResult {
    move |leaf, subleaf| match (leaf, subleaf) {
        (0, _) if vendor == Vendor::Intel => regs(0x20, 0x756e_6547, 0x6c65_746e, 0x4965_6e69),
        (0, _) => regs(0x10, 0x6874_7541, 0x444d_4163, 0x6974_6e65),
        (1, _) => regs(0x0080_0f12, 0x0710_0800, ALL, ALL),
        (4 | 0x8000_001d, 0) => regs(0x7c00_4121, 0x01c0_003f, 0x3f, 0),
        (4 | 0x8000_001d, 1) => regs(0x7c00_4122, 0x00c0_003f, 0xff, 0),
        (4 | 0x8000_001d, 2) => regs(0x7c00_4143, 0x01c0_003f, 0x3ff, 0),
        (4 | 0x8000_001d, 3) => regs(0x7c03_c163, 0x03c0_003f, 0x1fff, 1),
        (4 | 0x8000_001d, _) => regs(0, 0, 0, 0),
        (7, 0) => regs(2, ALL, ALL, ALL),
        (7, 1) => regs(ALL, ALL, ALL, ALL),
        (0xd, 0) => regs(0x2ff, 0xa88, 0xa88, 0),
        (0xd, 1) => regs(0x1f, 0xa88, 0x1800, 0),
        (0xd, 2) => regs(0x100, 0x240, 0, 0),
        (0xd, 5) => regs(0x40, 0x440, 0, 0),
        (0xd, 6) => regs(0x200, 0x480, 0, 0),
        (0xd, 7) => regs(0x400, 0x680, 0, 0),
        (0xd, 9) => regs(8, 0xa80, 0, 0),
        (0x8000_0000, _) if vendor == Vendor::Intel => regs(0x8000_0008, 0, 0, 0),
        (0x8000_0000, _) => regs(0x8000_0026, 0x6874_7541, 0x444d_4163, 0x6974_6e65),
        (0x8000_0001, _) => regs(0x0080_0f12, 0x4000_0000, ALL, ALL),
        (0x8000_0002, _) => regs(0x3332_3130, 0, 0, 0),
        (0x8000_0008, _) => regs(0x3030, ALL, 0xffff_ffff, 0),
        _ => regs(ALL, ALL, ALL, ALL),
    }
}

fn config(vcpus: u16) -> CpuidConfig<'static> {
    CpuidConfig {
        vcpus,
        max_apic_id: u32::from(vcpus) - 1,
        tsc: TscFrequency::from_khz(2_800_000).unwrap(),
        apic_timer_hz: 1_000_000_000,
        physical_address_bits: 40,
        xcr0: Xcr0::all(),
        pv: PvFeatures::all(),
        calls: hvabi::CallSet::ALL,
        signature: config::Signature::Steward,
        withheld: &[],
        hidden: config::FeatureSet::default(),
    }
}

fn vcpu(apic_id: u32) -> VcpuView {
    VcpuView {
        cr4: Cr4::empty(),
        xcr0: Xcr0::X87,
        apic_base: 0xfee0_0000 | msr::APIC_BASE_ENABLE,
        apic_id,
    }
}

fn table(vendor: Vendor, vcpus: u16) -> CpuidTable {
    CpuidTable::new(&everything(vendor), &config(vcpus))
}

/// The registers of a leaf that the features' table covers, and those bits of
/// them that it names.
fn named_bits(leaf: u32, subleaf: u32, register: Register) -> u32 {
    FEATURE_WORDS
        .iter()
        .filter(|word| (word.leaf, word.subleaf, word.register) == (leaf, subleaf, register))
        .flat_map(|word| word.features)
        .fold(0, |bits, feature| bits | 1 << feature.bit)
}

#[test]
fn the_table_of_features_is_sound() {
    let mut seen = Vec::new();
    for word in FEATURE_WORDS {
        for feature in word.features {
            assert!(feature.bit < 32);
            let bit = (word.leaf, word.subleaf, word.register, feature.bit);
            assert!(!seen.contains(&bit), "{} stands there twice", feature.name);
            seen.push(bit);
            let named = FEATURE_WORDS
                .iter()
                .flat_map(|word| word.features)
                .filter(|other| other.name == feature.name)
                .count();
            assert_eq!(named, 1, "two features are called {}", feature.name);
        }
    }
    for bit in FeatureBit::ALL {
        assert!(seen.contains(&(bit.leaf, bit.subleaf, bit.register, bit.bit)), "{bit:?}");
    }
}

#[test]
fn nothing_is_offered_that_the_table_does_not_name() {
    for vendor in [Vendor::Intel, Vendor::Amd] {
        let table = table(vendor, 4);
        let all_on = VcpuView { cr4: Cr4::all(), xcr0: Xcr0::all(), ..vcpu(0) };
        for word in FEATURE_WORDS {
            let result = table.lookup(word.leaf, word.subleaf, &all_on);
            let offered = read_register(&result, word.register);
            let named = named_bits(word.leaf, word.subleaf, word.register);
            assert_eq!(offered & !named, 0, "{word:?}");
        }
        for (leaf, subleaf) in [(7, 1), (7, 2), (7, 9), (0xa, 0), (0x12, 0), (0x14, 0)] {
            for register in [Register::Eax, Register::Ebx, Register::Ecx, Register::Edx] {
                let result = table.lookup(leaf, subleaf, &all_on);
                let beyond_table = leaf > 0xd && vendor == Vendor::Amd;
                if !beyond_table {
                    let named = named_bits(leaf, subleaf, register);
                    assert_eq!(read_register(&result, register) & !named, 0, "{leaf:#x}.{subleaf}");
                }
            }
        }
    }
}

#[test]
fn refused_features_by_name() {
    let names: Vec<&str> =
        FEATURE_WORDS.iter().flat_map(|word| word.features).map(|feature| feature.name).collect();
    for refused in [
        "vmx",
        "svm",
        "mpx",
        "sgx",
        "intel_pt",
        "monitor",
        "mwaitx",
        "waitpkg",
        "shstk",
        "ibt",
        "la57",
        "amx_tile",
        "rtm",
        "hle",
        "ibrs",
        "ibpb",
        "stibp",
        "ssbd",
        "arch_capabilities",
        "flush_l1d",
        "xsaves",
        "perfctr_core",
        "osvw",
        "ibs",
        "pks",
        "pdcm",
    ] {
        assert!(!names.contains(&refused), "{refused}");
    }
    for offered in ["x2apic", "tsc_deadline_timer", "tsc_adjust", "hypervisor", "invariant_tsc"] {
        assert!(names.contains(&offered), "{offered}");
    }
}

#[test]
fn ours_to_emulate_need_no_host() {
    // QEMU's EPYC has none of these; neither has a host of zeros.
    let bare = |leaf, _| match leaf {
        0 => regs(0xd, 0x6874_7541, 0x444d_4163, 0x6974_6e65),
        0x8000_0000 => regs(0x8000_001e, 0, 0, 0),
        0x8000_0008 => regs(0x3028, 0, 0, 0),
        _ => regs(0, 0, 0, 0),
    };
    let table = CpuidTable::new(&bare, &config(1));
    let leaf1 = table.lookup(1, 0, &vcpu(0));
    assert_eq!(leaf1.ecx, 1 << 21 | 1 << 24 | 1 << 31);
    assert_eq!(leaf1.edx, 1 << 4 | 1 << 5 | 1 << 7 | 1 << 9 | 1 << 12 | 1 << 14);
    assert_eq!(table.lookup(7, 0, &vcpu(0)).ebx, 1 << 1);
    assert_eq!(table.lookup(6, 0, &vcpu(0)), regs(1 << 2, 0, 0, 0));
    assert_eq!(table.lookup(0x8000_0007, 0, &vcpu(0)), regs(0, 0, 0, 1 << 8));
    assert_eq!(table.lookup(0xd, 0, &vcpu(0)), CpuidResult::default());
    assert_eq!(table.lookup(0xd, 1, &vcpu(0)), CpuidResult::default());
    assert_eq!(table.lookup(0x8000_001e, 0, &vcpu(3)), CpuidResult::default());
    assert_eq!(table.physical_address_bits(), 40);
}

#[test]
fn bits_that_follow_registers() {
    for vendor in [Vendor::Intel, Vendor::Amd] {
        let table = table(vendor, 4);
        let off = VcpuView { apic_base: 0xfee0_0000, ..vcpu(2) };
        let on = VcpuView { cr4: Cr4::OSXSAVE | Cr4::PKE, ..vcpu(2) };
        assert_eq!(table.lookup(1, 0, &off).edx & 1 << 9, 0);
        assert_eq!(table.lookup(1, 0, &on).edx & 1 << 9, 1 << 9);
        assert_eq!(table.lookup(0x8000_0001, 0, &off).edx & 1 << 9, 0);
        assert_eq!(table.lookup(0x8000_0001, 0, &on).edx & 1 << 9, 1 << 9);
        assert_eq!(table.lookup(1, 0, &off).ecx & 1 << 27, 0);
        assert_eq!(table.lookup(1, 0, &on).ecx & 1 << 27, 1 << 27);
        assert_eq!(table.lookup(7, 0, &off).ecx & 1 << 4, 0);
        assert_eq!(table.lookup(7, 0, &on).ecx & 1 << 4, 1 << 4);
        assert_eq!(table.lookup(1, 0, &off).ebx >> 24, 2);
    }
}

#[test]
fn state_that_is_not_offered_takes_its_features_along() {
    let settings = CpuidConfig { xcr0: Xcr0::X87 | Xcr0::SSE | Xcr0::AVX, ..config(1) };
    let table = CpuidTable::new(&everything(Vendor::Intel), &settings);
    let leaf7 = table.lookup(7, 0, &vcpu(0));
    assert_eq!(leaf7.ebx & 1 << 5, 1 << 5, "avx2");
    assert_eq!(leaf7.ebx & (1 << 16 | 1 << 31), 0, "avx512f, avx512vl");
    assert_eq!(leaf7.ecx & 1 << 3, 0, "pku");
    let settings = CpuidConfig { xcr0: Xcr0::empty(), ..config(1) };
    let table = CpuidTable::new(&everything(Vendor::Intel), &settings);
    let leaf1 = table.lookup(1, 0, &vcpu(0));
    assert_eq!(leaf1.ecx & (1 << 26 | 1 << 28 | 1 << 12), 0, "xsave, avx, fma");
    assert!(!table.cr4_allowed().contains(Cr4::OSXSAVE));
}

#[test]
fn xsave_sizes_follow_xcr0() {
    let table = table(Vendor::Intel, 1);
    let at = |xcr0| VcpuView { xcr0, ..vcpu(0) };
    let avx = Xcr0::X87 | Xcr0::SSE | Xcr0::AVX;
    assert_eq!(table.lookup(0xd, 0, &at(Xcr0::X87)), regs(0x2e7, 576, 0xa88, 0));
    assert_eq!(table.lookup(0xd, 0, &at(avx)), regs(0x2e7, 832, 0xa88, 0));
    assert_eq!(table.lookup(0xd, 1, &at(avx)), regs(7, 832, 0, 0));
    assert_eq!(table.lookup(0xd, 1, &at(avx | Xcr0::PKRU)).ebx, 840);
    assert_eq!(table.lookup(0xd, 2, &at(avx)), regs(0x100, 0x240, 0, 0));
    for absent in [3, 4, 8, 10, 17, 63, 64, ALL] {
        assert_eq!(table.lookup(0xd, absent, &at(avx)), CpuidResult::default(), "{absent}");
    }
}

#[test]
fn withheld_features_are_not_there() {
    let settings = CpuidConfig { withheld: &[FeatureBit::RDTSCP, FeatureBit::PCID], ..config(1) };
    let table = CpuidTable::new(&everything(Vendor::Intel), &settings);
    assert!(!table.has(FeatureBit::RDTSCP));
    assert!(!table.has(FeatureBit::PCID));
    assert!(table.has(FeatureBit::RDPID));
    assert!(!table.cr4_allowed().contains(Cr4::PCIDE));
    assert!(table.cr4_allowed().contains(Cr4::SMEP | Cr4::OSXSAVE | Cr4::PKE | Cr4::MCE));
    assert!(!table.cr4_allowed().intersects(Cr4::VMXE | Cr4::LA57 | Cr4::CET | Cr4::PKS));
    assert_eq!(table.efer_allowed(), Efer::SCE | Efer::LME | Efer::LMA | Efer::NXE);
}

#[test]
fn a_clock_that_is_not_dependable_is_not_promised() {
    for (withheld, promised) in [(&[][..], true), (&[FeatureBit::INVARIANT_TSC][..], false)] {
        for vendor in [Vendor::Intel, Vendor::Amd] {
            let table =
                CpuidTable::new(&everything(vendor), &CpuidConfig { withheld, ..config(2) });
            let bit = table.lookup(0x8000_0007, 0, &vcpu(0)).edx & 1 << 8 != 0;
            let stable = table.lookup(0x4000_0101, 0, &vcpu(0)).eax & 1 << 24 != 0;
            assert_eq!((bit, stable), (promised, promised), "{vendor:?}");
        }
    }
}

#[test]
fn topology_of_intel() {
    for (vcpus, bits) in [(1, 0), (2, 1), (3, 2), (4, 2), (5, 3), (64, 6)] {
        let table = table(Vendor::Intel, vcpus);
        let id = u32::from(vcpus) - 1;
        let cpu = vcpu(id);
        let leaf1 = table.lookup(1, 0, &cpu);
        assert_eq!(leaf1.ebx >> 16 & 0xff, 1 << bits);
        assert_eq!(leaf1.edx >> 28 & 1, u32::from(vcpus > 1));
        for leaf in [0xb, 0x1f] {
            assert_eq!(table.lookup(leaf, 0, &cpu), regs(0, 1, 0x100, id));
            assert_eq!(table.lookup(leaf, 1, &cpu), regs(bits, vcpus.into(), 0x201, id));
            assert_eq!(table.lookup(leaf, 2, &cpu), regs(0, 0, 2, id));
            assert_eq!(table.lookup(leaf, 0x1ff, &cpu), regs(0, 0, 0xff, id));
        }
        let l1 = table.lookup(4, 0, &cpu);
        assert_eq!(l1, regs(0x121 | ((1 << bits) - 1) << 26, 0x01c0_003f, 0x3f, 0));
        let l3 = table.lookup(4, 3, &cpu);
        assert_eq!(l3.eax, 0x163 | ((1 << bits) - 1) << 14 | ((1 << bits) - 1) << 26);
        assert_eq!(table.lookup(4, 4, &cpu), CpuidResult::default());
    }
}

#[test]
fn topology_of_amd() {
    for (vcpus, bits) in [(1, 0), (2, 1), (3, 2), (8, 3)] {
        let table = table(Vendor::Amd, vcpus);
        let id = u32::from(vcpus) - 1;
        let cpu = vcpu(id);
        assert_eq!(table.lookup(1, 0, &cpu).ebx >> 16 & 0xff, u32::from(vcpus));
        assert_eq!(table.lookup(0x8000_0001, 0, &cpu).ecx >> 1 & 1, u32::from(vcpus > 1));
        assert_eq!(table.lookup(0x8000_0008, 0, &cpu).ecx, bits << 12 | id);
        assert_eq!(table.lookup(0x8000_001e, 0, &cpu), regs(id, id, 0, 0));
        assert_eq!(table.lookup(0xb, 1, &cpu), regs(bits, vcpus.into(), 0x201, id));
        assert_eq!(table.lookup(0x8000_001d, 2, &cpu).eax, 0x143);
        assert_eq!(table.lookup(0x8000_001d, 3, &cpu).eax, 0x163 | ((1 << bits) - 1) << 14);
        assert_eq!(table.lookup(4, 0, &cpu), CpuidResult::default());
        assert_eq!(table.lookup(0x1f, 1, &cpu), CpuidResult::default());
    }
}

#[test]
fn beyond_the_highest_leaf() {
    let intel = table(Vendor::Intel, 2);
    let cpu = vcpu(1);
    let highest = intel.lookup(0, 0, &cpu).eax;
    assert_eq!(highest, 0x1f);
    for leaf in [0x20, 0x3fff_ffff, 0x5000_0000, 0x7fff_ffff, 0x8000_0009, ALL] {
        assert_eq!(intel.lookup(leaf, 1, &cpu), intel.lookup(highest, 1, &cpu), "{leaf:#x}");
    }
    let amd = table(Vendor::Amd, 2);
    assert_eq!(amd.lookup(0, 0, &cpu).eax, 0xd);
    for leaf in [0xe, 0x15, 0x1f, 0x20, 0x3fff_ffff, 0x5000_0000, 0x8000_0022, ALL] {
        assert_eq!(amd.lookup(leaf, 0, &cpu), CpuidResult::default(), "{leaf:#x}");
    }
    for table in [intel, amd] {
        for leaf in [0x4000_0002, 0x4000_0011, 0x4000_0102, 0x4000_0200, 0x4fff_ffff] {
            assert_eq!(table.lookup(leaf, 0, &cpu), CpuidResult::default(), "{leaf:#x}");
        }
    }
}

/// EAX of a signature's leaf, and what it spells.
fn letters(table: &CpuidTable, leaf: u32) -> (u32, [u8; 12]) {
    let result = table.lookup(leaf, 0, &vcpu(0));
    let mut letters = [0; 12];
    for (place, register) in letters.chunks_exact_mut(4).zip([result.ebx, result.ecx, result.edx]) {
        place.copy_from_slice(&register.to_le_bytes());
    }
    (result.eax, letters)
}

#[test]
fn the_signature_of_kvm_first() {
    let settings = CpuidConfig { signature: config::Signature::Kvm, ..config(1) };
    let table = CpuidTable::new(&everything(Vendor::Amd), &settings);
    assert_eq!(letters(&table, 0x4000_0000), (0x4000_0010, *b"KVMKVMKVM\0\0\0"));
    assert_eq!(letters(&table, 0x4000_0100), (0x4000_0101, *b"StewardStewd"));
    let usual = self::table(Vendor::Amd, 1);
    for (leaf, as_usual) in [
        (0x4000_0001, 0x4000_0101),
        (0x4000_0101, 0x4000_0001),
        // Frequencies stay where programs look for them.
        (0x4000_0010, 0x4000_0010),
        (0x4000_0002, 0x4000_0002),
        (0x4000_0110, 0x4000_0110),
    ] {
        let wanted = usual.lookup(as_usual, 0, &vcpu(0));
        assert_eq!(table.lookup(leaf, 0, &vcpu(0)), wanted, "{leaf:#x}");
    }
}

#[test]
fn hypervisor_leaves() {
    let table = table(Vendor::Amd, 1);
    let letters = |leaf| letters(&table, leaf);
    assert_eq!(letters(0x4000_0000), (0x4000_0010, *b"StewardStewd"));
    assert_eq!(letters(0x4000_0100), (0x4000_0101, *b"KVMKVMKVM\0\0\0"));
    // As Linux looks for it: the first multiple of 0x100 with the signature.
    let found = (0x4000_0000u32..0x4001_0000)
        .step_by(0x100)
        .find(|base| letters(*base).1 == *b"KVMKVMKVM\0\0\0");
    assert_eq!(found, Some(0x4000_0100));
    assert_eq!(table.lookup(0x4000_0101, 0, &vcpu(0)), regs(0x0100_2aeb, 0, 0, 0));
    // EOI is for guests whose CPU does not deliver interrupts by itself; no hints are given in EDX.
    let settings = CpuidConfig { pv: PvFeatures::all() - PvFeatures::EOI, ..config(1) };
    let delivering = CpuidTable::new(&everything(Vendor::Amd), &settings);
    assert_eq!(delivering.lookup(0x4000_0101, 0, &vcpu(0)), regs(0x0100_2aab, 0, 0, 0));
    assert_eq!(table.lookup(0x4000_0001, 0, &vcpu(0)), regs(1, 0b11110, 0, 0));
    assert_eq!(table.lookup(0x4000_0010, 0, &vcpu(0)), regs(2_800_000, 1_000_000, 0, 0));
}

#[test]
fn frequencies() {
    let leaf = |khz, bus, leaf| {
        let settings = CpuidConfig {
            tsc: TscFrequency::from_khz(khz).unwrap(),
            apic_timer_hz: bus,
            ..config(1)
        };
        CpuidTable::new(&everything(Vendor::Intel), &settings).lookup(leaf, 0, &vcpu(0))
    };
    assert_eq!(leaf(2_800_000, 1_000_000_000, 0x15), regs(5, 14, 1_000_000_000, 0));
    assert_eq!(leaf(1_000_000, 1_000_000_000, 0x15), regs(1, 1, 1_000_000_000, 0));
    assert_eq!(leaf(2_800_000, 1_000_000_000, 0x16), regs(2800, 2800, 1000, 0));
    // crystal kHz * EBX must fit 32 bits.
    assert_eq!(leaf(2_593_907, 1_000_000_000, 0x15), CpuidResult::default());
    assert_eq!(leaf(2_593_907, 1_000_000, 0x15), regs(1000, 2_593_907, 1_000_000, 0));
}

#[test]
fn brand_and_address_sizes() {
    let amd = table(Vendor::Amd, 1);
    assert_eq!(amd.lookup(0x8000_0002, 0, &vcpu(0)).eax, 0x3332_3130);
    assert_eq!(amd.lookup(0x8000_0008, 0, &vcpu(0)).eax, 0x3028);
    let wide = CpuidConfig { physical_address_bits: 52, ..config(1) };
    let amd = CpuidTable::new(&everything(Vendor::Amd), &wide);
    assert_eq!(amd.lookup(0x8000_0008, 0, &vcpu(0)).eax, 0x3030);
    assert_eq!(amd.lookup(0x8000_000a, 0, &vcpu(0)), CpuidResult::default());
    assert_eq!(amd.lookup(0x8000_001f, 0, &vcpu(0)), CpuidResult::default());
}

/// The rules once more, as a search: what `lookup` must equal for leaves whose
/// content is features alone.
fn by_rule(
    host: &impl CpuidSource,
    vcpus: u16,
    leaf: u32,
    subleaf: u32,
    register: Register,
) -> u32 {
    let xstate = Xstate::from_host(host, Xcr0::all());
    let mut bits = 0;
    for word in FEATURE_WORDS {
        if (word.leaf, word.subleaf, word.register) != (leaf, subleaf, register) {
            continue;
        }
        for feature in word.features {
            let has = read_register(&host.cpuid(leaf, subleaf), register) >> feature.bit & 1 == 1;
            let set = match feature.rule {
                Rule::Host => has,
                Rule::Emulated => true,
                Rule::State(state) => has && xstate.offered().contains(state),
                Rule::Multiprocessor => vcpus > 1,
                Rule::MultiprocessorAmd => false,
                Rule::Dynamic | Rule::DynamicIfHost => false,
            };
            bits |= u32::from(set) << feature.bit;
        }
    }
    bits
}

proptest! {
    #[test]
    fn features_equal_their_rules(bits in any::<[u32; 8]>(), state in 0u32..0x400, vcpus in 1u16..9) {
        let host = |leaf, subleaf| match (leaf, subleaf) {
            (0, _) => regs(0x20, 0x756e_6547, 0x6c65_746e, 0x4965_6e69),
            (1, _) => regs(0, 0, bits[0], bits[1]),
            (7, 0) => regs(1, bits[2], bits[3], bits[4]),
            (7, 1) => regs(bits[5], 0, 0, 0),
            (0xd, 0) => regs(state, 0, 0, 0),
            (0xd, 1) => regs(bits[5], 0, 0, 0),
            (0xd, _) => regs(64, 640, 0, 0),
            (0x8000_0000, _) => regs(0x8000_0008, 0, 0, 0),
            (0x8000_0001, _) => regs(0, 0, bits[6], bits[7]),
            (0x8000_0007, _) => regs(0, 0, 0, bits[0]),
            (0x8000_0008, _) => regs(0x3030, bits[1], 0, 0),
            _ => regs(0, 0, 0, 0),
        };
        let table = CpuidTable::new(&host, &config(vcpus));
        let off = VcpuView { apic_base: 0, ..vcpu(0) };
        for (leaf, subleaf, register) in [
            (1, 0, Register::Ecx), (1, 0, Register::Edx), (6, 0, Register::Eax),
            (7, 0, Register::Ebx), (7, 0, Register::Ecx), (7, 0, Register::Edx),
            (7, 1, Register::Eax), (0x8000_0001, 0, Register::Ecx),
            (0x8000_0001, 0, Register::Edx), (0x8000_0007, 0, Register::Edx),
            (0x8000_0008, 0, Register::Ebx),
        ] {
            let found = read_register(&table.lookup(leaf, subleaf, &off), register);
            prop_assert_eq!(found, by_rule(&host, vcpus, leaf, subleaf, register), "{:#x}", leaf);
        }
    }

    /// No leaf, subleaf or state of a vCPU makes a lookup fail, or differ from
    /// the next one.
    #[test]
    fn every_leaf_has_an_answer(leaf in any::<u32>(), subleaf in any::<u32>(), id in any::<u32>()) {
        for vendor in [Vendor::Intel, Vendor::Amd] {
            let table = table(vendor, 4);
            for leaf in [leaf, leaf & 0x3f, leaf & 0x4000_01ff, leaf & 0x8000_003f] {
                let first = table.lookup(leaf, subleaf, &vcpu(id));
                prop_assert_eq!(first, table.lookup(leaf, subleaf, &vcpu(id)));
                // Leaves that do not look at ECX.
                if !matches!(leaf, 4 | 7 | 0xb | 0xd | 0x1f.. ) {
                    prop_assert_eq!(first, table.lookup(leaf, 0, &vcpu(id)));
                }
            }
        }
    }
}

/// Features that no setting hides: without them no 64-bit kernel starts, or Steward makes them up
/// and nothing could take their place; those that follow a register, the number of vCPUs, or
/// only say how an instruction behaves.
const ALWAYS: [&str; 33] = [
    "hypervisor",
    "osxsave",
    "ospke",
    "fpu",
    "pse",
    "tsc",
    "msr",
    "pae",
    "mce",
    "cx8",
    "apic",
    "mtrr",
    "mca",
    "cmov",
    "pat",
    "pse36",
    "clflush",
    "mmx",
    "fxsr",
    "sse",
    "sse2",
    "ss",
    "ht",
    "cmp_legacy",
    "arat",
    "fdp_excptn_only",
    "zero_fcs_fds",
    "syscall",
    "nx",
    "lm",
    "no_nested_data_bp",
    "lfence_rdtsc",
    "null_sel_clr_base",
];

#[test]
fn every_feature_can_be_hidden_or_is_always_there() {
    let hideable: Vec<&str> = config::features::names().collect();
    for feature in FEATURE_WORDS.iter().flat_map(|word| word.features) {
        let name = feature.name.trim_end_matches(" (again)");
        assert_ne!(hideable.contains(&name), ALWAYS.contains(&name), "{name}");
    }
    for name in hideable {
        let known = FEATURE_WORDS.iter().flat_map(|word| word.features);
        assert!(known.into_iter().any(|feature| feature.name == name), "{name}");
    }
}

#[test]
fn what_is_hidden_is_nowhere() {
    for vendor in [Vendor::Intel, Vendor::Amd] {
        let whole = table(vendor, 1);
        for name in config::features::names() {
            let hide: config::FeatureSet = [name].into_iter().collect();
            let hidden = hide.with_dependents();
            let cut = CpuidTable::new(&everything(vendor), &CpuidConfig { hidden, ..config(1) });
            for feature in FEATURE_WORDS.iter().flat_map(|word| word.features) {
                let base = feature.name.trim_end_matches(" (again)");
                let wanted = whole.shows(feature.name) && !hidden.contains(base);
                assert_eq!(cut.shows(feature.name), wanted, "{name} hidden: {}", feature.name);
            }
        }
        let hidden = ["xsave", "smep", "pcid"].into_iter().collect::<config::FeatureSet>();
        let hidden = hidden.with_dependents();
        let cut = CpuidTable::new(&everything(vendor), &CpuidConfig { hidden, ..config(1) });
        assert!(cut.xstate().offered().is_empty());
        assert!(!cut.cr4_allowed().intersects(Cr4::OSXSAVE | Cr4::SMEP | Cr4::PCIDE | Cr4::PKE));
        assert!(whole.cr4_allowed().contains(Cr4::OSXSAVE | Cr4::SMEP | Cr4::PCIDE));
        let hidden = ["avx"].into_iter().collect::<config::FeatureSet>().with_dependents();
        let cut = CpuidTable::new(&everything(vendor), &CpuidConfig { hidden, ..config(1) });
        assert!(!cut.xstate().offered().intersects(Xcr0::AVX | Xcr0::OPMASK));
        assert!(cut.xstate().offered().contains(Xcr0::SSE));
    }
}
