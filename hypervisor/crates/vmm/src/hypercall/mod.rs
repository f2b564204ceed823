//! Hypercalls: from registers to what has to be done. The numbers and their
//! meaning are in [`hvabi`]; this decides who may call and with what, and
//! leaves the doing to a [`HypercallHost`].

mod ipis;

pub use ipis::Ipis;

use crate::pv::PvFeatures;
use hvabi::{
    Call, CallName, CallSet, INTERFACE_VERSION, Registers, Reply, ShutDownKind, Status, kvm,
};
use memory::{GuestMemory, MemoryError};
use x86defs::control::CpuMode;
use x86defs::{GuestPhysAddr, Low};

/// Bytes that are copied out of a guest at a time.
const CHUNK: usize = 256;

/// The server of calls: the guest's machine.
pub trait HypercallHost {
    /// The guest's RAM.
    fn memory(&self) -> &impl GuestMemory;

    /// Takes bytes for the guest's console; returns how many, from the start,
    /// it had room for.
    fn console_write(&mut self, bytes: &[u8]) -> usize;

    /// Nanoseconds since the guest was started, paused time left out.
    fn since_start(&self) -> u64;

    /// Nanoseconds since 1970-01-01 UTC.
    fn wall_clock(&self) -> u64;

    /// Wall clock and TSC of the calling vCPU, read at one moment.
    fn clock_pairing(&self) -> kvm::ClockPairing;

    /// The calls that the guest may make.
    fn allowed(&self) -> CallSet;

    /// The parts of KVM's interface that the guest is offered.
    fn offered(&self) -> PvFeatures;

    /// Ends the HLT of the vCPU with this APIC id, or its next one. An id that no vCPU has does
    /// nothing.
    fn kick(&mut self, apic_id: u64);

    /// Sends interrupts; returns how many reached a vCPU.
    fn send_ipis(&mut self, ipis: &Ipis) -> u64;

    /// Whether the vCPU with this APIC id is another than the caller, and has no
    /// CPU now.
    fn waits_for_cpu(&self, apic_id: u64) -> bool;
}

/// The caller of a hypercall, and how wide its registers are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caller {
    /// The current privilege level, 0 to 3.
    pub cpl: u8,
    /// The mode: outside of 64-bit mode only low halves of registers count.
    pub mode: CpuMode,
}

/// Next step of the vCPU's loop. RIP moves past the instruction in every case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Outcome {
    /// Write these registers back, go on.
    Return(Registers),
    /// Write these registers back, let others run, go on.
    Yield(Registers),
    /// End the guest.
    ShutDown {
        /// The kind of shutdown.
        kind: ShutDownKind,
        /// A status for whoever started the guest.
        status: u8,
    },
}

/// Serves the call in `registers`.
pub fn dispatch(registers: Registers, caller: Caller, host: &mut impl HypercallHost) -> Outcome {
    let wide = caller.mode == CpuMode::Long64;
    let arguments = if wide { registers } else { registers.low_halves() };
    let result = if caller.cpl != 0 {
        Err(Status::NotPermitted)
    } else if CallName::from_rax(arguments.rax).is_some_and(|call| !host.allowed().contains(call)) {
        // This guest has no such call.
        Err(Status::UnknownCall)
    } else if Call::is_steward(arguments.rax) {
        Call::try_from(arguments).and_then(|call| steward_call(call, host))
    } else {
        kvm_call(arguments, wide, host)
    };
    let plain = Registers { rax: 0, ..registers };
    match result {
        Ok(Served::Nothing) => Outcome::Return(plain),
        Ok(Served::Reply(reply)) => Outcome::Return(if wide {
            reply.encode64(registers)
        } else {
            reply.encode32(registers)
        }),
        Ok(Served::Count(count)) => Outcome::Return(Registers { rax: count, ..registers }),
        Ok(Served::Yield) => Outcome::Yield(plain),
        Ok(Served::ShutDown { kind, status }) => Outcome::ShutDown { kind, status },
        Err(status) => {
            let rax = status.to_rax();
            let rax = if wide { rax } else { rax.low32().into() };
            Outcome::Return(Registers { rax, ..registers })
        }
    }
}

/// A call that went well.
enum Served {
    /// RAX = 0.
    Nothing,
    /// RAX = 0, and more registers.
    Reply(Reply),
    /// RAX = this, which is no error.
    Count(u64),
    /// RAX = 0, later.
    Yield,
    /// Never returns.
    ShutDown { kind: ShutDownKind, status: u8 },
}

fn steward_call(call: Call, host: &mut impl HypercallHost) -> Result<Served, Status> {
    match call {
        Call::Version => Ok(Served::Reply(Reply::Version {
            version: INTERFACE_VERSION,
            features: host.allowed().features(),
        })),
        Call::ConsoleWrite { address, length } => {
            console_write(GuestPhysAddr::new(address), length, host)
        }
        Call::Yield => Ok(Served::Yield),
        Call::Time => Ok(Served::Reply(Reply::Time {
            since_start: host.since_start(),
            wall_clock: host.wall_clock(),
        })),
        Call::ShutDown { kind, status } => Ok(Served::ShutDown { kind, status }),
    }
}

/// Copies the buffer out in pieces and hands them to the console until it has
/// no more room.
fn console_write(
    address: GuestPhysAddr,
    length: u32,
    host: &mut impl HypercallHost,
) -> Result<Served, Status> {
    let range = address.range(length.into()).ok_or(Status::Fault)?;
    let mut chunk = [0; CHUNK];
    let mut at = range.start;
    let mut taken = 0;
    while at < range.end {
        let left = range.end.as_u64() - at.as_u64();
        let size = usize::try_from(left).unwrap_or(CHUNK).min(CHUNK);
        let Some(bytes) = chunk.get_mut(..size) else { break };
        match host.memory().read(at, bytes) {
            Ok(()) => {}
            // Bytes that were written before the hole stay written, and are reported.
            Err(_) if taken != 0 => break,
            Err(error) => return Err(fault(error)),
        }
        let accepted = host.console_write(bytes).min(size);
        taken += accepted.low32();
        if accepted < size {
            break;
        }
        at = at.wrapping_add(u64::from(accepted.low32()));
    }
    Ok(Served::Reply(Reply::ConsoleWrite { taken }))
}

fn kvm_call(
    arguments: Registers,
    wide: bool,
    host: &mut impl HypercallHost,
) -> Result<Served, Status> {
    let offered = host.offered();
    match arguments.rax {
        kvm::call::VAPIC_POLL_IRQ => Ok(Served::Nothing),
        kvm::call::CLOCK_PAIRING => {
            if arguments.rcx != kvm::CLOCK_PAIRING_WALLCLOCK {
                return Err(Status::NotSupported);
            }
            let bytes = host.clock_pairing().to_bytes();
            let address = GuestPhysAddr::new(arguments.rbx);
            host.memory().write(address, &bytes).map_err(fault)?;
            Ok(Served::Nothing)
        }
        kvm::call::KICK_CPU if offered.contains(PvFeatures::UNHALT) => {
            host.kick(arguments.rcx);
            Ok(Served::Nothing)
        }
        kvm::call::SEND_IPI if offered.contains(PvFeatures::SEND_IPI) => {
            Ok(Served::Count(host.send_ipis(&Ipis::new(arguments, wide)?)))
        }
        kvm::call::SCHED_YIELD if offered.contains(PvFeatures::SCHED_YIELD) => {
            // To make room for a vCPU that runs already is of no use.
            let waits = host.waits_for_cpu(arguments.rbx);
            Ok(if waits { Served::Yield } else { Served::Nothing })
        }
        _ => Err(Status::UnknownCall),
    }
}

const fn fault(error: MemoryError) -> Status {
    match error {
        MemoryError::NotRam(_)
        | MemoryError::ReadOnly(_)
        | MemoryError::Broken(_)
        | MemoryError::Moved(_)
        | MemoryError::NoFrame(_) => Status::Fault,
    }
}

#[cfg(test)]
mod tests;
