//! Any hypercall of any caller: it is answered by a status or a count, changes no register
//! that it does not own, and reads or writes no memory but what it names.

// The crate under test, which includes this file, has no prelude of `std`.
extern crate std;

use super::input::Input;
use core::cell::RefCell;
use hvabi::{CallSet, Registers, Status, kvm};
use memory::{GuestMemory, MemoryError};
use std::vec::Vec;
use vmm::hypercall::{Caller, HypercallHost, Ipis, Outcome, dispatch};
use vmm::pv::PvFeatures;
use x86defs::control::CpuMode;
use x86defs::{GuestPhysAddr, Width};

/// Bits of a register outside of 64-bit mode.
const LOW: u64 = 0xffff_ffff;
/// Bytes of RAM, from 0 on.
const RAM: usize = 0x2000;

/// RAM that counts up, and what was written to it.
struct Ram(RefCell<Vec<(u64, usize)>>);

fn is_ram(gpa: GuestPhysAddr, len: usize) -> Result<u64, MemoryError> {
    let end = gpa.as_u64().checked_add(len as u64).filter(|end| *end <= RAM as u64);
    end.map(|_| gpa.as_u64()).ok_or(MemoryError::NotRam(gpa))
}

fn byte_at(at: u64) -> u8 {
    (at % 251) as u8
}

impl GuestMemory for Ram {
    fn read(&self, gpa: GuestPhysAddr, buffer: &mut [u8]) -> Result<(), MemoryError> {
        let start = is_ram(gpa, buffer.len())?;
        (start..).zip(buffer).for_each(|(at, byte)| *byte = byte_at(at));
        Ok(())
    }

    fn write(&self, gpa: GuestPhysAddr, data: &[u8]) -> Result<(), MemoryError> {
        let start = is_ram(gpa, data.len())?;
        self.0.borrow_mut().push((start, data.len()));
        Ok(())
    }

    fn compare_exchange(
        &self,
        gpa: GuestPhysAddr,
        _: Width,
        _: u64,
        _: u64,
    ) -> Result<u64, MemoryError> {
        Err(MemoryError::ReadOnly(gpa))
    }
}

struct Host {
    ram: Ram,
    console: Vec<u8>,
    room: usize,
    allowed: CallSet,
    offered: PvFeatures,
    kicks: usize,
    ipis: usize,
}

impl HypercallHost for Host {
    fn memory(&self) -> &impl GuestMemory {
        &self.ram
    }

    fn console_write(&mut self, bytes: &[u8]) -> usize {
        let taken = bytes.len().min(self.room);
        self.room -= taken;
        self.console.extend_from_slice(&bytes[..taken]);
        taken
    }

    fn since_start(&self) -> u64 {
        1 << 40
    }

    fn wall_clock(&self) -> u64 {
        3 << 60
    }

    fn clock_pairing(&self) -> kvm::ClockPairing {
        kvm::ClockPairing { seconds: 1, nanoseconds: 2, tsc: 3 }
    }

    fn allowed(&self) -> CallSet {
        self.allowed
    }

    fn offered(&self) -> PvFeatures {
        self.offered
    }

    fn kick(&mut self, _: u64) {
        self.kicks += 1;
    }

    fn send_ipis(&mut self, ipis: &Ipis) -> u64 {
        let ids = ipis.ids().count();
        assert!(ids <= 128);
        self.ipis += 1;
        ids as u64
    }

    fn waits_for_cpu(&self, apic_id: u64) -> bool {
        apic_id & 1 != 0
    }
}

/// One case.
pub fn run(data: &[u8]) {
    let mut input = Input(data);
    let [cpl, mode, number, allowed, offered, room] = input.take();
    let mode = match mode % 5 {
        0 | 1 => CpuMode::Long64,
        2 => CpuMode::Compat32,
        3 => CpuMode::Protected32,
        _ => CpuMode::Real,
    };
    let caller = Caller { cpl: if cpl & 0xf0 == 0 { cpl & 3 } else { 0 }, mode };
    let rax = match number {
        0..=31 => number.into(),
        32..=63 => hvabi::STEWARD_BASE + u64::from(number & 31),
        _ => input.u64(),
    };
    // Most addresses lie in RAM, most numbers are small.
    let mut value = || {
        let value = input.u64();
        if value & 3 == 0 { value >> 2 } else { value >> 2 & 0x2fff }
    };
    let registers = Registers { rax, rbx: value(), rcx: value(), rdx: value(), rsi: value() };
    let mut host = Host {
        ram: Ram(RefCell::default()),
        console: Vec::new(),
        room: if room < 0x80 { RAM } else { room.into() },
        allowed: CallSet::ALL,
        offered: PvFeatures::from_bits_truncate(u32::from(offered) << 5 | u32::from(offered) << 8),
        kicks: 0,
        ipis: 0,
    };
    if allowed & 1 == 0 {
        host.allowed = CallSet::NONE;
    }
    let outcome = dispatch(registers, caller, &mut host);
    let written = host.ram.0.take();
    assert!(
        written.iter().all(|(at, len)| *at == caller_address(registers.rbx, mode) && *len == 64)
    );
    let console_from = caller_address(registers.rbx, mode);
    for (at, byte) in (console_from..).zip(&host.console) {
        assert_eq!(*byte, byte_at(at), "bytes that the call did not name");
    }
    let quiet = written.is_empty() && host.console.is_empty() && host.kicks + host.ipis == 0;
    match outcome {
        Outcome::Return(result) | Outcome::Yield(result) => {
            let status = match mode {
                CpuMode::Long64 => Status::from_rax(result.rax),
                _ => Status::from_eax(result.rax as u32),
            };
            assert_ne!(status, Err(None), "a status that nobody knows");
            if status.is_err() {
                assert!(quiet, "{status:?} after something was done");
                assert_eq!(Registers { rax, ..result }, registers);
            }
            if caller.cpl != 0 {
                assert_eq!(status, Err(Some(Status::NotPermitted)));
            }
        }
        Outcome::ShutDown { .. } => assert!(caller.cpl == 0 && quiet),
    }
}

fn caller_address(rbx: u64, mode: CpuMode) -> u64 {
    if mode == CpuMode::Long64 { rbx } else { rbx & LOW }
}
