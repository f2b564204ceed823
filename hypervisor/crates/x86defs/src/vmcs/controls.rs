//! Control words and the capability MSRs that say which bits a CPU allows
//! (SDM: "VMX Capability Reporting Facility").

use crate::bits::{Low, high32};
use bitfield_struct::bitfield;
use bitflags::bitflags;

bitflags! {
    /// Pin-based controls.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct PinControls: u32 {
        /// Interrupts of the machine exit.
        const EXTERNAL_INTERRUPT_EXITING = 1 << 0;
        /// NMIs exit.
        const NMI_EXITING = 1 << 3;
        /// NMIs of the guest have their own blocking.
        const VIRTUAL_NMIS = 1 << 5;
        /// The preemption timer counts.
        const PREEMPTION_TIMER = 1 << 6;
        /// Posted interrupts are processed.
        const POSTED_INTERRUPTS = 1 << 7;
    }
}

bitflags! {
    /// Primary processor-based controls.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct PrimaryControls: u32 {
        /// An exit once the guest can take an interrupt.
        const INTERRUPT_WINDOW = 1 << 2;
        /// The TSC offset applies.
        const TSC_OFFSETTING = 1 << 3;
        /// HLT exits.
        const HLT_EXITING = 1 << 7;
        /// INVLPG exits.
        const INVLPG_EXITING = 1 << 9;
        /// MWAIT exits.
        const MWAIT_EXITING = 1 << 10;
        /// RDPMC exits.
        const RDPMC_EXITING = 1 << 11;
        /// RDTSC exits.
        const RDTSC_EXITING = 1 << 12;
        /// MOV to CR3 exits.
        const CR3_LOAD_EXITING = 1 << 15;
        /// MOV from CR3 exits.
        const CR3_STORE_EXITING = 1 << 16;
        /// Tertiary controls apply.
        const TERTIARY = 1 << 17;
        /// MOV to CR8 exits.
        const CR8_LOAD_EXITING = 1 << 19;
        /// MOV from CR8 exits.
        const CR8_STORE_EXITING = 1 << 20;
        /// CR8 is the virtual APIC's task priority.
        const TPR_SHADOW = 1 << 21;
        /// An exit once the guest can take an NMI.
        const NMI_WINDOW = 1 << 22;
        /// MOV DR exits.
        const MOV_DR_EXITING = 1 << 23;
        /// IN and OUT exit, whatever the bitmaps say.
        const UNCONDITIONAL_IO_EXITING = 1 << 24;
        /// The I/O bitmaps apply.
        const IO_BITMAPS = 1 << 25;
        /// An exit after each instruction.
        const MONITOR_TRAP = 1 << 27;
        /// The MSR bitmap applies.
        const MSR_BITMAP = 1 << 28;
        /// MONITOR exits.
        const MONITOR_EXITING = 1 << 29;
        /// PAUSE exits.
        const PAUSE_EXITING = 1 << 30;
        /// Secondary controls apply.
        const SECONDARY = 1 << 31;
    }
}

bitflags! {
    /// Secondary processor-based controls.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct SecondaryControls: u32 {
        /// Accesses to the APIC-access page are treated specially.
        const VIRTUAL_APIC_ACCESSES = 1 << 0;
        /// Extended page tables.
        const EPT = 1 << 1;
        /// LGDT and their kin exit.
        const DESCRIPTOR_TABLE_EXITING = 1 << 2;
        /// RDTSCP and RDPID exist.
        const RDTSCP = 1 << 3;
        /// x2APIC MSRs are treated specially.
        const VIRTUAL_X2APIC = 1 << 4;
        /// Virtual-processor identifiers.
        const VPID = 1 << 5;
        /// WBINVD exits.
        const WBINVD_EXITING = 1 << 6;
        /// The guest may run without paging and in real mode.
        const UNRESTRICTED_GUEST = 1 << 7;
        /// Reads of the APIC are served from the virtual-APIC page.
        const APIC_REGISTER_VIRTUALIZATION = 1 << 8;
        /// Interrupts are delivered without exits.
        const VIRTUAL_INTERRUPT_DELIVERY = 1 << 9;
        /// Loops of PAUSE exit.
        const PAUSE_LOOP_EXITING = 1 << 10;
        /// RDRAND exits.
        const RDRAND_EXITING = 1 << 11;
        /// INVPCID exists.
        const INVPCID = 1 << 12;
        /// VMFUNC exists.
        const VMFUNC = 1 << 13;
        /// VMREAD and VMWRITE of the guest use a shadow VMCS.
        const VMCS_SHADOWING = 1 << 14;
        /// ENCLS exits.
        const ENCLS_EXITING = 1 << 15;
        /// RDSEED exits.
        const RDSEED_EXITING = 1 << 16;
        /// Pages written to are logged.
        const PML = 1 << 17;
        /// EPT violations become exceptions.
        const VIRTUALIZATION_EXCEPTIONS = 1 << 18;
        /// Non-root operation is concealed from Processor Trace.
        const CONCEAL_FROM_PT = 1 << 19;
        /// XSAVES and XRSTORS exist.
        const XSAVES = 1 << 20;
        /// EPT tells user from supervisor execution.
        const MODE_BASED_EXECUTE = 1 << 22;
        /// Write permissions of parts of pages.
        const SUB_PAGE_PERMISSIONS = 1 << 23;
        /// Processor Trace uses guest-physical addresses.
        const PT_GUEST_PHYSICAL = 1 << 24;
        /// The TSC multiplier applies.
        const TSC_SCALING = 1 << 25;
        /// UMWAIT and TPAUSE exist.
        const USER_WAIT = 1 << 26;
        /// ENCLV exits.
        const ENCLV_EXITING = 1 << 28;
    }
}

bitflags! {
    /// Exit controls.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct ExitControls: u32 {
        /// DR7 and DEBUGCTL of the guest are saved.
        const SAVE_DEBUG = 1 << 2;
        /// The host runs in 64-bit mode.
        const HOST_64_BIT = 1 << 9;
        /// PERF_GLOBAL_CTRL of the host is loaded.
        const LOAD_PERF_GLOBAL_CTRL = 1 << 12;
        /// The interrupt that caused the exit is acknowledged.
        const ACKNOWLEDGE_INTERRUPT = 1 << 15;
        /// PAT of the guest is saved.
        const SAVE_PAT = 1 << 18;
        /// PAT of the host is loaded.
        const LOAD_PAT = 1 << 19;
        /// EFER of the guest is saved.
        const SAVE_EFER = 1 << 20;
        /// EFER of the host is loaded.
        const LOAD_EFER = 1 << 21;
        /// The preemption timer's rest is saved.
        const SAVE_PREEMPTION_TIMER = 1 << 22;
        /// BNDCFGS is cleared.
        const CLEAR_BNDCFGS = 1 << 23;
        /// Exits are concealed from Processor Trace.
        const CONCEAL_FROM_PT = 1 << 24;
        /// RTIT_CTL is cleared.
        const CLEAR_RTIT_CTL = 1 << 25;
        /// CET state of the host is loaded.
        const LOAD_CET = 1 << 28;
        /// PKRS of the host is loaded.
        const LOAD_PKRS = 1 << 29;
    }
}

bitflags! {
    /// Entry controls.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct EntryControls: u32 {
        /// DR7 and DEBUGCTL of the guest are loaded.
        const LOAD_DEBUG = 1 << 2;
        /// The guest is in long mode.
        const IA32E_GUEST = 1 << 9;
        /// The entry goes to system-management mode.
        const ENTRY_TO_SMM = 1 << 10;
        /// Ends the dual-monitor treatment.
        const DEACTIVATE_DUAL_MONITOR = 1 << 11;
        /// PERF_GLOBAL_CTRL of the guest is loaded.
        const LOAD_PERF_GLOBAL_CTRL = 1 << 13;
        /// PAT of the guest is loaded.
        const LOAD_PAT = 1 << 14;
        /// EFER of the guest is loaded.
        const LOAD_EFER = 1 << 15;
        /// BNDCFGS of the guest is loaded.
        const LOAD_BNDCFGS = 1 << 16;
        /// Entries are concealed from Processor Trace.
        const CONCEAL_FROM_PT = 1 << 17;
        /// RTIT_CTL of the guest is loaded.
        const LOAD_RTIT_CTL = 1 << 18;
        /// CET state of the guest is loaded.
        const LOAD_CET = 1 << 20;
        /// PKRS of the guest is loaded.
        const LOAD_PKRS = 1 << 22;
    }
}

/// Required bits that a CPU does not allow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct MissingControls(pub(crate) u32);

/// Bits that a capability MSR allows in a control word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ControlCapability {
    /// Bits that must be 1.
    pub must: u32,
    /// Bits that may be 1.
    pub may: u32,
}

impl ControlCapability {
    /// The bits in the MSR's value.
    #[must_use]
    pub fn from_msr(value: u64) -> Self {
        Self { must: value.low32(), may: high32(value) }
    }

    /// A control word with all of `required`, as much of `optional` as there
    /// is, and the bits that must be 1.
    ///
    /// # Errors
    /// [`MissingControls`] where a required bit may not be 1.
    pub(crate) const fn settle(self, required: u32, optional: u32) -> Result<u32, MissingControls> {
        match required & !self.may {
            0 => Ok(required | optional & self.may | self.must),
            missing => Err(MissingControls(missing)),
        }
    }
}

/// IA32_VMX_BASIC (SDM: "Basic VMX Information").
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct VmxBasic {
    /// Revision, in the first word of a VMCS or VMXON region.
    #[bits(31)]
    pub revision: u32,
    __: bool,
    /// Bytes of a VMCS.
    #[bits(13)]
    pub size: u16,
    #[bits(3)]
    __: u8,
    /// Structures lie below 4 GiB.
    pub below_4g: bool,
    /// Dual-monitor treatment.
    pub dual_monitor: bool,
    /// Memory type of the structures: 6 is write-back.
    #[bits(4)]
    pub memory_type: u8,
    /// INS and OUTS report their operands.
    pub reports_string_io: bool,
    /// The TRUE capability MSRs are there.
    pub true_controls: bool,
    /// A hardware exception may be injected with or without an error code.
    pub any_error_code: bool,
    #[bits(7)]
    __: u8,
}

/// IA32_VMX_MISC (SDM: "Miscellaneous Data").
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct VmxMisc {
    /// The preemption timer counts down when this bit of the TSC changes.
    #[bits(5)]
    pub preemption_timer_rate: u8,
    /// Exits store EFER.LMA in the entry controls.
    pub stores_long_mode: bool,
    /// Activity states 1 (halted), 2 (shut down) and 3 (waits for a start-up
    /// IPI) that there are, a bit each.
    #[bits(3)]
    pub activity_states: u8,
    #[bits(7)]
    __: u8,
    /// CR3 targets that there are.
    #[bits(9)]
    pub cr3_targets: u16,
    #[bits(5)]
    __: u8,
    /// A software event may be injected with the instruction length 0.
    pub injects_length_0: bool,
    #[bits(33)]
    __: u64,
}

bitflags! {
    /// IA32_VMX_EPT_VPID_CAP (SDM: "VPID and EPT Capabilities").
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct EptVpidCapabilities: u64 {
        /// Execute-only pages.
        const EXECUTE_ONLY = 1 << 0;
        /// Tables of four levels.
        const FOUR_LEVELS = 1 << 6;
        /// Tables of five levels.
        const FIVE_LEVELS = 1 << 7;
        /// Uncacheable tables.
        const UNCACHEABLE = 1 << 8;
        /// Write-back tables.
        const WRITE_BACK = 1 << 14;
        /// Pages of 2 MiB.
        const PAGES_2M = 1 << 16;
        /// Pages of 1 GiB.
        const PAGES_1G = 1 << 17;
        /// INVEPT.
        const INVEPT = 1 << 20;
        /// Accessed and dirty flags.
        const ACCESSED_DIRTY = 1 << 21;
        /// EPT violations tell more about the access.
        const ADVANCED_INFORMATION = 1 << 22;
        /// Supervisor shadow stacks have a permission of their own.
        const SHADOW_STACK = 1 << 23;
        /// INVEPT of one root.
        const INVEPT_SINGLE = 1 << 25;
        /// INVEPT of everything.
        const INVEPT_ALL = 1 << 26;
        /// INVVPID.
        const INVVPID = 1 << 32;
        /// INVVPID of an address.
        const INVVPID_ADDRESS = 1 << 40;
        /// INVVPID of one identifier.
        const INVVPID_SINGLE = 1 << 41;
        /// INVVPID of everything.
        const INVVPID_ALL = 1 << 42;
        /// INVVPID of one identifier but for global pages.
        const INVVPID_SINGLE_KEEP_GLOBALS = 1 << 43;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settling() {
        let capability = ControlCapability::from_msr(0x0000_00ff_0000_0016);
        assert_eq!(capability.settle(1, 1 << 3), Ok(0x1f));
        // An optional bit that is missing is left out.
        assert_eq!(capability.settle(1, 1 << 20), Ok(0x17));
        // A required bit that is missing is named.
        assert_eq!(capability.settle(1 | 1 << 9, 0), Err(MissingControls(1 << 9)));
    }

    #[test]
    fn misc() {
        // The register of a Haswell: all states, four targets.
        let misc = VmxMisc::from_bits(0x0000_0000_2004_01e5);
        assert_eq!(misc.preemption_timer_rate(), 5);
        assert!(misc.stores_long_mode() && !misc.injects_length_0());
        assert_eq!(misc.activity_states(), 7);
        assert_eq!(misc.cr3_targets(), 4);
        assert!(VmxMisc::from_bits(1 << 30).injects_length_0());
    }

    #[test]
    fn basic() {
        let basic = VmxBasic::from_bits(0x00d8_1000_0000_002b);
        assert_eq!(basic.revision(), 0x2b);
        assert_eq!(basic.size(), 0x1000);
        assert_eq!(basic.memory_type(), 6);
        assert!(basic.reports_string_io() && basic.true_controls());
        assert!(!basic.below_4g() && !basic.any_error_code());
    }
}
