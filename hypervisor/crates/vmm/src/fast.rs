//! The hot handler: exits that come often, served in place.
//!
//! It is called from a backend's assembly with the guest's registers saved,
//! takes no lock, allocates nothing and reads of the hardware only what it
//! needs. What it does not know, or can't finish, it declines.

use crate::hw::{ExitRegs, Handled, HotReason};
use crate::vcpu::VcpuCore;
use hvabi::kvm;
use x86defs::bits::{Low, high32};
use x86defs::{Gpr, Msr};

/// Serves one exit, or declines.
#[inline(always)]
pub fn fast_exit(core: &mut VcpuCore, regs: &mut impl ExitRegs, reason: HotReason) -> Handled {
    // Without the next RIP the instruction would have to be decoded.
    let Some(next_rip) = regs.next_rip() else { return Handled::Cold };
    match reason {
        HotReason::Cpuid => cpuid(core, regs, next_rip),
        HotReason::ReadMsr => read_msr(core, regs, next_rip),
        HotReason::WriteMsr => write_msr(core, regs, next_rip),
        HotReason::Hypercall => hypercall(core, regs, next_rip),
    }
}

#[inline(always)]
fn cpuid(core: &mut VcpuCore, regs: &mut impl ExitRegs, next_rip: u64) -> Handled {
    let [rax, rcx, rdx, rbx, ..] = &core.hot.gpr;
    let (leaf, subleaf) = (rax.low32(), rcx.low32());
    let _ = (rdx, rbx);
    let result = core.cpuid.lookup(leaf, subleaf, &core.view(regs.cr4()));
    if !regs.advance(next_rip) {
        return Handled::Cold;
    }
    let [rax, rcx, rdx, rbx, ..] = &mut core.hot.gpr;
    *rax = result.eax.into();
    *rbx = result.ebx.into();
    *rcx = result.ecx.into();
    *rdx = result.edx.into();
    core.counts.hot += 1;
    Handled::Reenter
}

#[inline(always)]
fn read_msr(core: &mut VcpuCore, regs: &mut impl ExitRegs, next_rip: u64) -> Handled {
    let msr = Msr(core.gpr(Gpr::Rcx).low32());
    let value = match msr {
        Msr::APIC_BASE => core.lapic.apic_base(),
        _ => return Handled::Cold,
    };
    if !regs.advance(next_rip) {
        return Handled::Cold;
    }
    core.set_gpr(Gpr::Rax, value.low32().into());
    core.set_gpr(Gpr::Rdx, high32(value).into());
    core.counts.hot += 1;
    Handled::Reenter
}

#[inline(always)]
fn write_msr(core: &mut VcpuCore, regs: &mut impl ExitRegs, next_rip: u64) -> Handled {
    let msr = Msr(core.gpr(Gpr::Rcx).low32());
    let zero = (core.gpr(Gpr::Rax) | core.gpr(Gpr::Rdx)).low32() == 0;
    if msr != Msr::X2APIC_EOI || !zero || core.lapic.mode() != devices::lapic::ApicMode::X2Apic {
        return Handled::Cold;
    }
    if !regs.advance(next_rip) {
        return Handled::Cold;
    }
    core.counts.hot += 1;
    // A level-triggered interrupt has to be told to the I/O APIC, and an
    // interrupt that waited has to be injected, or waits for the task priority
    // alone now: all are the general code's.
    core.ended_level = core.lapic.eoi();
    if core.ended_level.is_some() || core.lapic.highest_pending().is_some() {
        return Handled::Recheck;
    }
    Handled::Reenter
}

#[inline(always)]
fn hypercall(core: &mut VcpuCore, regs: &mut impl ExitRegs, next_rip: u64) -> Handled {
    // The null call: KVM's poll for interrupts, which has nothing to do.
    if core.gpr(Gpr::Rax) != kvm::call::VAPIC_POLL_IRQ || regs.cpl() != 0 {
        return Handled::Cold;
    }
    if !regs.advance(next_rip) {
        return Handled::Cold;
    }
    core.set_gpr(Gpr::Rax, 0);
    core.counts.hot += 1;
    Handled::Reenter
}
