//! Effects of a vCPU's local APIC on its machine.

use crate::backend::Backend;
use crate::vcpu::Vcpu;
use crate::vm::Vm;
use devices::lapic::{Effect, Lint, LintEvent};
use memory::GuestRam;

/// Does what a write to the local APIC asks for.
pub(crate) fn apply<B: Backend, M: GuestRam>(vcpu: &mut Vcpu<B>, vm: &Vm<M>, effect: Effect) {
    match effect {
        Effect::None | Effect::Pending | Effect::TimerChanged => {}
        Effect::Eoi { vector, broadcast } => {
            if broadcast {
                vm.fabric.end_of_interrupt(vector);
            }
        }
        Effect::Ipi(command) => vm.fabric.deliver_ipi(vcpu.index, &command),
        Effect::IdentityChanged => {
            vm.fabric.routes().publish(vcpu.index, vcpu.core.lapic.identity());
            if vcpu.core.lapic.is_in_place() {
                vm.memory.open_apic_page();
            } else {
                vm.memory.close_apic_page();
            }
            // Due at each switch of the page, on or off: translations that the CPU cached while it
            // did not watch the page may be used when it does (SDM: "Issues Pertaining to Page Size
            // and TLB Management").
            vcpu.hw.invalidate();
        }
    }
}

/// Sets a pin of the local APIC; returns whether that makes an NMI.
pub(crate) fn set_lint<B: Backend>(vcpu: &mut Vcpu<B>, pin: Lint, asserted: bool) -> bool {
    vcpu.core.lapic.set_lint(pin, asserted) == LintEvent::Nmi
}
