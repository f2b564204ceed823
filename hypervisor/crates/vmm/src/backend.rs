//! The interface of a vendor's backend: the registers of a stopped vCPU, events to inject, and a
//! way in. Nothing here says VMX or SVM.
//!
//! A backend's assembly saves the general registers into [`HotState`] and calls
//! [`crate::hot::exit::serve`], statically dispatched, which serves the hot exits and goes straight
//! back in; only an exit that `serve` declines becomes an [`ExitWithEvent`] for the general code
//! (module `exits`).

use crate::hot::timer::{HotTimer, TimerKind};
use crate::vcpu::VcpuCore;
use core::fmt;
use devices::lapic::Lapic;
use x86defs::exit::{ExitWithEvent, PlainPort};
use x86defs::{
    Cr0, Cr4, DescriptorTable, Efer, Event, GuestPhysAddr, Msr, Rflags, Segment, SegmentRegister,
};

/// The registers that the assembly saves at an exit. The assembly knows this layout.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct HotState {
    /// General registers by number. RSP's place is unused: the hardware keeps
    /// it elsewhere.
    pub gpr: [u64; 16],
    /// Time of the vCPU in ticks of the host's TSC, to the exit.
    #[cfg(feature = "stamp-exits")]
    pub stamps: crate::stamps::Stamps,
}

/// Place of an instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Instruction {
    /// RIP.
    pub rip: u64,
    /// RIP behind the instruction.
    pub next_rip: u64,
}

/// Requests that the hot handler may make to a backend.
pub trait ExitRegs {
    /// RIP.
    fn rip(&self) -> u64;

    /// The instruction that caused the exit, where the hardware tells cheaply
    /// where it ends.
    fn instruction(&self) -> Option<Instruction>;

    /// Completes that instruction: RIP, interrupt shadow. Declines (`false`,
    /// nothing done) where the guest has one of the flags `hold`: TF, as a trap
    /// is due after it; RF, as it ends with it.
    fn advance(&mut self, instruction: Instruction, hold: Rflags) -> bool;

    /// The current privilege level.
    fn cpl(&self) -> u8;

    /// [`HotReason::Port`]: the access, if it is not by a string instruction.
    fn port(&self) -> Option<PlainPort>;

    /// The same, if it is of one byte, as most are.
    fn byte_port(&self) -> Option<PlainPort>;

    /// [`HotReason::Touch`]: the address that was touched, if nothing is mapped there and the
    /// access did not interrupt the delivery of an event.
    fn touched(&self) -> Option<GuestPhysAddr>;

    /// The TSC of this CPU.
    fn tsc(&self) -> u64;

    /// Arms what [`HotTimer::kind`] names for [`HotTimer::armed`]; `now` is the TSC.
    ///
    /// [`HotTimer::kind`]: crate::hot::timer::HotTimer::kind
    /// [`HotTimer::armed`]: crate::hot::timer::HotTimer::armed
    fn arm(&mut self, timer: &HotTimer, now: u64);
}

/// Reasons that the hot handler knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HotReason {
    /// CPUID.
    Cpuid,
    /// RDMSR.
    ReadMsr,
    /// WRMSR.
    WriteMsr,
    /// WRMSR where ECX is TSC_DEADLINE: a backend may look, or call it
    /// [`HotReason::WriteMsr`].
    WriteTscDeadline,
    /// VMCALL or VMMCALL.
    Hypercall,
    /// IN, OUT and their string forms.
    Port,
    /// The same, of more than a byte or from port 0x1000 on, where doorbells are: by a function of
    /// its own, so that what they need costs other accesses nothing.
    Doorbell,
    /// The nested tables stopped an access.
    Touch,
}

/// Result of an exit in the hot handler.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Handled {
    /// Not for the hot handler.
    Cold = 0,
    /// Done: go straight back in. The backends' assembly tests this bit.
    Reenter = 1,
    /// Done, but something else waits (an interrupt to inject, a request).
    Recheck = 2,
}

/// How interrupts of the local APIC reach the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InterruptDelivery {
    /// Each is injected, as any other event.
    Injected,
    /// The CPU delivers and ends them by itself.
    Virtual,
}

/// A vCPU of the hardware.
pub trait Backend {
    /// RIP.
    fn rip(&self) -> u64;
    /// Sets RIP.
    fn set_rip(&mut self, value: u64);
    /// RSP.
    fn rsp(&self) -> u64;
    /// Sets RSP.
    fn set_rsp(&mut self, value: u64);
    /// RFLAGS.
    fn rflags(&self) -> Rflags;
    /// Sets RFLAGS.
    fn set_rflags(&mut self, value: Rflags);
    /// CR0, as the guest sees it.
    fn cr0(&self) -> Cr0;
    /// Sets CR0.
    fn set_cr0(&mut self, value: Cr0);
    /// CR2.
    fn cr2(&self) -> u64;
    /// Sets CR2.
    fn set_cr2(&mut self, value: u64);
    /// CR3.
    fn cr3(&self) -> u64;
    /// Sets CR3.
    fn set_cr3(&mut self, value: u64);
    /// CR4, as the guest sees it.
    fn cr4(&self) -> Cr4;
    /// Sets CR4 and forgets cached translations of the guest.
    fn set_cr4(&mut self, value: Cr4);
    /// Sets the page-directory pointers of PAE paging, which were checked, where
    /// the hardware keeps them apart from memory.
    fn set_page_directory_pointers(&mut self, entries: [u64; 4]);
    /// How interrupts of the local APIC reach the guest.
    fn interrupt_delivery(&self) -> InterruptDelivery;
    /// Gives the hardware the part of the local APIC that it keeps while the guest runs: the task
    /// priority, with an exit when that falls below what an interrupt waits for
    /// ([`Lapic::cr8_threshold`]); with [`InterruptDelivery::Virtual`] the interrupts too. The last
    /// step before an entry.
    fn give_apic(&mut self, lapic: &mut Lapic);
    /// Takes back the part that [`give_apic`](Self::give_apic) gave. The first step after an exit.
    fn take_apic(&mut self, lapic: &mut Lapic);
    /// EFER, as the guest sees it.
    fn efer(&self) -> Efer;
    /// Sets EFER.
    fn set_efer(&mut self, value: Efer);
    /// PKRU, as the guest has it in the CPU; 0 without protection keys.
    fn pkru(&self) -> u32;
    /// XCR0.
    fn xcr0(&self) -> u64;
    /// Sets XCR0, to a value that the CPU supports.
    fn set_xcr0(&mut self, value: u64);
    /// Debug register 0, 1, 2, 3, 6 or 7.
    fn dr(&self, number: u8) -> u64;
    /// Sets debug register 0, 1, 2, 3, 6 or 7.
    fn set_dr(&mut self, number: u8, value: u64);
    /// A segment register.
    fn segment(&self, register: SegmentRegister) -> Segment;
    /// Sets a segment register.
    fn set_segment(&mut self, register: SegmentRegister, value: Segment);
    /// GDTR.
    fn gdtr(&self) -> DescriptorTable;
    /// Sets GDTR.
    fn set_gdtr(&mut self, value: DescriptorTable);
    /// IDTR.
    fn idtr(&self) -> DescriptorTable;
    /// Sets IDTR.
    fn set_idtr(&mut self, value: DescriptorTable);
    /// The current privilege level.
    fn cpl(&self) -> u8;
    /// An MSR that the hardware switches with the guest (SYSCALL, SYSENTER,
    /// segment bases, PAT); `None` for any other.
    fn msr(&self, msr: Msr) -> Option<u64>;
    /// Sets such an MSR to a value that was checked; `false` for any other.
    fn set_msr(&mut self, msr: Msr, value: u64) -> bool;

    /// Sets TSC_AUX, which RDTSCP and RDPID read in the CPU.
    fn set_tsc_aux(&mut self, value: u64);

    /// Whether interrupts are held off for one instruction (after STI, MOV SS).
    fn interrupt_shadow(&self) -> bool;
    /// Sets or clears that shadow.
    fn set_interrupt_shadow(&mut self, shadow: bool);
    /// Has `event` delivered at the next entry.
    fn inject(&mut self, event: Event);
    /// The event that will be delivered at the next entry.
    fn injection(&self) -> Option<Event>;
    /// Asks for (or no longer for) an exit once the guest can take an interrupt.
    fn set_interrupt_window(&mut self, wanted: bool);
    /// Whether NMIs are blocked until the guest's next IRET.
    fn nmi_blocked(&self) -> bool;
    /// Blocks or unblocks NMIs.
    fn set_nmi_blocked(&mut self, blocked: bool);
    /// Asks for an exit once the guest can take an NMI.
    fn request_nmi_window(&mut self);
    /// Whether that exit comes at the end of an interrupt shadow too, not only at that
    /// of an NMI's handler.
    fn nmi_window_sees_shadow(&self) -> bool;

    /// RIP behind the instruction that caused the last exit, where the
    /// hardware tells.
    fn next_rip(&self) -> Option<u64>;
    /// Sets the offset that is added to the host's TSC.
    fn set_tsc_offset(&mut self, offset: u64);
    /// Forgets all cached translations of the guest.
    fn flush_translations(&mut self);
    /// Whether re-entry with an interrupt shadow is known to lose the shadow.
    fn loses_shadow(&self) -> bool;

    /// The timer that ends the guest's turn at [`VcpuCore::timer`]'s deadline.
    fn timer(&self) -> TimerKind;

    /// Runs the guest until an exit that the hot handler declines. Tells
    /// [`VcpuCore::watch`] of each entry and what comes of it.
    fn run(&mut self, core: &mut VcpuCore) -> ExitWithEvent;
    /// Writes down everything, for a crash report.
    ///
    /// # Errors
    /// Those of `out`.
    fn dump(&self, out: &mut dyn fmt::Write) -> fmt::Result;
}
