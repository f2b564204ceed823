//! VMCALL and VMMCALL.

use super::instruction::Done;
use crate::backend::Backend;
use crate::counters::Counters;
use crate::end::{EndReason, VmError};
use crate::hypercall::{Caller, HypercallHost, Ipis, Outcome, dispatch};
use crate::pv::PvFeatures;
use crate::vcpu::Vcpu;
use crate::vm::{Host, Vm};
use chipset::fabric::Requests;
use hvabi::{CallSet, Registers, ShutDownKind, kvm};
use memory::{GuestMemory, GuestRam};
use x86defs::Gpr;

/// Serves hypercalls.
struct CallHost<'a, M> {
    vm: &'a Vm<M>,
    pairing: kvm::ClockPairing,
    since_start: u64,
    wall_clock: u64,
    /// The caller.
    index: usize,
    allowed: CallSet,
    offered: PvFeatures,
    counts: &'a mut Counters,
}

impl<M: GuestRam> HypercallHost for CallHost<'_, M> {
    fn memory(&self) -> &impl GuestMemory {
        &self.vm.memory
    }

    fn console_write(&mut self, bytes: &[u8]) -> usize {
        self.vm.board.console_write(bytes)
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
        if let Some(index) = self.vm.fabric.vcpu_of(apic_id) {
            self.counts.kicks += 1;
            self.vm.fabric.request(index, Requests::UNHALT);
        }
    }

    fn send_ipis(&mut self, ipis: &Ipis) -> u64 {
        let sent = ipis.send(self.vm);
        self.counts.ipi_calls += 1;
        self.counts.ipis += sent;
        sent
    }

    fn waits_for_cpu(&self, apic_id: u64) -> bool {
        self.vm.fabric.vcpu_of(apic_id).is_some_and(|index| {
            index != self.index
                && self.vm.fabric.mailbox(index).is_some_and(|posted| !posted.is_on_cpu())
        })
    }
}

/// Serves the call that the guest makes.
pub(super) fn serve<B: Backend, M: GuestRam, H: Host>(
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
    let caller = Caller { cpl: vcpu.cpl(), mode: vcpu.mode() };
    let time = host.time();
    let clock = vm.clock.read();
    let mut call_host = CallHost {
        vm,
        pairing: clock.clock_pairing(&vcpu.core.clock, time),
        since_start: clock.now(time.tsc).0,
        wall_clock: clock.wall(time.tsc),
        index: vcpu.index,
        allowed: vcpu.core.cpuid.calls(),
        offered: vcpu.core.cpuid.pv(),
        counts: &mut vcpu.core.counters,
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
