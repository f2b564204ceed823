//! [`VmExit`]: why a guest stopped, free of vendor.

use crate::addr::{GuestPhysAddr, GuestVirtAddr};
use crate::bits::Width;
use crate::event::{Event, Exception};
use crate::reg::{Gpr, SegmentRegister};
use bitflags::bitflags;

/// IN or OUT.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    /// IN: the guest reads.
    In,
    /// OUT: the guest writes.
    Out,
}

/// IN or OUT, between a port and AL, AX or EAX.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PlainPort {
    /// The port.
    pub port: u16,
    /// Width of the access: 1, 2 or 4 bytes.
    pub width: Width,
    /// Direction of the access.
    pub direction: Direction,
}

/// INS or OUTS, as opposed to a single IN or OUT.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct StringIo {
    /// A REP prefix stands before it.
    pub rep: bool,
    /// The address size, if the CPU tells it.
    pub address_width: Option<Width>,
    /// The segment of the memory operand, if the CPU tells it.
    pub segment: Option<SegmentRegister>,
}

/// An access to a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PortIo {
    /// The port.
    pub port: u16,
    /// One, two or four bytes.
    pub width: Width,
    /// IN or OUT.
    pub direction: Direction,
    /// Set for INS and OUTS.
    pub string: Option<StringIo>,
}

bitflags! {
    /// Kind of the access that met a nested page fault.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    pub struct NestedAccess: u8 {
        /// A write.
        const WRITE = 1 << 0;
        /// An instruction fetch.
        const FETCH = 1 << 1;
        /// The CPU was walking the guest's page tables.
        const WALK = 1 << 2;
        /// A translation was there, with too few rights.
        const PRESENT = 1 << 3;
    }
}

/// A guest-physical access that the nested tables did not allow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct NestedFault {
    /// Guest-physical address of the access.
    pub gpa: GuestPhysAddr,
    /// Kind of the access.
    pub access: NestedAccess,
    /// The linear address, if the CPU tells it.
    pub gva: Option<GuestVirtAddr>,
}

/// An access to a control register.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CrAccess {
    /// MOV from a control register.
    Read {
        /// Number of the register: 0, 2, 3, 4 or 8.
        cr: u8,
        /// The general register; `None` where the instruction must be decoded.
        gpr: Option<Gpr>,
    },
    /// MOV to a control register.
    Write {
        /// Number of the register: 0, 2, 3, 4 or 8.
        cr: u8,
        /// The general register; `None` where the instruction must be decoded.
        gpr: Option<Gpr>,
    },
    /// CLTS.
    Clts,
    /// LMSW; the value, if the CPU tells it.
    Lmsw(Option<u16>),
}

/// An access to a debug register.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct DrAccess {
    /// Number of the register: 0 to 7.
    pub dr: u8,
    /// MOV to the register, not from it.
    pub write: bool,
    /// The general register; `None` where the instruction must be decoded.
    pub gpr: Option<Gpr>,
}

/// An instruction that manages caches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CacheControl {
    /// INVD.
    Invd,
    /// WBINVD or WBNOINVD.
    Wbinvd,
    /// INVLPG.
    Invlpg(Option<GuestVirtAddr>),
    /// INVPCID.
    Invpcid,
}

/// An access to a descriptor-table register.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DescriptorTableAccess {
    /// LGDT, SGDT, LIDT or SIDT.
    GdtrIdtr,
    /// LLDT, SLDT, LTR or STR.
    LdtrTr,
}

/// MONITOR or MWAIT.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MonitorWait {
    /// MONITOR.
    Monitor,
    /// MWAIT.
    Mwait,
}

/// Kind of an access to the APIC page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ApicAccessKind {
    /// An instruction read its operand there.
    Read,
    /// An instruction wrote its operand there.
    Write,
    /// An instruction fetch.
    Fetch,
    /// The CPU delivered an event through it.
    Delivery,
    /// The CPU used it as a page table, or in another way without a linear address.
    Physical,
}

/// An access to the APIC page that the CPU does not virtualize by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ApicAccess {
    /// Offset in the page, if the CPU tells it.
    pub offset: Option<u16>,
    /// Kind of the access.
    pub kind: ApicAccessKind,
}

/// A write to the virtual-APIC page that the CPU completed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ApicWrite {
    /// Offset in the page, 0 to 0xfff.
    pub offset: u16,
    /// New value of the register.
    pub value: u32,
}

/// The cause of a task switch (SDM: "Exit Qualification for Task Switches").
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TaskSwitchSource {
    /// CALL.
    Call,
    /// IRET with RFLAGS.NT set.
    Iret,
    /// JMP.
    Jump,
    /// A task gate in the IDT: an interrupt, an exception or INT n.
    Gate,
}

/// A task switch that the guest asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TaskSwitch {
    /// The new task's selector.
    pub selector: u16,
    /// The cause.
    pub source: TaskSwitchSource,
}

/// An exception that was intercepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ExceptionExit {
    /// The exception.
    pub exception: Exception,
    /// The error code, if the exception has one.
    pub error_code: Option<u32>,
    /// For #PF: the address.
    pub address: Option<u64>,
}

/// An exit exactly as the hardware reported it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RawExit {
    /// VT-x: the exit reason. AMD-V: EXITCODE.
    pub reason: u64,
    /// VT-x: the exit qualification. AMD-V: EXITINFO1.
    pub info1: u64,
    /// VT-x: the guest-physical address. AMD-V: EXITINFO2.
    pub info2: u64,
}

/// Why the guest stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum VmExit {
    /// IN, OUT, INS or OUTS.
    PortIo(PortIo),
    /// A guest-physical access that the nested tables did not allow.
    NestedFault(NestedFault),
    /// CPUID.
    Cpuid,
    /// RDMSR; the number is in ECX.
    ReadMsr,
    /// WRMSR; the number is in ECX.
    WriteMsr,
    /// VMCALL or VMMCALL.
    Hypercall,
    /// An access to a control register.
    CrAccess(CrAccess),
    /// An access to a debug register.
    DrAccess(DrAccess),
    /// XSETBV.
    Xsetbv,
    /// HLT.
    Halt,
    /// MONITOR or MWAIT.
    Monitor(MonitorWait),
    /// PAUSE, in a loop where the CPU can tell.
    Pause,
    /// INVD, WBINVD, INVLPG or INVPCID.
    CacheControl(CacheControl),
    /// An access to GDTR, IDTR, LDTR or TR.
    DescriptorTable(DescriptorTableAccess),
    /// A task switch.
    TaskSwitch(TaskSwitch),
    /// An instruction of VT-x or AMD-V itself; guests are not offered either.
    VirtualizationInstruction,
    /// Another instruction that CPUID offers to no guest, but that exits all the same.
    Unoffered,
    /// RDPMC.
    Rdpmc,
    /// RDTSC or RDTSCP.
    Rdtsc,
    /// An exception that is intercepted.
    Exception(ExceptionExit),
    /// An interrupt of the machine.
    HostInterrupt,
    /// A non-maskable interrupt of the machine.
    Nmi,
    /// A machine check.
    MachineCheck,
    /// The guest can take an interrupt now.
    InterruptWindow,
    /// The guest can take an NMI now (on AMD-V: it executes IRET).
    NmiWindow,
    /// The preemption timer ran out.
    TimesliceExpired,
    /// The guest lowered its task priority below the threshold.
    TaskPriorityLowered,
    /// An access to the APIC page that must be emulated.
    ApicAccess(ApicAccess),
    /// A completed write to the virtual-APIC page, with effects to follow.
    ApicWrite(ApicWrite),
    /// A virtualized EOI that must be broadcast.
    VirtualEoi(u8),
    /// The log of dirty pages is full.
    DirtyLogFull,
    /// INIT.
    Init,
    /// A start-up IPI with this vector.
    StartupIpi(u8),
    /// The guest shut its CPU down: a triple fault.
    TripleFault,
    /// The hardware refused the guest's state or an entry of its nested tables:
    /// our bug.
    InvalidState(RawExit),
    /// A check before the entry found that the hardware would refuse the
    /// guest's state: the rule that is broken.
    BrokenRule(&'static str),
    /// An exit that the hypervisor does not know.
    Unhandled(RawExit),
}

/// An exit together with the event whose delivery it interrupted, which must
/// be delivered again (AMD-V: EXITINTINFO; VT-x: IDT-vectoring information).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExitWithEvent {
    /// Why the guest stopped.
    pub exit: VmExit,
    /// The event to deliver again.
    pub interrupted: Option<Event>,
}

impl ExitWithEvent {
    /// An exit that has interrupted nothing and asks for nothing but a look around.
    pub const NOTHING: Self = Self { exit: VmExit::TimesliceExpired, interrupted: None };
}
