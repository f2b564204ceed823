//! Fields of the VMCS, by name (SDM: "Field Encoding in VMCS"). A field's type
//! is its width, so that no value is cut or read too wide.

use crate::reg::SegmentRegister;

macro_rules! fields {
    ($(#[$type_doc:meta])* $type:ident:
        $($(#[$doc:meta])* $name:ident $(in $place:tt)? = $code:literal;)*
    ) => {
        $(#[$type_doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(transparent)]
        pub struct $type(pub u16);

        impl $type {
            $(fields!(@constant $(#[$doc])* $name $(in $place)? = $code);)*

            /// All of them with their names, in the order of their encodings.
            pub const ALL: &'static [(&'static str, Self)] =
                &[$((stringify!($name), Self::$name)),*];
        }
    };
    (@constant $(#[$doc:meta])* $name:ident = $code:literal) => {
        $(#[$doc])* pub const $name: Self = Self($code);
    };
    (@constant $(#[$doc:meta])* $name:ident in $place:tt = $code:literal) => {
        $(#[$doc])* pub($place) const $name: Self = Self($code);
    };
}

fields! {
    /// A field of 16 bits.
    Field16:
    /// Virtual-processor identifier.
    VPID = 0x0000;
    /// Vector that announces posted interrupts.
    POSTED_INTERRUPT_VECTOR = 0x0002;
    /// Index of the EPT pointer in use.
    EPTP_INDEX = 0x0004;
    /// HLAT prefix size.
    HLAT_PREFIX_SIZE = 0x0006;
    /// Last index of PID pointers.
    LAST_PID_POINTER_INDEX = 0x0008;
    /// ES of the guest.
    GUEST_ES_SELECTOR = 0x0800;
    /// CS of the guest.
    GUEST_CS_SELECTOR = 0x0802;
    /// SS of the guest.
    GUEST_SS_SELECTOR = 0x0804;
    /// DS of the guest.
    GUEST_DS_SELECTOR = 0x0806;
    /// FS of the guest.
    GUEST_FS_SELECTOR = 0x0808;
    /// GS of the guest.
    GUEST_GS_SELECTOR = 0x080a;
    /// LDTR of the guest.
    GUEST_LDTR_SELECTOR = 0x080c;
    /// TR of the guest.
    GUEST_TR_SELECTOR = 0x080e;
    /// Requesting and servicing virtual interrupt.
    GUEST_INTERRUPT_STATUS = 0x0810;
    /// Next entry of the page-modification log.
    PML_INDEX = 0x0812;
    /// User-interrupt notification vector.
    GUEST_UINV = 0x0814;
    /// ES of the host.
    HOST_ES_SELECTOR = 0x0c00;
    /// CS of the host.
    HOST_CS_SELECTOR = 0x0c02;
    /// SS of the host.
    HOST_SS_SELECTOR = 0x0c04;
    /// DS of the host.
    HOST_DS_SELECTOR = 0x0c06;
    /// FS of the host.
    HOST_FS_SELECTOR = 0x0c08;
    /// GS of the host.
    HOST_GS_SELECTOR = 0x0c0a;
    /// TR of the host.
    HOST_TR_SELECTOR = 0x0c0c;
}

fields! {
    /// A field of 64 bits.
    Field64:
    /// Bitmap of ports 0 to 0x7fff.
    IO_BITMAP_A = 0x2000;
    /// Bitmap of ports 0x8000 to 0xffff.
    IO_BITMAP_B = 0x2002;
    /// Bitmap of MSRs.
    MSR_BITMAP = 0x2004;
    /// MSRs that an exit stores.
    EXIT_MSR_STORE = 0x2006;
    /// MSRs that an exit loads.
    EXIT_MSR_LOAD = 0x2008;
    /// MSRs that an entry loads.
    ENTRY_MSR_LOAD = 0x200a;
    /// Executive VMCS, of system-management mode.
    EXECUTIVE_VMCS = 0x200c;
    /// Page-modification log.
    PML_ADDRESS = 0x200e;
    /// Added to the TSC that the guest reads.
    TSC_OFFSET = 0x2010;
    /// Virtual-APIC page.
    VIRTUAL_APIC = 0x2012;
    /// APIC-access page.
    APIC_ACCESS = 0x2014;
    /// Posted-interrupt descriptor.
    POSTED_INTERRUPT_DESCRIPTOR = 0x2016;
    /// VM-function controls.
    VM_FUNCTION_CONTROLS = 0x2018;
    /// Root of the EPT, with its attributes.
    EPT_POINTER = 0x201a;
    /// Vectors 0 to 63 whose EOI exits.
    EOI_EXIT0 = 0x201c;
    /// Vectors 64 to 127 whose EOI exits.
    EOI_EXIT1 = 0x201e;
    /// Vectors 128 to 191 whose EOI exits.
    EOI_EXIT2 = 0x2020;
    /// Vectors 192 to 255 whose EOI exits.
    EOI_EXIT3 = 0x2022;
    /// EPT pointers for VMFUNC.
    EPTP_LIST = 0x2024;
    /// VMREADs that exit.
    VMREAD_BITMAP = 0x2026;
    /// VMWRITEs that exit.
    VMWRITE_BITMAP = 0x2028;
    /// Address of the area that describes virtualization exceptions.
    VIRTUALIZATION_EXCEPTION = 0x202a;
    /// State components whose XSAVES exits.
    XSS_EXITING = 0x202c;
    /// ENCLS leaves that exit.
    ENCLS_EXITING = 0x202e;
    /// Sub-page permission table.
    SUB_PAGE_PERMISSIONS = 0x2030;
    /// TSC multiplier.
    TSC_MULTIPLIER = 0x2032;
    /// Tertiary processor-based controls.
    TERTIARY_CONTROLS = 0x2034;
    /// ENCLV leaves that exit.
    ENCLV_EXITING = 0x2036;
    /// Guest-physical address of the last EPT violation.
    GUEST_PHYSICAL_ADDRESS = 0x2400;
    /// VMCS link pointer.
    GUEST_VMCS_LINK = 0x2800;
    /// DEBUGCTL of the guest.
    GUEST_DEBUGCTL = 0x2802;
    /// PAT of the guest.
    GUEST_PAT = 0x2804;
    /// EFER of the guest.
    GUEST_EFER = 0x2806;
    /// PERF_GLOBAL_CTRL of the guest.
    GUEST_PERF_GLOBAL_CTRL = 0x2808;
    /// First page-directory pointer of PAE paging.
    GUEST_PDPTE0 = 0x280a;
    /// Second page-directory pointer of PAE paging.
    GUEST_PDPTE1 = 0x280c;
    /// Third page-directory pointer of PAE paging.
    GUEST_PDPTE2 = 0x280e;
    /// Fourth page-directory pointer of PAE paging.
    GUEST_PDPTE3 = 0x2810;
    /// BNDCFGS of the guest.
    GUEST_BNDCFGS = 0x2812;
    /// RTIT_CTL of the guest.
    GUEST_RTIT_CTL = 0x2814;
    /// LBR_CTL of the guest.
    GUEST_LBR_CTL = 0x2816;
    /// PKRS of the guest.
    GUEST_PKRS = 0x2818;
    /// PAT of the host.
    HOST_PAT = 0x2c00;
    /// EFER of the host.
    HOST_EFER = 0x2c02;
    /// PERF_GLOBAL_CTRL of the host.
    HOST_PERF_GLOBAL_CTRL = 0x2c04;
    /// PKRS of the host.
    HOST_PKRS = 0x2c06;
}

fields! {
    /// A field of 32 bits.
    Field32:
    /// Pin-based controls.
    PIN_CONTROLS = 0x4000;
    /// Primary processor-based controls.
    PRIMARY_CONTROLS = 0x4002;
    /// Exceptions that exit.
    EXCEPTION_BITMAP = 0x4004;
    /// Page faults: which bits of the error code count.
    PAGE_FAULT_MASK = 0x4006;
    /// Page faults: what those bits must be.
    PAGE_FAULT_MATCH = 0x4008;
    /// Values of CR3 that do not exit.
    CR3_TARGET_COUNT = 0x400a;
    /// Exit controls.
    EXIT_CONTROLS = 0x400c;
    /// MSRs that an exit stores.
    EXIT_MSR_STORE_COUNT = 0x400e;
    /// MSRs that an exit loads.
    EXIT_MSR_LOAD_COUNT = 0x4010;
    /// Entry controls.
    ENTRY_CONTROLS = 0x4012;
    /// MSRs that an entry loads.
    ENTRY_MSR_LOAD_COUNT = 0x4014;
    /// The event that an entry injects.
    ENTRY_INTERRUPTION_INFO = 0x4016;
    /// Error code of the event that an entry injects.
    ENTRY_EXCEPTION_ERROR = 0x4018;
    /// Length of the instruction that raised the event that an entry injects.
    ENTRY_INSTRUCTION_LENGTH = 0x401a;
    /// Task priorities below this exit.
    TPR_THRESHOLD = 0x401c;
    /// Secondary processor-based controls.
    SECONDARY_CONTROLS = 0x401e;
    /// PAUSEs further apart start a new loop.
    PLE_GAP = 0x4020;
    /// Length of a loop of PAUSEs that exits.
    PLE_WINDOW = 0x4022;
    /// Number of the error of a VMX instruction that failed.
    INSTRUCTION_ERROR = 0x4400;
    /// The exit's reason.
    EXIT_REASON = 0x4402;
    /// The exception or interrupt that exited.
    EXIT_INTERRUPTION_INFO = 0x4404;
    /// Error code of the exception that exited.
    EXIT_INTERRUPTION_ERROR = 0x4406;
    /// The event whose delivery the exit interrupted.
    IDT_VECTORING_INFO = 0x4408;
    /// Error code of the event whose delivery the exit interrupted.
    IDT_VECTORING_ERROR = 0x440a;
    /// The instruction's length. It means something after some exits only:
    /// [`ExitReason::length_field`](crate::vmcs::ExitReason::length_field) and
    /// [`InterruptionInfo::length_field`](crate::vmcs::InterruptionInfo::length_field)
    /// hand it out where it does.
    EXIT_INSTRUCTION_LENGTH in super = 0x440c;
    /// Operands of the instruction, for some.
    EXIT_INSTRUCTION_INFO = 0x440e;
    /// Limit of the guest's ES.
    GUEST_ES_LIMIT = 0x4800;
    /// Limit of the guest's CS.
    GUEST_CS_LIMIT = 0x4802;
    /// Limit of the guest's SS.
    GUEST_SS_LIMIT = 0x4804;
    /// Limit of the guest's DS.
    GUEST_DS_LIMIT = 0x4806;
    /// Limit of the guest's FS.
    GUEST_FS_LIMIT = 0x4808;
    /// Limit of the guest's GS.
    GUEST_GS_LIMIT = 0x480a;
    /// Limit of the guest's LDTR.
    GUEST_LDTR_LIMIT = 0x480c;
    /// Limit of the guest's TR.
    GUEST_TR_LIMIT = 0x480e;
    /// Limit of the guest's GDTR.
    GUEST_GDTR_LIMIT = 0x4810;
    /// Limit of the guest's IDTR.
    GUEST_IDTR_LIMIT = 0x4812;
    /// Access rights of the guest's ES.
    GUEST_ES_RIGHTS = 0x4814;
    /// Access rights of the guest's CS.
    GUEST_CS_RIGHTS = 0x4816;
    /// Access rights of the guest's SS.
    GUEST_SS_RIGHTS = 0x4818;
    /// Access rights of the guest's DS.
    GUEST_DS_RIGHTS = 0x481a;
    /// Access rights of the guest's FS.
    GUEST_FS_RIGHTS = 0x481c;
    /// Access rights of the guest's GS.
    GUEST_GS_RIGHTS = 0x481e;
    /// Access rights of the guest's LDTR.
    GUEST_LDTR_RIGHTS = 0x4820;
    /// Access rights of the guest's TR.
    GUEST_TR_RIGHTS = 0x4822;
    /// Reasons that hold interrupts and NMIs off.
    GUEST_INTERRUPTIBILITY = 0x4824;
    /// Active, halted and so on.
    GUEST_ACTIVITY = 0x4826;
    /// SMBASE of the guest.
    GUEST_SMBASE = 0x4828;
    /// SYSENTER_CS of the guest.
    GUEST_SYSENTER_CS = 0x482a;
    /// Preemption timer.
    PREEMPTION_TIMER = 0x482e;
    /// SYSENTER_CS of the host.
    HOST_SYSENTER_CS = 0x4c00;
}

fields! {
    /// A field as wide as a general register.
    FieldNatural:
    /// Bits of CR0 that are the host's.
    CR0_MASK = 0x6000;
    /// Bits of CR4 that are the host's.
    CR4_MASK = 0x6002;
    /// Values that the guest reads in those bits of CR0.
    CR0_SHADOW = 0x6004;
    /// Values that the guest reads in those bits of CR4.
    CR4_SHADOW = 0x6006;
    /// First value of CR3 that does not exit.
    CR3_TARGET0 = 0x6008;
    /// Second value of CR3 that does not exit.
    CR3_TARGET1 = 0x600a;
    /// Third value of CR3 that does not exit.
    CR3_TARGET2 = 0x600c;
    /// Fourth value of CR3 that does not exit.
    CR3_TARGET3 = 0x600e;
    /// Details of the exit, beyond its reason.
    EXIT_QUALIFICATION = 0x6400;
    /// RCX before an I/O instruction that entered SMM.
    IO_RCX = 0x6402;
    /// RSI before an I/O instruction that entered SMM.
    IO_RSI = 0x6404;
    /// RDI before an I/O instruction that entered SMM.
    IO_RDI = 0x6406;
    /// RIP before an I/O instruction that entered SMM.
    IO_RIP = 0x6408;
    /// Linear address of the last EPT violation.
    GUEST_LINEAR_ADDRESS = 0x640a;
    /// CR0 of the guest.
    GUEST_CR0 = 0x6800;
    /// CR3 of the guest.
    GUEST_CR3 = 0x6802;
    /// CR4 of the guest.
    GUEST_CR4 = 0x6804;
    /// Base of the guest's ES.
    GUEST_ES_BASE = 0x6806;
    /// Base of the guest's CS.
    GUEST_CS_BASE = 0x6808;
    /// Base of the guest's SS.
    GUEST_SS_BASE = 0x680a;
    /// Base of the guest's DS.
    GUEST_DS_BASE = 0x680c;
    /// Base of the guest's FS.
    GUEST_FS_BASE = 0x680e;
    /// Base of the guest's GS.
    GUEST_GS_BASE = 0x6810;
    /// Base of the guest's LDTR.
    GUEST_LDTR_BASE = 0x6812;
    /// Base of the guest's TR.
    GUEST_TR_BASE = 0x6814;
    /// Base of the guest's GDTR.
    GUEST_GDTR_BASE = 0x6816;
    /// Base of the guest's IDTR.
    GUEST_IDTR_BASE = 0x6818;
    /// DR7 of the guest.
    GUEST_DR7 = 0x681a;
    /// RSP of the guest.
    GUEST_RSP = 0x681c;
    /// RIP of the guest.
    GUEST_RIP = 0x681e;
    /// RFLAGS of the guest.
    GUEST_RFLAGS = 0x6820;
    /// Debug exceptions that wait.
    GUEST_PENDING_DEBUG = 0x6822;
    /// SYSENTER_ESP of the guest.
    GUEST_SYSENTER_ESP = 0x6824;
    /// SYSENTER_EIP of the guest.
    GUEST_SYSENTER_EIP = 0x6826;
    /// S_CET of the guest.
    GUEST_S_CET = 0x6828;
    /// Shadow-stack pointer of the guest.
    GUEST_SSP = 0x682a;
    /// Table of shadow-stack pointers of the guest.
    GUEST_INTERRUPT_SSP_TABLE = 0x682c;
    /// CR0 of the host.
    HOST_CR0 = 0x6c00;
    /// CR3 of the host.
    HOST_CR3 = 0x6c02;
    /// CR4 of the host.
    HOST_CR4 = 0x6c04;
    /// Base of the host's FS.
    HOST_FS_BASE = 0x6c06;
    /// Base of the host's GS.
    HOST_GS_BASE = 0x6c08;
    /// Base of the host's TR.
    HOST_TR_BASE = 0x6c0a;
    /// Base of the host's GDTR.
    HOST_GDTR_BASE = 0x6c0c;
    /// Base of the host's IDTR.
    HOST_IDTR_BASE = 0x6c0e;
    /// SYSENTER_ESP of the host.
    HOST_SYSENTER_ESP = 0x6c10;
    /// SYSENTER_EIP of the host.
    HOST_SYSENTER_EIP = 0x6c12;
    /// RSP of the host.
    HOST_RSP = 0x6c14;
    /// RIP of the host.
    HOST_RIP = 0x6c16;
    /// S_CET of the host.
    HOST_S_CET = 0x6c18;
    /// Shadow-stack pointer of the host.
    HOST_SSP = 0x6c1a;
    /// Table of shadow-stack pointers of the host.
    HOST_INTERRUPT_SSP_TABLE = 0x6c1c;
}

/// A group of fields, one for each segment register, stands in the registers'
/// order, two apart.
const fn of(first: u16, register: SegmentRegister) -> u16 {
    first + 2 * register as u16
}

impl Field16 {
    /// The guest's selector of `register`.
    #[must_use]
    pub const fn guest_selector(register: SegmentRegister) -> Self {
        Self(of(Self::GUEST_ES_SELECTOR.0, register))
    }
}

impl Field32 {
    /// The guest's limit of `register`.
    #[must_use]
    pub const fn guest_limit(register: SegmentRegister) -> Self {
        Self(of(Self::GUEST_ES_LIMIT.0, register))
    }

    /// The guest's access rights of `register`.
    #[must_use]
    pub const fn guest_rights(register: SegmentRegister) -> Self {
        Self(of(Self::GUEST_ES_RIGHTS.0, register))
    }
}

impl FieldNatural {
    /// The guest's base of `register`.
    #[must_use]
    pub const fn guest_base(register: SegmentRegister) -> Self {
        Self(of(Self::GUEST_ES_BASE.0, register))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bits 14:13 of an encoding are the width, bit 0 the half of a 64-bit
    /// field, bit 12 reserved (SDM: "Structure of VMCS Component Encoding").
    #[test]
    fn encodings_tell_their_width() {
        fn check(codes: impl Iterator<Item = (&'static str, u16)>, width: u16) {
            let mut last = None;
            for (name, code) in codes {
                assert_eq!(code >> 13, width, "{name}");
                assert_eq!(code & 0x1001, 0, "{name}");
                assert!(last < Some(code), "{name} is out of order");
                last = Some(code);
            }
        }
        check(Field16::ALL.iter().map(|(n, f)| (*n, f.0)), 0);
        check(Field64::ALL.iter().map(|(n, f)| (*n, f.0)), 1);
        check(Field32::ALL.iter().map(|(n, f)| (*n, f.0)), 2);
        check(FieldNatural::ALL.iter().map(|(n, f)| (*n, f.0)), 3);
    }

    #[test]
    fn segments() {
        use SegmentRegister::{Cs, Ldtr, Tr};
        assert_eq!(Field16::guest_selector(Tr), Field16::GUEST_TR_SELECTOR);
        assert_eq!(Field32::guest_limit(Cs), Field32::GUEST_CS_LIMIT);
        assert_eq!(Field32::guest_rights(Ldtr), Field32::GUEST_LDTR_RIGHTS);
        assert_eq!(FieldNatural::guest_base(Tr), FieldNatural::GUEST_TR_BASE);
    }
}
