//! The loop of one vCPU: what is due, what to inject, the entry, and the exit.

use crate::backend::Backend;
use crate::end::{EndReason, VmError};
use crate::hot::timer::{NEVER, TimerKind};
use crate::pv::Flush;
use crate::stats::Kind;
use crate::vcpu::{Activity, Vcpu, VcpuCore};
use crate::vm::{Host, Vm};
use crate::{apic, exits};
use chipset::fabric::Requests;
use core::sync::atomic::Ordering;
use devices::lapic::{Lint, Ticks};
use memory::slots::Rights;
use memory::{GuestRam, MemoryError};
use x86defs::exit::{ExitWithEvent, NestedAccess};
use x86defs::time::Nanos;
use x86defs::{Rflags, VmExit};

/// The caller's next step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next {
    /// Look after the machine (its interrupts), then call again.
    Continue,
    /// Nothing to run until an interrupt, or until this TSC of the host
    /// ([`NEVER`]: no timer of this guest's is armed).
    Idle(u64),
    /// The vCPU lets others run first.
    Yield,
    /// The guest has ended.
    End(EndReason),
}

/// `vcpu` gets a CPU, whose registers and memory are the guest's; `ready` is for
/// how many ticks in its life it has been ready without one
/// (`Choice::steal` of the scheduler). Comes before its turns.
pub fn on_cpu<B: Backend, M: GuestRam>(vcpu: &mut Vcpu<B>, vm: &Vm<M>, ready: u64) {
    let clock = vm.clock.read();
    let core = &mut vcpu.core;
    core.shared.set_on_cpu(true);
    core.line = clock.line();
    core.devices_due = (Nanos(u64::MAX), NEVER);
    if let Some(offset) = clock.catch_up(&mut core.clock, &vm.memory, vm.tsc_agreement()) {
        vcpu.hw.set_tsc_offset(offset);
        core.counters.pauses_told += 1;
    }
    let waited = clock.nanos(ready);
    drop(clock);
    let offered = core.cpuid.pv();
    match core.pv.steal.on_cpu(waited, offered, &vm.memory, &mut core.counters) {
        Flush::Due => vcpu.hw.invalidate(),
        Flush::None => {}
    }
}

/// `vcpu` loses its CPU. Comes after its turns.
pub fn off_cpu<B: Backend, M: GuestRam>(vcpu: &mut Vcpu<B>, vm: &Vm<M>) {
    let core = &mut vcpu.core;
    core.shared.set_on_cpu(false);
    pay(core, vm);
    core.pv.steal.off_cpu(&vm.memory, &mut core.counters);
    // A crash report that is written meanwhile shows what the hardware has.
    vcpu.write_back();
}

/// Wakes the devices that `core` owes it.
fn pay<M: GuestRam>(core: &mut VcpuCore, vm: &Vm<M>) {
    let owed = core::mem::take(&mut core.owed);
    if owed != 0 {
        vm.board.pay(owed);
    }
}

/// Runs `vcpu` once: up to an exit that the general code has to serve.
pub fn turn<B: Backend, M: GuestRam>(vcpu: &mut Vcpu<B>, vm: &Vm<M>, host: &mut impl Host) -> Next {
    let tsc = host.tsc();
    let line = vcpu.core.line;
    if tsc >= devices_due(&mut vcpu.core, vm) {
        vm.advance(line.now(tsc));
    }
    let ticks = Ticks(line.ticks(tsc));
    vcpu.core.lapic.advance(ticks);
    if let Some(end) = take_requests(vcpu, vm) {
        return Next::End(end);
    }
    let pic = pic_asks(vcpu, vm);
    let devices = devices_due(&mut vcpu.core, vm);
    let apic = vcpu.core.lapic.deadline();
    let apic = apic.map_or(NEVER, |at| tsc.saturating_add(at.0.saturating_sub(ticks.0)));
    match vcpu.activity {
        Activity::Running => {}
        Activity::Halted if vcpu.has_wake_up(pic) => vcpu.wake(),
        Activity::Halted | Activity::WaitForStartup => return Next::Idle(apic.min(devices)),
    }
    vm.board.follow_ports(&mut vcpu.core.ports);
    if vm.memory.pay(&mut vcpu.core.memory_seen) {
        vcpu.hw.invalidate();
    }
    let view = vcpu.core.view(vcpu.cr4());
    vcpu.core.leaves.follow(&vcpu.core.cpuid, view);
    let trace = vm.board.trace();
    vcpu.core.hold = trace.hold();
    vcpu.core.timer.kind = vcpu.hw.timer();
    let mut prepared = vcpu.prepare(pic, || vm.fabric.pic_acknowledge());
    let nmi_waits = prepared.nmi_waits();
    let core = prepared.core();
    core.pv.eoi.to_guest(&core.lapic, &vm.memory, &mut core.counters);
    let timer = &mut core.timer;
    timer.offset = line.offset().unwrap_or(0);
    // The vCPU is looked at again soon if an NMI must wait and has no window to wait for.
    let others = devices.min(host.deadline());
    timer.enter(if nmi_waits { tsc } else { others }, apic, tsc);
    if core.owed != 0 {
        // Left before it was to be paid: it is due when it was.
        let _ = timer.owes_since(core.owed_since);
    }
    if timer.kind == TimerKind::Machine {
        host.arm_timer(timer.armed);
    }
    prepared.run();
    let core = &mut vcpu.core;
    let ExitWithEvent { exit, interrupted } = core.exit;
    vcpu.hw.take_apic(&mut core.lapic);
    if core.owed != 0
        && (core.idle_cpus.load(Ordering::Relaxed) != 0
            || core.timer.pays(core.owed_since, host.tsc()))
    {
        pay(core, vm);
    }
    let ended = core.pv.eoi.from_guest(&mut core.lapic, &vm.memory, &mut core.counters);
    if let Some(vector) = ended {
        vm.fabric.end_of_interrupt(vector);
    }
    if vcpu.core.timer.kind == TimerKind::Machine {
        host.note_armed(vcpu.core.timer.armed);
    }
    if let Some(event) = interrupted {
        vcpu.deliver_again(event);
    }
    if let Some(vector) = vcpu.core.ended_level.take() {
        vm.fabric.end_of_interrupt(vector);
    }
    let kind = Kind::of(&exit);
    vcpu.core.counts.count(kind);
    vcpu.core.watch.serve(kind);
    vcpu.core.recent.note_at(vcpu.rip(), exit, vcpu.core.watch.mark());
    if trace.is_on() {
        // An emulated CPU may be left with reserved bits set, for all programs to come.
        let flags = vcpu.rflags();
        vcpu.set_rflags(flags & Rflags::all());
        crate::trace::note(trace, vcpu, &vm.memory, &exit);
    }
    if interrupted.is_some()
        && let VmExit::NestedFault(fault) = exit
        && match vm.memory.rights(fault.gpa) {
            None => true,
            // A read of ROM that is not shown yet is as one of RAM.
            Some(Rights::Rom) => fault.access.contains(NestedAccess::WRITE),
            Some(Rights::Ram) => false,
        }
    {
        // The instruction at RIP has nothing to do with this fault.
        let error = VmError::NotOffered(exits::DELIVERY);
        return failed(vcpu, vm, error);
    }
    let served = exits::serve(vcpu, vm, host, &exit);
    vcpu.core.recent.served(host.tsc());
    if vcpu.shutdown {
        return Next::End(EndReason::TripleFault);
    }
    match served {
        Ok(None) if core::mem::take(&mut vcpu.gives_way) => Next::Yield,
        Ok(None) => Next::Continue,
        Ok(Some(end)) => Next::End(end),
        Err(error) => failed(vcpu, vm, error),
    }
}

/// The exit can't be served. If that is because of what stands where in the guest's memory, and
/// that has changed since the guest was entered, or is changing, the guest does again what it did.
fn failed<B: Backend, M: GuestRam>(vcpu: &Vcpu<B>, vm: &Vm<M>, error: VmError) -> Next {
    let of_memory = match &error {
        VmError::Memory(MemoryError::Moved(_)) => return Next::Continue,
        VmError::Memory(MemoryError::NoFrame(_)) => false,
        VmError::Memory(_) | VmError::NotOffered(exits::DELIVERY | exits::EXECUTION) => true,
        _ => false,
    };
    if of_memory && vm.memory.changed_to() != vcpu.core.memory_seen {
        return Next::Continue;
    }
    Next::End(EndReason::Failed(error))
}

/// Whether the 8259s ask for an interrupt and this vCPU takes it.
pub fn pic_asks<B: Backend + ?Sized, M: GuestRam>(vcpu: &Vcpu<B>, vm: &Vm<M>) -> bool {
    let wired = vcpu.index == 0 && vcpu.core.lapic.accepts_pic();
    (wired || vcpu.extint) && vm.fabric.pic_output()
}

/// Takes what others asked of the vCPU.
fn take_requests<B: Backend, M: GuestRam>(vcpu: &mut Vcpu<B>, vm: &Vm<M>) -> Option<EndReason> {
    // LINT0 may be programmed to take the 8259s' output as a vector of its own.
    if vcpu.index == 0 {
        let asserted = vm.fabric.pic_output();
        if asserted != vcpu.core.lapic.is_asserted(Lint::Lint0)
            && apic::set_lint(vcpu, Lint::Lint0, asserted)
        {
            vcpu.post_nmi();
        }
    }
    if vcpu.core.shared.is_quiet() {
        return None;
    }
    let taken = vcpu.core.shared.take_requests();
    if taken.requests.contains(Requests::INIT) {
        if vcpu.index == 0 {
            // INIT of the first vCPU restarts it at the reset vector, where
            // there is no firmware: the machine is reset.
            return Some(EndReason::Reset);
        }
        vcpu.init();
        vm.fabric.routes().publish(vcpu.index, vcpu.core.lapic.identity());
    }
    if let Some(page) = taken.start_up {
        vcpu.start_up(page);
    }
    // A vCPU that waits for its start-up does not see NMIs.
    if taken.requests.contains(Requests::NMI) && vcpu.activity != Activity::WaitForStartup {
        vcpu.post_nmi();
    }
    if taken.requests.contains(Requests::CLOCK) {
        exits::tell_clock(vcpu, vm);
    }
    vcpu.core.pv.kicked |= taken.requests.contains(Requests::UNHALT);
    // An I/O APIC passes the 8259s' request on.
    vcpu.extint |= taken.requests.contains(Requests::PIC);
    let (pending, level) = vcpu.core.shared.take();
    vcpu.core.lapic.merge(&pending, &level);
    None
}

/// The host's TSC at which a device next wants to act; [`NEVER`] where none does.
#[inline]
fn devices_due<M: GuestRam>(core: &mut VcpuCore, vm: &Vm<M>) -> u64 {
    let at = vm.board.deadline();
    if core.devices_due.0 != at {
        core.devices_due = (at, core.line.host_tsc_at(at).unwrap_or(NEVER));
    }
    core.devices_due.1
}
