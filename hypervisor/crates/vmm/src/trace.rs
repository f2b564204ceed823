//! The exits of a test guest, written down in a form free of vendor: lock-step
//! tests compare those of different machines.
//!
//! A guest that has the debug ports switches it on and off, and reads the
//! result, through the ports from [`TRACE_PORT`](config::layout::TRACE_PORT) on.
//! While it is on, the hot handler declines everything ([`Trace::hold`]), so
//! that each exit comes by. What is left out, and why, stands at `describe`.

use crate::hw::Backend;
use crate::memory::GuestRam;
use crate::vcpu::Vcpu;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU64, Ordering};
use devices::AccessError;
use spin::Mutex;
use x86defs::bits::{Low, high32};
use x86defs::exit::{CacheControl, Direction, NestedAccess, NestedFault, PortIo};
use x86defs::{Gpr, Msr, Rflags, VmExit, Width};

/// How many exits are kept one by one; the digest covers all.
const KEPT: usize = 256;

/// Flags with which the hot handler leaves an instruction to the general code.
pub const HOT_DECLINES: Rflags = Rflags::TF.union(Rflags::RF);

/// One exit: kind, what distinguishes it, RIP, a hash of registers and flags.
pub type Record = [u32; 4];

/// What was written down since it was switched on.
#[derive(Debug, Default)]
struct Written {
    records: Vec<Record>,
    count: u32,
    digest: u64,
    /// The word that the guest reads next.
    next: usize,
}

/// The trace of one guest.
#[derive(Debug)]
pub struct Trace {
    hold: AtomicU64,
    written: Mutex<Written>,
}

impl Default for Trace {
    fn default() -> Self {
        Self { hold: AtomicU64::new(HOT_DECLINES.bits()), written: Mutex::default() }
    }
}

impl Trace {
    /// Ports that it covers.
    pub const PORT_COUNT: u16 = 8;
    /// Offset written with 1 (on, and all forgotten) or 0 (off); read: how many exits.
    const CONTROL: u16 = 0;
    /// Offset written with the number of a word, read as that word and then
    /// the next ones: the digest (low, high), then four of each record.
    const WORDS: u16 = 4;

    /// Flags of the guest with which the hot handler declines: while the trace
    /// is on, also the one that is always set.
    #[inline]
    pub fn hold(&self) -> Rflags {
        Rflags::from_bits_retain(self.hold.load(Ordering::Relaxed))
    }

    /// Whether exits are written down.
    #[inline]
    pub fn is_on(&self) -> bool {
        self.hold().contains(Rflags::RESERVED1)
    }

    /// Writes an exit down, unless it is one of those that are left out.
    pub fn note<B: Backend, M: GuestRam>(&self, vcpu: &Vcpu<B>, memory: &M, exit: &VmExit) {
        let Some((kind, detail)) = describe(vcpu, memory, exit) else { return };
        let mut hash = mix(0, (vcpu.hw.rflags() - Rflags::RF).bits());
        for gpr in Gpr::ALL {
            hash = mix(hash, vcpu.gpr(gpr));
        }
        let record = [kind, detail, vcpu.hw.rip().low32(), hash.low32() ^ high32(hash)];
        let mut written = self.written.lock();
        written.count = written.count.wrapping_add(1);
        written.digest = record.iter().fold(written.digest, |d, word| mix(d, (*word).into()));
        if written.records.len() < KEPT {
            written.records.push(record);
        }
    }

    /// IN from one of the ports.
    ///
    /// # Errors
    /// Anything but 32 bits at the two registers.
    pub fn port_read(&self, offset: u16, width: Width) -> Result<u32, AccessError> {
        let mut written = self.written.lock();
        match (offset, width) {
            (Self::CONTROL, Width::B4) => Ok(written.count),
            (Self::WORDS, Width::B4) => {
                let word = match written.next {
                    0 => written.digest.low32(),
                    1 => high32(written.digest),
                    n => {
                        let record = written.records.get((n - 2) / 4);
                        record.and_then(|r| r.get((n - 2) % 4)).copied().unwrap_or(0)
                    }
                };
                written.next = written.next.saturating_add(1);
                Ok(word)
            }
            _ => Err(AccessError::NoRegister),
        }
    }

    /// OUT to one of the ports.
    ///
    /// # Errors
    /// Anything but 32 bits at the two registers.
    pub fn port_write(&self, offset: u16, width: Width, value: u32) -> Result<(), AccessError> {
        match (offset, width) {
            (Self::CONTROL, Width::B4) => {
                let mut hold = HOT_DECLINES;
                if value == 1 {
                    *self.written.lock() = Written::default();
                    hold |= Rflags::RESERVED1;
                }
                self.hold.store(hold.bits(), Ordering::Relaxed);
                Ok(())
            }
            (Self::WORDS, Width::B4) => {
                self.written.lock().next = usize::try_from(value).unwrap_or(usize::MAX);
                Ok(())
            }
            _ => Err(AccessError::NoRegister),
        }
    }
}

/// One step of a hash (a multiplication, so that order counts).
const fn mix(hash: u64, word: u64) -> u64 {
    (hash ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29)
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
        // Nothing should end here: that it does is worth a difference.
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
    if (TRACE_PORT..TRACE_PORT + Trace::PORT_COUNT).contains(&io.port) {
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
    // Whether a CPU calls an access that reads and writes a read or a write is
    // up to it.
    Some(fault.gpa.as_u64().low32())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_off_until_the_guest_switches_it_on() {
        let trace = Trace::default();
        assert!(!trace.is_on());
        assert_eq!(trace.hold(), HOT_DECLINES);
        trace.port_write(0, Width::B4, 1).unwrap();
        assert!(trace.is_on());
        assert!(trace.hold().contains(HOT_DECLINES | Rflags::RESERVED1));
        trace.port_write(0, Width::B4, 0).unwrap();
        assert!(!trace.is_on());
        assert_eq!(trace.hold(), HOT_DECLINES);
        assert_eq!(trace.port_write(0, Width::B1, 1), Err(AccessError::NoRegister));
        assert_eq!(trace.port_read(2, Width::B4), Err(AccessError::NoRegister));
    }

    #[test]
    fn its_own_ports_are_left_out() {
        let io = |port| PortIo { port, width: Width::B4, direction: Direction::Out, string: None };
        assert_eq!(port(&io(config::layout::TRACE_PORT)), None);
        assert_eq!(port(&io(config::layout::TRACE_PORT + 8)), Some(0x0104_0100));
    }
}
