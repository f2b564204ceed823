//! Instructions that take a few lines: CPUID, HLT, PAUSE.

use super::instruction::Done;
use crate::backend::Backend;
use crate::end::VmError;
use crate::vcpu::{Activity, Vcpu};
use crate::vm::{Host, Vm};
use memory::GuestRam;
use x86defs::Gpr;
use x86defs::bits::Low;

pub(super) fn cpuid<B: Backend, M: GuestRam, H: Host>(
    vcpu: &mut Vcpu<B>,
    _: &Vm<M>,
    _: &mut H,
) -> Result<Done, VmError> {
    let (leaf, subleaf) = (vcpu.gpr(Gpr::Rax).low32(), vcpu.gpr(Gpr::Rcx).low32());
    let result = vcpu.core.cpuid.lookup(leaf, subleaf, &vcpu.core.view(vcpu.cr4()));
    vcpu.set_gpr(Gpr::Rax, result.eax.into());
    vcpu.set_gpr(Gpr::Rbx, result.ebx.into());
    vcpu.set_gpr(Gpr::Rcx, result.ecx.into());
    vcpu.set_gpr(Gpr::Rdx, result.edx.into());
    Ok(Done::Complete)
}

pub(super) fn halt<B: Backend, M: GuestRam, H: Host>(
    vcpu: &mut Vcpu<B>,
    _: &Vm<M>,
    _: &mut H,
) -> Result<Done, VmError> {
    vcpu.activity = Activity::Halted;
    Ok(Done::Complete)
}

/// The vCPU spins: it waits for another vCPU to do something.
pub(super) fn pause<B: Backend, M: GuestRam, H: Host>(
    vcpu: &mut Vcpu<B>,
    vm: &Vm<M>,
    _: &mut H,
) -> Result<Done, VmError> {
    let others = vm.fabric.mailboxes().iter().enumerate().filter(|(index, _)| *index != vcpu.index);
    // The vCPU would only lose time while all others run.
    if others.into_iter().any(|(_, other)| !other.is_on_cpu()) {
        vcpu.give_way();
    }
    Ok(Done::Complete)
}

/// Caches are the machine's: a guest must not make others pay for them, and its memory is
/// coherent without it.
pub(super) fn cache<B: Backend, M: GuestRam, H: Host>(
    _: &mut Vcpu<B>,
    _: &Vm<M>,
    _: &mut H,
) -> Result<Done, VmError> {
    Ok(Done::Complete)
}
