//! The feature bits that guests may see, one line each. A bit that has no line
//! here reads as 0 whatever the host has (SDM: "CPUID—CPU Identification";
//! APM: "Obtaining Processor Information Via the CPUID Instruction").
//!
//! Left out on purpose: VMX, SVM, SGX, MPX, TSX, Processor Trace, performance
//! counters, IBS, LBR, MONITOR and WAITPKG, CET, LA57, AMX, protection keys
//! for supervisor pages, memory encryption, resource directors, thermal and
//! frequency control, debug extensions, OSVW, and all speculation controls
//! that come with an MSR: those are offered once their MSRs are.

use x86defs::Xcr0;

/// One of the registers that CPUID returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Register {
    /// EAX.
    Eax,
    /// EBX.
    Ebx,
    /// ECX.
    Ecx,
    /// EDX.
    Edx,
}

/// When a bit is set in a guest's CPUID.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Rule {
    /// If the host has the feature.
    Host,
    /// Always: Steward emulates the feature.
    Emulated,
    /// If the host has the feature and these extended states are offered.
    State(Xcr0),
    /// In guests of several vCPUs.
    Multiprocessor,
    /// In guests of several vCPUs, on AMD's CPUs.
    MultiprocessorAmd,
    /// Follows a register of the vCPU: set at lookup.
    Dynamic,
    /// Follows a register of the vCPU, if the host has the feature: set at lookup. 8000_0001 EDX
    /// repeats some of leaf 1 on AMD's CPUs only.
    DynamicIfHost,
}

/// A feature bit.
#[derive(Clone, Copy, Debug)]
pub struct Feature {
    /// Number of the bit, 0 to 31.
    pub bit: u32,
    /// Its name as Linux prints it in `/proc/cpuinfo`, where Linux has one.
    pub name: &'static str,
    /// When guests see it.
    pub rule: Rule,
}

/// A register of a leaf that consists of feature bits.
#[derive(Clone, Copy, Debug)]
pub struct FeatureWord {
    /// EAX going in.
    pub leaf: u32,
    /// ECX going in.
    pub subleaf: u32,
    /// The register that holds the bits.
    pub register: Register,
    /// The bits that may be set.
    pub features: &'static [Feature],
}

const fn host(bit: u32, name: &'static str) -> Feature {
    Feature { bit, name, rule: Rule::Host }
}
const fn rule(bit: u32, name: &'static str, rule: Rule) -> Feature {
    Feature { bit, name, rule }
}
const fn ours(bit: u32, name: &'static str) -> Feature {
    rule(bit, name, Rule::Emulated)
}
const fn avx(bit: u32, name: &'static str) -> Feature {
    rule(bit, name, Rule::State(Xcr0::AVX))
}
const fn avx512(bit: u32, name: &'static str) -> Feature {
    rule(bit, name, Rule::State(crate::cpuid::xstate::AVX512))
}

/// Every feature word. A leaf's register that is not here is either a number
/// (see the leaf's own rule) or 0.
pub static FEATURE_WORDS: &[FeatureWord] = &[
    FeatureWord {
        leaf: 1,
        subleaf: 0,
        register: Register::Ecx,
        features: &[
            host(0, "pni"),
            host(1, "pclmulqdq"),
            host(9, "ssse3"),
            avx(12, "fma"),
            host(13, "cx16"),
            host(17, "pcid"),
            host(19, "sse4_1"),
            host(20, "sse4_2"),
            ours(21, "x2apic"),
            host(22, "movbe"),
            host(23, "popcnt"),
            ours(24, "tsc_deadline_timer"),
            host(25, "aes"),
            rule(26, "xsave", Rule::State(Xcr0::X87)),
            rule(27, "osxsave", Rule::Dynamic),
            avx(28, "avx"),
            avx(29, "f16c"),
            host(30, "rdrand"),
            ours(31, "hypervisor"),
        ],
    },
    FeatureWord {
        leaf: 1,
        subleaf: 0,
        register: Register::Edx,
        features: &[
            host(0, "fpu"),
            host(1, "vme"),
            host(2, "de"),
            host(3, "pse"),
            ours(4, "tsc"),
            ours(5, "msr"),
            host(6, "pae"),
            ours(7, "mce"),
            host(8, "cx8"),
            rule(9, "apic", Rule::Dynamic),
            host(11, "sep"),
            ours(12, "mtrr"),
            host(13, "pge"),
            ours(14, "mca"),
            host(15, "cmov"),
            host(16, "pat"),
            host(17, "pse36"),
            host(19, "clflush"),
            host(23, "mmx"),
            host(24, "fxsr"),
            host(25, "sse"),
            host(26, "sse2"),
            host(27, "ss"),
            rule(28, "ht", Rule::Multiprocessor),
        ],
    },
    FeatureWord {
        leaf: 6,
        subleaf: 0,
        register: Register::Eax,
        // The local APIC's timer never stops: a halted vCPU is still in C1.
        features: &[ours(2, "arat")],
    },
    FeatureWord {
        leaf: 7,
        subleaf: 0,
        register: Register::Ebx,
        features: &[
            host(0, "fsgsbase"),
            ours(1, "tsc_adjust"),
            host(3, "bmi1"),
            avx(5, "avx2"),
            host(6, "fdp_excptn_only"),
            host(7, "smep"),
            host(8, "bmi2"),
            host(9, "erms"),
            host(10, "invpcid"),
            host(13, "zero_fcs_fds"),
            avx512(16, "avx512f"),
            avx512(17, "avx512dq"),
            host(18, "rdseed"),
            host(19, "adx"),
            host(20, "smap"),
            avx512(21, "avx512ifma"),
            host(23, "clflushopt"),
            host(24, "clwb"),
            avx512(26, "avx512pf"),
            avx512(27, "avx512er"),
            avx512(28, "avx512cd"),
            host(29, "sha_ni"),
            avx512(30, "avx512bw"),
            avx512(31, "avx512vl"),
        ],
    },
    FeatureWord {
        leaf: 7,
        subleaf: 0,
        register: Register::Ecx,
        features: &[
            host(0, "prefetchwt1"),
            avx512(1, "avx512vbmi"),
            host(2, "umip"),
            rule(3, "pku", Rule::State(Xcr0::PKRU)),
            rule(4, "ospke", Rule::Dynamic),
            avx512(6, "avx512_vbmi2"),
            host(8, "gfni"),
            avx(9, "vaes"),
            avx(10, "vpclmulqdq"),
            avx512(11, "avx512_vnni"),
            avx512(12, "avx512_bitalg"),
            avx512(14, "avx512_vpopcntdq"),
            host(22, "rdpid"),
            host(25, "cldemote"),
            host(27, "movdiri"),
            host(28, "movdir64b"),
        ],
    },
    FeatureWord {
        leaf: 7,
        subleaf: 0,
        register: Register::Edx,
        features: &[
            avx512(2, "avx512_4vnniw"),
            avx512(3, "avx512_4fmaps"),
            host(4, "fsrm"),
            avx512(8, "avx512_vp2intersect"),
            // VERW clears buffers: an instruction, no MSR.
            host(10, "md_clear"),
            host(14, "serialize"),
            avx512(23, "avx512_fp16"),
        ],
    },
    FeatureWord {
        leaf: 7,
        subleaf: 1,
        register: Register::Eax,
        features: &[
            avx(4, "avx_vnni"),
            avx512(5, "avx512_bf16"),
            host(10, "fzrm"),
            host(11, "fsrs"),
            host(12, "fsrc"),
            avx(23, "avx_ifma"),
        ],
    },
    FeatureWord {
        leaf: 0xd,
        subleaf: 1,
        register: Register::Eax,
        // XSAVES is left out: IA32_XSS is not offered.
        features: &[
            rule(0, "xsaveopt", Rule::State(Xcr0::X87)),
            rule(1, "xsavec", Rule::State(Xcr0::X87)),
            rule(2, "xgetbv1", Rule::State(Xcr0::X87)),
        ],
    },
    FeatureWord {
        leaf: 0x8000_0001,
        subleaf: 0,
        register: Register::Ecx,
        features: &[
            host(0, "lahf_lm"),
            rule(1, "cmp_legacy", Rule::MultiprocessorAmd),
            host(4, "cr8_legacy"),
            host(5, "abm"),
            host(6, "sse4a"),
            host(7, "misalignsse"),
            host(8, "3dnowprefetch"),
            avx(11, "xop"),
            avx(16, "fma4"),
            host(21, "tbm"),
            host(22, "topoext"),
        ],
    },
    FeatureWord {
        leaf: 0x8000_0001,
        subleaf: 0,
        register: Register::Edx,
        features: &[
            host(0, "fpu (again)"),
            host(1, "vme (again)"),
            host(2, "de (again)"),
            host(3, "pse (again)"),
            host(4, "tsc (again)"),
            host(5, "msr (again)"),
            host(6, "pae (again)"),
            host(7, "mce (again)"),
            host(8, "cx8 (again)"),
            rule(9, "apic (again)", Rule::DynamicIfHost),
            host(11, "syscall"),
            host(12, "mtrr (again)"),
            host(13, "pge (again)"),
            host(14, "mca (again)"),
            host(15, "cmov (again)"),
            host(16, "pat (again)"),
            host(17, "pse36 (again)"),
            host(20, "nx"),
            host(22, "mmxext"),
            host(23, "mmx (again)"),
            host(24, "fxsr (again)"),
            host(26, "pdpe1gb"),
            host(27, "rdtscp"),
            host(29, "lm"),
            host(30, "3dnowext"),
            host(31, "3dnow"),
        ],
    },
    FeatureWord {
        leaf: 0x8000_0007,
        subleaf: 0,
        register: Register::Edx,
        features: &[ours(8, "invariant_tsc")],
    },
    FeatureWord {
        leaf: 0x8000_0008,
        subleaf: 0,
        register: Register::Ebx,
        features: &[
            host(0, "clzero"),
            host(2, "xsaveerptr"),
            host(9, "wbnoinvd"),
            // Statements about the CPU, without an MSR.
            host(26, "amd_ssb_no"),
            host(29, "btc_no"),
        ],
    },
    FeatureWord {
        leaf: 0x8000_0021,
        subleaf: 0,
        register: Register::Eax,
        features: &[
            host(0, "no_nested_data_bp"),
            host(2, "lfence_rdtsc"),
            host(6, "null_sel_clr_base"),
        ],
    },
];

/// The name of a feature bit and where it stands, for policy that depends on
/// whether a guest has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FeatureBit {
    /// EAX going in.
    pub leaf: u32,
    /// ECX going in.
    pub subleaf: u32,
    /// The register.
    pub register: Register,
    /// Number of the bit, 0 to 31.
    pub bit: u32,
}

macro_rules! feature_bits {
    ($($(#[$doc:meta])* $name:ident = ($leaf:literal, $subleaf:literal, $register:ident, $bit:literal);)*) => {
        impl FeatureBit {
            $($(#[$doc])* pub const $name: Self = Self {
                leaf: $leaf,
                subleaf: $subleaf,
                register: Register::$register,
                bit: $bit,
            };)*

            /// All that have a name here.
            pub const ALL: &'static [Self] = &[$(Self::$name),*];
        }
    };
}

feature_bits! {
    /// Virtual-8086 mode extensions.
    VME = (1, 0, Edx, 1);
    /// Debugging extensions.
    DE = (1, 0, Edx, 2);
    /// Large pages of 4 MiB.
    PSE = (1, 0, Edx, 3);
    /// Physical-address extension.
    PAE = (1, 0, Edx, 6);
    /// SYSENTER.
    SEP = (1, 0, Edx, 11);
    /// Global pages.
    PGE = (1, 0, Edx, 13);
    /// FXSAVE.
    FXSR = (1, 0, Edx, 24);
    /// SSE.
    SSE = (1, 0, Edx, 25);
    /// Process-context identifiers.
    PCID = (1, 0, Ecx, 17);
    /// XSAVE.
    XSAVE = (1, 0, Ecx, 26);
    /// RDFSBASE and its kin.
    FSGSBASE = (7, 0, Ebx, 0);
    /// Supervisor-mode execution prevention.
    SMEP = (7, 0, Ebx, 7);
    /// Supervisor-mode access prevention.
    SMAP = (7, 0, Ebx, 20);
    /// INVPCID.
    INVPCID = (7, 0, Ebx, 10);
    /// User-mode instruction prevention.
    UMIP = (7, 0, Ecx, 2);
    /// Protection keys for user pages.
    PKU = (7, 0, Ecx, 3);
    /// RDPID.
    RDPID = (7, 0, Ecx, 22);
    /// SYSCALL.
    SYSCALL = (0x8000_0001, 0, Edx, 11);
    /// No-execute.
    NX = (0x8000_0001, 0, Edx, 20);
    /// RDTSCP.
    RDTSCP = (0x8000_0001, 0, Edx, 27);
    /// x2APIC mode.
    X2APIC = (1, 0, Ecx, 21);
    /// The local APIC's timer can wait for a value of the TSC.
    TSC_DEADLINE = (1, 0, Ecx, 24);
    /// IA32_TSC_ADJUST.
    TSC_ADJUST = (7, 0, Ebx, 1);
    /// Long mode.
    LM = (0x8000_0001, 0, Edx, 29);
    /// The TSC counts at one rate for good. Withheld where the host's is not dependable; then
    /// kvmclock is not called stable either.
    INVARIANT_TSC = (0x8000_0007, 0, Edx, 8);
    /// Extended topology leaves of AMD's CPUs.
    TOPOEXT = (0x8000_0001, 0, Ecx, 22);
}
