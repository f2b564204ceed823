//! Hardware task switches, where the CPU leaves them to the hypervisor
//! (SDM: "Treatment of Task Switches").

use super::instruction::{Served, behind, emulated, raise, told_end};
use super::registers::directory_pointers;
use crate::backend::Backend;
use crate::emulate::Emulated;
use crate::end::VmError;
use crate::vcpu::Vcpu;
use crate::vm::{Host, Vm};
use memory::GuestRam;
use x86defs::exit::{TaskSwitch, TaskSwitchSource};
use x86defs::{Event, EventKind, Exception};
use x86emu::{Fault, Switched, TaskCpu, TaskRequest};

/// DR6.BT: a task switch to a TSS with its debug trap set.
const DR6_TASK_SWITCH: u64 = 1 << 15;
/// Breakpoints of DR7 that hold for one task: L0 to L3, and LE.
const DR7_LOCAL: u64 = 0x155;

/// Why a guest can't go on in whose task switch memory went away.
const HALF_DONE: &str = "to switch tasks while the memory of their state is taken away";

/// Makes the switch. An event that came through a task gate is delivered by it, and is not
/// delivered again; if the switch faults, that fault joins the event as any fault of a delivery does.
pub(super) fn serve<B: Backend, M: GuestRam>(
    vcpu: &mut Vcpu<B>,
    vm: &Vm<M>,
    host: &impl Host,
    switch: TaskSwitch,
) -> Served {
    let gate = switch.source == TaskSwitchSource::Gate;
    let event = vcpu.core.exit.interrupted.filter(|_| gate);
    let request = TaskRequest {
        switch,
        next_rip: next_rip(vcpu, gate, event)?,
        // SDM: "Saving RIP, RSP, RFLAGS, and SSP": of an interrupt or an NMI RF is as it must be.
        resumes: match event.map(|event| event.kind) {
            Some(EventKind::Interrupt | EventKind::Nmi) => None,
            Some(EventKind::Exception) => event.map(|event| Exception(event.vector).is_fault()),
            _ => Some(false),
        },
        external: event.is_some_and(|event| !is_by_software(event)),
        error_code: event.and_then(|event| event.error_code),
    };
    let Switched { committed, outcome } =
        x86emu::task_switch(&mut emulated(vcpu, vm, host), &request);
    if matches!(outcome, Ok(_) | Err(Fault::Exception(_))) {
        match (switch.source, event) {
            // IRET ends the blocking, whatever it returns to.
            (TaskSwitchSource::Iret, _) if committed => vcpu.set_nmi_blocked(false),
            // So does the attempt to deliver an NMI begin it.
            (_, Some(Event { kind: EventKind::Nmi, .. })) => vcpu.set_nmi_blocked(true),
            _ => {}
        }
    }
    if committed {
        if vcpu.interrupt_shadow() {
            vcpu.set_interrupt_shadow(false);
        }
        let dr7 = vcpu.dr(7);
        if dr7 & DR7_LOCAL != 0 {
            vcpu.set_dr(7, dr7 & !DR7_LOCAL);
        }
    }
    match outcome {
        Ok(entry) => {
            if gate {
                vcpu.delivered();
            }
            if entry.traps {
                let dr6 = vcpu.dr(6) | DR6_TASK_SWITCH;
                vcpu.set_dr(6, dr6);
                vcpu.raise(Event::exception(Exception::DB));
            }
            Ok(None)
        }
        Err(Fault::Exception(exception)) => {
            raise(vcpu, exception);
            Ok(None)
        }
        // The guest can't be made to try that again.
        Err(Fault::Host(VmError::Memory(_))) if committed => Err(VmError::NotOffered(HALF_DONE)),
        Err(Fault::Host(error)) => Err(error),
    }
}

/// RIP at which the task that is left will go on: behind the instruction that is the cause, or
/// where an event has come.
fn next_rip<B: Backend>(vcpu: &Vcpu<B>, gate: bool, event: Option<Event>) -> Result<u64, VmError> {
    match event.map(|event| event.kind) {
        Some(EventKind::SoftwareInterrupt(length) | EventKind::SoftwareException(length)) => {
            Ok(behind(vcpu, length))
        }
        Some(_) => Ok(vcpu.rip()),
        // A gate without an event is INT1's, which no interrupted delivery tells of.
        None => match told_end(vcpu) {
            Some(rip) => Ok(rip),
            None if gate => Ok(vcpu.rip()),
            None => Err(VmError::NotOffered("a task switch by an instruction of unknown length")),
        },
    }
}

/// Whether INT n or its kin is the cause.
const fn is_by_software(event: Event) -> bool {
    matches!(event.kind, EventKind::SoftwareInterrupt(_) | EventKind::SoftwareException(_))
}

impl<B: Backend, M: GuestRam> TaskCpu for Emulated<'_, B, M> {
    fn probe_system(&mut self, linear: u64, len: usize) -> Result<(), Fault<VmError>> {
        Emulated::probe_system(self, linear, len)
    }

    fn load_cr3(&mut self, cr3: u64) -> Result<bool, Fault<VmError>> {
        // SDM: "Invalidation of TLBs and Paging-Structure Caches": a switch that leaves CR3 as it
        // is forgets nothing, and loads no pointers.
        if cr3 == self.vcpu.cr3() {
            return Ok(true);
        }
        let (cr0, cr4) = (self.vcpu.cr0(), self.vcpu.cr4());
        match directory_pointers(self.vcpu, self.vm, cr0, cr4, cr3) {
            Ok(pointers) => {
                self.vcpu.set_cr3(cr3);
                if let Some(pointers) = pointers {
                    self.vcpu.set_pointers(pointers);
                }
                self.renew();
                Ok(true)
            }
            Err(_) => Ok(false),
        }
    }

    fn changed_mode(&mut self) {
        self.renew();
    }
}
