//! The virtual-machine control block of AMD-V
//! (APM volume 2: "Layout of VMCB"), its bit fields, and [`decode()`], which
//! turns EXITCODE and its companions into a [`VmExit`](crate::VmExit).

pub mod check;
mod decode;
mod dump;
mod intercepts;

pub use decode::{
    ExitCode, byte_port, decode, interrupted_event, is_first_touch, is_low_byte_port, plain_port,
};
pub use dump::dump;
pub use intercepts::Intercepts;

use crate::segment::{Segment, SegmentAttributes};
use bitfield_struct::bitfield;
use bitflags::bitflags;
use core::mem::{offset_of, size_of};

bitflags! {
    /// Intercept vector 3 (offset 0x00c).
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    #[repr(transparent)]
    pub struct Intercepts3: u32 {
        /// Interrupts of the machine.
        const INTR = 1 << 0;
        /// Non-maskable interrupts.
        const NMI = 1 << 1;
        /// System-management interrupts.
        const SMI = 1 << 2;
        /// INIT.
        const INIT = 1 << 3;
        /// The guest becomes able to take a virtual interrupt.
        const VINTR = 1 << 4;
        /// Writes of CR0 that change bits other than TS and MP.
        const CR0_SELECTIVE = 1 << 5;
        /// SIDT.
        const IDTR_READ = 1 << 6;
        /// SGDT.
        const GDTR_READ = 1 << 7;
        /// SLDT.
        const LDTR_READ = 1 << 8;
        /// STR.
        const TR_READ = 1 << 9;
        /// LIDT.
        const IDTR_WRITE = 1 << 10;
        /// LGDT.
        const GDTR_WRITE = 1 << 11;
        /// LLDT.
        const LDTR_WRITE = 1 << 12;
        /// LTR.
        const TR_WRITE = 1 << 13;
        /// RDTSC.
        const RDTSC = 1 << 14;
        /// RDPMC.
        const RDPMC = 1 << 15;
        /// PUSHF.
        const PUSHF = 1 << 16;
        /// POPF.
        const POPF = 1 << 17;
        /// CPUID.
        const CPUID = 1 << 18;
        /// RSM.
        const RSM = 1 << 19;
        /// IRET.
        const IRET = 1 << 20;
        /// INT n.
        const INTN = 1 << 21;
        /// INVD.
        const INVD = 1 << 22;
        /// PAUSE.
        const PAUSE = 1 << 23;
        /// HLT.
        const HLT = 1 << 24;
        /// INVLPG.
        const INVLPG = 1 << 25;
        /// INVLPGA.
        const INVLPGA = 1 << 26;
        /// Ports that the I/O permission map marks.
        const IOIO_PROT = 1 << 27;
        /// MSRs that the MSR permission map marks.
        const MSR_PROT = 1 << 28;
        /// Task switches.
        const TASK_SWITCH = 1 << 29;
        /// FERR.
        const FERR_FREEZE = 1 << 30;
        /// Shutdown: a triple fault.
        const SHUTDOWN = 1 << 31;
    }
}

bitflags! {
    /// Intercept vector 4 (offset 0x010).
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    #[repr(transparent)]
    pub struct Intercepts4: u32 {
        /// VMRUN; must be set.
        const VMRUN = 1 << 0;
        /// VMMCALL.
        const VMMCALL = 1 << 1;
        /// VMLOAD.
        const VMLOAD = 1 << 2;
        /// VMSAVE.
        const VMSAVE = 1 << 3;
        /// STGI.
        const STGI = 1 << 4;
        /// CLGI.
        const CLGI = 1 << 5;
        /// SKINIT.
        const SKINIT = 1 << 6;
        /// RDTSCP.
        const RDTSCP = 1 << 7;
        /// INT1.
        const ICEBP = 1 << 8;
        /// WBINVD and WBNOINVD.
        const WBINVD = 1 << 9;
        /// MONITOR and MONITORX.
        const MONITOR = 1 << 10;
        /// MWAIT and MWAITX.
        const MWAIT = 1 << 11;
        /// MWAIT, if the monitor is armed.
        const MWAIT_ARMED = 1 << 12;
        /// XSETBV.
        const XSETBV = 1 << 13;
        /// RDPRU.
        const RDPRU = 1 << 14;
    }
}

/// TLB_CONTROL (offset 0x05c; APM: "TLB Control").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum TlbControl {
    /// Flush nothing.
    Nothing = 0,
    /// Flush everything, of all ASIDs.
    All = 1,
    /// Flush this guest's entries (with flush-by-ASID only).
    ThisAsid = 3,
}

/// Virtual interrupts (offset 0x060; APM: "Virtual Interrupts").
#[bitfield(u64)]
pub struct VirtualInterrupt {
    /// V_TPR: the guest's CR8.
    pub tpr: u8,
    /// V_IRQ: a virtual interrupt is pending.
    pub irq: bool,
    /// V_GIF.
    pub gif: bool,
    #[bits(6)]
    __: u8,
    /// V_INTR_PRIO.
    #[bits(4)]
    pub priority: u8,
    /// V_IGN_TPR.
    pub ignore_tpr: bool,
    #[bits(3)]
    __: u8,
    /// V_INTR_MASKING: IF and CR8 are the guest's own.
    pub masking: bool,
    /// Virtual GIF enabled.
    pub gif_enable: bool,
    #[bits(5)]
    __: u8,
    /// AVIC enabled.
    pub avic_enable: bool,
    /// V_INTR_VECTOR.
    pub vector: u8,
    #[bits(24)]
    __: u32,
}

/// EVENTINJ and EXITINTINFO (APM: "Event Injection").
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct EventInjection {
    /// The vector.
    pub vector: u8,
    /// 0 interrupt, 2 NMI, 3 exception, 4 software interrupt.
    #[bits(3)]
    pub kind: u8,
    /// An error code is pushed.
    pub error_code_valid: bool,
    #[bits(19)]
    __: u32,
    /// There is an event at all.
    pub valid: bool,
    /// The error code.
    pub error_code: u32,
}

bitflags! {
    /// VMCB clean bits (offset 0x0c0; APM: "VMCB State Caching"): a set bit
    /// says that the field group was not changed since the last exit.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    #[repr(transparent)]
    pub struct Clean: u32 {
        /// Intercepts, TSC offset, pause filter.
        const INTERCEPTS = 1 << 0;
        /// Permission maps.
        const IOPM = 1 << 1;
        /// ASID.
        const ASID = 1 << 2;
        /// V_TPR and its neighbours.
        const TPR = 1 << 3;
        /// Nested paging.
        const NP = 1 << 4;
        /// CR0, CR3, CR4, EFER.
        const CR = 1 << 5;
        /// DR6, DR7.
        const DR = 1 << 6;
        /// GDTR, IDTR.
        const DT = 1 << 7;
        /// CS, DS, SS, ES, CPL.
        const SEG = 1 << 8;
        /// CR2.
        const CR2 = 1 << 9;
        /// Debug control and last branch.
        const LBR = 1 << 10;
        /// AVIC.
        const AVIC = 1 << 11;
    }
}

/// A segment register as a VMCB holds it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct VmcbSegment {
    /// Selector.
    pub selector: u16,
    /// Attributes, packed to 12 bits.
    pub attributes: u16,
    /// Limit in bytes.
    pub limit: u32,
    /// Base.
    pub base: u64,
}

impl From<Segment> for VmcbSegment {
    fn from(s: Segment) -> Self {
        Self {
            selector: s.selector,
            attributes: s.attributes.to_svm(),
            limit: s.limit,
            base: s.base,
        }
    }
}

impl From<VmcbSegment> for Segment {
    fn from(s: VmcbSegment) -> Self {
        Self {
            selector: s.selector,
            attributes: SegmentAttributes::from_svm(s.attributes),
            limit: s.limit,
            base: s.base,
        }
    }
}

/// The control area, offsets 0 to 0x3ff.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Control {
    /// Reads of CR0 to CR15, a bit each.
    pub intercept_cr_read: u16,
    /// Writes of CR0 to CR15.
    pub intercept_cr_write: u16,
    /// Reads of DR0 to DR15.
    pub intercept_dr_read: u16,
    /// Writes of DR0 to DR15.
    pub intercept_dr_write: u16,
    /// Exceptions 0 to 31.
    pub intercept_exceptions: u32,
    /// Further intercepts.
    pub intercepts3: Intercepts3,
    /// Further intercepts.
    pub intercepts4: Intercepts4,
    /// Further intercepts of newer CPUs.
    pub intercepts5: u32,
    _reserved_018: [u32; 9],
    /// PAUSEs further apart than this many cycles start a new loop.
    pub pause_filter_threshold: u16,
    /// PAUSEs in a loop before one exits.
    pub pause_filter_count: u16,
    /// Physical address of the I/O permission map (12 KiB).
    pub iopm_base: u64,
    /// Physical address of the MSR permission map (8 KiB).
    pub msrpm_base: u64,
    /// Added to the TSC that the guest reads.
    pub tsc_offset: u64,
    /// Address-space identifier; 0 is the host's.
    pub asid: u32,
    /// A [`TlbControl`].
    pub tlb_control: u8,
    _reserved_05d: [u8; 3],
    /// Virtual interrupts.
    pub virtual_interrupt: VirtualInterrupt,
    /// Bit 0: interrupt shadow. Bit 1: guest interrupt mask.
    pub interrupt_shadow: u64,
    /// EXITCODE.
    pub exit_code: u64,
    /// EXITINFO1.
    pub exit_info1: u64,
    /// EXITINFO2.
    pub exit_info2: u64,
    /// EXITINTINFO.
    pub exit_int_info: EventInjection,
    /// Bit 0: nested paging.
    pub nested_control: u64,
    /// AVIC: APIC base.
    pub avic_apic_bar: u64,
    /// GHCB of encrypted guests.
    pub ghcb: u64,
    /// EVENTINJ.
    pub event_injection: EventInjection,
    /// Root of the nested page tables.
    pub nested_cr3: u64,
    /// Bit 0: last-branch virtualization. Bit 1: VMLOAD/VMSAVE virtualization.
    pub virtualization_extensions: u64,
    /// Clean bits.
    pub clean: Clean,
    _reserved_0c4: u32,
    /// RIP of the next instruction, where the CPU saves it.
    pub next_rip: u64,
    /// Number of valid bytes in `fetched`.
    pub fetched_len: u8,
    /// The instruction's bytes, with decode assists.
    pub fetched: [u8; 15],
    /// AVIC: backing page.
    pub avic_backing_page: u64,
    _reserved_0e8: u64,
    /// AVIC: logical table.
    pub avic_logical_table: u64,
    /// AVIC: physical table.
    pub avic_physical_table: u64,
    _reserved_100: [u64; 0x60],
}

/// The state-save area, offsets 0x400 to 0xfff.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Save {
    /// ES, CS, SS, DS, FS and GS, by number.
    pub segments: [VmcbSegment; 6],
    /// GDTR: base and limit.
    pub gdtr: VmcbSegment,
    /// LDTR.
    pub ldtr: VmcbSegment,
    /// IDTR: base and limit.
    pub idtr: VmcbSegment,
    /// TR.
    pub tr: VmcbSegment,
    _reserved_4a0: [u8; 0x2b],
    /// Current privilege level.
    pub cpl: u8,
    _reserved_4cc: u32,
    /// EFER.
    pub efer: u64,
    _reserved_4d8: [u64; 14],
    /// CR4.
    pub cr4: u64,
    /// CR3.
    pub cr3: u64,
    /// CR0.
    pub cr0: u64,
    /// DR7.
    pub dr7: u64,
    /// DR6.
    pub dr6: u64,
    /// RFLAGS.
    pub rflags: u64,
    /// RIP.
    pub rip: u64,
    _reserved_580: [u64; 11],
    /// RSP.
    pub rsp: u64,
    /// S_CET.
    pub s_cet: u64,
    /// Shadow-stack pointer.
    pub ssp: u64,
    /// Table of shadow-stack pointers.
    pub interrupt_ssp_table: u64,
    /// RAX.
    pub rax: u64,
    /// STAR.
    pub star: u64,
    /// LSTAR.
    pub lstar: u64,
    /// CSTAR.
    pub cstar: u64,
    /// SFMASK.
    pub sfmask: u64,
    /// KERNEL_GS_BASE.
    pub kernel_gs_base: u64,
    /// SYSENTER_CS.
    pub sysenter_cs: u64,
    /// SYSENTER_ESP.
    pub sysenter_esp: u64,
    /// SYSENTER_EIP.
    pub sysenter_eip: u64,
    /// CR2.
    pub cr2: u64,
    _reserved_648: [u64; 4],
    /// The guest's PAT, with nested paging.
    pub g_pat: u64,
    /// DEBUGCTL.
    pub debugctl: u64,
    /// Last branch: from.
    pub br_from: u64,
    /// Last branch: to.
    pub br_to: u64,
    /// Last exception: from.
    pub last_exception_from: u64,
    /// Last exception: to.
    pub last_exception_to: u64,
    _reserved_698: [u64; 0x12d],
}

/// A whole VMCB, one page.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(4096))]
pub struct Vmcb {
    /// Wishes of the hypervisor, and reports of the CPU.
    pub control: Control,
    /// The guest's registers that VMRUN loads and an exit saves.
    pub save: Save,
}

/// Bit 0 of [`Control::interrupt_shadow`].
pub const INTERRUPT_SHADOW: u64 = 1;
/// Bytes in an I/O permission map: a bit for each port, and 3 beyond the last.
pub const IOPM_SIZE: usize = 3 * 4096;
/// Bytes in an MSR permission map.
pub const MSRPM_SIZE: usize = 2 * 4096;

const _: () = {
    assert!(size_of::<Control>() == 0x400);
    assert!(size_of::<Save>() == 0xc00);
    assert!(size_of::<Vmcb>() == 0x1000);
    assert!(offset_of!(Control, pause_filter_count) == 0x03e);
    assert!(offset_of!(Control, iopm_base) == 0x040);
    assert!(offset_of!(Control, asid) == 0x058);
    assert!(offset_of!(Control, virtual_interrupt) == 0x060);
    assert!(offset_of!(Control, exit_code) == 0x070);
    assert!(offset_of!(Control, exit_int_info) == 0x088);
    assert!(offset_of!(Control, event_injection) == 0x0a8);
    assert!(offset_of!(Control, clean) == 0x0c0);
    assert!(offset_of!(Control, next_rip) == 0x0c8);
    assert!(offset_of!(Control, fetched) == 0x0d1);
    assert!(offset_of!(Control, avic_physical_table) == 0x0f8);
    assert!(offset_of!(Save, gdtr) == 0x060);
    assert!(offset_of!(Save, tr) == 0x090);
    assert!(offset_of!(Save, cpl) == 0x0cb);
    assert!(offset_of!(Save, efer) == 0x0d0);
    assert!(offset_of!(Save, cr4) == 0x148);
    assert!(offset_of!(Save, rip) == 0x178);
    assert!(offset_of!(Save, rsp) == 0x1d8);
    assert!(offset_of!(Save, s_cet) == 0x1e0);
    assert!(offset_of!(Save, rax) == 0x1f8);
    assert!(offset_of!(Save, cr2) == 0x240);
    assert!(offset_of!(Save, g_pat) == 0x268);
    assert!(offset_of!(Save, last_exception_to) == 0x290);
};
