//! The interface of a vendor's backend: the registers of a stopped vCPU, events to inject, and a
//! way in. Nothing here says VMX or SVM.
//!
//! A backend's assembly saves the general registers into [`HotState`] and calls
//! [`crate::hot::exit::serve`], statically dispatched, which serves the hot exits and goes straight
//! back in; only an exit that `serve` declines is left in [`VcpuCore::exit`] for the general code
//! (module `exits`).

use crate::hot::timer::{HotTimer, TimerKind};
use crate::registers::{Fields, Registers};
use crate::vcpu::VcpuCore;
use bitflags::bitflags;
use core::fmt;
use devices::lapic::Lapic;
use x86defs::exit::PlainPort;
use x86defs::{Event, GuestPhysAddr, Rflags, VectorRegister};

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

bitflags! {
    /// Ways in which a CPU (mostly one emulator) differs from what the manuals say or from others.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct Quirks: u8 {
        /// An entry with an interrupt shadow is known to lose the shadow.
        const LOSES_SHADOW = 1 << 0;
        /// An NMI window comes at the end of an interrupt shadow too, not only at that
        /// of an NMI's handler.
        const NMI_WINDOW_SEES_SHADOW = 1 << 1;
    }
}

/// The end of the instruction that caused an exit, as far as the hardware tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InstructionEnd {
    /// RIP behind it.
    Rip(u64),
    /// The instruction's length in bytes.
    Length(u8),
    /// Nothing.
    Unknown,
}

/// Exits that a vCPU asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Windows {
    /// Once the guest can take an interrupt.
    pub interrupt: bool,
    /// Once the guest can take an NMI. The wish stays until that exit has come.
    pub nmi: bool,
}

/// A vCPU of the hardware. Before an entry come, in this order: [`store`](Self::store),
/// [`invalidate`](Self::invalidate), [`inject`](Self::inject) and [`ask`](Self::ask),
/// [`give_apic`](Self::give_apic), [`run`](Self::run).
pub trait Backend {
    /// Fills in registers as the hardware has them. None of `fields` is changed.
    fn fetch(&self, registers: &Registers, fields: Fields);
    /// Gives the hardware the registers that are [changed](Registers::changed), and does what
    /// their changes imply: cached translations are forgotten with one of
    /// [`Fields::TRANSLATION`].
    fn store(&mut self, registers: &Registers);
    /// Forgets all cached translations of the guest.
    fn invalidate(&mut self);
    /// Has `event` delivered at the next entry.
    fn inject(&mut self, event: Event);
    /// The event that will be delivered at the next entry.
    fn injection(&self) -> Option<Event>;
    /// Asks for exits.
    fn ask(&mut self, windows: Windows);
    /// How interrupts of the local APIC reach the guest.
    fn interrupt_delivery(&self) -> InterruptDelivery;
    /// Gives the hardware the part of the local APIC that it keeps while the guest runs: the task
    /// priority, with an exit when that falls below what an interrupt waits for
    /// ([`Lapic::cr8_threshold`]); with [`InterruptDelivery::Virtual`] the interrupts too. The last
    /// step before an entry.
    fn give_apic(&mut self, lapic: &mut Lapic);
    /// Takes back the part that [`give_apic`](Self::give_apic) gave. The first step after an exit.
    fn take_apic(&mut self, lapic: &mut Lapic);
    /// Sets the offset that is added to the host's TSC.
    fn set_tsc_offset(&mut self, offset: u64);
    /// A vector register, which is in the CPU while the vCPU has one; bytes that it does not have
    /// are zero. `None`: an exception of the x87 waits, which an access to an MMX register would
    /// raise. Such an access marks all of the x87's registers as used, as the guest's does.
    fn vector(&mut self, register: VectorRegister) -> Option<[u8; 32]>;
    /// Sets a vector register; `None` as with [`vector`](Self::vector): then it stays.
    #[must_use]
    fn set_vector(&mut self, register: VectorRegister, value: [u8; 32]) -> Option<()>;
    /// Runs the guest until an exit that the hot handler declines, which it leaves in
    /// [`VcpuCore::exit`]. Tells [`VcpuCore::watch`] of each entry and what comes of it.
    fn run(&mut self, core: &mut VcpuCore);
    /// The end of the instruction that caused the last exit.
    fn instruction_end(&self) -> InstructionEnd;
    /// The timer that ends the guest's turn at [`VcpuCore::timer`]'s deadline.
    fn timer(&self) -> TimerKind;
    /// Ways in which this CPU differs.
    fn quirks(&self) -> Quirks;
    /// Writes down everything that the hardware has, for a crash report.
    ///
    /// # Errors
    /// Those of `out`.
    fn dump(&self, out: &mut dyn fmt::Write) -> fmt::Result;
}
