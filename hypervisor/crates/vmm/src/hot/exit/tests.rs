//! The hot handler against the general code: an exit that it serves has the same result, and an
//! exit that it declines has changed nothing.

extern crate std;

use crate::backend::{ExitRegs, Handled, HotReason, Instruction};
use crate::hot::exit::serve;
use crate::hot::timer::{HotTimer, TimerKind};
use crate::run::{Next, off_cpu};
use crate::scripted::{LEAST, PLACE, Play, RAM, UNTOUCHED};
use chipset::Flushed;
use core::sync::atomic::Ordering;
use devices::Device;
use devices::lapic::ApicMode;
use hvabi::kvm;
use proptest::prelude::*;
use std::vec;
use std::vec::Vec;
use x86defs::bits::{Low, high32};
use x86defs::exit::{Direction, PlainPort, PortIo};
use x86defs::time::Nanos;
use x86defs::{Cr4, Gpr, GuestPhysAddr, Msr, Rflags, VmExit, Width};

/// A stopped CPU.
#[derive(Clone, Debug, PartialEq)]
struct Cpu {
    rip: u64,
    length: Option<u64>,
    rflags: Rflags,
    shadow: bool,
    cpl: u8,
    port: Option<PlainPort>,
    touched: Option<GuestPhysAddr>,
    tsc: u64,
    armed: Vec<u64>,
}

impl Cpu {
    fn at(tsc: u64) -> Self {
        Self {
            rip: 0x1000,
            length: Some(2),
            rflags: Rflags::IF,
            shadow: true,
            cpl: 0,
            port: None,
            touched: None,
            tsc,
            armed: Vec::new(),
        }
    }
}

impl ExitRegs for Cpu {
    fn rip(&self) -> u64 {
        self.rip
    }
    fn instruction(&self) -> Option<Instruction> {
        Some(Instruction { rip: self.rip, next_rip: self.rip + self.length? })
    }
    fn advance(&mut self, instruction: Instruction, hold: Rflags) -> bool {
        if self.rflags.intersects(hold) {
            return false;
        }
        self.rip = instruction.next_rip;
        self.shadow = false;
        true
    }
    fn cpl(&self) -> u8 {
        self.cpl
    }
    fn byte_port(&self) -> Option<PlainPort> {
        self.port.filter(|port| port.width == Width::B1)
    }

    fn port(&self) -> Option<PlainPort> {
        self.port
    }
    fn touched(&self) -> Option<GuestPhysAddr> {
        self.touched
    }
    fn tsc(&self) -> u64 {
        self.tsc
    }
    fn arm(&mut self, timer: &HotTimer, _: u64) {
        self.armed.push(timer.armed);
    }
}

const LVT_TIMER: Msr = Msr(0x832);
const SVR: Msr = Msr(0x80f);
const TSC_DEADLINE_MODE: u64 = 2 << 17;

/// A guest in x2APIC mode whose timer takes TSC deadlines.
fn play() -> Play {
    let mut play = Play::new();
    play.stage.tsc = 1_000;
    wrmsr(&mut play, Msr::APIC_BASE, 0xfee0_0d00);
    wrmsr(&mut play, SVR, 0x1ff);
    wrmsr(&mut play, LVT_TIMER, TSC_DEADLINE_MODE | 0x41);
    play
}

fn load(play: &mut Play, msr: Msr, value: u64) {
    play.vcpu.set_gpr(Gpr::Rcx, msr.0.into());
    play.vcpu.set_gpr(Gpr::Rax, value.low32().into());
    play.vcpu.set_gpr(Gpr::Rdx, high32(value).into());
}

/// WRMSR through the general code.
fn wrmsr(play: &mut Play, msr: Msr, value: u64) {
    load(play, msr, value);
    play.vcpu.hw.next_rip = Some(play.vcpu.hw.rip + 2);
    assert_eq!(play.turn(VmExit::WriteMsr), Next::Continue);
}

/// Turns in which the guest does nothing, until all is injected that can be.
fn settle(play: &mut Play) {
    for _ in 0..8 {
        assert_eq!(play.turn(VmExit::HostInterrupt), Next::Continue);
        if play.injected().is_none() {
            return;
        }
    }
    panic!("no end of injections");
}

/// The handler declines, and nothing has changed.
fn declines(play: &mut Play, cpu: &Cpu, reason: HotReason) {
    let core = &mut play.vcpu.core;
    let before = (core.hot.gpr, core.lapic.save(), core.timer, core.counts, core.recent.total());
    let mut after = cpu.clone();
    assert_eq!(serve(core, &mut after, reason), Handled::Cold, "{reason:?} {cpu:?}");
    assert_eq!(&after, cpu, "{reason:?}");
    let now = (core.hot.gpr, core.lapic.save(), core.timer, core.counts, core.recent.total());
    assert_eq!(now, before, "{reason:?}");
}

/// One exit of each kind that is served, made ready.
fn each_kind(mut check: impl FnMut(&mut Play, &mut Cpu, HotReason)) {
    for reason in [
        HotReason::Cpuid,
        HotReason::ReadMsr,
        HotReason::WriteMsr,
        HotReason::WriteTscDeadline,
        HotReason::Hypercall,
        HotReason::Port,
        HotReason::Doorbell,
    ] {
        let mut play = play();
        let mut cpu = Cpu::at(play.stage.tsc);
        match reason {
            HotReason::Cpuid => play.vcpu.set_gpr(Gpr::Rax, 1),
            HotReason::ReadMsr => load(&mut play, Msr::APIC_BASE, 0),
            HotReason::WriteMsr | HotReason::WriteTscDeadline => {
                load(&mut play, Msr::TSC_DEADLINE, 1 << 40)
            }
            HotReason::Hypercall => play.vcpu.set_gpr(Gpr::Rax, kvm::call::VAPIC_POLL_IRQ),
            HotReason::Doorbell => {
                place_bells(&play);
                play.turn(VmExit::HostInterrupt);
                let width = Width::B2;
                cpu.port = Some(PlainPort { port: BELLS, width, direction: Direction::Out });
            }
            HotReason::Port | HotReason::Touch => {
                cpu.port =
                    Some(PlainPort { port: 0x21, width: Width::B1, direction: Direction::In });
            }
        }
        check(&mut play, &mut cpu, reason);
    }
}

#[test]
fn each_kind_is_served_counted_and_recorded() {
    each_kind(|play, cpu, reason| {
        let total = play.vcpu.core.recent.total();
        let handled = serve(&mut play.vcpu.core, cpu, reason);
        assert_eq!(handled, Handled::Reenter, "{reason:?}");
        assert_eq!(cpu.rip, 0x1002);
        assert!(!cpu.shadow, "{reason:?}: the interrupt shadow ends");
        let core = &play.vcpu.core;
        assert_eq!(core.recent.total(), total + 1);
        let counts = core.counts.iter().collect::<Vec<_>>();
        assert_eq!(counts[0], ("hot", 1));
        assert_eq!(counts[1..7].iter().map(|(_, n)| n).sum::<u64>(), 1);
    });
}

#[test]
fn a_trap_behind_the_instruction_is_the_general_codes() {
    for flag in [Rflags::TF, Rflags::RF] {
        each_kind(|play, cpu, reason| {
            cpu.rflags |= flag;
            declines(play, cpu, reason);
        });
    }
}

#[test]
fn what_is_traced_is_the_general_codes() {
    let trace = chipset::trace_port::TracePort::default();
    trace.port_write(0, Width::B4, 1).unwrap();
    each_kind(|play, cpu, reason| {
        cpu.rflags |= Rflags::RESERVED1;
        play.vcpu.core.hold = trace.hold();
        declines(play, cpu, reason);
    });
}

#[test]
fn without_the_instructions_end_nothing_is_served() {
    each_kind(|play, cpu, reason| {
        cpu.length = None;
        declines(play, cpu, reason);
    });
}

#[test]
fn what_the_general_code_refuses_is_declined() {
    let (mut play, mut cpu) = (play(), Cpu::at(1_000));
    let refused = [
        (Msr::X2APIC_EOI, 1),
        (Msr::X2APIC_EOI, 1 << 32),
        (Msr::X2APIC_SELF_IPI, 0x100),
        (Msr::X2APIC_SELF_IPI, 0xf),
        (Msr::X2APIC_ICR, 1 << 20 | 0x41),
        (Msr::X2APIC_ICR, 1 << 18 | 4 << 8 | 0x41),
        (Msr::EFER, 0),
    ];
    for (msr, value) in refused {
        load(&mut play, msr, value);
        declines(&mut play, &cpu, HotReason::WriteMsr);
    }
    for msr in [Msr(0x12345), Msr::X2APIC_EOI, Msr::TSC_DEADLINE] {
        load(&mut play, msr, 0);
        declines(&mut play, &cpu, HotReason::ReadMsr);
    }
    play.vcpu.set_gpr(Gpr::Rax, kvm::call::VAPIC_POLL_IRQ + 1);
    declines(&mut play, &cpu, HotReason::Hypercall);
    play.vcpu.set_gpr(Gpr::Rax, kvm::call::VAPIC_POLL_IRQ);
    cpu.cpl = 3;
    declines(&mut play, &cpu, HotReason::Hypercall);
}

#[test]
fn x2apic_registers_are_not_there_in_xapic_mode() {
    let (mut play, cpu) = (Play::new(), Cpu::at(1_000));
    assert_eq!(play.vcpu.core.lapic.mode(), ApicMode::XApic);
    for msr in [Msr::X2APIC_EOI, Msr::X2APIC_SELF_IPI, Msr::X2APIC_ICR] {
        load(&mut play, msr, 0x41 * u64::from(msr != Msr::X2APIC_EOI));
        declines(&mut play, &cpu, HotReason::WriteMsr);
    }
}

#[test]
fn cpuid_answers_as_the_table_does_and_follows_the_registers() {
    let mut play = play();
    for cr4 in [Cr4::empty(), Cr4::OSXSAVE | Cr4::PAE, Cr4::PAE] {
        play.vcpu.hw.cr4 = cr4.bits();
        play.turn(VmExit::HostInterrupt);
        let mut served = 0;
        for base in [0u32, 0x4000_0000, 0x4000_0100, 0x8000_0000, 0xc000_0000, 0x6000_0000] {
            for leaf in (base..base + 0x28).chain([base + 0xff, base + 0x100, base + 0x1_0001]) {
                for subleaf in [0, 1, 2, 77] {
                    let mut cpu = Cpu::at(1_000);
                    let core = &mut play.vcpu.core;
                    core.set_gpr(Gpr::Rax, 0xdead << 32 | u64::from(leaf));
                    core.set_gpr(Gpr::Rcx, subleaf.into());
                    let wanted = core.cpuid.lookup(leaf, subleaf, &core.view(cr4));
                    if serve(core, &mut cpu, HotReason::Cpuid) == Handled::Cold {
                        assert_eq!(leaf, 0xd, "only this depends on XCR0");
                        continue;
                    }
                    served += 1;
                    let got = [Gpr::Rax, Gpr::Rbx, Gpr::Rcx, Gpr::Rdx].map(|r| core.gpr(r));
                    let wanted = [wanted.eax, wanted.ebx, wanted.ecx, wanted.edx];
                    assert_eq!(got, wanted.map(u64::from), "{leaf:#x}.{subleaf}");
                }
            }
        }
        assert!(served > 900, "{served}");
    }
}

#[test]
fn a_timer_of_the_backends_own_is_set_again_now_and_then() {
    let mut play = play();
    play.vcpu.core.timer.kind = TimerKind::Own { shift: 5 };
    let mut cpu = Cpu::at(2_000);
    for _ in 0..64 {
        play.vcpu.core.set_gpr(Gpr::Rax, 0);
        assert_eq!(serve(&mut play.vcpu.core, &mut cpu, HotReason::Cpuid), Handled::Reenter);
    }
    assert_eq!(cpu.armed.len(), 4);
    play.vcpu.core.timer.kind = TimerKind::Machine;
    for _ in 0..64 {
        play.vcpu.core.set_gpr(Gpr::Rax, 0);
        assert_eq!(serve(&mut play.vcpu.core, &mut cpu, HotReason::Cpuid), Handled::Reenter);
    }
    assert_eq!(cpu.armed.len(), 4, "the machine's runs on");
}

#[test]
fn a_first_touch_is_served_where_memory_is_at_hand() {
    let mut play = play();
    let mut cpu = Cpu::at(2_000);
    declines(&mut play, &cpu, HotReason::Touch);
    cpu.touched = Some(GuestPhysAddr::new(UNTOUCHED - 1));
    declines(&mut play, &cpu, HotReason::Touch);
    cpu.touched = Some(GuestPhysAddr::new(RAM as u64 - 1));
    let before = cpu.clone();
    assert_eq!(serve(&mut play.vcpu.core, &mut cpu, HotReason::Touch), Handled::Reenter);
    assert_eq!(cpu, before, "the instruction runs again");
    assert_eq!(play.vcpu.core.counts.hot.touch, 1);
}

/// Something that a guest does to its local APIC.
#[derive(Clone, Copy, Debug)]
enum Step {
    Deadline(i64),
    Write(Msr, u64),
    Wait(u64),
}

fn step() -> impl Strategy<Value = Step> {
    let vector = 0x20u64..0x60;
    prop_oneof![
        4 => prop_oneof![Just(0), -200i64..200, 0i64..100_000].prop_map(Step::Deadline),
        3 => (0u64..60_000).prop_map(Step::Wait),
        3 => Just(Step::Write(Msr::X2APIC_EOI, 0)),
        2 => vector.clone().prop_map(|v| Step::Write(Msr::X2APIC_SELF_IPI, v)),
        1 => vector.prop_map(|v| Step::Write(Msr::X2APIC_ICR, 1 << 18 | 1 << 14 | v)),
        1 => Just(Step::Write(Msr::TSC_DEADLINE, 0)),
        1 => Just(Step::Write(Msr::TSC_DEADLINE, u64::MAX)),
        1 => (0u64..4).prop_map(|mode| Step::Write(LVT_TIMER, mode << 17 | 0x41)),
        1 => any::<bool>().prop_map(|m| {
            Step::Write(LVT_TIMER, u64::from(m) << 16 | TSC_DEADLINE_MODE | 0x43)
        }),
        1 => (0u64..16).prop_map(|class| Step::Write(Msr::X2APIC_TPR, class << 4)),
        1 => Just(Step::Write(Msr::X2APIC_EOI, 3)),
        1 => any::<u16>().prop_map(|adjust| Step::Write(Msr::TSC_ADJUST, adjust.into())),
    ]
}

proptest! {
    #[test]
    fn the_local_apic_does_not_know_the_difference(
        open in any::<bool>(),
        steps in prop::collection::vec(step(), 1..40),
    ) {
        let (mut hot, mut cold) = (play(), play());
        for play in [&mut hot, &mut cold] {
            play.vcpu.hw.rflags = if open { Rflags::IF.bits() | 2 } else { 2 };
            settle(play);
        }
        for step in steps {
            let (msr, value) = match step {
                Step::Wait(ticks) => {
                    for play in [&mut hot, &mut cold] {
                        play.stage.tsc += ticks;
                        settle(play);
                    }
                    prop_assert_eq!(hot.vcpu.core.lapic.save(), cold.vcpu.core.lapic.save());
                    continue;
                }
                Step::Deadline(ahead) => {
                    let adjust = hot.vcpu.core.clock.tsc_adjust();
                    let tsc = hot.stage.tsc.wrapping_add(adjust);
                    (Msr::TSC_DEADLINE, tsc.wrapping_add_signed(ahead))
                }
                Step::Write(msr, value) => (msr, value),
            };
            load(&mut hot, msr, value);
            let mut cpu = Cpu { rip: hot.vcpu.hw.rip, ..Cpu::at(hot.stage.tsc) };
            let reason = match step {
                Step::Deadline(_) => HotReason::WriteTscDeadline,
                _ => HotReason::WriteMsr,
            };
            let handled = serve(&mut hot.vcpu.core, &mut cpu, reason);
            let moved = hot.vcpu.core.timer.armed;
            if handled == Handled::Cold {
                wrmsr(&mut hot, msr, value);
            } else {
                hot.vcpu.hw.rip = cpu.rip;
            }
            wrmsr(&mut cold, msr, value);
            settle(&mut hot);
            settle(&mut cold);
            let (a, b) = (&hot.vcpu, &cold.vcpu);
            prop_assert_eq!(a.core.lapic.save(), b.core.lapic.save(), "{:?}", step);
            prop_assert_eq!(a.core.timer, b.core.timer, "{:?}", step);
            prop_assert_eq!(a.hw.rip, b.hw.rip);
            if handled == Handled::Reenter {
                // The general code enters anew, and the guest has its least time from then on.
                let entered = hot.stage.tsc + crate::scripted::LEAST;
                prop_assert_eq!(moved.max(entered), b.core.timer.armed, "{:?}", step);
            }
            let injected = |play: &Play| {
                play.vcpu.hw.injected.iter().copied().flatten().collect::<Vec<_>>()
            };
            prop_assert_eq!(injected(&hot), injected(&cold), "{:?}", step);
        }
    }

    #[test]
    fn devices_do_not_know_the_difference(
        accesses in prop::collection::vec(
            (
                prop::sample::select(&[
                    0x20u16, 0x21, 0x80, 0xa0, 0xa1, 0x2f8, 0x3f8, 0x3f8, 0x3f9, 0x3fa, 0x3fb,
                    0x3fc, 0x3fd, 0x3fd, 0x3fe, 0x4d0,
                ]),
                any::<bool>(),
                prop_oneof![Just(0u8), Just(3), Just(0x0b), Just(0x11), any::<u8>()],
                0u8..8,
            ),
            1..80,
        ),
    ) {
        let (mut hot, mut cold) = (Play::new(), Play::new());
        for (port, input, value, other) in accesses {
            let direction = if input { Direction::In } else { Direction::Out };
            let io = PortIo { port, width: Width::B1, direction, string: None };
            if other == 0 {
                for play in [&mut hot, &mut cold] {
                    play.vm.board.console_input(b"x", play.vm.now(play.stage.tsc));
                }
            }
            for play in [&mut hot, &mut cold] {
                play.stage.tsc += 1_000;
                play.vcpu.set_gpr(Gpr::Rax, 0x1234_5600 | u64::from(value));
                settle(play);
            }
            let mut cpu = Cpu {
                port: Some(PlainPort { port, width: Width::B1, direction }),
                ..Cpu::at(hot.stage.tsc)
            };
            let general = |play: &mut Play| {
                play.vcpu.hw.next_rip = Some(0x1000);
                assert_eq!(play.turn(VmExit::PortIo(io)), Next::Continue);
            };
            match serve(&mut hot.vcpu.core, &mut cpu, HotReason::Port) {
                Handled::Cold => general(&mut hot),
                handled => prop_assert_eq!(handled, Handled::Reenter),
            }
            general(&mut cold);
            prop_assert_eq!(hot.vcpu.gpr(Gpr::Rax), cold.vcpu.gpr(Gpr::Rax), "{:?}", io);
            prop_assert_eq!(hot.vm.fabric.pic_output(), cold.vm.fabric.pic_output());
        }
        for play in [&mut hot, &mut cold] {
            assert_eq!(play.vm.board.try_flush_console(), Some(Flushed::All));
        }
        prop_assert_eq!(&*hot.stage.console.bytes.lock(), &*cold.stage.console.bytes.lock());
    }
}

#[test]
fn a_polling_console_is_hot() {
    let mut play = Play::new();
    let text = b"Linux version 6.1\r\n".repeat(100);
    let mut cold = 0;
    for byte in &text {
        for (port, direction) in [(0x3fd, Direction::In), (0x3f8, Direction::Out)] {
            play.vcpu.set_gpr(Gpr::Rax, u64::from(*byte));
            let mut cpu = Cpu {
                port: Some(PlainPort { port, width: Width::B1, direction }),
                ..Cpu::at(play.stage.tsc)
            };
            if serve(&mut play.vcpu.core, &mut cpu, HotReason::Port) == Handled::Cold {
                cold += 1;
                play.vcpu.hw.next_rip = Some(0x1000);
                let io = PortIo { port, width: Width::B1, direction, string: None };
                assert_eq!(play.turn(VmExit::PortIo(io)), Next::Continue);
            }
            if direction == Direction::In {
                assert_eq!(play.vcpu.gpr(Gpr::Rax), 0x60, "ready");
            }
        }
    }
    assert_eq!(play.vm.board.try_flush_console(), Some(Flushed::All));
    // The UART is in its reset state: words of five bits.
    let sent = text.iter().map(|b| b & 0x1f).collect::<Vec<_>>();
    assert_eq!(*play.stage.console.bytes.lock(), sent);
    assert!(cold < 4, "{cold}");
    let total = 2 * text.len() as u64;
    assert_eq!(play.vcpu.core.counts.hot.port_io + cold, total);
}

/// The port of the first doorbell of the device for tests.
const BELLS: u16 = 0xc000;

fn write(play: &Play, port: u16, width: Width, value: u32) {
    let _ = play.vm.board.port_write(port, width, value, Nanos(0));
}

/// The guest gives the device for tests its place.
fn place_bells(play: &Play) {
    place_bells_at(play, BELLS);
}

fn place_bells_at(play: &Play, port: u16) {
    let config = 1 << 31 | u32::from(PLACE.device()) << 11;
    for (register, value) in [(0x10, u32::from(port)), (4, 1)] {
        write(play, 0xcf8, Width::B4, config | register);
        write(play, 0xcfc, Width::B4, value);
    }
}

fn ring(play: &mut Play, number: u16, width: Width) -> (Handled, Cpu) {
    let port = BELLS + 4 * number;
    let mut cpu = Cpu {
        port: Some(PlainPort { port, width, direction: Direction::Out }),
        ..Cpu::at(play.stage.tsc)
    };
    (serve(&mut play.vcpu.core, &mut cpu, HotReason::Doorbell), cpu)
}

fn seen(play: &Play) -> Vec<u32> {
    play.stage.device.seen().collect()
}

#[test]
fn ports_of_nobody_are_hot_below_all_bars() {
    fn access(play: &mut Play, port: u16, direction: Direction) -> (Handled, u64) {
        play.vcpu.set_gpr(Gpr::Rax, 0xabcd_1234);
        let port = Some(PlainPort { port, width: Width::B1, direction });
        let mut cpu = Cpu { port, ..Cpu::at(play.stage.tsc) };
        let handled = serve(&mut play.vcpu.core, &mut cpu, HotReason::Port);
        let rip = if handled == Handled::Reenter { 0x1002 } else { 0x1000 };
        assert_eq!(cpu.rip, rip);
        (handled, play.vcpu.gpr(Gpr::Rax))
    }
    use Direction::{In, Out};
    const UNTOUCHED: (Handled, u64) = (Handled::Cold, 0xabcd_1234);
    let mut play = play();
    assert_eq!(access(&mut play, 0x80, In), (Handled::Reenter, 0xabcd_12ff));
    assert_eq!(access(&mut play, 0x80, Out), (Handled::Reenter, 0xabcd_1234));
    assert_eq!(play.vcpu.core.counts.hot.port_io, 2);
    for port in [0x60, 0x92, 0xcf9] {
        assert_eq!(access(&mut play, port, In), UNTOUCHED, "port {port:#x} has a device");
    }
    place_bells_at(&play, 0x100);
    assert_eq!(access(&mut play, 0x80, In), UNTOUCHED, "the copy is old");
    play.turn(VmExit::HostInterrupt);
    assert_eq!(access(&mut play, 0x80, In), (Handled::Reenter, 0xabcd_12ff));
    assert_eq!(access(&mut play, 0xef, Out), (Handled::Reenter, 0xabcd_1234));
    for port in [0x100, 0x1ff, 0x200] {
        assert_eq!(access(&mut play, port, In), UNTOUCHED);
    }
}

#[test]
fn a_doorbell_is_hot_and_paid_in_time() {
    let mut play = play();
    place_bells(&play);
    assert_eq!(ring(&mut play, 0, Width::B2).0, Handled::Cold, "the copy is older than the place");
    play.turn(VmExit::HostInterrupt);
    let start = play.stage.tsc;
    for (number, width) in [(0, Width::B2), (5, Width::B1), (63, Width::B4), (5, Width::B2)] {
        let (handled, cpu) = ring(&mut play, number, width);
        assert_eq!((handled, cpu.rip), (Handled::Reenter, 0x1002));
        let armed = if number == 0 { vec![start + 5 * LEAST / 2] } else { vec![] };
        assert_eq!(cpu.armed, armed, "{number}");
    }
    assert_eq!(ring(&mut play, 64, Width::B2).0, Handled::Cold);
    assert_eq!(seen(&play).iter().sum::<u32>(), 0);
    // Soon after the first one more may come.
    play.stage.tsc = start + LEAST - 1;
    play.turn(VmExit::HostInterrupt);
    assert_eq!(seen(&play).iter().sum::<u32>(), 0);
    assert_eq!(play.vcpu.core.timer.armed, start + 5 * LEAST / 2, "the debt is still due");
    play.stage.tsc = start + LEAST;
    play.turn(VmExit::HostInterrupt);
    let seen_now = seen(&play);
    assert_eq!((seen_now[0], seen_now[5], seen_now[63]), (1, 1, 1));
    assert_eq!(seen_now.iter().sum::<u32>(), 3, "once for all");
    // Before the vCPU loses its CPU, all is paid.
    assert_eq!(ring(&mut play, 7, Width::B2).0, Handled::Reenter);
    off_cpu(&mut play.vcpu, &play.vm);
    assert_eq!(seen(&play)[7], 1);
    // Reads are no business of the hot handler's.
    let port = PlainPort { port: BELLS, width: Width::B2, direction: Direction::In };
    let cpu = Cpu { port: Some(port), ..Cpu::at(play.stage.tsc) };
    declines(&mut play, &cpu, HotReason::Port);
}

#[test]
fn an_idle_cpu_gets_the_work_at_once() {
    let mut play = play();
    place_bells(&play);
    play.turn(VmExit::HostInterrupt);
    play.vcpu.core.idle_cpus.store(1, Ordering::Relaxed);
    let (handled, cpu) = ring(&mut play, 2, Width::B2);
    assert_eq!((handled, cpu.rip), (Handled::Recheck, 0x1002));
    assert_eq!(seen(&play)[2], 0);
    assert!(play.vcpu.core.served, "or the exit would be served again");
    play.turn(VmExit::HostInterrupt);
    assert_eq!(seen(&play)[2], 1, "paid though it is no older");
}

#[test]
fn a_doorbell_that_has_left_does_not_ring() {
    let mut play = play();
    place_bells(&play);
    play.turn(VmExit::HostInterrupt);
    assert_eq!(ring(&mut play, 1, Width::B2).0, Handled::Reenter);
    // The guest's other vCPU switches the device's ports off.
    write(&play, 0xcf8, Width::B4, 1 << 31 | u32::from(PLACE.device()) << 11 | 4);
    write(&play, 0xcfc, Width::B4, 0);
    let (handled, cpu) = ring(&mut play, 1, Width::B2);
    assert_eq!((handled, cpu.rip), (Handled::Cold, 0x1000));
    play.vcpu.hw.next_rip = Some(0x1002);
    let io = PortIo { port: BELLS + 4, width: Width::B2, direction: Direction::Out, string: None };
    play.turn(VmExit::PortIo(io));
    off_cpu(&mut play.vcpu, &play.vm);
    assert_eq!(seen(&play)[1], 1, "the first is not lost");
}
