//! The hot handler: exits that come often, served in place.
//!
//! It is called from a backend's assembly with the guest's registers saved, waits for no lock,
//! allocates nothing and reads of the hardware only what it needs. It declines an exit that it does
//! not know, can't finish, or must refuse: then nothing has changed, and the general code serves
//! the exit.

#[cfg(test)]
mod tests;

use crate::backend::{ExitRegs, Handled, HotReason, Instruction};
use crate::hot::timer::TimerKind;
use crate::vcpu::VcpuCore;
use core::sync::atomic::Ordering;
use devices::lapic::{ApicMode, Ticks, Trigger};
use hvabi::kvm;
use x86defs::bits::{Low, high32, join};
use x86defs::cpuid::CpuidResult;
use x86defs::exit::{Direction, NestedAccess, NestedFault, PlainPort, PortIo};
use x86defs::{Gpr, Msr, VmExit, Width};

/// A timer that stands still outside the guest is set again at each exit whose
/// number is a multiple of this.
const RESET_TIMER_EVERY: usize = 16;

/// Serves one exit, or declines.
#[inline(always)]
pub fn serve(core: &mut VcpuCore, regs: &mut impl ExitRegs, reason: HotReason) -> Handled {
    let handled = match reason {
        HotReason::Cpuid => cpuid(core, regs),
        HotReason::ReadMsr => read_msr(core, regs),
        HotReason::WriteMsr => return write_msr(core, regs),
        HotReason::WriteTscDeadline => return write_tsc_deadline(core, regs, written(core)),
        HotReason::Hypercall => hypercall(core, regs),
        HotReason::Port => port(core, regs),
        HotReason::Doorbell => ring(core, regs),
        HotReason::Touch => touch(core, regs),
    };
    finish(core, regs, handled)
}

#[inline(always)]
fn finish(core: &VcpuCore, regs: &mut impl ExitRegs, handled: Option<Handled>) -> Handled {
    match handled {
        Some(handled) if core.recent.total().is_multiple_of(RESET_TIMER_EVERY) => {
            reset_timer(core, regs, handled)
        }
        Some(handled) => handled,
        None => Handled::Cold,
    }
}

// Functions that are not inlined stand last in their callers, so that the straight paths need not
// save the registers that these functions use.

/// A timer of the backend's own has lost the time that these exits took.
#[inline(never)]
fn reset_timer(core: &VcpuCore, regs: &mut impl ExitRegs, handled: Handled) -> Handled {
    if let TimerKind::Own { .. } = core.timer.kind {
        let now = regs.tsc();
        regs.arm(&core.timer, now);
    }
    // If the compiler saw that this is the value that was passed, the callers would keep it, in a
    // register that they would have to save, instead of jumping here.
    core::hint::black_box(handled)
}

/// The exit is served, but the general code has to look at what is pending.
#[inline(always)]
fn recheck(core: &mut VcpuCore) -> Handled {
    core.served = true;
    Handled::Recheck
}

/// Completes the instruction, if that is simple, and notes the exit.
#[inline(always)]
fn advance(core: &mut VcpuCore, regs: &mut impl ExitRegs, exit: VmExit) -> Option<Instruction> {
    let instruction = regs.instruction()?;
    if !regs.advance(instruction, core.hold) {
        return None;
    }
    core.recent.note(instruction.rip, exit);
    Some(instruction)
}

#[inline(always)]
fn cpuid(core: &mut VcpuCore, regs: &mut impl ExitRegs) -> Option<Handled> {
    match core.leaves.get(core.gpr(Gpr::Rax).low32()).copied() {
        Some(answer) => answer_cpuid(core, regs, answer),
        None => look_cpuid_up(core, regs),
    }
}

/// A leaf whose answer is not at hand.
#[inline(never)]
fn look_cpuid_up(core: &mut VcpuCore, regs: &mut impl ExitRegs) -> Option<Handled> {
    let (leaf, subleaf) = (core.gpr(Gpr::Rax).low32(), core.gpr(Gpr::Rcx).low32());
    // One emulator lets the guest change XCR0 without an exit.
    if core.cpuid.shows_xcr0(leaf) {
        return None;
    }
    let answer = core.cpuid.lookup(leaf, subleaf, core.leaves.view());
    answer_cpuid(core, regs, answer)
}

#[inline(always)]
fn answer_cpuid(
    core: &mut VcpuCore,
    regs: &mut impl ExitRegs,
    answer: CpuidResult,
) -> Option<Handled> {
    advance(core, regs, VmExit::Cpuid)?;
    let [rax, rcx, rdx, rbx, ..] = &mut core.hot.gpr;
    *rax = answer.eax.into();
    *rbx = answer.ebx.into();
    *rcx = answer.ecx.into();
    *rdx = answer.edx.into();
    core.counts.hot.cpuid += 1;
    Some(Handled::Reenter)
}

#[inline(always)]
fn read_msr(core: &mut VcpuCore, regs: &mut impl ExitRegs) -> Option<Handled> {
    let value = match Msr(core.gpr(Gpr::Rcx).low32()) {
        Msr::APIC_BASE => core.lapic.apic_base(),
        _ => return None,
    };
    advance(core, regs, VmExit::ReadMsr)?;
    core.set_gpr(Gpr::Rax, value.low32().into());
    core.set_gpr(Gpr::Rdx, high32(value).into());
    core.counts.hot.read_msr += 1;
    Some(Handled::Reenter)
}

/// The value that WRMSR writes.
#[inline(always)]
fn written(core: &VcpuCore) -> u64 {
    join(core.gpr(Gpr::Rdx).low32(), core.gpr(Gpr::Rax).low32())
}

#[inline(always)]
fn write_msr(core: &mut VcpuCore, regs: &mut impl ExitRegs) -> Handled {
    let value = written(core);
    let handled = match Msr(core.gpr(Gpr::Rcx).low32()) {
        Msr::TSC_DEADLINE => return write_tsc_deadline(core, regs, value),
        Msr::X2APIC_EOI => write_eoi(core, regs, value),
        Msr::X2APIC_SELF_IPI | Msr::X2APIC_ICR => send_to_self(core, regs, value),
        _ => None,
    };
    finish(core, regs, handled)
}

/// A TSC deadline of the guest's that is still to come moves the CPU's deadline.
#[inline(always)]
fn write_tsc_deadline(core: &mut VcpuCore, regs: &mut impl ExitRegs, value: u64) -> Handled {
    let tsc = regs.tsc();
    let now = Ticks(tsc.wrapping_add(core.timer.offset));
    let Some(ahead) = core.lapic.tsc_deadline_ahead(value, now) else { return Handled::Cold };
    if advance(core, regs, VmExit::WriteMsr).is_none() {
        return Handled::Cold;
    }
    core.counts.hot.write_msr += 1;
    core.lapic.move_tsc_deadline(value, now, ahead);
    // A TSC does not come near 2^63, nor is the deadline so far ahead.
    if core.timer.set(tsc.wrapping_add(ahead)) {
        regs.arm(&core.timer, tsc);
        return Handled::Reenter;
    }
    finish(core, regs, Some(Handled::Reenter))
}

#[inline(always)]
fn write_eoi(core: &mut VcpuCore, regs: &mut impl ExitRegs, value: u64) -> Option<Handled> {
    if value != 0 || core.lapic.mode() != ApicMode::X2Apic {
        return None;
    }
    if core.lapic.in_service_is_level() {
        return end_level(core, regs);
    }
    advance(core, regs, VmExit::WriteMsr)?;
    core.counts.hot.write_msr += 1;
    core.lapic.end_edge();
    // An interrupt that waited has to be injected, or waits for the task priority alone now: that
    // is the general code's work.
    if core.lapic.highest_pending().is_some() {
        return Some(recheck(core));
    }
    Some(Handled::Reenter)
}

/// The general code has to tell the I/O APIC that a level-triggered interrupt has ended.
#[inline(never)]
fn end_level(core: &mut VcpuCore, regs: &mut impl ExitRegs) -> Option<Handled> {
    advance(core, regs, VmExit::WriteMsr)?;
    core.counts.hot.write_msr += 1;
    core.ended_level = core.lapic.eoi();
    Some(recheck(core))
}

/// An interrupt that the vCPU sends to itself: the general code has only to
/// inject it.
#[inline(never)]
fn send_to_self(core: &mut VcpuCore, regs: &mut impl ExitRegs, value: u64) -> Option<Handled> {
    let msr = Msr(core.gpr(Gpr::Rcx).low32());
    let vector = core.lapic.sent_to_self(msr, value)?;
    advance(core, regs, VmExit::WriteMsr)?;
    core.counts.hot.write_msr += 1;
    if msr == Msr::X2APIC_ICR {
        core.lapic.note_command(value);
    }
    // Through the mailbox: where the CPU keeps the interrupts of a running
    // guest, the model's registers are not in force now.
    core.shared.post(vector, Trigger::Edge);
    Some(recheck(core))
}

#[inline(always)]
fn hypercall(core: &mut VcpuCore, regs: &mut impl ExitRegs) -> Option<Handled> {
    // The null call: KVM's poll for interrupts, which has nothing to do.
    if core.gpr(Gpr::Rax) != kvm::call::VAPIC_POLL_IRQ || regs.cpl() != 0 {
        return None;
    }
    advance(core, regs, VmExit::Hypercall)?;
    core.set_gpr(Gpr::Rax, 0);
    core.counts.hot.hypercall += 1;
    Some(Handled::Reenter)
}

#[inline(always)]
fn port(core: &mut VcpuCore, regs: &mut impl ExitRegs) -> Option<Handled> {
    let PlainPort { port, direction, .. } = regs.byte_port()?;
    let exit = VmExit::PortIo(PortIo { port, width: Width::B1, direction, string: None });
    let rax = core.gpr(Gpr::Rax);
    match direction {
        Direction::In => {
            let Some(value) = core.board.hot_read(port) else { return nobodys(core, regs) };
            advance(core, regs, exit)?;
            core.set_gpr(Gpr::Rax, rax & !0xff | u64::from(value));
        }
        Direction::Out => {
            let Some(mut ready) = core.board.hot_write(port) else { return nobodys(core, regs) };
            let instruction = regs.instruction()?;
            if !regs.advance(instruction, core.hold) {
                return None;
            }
            ready.write(rax.low8());
            core.recent.note(instruction.rip, exit);
        }
    }
    core.counts.hot.port_io += 1;
    Some(Handled::Reenter)
}

/// An access of one byte to a port at which nobody answers: Linux waits for slow devices by writes
/// to port 0x80.
#[inline(never)]
fn nobodys(core: &mut VcpuCore, regs: &mut impl ExitRegs) -> Option<Handled> {
    let PlainPort { port, direction, .. } = regs.byte_port()?;
    if !core.board.is_nobodys(port, &core.ports) {
        return None;
    }
    advance(
        core,
        regs,
        VmExit::PortIo(PortIo { port, width: Width::B1, direction, string: None }),
    )?;
    if direction == Direction::In {
        core.set_gpr(Gpr::Rax, core.gpr(Gpr::Rax) | 0xff);
    }
    core.counts.hot.port_io += 1;
    Some(Handled::Reenter)
}

/// A write to a doorbell, by any width. Its value does not count.
#[inline(always)]
fn ring(core: &mut VcpuCore, regs: &mut impl ExitRegs) -> Option<Handled> {
    let PlainPort { port, width, direction: Direction::Out } = regs.port()? else { return None };
    let (device, bits) = core.board.hot_bell(port, &core.ports)?;
    let io = PortIo { port, width, direction: Direction::Out, string: None };
    advance(core, regs, VmExit::PortIo(io))?;
    core.counts.hot.port_io += 1;
    if core.board.hot_mark(device, bits) {
        if core.owed == 0 {
            let now = regs.tsc();
            core.owed_since = now;
            if core.timer.owes_since(now) {
                regs.arm(&core.timer, now);
            }
        }
        core.owed |= 1 << device;
        if core.idle_cpus.load(Ordering::Relaxed) != 0 {
            // The loop pays, and an idle CPU works while this one goes on.
            return Some(recheck(core));
        }
    }
    Some(Handled::Reenter)
}

#[inline(always)]
fn touch(core: &mut VcpuCore, regs: &mut impl ExitRegs) -> Option<Handled> {
    let gpa = regs.touched()?;
    if !core.memory.touch(gpa) {
        return None;
    }
    let fault = NestedFault { gpa, access: NestedAccess::empty(), gva: None };
    core.recent.note(regs.rip(), VmExit::NestedFault(fault));
    core.counts.hot.touch += 1;
    Some(Handled::Reenter)
}
