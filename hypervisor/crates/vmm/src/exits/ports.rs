//! IN, OUT, INS and OUTS.

use super::instruction::{Served, behind, decode, emulated, raise, told_end};
use crate::backend::Backend;
use crate::emulate::Emulated;
use crate::end::{EndReason, VmError};
use crate::vcpu::Vcpu;
use crate::vm::{Host, Vm};
use chipset::BoardEnd;
use devices::firmware::FirmwareNews;
use memory::GuestRam;
use x86defs::bits::Low;
use x86defs::exit::{Direction, PortIo};
use x86defs::time::Nanos;
use x86defs::{Gpr, VmExit, Width};
use x86emu::{Ports, Step, Stop};

pub(super) fn serve<B: Backend, M: GuestRam>(
    vcpu: &mut Vcpu<B>,
    vm: &Vm<M>,
    host: &mut impl Host,
    io: PortIo,
) -> Served {
    let now = vcpu.core.line.now(host.tsc());
    if io.string.is_some() {
        return string(vcpu, vm, host, now);
    }
    let next_rip = match told_end(vcpu) {
        Some(next_rip) => next_rip,
        None => match decode(vcpu, vm, host, &VmExit::PortIo(io))? {
            Some(found) => behind(vcpu, found.length),
            None => return Ok(None),
        },
    };
    let mut bus = Bus { vm, now, end: None, firmware: None };
    let rax = vcpu.gpr(Gpr::Rax);
    match io.direction {
        Direction::In => {
            let value = bus.port_in(io.port, io.width)?;
            vcpu.set_gpr(Gpr::Rax, io.width.merge(rax, value.into()));
        }
        Direction::Out => bus.port_out(io.port, io.width, rax.low32())?,
    }
    let end = bus.finish(host);
    vcpu.complete(next_rip);
    Ok(end)
}

fn string<B: Backend, M: GuestRam>(
    vcpu: &mut Vcpu<B>,
    vm: &Vm<M>,
    host: &mut impl Host,
    now: Nanos,
) -> Served {
    let mut bus = Bus { vm, now, end: None, firmware: None };
    let mut cpu: Emulated<'_, B, M> = emulated(vcpu, vm, host);
    let result = x86emu::string_io(&mut cpu, &mut bus);
    let end = bus.finish(host);
    match result {
        Ok(Step::Done | Step::Shadow) => vcpu.end_instruction(),
        Ok(Step::Again) => vcpu.end_iteration(),
        Err(Stop::Exception(exception)) => raise(vcpu, exception),
        Err(Stop::Unsupported(what)) => {
            return Err(VmError::Instruction(alloc::format!("{what}")));
        }
        Err(Stop::Host(error)) => return Err(error),
    }
    Ok(end)
}

/// The guest's port bus during one instruction.
struct Bus<'a, M> {
    vm: &'a Vm<M>,
    now: Nanos,
    end: Option<BoardEnd>,
    firmware: Option<FirmwareNews>,
}

impl<M: GuestRam> Bus<'_, M> {
    /// Tells the host what it is to know, and whether the guest is to end.
    fn finish(self, host: &mut impl Host) -> Option<EndReason> {
        if let Some(news) = self.firmware {
            host.firmware_entered(&self.vm.name, news);
        }
        self.end.map(EndReason::from)
    }
}

impl<M: GuestRam> Ports for Bus<'_, M> {
    type Error = VmError;

    fn port_in(&mut self, port: u16, width: Width) -> Result<u32, VmError> {
        let vm = self.vm;
        Ok(vm.board.port_read(port, width, self.now))
    }

    fn port_out(&mut self, port: u16, width: Width, value: u32) -> Result<(), VmError> {
        let vm = self.vm;
        let value = width.truncate(value.into()).low32();
        let outcome = vm.board.port_write(port, width, value, self.now);
        self.firmware = self.firmware.or(outcome.firmware);
        if self.end.is_none() {
            self.end = outcome.end;
        }
        Ok(())
    }
}
