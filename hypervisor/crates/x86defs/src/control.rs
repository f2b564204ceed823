//! Control registers, EFER, RFLAGS and XCR0.

use bitflags::bitflags;

bitflags! {
    /// CR0 (SDM: "Control Registers").
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    pub struct Cr0: u64 {
        /// Protection enable.
        const PE = 1 << 0;
        /// Monitor coprocessor.
        const MP = 1 << 1;
        /// Emulation: no x87.
        const EM = 1 << 2;
        /// Task switched.
        const TS = 1 << 3;
        /// Extension type, always 1.
        const ET = 1 << 4;
        /// Numeric error.
        const NE = 1 << 5;
        /// Write protect in supervisor mode.
        const WP = 1 << 16;
        /// Alignment mask.
        const AM = 1 << 18;
        /// Not write-through.
        const NW = 1 << 29;
        /// Cache disable.
        const CD = 1 << 30;
        /// Paging.
        const PG = 1 << 31;
    }
}

bitflags! {
    /// CR4 (SDM: "Control Registers").
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    pub struct Cr4: u64 {
        /// Virtual-8086 extensions.
        const VME = 1 << 0;
        /// Protected-mode virtual interrupts.
        const PVI = 1 << 1;
        /// RDTSC in ring 0 only.
        const TSD = 1 << 2;
        /// Debugging extensions.
        const DE = 1 << 3;
        /// Large pages of 4 MiB.
        const PSE = 1 << 4;
        /// Physical-address extension.
        const PAE = 1 << 5;
        /// Machine-check exception.
        const MCE = 1 << 6;
        /// Global pages.
        const PGE = 1 << 7;
        /// RDPMC in every ring.
        const PCE = 1 << 8;
        /// FXSAVE and SSE.
        const OSFXSR = 1 << 9;
        /// Unmasked SIMD exceptions.
        const OSXMMEXCPT = 1 << 10;
        /// User-mode instruction prevention.
        const UMIP = 1 << 11;
        /// Linear addresses of 57 bits.
        const LA57 = 1 << 12;
        /// VMX enable.
        const VMXE = 1 << 13;
        /// SMX enable.
        const SMXE = 1 << 14;
        /// RDFSBASE and its kin.
        const FSGSBASE = 1 << 16;
        /// Process-context identifiers.
        const PCIDE = 1 << 17;
        /// XSAVE and processor extended states.
        const OSXSAVE = 1 << 18;
        /// Supervisor-mode execution prevention.
        const SMEP = 1 << 20;
        /// Supervisor-mode access prevention.
        const SMAP = 1 << 21;
        /// Protection keys for user pages.
        const PKE = 1 << 22;
        /// Control-flow enforcement.
        const CET = 1 << 23;
        /// Protection keys for supervisor pages.
        const PKS = 1 << 24;
    }
}

bitflags! {
    /// The extended-feature-enable register (APM: "Extended Feature Enable Register").
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    pub struct Efer: u64 {
        /// SYSCALL enable.
        const SCE = 1 << 0;
        /// Long mode enable.
        const LME = 1 << 8;
        /// Long mode active.
        const LMA = 1 << 10;
        /// No-execute enable.
        const NXE = 1 << 11;
        /// SVM enable.
        const SVME = 1 << 12;
        /// Long-mode segment limits.
        const LMSLE = 1 << 13;
        /// Fast FXSAVE.
        const FFXSR = 1 << 14;
        /// Translation-cache extension.
        const TCE = 1 << 15;
        /// Automatic IBRS.
        const AUTOIBRS = 1 << 21;
    }
}

bitflags! {
    /// RFLAGS (SDM: "EFLAGS Register").
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    pub struct Rflags: u64 {
        /// Carry.
        const CF = 1 << 0;
        /// Bit 1, always 1.
        const RESERVED1 = 1 << 1;
        /// Parity.
        const PF = 1 << 2;
        /// Auxiliary carry.
        const AF = 1 << 4;
        /// Zero.
        const ZF = 1 << 6;
        /// Sign.
        const SF = 1 << 7;
        /// Trap: single step.
        const TF = 1 << 8;
        /// Interrupt enable.
        const IF = 1 << 9;
        /// Direction.
        const DF = 1 << 10;
        /// Overflow.
        const OF = 1 << 11;
        /// I/O privilege level, both bits.
        const IOPL = 3 << 12;
        /// Nested task.
        const NT = 1 << 14;
        /// Resume: ignore instruction breakpoints once.
        const RF = 1 << 16;
        /// Virtual-8086 mode.
        const VM = 1 << 17;
        /// Alignment check, and SMAP override.
        const AC = 1 << 18;
        /// Virtual interrupt flag.
        const VIF = 1 << 19;
        /// Virtual interrupt pending.
        const VIP = 1 << 20;
        /// CPUID can be used.
        const ID = 1 << 21;
    }
}

impl Rflags {
    /// The six flags that arithmetic changes.
    pub const ARITHMETIC: Self =
        Self::CF.union(Self::PF).union(Self::AF).union(Self::ZF).union(Self::SF).union(Self::OF);
}

bitflags! {
    /// Extended control register 0 (SDM: "Extended Control Registers").
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    pub struct Xcr0: u64 {
        /// x87, always 1.
        const X87 = 1 << 0;
        /// XMM registers.
        const SSE = 1 << 1;
        /// Upper halves of YMM registers.
        const AVX = 1 << 2;
        /// MPX bound registers.
        const BNDREGS = 1 << 3;
        /// MPX configuration.
        const BNDCSR = 1 << 4;
        /// AVX-512 mask registers.
        const OPMASK = 1 << 5;
        /// Upper halves of ZMM0 to ZMM15.
        const ZMM_HI256 = 1 << 6;
        /// ZMM16 to ZMM31.
        const HI16_ZMM = 1 << 7;
        /// Protection keys.
        const PKRU = 1 << 9;
    }
}

/// The x86 mode of operation that CR0, EFER and the code segment select
/// (APM: "Operating Modes").
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CpuMode {
    /// Real mode: no protection, 16-bit.
    Real,
    /// Virtual-8086 mode.
    Virtual8086,
    /// Protected mode with a 16-bit code segment.
    Protected16,
    /// Protected mode with a 32-bit code segment.
    Protected32,
    /// Long mode, compatibility, 16-bit code segment.
    Compat16,
    /// Long mode, compatibility, 32-bit code segment.
    Compat32,
    /// 64-bit mode.
    Long64,
}

impl CpuMode {
    /// The mode in which a vCPU with these registers runs. `cs_l` and `cs_db`
    /// are the L and D bits of its code segment.
    #[must_use]
    pub const fn of(cr0: Cr0, efer: Efer, rflags: Rflags, cs_l: bool, cs_db: bool) -> Self {
        if !cr0.contains(Cr0::PE) {
            Self::Real
        } else if efer.contains(Efer::LMA) {
            match (cs_l, cs_db) {
                (true, _) => Self::Long64,
                (false, true) => Self::Compat32,
                (false, false) => Self::Compat16,
            }
        } else if rflags.contains(Rflags::VM) {
            Self::Virtual8086
        } else if cs_db {
            Self::Protected32
        } else {
            Self::Protected16
        }
    }

    /// Default code size in bits: 16, 32 or 64.
    #[must_use]
    pub const fn bits(self) -> u32 {
        match self {
            Self::Real | Self::Virtual8086 | Self::Protected16 | Self::Compat16 => 16,
            Self::Protected32 | Self::Compat32 => 32,
            Self::Long64 => 64,
        }
    }

    /// Whether selectors are real-mode paragraphs rather than descriptors.
    #[must_use]
    pub const fn is_real_like(self) -> bool {
        matches!(self, Self::Real | Self::Virtual8086)
    }
}

/// CR8, the task-priority register: 4 bits.
pub const CR8_MASK: u64 = 0xf;
/// DR6 after reset.
pub const DR6_RESET: u64 = 0xffff_0ff0;
/// DR7 after reset.
pub const DR7_RESET: u64 = 0x400;
