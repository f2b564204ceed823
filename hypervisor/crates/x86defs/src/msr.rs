//! Model-specific registers, by number.

use core::fmt;

/// The number of a model-specific register.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct Msr(pub u32);

impl fmt::Debug for Msr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MSR {:#x}", self.0)
    }
}

macro_rules! msrs {
    ($($(#[$doc:meta])* $name:ident = $number:literal;)*) => {
        impl Msr {
            $($(#[$doc])* pub const $name: Self = Self($number);)*
        }
    };
}

msrs! {
    /// Machine-check address of the Pentium.
    P5_MC_ADDR = 0x0;
    /// Machine-check type of the Pentium.
    P5_MC_TYPE = 0x1;
    /// Time-stamp counter.
    TSC = 0x10;
    /// Platform identity.
    PLATFORM_ID = 0x17;
    /// Local-APIC base.
    APIC_BASE = 0x1b;
    /// VT-x and SGX enabling by firmware.
    FEATURE_CONTROL = 0x3a;
    /// Offset added to the time-stamp counter.
    TSC_ADJUST = 0x3b;
    /// Speculation control.
    SPEC_CTRL = 0x48;
    /// Prediction commands.
    PRED_CMD = 0x49;
    /// Microcode revision.
    BIOS_SIGN_ID = 0x8b;
    /// MTRR capabilities.
    MTRR_CAP = 0xfe;
    /// Architectural capabilities.
    ARCH_CAPABILITIES = 0x10a;
    /// SYSENTER's code segment.
    SYSENTER_CS = 0x174;
    /// SYSENTER's stack pointer.
    SYSENTER_ESP = 0x175;
    /// SYSENTER's instruction pointer.
    SYSENTER_EIP = 0x176;
    /// Machine-check capabilities.
    MCG_CAP = 0x179;
    /// Machine-check status.
    MCG_STATUS = 0x17a;
    /// Machine-check control.
    MCG_CTL = 0x17b;
    /// Miscellaneous enables.
    MISC_ENABLE = 0x1a0;
    /// Debug control.
    DEBUGCTL = 0x1d9;
    /// First variable MTRR base.
    MTRR_PHYS_BASE0 = 0x200;
    /// MTRR of the first 512 KiB.
    MTRR_FIX_64K_00000 = 0x250;
    /// MTRR of 0x80000.
    MTRR_FIX_16K_80000 = 0x258;
    /// MTRR of 0xa0000.
    MTRR_FIX_16K_A0000 = 0x259;
    /// MTRR of 0xc0000; the seven that follow go on to 0xf8000.
    MTRR_FIX_4K_C0000 = 0x268;
    /// MTRR of 0xf8000.
    MTRR_FIX_4K_F8000 = 0x26f;
    /// Page-attribute table.
    PAT = 0x277;
    /// Default memory type.
    MTRR_DEF_TYPE = 0x2ff;
    /// First x2APIC register.
    X2APIC_FIRST = 0x800;
    /// x2APIC: identity.
    X2APIC_APICID = 0x802;
    /// x2APIC: task priority.
    X2APIC_TPR = 0x808;
    /// x2APIC: end of interrupt.
    X2APIC_EOI = 0x80b;
    /// x2APIC: interrupt command.
    X2APIC_ICR = 0x830;
    /// x2APIC: initial count of the timer.
    X2APIC_TIMER_INIT = 0x838;
    /// x2APIC: self-IPI.
    X2APIC_SELF_IPI = 0x83f;
    /// Last of the range that x2APIC reserves.
    X2APIC_LAST = 0x8ff;
    /// VT-x: revision, sizes.
    VMX_BASIC = 0x480;
    /// VT-x: miscellaneous.
    VMX_MISC = 0x485;
    /// VT-x: bits of CR0 that must be 1.
    VMX_CR0_FIXED0 = 0x486;
    /// VT-x: bits of CR0 that may be 1.
    VMX_CR0_FIXED1 = 0x487;
    /// VT-x: bits of CR4 that must be 1.
    VMX_CR4_FIXED0 = 0x488;
    /// VT-x: bits of CR4 that may be 1.
    VMX_CR4_FIXED1 = 0x489;
    /// VT-x: secondary processor-based controls.
    VMX_PROCBASED_CTLS2 = 0x48b;
    /// VT-x: EPT and VPID.
    VMX_EPT_VPID_CAP = 0x48c;
    /// VT-x: pin-based controls.
    VMX_TRUE_PINBASED_CTLS = 0x48d;
    /// VT-x: primary processor-based controls.
    VMX_TRUE_PROCBASED_CTLS = 0x48e;
    /// VT-x: exit controls.
    VMX_TRUE_EXIT_CTLS = 0x48f;
    /// VT-x: entry controls.
    VMX_TRUE_ENTRY_CTLS = 0x490;
    /// Functions that VMFUNC may be given.
    VMX_VMFUNC = 0x491;
    /// Tertiary processor-based controls that may be 1.
    VMX_PROCBASED_CTLS3 = 0x492;
    /// TSC deadline of the local APIC's timer.
    TSC_DEADLINE = 0x6e0;
    /// Extended supervisor state.
    XSS = 0xda0;
    /// Extended features.
    EFER = 0xc000_0080;
    /// SYSCALL's segments.
    STAR = 0xc000_0081;
    /// SYSCALL's target in long mode.
    LSTAR = 0xc000_0082;
    /// SYSCALL's target in compatibility mode.
    CSTAR = 0xc000_0083;
    /// SYSCALL's flag mask.
    SFMASK = 0xc000_0084;
    /// FS base.
    FS_BASE = 0xc000_0100;
    /// GS base.
    GS_BASE = 0xc000_0101;
    /// The base that SWAPGS swaps in.
    KERNEL_GS_BASE = 0xc000_0102;
    /// Value that RDTSCP returns in ECX.
    TSC_AUX = 0xc000_0103;
    /// AMD: system configuration.
    SYSCFG = 0xc001_0010;
    /// AMD: hardware configuration.
    HWCR = 0xc001_0015;
    /// AMD: top of memory below 4 GiB.
    TOP_MEM = 0xc001_001a;
    /// AMD: top of memory above 4 GiB.
    TOP_MEM2 = 0xc001_001d;
    /// AMD: northbridge configuration.
    NB_CFG = 0xc001_001f;
    /// AMD: SVM control.
    VM_CR = 0xc001_0114;
    /// AMD: address at which VMRUN keeps the host's state.
    VM_HSAVE_PA = 0xc001_0117;
    /// AMD: load-store configuration.
    LS_CFG = 0xc001_1020;
    /// AMD: decode configuration.
    DE_CFG = 0xc001_1029;
    /// KVM: wall clock (old number).
    KVM_WALL_CLOCK_OLD = 0x11;
    /// KVM: system time (old number).
    KVM_SYSTEM_TIME_OLD = 0x12;
    /// KVM: wall clock.
    KVM_WALL_CLOCK = 0x4b56_4d00;
    /// KVM: system time.
    KVM_SYSTEM_TIME = 0x4b56_4d01;
    /// KVM: asynchronous page faults.
    KVM_ASYNC_PF_EN = 0x4b56_4d02;
    /// KVM: steal time.
    KVM_STEAL_TIME = 0x4b56_4d03;
    /// KVM: paravirtual EOI.
    KVM_PV_EOI = 0x4b56_4d04;
    /// KVM: polling control.
    KVM_POLL_CONTROL = 0x4b56_4d05;
}

/// [`Msr::VM_CR`]: SVM is switched off.
pub const VM_CR_SVMDIS: u64 = 1 << 4;
/// [`Msr::VM_CR`]: SVM can't be switched on until reset (or with a key).
pub const VM_CR_LOCK: u64 = 1 << 3;
/// [`Msr::FEATURE_CONTROL`]: locked.
pub const FEATURE_CONTROL_LOCK: u64 = 1 << 0;
/// [`Msr::FEATURE_CONTROL`]: VMXON allowed outside SMX.
pub const FEATURE_CONTROL_VMX: u64 = 1 << 2;
/// [`Msr::APIC_BASE`]: this is the bootstrap processor.
pub const APIC_BASE_BSP: u64 = 1 << 8;
/// [`Msr::APIC_BASE`]: x2APIC mode.
pub const APIC_BASE_X2APIC: u64 = 1 << 10;
/// [`Msr::APIC_BASE`]: enabled.
pub const APIC_BASE_ENABLE: u64 = 1 << 11;
