//! The exits of a test guest, in a form free of vendor: lock-step tests compare those of different
//! machines. They go to the board's trace port ([`chipset::trace_port`]). `describe` says which
//! exits are left out, and why.

use crate::backend::Backend;
use crate::vcpu::Vcpu;
use chipset::trace_port::{TracePort, mix};
use memory::GuestRam;
use x86defs::bits::{Low, high32};
use x86defs::exit::{CacheControl, Direction, NestedAccess, NestedFault, PortIo};
use x86defs::{Gpr, Msr, Rflags, VmExit};

/// Writes an exit down, unless it is one of those that are left out.
pub fn note<B: Backend, M: GuestRam>(port: &TracePort, vcpu: &Vcpu<B>, memory: &M, exit: &VmExit) {
    let Some((kind, detail)) = describe(vcpu, memory, exit) else { return };
    let mut hash = mix(0, (vcpu.rflags() - Rflags::RF).bits());
    for gpr in Gpr::ALL {
        hash = mix(hash, vcpu.gpr(gpr));
    }
    port.note([kind, detail, vcpu.rip().low32(), hash.low32() ^ high32(hash)]);
}

/// MSRs that one vendor's hardware lets the guest write by itself.
const SWITCHED_BY_HARDWARE: [Msr; 4] = [Msr::STAR, Msr::LSTAR, Msr::CSTAR, Msr::SFMASK];

/// Kind and detail of an exit; `None` for what is left out:
///
/// - interrupts of the machine, windows, ends of slices, falls of the task
///   priority: they depend on time, or on how a backend waits;
/// - loops of PAUSE, which some CPUs notice;
/// - first touches of RAM: they depend on what ran before;
/// - exceptions that exit only to be given back: not all backends need that;
/// - the local APIC: some CPUs keep it by themselves, as far as they can;
/// - control registers, XSETBV and the SYSCALL registers: each vendor lets the
///   guest do another part of them by itself;
/// - the other vendor's virtualization instructions: they fault without an exit;
/// - the ports of the trace itself.
fn describe<B: Backend, M: GuestRam>(
    vcpu: &Vcpu<B>,
    memory: &M,
    exit: &VmExit,
) -> Option<(u32, u32)> {
    Some(match exit {
        VmExit::PortIo(io) => (1, port(io)?),
        VmExit::NestedFault(fault) => (2, device(memory, fault)?),
        VmExit::Cpuid => (3, 0),
        VmExit::ReadMsr => (4, vcpu.gpr(Gpr::Rcx).low32()),
        VmExit::WriteMsr => {
            let number = vcpu.gpr(Gpr::Rcx).low32();
            if SWITCHED_BY_HARDWARE.contains(&Msr(number)) {
                return None;
            }
            (5, number)
        }
        VmExit::Hypercall => (6, 0),
        VmExit::Halt => (7, 0),
        VmExit::Monitor(_) => (8, 0),
        // One emulator reports INVD as WBINVD.
        VmExit::CacheControl(CacheControl::Invd | CacheControl::Wbinvd) => (10, 0),
        VmExit::Rdpmc => (11, 0),
        VmExit::TripleFault => (12, 0),
        VmExit::HostInterrupt
        | VmExit::Pause
        | VmExit::Nmi
        | VmExit::InterruptWindow
        | VmExit::NmiWindow
        | VmExit::TimesliceExpired
        | VmExit::TaskPriorityLowered
        | VmExit::Exception(_)
        | VmExit::ApicAccess(_)
        | VmExit::ApicWrite(_)
        | VmExit::VirtualEoi(_)
        | VmExit::CrAccess(_)
        | VmExit::Xsetbv
        | VmExit::VirtualizationInstruction
        | VmExit::Unoffered => return None,
        // No exit should end up here: one that does is worth a difference.
        VmExit::DrAccess(_)
        | VmExit::CacheControl(_)
        | VmExit::DescriptorTable(_)
        | VmExit::TaskSwitch(_)
        | VmExit::Rdtsc
        | VmExit::MachineCheck
        | VmExit::DirtyLogFull
        | VmExit::Init
        | VmExit::StartupIpi(_)
        | VmExit::InvalidState(_)
        | VmExit::BrokenRule(_)
        | VmExit::Unhandled(_) => (13, 0),
    })
}

fn port(io: &PortIo) -> Option<u32> {
    use config::layout::TRACE_PORT;
    if (TRACE_PORT..TRACE_PORT + TracePort::PORT_COUNT).contains(&io.port) {
        return None;
    }
    let out = u32::from(io.direction == Direction::Out);
    let string = u32::from(io.string.is_some());
    let bytes = io.width.bytes().min(4).to_le_bytes()[0];
    Some(u32::from(io.port) | u32::from(bytes) << 16 | out << 24 | string << 25)
}

fn device<M: GuestRam>(memory: &M, fault: &NestedFault) -> Option<u32> {
    use config::layout::{LAPIC_BASE, LAPIC_SIZE};
    let write = fault.access.contains(NestedAccess::WRITE);
    if (LAPIC_BASE..LAPIC_BASE + LAPIC_SIZE).contains(&fault.gpa.as_u64()) {
        return None;
    }
    if memory.is_ram(fault.gpa) && !(write && memory.is_rom(fault.gpa)) {
        return None;
    }
    // The direction is left out: CPUs differ in what they call an access that both reads and
    // writes.
    Some(fault.gpa.as_u64().low32())
}

#[cfg(test)]
mod tests {
    use super::*;
    use x86defs::Width;

    #[test]
    fn its_own_ports_are_left_out() {
        let io = |port| PortIo { port, width: Width::B4, direction: Direction::Out, string: None };
        assert_eq!(port(&io(config::layout::TRACE_PORT)), None);
        assert_eq!(port(&io(config::layout::TRACE_PORT + 8)), Some(0x0104_0100));
    }
}
