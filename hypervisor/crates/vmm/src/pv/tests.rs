use super::*;
use crate::clock::pvclock::PvClockFlags;
use crate::clock::{HostTime, TscAgreement};
use crate::counters::Counters;
use crate::run::{Next, off_cpu, on_cpu};
use crate::scripted::Play;
use crate::vcpu::Activity;
use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;
use chipset::fabric::Requests;
use core::cell::{Cell, RefCell};
use devices::lapic::{Lapic, Role, TickRatio, Trigger};
use hvabi::kvm::{call, steal};
use memory::{GuestMemory, MemoryError};
use proptest::prelude::*;
use x86defs::bits::{Low, high32, join};
use x86defs::{Event, Gp, Gpr, GuestPhysAddr, Msr, Rflags, VmExit, Width};

const IF: u64 = Rflags::IF.bits() | 2;
/// Address of the structures.
const AT: u64 = 0x4_0040;

/// 1 MiB of RAM; other vCPUs may get in before so many compare-and-exchanges.
struct Ram(RefCell<Vec<u8>>, Cell<u32>);

impl Ram {
    fn new() -> Self {
        Self(RefCell::new(vec![0; 1 << 20]), Cell::new(0))
    }
}

impl GuestMemory for Ram {
    fn read(&self, gpa: GuestPhysAddr, buffer: &mut [u8]) -> Result<(), MemoryError> {
        let start = usize::try_from(gpa.as_u64()).unwrap();
        let ram = self.0.borrow();
        let from = ram.get(start..start + buffer.len()).ok_or(MemoryError::NotRam(gpa))?;
        buffer.copy_from_slice(from);
        Ok(())
    }

    fn write(&self, gpa: GuestPhysAddr, data: &[u8]) -> Result<(), MemoryError> {
        let start = usize::try_from(gpa.as_u64()).unwrap();
        let mut ram = self.0.borrow_mut();
        let to = ram.get_mut(start..start + data.len()).ok_or(MemoryError::NotRam(gpa))?;
        to.copy_from_slice(data);
        Ok(())
    }

    fn compare_exchange(
        &self,
        gpa: GuestPhysAddr,
        width: Width,
        current: u64,
        new: u64,
    ) -> Result<u64, MemoryError> {
        assert_eq!(width, Width::B1);
        let mut old = [0];
        self.read(gpa, &mut old)?;
        if self.1.get() > 0 {
            self.1.set(self.1.get() - 1);
            old = [old[0] ^ steal::VCPU_FLUSH_TLB];
            self.write(gpa, &old)?;
        }
        if u64::from(old[0]) == current {
            self.write(gpa, &[new.low8()])?;
        }
        Ok(old[0].into())
    }
}

fn bytes<const N: usize>(memory: &impl GuestMemory, at: u64) -> [u8; N] {
    let mut bytes = [0; N];
    memory.read(GuestPhysAddr::new(at), &mut bytes).unwrap();
    bytes
}

fn put(memory: &impl GuestMemory, at: u64, bytes: &[u8]) {
    memory.write(GuestPhysAddr::new(at), bytes).unwrap();
}

/// Steal time and version as the guest reads them.
fn told(memory: &impl GuestMemory) -> (u64, u32) {
    let version = u32::from_le_bytes(bytes(memory, AT + steal::VERSION));
    assert_eq!(version & 1, 0, "the version is left odd");
    (u64::from_le_bytes(bytes(memory, AT)), version)
}

fn preempted(memory: &impl GuestMemory) -> u8 {
    let [flags] = bytes(memory, AT + steal::PREEMPTED);
    flags
}

/// Asks for a flush, as another vCPU does; returns whether that vCPU need not interrupt.
fn ask_for_flush(memory: &impl GuestMemory) -> bool {
    let seen = preempted(memory);
    let waits = seen & steal::VCPU_PREEMPTED != 0;
    if waits {
        put(memory, AT + steal::PREEMPTED, &[seen | steal::VCPU_FLUSH_TLB]);
    }
    waits
}

#[test]
fn steal_time_from_the_registration_on() {
    let (ram, mut counts) = (Ram::new(), Counters::default());
    let mut steal = StealTime::default();
    let all = PvFeatures::all();
    assert_eq!(steal.on_cpu(1_000, all, &ram, &mut counts), Flush::None);
    assert_eq!(counts, Counters::default(), "nothing is registered");
    // Contents before the registration: an odd version, a steal time to add to.
    put(&ram, AT, &[5, 0, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 3]);
    assert_eq!(steal.write(AT | 1, &ram), Ok(()));
    assert_eq!((steal.msr(), told(&ram), preempted(&ram)), (AT | 1, (5, 10), 0));
    assert_eq!(bytes(&ram, AT + steal::FLAGS), [0; 4]);
    assert_eq!(steal.on_cpu(1_000, all, &ram, &mut counts), Flush::None);
    assert_eq!(told(&ram), (5, 10), "nothing to tell");
    assert_eq!(steal.on_cpu(1_700, all, &ram, &mut counts), Flush::None);
    assert_eq!(told(&ram), (705, 12));
    // After a second registration, time that was told stays told.
    assert_eq!(steal.write(0, &ram), Ok(()));
    assert_eq!(steal.on_cpu(5_000, all, &ram, &mut counts), Flush::None);
    assert_eq!((steal.msr(), told(&ram)), (0, (705, 12)));
    assert_eq!(steal.write(AT | 1, &ram), Ok(()));
    assert_eq!(steal.on_cpu(5_001, all, &ram, &mut counts), Flush::None);
    assert_eq!(told(&ram).0, 706);
    assert_eq!(counts.steal_updates, 2);
}

#[test]
fn steal_time_is_refused_where_it_can_not_be() {
    let ram = Ram::new();
    let mut steal = StealTime::default();
    steal.write(AT | 1, &ram).unwrap();
    let before = (steal, ram.0.borrow().clone());
    for bit in 1..6 {
        assert_eq!(steal.write(AT | 1 | 1 << bit, &ram), Err(Gp));
        assert_eq!(steal.write(1 << bit, &ram), Err(Gp));
    }
    assert_eq!(steal.write(1 << 20 | 1, &ram), Err(Gp));
    assert_eq!(steal.write(u64::MAX - 62, &ram), Err(Gp));
    assert_eq!((steal, ram.0.borrow().clone()), before);
    // Any address will do if the structure is not in use.
    assert_eq!(steal.write(u64::MAX << 6, &ram), Ok(()));
    assert_eq!(steal.on_cpu(9, PvFeatures::all(), &ram, &mut Counters::default()), Flush::None);
    assert_eq!(*ram.0.borrow(), before.1);
}

#[test]
fn a_flush_waits_for_the_vcpu() {
    let (ram, mut counts) = (Ram::new(), Counters::default());
    let mut steal = StealTime::default();
    let all = PvFeatures::all();
    steal.write(AT | 1, &ram).unwrap();
    assert!(!ask_for_flush(&ram), "it runs");
    steal.off_cpu(&ram, &mut counts);
    assert_eq!(preempted(&ram), steal::VCPU_PREEMPTED);
    assert_eq!(steal.on_cpu(0, all, &ram, &mut counts), Flush::None);
    assert_eq!(preempted(&ram), 0);
    steal.off_cpu(&ram, &mut counts);
    assert!(ask_for_flush(&ram));
    assert_eq!(steal.on_cpu(0, all, &ram, &mut counts), Flush::Due);
    assert_eq!(preempted(&ram), 0);
    assert!(!ask_for_flush(&ram));
    assert_eq!((counts.preempted, counts.tlb_flushes), (2, 1));
    // A guest that is not offered it asks for nothing, whatever it writes.
    steal.off_cpu(&ram, &mut counts);
    assert!(ask_for_flush(&ram));
    assert_eq!(steal.on_cpu(0, all - PvFeatures::TLB_FLUSH, &ram, &mut counts), Flush::None);
    assert_eq!((preempted(&ram), counts.tlb_flushes), (0, 1));
}

#[test]
fn a_flush_that_is_asked_for_at_the_last_moment() {
    for others in 1..10 {
        let (ram, mut counts) = (Ram::new(), Counters::default());
        let mut steal = StealTime::default();
        steal.write(AT | 1, &ram).unwrap();
        steal.off_cpu(&ram, &mut counts);
        ram.1.set(others);
        let flush = steal.on_cpu(0, PvFeatures::all(), &ram, &mut counts);
        // The vCPU that gets in last before the flag is taken decides; beyond the attempts the
        // flush is done to be sure.
        let due = others > 3 || others % 2 == 1;
        assert_eq!(flush == Flush::Due, due, "{others}");
        assert_eq!(preempted(&ram), 0);
    }
}

proptest! {
    /// Against a model: the guest is told all waiting while it is registered, and
    /// each flush that it was promised is done before the vCPU runs.
    #[test]
    fn steal_time_adds_up(
        steps in prop::collection::vec((0u8..5, 0u64..1 << 40), 0..60),
    ) {
        let (ram, mut counts) = (Ram::new(), Counters::default());
        let mut steal = StealTime::default();
        let (mut registered, mut on, mut waited, mut expected) = (false, true, 0, 0u64);
        let (mut promised, mut version) = (false, 0);
        for (step, time) in steps {
            match (step, on) {
                (0, true) => {
                    registered = time % 3 != 0;
                    steal.write(if registered { AT | 1 } else { 0 }, &ram).unwrap();
                }
                (1 | 2, true) => {
                    steal.off_cpu(&ram, &mut counts);
                    on = false;
                    prop_assert_eq!(preempted(&ram) == 1, registered);
                }
                (1 | 2, false) => {
                    waited += time;
                    expected += if registered { time } else { 0 };
                    let flush = steal.on_cpu(waited, PvFeatures::all(), &ram, &mut counts);
                    prop_assert_eq!(flush == Flush::Due, promised);
                    prop_assert_eq!(preempted(&ram), 0);
                    (on, promised) = (true, false);
                }
                (3, _) => {
                    let waits = ask_for_flush(&ram);
                    prop_assert_eq!(waits, registered && !on);
                    promised |= waits;
                }
                _ => {}
            }
            let (now, next) = told(&ram);
            prop_assert!(next >= version);
            version = next;
            if on {
                prop_assert_eq!(now, expected);
            }
        }
    }

    /// Two local APICs, one whose guest ends interrupts by the bit where it may,
    /// are the same after each exit, and tell the I/O APIC the same.
    #[test]
    fn ends_without_an_exit_are_ends(
        steps in prop::collection::vec((0u8..8, 0u8..40, any::<bool>()), 0..200),
    ) {
        let (ram, mut counts) = (Ram::new(), Counters::default());
        let mut eoi = PvEoi::default();
        eoi.write(AT | 1, &ram).unwrap();
        let ratio = TickRatio::from_khz(1_000_000);
        let mut plain = Lapic::new(0, ratio, Role::Bootstrap);
        plain.set_up_virtual_wire();
        let mut paravirtual = plain.clone();
        let (mut broadcasts, mut wanted) = (Vec::new(), Vec::new());
        let mut inside = false;
        for (step, vector, level) in steps {
            let mut exits = step != 0;
            match step {
                // The guest ends an interrupt.
                0 if inside => {
                    wanted.extend(plain.eoi());
                    let [bit] = bytes(&ram, AT);
                    if bit & 1 != 0 {
                        put(&ram, AT, &[bit & !1]);
                    } else {
                        exits = true;
                    }
                }
                0 => {}
                // An interrupt arrives: a running vCPU is kicked.
                1..=3 => {}
                _ if inside => {}
                _ => {
                    for lapic in [&mut plain, &mut paravirtual] {
                        if let Some(vector) = lapic.deliverable() {
                            lapic.acknowledge(vector);
                        }
                    }
                    eoi.to_guest(&paravirtual, &ram, &mut counts);
                    prop_assert!(bytes(&ram, AT) == [0] || !paravirtual.in_service_is_level());
                    inside = true;
                    exits = false;
                }
            }
            if exits && inside {
                let told = eoi.from_guest(&mut paravirtual, &ram, &mut counts);
                broadcasts.extend(told);
                inside = false;
                prop_assert_eq!(bytes(&ram, AT), [0]);
            }
            match step {
                0 if exits => broadcasts.extend(paravirtual.eoi()),
                1..=3 => {
                    let trigger = Trigger::from_level_bit(level);
                    for lapic in [&mut plain, &mut paravirtual] {
                        lapic.accept(0x20 + vector * 5, trigger);
                    }
                }
                _ => {}
            }
            if !inside {
                prop_assert_eq!(&plain, &paravirtual);
                prop_assert_eq!(&broadcasts, &wanted);
            }
        }
        prop_assert!(counts.eois <= counts.eoi_offers);
    }
}

#[test]
fn an_end_is_offered_where_it_has_no_consequence() {
    let (ram, mut counts) = (Ram::new(), Counters::default());
    let mut lapic = Lapic::new(0, TickRatio::from_khz(1_000_000), Role::Bootstrap);
    lapic.set_up_virtual_wire();
    let mut eoi = PvEoi::default();
    let mut offered = |eoi: &mut PvEoi, lapic: &mut Lapic| {
        put(&ram, AT, &[0xf0]);
        eoi.to_guest(lapic, &ram, &mut counts);
        let [word] = bytes(&ram, AT);
        assert_eq!(eoi.from_guest(lapic, &ram, &mut counts), None);
        assert_eq!(bytes(&ram, AT), [0xf0], "the other bits are the guest's");
        word == 0xf1
    };
    lapic.accept(0x41, Trigger::Edge);
    lapic.acknowledge(0x41);
    assert!(!offered(&mut eoi, &mut lapic), "not in use");
    eoi.write(AT | 1, &ram).unwrap();
    assert!(offered(&mut eoi, &mut lapic));
    assert!(offered(&mut eoi, &mut lapic), "and again, as the guest did not take it");
    lapic.accept(0x31, Trigger::Edge);
    assert!(!offered(&mut eoi, &mut lapic), "another waits");
    lapic.accept(0x61, Trigger::Edge);
    lapic.acknowledge(0x61);
    lapic.acknowledge(0x31);
    assert!(!offered(&mut eoi, &mut lapic), "nested");
    while lapic.in_service_is_level() || lapic.vectors().1 != devices::lapic::VectorSet::EMPTY {
        let _ = lapic.eoi();
    }
    assert!(!offered(&mut eoi, &mut lapic), "nothing is in service");
    lapic.accept(0x41, Trigger::Level);
    lapic.acknowledge(0x41);
    assert!(!offered(&mut eoi, &mut lapic), "level-triggered");
    // Only addresses of words in RAM are taken.
    for value in [AT | 2, AT | 3, 1 << 20 | 1] {
        assert_eq!(eoi.write(value, &ram), Err(Gp));
        assert_eq!(eoi.msr(), AT | 1);
    }
    assert_eq!(eoi.write(0, &ram), Ok(()));
}

fn wrmsr(play: &mut Play, msr: Msr, value: u64) -> bool {
    play.vcpu.set_gpr(Gpr::Rcx, msr.0.into());
    play.vcpu.set_gpr(Gpr::Rax, value.low32().into());
    play.vcpu.set_gpr(Gpr::Rdx, high32(value).into());
    play.vcpu.hw.next_rip = Some(0x1002);
    play.vcpu.hw.rip = 0x1000;
    assert_eq!(play.turn(VmExit::WriteMsr), Next::Continue);
    play.vcpu.hw.rip == 0x1002
}

fn rdmsr(play: &mut Play, msr: Msr) -> u64 {
    play.vcpu.set_gpr(Gpr::Rcx, msr.0.into());
    play.vcpu.hw.next_rip = Some(0x1002);
    assert_eq!(play.turn(VmExit::ReadMsr), Next::Continue);
    join(play.vcpu.gpr(Gpr::Rdx).low32(), play.vcpu.gpr(Gpr::Rax).low32())
}

fn hypercall(play: &mut Play, registers: [u64; 5]) -> (Next, u64) {
    for (gpr, value) in
        [Gpr::Rax, Gpr::Rbx, Gpr::Rcx, Gpr::Rdx, Gpr::Rsi].into_iter().zip(registers)
    {
        play.vcpu.set_gpr(gpr, value);
    }
    play.vcpu.hw.next_rip = Some(0x1003);
    let next = play.turn(VmExit::Hypercall);
    (next, play.vcpu.gpr(Gpr::Rax))
}

#[test]
fn the_registers_of_a_vcpu() {
    let mut play = Play::new();
    for (msr, good, bad) in
        [(Msr::KVM_STEAL_TIME, AT | 1, AT | 3), (Msr::KVM_PV_EOI, AT | 5, AT | 3)]
    {
        assert!(wrmsr(&mut play, msr, good));
        assert!(!wrmsr(&mut play, msr, bad));
        play.turn(VmExit::HostInterrupt);
        assert_eq!(play.injected(), Some(Event::gp0()));
        assert_eq!(rdmsr(&mut play, msr), good);
    }
    play.vcpu.core.pv.kicked = true;
    play.vcpu.init();
    assert_eq!(play.vcpu.core.pv, PvState::default(), "INIT ends their use");
    assert_eq!(play.vcpu.core.clock.system_time(), 0);
}

#[test]
fn a_flush_reaches_the_hardware() {
    let mut play = Play::new();
    put(&play.vm.memory, AT, &[0; 64]);
    assert!(wrmsr(&mut play, Msr::KVM_STEAL_TIME, AT | 1));
    assert!(!play.vm.fabric.mailboxes()[0].is_on_cpu());
    on_cpu(&mut play.vcpu, &play.vm, 0);
    assert!(play.vm.fabric.mailboxes()[0].is_on_cpu());
    off_cpu(&mut play.vcpu, &play.vm);
    assert!(!play.vm.fabric.mailboxes()[0].is_on_cpu());
    let flushes = play.vcpu.hw.flushes;
    on_cpu(&mut play.vcpu, &play.vm, 2_000);
    assert_eq!(play.vcpu.hw.flushes, flushes);
    // A tick is a nanosecond here.
    assert_eq!(told(&play.vm.memory).0, 2_000);
    off_cpu(&mut play.vcpu, &play.vm);
    assert!(ask_for_flush(&play.vm.memory));
    on_cpu(&mut play.vcpu, &play.vm, 2_000);
    assert_eq!(play.vcpu.hw.flushes, flushes + 1);
}

#[test]
fn the_end_of_an_interrupt_by_turns() {
    let mut play = Play::new();
    play.vcpu.hw.rflags = IF;
    put(&play.vm.memory, AT, &[1]);
    assert!(wrmsr(&mut play, Msr::KVM_PV_EOI, AT | 1));
    play.vm.fabric.mailboxes()[0].post(0x41, Trigger::Edge);
    play.turn(VmExit::HostInterrupt);
    assert_eq!(play.injected(), Some(Event::interrupt(0x41)));
    let counts = play.vcpu.core.counters;
    assert_eq!((counts.eoi_offers, counts.eois), (1, 0));
    assert_eq!(bytes(&play.vm.memory, AT), [0], "taken back at the exit");
    assert!(play.vcpu.core.lapic.ends_unseen(), "still in service");
    // The 8259s' interrupts are no business of the local APIC's.
    play.vcpu.core.lapic.end_edge();
    play.turn(VmExit::HostInterrupt);
    assert_eq!(play.vcpu.core.counters.eoi_offers, 1);
}

#[test]
fn kicks_end_the_next_hlt() {
    let mut play = Play::new();
    play.vcpu.hw.next_rip = Some(0x1001);
    let halt = |play: &mut Play| play.turn(VmExit::Halt);
    // A kick while the vCPU is halted, with interrupts off.
    assert_eq!(halt(&mut play), Next::Continue);
    assert!(matches!(play.idle(), Next::Idle(_)));
    play.vm.fabric.request(0, Requests::UNHALT);
    assert_eq!(play.turn(VmExit::HostInterrupt), Next::Continue);
    assert_eq!(play.vcpu.core.counters.unhalts, 1);
    // A kick before the vCPU halts: it counts just once.
    assert_eq!(hypercall(&mut play, [call::KICK_CPU, 0, 0, 0, 0]), (Next::Continue, 0));
    assert_eq!(play.turn(VmExit::HostInterrupt), Next::Continue);
    assert_eq!(halt(&mut play), Next::Continue);
    assert_eq!(play.turn(VmExit::HostInterrupt), Next::Continue);
    assert_eq!(play.vcpu.activity, Activity::Running);
    assert_eq!(halt(&mut play), Next::Continue);
    assert!(matches!(play.idle(), Next::Idle(_)));
    // No vCPU has these ids.
    for id in [1, 0xff, 0xffff_ffff, u64::MAX] {
        assert_eq!(play.vm.fabric.vcpu_of(id), None);
    }
    assert!(play.vm.fabric.mailboxes()[0].is_quiet());
    let counts = play.vcpu.core.counters;
    assert_eq!((counts.kicks, counts.unhalts), (1, 2));
    // A vCPU that waits for its start-up is not started by a kick.
    play.vcpu.init();
    play.vm.fabric.request(0, Requests::UNHALT);
    assert!(matches!(play.idle(), Next::Idle(_)));
    assert_eq!(play.vm.fabric.mailboxes()[0].take_requests().requests, Requests::empty());
}

#[test]
fn interrupts_and_turns_by_hypercall() {
    let mut play = Play::with_vcpus(2);
    play.vcpu.hw.rflags = IF;
    // Vectors are taken by APICs that are switched on by software, NMIs by all.
    let fixed = [call::SEND_IPI, 0b11, 1, 0, 0x41];
    play.vm
        .fabric
        .routes()
        .publish(0, play.vcpu.core.lapic.identity().with_software_enabled(false));
    assert_eq!(hypercall(&mut play, fixed), (Next::Continue, 0));
    assert_eq!(hypercall(&mut play, [call::SEND_IPI, 1, 0, 0, 0x400]), (Next::Continue, 1));
    play.turn(VmExit::HostInterrupt);
    assert_eq!(play.injected(), Some(Event::nmi()));
    play.vm.fabric.routes().publish(0, play.vcpu.core.lapic.identity().with_software_enabled(true));
    assert_eq!(hypercall(&mut play, fixed), (Next::Continue, 1));
    play.turn(VmExit::HostInterrupt);
    assert_eq!(play.injected(), Some(Event::interrupt(0x41)));
    let counts = play.vcpu.core.counters;
    assert_eq!((counts.ipi_calls, counts.ipis, counts.yields), (3, 2, 0));
    // A vCPU yields neither to itself nor to an id that no vCPU has.
    for id in [0, 1] {
        assert_eq!(hypercall(&mut play, [call::SCHED_YIELD, id, 0, 0, 0]), (Next::Continue, 0));
    }
    let steward = hvabi::STEWARD_BASE + 2;
    assert_eq!(hypercall(&mut play, [steward, 0, 0, 0, 0]), (Next::Yield, 0));
    assert_eq!(play.turn(VmExit::HostInterrupt), Next::Continue, "once");
    assert_eq!(play.vcpu.core.counters.yields, 1);
    // Another vCPU, which has no CPU.
    play.vm.fabric.routes().publish(1, play.vcpu.core.lapic.identity().with_id(1));
    let to_other = [call::SCHED_YIELD, 1, 0, 0, 0];
    assert_eq!(hypercall(&mut play, to_other), (Next::Yield, 0));
    play.vm.fabric.mailboxes()[1].set_on_cpu(true);
    assert_eq!(hypercall(&mut play, to_other), (Next::Continue, 0));
    // A vCPU that spins gives way only while another has no CPU.
    assert_eq!(play.turn(VmExit::Pause), Next::Continue);
    play.vm.fabric.mailboxes()[1].set_on_cpu(false);
    assert_eq!(play.turn(VmExit::Pause), Next::Yield);
}

/// A guest that is paused for ten minutes sees no time pass, and is told.
#[test]
fn time_stands_still_while_paused() {
    const PAUSE: u64 = 600_000_000_000;
    const DEADLINE: u64 = 5_000_000;
    const FLAGS: u64 = AT + 29;
    let mut play = Play::new();
    play.stage.tsc = 1_000_000;
    on_cpu(&mut play.vcpu, &play.vm, 0);
    assert!(wrmsr(&mut play, Msr::KVM_SYSTEM_TIME, AT | 1));
    assert!(wrmsr(&mut play, Msr::TSC_ADJUST, 77));
    play.vcpu.core.lapic.write_tsc_deadline(0, devices::lapic::Ticks(0));
    assert!(wrmsr(&mut play, Msr::APIC_BASE, 0xfee0_0d00));
    assert!(wrmsr(&mut play, Msr(0x80f), 0x1ff));
    assert!(wrmsr(&mut play, Msr(0x832), 2 << 17 | 0x41));
    assert!(wrmsr(&mut play, Msr::TSC_DEADLINE, DEADLINE + 77));
    play.turn(VmExit::HostInterrupt);
    assert_eq!(play.stage.armed, DEADLINE);
    let page = |play: &Play| bytes::<32>(&play.vm.memory, AT);
    let guest_tsc = |play: &Play| play.stage.tsc.wrapping_add(play.vcpu.hw.tsc_offset);
    let (before, tsc, now) = (page(&play), guest_tsc(&play), play.vm.now(play.stage.tsc));
    let wall = play.vm.clock.read().wall(play.stage.tsc);
    off_cpu(&mut play.vcpu, &play.vm);
    play.vm.pause(play.stage.tsc);
    play.stage.tsc += PAUSE / 2;
    assert_eq!(play.vm.now(play.stage.tsc), now);
    play.vm.pause(play.stage.tsc);
    play.stage.tsc += PAUSE / 2;
    play.vm.resume(HostTime { tsc: play.stage.tsc, wall: wall + PAUSE });
    play.stage.tsc += 500;
    on_cpu(&mut play.vcpu, &play.vm, 0);
    assert_eq!(guest_tsc(&play), tsc + 500);
    assert_eq!(play.vm.now(play.stage.tsc).0, now.0 + 500);
    assert_eq!(play.vm.clock.read().wall(play.stage.tsc), wall + PAUSE + 500);
    // The page holds the same clock with another version, and the flag.
    let after = page(&play);
    assert_eq!((&before[4..29], &before[30..]), (&after[4..29], &after[30..]));
    let version = |page: [u8; 32]| u32::from_le_bytes([page[0], page[1], page[2], page[3]]);
    assert_eq!(version(after), version(before) + 2);
    let stopped = PvClockFlags::GUEST_STOPPED.bits();
    assert_eq!((before[29] & stopped, after[29] & stopped), (0, stopped));
    // The timer rings when the guest's time comes, and not before.
    play.turn(VmExit::HostInterrupt);
    assert_eq!(play.stage.armed, DEADLINE + PAUSE);
    // The guest clears the flag; nobody sets it again without another pause.
    put(&play.vm.memory, FLAGS, &[after[29] & !stopped]);
    off_cpu(&mut play.vcpu, &play.vm);
    play.vm.resume(HostTime { tsc: play.stage.tsc, wall: 0 });
    on_cpu(&mut play.vcpu, &play.vm, 0);
    let [flags] = bytes(&play.vm.memory, FLAGS);
    assert_eq!(flags & stopped, 0);
    assert_eq!(guest_tsc(&play), tsc + 500);
    assert_eq!(play.vcpu.core.counters.pauses_told, 1);
    // A vCPU without a clock is told nothing, and its TSC is right all the same.
    assert!(wrmsr(&mut play, Msr::KVM_SYSTEM_TIME, 0));
    play.vm.pause(play.stage.tsc);
    play.stage.tsc += PAUSE;
    play.vm.resume(HostTime { tsc: play.stage.tsc, wall: 0 });
    let mut other = play.vcpu.core.clock;
    let clock = play.vm.clock.read();
    let offset = clock.catch_up(&mut other, &play.vm.memory, TscAgreement::Matched).unwrap();
    assert_eq!(play.stage.tsc.wrapping_add(offset), tsc + 500);
    assert_eq!(clock.catch_up(&mut other, &play.vm.memory, TscAgreement::Matched), None);
}

/// A program that reads a clock on one vCPU and then on another relies on the flag TSC_STABLE.
#[test]
fn a_clock_is_stable_across_vcpus_only_while_their_tscs_agree() {
    let mut play = Play::with_vcpus(2);
    let other = Arc::clone(&play.vm.fabric.mailboxes()[1]);
    let stable = |play: &Play| {
        let [flags] = bytes(&play.vm.memory, AT + 29);
        flags & PvClockFlags::TSC_STABLE.bits() != 0
    };
    assert!(wrmsr(&mut play, Msr::KVM_SYSTEM_TIME, AT | 1));
    assert!(stable(&play));
    // The other vCPU's TSC is changed.
    other.set_tsc_adjust(5);
    play.vm.tsc_changed(1);
    assert!(other.is_quiet(), "it asks itself");
    play.turn(VmExit::HostInterrupt);
    assert!(!stable(&play));
    // The same holds for a vCPU that comes to a CPU after a pause, and for one that registers now.
    play.vm.pause(play.stage.tsc);
    play.vm.resume(HostTime { tsc: play.stage.tsc, wall: 0 });
    on_cpu(&mut play.vcpu, &play.vm, 0);
    assert!(!stable(&play));
    assert!(wrmsr(&mut play, Msr::KVM_SYSTEM_TIME, AT | 1));
    assert!(!stable(&play));
    // The first vCPU's own TSC follows: the two agree again, and the other is told.
    assert!(wrmsr(&mut play, Msr::TSC_ADJUST, 5));
    assert!(stable(&play));
    assert!(other.take_requests().requests.contains(Requests::CLOCK));
}

#[test]
fn what_can_be_used() {
    let all = PvFeatures::all();
    assert_eq!(all.usable(CallSet::ALL), all);
    let without_calls = PvFeatures::STEAL_TIME | PvFeatures::EOI | PvFeatures::TLB_FLUSH;
    assert_eq!(all.usable(CallSet::NONE), without_calls);
    let one = CallSet::from_iter([CallName::KvmSendIpi]);
    assert_eq!(all.usable(one), without_calls | PvFeatures::SEND_IPI);
    let no_steal = (all - PvFeatures::STEAL_TIME).usable(CallSet::ALL);
    assert!(!no_steal.contains(PvFeatures::TLB_FLUSH));
    assert_eq!(PvFeatures::empty().usable(CallSet::ALL), PvFeatures::empty());
}
