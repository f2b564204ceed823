//! Guest-physical accesses that the nested tables stopped: RAM that is not
//! backed yet, or device memory.

use super::{Served, emulated, raise};
use crate::hw::Backend;
use crate::memory::{GuestRam, MemoryError};
use crate::vcpu::Vcpu;
use crate::vm::{Host, Vm, VmError};
use x86defs::exit::{NestedAccess, NestedFault};
use x86emu::{Step, Stop};

pub(super) fn serve<B: Backend, M: GuestRam>(
    vcpu: &mut Vcpu<B>,
    vm: &Vm<M>,
    host: &mut impl Host,
    fault: NestedFault,
) -> Served {
    let rom = fault.access.contains(NestedAccess::WRITE) && vm.memory.is_rom(fault.gpa);
    if vm.memory.is_ram(fault.gpa) && !rom {
        vm.memory.populate(fault.gpa)?;
        return Ok(None);
    }
    if fault.access.contains(NestedAccess::WALK) {
        // The page tables themselves are not in RAM.
        return Err(MemoryError::NotRam(fault.gpa).into());
    }
    if fault.access.contains(NestedAccess::FETCH) {
        return Err(VmError::NotOffered("to execute instructions from device memory"));
    }
    match x86emu::step(&mut emulated(vcpu, vm, host)) {
        Ok(Step::Done) => vcpu.end_instruction(),
        Ok(Step::Again) => vcpu.trap_single_step(),
        Err(Stop::Exception(exception)) => raise(vcpu, exception),
        Err(Stop::Unsupported(what)) => {
            return Err(VmError::Instruction(alloc::format!("{what}")));
        }
        Err(Stop::Host(error)) => return Err(error),
    }
    Ok(None)
}
