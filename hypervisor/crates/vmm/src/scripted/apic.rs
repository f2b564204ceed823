//! A CPU that delivers the local APIC's interrupts by itself.

use super::Play;
use crate::backend::Backend;
use alloc::boxed::Box;
use config::layout::{IOAPIC_BASE, PM1A_EVENT_PORT};
use devices::lapic::{InterruptStatus, Reg, Trigger, VirtualApicPage};
use x86defs::exit::{ApicAccess, ApicAccessKind, ApicWrite};
use x86defs::time::Nanos;
use x86defs::{Event, Gpr, GuestPhysAddr, Msr, Rflags, VmExit, Width};

const IF: u64 = Rflags::IF.bits() | 2;

fn play() -> Play {
    let mut play = Play::new();
    play.vcpu.hw.page = Some(Box::new(VirtualApicPage::default()));
    play.vcpu.hw.rflags = IF;
    play
}

/// The register that the page holds while the guest runs.
fn shown(play: &Play, reg: Reg) -> u32 {
    play.vcpu.hw.page.as_ref().unwrap().read(reg)
}

#[test]
fn interrupts_go_into_the_page() {
    let mut play = play();
    play.vcpu.core.lapic.accept(0x41, Trigger::Edge);
    play.turn(VmExit::HostInterrupt);
    assert_eq!((play.injected(), play.vcpu.hw.window), (None, false));
    assert_eq!(play.vcpu.hw.status, InterruptStatus::new().with_requesting(0x41));
    assert_eq!(shown(&play, Reg(0x22)), 1 << 1);
    // An interrupt in the page is still there after the exit, and ends HLT.
    assert_eq!(play.vcpu.core.lapic.deliverable(), Some(0x41));
    assert!(play.vcpu.has_wake_up(false));
}

#[test]
fn an_interrupted_delivery_is_injected_again() {
    let mut play = play();
    play.turn_with(VmExit::HostInterrupt, Some(Event::interrupt(0x41)));
    play.turn(VmExit::HostInterrupt);
    assert_eq!(play.injected(), Some(Event::interrupt(0x41)));
}

#[test]
fn the_8259s_are_injected_and_wait_for_a_window() {
    let mut play = play();
    play.vcpu.hw.rflags = 2;
    let _ = play.vcpu.prepare(true, || 0x20);
    assert!(play.vcpu.hw.window);
    assert_eq!(play.vcpu.hw.injection(), None);
    play.vcpu.hw.rflags = IF;
    let _ = play.vcpu.prepare(true, || 0x20);
    assert_eq!(play.vcpu.hw.injection(), Some(Event::interrupt(0x20)));
    assert!(!play.vcpu.hw.window);
}

#[test]
fn a_written_command_is_sent() {
    let mut play = play();
    // An IPI to all, the sender included.
    let write = ApicWrite { offset: 0x300, value: 2 << 18 | 1 << 14 | 0x55 };
    play.turn(VmExit::ApicWrite(write));
    play.turn(VmExit::HostInterrupt);
    assert_eq!(play.vcpu.hw.status.requesting(), 0x55);
    assert_eq!(play.vcpu.hw.rip, 0x1000, "the CPU has completed the instruction");
}

#[test]
fn other_accesses_are_emulated() {
    let mut play = play();
    // mov eax, [ebx]: the timer's current count, at rest.
    play.code(&[0x8b, 0x03]);
    play.vcpu.set_gpr(Gpr::Rbx, 0xfee0_0390);
    play.vcpu.set_gpr(Gpr::Rax, 5);
    let access = ApicAccess { offset: Some(0x390), kind: ApicAccessKind::Read };
    play.turn(VmExit::ApicAccess(access));
    assert_eq!((play.vcpu.gpr(Gpr::Rax), play.vcpu.hw.rip), (0, 0x1002));
}

#[test]
fn the_end_of_a_level_triggered_interrupt_reaches_the_io_apic() {
    let mut play = play();
    let vm = &play.vm;
    // Entry 9, the SCI's: vector 0x49, level-triggered, for APIC 0.
    for (register, value) in [(0x10 + 18, 0x8049), (0x10 + 19, 0)] {
        for (offset, value) in [(0, register), (0x10, value)] {
            let at = GuestPhysAddr::new(IOAPIC_BASE + offset);
            vm.board.mmio_write(at, Width::B4, value, || Nanos(0));
        }
    }
    // The power button's event is enabled, and happens.
    let _ = vm.board.port_write(PM1A_EVENT_PORT + 2, Width::B2, 1 << 8, Nanos(0));
    vm.board.press_power_button();
    play.turn(VmExit::HostInterrupt);
    assert_eq!(play.vcpu.hw.status.requesting(), 0x49);
    // The CPU delivers and ends it: the line is still asserted, so it asks again.
    play.vcpu.core.lapic.acknowledge(0x49);
    let _ = play.vcpu.core.lapic.eoi();
    play.turn(VmExit::VirtualEoi(0x49));
    play.turn(VmExit::HostInterrupt);
    assert_eq!(play.vcpu.hw.status.requesting(), 0x49);
}

#[test]
fn the_page_follows_the_mode() {
    let mut play = play();
    for (value, shown) in [(0xfee0_0d00_u64, false), (0xfee0_0100, false), (0xfee0_0900, true)] {
        play.vcpu.set_gpr(Gpr::Rcx, Msr::APIC_BASE.0.into());
        play.vcpu.set_gpr(Gpr::Rax, value);
        play.vcpu.set_gpr(Gpr::Rdx, 0);
        play.vcpu.hw.next_rip = Some(0x1000);
        let flushes = play.vcpu.hw.flushes;
        play.turn(VmExit::WriteMsr);
        assert_eq!(play.vm.memory.1.get(), shown, "{value:#x}");
        // Translations of the page are of no use in the other mode, either way round.
        assert!(play.vcpu.hw.flushes > flushes, "{value:#x}");
    }
}
