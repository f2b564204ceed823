//! The local APIC, where the CPU runs a part of it.

use super::instruction::Served;
use super::nested_fault::{DELIVERY, EXECUTION, access, not_offered};
use crate::apic;
use crate::backend::Backend;
use crate::end::VmError;
use crate::vcpu::Vcpu;
use crate::vm::{Host, Vm};
use devices::lapic::{APIC_BASE_ADDRESS, Ticks};
use memory::{GuestRam, MemoryError};
use x86defs::exit::{ApicAccess, ApicAccessKind, ApicWrite};
use x86defs::{GuestPhysAddr, Vector};

/// An access to the APIC's page that the CPU does not virtualize by itself.
pub(super) fn accessed<B: Backend, M: GuestRam>(
    vcpu: &mut Vcpu<B>,
    vm: &Vm<M>,
    host: &mut impl Host,
    which: ApicAccess,
) -> Served {
    match which.kind {
        ApicAccessKind::Read | ApicAccessKind::Write => access(vcpu, vm, host),
        ApicAccessKind::Fetch => not_offered(vcpu, vm, host, || VmError::NotOffered(EXECUTION)),
        ApicAccessKind::Delivery => Err(VmError::NotOffered(DELIVERY)),
        ApicAccessKind::Physical => {
            let gpa = GuestPhysAddr::new(APIC_BASE_ADDRESS + u64::from(which.offset.unwrap_or(0)));
            Err(MemoryError::NotRam(gpa).into())
        }
    }
}

/// The guest wrote a register; the CPU has written the value down.
pub(super) fn written<B: Backend, M: GuestRam>(
    vcpu: &mut Vcpu<B>,
    vm: &Vm<M>,
    host: &impl Host,
    write: ApicWrite,
) -> Served {
    let now = Ticks(vcpu.core.line.ticks(host.tsc()));
    let effect = vcpu.core.lapic.written(write.offset, write.value, now);
    apic::apply(vcpu, vm, effect);
    Ok(None)
}

/// The CPU ended the interrupt `vector`, whose end an I/O APIC may wait for.
pub(super) fn ended<B: Backend, M: GuestRam>(
    vcpu: &mut Vcpu<B>,
    vm: &Vm<M>,
    vector: Vector,
) -> Served {
    if let Some(vector) = vcpu.core.lapic.ended(vector) {
        vm.fabric.end_of_interrupt(vector);
    }
    Ok(None)
}
