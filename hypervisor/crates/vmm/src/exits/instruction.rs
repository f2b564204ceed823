//! Exits that an instruction causes: where it ends, and what it comes to.

use crate::backend::{Backend, InstructionEnd};
use crate::emulate::Emulated;
use crate::end::{EndReason, VmError};
use crate::vcpu::Vcpu;
use crate::vm::{Host, Vm};
use memory::GuestRam;
use x86defs::{Event, Exception, VmExit};
use x86emu::{Fault, GuestException, SkipError, SystemInstruction};

/// Result of serving an exit: nothing, the end of the guest, or its failure.
pub(crate) type Served = Result<Option<EndReason>, VmError>;

/// Result of an instruction's handler.
pub(crate) enum Done {
    /// The instruction is done.
    Complete,
    /// The instruction is done, and the guest ends with it.
    End(EndReason),
    /// The instruction faults instead.
    Fault(Event),
}

/// An emulation context at this moment.
pub(crate) fn emulated<'a, B: Backend, M: GuestRam>(
    vcpu: &'a mut Vcpu<B>,
    vm: &'a Vm<M>,
    host: &impl Host,
) -> Emulated<'a, B, M> {
    Emulated::new(vcpu, vm, host.tsc(), None)
}

/// Serves an exit caused by an instruction: finds where it ends, calls `serve`
/// and goes on behind it.
pub(crate) fn instruction<B: Backend, M: GuestRam, H: Host>(
    vcpu: &mut Vcpu<B>,
    vm: &Vm<M>,
    host: &mut H,
    exit: &VmExit,
    serve: impl FnOnce(&mut Vcpu<B>, &Vm<M>, &mut H) -> Result<Done, VmError>,
) -> Served {
    let next_rip = match told_end(vcpu) {
        Some(next_rip) => next_rip,
        None => match decode(vcpu, vm, host, exit)? {
            Some(found) => behind(vcpu, found.length),
            None => return Ok(None),
        },
    };
    match serve(vcpu, vm, host)? {
        Done::Complete => {
            vcpu.complete(next_rip);
            Ok(None)
        }
        Done::End(reason) => Ok(Some(reason)),
        Done::Fault(event) => {
            vcpu.raise(event);
            Ok(None)
        }
    }
}

/// RIP behind the instruction that caused the exit, where the hardware tells.
#[inline]
pub(crate) fn told_end<B: Backend>(vcpu: &Vcpu<B>) -> Option<u64> {
    match vcpu.hw.instruction_end() {
        InstructionEnd::Rip(rip) => Some(rip),
        InstructionEnd::Length(length) => Some(behind(vcpu, length)),
        InstructionEnd::Unknown => None,
    }
}

/// RIP behind an instruction of `length` bytes.
#[inline]
pub(crate) fn behind<B: Backend>(vcpu: &Vcpu<B>, length: u8) -> u64 {
    let rip = vcpu.rip();
    let next = rip.wrapping_add(length.into());
    // It wraps with the mode's width, which is only then looked at.
    if (rip ^ next) & !0xffff == 0 {
        return next;
    }
    match vcpu.mode().bits() {
        64 => next,
        32 => next & 0xffff_ffff,
        _ => next & 0xffff,
    }
}

/// The instruction that caused `exit`; `None` where the guest has to run it
/// again, or got an exception.
pub(crate) fn decode<B: Backend, M: GuestRam>(
    vcpu: &mut Vcpu<B>,
    vm: &Vm<M>,
    host: &impl Host,
    exit: &VmExit,
) -> Result<Option<SystemInstruction>, VmError> {
    match x86emu::skip(&mut emulated(vcpu, vm, host), exit) {
        Ok(found) => Ok(Some(found)),
        Err(SkipError::Mismatch) => {
            // Another vCPU may have rewritten the code: the guest runs it
            // again. If that ends here once more, the encoding is one that the
            // CPU should have refused (LOCK CPUID on one emulator).
            let rip = vcpu.rip();
            if vcpu.mismatch_rip.replace(rip) == Some(rip) {
                vcpu.mismatch_rip = None;
                vcpu.raise(Event::ud());
            }
            Ok(None)
        }
        Err(SkipError::Fault(Fault::Exception(exception))) => {
            raise(vcpu, exception);
            Ok(None)
        }
        Err(SkipError::Fault(Fault::Host(error))) => Err(error),
    }
}

/// Raises an exception of an emulated instruction.
pub(crate) fn raise<B: Backend>(vcpu: &mut Vcpu<B>, exception: GuestException) {
    if let (Exception::PF, Some(address)) = (exception.exception, exception.address) {
        vcpu.set_cr2(address);
    }
    vcpu.raise(exception.event());
}
