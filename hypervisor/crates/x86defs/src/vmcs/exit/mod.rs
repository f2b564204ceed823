//! Exit reasons and their qualifications to [`VmExit`]
//! (SDM: "VMX Basic Exit Reasons", "Exit Qualification").

use super::ENTRY_FAILED;
use super::event::{InterruptionInfo, InterruptionKind};
use super::fields::Field32;
use crate::addr::{GuestPhysAddr, GuestVirtAddr};
use crate::bits::{Low, Width};
use crate::event::Exception;
use crate::exit::{
    ApicAccess, ApicAccessKind, ApicWrite, CacheControl, CrAccess, DescriptorTableAccess,
    Direction, DrAccess, ExceptionExit, MonitorWait, NestedAccess, NestedFault, PlainPort, PortIo,
    RawExit, StringIo, TaskSwitch, TaskSwitchSource, VmExit,
};
use crate::reg::{Gpr, SegmentRegister};
use bitfield_struct::bitfield;

/// A basic exit reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub struct ExitReason(pub u16);

macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident = $value:literal;)*) => {
        impl ExitReason {
            $($(#[$doc])* pub const $name: Self = Self($value);)*
        }
    };
}

reasons! {
    /// Exception or NMI.
    EXCEPTION_OR_NMI = 0;
    /// Interrupt of the machine.
    EXTERNAL_INTERRUPT = 1;
    /// Triple fault.
    TRIPLE_FAULT = 2;
    /// INIT.
    INIT = 3;
    /// Start-up IPI.
    STARTUP_IPI = 4;
    /// The guest can take an interrupt.
    INTERRUPT_WINDOW = 7;
    /// The guest can take an NMI.
    NMI_WINDOW = 8;
    /// Task switch.
    TASK_SWITCH = 9;
    /// CPUID.
    CPUID = 10;
    /// GETSEC.
    GETSEC = 11;
    /// HLT.
    HLT = 12;
    /// INVD.
    INVD = 13;
    /// INVLPG.
    INVLPG = 14;
    /// RDPMC.
    RDPMC = 15;
    /// RDTSC.
    RDTSC = 16;
    /// RSM.
    RSM = 17;
    /// VMCALL.
    VMCALL = 18;
    /// VMCLEAR; the other VMX instructions follow.
    VMCLEAR = 19;
    /// VMXON.
    VMXON = 27;
    /// Control register.
    CR_ACCESS = 28;
    /// MOV DR.
    MOV_DR = 29;
    /// IN, OUT, INS, OUTS.
    IO = 30;
    /// RDMSR.
    RDMSR = 31;
    /// WRMSR.
    WRMSR = 32;
    /// The entry failed: guest state.
    INVALID_GUEST_STATE = 33;
    /// The entry failed: loading MSRs.
    MSR_LOADING = 34;
    /// MWAIT.
    MWAIT = 36;
    /// Monitor trap flag.
    MONITOR_TRAP = 37;
    /// MONITOR.
    MONITOR = 39;
    /// PAUSE.
    PAUSE = 40;
    /// The entry failed: machine check.
    ENTRY_MACHINE_CHECK = 41;
    /// The task priority fell below the threshold.
    TPR_BELOW_THRESHOLD = 43;
    /// Access to the APIC-access page.
    APIC_ACCESS = 44;
    /// EOI that must be broadcast.
    VIRTUAL_EOI = 45;
    /// LGDT, SGDT, LIDT, SIDT.
    GDTR_IDTR = 46;
    /// LLDT, SLDT, LTR, STR.
    LDTR_TR = 47;
    /// EPT violation.
    EPT_VIOLATION = 48;
    /// EPT misconfiguration.
    EPT_MISCONFIGURATION = 49;
    /// INVEPT.
    INVEPT = 50;
    /// RDTSCP.
    RDTSCP = 51;
    /// The preemption timer ran out.
    PREEMPTION_TIMER = 52;
    /// INVVPID.
    INVVPID = 53;
    /// WBINVD, WBNOINVD.
    WBINVD = 54;
    /// XSETBV.
    XSETBV = 55;
    /// Completed write to the virtual-APIC page.
    APIC_WRITE = 56;
    /// RDRAND.
    RDRAND = 57;
    /// INVPCID.
    INVPCID = 58;
    /// VMFUNC.
    VMFUNC = 59;
    /// ENCLS.
    ENCLS = 60;
    /// RDSEED.
    RDSEED = 61;
    /// The page-modification log is full.
    PML_FULL = 62;
    /// XSAVES.
    XSAVES = 63;
    /// XRSTORS.
    XRSTORS = 64;
    /// UMWAIT.
    UMWAIT = 67;
    /// TPAUSE.
    TPAUSE = 68;
    /// SEAMCALL: no control asks for it.
    SEAMCALL = 76;
    /// TDCALL: no control asks for it.
    TDCALL = 77;
    /// RDMSR with the number in the instruction.
    RDMSR_IMMEDIATE = 84;
    /// WRMSRNS with the number in the instruction.
    WRMSR_IMMEDIATE = 85;
}

impl ExitReason {
    /// The field with the VM-exit instruction length, if the manual defines it
    /// for this reason: for the exits that an instruction causes by being
    /// executed (SDM: "Information for VM Exits Due to Instruction Execution").
    /// Of task switches it is defined for those by an instruction, INT n and its kin included.
    /// EPT violations, windows and interrupts are not among them, whatever some
    /// CPU writes there. INT1, INT3, INTO and events whose delivery was
    /// interrupted are: see
    /// [`InterruptionInfo::length_field`](super::InterruptionInfo::length_field).
    #[must_use]
    pub const fn length_field(self) -> Option<Field32> {
        let defined = matches!(
            self,
            Self::TASK_SWITCH
                | Self::CPUID
                | Self::GETSEC
                | Self::HLT
                | Self::INVD
                | Self::INVLPG
                | Self::RDPMC
                | Self::RDTSC
                | Self::RSM
                | Self::VMCALL
                | Self(19..=27)
                | Self::CR_ACCESS
                | Self::MOV_DR
                | Self::IO
                | Self::RDMSR
                | Self::WRMSR
                | Self::MWAIT
                | Self::MONITOR
                | Self::PAUSE
                | Self::GDTR_IDTR
                | Self::LDTR_TR
                | Self::INVEPT
                | Self::RDTSCP
                | Self::INVVPID
                | Self::WBINVD
                | Self::XSETBV
                | Self::RDRAND
                | Self::INVPCID
                | Self::VMFUNC
                | Self::ENCLS
                | Self::RDSEED
                | Self::XSAVES
                | Self::XRSTORS
                | Self::UMWAIT
                | Self::TPAUSE
                | Self::SEAMCALL
                | Self::TDCALL
                | Self::RDMSR_IMMEDIATE
                | Self::WRMSR_IMMEDIATE
        );
        if defined { Some(Field32::EXIT_INSTRUCTION_LENGTH) } else { None }
    }

    /// [`Self::length_field`] of several reasons at once, where each defines it.
    #[must_use]
    pub const fn common_length_field(reasons: &[Self]) -> Option<Field32> {
        let mut rest = reasons;
        while let [first, others @ ..] = rest {
            if first.length_field().is_none() {
                return None;
            }
            rest = others;
        }
        Some(Field32::EXIT_INSTRUCTION_LENGTH)
    }
}

/// Fields of the VMCS that describe an exit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ExitInformation {
    /// The exit reason, all 32 bits.
    pub reason: u32,
    /// The exit qualification.
    pub qualification: u64,
    /// The guest-physical address.
    pub guest_physical: u64,
    /// The guest-linear address.
    pub guest_linear: u64,
    /// The interruption information.
    pub interruption: u32,
    /// Error code of the interruption.
    pub interruption_error: u32,
    /// The instruction information.
    pub instruction: u32,
    /// The register of the virtual-APIC page that was written.
    pub apic_register: u32,
}

impl ExitInformation {
    /// The basic reason.
    #[must_use]
    pub fn basic(&self) -> ExitReason {
        ExitReason(self.reason.low16())
    }
}

/// SDM: "Exit Qualification for Control-Register Accesses".
#[bitfield(u64)]
struct CrQualification {
    #[bits(4)]
    cr: u8,
    /// 0: MOV to the register, 1: MOV from it, 2: CLTS, 3: LMSW.
    #[bits(2)]
    kind: u8,
    lmsw_memory: bool,
    __: bool,
    #[bits(4)]
    gpr: u8,
    #[bits(4)]
    __: u8,
    lmsw_source: u16,
    __: u32,
}

fn cr_access(qualification: u64) -> CrAccess {
    let q = CrQualification::from_bits(qualification);
    let gpr = Some(Gpr::from_number(q.gpr()));
    match q.kind() {
        0 => CrAccess::Write { cr: q.cr(), gpr },
        1 => CrAccess::Read { cr: q.cr(), gpr },
        2 => CrAccess::Clts,
        _ => CrAccess::Lmsw(Some(q.lmsw_source())),
    }
}

/// SDM: "Exit Qualification for MOV DR".
#[bitfield(u64)]
struct DrQualification {
    #[bits(3)]
    dr: u8,
    __: bool,
    from: bool,
    #[bits(3)]
    __: u8,
    #[bits(4)]
    gpr: u8,
    #[bits(52)]
    __: u64,
}

fn dr_access(qualification: u64) -> DrAccess {
    let q = DrQualification::from_bits(qualification);
    DrAccess { dr: q.dr(), write: !q.from(), gpr: Some(Gpr::from_number(q.gpr())) }
}

/// SDM: "Exit Qualification for I/O Instructions".
#[bitfield(u64)]
struct IoQualification {
    #[bits(3)]
    size_less_one: u8,
    input: bool,
    string: bool,
    rep: bool,
    immediate: bool,
    #[bits(9)]
    __: u16,
    port: u16,
    __: u32,
}

/// The access of an I/O exit, if it is no string instruction's: for the hot handler.
#[must_use]
pub const fn plain_port(qualification: u64) -> Option<PlainPort> {
    let q = IoQualification::from_bits(qualification);
    let width = match (q.size_less_one(), q.string()) {
        (0, false) => Width::B1,
        (1, false) => Width::B2,
        (3, false) => Width::B4,
        _ => return None,
    };
    Some(q.plain(width))
}

/// The same, if it is of one byte, as most are.
#[inline(always)]
#[must_use]
pub const fn byte_port(qualification: u64) -> Option<PlainPort> {
    let q = IoQualification::from_bits(qualification);
    if q.size_less_one() != 0 || q.string() {
        return None;
    }
    Some(q.plain(Width::B1))
}

/// Whether an I/O exit is a plain access of one byte to a port below 0x1000.
#[inline(always)]
#[must_use]
pub const fn is_low_byte_port(qualification: u64) -> bool {
    // The port's upper four bits, the string bit and the size.
    qualification & (0xf000_0000 | 1 << 4 | 7) == 0
}

impl IoQualification {
    #[inline(always)]
    const fn plain(self, width: Width) -> PlainPort {
        let direction = if self.input() { Direction::In } else { Direction::Out };
        PlainPort { port: self.port(), width, direction }
    }
}

/// SDM: "Format of the VM-Exit Instruction-Information Field as Used for INS and OUTS".
#[bitfield(u32)]
struct StringIoInformation {
    #[bits(7)]
    __: u8,
    /// 0: 16 bits, 1: 32 bits, 2: 64 bits.
    #[bits(3)]
    address_size: u8,
    #[bits(5)]
    __: u8,
    #[bits(3)]
    segment: u8,
    #[bits(14)]
    __: u16,
}

fn port_io(qualification: u64, information: u32) -> Option<PortIo> {
    let q = IoQualification::from_bits(qualification);
    let width = match q.size_less_one() {
        0 => Width::B1,
        1 => Width::B2,
        3 => Width::B4,
        _ => return None,
    };
    let direction = if q.input() { Direction::In } else { Direction::Out };
    let string = if q.string() {
        let information = StringIoInformation::from_bits(information);
        let address_width = match information.address_size() {
            0 => Some(Width::B2),
            1 => Some(Width::B4),
            2 => Some(Width::B8),
            _ => None,
        };
        // INS has no choice, and its segment is not reported.
        let segment = match direction {
            Direction::In => Some(SegmentRegister::Es),
            Direction::Out => {
                SegmentRegister::ALL.get(..6)?.get(usize::from(information.segment())).copied()
            }
        };
        Some(StringIo { rep: q.rep(), address_width, segment })
    } else {
        None
    };
    Some(PortIo { port: q.port(), width, direction, string })
}

/// SDM: "Exit Qualification for Task Switches".
fn task_switch(qualification: u64) -> TaskSwitch {
    let source = match qualification >> 30 & 3 {
        0 => TaskSwitchSource::Call,
        1 => TaskSwitchSource::Iret,
        2 => TaskSwitchSource::Jump,
        _ => TaskSwitchSource::Gate,
    };
    TaskSwitch { selector: qualification.low16(), source }
}

/// Offset of the register that the guest accessed or wrote, in the virtual-APIC page.
#[must_use]
pub fn apic_offset(qualification: u64) -> u16 {
    qualification.low16() & 0xfff
}

/// SDM: "Exit Qualification for APIC-Access VM Exits from Linear Accesses and
/// Guest-Physical Accesses".
fn apic_access(qualification: u64) -> Option<ApicAccess> {
    let kind = match qualification >> 12 & 0xf {
        0 => ApicAccessKind::Read,
        1 => ApicAccessKind::Write,
        2 => ApicAccessKind::Fetch,
        3 | 10 => ApicAccessKind::Delivery,
        // 4 and 11 are made by Processor Trace and the like.
        4 | 11 | 15 => ApicAccessKind::Physical,
        _ => return None,
    };
    // Guest-physical accesses leave the offset undefined.
    let linear = qualification >> 12 & 0xf < 4;
    Some(ApicAccess { offset: linear.then(|| apic_offset(qualification)), kind })
}

/// SDM: "Exit Qualification for EPT Violations".
#[bitfield(u64)]
struct EptQualification {
    read: bool,
    write: bool,
    fetch: bool,
    /// Rights that the entry gave: read, write, execute.
    #[bits(3)]
    allowed: u8,
    __: bool,
    linear_valid: bool,
    /// The access was to the translation of the linear address, not made in
    /// the course of translating it.
    translated: bool,
    #[bits(3)]
    __: u8,
    nmi_unblocked: bool,
    #[bits(51)]
    __: u64,
}

/// Whether an EPT violation met an entry that maps nothing, and left nothing to
/// be put right: no NMI was unblocked by the instruction that caused it.
#[inline(always)]
#[must_use]
pub const fn is_first_touch(qualification: u64) -> bool {
    let q = EptQualification::from_bits(qualification);
    q.allowed() == 0 && !q.nmi_unblocked()
}

fn nested_fault(information: &ExitInformation) -> NestedFault {
    let q = EptQualification::from_bits(information.qualification);
    let mut access = NestedAccess::empty();
    access.set(NestedAccess::WRITE, q.write());
    access.set(NestedAccess::FETCH, q.fetch());
    access.set(NestedAccess::PRESENT, q.allowed() != 0);
    // Without a linear address it was the CPU loading page-directory pointers.
    access.set(NestedAccess::WALK, !q.linear_valid() || !q.translated());
    NestedFault {
        gpa: GuestPhysAddr::new(information.guest_physical),
        access,
        gva: q.linear_valid().then(|| GuestVirtAddr::new(information.guest_linear)),
    }
}

/// Whether the exit undid the unblocking of NMIs by an IRET: they have to be
/// blocked again before the guest goes on (SDM: "NMI Unblocking Due to IRET").
/// `vectoring` says that the exit interrupted the delivery of an event, when
/// the bit means nothing.
#[must_use]
pub fn unblocks_nmi(information: &ExitInformation, vectoring: bool) -> bool {
    if vectoring {
        return false;
    }
    match information.basic() {
        ExitReason::EXCEPTION_OR_NMI => {
            let info = InterruptionInfo::from_bits(information.interruption);
            info.nmi_unblocked()
                && info.kind() == InterruptionKind::EXCEPTION
                && info.vector() != Exception::DF.0
        }
        ExitReason::EPT_VIOLATION | ExitReason::PML_FULL => {
            EptQualification::from_bits(information.qualification).nmi_unblocked()
        }
        _ => false,
    }
}

fn exception(information: &ExitInformation, raw: RawExit) -> VmExit {
    let info = InterruptionInfo::from_bits(information.interruption);
    let exception = Exception(info.vector());
    match info.kind() {
        _ if !info.valid() => VmExit::Unhandled(raw),
        InterruptionKind::NMI => VmExit::Nmi,
        _ if exception == Exception::MC => VmExit::MachineCheck,
        InterruptionKind::EXCEPTION
        | InterruptionKind::PRIVILEGED_SOFTWARE_EXCEPTION
        | InterruptionKind::SOFTWARE_EXCEPTION => VmExit::Exception(ExceptionExit {
            exception,
            error_code: info.error_code_valid().then_some(information.interruption_error),
            address: (exception == Exception::PF).then_some(information.qualification),
        }),
        _ => VmExit::Unhandled(raw),
    }
}

/// The exit that the fields describe.
#[must_use]
pub fn decode(information: &ExitInformation) -> VmExit {
    let qualification = information.qualification;
    let raw = RawExit {
        reason: information.reason.into(),
        info1: qualification,
        info2: information.guest_physical,
    };
    if information.reason & ENTRY_FAILED != 0 {
        return if information.basic() == ExitReason::ENTRY_MACHINE_CHECK {
            VmExit::MachineCheck
        } else {
            VmExit::InvalidState(raw)
        };
    }
    match information.basic() {
        ExitReason::EXCEPTION_OR_NMI => exception(information, raw),
        ExitReason::EXTERNAL_INTERRUPT => VmExit::HostInterrupt,
        ExitReason::TRIPLE_FAULT => VmExit::TripleFault,
        ExitReason::INIT => VmExit::Init,
        ExitReason::STARTUP_IPI => VmExit::StartupIpi(qualification.low8()),
        ExitReason::INTERRUPT_WINDOW => VmExit::InterruptWindow,
        ExitReason::NMI_WINDOW => VmExit::NmiWindow,
        ExitReason::TASK_SWITCH => VmExit::TaskSwitch(task_switch(qualification)),
        ExitReason::CPUID => VmExit::Cpuid,
        ExitReason::HLT => VmExit::Halt,
        ExitReason::INVD => VmExit::CacheControl(CacheControl::Invd),
        ExitReason::INVLPG => {
            VmExit::CacheControl(CacheControl::Invlpg(Some(GuestVirtAddr::new(qualification))))
        }
        ExitReason::RDPMC => VmExit::Rdpmc,
        ExitReason::RDTSC | ExitReason::RDTSCP => VmExit::Rdtsc,
        ExitReason::VMCALL => VmExit::Hypercall,
        ExitReason(19..=27)
        | ExitReason::GETSEC
        | ExitReason::INVEPT
        | ExitReason::INVVPID
        | ExitReason::VMFUNC => VmExit::VirtualizationInstruction,
        ExitReason::ENCLS
        | ExitReason::SEAMCALL
        | ExitReason::TDCALL
        | ExitReason::RDMSR_IMMEDIATE
        | ExitReason::WRMSR_IMMEDIATE => VmExit::Unoffered,
        ExitReason::CR_ACCESS => VmExit::CrAccess(cr_access(qualification)),
        ExitReason::MOV_DR => VmExit::DrAccess(dr_access(qualification)),
        ExitReason::IO => port_io(qualification, information.instruction)
            .map_or(VmExit::Unhandled(raw), VmExit::PortIo),
        ExitReason::RDMSR => VmExit::ReadMsr,
        ExitReason::WRMSR => VmExit::WriteMsr,
        ExitReason::MWAIT => VmExit::Monitor(MonitorWait::Mwait),
        ExitReason::MONITOR => VmExit::Monitor(MonitorWait::Monitor),
        ExitReason::PAUSE => VmExit::Pause,
        ExitReason::TPR_BELOW_THRESHOLD => VmExit::TaskPriorityLowered,
        ExitReason::APIC_ACCESS => {
            apic_access(qualification).map_or(VmExit::Unhandled(raw), VmExit::ApicAccess)
        }
        ExitReason::VIRTUAL_EOI => VmExit::VirtualEoi(qualification.low8()),
        ExitReason::GDTR_IDTR => VmExit::DescriptorTable(DescriptorTableAccess::GdtrIdtr),
        ExitReason::LDTR_TR => VmExit::DescriptorTable(DescriptorTableAccess::LdtrTr),
        ExitReason::EPT_VIOLATION => VmExit::NestedFault(nested_fault(information)),
        ExitReason::EPT_MISCONFIGURATION => VmExit::InvalidState(raw),
        ExitReason::PREEMPTION_TIMER => VmExit::TimesliceExpired,
        ExitReason::WBINVD => VmExit::CacheControl(CacheControl::Wbinvd),
        ExitReason::XSETBV => VmExit::Xsetbv,
        ExitReason::APIC_WRITE => VmExit::ApicWrite(ApicWrite {
            offset: apic_offset(qualification),
            value: information.apic_register,
        }),
        ExitReason::INVPCID => VmExit::CacheControl(CacheControl::Invpcid),
        ExitReason::PML_FULL => VmExit::DirtyLogFull,
        _ => VmExit::Unhandled(raw),
    }
}

#[cfg(test)]
mod tests;
