//! A vCPU: the part that policy owns ([`VcpuCore`]) and the hardware's
//! ([`Backend`]), and what is common to all exits: completing an instruction,
//! raising exceptions, deciding what to inject.

use crate::backend::{Backend, HotState, InterruptDelivery, Quirks, Windows};
use crate::clock::{Timeline, VcpuClock};
use crate::counters::Counters;
use crate::cpuid::{CpuidTable, VcpuView};
use crate::hot::cpuid::HotLeaves;
use crate::hot::timer::HotTimer;
use crate::msr::{MsrFile, MsrTable};
use crate::pv::PvState;
use crate::recorder::Recorder;
use crate::registers::Registers;
use crate::stats::ExitCounts;
use crate::stopwatch::Stopwatch;
use alloc::sync::Arc;
use chipset::fabric::Posted;
use chipset::{Board, HotPorts};
use core::sync::atomic::AtomicUsize;
use devices::lapic::Lapic;
use memory::HotRam;
use memory::walk::{KeptWalk, WalkConfig, WalkFeatures};
use x86defs::control::{CpuMode, DR6_RESET, DR7_RESET};
use x86defs::exit::ExitWithEvent;
use x86defs::time::Nanos;
use x86defs::{
    CpuState, Cr0, Event, EventKind, Exception, Gpr, Rflags, Segment, SegmentRegister, Vector,
};
use x86emu::Decoded;

/// The part of a vCPU that policy owns. The hot handler gets nothing else.
#[derive(Debug)]
#[repr(C)]
pub struct VcpuCore {
    /// General registers; they must stand first, where the assembly expects them.
    pub hot: HotState,
    /// The hot handler served the exit that [`Backend::run`] is about to report.
    pub served: bool,
    /// Flags of the guest with which the hot handler declines
    /// ([`chipset::HOT_DECLINES`]).
    pub hold: Rflags,
    /// A level-triggered interrupt that the hot handler ended: the I/O APIC is
    /// still to be told.
    pub ended_level: Option<Vector>,
    /// When the guest's turn ends.
    pub timer: HotTimer,
    /// CPUID's usual answers.
    pub leaves: HotLeaves,
    /// The devices, for ports that are used often.
    pub board: Arc<Board>,
    /// The RAM, for first touches.
    pub memory: Arc<dyn HotRam>,
    /// The local APIC.
    pub lapic: Lapic,
    /// The guest's time, while the vCPU has a CPU.
    pub line: Timeline,
    /// A device's next deadline, and the host's TSC at it.
    pub devices_due: (Nanos, u64),
    /// TSC_ADJUST and kvmclock.
    pub clock: VcpuClock,
    /// MSRs that are no more than storage.
    pub msrs: MsrFile,
    /// TSC_AUX.
    pub tsc_aux: u64,
    /// CPUID's answers.
    pub cpuid: Arc<CpuidTable>,
    /// MSR policy.
    pub msr_table: Arc<MsrTable>,
    /// The part that other CPUs and devices may touch.
    pub shared: Arc<Posted>,
    /// XCR0, for CPUID's dynamic fields.
    pub xcr0: u64,
    /// The last exits that the general code served.
    pub recent: Recorder,
    /// Exits by kind.
    pub counts: ExitCounts,
    /// Stopwatch of the vCPU's time on CPUs.
    pub watch: Stopwatch,
    /// KVM's paravirtual interface.
    pub pv: PvState,
    /// Counts that are no exits by kind.
    pub counters: Counters,
    /// Places of BARs among the ports, for the hot handler.
    pub ports: HotPorts,
    /// The generation of the guest's memory that the CPU has cached nothing from before.
    pub memory_seen: u64,
    /// Devices whose doorbells the vCPU has marked and that it has still to wake
    /// ([`Board::pay`]), a bit for each.
    pub owed: u64,
    /// The TSC since when it owes.
    pub owed_since: u64,
    /// How many CPUs of the machine are idle: one of them can do a device's work at once.
    pub idle_cpus: Arc<AtomicUsize>,
    /// The last exit that [`Backend::run`] came back with.
    pub exit: ExitWithEvent,
}

impl VcpuCore {
    /// The registers that CPUID depends on.
    #[inline]
    #[must_use]
    pub fn view(&self, cr4: x86defs::Cr4) -> VcpuView {
        VcpuView {
            cr4,
            xcr0: x86defs::Xcr0::from_bits_retain(self.xcr0),
            apic_base: self.lapic.apic_base(),
            apic_id: self.lapic.id(),
        }
    }

    /// General register `gpr`, but for RSP.
    #[inline]
    #[must_use]
    pub fn gpr(&self, gpr: Gpr) -> u64 {
        self.hot.gpr.get(usize::from(gpr.number())).copied().unwrap_or(0)
    }

    /// Sets general register `gpr`, but for RSP.
    #[inline]
    pub fn set_gpr(&mut self, gpr: Gpr, value: u64) {
        if let Some(slot) = self.hot.gpr.get_mut(usize::from(gpr.number())) {
            *slot = value;
        }
    }
}

/// Activity of a vCPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activity {
    /// It executes instructions.
    Running,
    /// HLT: until an interrupt.
    Halted,
    /// INIT: until a start-up IPI.
    WaitForStartup,
}

/// A vCPU.
#[derive(Debug)]
#[repr(C)]
pub struct Vcpu<B: ?Sized> {
    /// Policy's part.
    pub core: VcpuCore,
    /// Its place among the guest's vCPUs.
    pub index: usize,
    /// Whether it runs, is halted, or waits to be started.
    pub activity: Activity,
    /// An exception or interrupted event to inject next.
    pub(crate) event: Option<Event>,
    /// An NMI waits.
    pub(crate) nmi_pending: bool,
    /// An I/O APIC passed a request of the 8259s on to this vCPU.
    pub(crate) extint: bool,
    /// RIP of the last exit whose instruction was not what the exit was about.
    pub(crate) mismatch_rip: Option<u64>,
    /// A fault on the way to the double-fault handler: the CPU shuts down.
    pub(crate) shutdown: bool,
    /// RIP at which the last entry was made with an interrupt shadow.
    pub(crate) shadow_rip: Option<u64>,
    /// It gives its CPU up.
    pub(crate) gives_way: bool,
    /// The walk to the page of code that was fetched last.
    pub(crate) fetched: KeptWalk,
    /// The instructions that were decoded last.
    pub(crate) decoded: Decoded,
    /// The architectural registers, as far as they are known.
    pub(crate) registers: Registers,
    /// The hardware's part.
    pub hw: B,
}

/// A vCPU that has nothing left to do but to enter: its registers are the hardware's, and nobody
/// writes them any more.
#[must_use]
pub(crate) struct Prepared<'a, B: ?Sized>(&'a mut Vcpu<B>);

impl<B: Backend> Prepared<'_, B> {
    /// Policy's part.
    pub(crate) fn core(&mut self) -> &mut VcpuCore {
        &mut self.0.core
    }

    /// Whether an NMI still waits.
    pub(crate) fn nmi_waits(&self) -> bool {
        self.0.nmi_pending
    }

    /// Runs the guest until an exit that the hot handler declines.
    pub(crate) fn run(self) {
        let Vcpu { core, hw, .. } = self.0;
        hw.run(core);
    }
}

impl<B: Backend> Vcpu<B> {
    /// A vCPU around its parts, in the state after reset.
    #[must_use]
    pub fn new(index: usize, core: VcpuCore, hw: B) -> Self {
        Self {
            core,
            registers: Registers::default(),
            hw,
            index,
            activity: Activity::Running,
            event: None,
            nmi_pending: false,
            extint: false,
            mismatch_rip: None,
            shutdown: false,
            shadow_rip: None,
            gives_way: false,
            fetched: KeptWalk::default(),
            decoded: Decoded::default(),
        }
    }
}

impl<B: Backend + ?Sized> Vcpu<B> {
    /// How the vCPU's accesses are translated now.
    pub fn walk_config(&self) -> WalkConfig {
        WalkConfig {
            cr0: self.cr0(),
            cr3: self.cr3(),
            cr4: self.cr4(),
            efer: self.efer(),
            rflags: self.rflags(),
            cpl: self.cpl(),
            pkru: self.pkru(),
            physical_bits: self.core.cpuid.physical_address_bits(),
            features: WalkFeatures::PAGES_1G,
        }
    }

    /// Writes the vCPU's state, for a crash report.
    ///
    /// # Errors
    /// Those of `out`.
    pub fn dump(&self, out: &mut dyn core::fmt::Write) -> core::fmt::Result {
        for (number, line) in self.core.hot.gpr.chunks(4).enumerate() {
            write!(out, "  ")?;
            for (n, value) in line.iter().enumerate() {
                let gpr = Gpr::from_number(u8::try_from(number * 4 + n).unwrap_or(0));
                let value = if gpr == Gpr::Rsp { self.rsp() } else { *value };
                write!(out, "{gpr:?} {value:#018x} ")?;
            }
            writeln!(out)?;
        }
        writeln!(out, "  {:?}, {:?}, event {:?}", self.mode(), self.activity, self.event)?;
        self.core.recent.dump(out)?;
        self.hw.dump(out)
    }

    /// Puts the registers of `state` in place.
    pub fn start_at(&mut self, state: &CpuState) {
        self.set_cr0(state.cr0);
        self.set_cr3(state.cr3);
        self.set_cr4(state.cr4);
        self.set_efer(state.efer);
        self.set_gdtr(state.gdtr);
        self.set_idtr(state.idtr);
        self.set_rflags(state.rflags);
        self.set_rip(state.rip);
        self.set_dr(6, DR6_RESET);
        self.set_dr(7, DR7_RESET);
        for register in SegmentRegister::ALL {
            self.set_segment(register, state.segment(register));
        }
        for gpr in Gpr::ALL {
            self.set_gpr(gpr, state.gpr(gpr));
        }
    }

    /// INIT arrives: registers and local APIC as after a reset, and the vCPU
    /// waits for a start-up IPI. Extended state, MSRs and the TSC stay
    /// (SDM: "Processor State After Reset"); of KVM's interface nothing does.
    pub fn init(&mut self) {
        self.start_at(&CpuState::reset_vector(self.signature()));
        self.set_cr2(0);
        for number in 0..4 {
            self.set_dr(number, 0);
        }
        self.set_nmi_blocked(false);
        self.set_interrupt_shadow(false);
        self.hw.invalidate();
        self.core.lapic.init();
        self.core.clock.init();
        self.core.pv.reset();
        self.event = None;
        self.nmi_pending = false;
        self.extint = false;
        self.mismatch_rip = None;
        self.activity = Activity::WaitForStartup;
    }

    /// A start-up IPI for `page` arrives. A vCPU that does not wait for one
    /// ignores it.
    pub fn start_up(&mut self, page: u8) {
        if self.activity == Activity::WaitForStartup {
            self.start_at(&CpuState::startup_ipi(page, self.signature()));
            self.activity = Activity::Running;
        }
    }

    /// The processor's signature, which RDX holds after a reset.
    fn signature(&self) -> u32 {
        self.core.cpuid.lookup(1, 0, &self.core.view(self.cr4())).eax
    }

    /// A general register.
    #[inline]
    pub fn gpr(&self, gpr: Gpr) -> u64 {
        if gpr == Gpr::Rsp { self.rsp() } else { self.core.gpr(gpr) }
    }

    /// Sets a general register, all 64 bits.
    #[inline]
    pub fn set_gpr(&mut self, gpr: Gpr, value: u64) {
        if gpr == Gpr::Rsp { self.set_rsp(value) } else { self.core.set_gpr(gpr, value) }
    }

    /// The mode of operation.
    pub fn mode(&self) -> CpuMode {
        let cs = self.code();
        CpuMode::of(self.cr0(), self.efer(), self.rflags(), cs.long(), cs.big())
    }

    /// The linear address of `offset` in `segment`, unchecked.
    pub fn linear(&self, segment: SegmentRegister, offset: u64) -> u64 {
        let Segment { base, .. } = self.segment(segment);
        if self.mode() == CpuMode::Long64 {
            match segment {
                SegmentRegister::Fs | SegmentRegister::Gs => base.wrapping_add(offset),
                _ => offset,
            }
        } else {
            base.wrapping_add(offset) & 0xffff_ffff
        }
    }

    /// The instruction at which the guest stopped is done; it goes on at `next_rip`.
    pub fn complete(&mut self, next_rip: u64) {
        if !cfg!(planted = "rip-not-advanced") {
            self.set_rip(next_rip);
        }
        self.end_instruction();
    }

    /// Effects of the end of any instruction: the interrupt shadow ends, RF is cleared, and a
    /// single-step trap is due if TF was set (SDM: "Single-Step Exception Condition").
    pub fn end_instruction(&mut self) {
        self.end_stepped(self.rflags().contains(Rflags::TF));
    }

    /// The same, of an instruction before which TF was `stepped`.
    pub(crate) fn end_stepped(&mut self, stepped: bool) {
        if self.interrupt_shadow() && !cfg!(planted = "shadow-not-cleared") {
            self.set_interrupt_shadow(false);
        }
        self.clear_resume_flag();
        if stepped {
            self.trap_single_step();
        }
    }

    /// The end of an instruction that loads SS: a shadow begins, which holds its single-step trap
    /// off, too.
    pub(crate) fn end_in_shadow(&mut self) {
        self.set_interrupt_shadow(true);
        self.clear_resume_flag();
    }

    /// An instruction is done: the next one's breakpoint counts.
    fn clear_resume_flag(&mut self) {
        let flags = self.rflags();
        if flags.contains(Rflags::RF) {
            self.set_rflags(flags - Rflags::RF);
        }
    }

    /// An iteration of a repeated instruction is done, whose RIP stays: an event that interrupts it
    /// there pushes RF (SDM: "Instruction-Breakpoint Exception Condition").
    pub fn end_iteration(&mut self) {
        self.set_resume_flag();
        if self.rflags().contains(Rflags::TF) {
            self.trap_single_step();
        }
    }

    /// The single-step trap: with TF set, after an instruction and after each iteration of a
    /// repeated one.
    fn trap_single_step(&mut self) {
        let dr6 = self.dr(6) | DR6_SINGLE_STEP;
        self.set_dr(6, dr6);
        // Any #DB ends general detect, or its handler could not look at DR6.
        let dr7 = self.dr(7);
        if dr7 & DR7_GENERAL_DETECT != 0 {
            self.set_dr(7, dr7 & !DR7_GENERAL_DETECT);
        }
        self.raise(Event::exception(Exception::DB));
    }

    /// Raises an exception, which joins one whose delivery was interrupted
    /// (SDM: "Interrupt 8—Double Fault Exception"). A fault sets RF: its handler
    /// goes back to the instruction, whose breakpoint has been passed. The CPU does
    /// that for its own faults only.
    pub fn raise(&mut self, event: Event) {
        if event.kind == EventKind::Exception && Exception(event.vector).is_fault() {
            self.set_resume_flag();
        }
        // In real mode no error code is pushed.
        let event =
            if self.cr0().contains(Cr0::PE) { event } else { Event { error_code: None, ..event } };
        self.event = match self.event {
            Some(first) => match combine(first, event) {
                Combined::Deliver(event) => Some(event),
                Combined::Shutdown => {
                    self.shutdown = true;
                    None
                }
            },
            None => Some(event),
        };
    }

    /// The instruction at RIP goes on or is executed again: its breakpoint must not
    /// be met once more.
    pub fn set_resume_flag(&mut self) {
        let flags = self.rflags();
        self.set_rflags(flags | Rflags::RF);
    }

    /// An event whose delivery an exit interrupted, to be delivered again.
    pub fn deliver_again(&mut self, event: Event) {
        if !cfg!(planted = "reinjection-dropped") {
            self.event = Some(event);
        }
    }

    /// The event that was to be delivered again has been delivered in another way.
    pub(crate) fn delivered(&mut self) {
        self.event = None;
    }

    /// An NMI arrives. At most one waits.
    pub fn post_nmi(&mut self) {
        self.nmi_pending = true;
    }

    /// Whether an NMI waits.
    pub fn nmi_waits(&self) -> bool {
        self.nmi_pending
    }

    /// Whether something waits that ends HLT.
    pub fn has_wake_up(&self, pic: bool) -> bool {
        let open = self.rflags().contains(Rflags::IF);
        self.event.is_some()
            || self.core.pv.kicked
            || self.nmi_pending && !self.nmi_blocked()
            || open && (self.core.lapic.deliverable().is_some() || pic)
    }

    /// Whether the vCPU waits for an interrupt that it would take, or to be started.
    pub fn sleeps_soundly(&self) -> bool {
        match self.activity {
            Activity::Running => false,
            Activity::Halted => self.rflags().contains(Rflags::IF),
            Activity::WaitForStartup => true,
        }
    }

    /// Whether the vCPU waits and takes no interrupt meanwhile: only an NMI, INIT, a start-up or
    /// another vCPU's hypercall can move it.
    pub fn is_deaf(&self) -> bool {
        match self.activity {
            Activity::Running => false,
            Activity::Halted => !self.rflags().contains(Rflags::IF),
            Activity::WaitForStartup => true,
        }
    }

    /// A HLT ends. A kick that came before counts for this HLT.
    pub(crate) fn wake(&mut self) {
        self.activity = Activity::Running;
        if core::mem::take(&mut self.core.pv.kicked) {
            self.core.counters.unhalts += 1;
        }
    }

    /// Gives the CPU up after the instruction at hand.
    pub(crate) fn give_way(&mut self) {
        self.core.counters.yields += 1;
        self.gives_way = true;
    }

    /// Gives the hardware the registers, and decides what the next entry injects. `pic` says
    /// whether the 8259s ask for an interrupt that this vCPU takes, and `acknowledge` gets its
    /// vector.
    pub(crate) fn prepare(
        &mut self,
        pic: bool,
        acknowledge: impl FnOnce() -> Vector,
    ) -> Prepared<'_, B> {
        let shadow = self.interrupt_shadow();
        let enabled = self.rflags().contains(Rflags::IF);
        let blocks_nmi = self.nmi_pending && self.nmi_blocked();
        self.shadow_rip = shadow.then(|| self.rip());
        self.settle();
        let open = enabled && !shadow;
        let mut pic = pic;
        if let Some(event) = self.event.take() {
            self.hw.inject(event);
        } else if self.nmi_pending && !blocks_nmi && !shadow {
            self.nmi_pending = false;
            self.hw.inject(Event::nmi());
        } else if open && pic {
            pic = false;
            self.extint = false;
            self.hw.inject(Event::interrupt(acknowledge()));
        } else if open && let Some(vector) = self.injectable() {
            self.core.lapic.acknowledge(vector);
            self.hw.inject(Event::interrupt(vector));
        }
        let waits = pic || self.injectable().is_some();
        // An NMI may enter behind the shadow, and so may an interrupt, whose window
        // every CPU has. With interrupts off the NMI waits for the timer
        // (`run::turn`).
        let behind_shadow = self.nmi_pending
            && shadow
            && enabled
            && !self.hw.quirks().contains(Quirks::NMI_WINDOW_SEES_SHADOW);
        self.hw.ask(Windows { interrupt: waits || behind_shadow, nmi: self.nmi_pending });
        self.hw.give_apic(&mut self.core.lapic);
        Prepared(self)
    }

    /// The vector of the local APIC that must be injected next, if any.
    fn injectable(&self) -> Option<Vector> {
        match self.hw.interrupt_delivery() {
            InterruptDelivery::Injected => self.core.lapic.deliverable(),
            InterruptDelivery::Virtual => None,
        }
    }

    /// At an exit that no instruction caused: whether the guest stands where
    /// it was entered in an interrupt shadow, on a CPU that loses the shadow
    /// at an entry.
    pub fn lost_shadow(&self) -> bool {
        self.hw.quirks().contains(Quirks::LOSES_SHADOW)
            && self.shadow_rip == Some(self.rip())
            && self.event.is_none()
    }
}

/// DR6.BS.
const DR6_SINGLE_STEP: u64 = 1 << 14;
/// DR7.GD: general detect.
pub(crate) const DR7_GENERAL_DETECT: u64 = 1 << 13;

/// Result of two events in a row.
enum Combined {
    Deliver(Event),
    Shutdown,
}

/// `second` happens during the delivery of `first`.
fn combine(first: Event, second: Event) -> Combined {
    let EventKind::Exception = first.kind else {
        // An interrupt or NMI is lost to the exception, as on hardware: it was
        // acknowledged, and delivering it has faulted.
        return Combined::Deliver(second);
    };
    let (a, b) = (Exception(first.vector), Exception(second.vector));
    let double = if a == Exception::PF {
        b == Exception::PF || b.is_contributory()
    } else {
        a.is_contributory() && b.is_contributory()
    };
    if a == Exception::DF && (b == Exception::PF || b.is_contributory()) {
        Combined::Shutdown
    } else if double {
        Combined::Deliver(Event::exception_with_code(Exception::DF, 0))
    } else {
        Combined::Deliver(second)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pf() -> Event {
        Event::exception_with_code(Exception::PF, 0)
    }

    #[test]
    fn double_and_triple_faults() {
        let df = Event::exception_with_code(Exception::DF, 0);
        let cases = [
            (pf(), pf(), Some(df)),
            (pf(), Event::gp0(), Some(df)),
            (Event::gp0(), pf(), Some(pf())),
            (Event::gp0(), Event::gp0(), Some(df)),
            (Event::ud(), pf(), Some(pf())),
            (Event::interrupt(0x20), pf(), Some(pf())),
            (df, pf(), None),
            (df, Event::gp0(), None),
        ];
        for (first, second, wanted) in cases {
            let got = match combine(first, second) {
                Combined::Deliver(event) => Some(event),
                Combined::Shutdown => None,
            };
            assert_eq!(got, wanted, "{first:?} then {second:?}");
        }
    }
}
