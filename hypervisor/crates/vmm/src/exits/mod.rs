//! Serves exits: one arm for each kind, one call for each arm.

mod apic;
mod events;
mod hypercalls;
mod instruction;
mod msrs;
mod nested_fault;
mod plain;
mod ports;
mod registers;
mod task_switch;

pub(crate) use msrs::tell_clock;
pub(crate) use nested_fault::{DELIVERY, EXECUTION};

use crate::backend::Backend;
use crate::end::{EndReason, VmError};
use crate::vcpu::Vcpu;
use crate::vm::{Host, Vm};
use instruction::{Served, instruction};
use memory::GuestRam;
use x86defs::exit::CacheControl;
use x86defs::{Event, VmExit};

/// Serves one exit.
pub(crate) fn serve<B: Backend, M: GuestRam>(
    vcpu: &mut Vcpu<B>,
    vm: &Vm<M>,
    host: &mut impl Host,
    exit: &VmExit,
) -> Served {
    match *exit {
        VmExit::HostInterrupt | VmExit::Nmi | VmExit::NmiWindow | VmExit::TimesliceExpired => {
            events::halt_in_lost_shadow(vcpu, vm, host);
        }
        VmExit::TaskPriorityLowered | VmExit::Init => {}
        VmExit::InterruptWindow => return events::interrupt_window(vcpu, vm, host),
        VmExit::PortIo(io) => return ports::serve(vcpu, vm, host, io),
        VmExit::NestedFault(fault) => return nested_fault::serve(vcpu, vm, host, fault),
        VmExit::ApicAccess(access) => return apic::accessed(vcpu, vm, host, access),
        VmExit::ApicWrite(write) => return apic::written(vcpu, vm, host, write),
        VmExit::VirtualEoi(vector) => return apic::ended(vcpu, vm, vector),
        VmExit::Cpuid => return instruction(vcpu, vm, host, exit, plain::cpuid),
        VmExit::ReadMsr => return instruction(vcpu, vm, host, exit, msrs::read),
        VmExit::WriteMsr => return instruction(vcpu, vm, host, exit, msrs::write),
        VmExit::Hypercall => return instruction(vcpu, vm, host, exit, hypercalls::serve),
        VmExit::CrAccess(access) => return registers::control(vcpu, vm, host, access),
        VmExit::DrAccess(access) => return registers::debug(vcpu, vm, host, access),
        VmExit::Xsetbv => return instruction(vcpu, vm, host, exit, registers::xsetbv),
        VmExit::Halt => return instruction(vcpu, vm, host, exit, plain::halt),
        VmExit::CacheControl(CacheControl::Invd | CacheControl::Wbinvd) => {
            return instruction(vcpu, vm, host, exit, plain::cache);
        }
        VmExit::Pause => return instruction(vcpu, vm, host, exit, plain::pause),
        // CPUID offers none of these.
        VmExit::Monitor(_) | VmExit::VirtualizationInstruction | VmExit::Unoffered => {
            vcpu.raise(Event::ud());
        }
        // CPUID offers no counters.
        VmExit::Rdpmc => vcpu.raise(Event::gp0()),
        VmExit::Exception(exception) => events::reflect(vcpu, exception),
        VmExit::TripleFault => return Ok(Some(EndReason::TripleFault)),
        VmExit::MachineCheck => return Err(VmError::MachineCheck),
        VmExit::TaskSwitch(switch) => return task_switch::serve(vcpu, vm, host, switch),
        VmExit::InvalidState(raw) => return Err(VmError::InvalidState(raw)),
        VmExit::BrokenRule(rule) => return Err(VmError::Internal(rule)),
        VmExit::Unhandled(raw) => return Err(VmError::UnknownExit(raw)),
        VmExit::Rdtsc
        | VmExit::CacheControl(_)
        | VmExit::DescriptorTable(_)
        | VmExit::DirtyLogFull
        | VmExit::StartupIpi(_) => {
            return Err(VmError::Internal("an exit that nobody asked for"));
        }
    }
    Ok(None)
}
