use super::*;
use alloc::vec::Vec;
use core::cell::RefCell;
use hvabi::Features;
use hvabi::STEWARD_BASE;
use proptest::prelude::*;

const RAM: usize = 0x4000;

struct Ram(RefCell<Vec<u8>>);

impl Ram {
    fn range(gpa: GuestPhysAddr, length: usize) -> Result<core::ops::Range<usize>, MemoryError> {
        let start = usize::try_from(gpa.as_u64()).unwrap();
        match start.checked_add(length) {
            Some(end) if end <= RAM => Ok(start..end),
            _ => Err(MemoryError::NotRam(gpa)),
        }
    }
}

impl GuestMemory for Ram {
    fn read(&self, gpa: GuestPhysAddr, buffer: &mut [u8]) -> Result<(), MemoryError> {
        let range = Self::range(gpa, buffer.len())?;
        buffer.copy_from_slice(&self.0.borrow()[range]);
        Ok(())
    }

    fn write(&self, gpa: GuestPhysAddr, data: &[u8]) -> Result<(), MemoryError> {
        let range = Self::range(gpa, data.len())?;
        self.0.borrow_mut()[range].copy_from_slice(data);
        Ok(())
    }

    fn compare_exchange(
        &self,
        gpa: GuestPhysAddr,
        _: x86defs::Width,
        _: u64,
        _: u64,
    ) -> Result<u64, MemoryError> {
        Err(MemoryError::ReadOnly(gpa))
    }
}

struct Machine {
    ram: Ram,
    console: Vec<u8>,
    room: usize,
    allowed: CallSet,
    offered: PvFeatures,
    kicked: Vec<u64>,
    ipis: Vec<Ipis>,
}

impl Machine {
    fn new() -> Self {
        let bytes = (0..RAM).map(|index| u8::try_from(index % 251).unwrap()).collect();
        Self {
            ram: Ram(RefCell::new(bytes)),
            console: Vec::new(),
            room: usize::MAX,
            allowed: CallSet::ALL,
            offered: PvFeatures::empty(),
            kicked: Vec::new(),
            ipis: Vec::new(),
        }
    }
}

impl HypercallHost for Machine {
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
        0x1_0000_0002
    }

    fn wall_clock(&self) -> u64 {
        0x3_0000_0004
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

    fn kick(&mut self, apic_id: u64) {
        self.kicked.push(apic_id);
    }

    fn send_ipis(&mut self, ipis: &Ipis) -> u64 {
        self.ipis.push(*ipis);
        ipis.ids().filter(|id| *id < 4).count() as u64
    }

    fn waits_for_cpu(&self, apic_id: u64) -> bool {
        apic_id == 2
    }
}

const KERNEL: Caller = Caller { cpl: 0, mode: CpuMode::Long64 };
const KERNEL32: Caller = Caller { cpl: 0, mode: CpuMode::Protected32 };

fn call(rax: u64, rbx: u64, rcx: u64) -> Registers {
    Registers { rax, rbx, rcx, rdx: 7, rsi: 8 }
}

fn status(outcome: Outcome) -> Result<(), Option<Status>> {
    match outcome {
        Outcome::Return(registers) => Status::from_rax(registers.rax),
        other => panic!("{other:?}"),
    }
}

#[test]
fn user_mode_may_not_call() {
    for rax in [STEWARD_BASE, STEWARD_BASE + 4, 1, 9, 999, u64::MAX] {
        for cpl in 1..=3 {
            let mut machine = Machine::new();
            let before = call(rax, 0, 5);
            let outcome = dispatch(before, Caller { cpl, ..KERNEL }, &mut machine);
            assert_eq!(outcome, Outcome::Return(Registers { rax: u64::MAX, ..before }));
        }
    }
}

#[test]
fn version_time_yield_and_shut_down() {
    let mut machine = Machine::new();
    let before = call(STEWARD_BASE, 1, 2);
    let after = Registers { rax: 0, rbx: 1, rcx: 0b11110, ..before };
    assert_eq!(dispatch(before, KERNEL, &mut machine), Outcome::Return(after));
    let before = call(STEWARD_BASE + 2, 1, 2);
    let after = Registers { rax: 0, ..before };
    assert_eq!(dispatch(before, KERNEL, &mut machine), Outcome::Yield(after));
    let before = call(STEWARD_BASE + 3, 1, 2);
    let after = Registers { rax: 0, rbx: 0x1_0000_0002, rcx: 0x3_0000_0004, ..before };
    assert_eq!(dispatch(before, KERNEL, &mut machine), Outcome::Return(after));
    let after = Registers { rax: 0, rbx: 2, rcx: 1, rdx: 4, rsi: 3 };
    assert_eq!(dispatch(before, KERNEL32, &mut machine), Outcome::Return(after));
    let outcome = dispatch(call(STEWARD_BASE + 4, 2, 255), KERNEL, &mut machine);
    assert_eq!(outcome, Outcome::ShutDown { kind: ShutDownKind::Crash, status: 255 });
}

#[test]
fn errors() {
    for (rax, rbx, rcx, expected) in [
        (STEWARD_BASE + 5, 0, 0, Status::UnknownCall),
        (0x8000_0000, 0, 0, Status::UnknownCall),
        (0xffff_ffff_d354_0000, 0, 0, Status::UnknownCall),
        (0, 0, 0, Status::UnknownCall),
        (2, 0, 0, Status::UnknownCall),
        (5, 0, 0, Status::UnknownCall),
        (10, 0, 0, Status::UnknownCall),
        (11, 0, 0, Status::UnknownCall),
        (12, 0, 0, Status::UnknownCall),
        (9, 0x1000, 1, Status::NotSupported),
        (9, 0x3fc1, 0, Status::Fault),
        (STEWARD_BASE + 1, 0, 4097, Status::TooLong),
        (STEWARD_BASE + 1, 0x4000, 1, Status::Fault),
        (STEWARD_BASE + 1, u64::MAX, 1, Status::Fault),
        (STEWARD_BASE + 1, u64::MAX - 1, 4096, Status::Fault),
        (STEWARD_BASE + 4, 3, 0, Status::InvalidArgument),
        (STEWARD_BASE + 4, 0, 256, Status::InvalidArgument),
    ] {
        let mut machine = Machine::new();
        let before = call(rax, rbx, rcx);
        let outcome = dispatch(before, KERNEL, &mut machine);
        let after = Registers { rax: expected.to_rax(), ..before };
        assert_eq!(outcome, Outcome::Return(after), "{rax:#x} {rbx:#x} {rcx:#x}");
        assert!(machine.console.is_empty());
    }
}

#[test]
fn narrow_callers_use_low_halves() {
    let mut machine = Machine::new();
    let before = call(0xdead_beef << 32 | (STEWARD_BASE + 1), 1 << 32, 9 << 32 | 3);
    assert_eq!(status(dispatch(before, KERNEL, &mut machine)), Err(Some(Status::UnknownCall)));
    let outcome = dispatch(before, KERNEL32, &mut machine);
    assert_eq!(outcome, Outcome::Return(Registers { rax: 0, rbx: 3, rcx: 3, rdx: 7, rsi: 8 }));
    assert_eq!(machine.console, [0, 1, 2]);
    let outcome = dispatch(call(99, 0, 0), KERNEL32, &mut machine);
    assert_eq!(outcome, Outcome::Return(call(0xffff_fc18, 0, 0)));
    let compat = Caller { mode: CpuMode::Compat32, ..KERNEL };
    assert_eq!(dispatch(call(99, 0, 0), compat, &mut machine), outcome);
}

#[test]
fn kvm_calls() {
    let mut machine = Machine::new();
    let before = call(1, 5, 6);
    let after = Registers { rax: 0, ..before };
    assert_eq!(dispatch(before, KERNEL, &mut machine), Outcome::Return(after));
    assert_eq!(status(dispatch(call(9, 0x3fc0, 0), KERNEL, &mut machine)), Ok(()));
    let ram = machine.ram.0.borrow();
    assert_eq!(ram[0x3fc0], 1);
    assert_eq!(ram[0x3fc8], 2);
    assert_eq!(ram[0x3fd0], 3);
    assert_eq!(ram[0x3fd8..0x4000], [0; 40]);
}

/// A machine that offers all of KVM's calls.
fn offering() -> Machine {
    Machine { offered: PvFeatures::all(), ..Machine::new() }
}

#[test]
fn kicks_and_yields() {
    let mut machine = offering();
    // Flags in RBX mean nothing.
    let before = call(5, 99, 3);
    let after = Registers { rax: 0, ..before };
    assert_eq!(dispatch(before, KERNEL, &mut machine), Outcome::Return(after));
    assert_eq!(dispatch(call(5, 0, u64::MAX), KERNEL32, &mut machine), {
        Outcome::Return(Registers { rax: 0, ..call(5, 0, u64::MAX) })
    });
    assert_eq!(machine.kicked, [3, 0xffff_ffff]);
    for (id, yields) in [(2, true), (1, false), (u64::MAX, false)] {
        let before = call(11, id, 0);
        let after = Registers { rax: 0, ..before };
        let wanted = if yields { Outcome::Yield(after) } else { Outcome::Return(after) };
        assert_eq!(dispatch(before, KERNEL, &mut machine), wanted);
    }
    assert_eq!(machine.kicked.len(), 2);
    for cpl in 1..4 {
        for rax in [5, 10, 11] {
            let outcome = dispatch(call(rax, 2, 2), Caller { cpl, ..KERNEL }, &mut machine);
            assert_eq!(status(outcome), Err(Some(Status::NotPermitted)));
        }
    }
    assert_eq!((machine.kicked.len(), machine.ipis.len()), (2, 0));
}

#[test]
fn interrupts_for_a_set() {
    let send = |rbx, rcx, rdx, rsi, caller| {
        let mut machine = offering();
        let before = Registers { rax: 10, rbx, rcx, rdx, rsi };
        let Outcome::Return(after) = dispatch(before, caller, &mut machine) else { panic!() };
        assert_eq!(after, Registers { rax: after.rax, ..before });
        let ids: Vec<u64> = machine.ipis.iter().flat_map(Ipis::ids).collect();
        (after.rax, ids)
    };
    let fixed = 0xfd;
    assert_eq!(send(0b1011, 1, 0, fixed, KERNEL), (3, [0, 1, 3, 64].into()));
    assert_eq!(send(0b1011, 1, 0, fixed, KERNEL32), (3, [0, 1, 3, 32].into()));
    // Narrow callers have only the low halves of registers.
    assert_eq!(send(1 << 40 | 2, 1 << 32, 1 << 32, fixed, KERNEL32), (1, [1].into()));
    assert_eq!(send(1, 1 << 63, 3, 0x400, KERNEL), (1, [3, 130].into()));
    assert_eq!(send(3, 0, u64::MAX, fixed, KERNEL), (0, [u64::MAX, u64::MAX].into()));
    assert_eq!(send(0, 0, 0, fixed, KERNEL), (0, [].into()));
    // Level and trigger mode make no difference.
    assert_eq!(send(1, 0, 0, fixed | 3 << 14, KERNEL), (1, [0].into()));
    let invalid = Status::InvalidArgument.to_rax();
    for command in [0, 0xf, 0x10f, 0x2fd, 0x3fd, 0x5fd, 0x6fd, 0x7fd, 0x8fd, 0x400fd, 0xc00fd] {
        assert_eq!(send(1, 0, 0, command, KERNEL), (invalid, [].into()), "{command:#x}");
        assert_eq!(send(1, 0, 0, command, KERNEL32), (0xffff_ffea, [].into()), "{command:#x}");
    }
}

#[test]
fn calls_that_are_not_offered_are_unknown() {
    let needed =
        [(5, PvFeatures::UNHALT), (10, PvFeatures::SEND_IPI), (11, PvFeatures::SCHED_YIELD)];
    for (rax, feature) in needed {
        let mut machine = Machine { offered: PvFeatures::all() - feature, ..Machine::new() };
        let outcome = dispatch(call(rax, 2, 2), KERNEL, &mut machine);
        assert_eq!(status(outcome), Err(Some(Status::UnknownCall)));
        assert!(machine.kicked.is_empty() && machine.ipis.is_empty());
        machine.offered = feature;
        let sent = Registers { rax, rbx: 1, rcx: 2, rdx: 0, rsi: 0xfd };
        assert!(!matches!(dispatch(sent, KERNEL, &mut machine),
            Outcome::Return(Registers { rax, .. }) if rax.cast_signed() < 0));
    }
}

#[test]
fn a_full_console_takes_what_fits() {
    for room in [0, 1, 255, 256, 257, 4095] {
        let mut machine = Machine { room, ..Machine::new() };
        let before = call(STEWARD_BASE + 1, 0xfff, 4096);
        let taken = u64::try_from(room).unwrap();
        let after = Registers { rax: 0, rbx: taken, ..before };
        assert_eq!(dispatch(before, KERNEL, &mut machine), Outcome::Return(after));
        assert_eq!(machine.console.len(), room);
    }
}

#[test]
fn a_buffer_that_runs_out_of_ram() {
    // The first piece is in RAM, the second is not.
    let mut machine = Machine::new();
    let before = call(STEWARD_BASE + 1, 0x4000 - 300, 600);
    let after = Registers { rax: 0, rbx: 256, ..before };
    assert_eq!(dispatch(before, KERNEL, &mut machine), Outcome::Return(after));
    let next = call(STEWARD_BASE + 1, 0x4000 - 44, 344);
    assert_eq!(status(dispatch(next, KERNEL, &mut machine)), Err(Some(Status::Fault)));
    assert_eq!(machine.console.len(), 256);
}

proptest! {
    #[test]
    fn console_writes_are_copied_whole(address in 0u64..0x5000, length in 0u64..5000) {
        let mut machine = Machine::new();
        let outcome = dispatch(call(STEWARD_BASE + 1, address, length), KERNEL, &mut machine);
        let Outcome::Return(after) = outcome else { panic!() };
        let start = usize::try_from(address).unwrap();
        let ram = machine.ram.0.borrow();
        if after.rax == 0 {
            let taken = usize::try_from(after.rbx).unwrap();
            prop_assert_eq!(&machine.console[..], &ram[start.min(RAM)..][..taken]);
            let whole = address + length <= 0x4000;
            prop_assert_eq!(after.rbx == length, whole || length == 0);
        } else {
            prop_assert!(length > 4096 || address + length > 0x4000);
            prop_assert!(machine.console.is_empty());
        }
    }

    #[test]
    fn no_registers_are_too_odd(
        rax in prop_oneof![any::<u64>(), STEWARD_BASE..STEWARD_BASE + 8, 0u64..16],
        rbx in any::<u64>(), rcx in any::<u64>(), cpl in 0u8..4, wide in any::<bool>(),
    ) {
        let mut machine = Machine::new();
        let mode = if wide { CpuMode::Long64 } else { CpuMode::Real };
        // Addresses beyond usize do not occur on the machines that run this.
        let outcome = dispatch(call(rax, rbx, rcx), Caller { cpl, mode }, &mut machine);
        if cpl > 0 {
            let denied = if wide { u64::MAX } else { 0xffff_ffff };
            prop_assert_eq!(outcome, Outcome::Return(call(denied, rbx, rcx)));
        }
    }
}

#[test]
fn calls_that_are_not_allowed_are_not_there() {
    for allowed in CallName::ALL {
        for call in CallName::ALL {
            let mut machine = Machine { offered: PvFeatures::all(), ..Machine::new() };
            machine.allowed = CallSet::from_iter([allowed]);
            let registers = Registers { rax: call.rax(), ..Registers::default() };
            let outcome = dispatch(registers, KERNEL, &mut machine);
            let refused = matches!(outcome, Outcome::Return(registers)
                if Status::from_rax(registers.rax) == Err(Some(Status::UnknownCall)));
            assert_eq!(refused, call != allowed, "{call:?} where {allowed:?} is allowed");
        }
    }
    // Every guest may ask which calls there are.
    let mut machine = Machine { allowed: CallSet::from_iter([CallName::Time]), ..Machine::new() };
    let version = Registers { rax: STEWARD_BASE, ..Registers::default() };
    let Outcome::Return(registers) = dispatch(version, KERNEL, &mut machine) else { panic!() };
    assert_eq!((registers.rax, registers.rcx), (0, u64::from(Features::TIME.0)));
}
