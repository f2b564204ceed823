//! States of a machine that random accesses seldom come to, and a look at all that a machine would
//! do next: for comparing two.

// The crate under test, which includes this file, has no prelude of `std`.
extern crate std;

use super::accesses::{PORTS, config};
use super::input::Input;
use chipset::HotPorts;
use chipset::fabric::Requests;
use config::layout::IOAPIC_BASE;
use devices::lapic::{Lint, Ticks, Trigger};
use std::vec::Vec;
use vmm::run::Next;
use vmm::scripted::Play;
use vmm::vcpu::Activity;
use x86defs::exit::{NestedAccess, NestedFault};
use x86defs::time::Nanos;
use x86defs::{Gpr, GuestPhysAddr, Rflags, VmExit, Width};

/// Places of the ports, registers and table of the device on the PCI bus.
const BARS: [u32; 3] = [0xc000, 0xc100_0000, 0xc200_0000];
/// A register of the device: an interrupt by the vector that is written.
const NOTIFY: u64 = 0x104;

fn now(play: &Play) -> Nanos {
    play.vm.now(play.stage.tsc)
}

fn out(play: &Play, port: u16, value: u8) {
    let _ = play.vm.board.port_write(port, Width::B1, value.into(), now(play));
}

/// Brings the machine to a state.
pub fn prepare(play: &mut Play, input: &mut Input<'_>) {
    let [what, choice] = input.take();
    match what % 12 {
        what @ 0..=4 => fixed(play, what, choice),
        what @ 5..=6 => on_pci(play, what, choice),
        what => vcpu(play, what, choice),
    }
}

/// Brings the fixed devices of the PC to a state.
fn fixed(play: &Play, what: u8, choice: u8) {
    match what {
        // The 8259s, with the timer, and some lines open.
        0 => {
            for (port, value) in [(0x20, 0x11), (0x21, 0x30), (0x21, 4), (0x21, 1), (0x21, 0)] {
                out(play, port, value);
            }
            for (port, value) in [(0xa0, 0x11), (0xa1, 0x38), (0xa1, 2), (0xa1, 1), (0xa1, choice)]
            {
                out(play, port, value);
            }
        }
        // The timers: PIT, RTC, ACPI.
        1 => {
            for (port, value) in [(0x43, 0x34 | choice & 2), (0x40, choice), (0x40, 1)] {
                out(play, port, value);
            }
        }
        2 => {
            for (port, value) in [(0x70, 0xa), (0x71, 0x26), (0x70, 0xb), (0x71, 0x42 | choice)] {
                out(play, port, value);
            }
        }
        // The serial port, with interrupts, and something sent and typed.
        3 => {
            let interrupts = if choice & 1 != 0 { 0xf } else { 0 };
            for (port, value) in [(0x3fb, 3), (0x3fa, 0xc7), (0x3f9, interrupts), (0x3fc, 0xb)] {
                out(play, port, value);
            }
            if let Some(mut write) = play.vm.board.hot_write(0x3f8) {
                write.write(choice);
            }
            let _ = play.vm.board.console_input(&[choice; 2], now(play));
        }
        // The I/O APIC's entries.
        _ => {
            for pin in 0..24 {
                let low = (0x30 + pin) | if choice >> (pin % 8) & 1 != 0 { 1 << 15 } else { 0 };
                for (offset, value) in [(0, 0x10 + 2 * pin), (0x10, low)] {
                    let at = GuestPhysAddr::new(IOAPIC_BASE + offset);
                    play.vm.board.mmio_write(at, Width::B4, value, || now(play));
                }
            }
        }
    }
}

/// Brings the device on the PCI bus to a state.
fn on_pci(play: &Play, what: u8, choice: u8) {
    match what {
        // The device on the PCI bus, with MSI-X, MSI or INTA#.
        5 => {
            place(play);
            let on = [(0x40, 0x8000_0000), (0x4c, 1 << 16), (0, 0)][usize::from(choice) % 3];
            config(&play.vm.board, on.0, Some(on.1), now(play));
            for (offset, value) in [(0x50, 0xfee0_0000), (0x58, 0x61)] {
                config(&play.vm.board, offset, Some(value), now(play));
            }
        }
        _ => {
            place(play);
            let masked = u64::from(choice & 1);
            // To APIC 0, or to all logical ones.
            let address = if choice & 2 != 0 { 0xfeef_f004 } else { 0xfee0_0000 };
            for (offset, value) in [(0, address), (8, masked << 32 | 0x71)] {
                let at = GuestPhysAddr::new(u64::from(BARS[2]) + offset);
                play.vm.board.mmio_write(at, Width::B8, value, || now(play));
            }
            notify(play, 0);
        }
    }
}

/// Brings the vCPU to a state.
fn vcpu(play: &mut Play, what: u8, choice: u8) {
    match what {
        // Registers that guests seldom change.
        7 => {
            play.vcpu.hw.pointers = [0x1001, 0, u64::from(choice) << 12 | 1, 0];
            play.vcpu.hw.others = [u64::from(choice); 9];
            // Each byte of the last one, PAT, is a type.
            play.vcpu.hw.others[8] = if choice & 4 != 0 { 0x0007_0406_0007_0406 } else { 0 };
            play.vcpu.hw.cpl = choice & 3;
        }
        // The local APIC: its logical destination, its pin for the 8259s, its timer.
        8 => {
            for (offset, value) in [(0xf0, 0x1ff), (0xd0, u32::from(choice) << 24)] {
                store(play, 0xfee0_0000 + offset, value);
            }
        }
        9 => {
            store(play, 0xfee0_0350, if choice & 1 != 0 { 0x1_0000 } else { 0x700 });
            for (offset, value) in [(0x320, 0x2_00ec), (0x380, 1000 * u32::from(choice))] {
                store(play, 0xfee0_0000 + offset, value);
            }
        }
        // Other vCPUs, and the 8259s by way of an I/O APIC.
        10 => {
            let posted = &play.vm.fabric.mailboxes()[usize::from(choice & 1)];
            posted
                .request([Requests::PIC, Requests::UNHALT, Requests::NMI][usize::from(choice) % 3]);
            posted.post(choice | 0x10, Trigger::Level);
            if choice & 1 == 0 {
                let ticks: Ticks = play.vm.ticks(play.stage.tsc);
                let lapic = &mut play.vcpu.core.lapic;
                let _ = lapic.mmio_write(0x350, Width::B4, 0x1_0000, ticks);
            }
            turn(play, VmExit::HostInterrupt);
        }
        _ => {
            let flags = if choice & 1 != 0 { Rflags::IF } else { Rflags::empty() };
            play.vcpu.hw.rflags = (flags | Rflags::RESERVED1).bits();
            turn(play, if choice & 2 != 0 { VmExit::Halt } else { VmExit::HostInterrupt });
        }
    }
}

/// Gives the device on the PCI bus its places.
fn place(play: &Play) {
    for (offset, value) in (0x10..).step_by(4).zip(BARS) {
        config(&play.vm.board, offset, Some(value), now(play));
    }
    config(&play.vm.board, 4, Some(7), now(play));
}

fn notify(play: &Play, vector: u64) {
    let at = GuestPhysAddr::new(u64::from(BARS[1]) + NOTIFY);
    play.vm.board.mmio_write(at, Width::B4, vector, || now(play));
}

/// Has the guest write to device memory, if its mode lets it: `mov [ebx], eax`.
fn store(play: &mut Play, gpa: u64, value: u32) {
    let rip = play.vcpu.hw.rip;
    play.vcpu.hw.rip = 0x1000;
    play.vcpu.activity = Activity::Running;
    play.code(&[0x89, 0x03]);
    play.vcpu.set_gpr(Gpr::Rbx, gpa);
    play.vcpu.set_gpr(Gpr::Rax, value.into());
    let access = NestedAccess::WRITE;
    turn(
        play,
        VmExit::NestedFault(NestedFault { gpa: GuestPhysAddr::new(gpa), access, gva: None }),
    );
    play.vcpu.hw.rip = rip;
}

/// One turn; what came of it, with times as the guest counts them.
fn turn(play: &mut Play, exit: VmExit) -> Next {
    // This CPU tells where HLT ends.
    play.vcpu.hw.next_rip = (exit == VmExit::Halt).then(|| play.vcpu.hw.rip.wrapping_add(1));
    let next = play.turn(exit);
    // A vCPU that sleeps was not entered.
    play.vcpu.hw.exits.clear();
    match next {
        Next::Idle(u64::MAX) => Next::Idle(u64::MAX),
        Next::Idle(until) => Next::Idle(until.saturating_sub(play.stage.boot)),
        next => next,
    }
}

/// All that can be seen of a machine, and what it does when time passes and interrupts are let in.
#[derive(Debug, PartialEq)]
pub struct Seen {
    turns: Vec<Next>,
    read: Vec<u64>,
    bells: Vec<Option<(u8, u64)>>,
}

/// Looks at all that there is, which changes the machine.
pub fn look(play: &mut Play) -> Seen {
    let mut seen = Seen { turns: Vec::new(), read: Vec::new(), bells: Vec::new() };
    let mut bells = HotPorts::default();
    play.vm.board.follow_ports(&mut bells);
    for port in (BARS[0]..BARS[0] + 8).filter_map(|port| u16::try_from(port).ok()) {
        seen.bells.push(play.vm.board.hot_bell(port, &bells));
    }
    seen.read.extend(play.vcpu.pointers());
    seen.read.extend([play.vcpu.cpl().into(), play.vcpu.dr(6)]);
    seen.read.push(play.vcpu.core.lapic.is_asserted(Lint::Lint0).into());
    let mut rest = |play: &mut Play, exit| {
        play.vcpu.hw.rflags = (Rflags::IF | Rflags::RESERVED1).bits();
        seen.turns.push(turn(play, exit));
        seen.read.push(play.vm.board.deadline().0);
    };
    // Interrupts that wait now, then those that come with time.
    for exit in [VmExit::HostInterrupt, VmExit::Halt, VmExit::HostInterrupt, VmExit::Halt] {
        rest(play, exit);
    }
    for shift in (10..32).step_by(2) {
        play.stage.tsc += 1 << shift;
        rest(play, VmExit::HostInterrupt);
        let _ = play.vm.board.port_write(0x20, Width::B1, 0x20, now(play));
    }
    for vector in 0..3 {
        notify(play, vector);
        rest(play, VmExit::HostInterrupt);
    }
    let _ = play.vm.board.try_flush_console();
    let board = &play.vm.board;
    let ports = PORTS.iter().map(|port| board.port_read(*port, Width::B1, now(play)));
    seen.read.extend(ports.map(u64::from));
    for offset in (0..64).step_by(4) {
        seen.read.push(config(board, offset, None, now(play)).into());
        for base in &BARS[1..] {
            let at = GuestPhysAddr::new(u64::from(*base) + u64::from(offset));
            seen.read.push(board.mmio_read(at, Width::B4, || now(play)));
        }
    }
    seen
}
