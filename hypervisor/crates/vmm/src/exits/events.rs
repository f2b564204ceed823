//! Events on their way to the guest: exceptions that were intercepted, and moments at which it
//! can take an interrupt.

use super::instruction::{Served, behind, emulated};
use crate::backend::{Backend, InterruptDelivery};
use crate::vcpu::{Activity, Vcpu};
use crate::vm::{Host, Vm};
use memory::GuestRam;
use x86defs::exit::ExceptionExit;
use x86defs::{Event, VmExit};

/// Gives back an exception that was intercepted only to be seen.
pub(super) fn reflect<B: Backend>(vcpu: &mut Vcpu<B>, exit: ExceptionExit) {
    if let Some(address) = exit.address {
        vcpu.set_cr2(address);
    }
    vcpu.raise(match exit.error_code {
        Some(code) => Event::exception_with_code(exit.exception, code),
        None => Event::exception(exit.exception),
    });
}

/// The guest can take an interrupt.
pub(super) fn interrupt_window<B: Backend, M: GuestRam>(
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
                let _ = vm.fabric.pic_acknowledge();
            }
        }
    }
    halt_in_lost_shadow(vcpu, vm, host);
    Ok(None)
}

/// Executes the HLT of `STI; HLT` where the CPU has lost the shadow before it:
/// an interrupt that came before the HLT would leave the vCPU halted without
/// its wake-up. Before any other instruction it does no harm.
pub(super) fn halt_in_lost_shadow<B: Backend, M: GuestRam>(
    vcpu: &mut Vcpu<B>,
    vm: &Vm<M>,
    host: &impl Host,
) {
    if vcpu.lost_shadow()
        && vcpu.cpl() == 0
        && let Ok(found) = x86emu::skip(&mut emulated(vcpu, vm, host), &VmExit::Halt)
    {
        let next = behind(vcpu, found.length);
        vcpu.activity = Activity::Halted;
        vcpu.complete(next);
    }
}
