//! Guest-physical accesses that the nested tables stopped: RAM that is not
//! backed yet, or device memory.

use super::instruction::{Served, raise};
use crate::backend::Backend;
use crate::emulate::Emulated;
use crate::end::VmError;
use crate::vcpu::Vcpu;
use crate::vm::{Host, Vm};

use memory::slots::Rights;
use memory::{GuestRam, MemoryError};
use x86defs::exit::{NestedAccess, NestedFault};
use x86defs::{Event, Rflags};
use x86emu::{Step, Stop};

/// Why a guest can't go on whose stack or descriptors lie in device memory.
pub(crate) const DELIVERY: &str = "to deliver an event through memory that is not RAM";

/// Why a guest can't go on whose RIP is in device memory.
pub(crate) const EXECUTION: &str = "to execute instructions from device memory";

pub(super) fn serve<B: Backend, M: GuestRam>(
    vcpu: &mut Vcpu<B>,
    vm: &Vm<M>,
    host: &mut impl Host,
    fault: NestedFault,
) -> Served {
    match vm.memory.rights(fault.gpa) {
        None => {}
        // A write to ROM is lost.
        Some(Rights::Rom) if fault.access.contains(NestedAccess::WRITE) => {}
        Some(_) => {
            vm.memory.populate(fault.gpa)?;
            return Ok(None);
        }
    }
    if fault.access.contains(NestedAccess::WALK) {
        // The page tables themselves are not in RAM.
        return Err(MemoryError::NotRam(fault.gpa).into());
    }
    if fault.access.contains(NestedAccess::FETCH) {
        return not_offered(vcpu, vm, host, || VmError::NotOffered(EXECUTION));
    }
    run(vcpu, vm, host, Some(fault))
}

/// The guest can't go on with what it does, for the reason `why`; but a program of it, to which its
/// kernel gave device memory, must not end it: that program gets #UD, which is counted, and told
/// now and then.
pub(super) fn not_offered<B: Backend, M: GuestRam>(
    vcpu: &mut Vcpu<B>,
    vm: &Vm<M>,
    host: &mut impl Host,
    why: impl FnOnce() -> VmError,
) -> Served {
    if vcpu.cpl() != 3 {
        return Err(why());
    }
    vcpu.core.counters.refused_instructions += 1;
    if let Some(untold) = vm.refusals.note(vcpu.core.line.now(host.tsc())) {
        host.program_refused(&vm.name, &why(), untold);
    }
    vcpu.raise(Event::ud());
    Ok(None)
}

/// The instruction at RIP accesses device memory.
pub(super) fn access<B: Backend, M: GuestRam>(
    vcpu: &mut Vcpu<B>,
    vm: &Vm<M>,
    host: &mut impl Host,
) -> Served {
    run(vcpu, vm, host, None)
}

fn run<B: Backend, M: GuestRam>(
    vcpu: &mut Vcpu<B>,
    vm: &Vm<M>,
    host: &mut impl Host,
    fault: Option<NestedFault>,
) -> Served {
    // The trap after an instruction is that of the flags before it: POPF may change them.
    let stepped = vcpu.rflags().contains(Rflags::TF);
    match x86emu::step(&mut Emulated::new(vcpu, vm, host.tsc(), fault)) {
        Ok(Step::Done) => vcpu.end_stepped(stepped),
        Ok(Step::Shadow) => vcpu.end_in_shadow(),
        Ok(Step::Again) => vcpu.end_iteration(),
        Err(Stop::Exception(exception)) => raise(vcpu, exception),
        Err(Stop::Unsupported(what)) => {
            return not_offered(vcpu, vm, host, || VmError::Instruction(alloc::format!("{what}")));
        }
        Err(Stop::Host(error)) => return Err(error),
    }
    Ok(None)
}
