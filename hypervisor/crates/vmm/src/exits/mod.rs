//! What to do about each exit: one arm for each kind, one call for each arm.

mod mmio;
mod msrs;
mod ports;
mod registers;

pub(crate) use mmio::DELIVERY;
pub(crate) use msrs::tell_clock;

use crate::emulate::Emulated;
use crate::end::{EndReason, VmError};
use crate::hw::{Backend, InterruptDelivery};
use crate::hypercall::{Caller, HypercallHost, Ipis, Outcome, dispatch};
use crate::pv::{PvCounts, PvFeatures};
use crate::vcpu::{Activity, Vcpu};
use crate::vm::{Host, Vm};
use devices::lapic::{Effect, Lint, LintEvent};
use hvabi::{CallSet, Registers, ShutDownKind, kvm};
use memory::{GuestMemory, GuestRam};
use x86defs::bits::Low;
use x86defs::exit::{CacheControl, ExceptionExit};
use x86defs::{Event, Exception, Gpr, VmExit};
use x86emu::{Fault, GuestException, SkipError, SystemInstruction};

/// What serving an exit comes to: nothing, the end of the guest, or its failure.
pub(crate) type Served = Result<Option<EndReason>, VmError>;

/// Serves one exit.
pub(crate) fn serve<B: Backend, M: GuestRam>(
    vcpu: &mut Vcpu<B>,
    vm: &Vm<M>,
    host: &mut impl Host,
    exit: VmExit,
) -> Served {
    match exit {
        VmExit::HostInterrupt | VmExit::Nmi | VmExit::NmiWindow | VmExit::TimesliceExpired => {
            halt_in_lost_shadow(vcpu, vm, host);
            Ok(None)
        }
        VmExit::TaskPriorityLowered => Ok(None),
        VmExit::InterruptWindow => interrupt_window(vcpu, vm, host),
        VmExit::PortIo(io) => ports::serve(vcpu, vm, host, io),
        VmExit::NestedFault(fault) => mmio::serve(vcpu, vm, host, fault),
        VmExit::ApicAccess(access) => mmio::apic(vcpu, vm, host, access),
        VmExit::ApicWrite(write) => {
            let now = vm.ticks(host.tsc());
            let effect = vcpu.core.lapic.written(write.offset, write.value, now);
            apic_effect(vcpu, vm, effect);
            Ok(None)
        }
        VmExit::VirtualEoi(vector) => {
            if let Some(vector) = vcpu.core.lapic.ended(vector) {
                vm.board.end_of_interrupt(vector, |message| vm.deliver(message));
            }
            Ok(None)
        }
        VmExit::Cpuid => instruction(vcpu, vm, host, exit, |vcpu, _, _| {
            let (leaf, subleaf) = (vcpu.gpr(Gpr::Rax).low32(), vcpu.gpr(Gpr::Rcx).low32());
            let result = vcpu.core.cpuid.lookup(leaf, subleaf, &vcpu.core.view(vcpu.hw.cr4()));
            vcpu.set_gpr(Gpr::Rax, result.eax.into());
            vcpu.set_gpr(Gpr::Rbx, result.ebx.into());
            vcpu.set_gpr(Gpr::Rcx, result.ecx.into());
            vcpu.set_gpr(Gpr::Rdx, result.edx.into());
            Ok(Done::Complete)
        }),
        VmExit::ReadMsr => instruction(vcpu, vm, host, exit, msrs::read),
        VmExit::WriteMsr => instruction(vcpu, vm, host, exit, msrs::write),
        VmExit::Hypercall => instruction(vcpu, vm, host, exit, hypercall),
        VmExit::CrAccess(access) => registers::control(vcpu, vm, host, access),
        VmExit::DrAccess(access) => registers::debug(vcpu, vm, host, access),
        VmExit::Xsetbv => instruction(vcpu, vm, host, exit, registers::xsetbv),
        VmExit::Halt => instruction(vcpu, vm, host, exit, |vcpu, _, _| {
            vcpu.activity = Activity::Halted;
            Ok(Done::Complete)
        }),
        // Caches are the machine's: a guest must not make others pay for them,
        // and its memory is coherent without it.
        VmExit::CacheControl(CacheControl::Invd | CacheControl::Wbinvd) => {
            instruction(vcpu, vm, host, exit, |_, _, _| Ok(Done::Complete))
        }
        // It spins, for something that another vCPU does.
        VmExit::Pause => instruction(vcpu, vm, host, exit, |vcpu, vm, _| {
            let others = vm.vcpus.iter().enumerate().filter(|(index, _)| *index != vcpu.index);
            // Where all others run, it would only lose time.
            if others.into_iter().any(|(_, other)| !other.is_on_cpu()) {
                vcpu.give_way();
            }
            Ok(Done::Complete)
        }),
        // CPUID offers none of these.
        VmExit::Monitor(_) | VmExit::VirtualizationInstruction | VmExit::Unoffered => {
            vcpu.raise(Event::ud());
            Ok(None)
        }
        // CPUID offers no counters.
        VmExit::Rdpmc => {
            vcpu.raise(Event::gp0());
            Ok(None)
        }
        VmExit::Exception(exception) => {
            reflect(vcpu, exception);
            Ok(None)
        }
        VmExit::TripleFault => Ok(Some(EndReason::TripleFault)),
        VmExit::Init => Ok(None),
        VmExit::MachineCheck => Err(VmError::MachineCheck),
        VmExit::TaskSwitch(_) => Err(VmError::NotOffered("a hardware task switch")),
        VmExit::InvalidState(raw) => Err(VmError::InvalidState(raw)),
        VmExit::BrokenRule(rule) => Err(VmError::Internal(rule)),
        VmExit::Unhandled(raw) => Err(VmError::UnknownExit(raw)),
        VmExit::Rdtsc
        | VmExit::CacheControl(_)
        | VmExit::DescriptorTable(_)
        | VmExit::DirtyLogFull
        | VmExit::StartupIpi(_) => Err(VmError::Internal("an exit that nobody asked for")),
    }
}

/// What an instruction's handler came to.
pub(crate) enum Done {
    /// The instruction is done.
    Complete,
    /// It is done, and the guest with it.
    End(EndReason),
    /// It faults instead.
    Fault(Event),
}

/// An emulation context at this moment.
pub(crate) fn emulated<'a, B: Backend, M: GuestRam>(
    vcpu: &'a mut Vcpu<B>,
    vm: &'a Vm<M>,
    host: &impl Host,
) -> Emulated<'a, B, M> {
    let tsc = host.tsc();
    Emulated::new(vcpu, vm, vm.now(tsc), vm.ticks(tsc))
}

/// Serves an exit caused by an instruction: finds where it ends, calls `serve`
/// and goes on behind it.
pub(crate) fn instruction<B: Backend, M: GuestRam, H: Host>(
    vcpu: &mut Vcpu<B>,
    vm: &Vm<M>,
    host: &mut H,
    exit: VmExit,
    serve: impl FnOnce(&mut Vcpu<B>, &Vm<M>, &mut H) -> Result<Done, VmError>,
) -> Served {
    let next_rip = match vcpu.hw.next_rip() {
        Some(next_rip) => next_rip,
        None => match decode(vcpu, vm, host, exit)? {
            Some(found) => behind(vcpu, &found),
            None => return Ok(None),
        },
    };
    match serve(vcpu, vm, host)? {
        Done::Complete => {
            vcpu.complete(next_rip);
            Ok(None)
        }
        Done::End(reason) => Ok(Some(reason)),
        Done::Fault(event) => {
            vcpu.raise(event);
            Ok(None)
        }
    }
}

/// RIP behind `found`.
pub(crate) fn behind<B: Backend>(vcpu: &Vcpu<B>, found: &SystemInstruction) -> u64 {
    let next = vcpu.hw.rip().wrapping_add(found.length.into());
    match vcpu.mode().bits() {
        64 => next,
        32 => next & 0xffff_ffff,
        _ => next & 0xffff,
    }
}

/// The instruction that caused `exit`; `None` where the guest has to run it
/// again, or got an exception.
pub(crate) fn decode<B: Backend, M: GuestRam>(
    vcpu: &mut Vcpu<B>,
    vm: &Vm<M>,
    host: &impl Host,
    exit: VmExit,
) -> Result<Option<SystemInstruction>, VmError> {
    match x86emu::skip(&mut emulated(vcpu, vm, host), &exit) {
        Ok(found) => Ok(Some(found)),
        Err(SkipError::Mismatch) => {
            // Another vCPU may have rewritten the code: the guest runs it
            // again. If that ends here once more, the encoding is one that the
            // CPU should have refused (LOCK CPUID on one emulator).
            let rip = vcpu.hw.rip();
            if vcpu.mismatch_rip.replace(rip) == Some(rip) {
                vcpu.mismatch_rip = None;
                vcpu.raise(Event::ud());
            }
            Ok(None)
        }
        Err(SkipError::Fault(Fault::Exception(exception))) => {
            raise(vcpu, exception);
            Ok(None)
        }
        Err(SkipError::Fault(Fault::Host(error))) => Err(error),
    }
}

/// Raises an exception of an emulated instruction.
pub(crate) fn raise<B: Backend>(vcpu: &mut Vcpu<B>, exception: GuestException) {
    if let (Exception::PF, Some(address)) = (exception.exception, exception.address) {
        vcpu.hw.set_cr2(address);
    }
    vcpu.raise(exception.event());
}

/// Gives back an exception that was intercepted only to be seen.
fn reflect<B: Backend>(vcpu: &mut Vcpu<B>, exit: ExceptionExit) {
    if let Some(address) = exit.address {
        vcpu.hw.set_cr2(address);
    }
    vcpu.raise(match exit.error_code {
        Some(code) => Event::exception_with_code(exit.exception, code),
        None => Event::exception(exit.exception),
    });
}

/// The guest can take an interrupt.
fn interrupt_window<B: Backend, M: GuestRam>(
    vcpu: &mut Vcpu<B>,
    vm: &Vm<M>,
    host: &mut impl Host,
) -> Served {
    if cfg!(planted = "window-interrupt-lost") {
        match vcpu.hw.interrupt_delivery() {
            InterruptDelivery::Injected => {
                if let Some(vector) = vcpu.core.lapic.deliverable() {
                    vcpu.core.lapic.acknowledge(vector);
                    let _ = vcpu.core.lapic.eoi();
                }
            }
            // The 8259s alone wait for windows then.
            InterruptDelivery::Virtual => {
                let _ = vm.board.pic_acknowledge(|message| vm.deliver(message));
            }
        }
    }
    halt_in_lost_shadow(vcpu, vm, host);
    Ok(None)
}

/// Executes the HLT of `STI; HLT` where the CPU has lost the shadow before it:
/// an interrupt that came before the HLT would leave the vCPU halted without
/// its wake-up. Before any other instruction it does no harm.
fn halt_in_lost_shadow<B: Backend, M: GuestRam>(vcpu: &mut Vcpu<B>, vm: &Vm<M>, host: &impl Host) {
    if vcpu.lost_shadow()
        && vcpu.hw.cpl() == 0
        && let Ok(found) = x86emu::skip(&mut emulated(vcpu, vm, host), &VmExit::Halt)
    {
        let next = behind(vcpu, &found);
        vcpu.activity = Activity::Halted;
        vcpu.complete(next);
    }
}

/// Does what a write to the local APIC asks for.
pub(crate) fn apic_effect<B: Backend, M: GuestRam>(vcpu: &mut Vcpu<B>, vm: &Vm<M>, effect: Effect) {
    match effect {
        Effect::None | Effect::Pending | Effect::TimerChanged => {}
        Effect::Eoi { vector, broadcast } => {
            if broadcast {
                vm.board.end_of_interrupt(vector, |message| vm.deliver(message));
            }
        }
        Effect::Ipi(command) => vm.deliver_ipi(vcpu.index, &command),
        Effect::IdentityChanged => {
            vm.routes.publish(vcpu.index, vcpu.core.lapic.identity());
            if vcpu.core.lapic.is_in_place() {
                vm.memory.open_apic_page();
            } else {
                vm.memory.close_apic_page();
            }
            // In both directions: what the CPU cached while it did not watch the page may be
            // used when it does (SDM: "Issues Pertaining to Page Size and TLB Management").
            vcpu.hw.flush_translations();
        }
    }
}

/// Sets a pin of the local APIC; whether that makes an NMI.
pub(crate) fn lint_event<B: Backend>(vcpu: &mut Vcpu<B>, pin: Lint, asserted: bool) -> bool {
    vcpu.core.lapic.set_lint(pin, asserted) == LintEvent::Nmi
}

/// Serves hypercalls.
struct CallHost<'a, M, H> {
    vm: &'a Vm<M>,
    host: &'a mut H,
    pairing: kvm::ClockPairing,
    since_start: u64,
    wall_clock: u64,
    /// The caller.
    index: usize,
    allowed: CallSet,
    offered: PvFeatures,
    counts: &'a mut PvCounts,
}

impl<M: GuestRam, H: Host> HypercallHost for CallHost<'_, M, H> {
    fn memory(&self) -> &impl GuestMemory {
        &self.vm.memory
    }

    fn console_write(&mut self, bytes: &[u8]) -> usize {
        self.host.console_write(bytes)
    }

    fn since_start(&self) -> u64 {
        self.since_start
    }

    fn wall_clock(&self) -> u64 {
        self.wall_clock
    }

    fn clock_pairing(&self) -> kvm::ClockPairing {
        self.pairing
    }

    fn allowed(&self) -> CallSet {
        self.allowed
    }

    fn offered(&self) -> PvFeatures {
        self.offered
    }

    fn kick(&mut self, apic_id: u64) {
        if let Some(index) = self.vm.vcpu_of(apic_id) {
            self.counts.kicks += 1;
            self.vm.unhalt(index);
        }
    }

    fn send_ipis(&mut self, ipis: &Ipis) -> u64 {
        let sent = ipis.send(self.vm);
        self.counts.ipi_calls += 1;
        self.counts.ipis += sent;
        sent
    }

    fn waits_for_cpu(&self, apic_id: u64) -> bool {
        self.vm.vcpu_of(apic_id).is_some_and(|index| {
            index != self.index
                && self.vm.vcpus.get(index).is_some_and(|posted| !posted.is_on_cpu())
        })
    }
}

fn hypercall<B: Backend, M: GuestRam, H: Host>(
    vcpu: &mut Vcpu<B>,
    vm: &Vm<M>,
    host: &mut H,
) -> Result<Done, VmError> {
    let registers = Registers {
        rax: vcpu.gpr(Gpr::Rax),
        rbx: vcpu.gpr(Gpr::Rbx),
        rcx: vcpu.gpr(Gpr::Rcx),
        rdx: vcpu.gpr(Gpr::Rdx),
        rsi: vcpu.gpr(Gpr::Rsi),
    };
    let caller = Caller { cpl: vcpu.hw.cpl(), mode: vcpu.mode() };
    let time = host.time();
    let clock = vm.clock.read();
    let mut call_host = CallHost {
        vm,
        pairing: clock.clock_pairing(&vcpu.core.clock, time),
        since_start: clock.now(time.tsc).0,
        wall_clock: clock.wall(time.tsc),
        host,
        index: vcpu.index,
        allowed: vcpu.core.cpuid.calls(),
        offered: vcpu.core.cpuid.pv(),
        counts: &mut vcpu.core.pv_counts,
    };
    let after = match dispatch(registers, caller, &mut call_host) {
        Outcome::Return(after) => after,
        Outcome::Yield(after) => {
            vcpu.give_way();
            after
        }
        Outcome::ShutDown { kind: ShutDownKind::Reset, .. } => {
            return Ok(Done::End(EndReason::Reset));
        }
        Outcome::ShutDown { kind, status } => {
            return Ok(Done::End(EndReason::ShutDown { kind, status }));
        }
    };
    vcpu.set_gpr(Gpr::Rax, after.rax);
    vcpu.set_gpr(Gpr::Rbx, after.rbx);
    vcpu.set_gpr(Gpr::Rcx, after.rcx);
    vcpu.set_gpr(Gpr::Rdx, after.rdx);
    vcpu.set_gpr(Gpr::Rsi, after.rsi);
    Ok(Done::Complete)
}
