//! Tests of the loop: its answers to exits.

use super::{Arc, Play};
use crate::backend::Quirks;
use crate::end::{EndReason, VmError};
use crate::hot::timer::NEVER;
use crate::run::Next;
use crate::vcpu::Activity;
use chipset::Flushed;
use chipset::fabric::Requests;
use core::sync::atomic::Ordering;
use devices::lapic::{Lapic, Role, TickRatio, Trigger};
use memory::{GuestMemory, MemoryError};
use x86defs::exit::{
    Direction, ExceptionExit, NestedAccess, NestedFault, PortIo, RawExit, StringIo,
};
use x86defs::{Cr0, Cr4, Event, Exception, Gpr, GuestPhysAddr, Msr, Rflags, VmExit, Width};

const IF: u64 = Rflags::IF.bits() | 2;
const TF: u64 = Rflags::TF.bits() | 2;

fn out(port: u16) -> VmExit {
    VmExit::PortIo(PortIo { port, width: Width::B1, direction: Direction::Out, string: None })
}

fn input(port: u16, width: Width) -> VmExit {
    VmExit::PortIo(PortIo { port, width, direction: Direction::In, string: None })
}

fn fault(gpa: u64, access: NestedAccess) -> VmExit {
    VmExit::NestedFault(NestedFault { gpa: GuestPhysAddr::new(gpa), access, gva: None })
}

#[test]
fn cpuid_moves_on_and_ends_the_shadow() {
    let mut play = Play::new();
    play.vcpu.set_gpr(Gpr::Rax, 0x4000_0000);
    play.vcpu.hw.next_rip = Some(0x1002);
    play.vcpu.hw.shadow = true;
    assert_eq!(play.turn(VmExit::Cpuid), Next::Continue);
    assert_eq!(play.vcpu.hw.rip, 0x1002);
    assert!(!play.vcpu.hw.shadow);
    assert_eq!(play.vcpu.gpr(Gpr::Rbx), u64::from(u32::from_le_bytes(*b"Stew")));
}

#[test]
fn without_next_rip_the_instruction_is_decoded() {
    let mut play = Play::new();
    play.code(&[0x66, 0x0f, 0xa2]);
    assert_eq!(play.turn(VmExit::Cpuid), Next::Continue);
    assert_eq!(play.vcpu.hw.rip, 0x1003);
}

#[test]
fn an_encoding_that_can_not_be_is_refused_the_second_time() {
    let mut play = Play::new();
    play.code(&[0xf0, 0x0f, 0xa2]);
    assert_eq!(play.turn(VmExit::Cpuid), Next::Continue);
    assert_eq!(play.turn(VmExit::Cpuid), Next::Continue);
    assert_eq!(play.injected(), None);
    assert_eq!(play.vcpu.hw.rip, 0x1000);
    play.turn(VmExit::HostInterrupt);
    assert_eq!(play.injected(), Some(Event::ud()));
}

#[test]
fn single_step_traps_after_an_emulated_instruction() {
    let mut play = Play::new();
    play.vcpu.hw.rflags = TF;
    play.vcpu.hw.dr7 = 0x2400;
    play.vcpu.hw.next_rip = Some(0x1002);
    play.turn(VmExit::Cpuid);
    play.turn(VmExit::HostInterrupt);
    assert_eq!(play.injected(), Some(Event::exception(Exception::DB)));
    assert_ne!(play.vcpu.hw.dr6 & 1 << 14, 0);
    // Its handler can look at DR6: general detect is over.
    assert_eq!(play.vcpu.hw.dr7, 0x400);
}

/// The guest may have had a right to be where it has gone, when it went there.
#[test]
fn an_exit_that_is_of_the_past_ends_no_guest() {
    let fetch = fault(0xf000_0000, NestedAccess::FETCH);
    let walk = fault(0xf000_0000, NestedAccess::WALK);
    let push = fault(0xf000_0000, NestedAccess::WRITE);
    for (exit, event) in [(fetch, None), (walk, None), (push, Some(Event::interrupt(0x31)))] {
        let mut play = Play::new();
        play.vm.memory.changes(true);
        assert_eq!(play.turn_with(exit, event), Next::Continue);
        play.vm.memory.changes(false);
        assert_eq!(play.turn(VmExit::HostInterrupt), Next::Continue);
        assert_eq!(play.injected(), event, "it is delivered again");
        let ended = play.turn_with(exit, event);
        assert!(matches!(ended, Next::End(EndReason::Failed(_))), "{ended:?}");
    }
}

/// The table of gates may lie in ROM that is not shown yet.
#[test]
fn a_delivery_that_reads_rom_is_repeated() {
    let mut play = Play::new();
    play.vm.memory.seal(0x8000);
    let event = Event::interrupt(0x31);
    let read = fault(0x8000, NestedAccess::empty());
    assert_eq!(play.turn_with(read, Some(event)), Next::Continue);
    play.turn(VmExit::HostInterrupt);
    assert_eq!(play.injected(), Some(event));
    let pushed = play.turn_with(fault(0x8000, NestedAccess::WRITE), Some(event));
    assert!(matches!(pushed, Next::End(EndReason::Failed(_))), "{pushed:?}");
}

#[test]
fn an_interrupted_delivery_is_repeated() {
    let mut play = Play::new();
    let event = Event::interrupt(0x31);
    let touched = fault(0x8000, NestedAccess::WRITE);
    assert_eq!(play.turn_with(touched, Some(event)), Next::Continue);
    play.turn(VmExit::HostInterrupt);
    assert_eq!(play.injected(), Some(event));
    play.turn(VmExit::HostInterrupt);
    assert_eq!(play.injected(), None, "once");
}

#[test]
fn a_fault_during_the_delivery_of_a_fault_is_a_double_fault() {
    let mut play = Play::new();
    let first = Event::exception_with_code(Exception::NP, 8);
    play.vcpu.set_gpr(Gpr::Rcx, 0xdead_beef);
    assert_eq!(play.turn_with(VmExit::Rdpmc, Some(first)), Next::Continue);
    play.turn(VmExit::HostInterrupt);
    assert_eq!(play.injected(), Some(Event::exception_with_code(Exception::DF, 0)));
    let double = Event::exception_with_code(Exception::DF, 0);
    let next = play.turn_with(VmExit::Rdpmc, Some(double));
    assert_eq!(next, Next::End(EndReason::TripleFault));
}

#[test]
fn interrupts_wait_for_the_window() {
    let mut play = Play::new();
    play.vm.fabric.mailboxes()[0].post(0x41, Trigger::Edge);
    play.turn(VmExit::HostInterrupt);
    assert_eq!(play.injected(), None, "interrupts are off");
    assert!(play.vcpu.hw.window);
    play.vcpu.hw.rflags = IF;
    play.vcpu.hw.shadow = true;
    play.turn(VmExit::HostInterrupt);
    assert_eq!(play.injected(), None, "in the shadow");
    play.vcpu.hw.shadow = false;
    play.turn(VmExit::InterruptWindow);
    assert_eq!(play.injected(), Some(Event::interrupt(0x41)));
    assert!(!play.vcpu.hw.window);
    play.turn(VmExit::HostInterrupt);
    assert_eq!(play.injected(), None, "it is in service");
}

#[test]
fn a_halt_whose_shadow_the_cpu_loses_still_gets_its_wake_up() {
    for exit in [VmExit::InterruptWindow, VmExit::HostInterrupt, VmExit::Nmi] {
        let mut play = Play::new();
        play.code(&[0xf4]);
        (play.vcpu.hw.rflags, play.vcpu.hw.quirks) = (IF, Quirks::LOSES_SHADOW);
        play.vm.fabric.mailboxes()[0].post(0x41, Trigger::Edge);
        play.vcpu.hw.shadow = true;
        play.turn(exit);
        assert_eq!(play.injected(), None, "in the shadow");
        // The CPU stopped at once, and reports no shadow.
        play.vcpu.hw.shadow = false;
        play.turn(VmExit::HostInterrupt);
        assert_eq!(play.vcpu.hw.rip, 0x1001, "{exit:?}: the HLT was executed");
        assert_eq!(play.injected(), Some(Event::interrupt(0x41)), "{exit:?}: and ended");
    }
}

#[test]
fn priorities_exception_nmi_interrupt() {
    let mut play = Play::new();
    play.vcpu.hw.rflags = IF;
    play.vm.fabric.mailboxes()[0].post(0x41, Trigger::Edge);
    play.vcpu.post_nmi();
    play.vcpu.raise(Event::gp0());
    for wanted in [Event::gp0(), Event::nmi(), Event::interrupt(0x41)] {
        assert!(play.turn(VmExit::HostInterrupt) == Next::Continue);
        assert_eq!(play.injected(), Some(wanted));
    }
    play.vcpu.post_nmi();
    play.turn(VmExit::HostInterrupt);
    assert_eq!(play.injected(), None, "NMIs are blocked until IRET");
}

#[test]
fn halt_sleeps_until_the_timer() {
    let mut play = Play::new();
    play.vcpu.hw.next_rip = Some(0x1001);
    play.vcpu.hw.rflags = IF;
    // TSC-deadline mode, vector 0x50; due at 5000.
    let lapic = &mut play.vcpu.core.lapic;
    let _ = lapic.mmio_write(0x320, Width::B4, 0x4_0050, devices::lapic::Ticks(0)).unwrap();
    lapic.write_tsc_deadline(5000, devices::lapic::Ticks(0));
    assert_eq!(play.turn(VmExit::Halt), Next::Continue);
    assert_eq!(play.vcpu.activity, Activity::Halted);
    assert_eq!(play.idle(), Next::Idle(5000));
    play.stage.tsc = 5000;
    play.turn(VmExit::HostInterrupt);
    assert_eq!(play.vcpu.activity, Activity::Running);
    assert_eq!(play.injected(), Some(Event::interrupt(0x50)));
    assert_eq!(play.vcpu.hw.rip, 0x1001);
}

#[test]
fn halt_with_interrupts_off_wakes_for_an_nmi_only() {
    let mut play = Play::new();
    play.vcpu.hw.next_rip = Some(0x1001);
    play.turn(VmExit::Halt);
    play.vm.fabric.mailboxes()[0].post(0x41, Trigger::Edge);
    assert_eq!(play.idle(), Next::Idle(NEVER));
    play.vcpu.post_nmi();
    play.turn(VmExit::HostInterrupt);
    assert_eq!(play.injected(), Some(Event::nmi()));
}

#[test]
fn msrs_by_policy() {
    let mut play = Play::new();
    play.vcpu.hw.next_rip = Some(0x1002);
    play.vcpu.set_gpr(Gpr::Rcx, 0x1b);
    play.turn(VmExit::ReadMsr);
    assert_eq!(play.vcpu.gpr(Gpr::Rax), 0xfee0_0900);
    play.vcpu.set_gpr(Gpr::Rcx, 0x1234);
    play.turn(VmExit::ReadMsr);
    play.turn(VmExit::HostInterrupt);
    assert_eq!(play.injected(), Some(Event::gp0()), "unknown");
    assert_eq!(play.vcpu.hw.rip, 0x1002, "a fault does not move on");
}

#[test]
fn the_tsc_follows_its_writes() {
    let mut play = Play::new();
    play.stage.tsc = 1_000;
    play.vcpu.hw.next_rip = Some(0x1002);
    play.vcpu.set_gpr(Gpr::Rcx, Msr::TSC.0.into());
    play.vcpu.set_gpr(Gpr::Rax, 5_000);
    play.turn(VmExit::WriteMsr);
    assert_eq!(play.vcpu.hw.tsc_offset, 4_000);
    play.vcpu.set_gpr(Gpr::Rcx, Msr::TSC_ADJUST.0.into());
    play.turn(VmExit::ReadMsr);
    assert_eq!(play.vcpu.gpr(Gpr::Rax), 4_000);
}

#[test]
fn ports_and_console() {
    let mut play = Play::new();
    play.vcpu.hw.next_rip = Some(0x1001);
    // Eight bits a character.
    play.vcpu.set_gpr(Gpr::Rax, 3);
    play.turn(out(0x3fb));
    for byte in *b"ok\n" {
        play.vcpu.set_gpr(Gpr::Rax, byte.into());
        play.turn(out(0x3f8));
    }
    let console = Arc::clone(&play.stage.console);
    let sent = || console.bytes.lock().clone();
    assert_eq!(sent(), b"ok\n");
    play.vcpu.set_gpr(Gpr::Rax, 0x1234_5678_9abc_def0);
    play.turn(input(0x1234, Width::B2));
    assert_eq!(play.vcpu.gpr(Gpr::Rax), 0x1234_5678_9abc_ffff, "nobody answers");
    // Without room on the console the bytes wait in the guest's port.
    console.room.store(0, Ordering::Relaxed);
    play.vcpu.set_gpr(Gpr::Rax, b'x'.into());
    play.turn(out(0x3f8));
    assert_eq!(sent(), b"ok\n");
    play.turn(input(0x3fd, Width::B1));
    assert_eq!(play.vcpu.gpr(Gpr::Rax) & 0x20, 0, "the transmitter is not empty");
    assert_eq!(play.vm.board.try_flush_console(), Some(Flushed::OutOfRoom));
    console.room.store(100, Ordering::Relaxed);
    assert_eq!(play.vm.board.try_flush_console(), Some(Flushed::All));
    assert_eq!(sent(), b"ok\nx");
}

/// A sleeping vCPU may have to wake earlier, or for the 8259s: it looks.
#[test]
fn what_the_operator_does_is_looked_at() {
    let play = Play::new();
    let look = |what: &dyn Fn()| {
        assert!(play.vcpu.core.shared.is_quiet());
        what();
        assert!(!play.vcpu.core.shared.is_quiet());
        let _ = play.vcpu.core.shared.take_requests();
    };
    // Too few bytes for an interrupt.
    look(&|| assert_eq!(play.vm.board.console_input(b"x", x86defs::time::Nanos(0)), 1));
    look(&|| play.vm.board.press_power_button());
}

#[test]
fn ways_to_end() {
    for (port, value, reason) in [
        (0xf4, 3, EndReason::DebugExit(3)),
        (0xcf9, 6, EndReason::Reset),
        (0x64, 0xfe, EndReason::Reset),
        (0x505, 1, EndReason::Panicked),
    ] {
        let mut play = Play::new();
        play.vcpu.hw.next_rip = Some(0x1001);
        play.vcpu.set_gpr(Gpr::Rax, value);
        assert_eq!(play.turn(out(port)), Next::End(reason));
    }
    let raw = RawExit { reason: 0x403, info1: 0, info2: 0 };
    assert_eq!(
        Play::new().turn(VmExit::Unhandled(raw)),
        Next::End(EndReason::Failed(VmError::UnknownExit(raw)))
    );
    assert_eq!(Play::new().turn(VmExit::TripleFault), Next::End(EndReason::TripleFault));
}

#[test]
fn a_load_of_ss_ends_the_resume_flag_and_begins_a_shadow() {
    let mut play = Play::new();
    play.vcpu.hw.cr0 &= !Cr0::PE.bits();
    play.vcpu.hw.rflags = TF | Rflags::RF.bits();
    // mov ss, [0xd0000000], in 16-bit code
    play.code(&[0x67, 0x8e, 0x15, 0x00, 0x00, 0x00, 0xd0]);
    play.turn(fault(0xd000_0000, NestedAccess::empty()));
    play.turn(VmExit::HostInterrupt);
    assert_eq!((play.vcpu.hw.rip, play.injected()), (0x1007, None), "the step waits");
    assert_eq!((play.vcpu.hw.rflags, play.vcpu.hw.shadow), (TF, true));
}

#[test]
fn device_memory() {
    let mut play = Play::new();
    // mov eax, [0xfee00030]: the local APIC's version.
    play.code(&[0xa1, 0x30, 0x00, 0xe0, 0xfe]);
    play.turn(fault(0xfee0_0030, NestedAccess::empty()));
    assert_eq!(play.vcpu.gpr(Gpr::Rax) & 0xff, u64::from(devices::lapic::VERSION & 0xff));
    assert_eq!(play.vcpu.hw.rip, 0x1005);
    // mov eax, [0xd0000000]: nobody there.
    play.code(&[0xa1, 0x00, 0x00, 0x00, 0xd0]);
    play.turn(fault(0xd000_0000, NestedAccess::empty()));
    assert_eq!(play.vcpu.gpr(Gpr::Rax), 0xffff_ffff);
    // movaps xmm0, [0xd0000000]: not before the guest has enabled SSE.
    play.code(&[0x0f, 0x28, 0x05, 0x00, 0x00, 0x00, 0xd0]);
    play.turn(fault(0xd000_0000, NestedAccess::empty()));
    play.vcpu.hw.cr4 = Cr4::OSFXSR.bits();
    play.turn(fault(0xd000_0000, NestedAccess::empty()));
    assert_eq!(play.injected(), Some(Event::ud()));
    assert_eq!(play.vcpu.hw.ymm[0][..17], [[0xff; 16].as_slice(), &[0]].concat());
    // An instruction that is not emulated ends the guest and names itself.
    play.code(&[0x0f, 0x58, 0x05, 0x00, 0x00, 0x00, 0xd0]);
    match play.turn(fault(0xd000_0000, NestedAccess::empty())) {
        Next::End(EndReason::Failed(VmError::Instruction(text))) => {
            assert!(text.contains("0f 58 05"), "{text}");
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn programs_are_refused() {
    let mut play = Play::new();
    play.vcpu.hw.cpl = 3;
    // addps xmm0, [0xd0000000]
    play.code(&[0x0f, 0x58, 0x05, 0x00, 0x00, 0x00, 0xd0]);
    for (ticks, told) in [(0, 1), (1, 1), (999_999_999, 1), (1_000_000_000, 2)] {
        play.stage.tsc = ticks;
        assert_eq!(play.turn(fault(0xd000_0000, NestedAccess::empty())), Next::Continue);
        assert_eq!(play.stage.refused.len(), told, "at {ticks}");
    }
    assert_eq!(play.injected(), Some(Event::ud()));
    assert_eq!(play.vcpu.core.counters.refused_instructions, 4);
    let (why, untold) = play.stage.refused.last().unwrap();
    assert!(matches!(why, VmError::Instruction(text) if text.starts_with("Addps")), "{why}");
    assert_eq!(*untold, 2);
}

#[test]
fn page_tables_that_are_not_in_ram() {
    let mut play = Play::new();
    let gpa = GuestPhysAddr::new(0xd000_0000);
    assert_eq!(
        play.turn(fault(0xd000_0000, NestedAccess::WALK)),
        Next::End(EndReason::Failed(VmError::Memory(MemoryError::NotRam(gpa))))
    );
}

#[test]
fn hypercalls_reach_the_console() {
    let mut play = Play::new();
    play.vcpu.hw.next_rip = Some(0x1003);
    play.vm.memory.write(GuestPhysAddr::new(0x5000), b"hello").unwrap();
    play.vcpu.set_gpr(Gpr::Rax, 0xd354_0001);
    play.vcpu.set_gpr(Gpr::Rbx, 0x5000);
    play.vcpu.set_gpr(Gpr::Rcx, 5);
    assert_eq!(play.turn(VmExit::Hypercall), Next::Continue);
    assert_eq!(*play.stage.console.bytes.lock(), b"hello");
    assert_eq!(play.vcpu.gpr(Gpr::Rax), 0);
}

#[test]
fn init_and_start_up() {
    let mut play = Play::new();
    play.vcpu.index = 1;
    play.vcpu.core.lapic = Lapic::new(1, TickRatio::from_khz(1_000_000), Role::Application);
    play.vcpu.post_nmi();
    play.vcpu.set_gpr(Gpr::Rbx, 7);
    let shared = Arc::clone(&play.vcpu.core.shared);
    assert!(shared.request_init());
    assert!(!shared.request(Requests::NMI));
    assert!(matches!(play.idle(), Next::Idle(_)));
    assert_eq!(play.vcpu.activity, Activity::WaitForStartup);
    assert_eq!((play.vcpu.hw.rip, play.vcpu.gpr(Gpr::Rbx)), (0xfff0, 0));
    // Interrupts and NMIs do not wake it.
    shared.request(Requests::NMI);
    shared.post(0x40, Trigger::Edge);
    assert!(matches!(play.idle(), Next::Idle(_)));
    shared.request_start_up(0x9a);
    play.turn(VmExit::Pause);
    assert_eq!(play.vcpu.activity, Activity::Running);
    assert_eq!(play.injected(), None, "neither the NMI nor the vector came");
    let rip = play.vcpu.hw.rip;
    // The vCPU runs: another start-up changes nothing.
    shared.request_start_up(0x10);
    play.turn(VmExit::Pause);
    assert_eq!(play.vcpu.hw.rip, rip);
    // INIT of the first vCPU resets the machine.
    let mut play = Play::new();
    play.vcpu.core.shared.request_init();
    assert_eq!(play.idle(), Next::End(EndReason::Reset));
}

const RF: u64 = Rflags::RF.bits();

#[test]
fn a_fault_of_ours_sets_the_resume_flag() {
    // #UD, #GP, a fault in a hypercall's place, and #AC given back.
    let alignment = ExceptionExit { exception: Exception::AC, error_code: Some(0), address: None };
    for exit in [VmExit::Unoffered, VmExit::Rdpmc, VmExit::Exception(alignment)] {
        let mut play = Play::new();
        assert_eq!(play.turn(exit), Next::Continue);
        assert_eq!(play.vcpu.hw.rflags & RF, RF, "{exit:?}");
    }
}

#[test]
fn a_trap_leaves_the_resume_flag_alone() {
    let mut play = Play::new();
    play.vcpu.hw.rflags = TF;
    play.vcpu.hw.next_rip = Some(0x1002);
    assert_eq!(play.turn(VmExit::Cpuid), Next::Continue);
    assert_eq!(play.vcpu.hw.rflags & RF, 0);
    let mut play = Play::new();
    let debug = ExceptionExit { exception: Exception::DB, error_code: None, address: None };
    for flags in [2, 2 | RF] {
        play.vcpu.hw.rflags = flags;
        play.turn(VmExit::Exception(debug));
        assert_eq!(play.vcpu.hw.rflags, flags, "a #DB keeps what the CPU saved");
    }
}

#[test]
fn the_resume_flag_ends_with_the_instruction() {
    let mut play = Play::new();
    play.vcpu.hw.rflags = 2 | RF;
    play.vcpu.hw.next_rip = Some(0x1002);
    assert_eq!(play.turn(VmExit::Cpuid), Next::Continue);
    assert_eq!(play.vcpu.hw.rflags & RF, 0);
}

#[test]
fn a_repeated_instruction_that_is_not_done_sets_the_resume_flag() {
    let mut play = Play::new();
    // REP OUTSB, one iteration at a time.
    play.code(&[0xf3, 0x6e]);
    play.vcpu.hw.rflags = TF;
    play.vcpu.set_gpr(Gpr::Rcx, 2);
    play.vcpu.set_gpr(Gpr::Rdx, 0x80);
    play.vcpu.set_gpr(Gpr::Rsi, 0x100);
    let string = Some(StringIo { rep: true, address_width: Some(Width::B4), segment: None });
    let io = PortIo { port: 0x80, width: Width::B1, direction: Direction::Out, string };
    assert_eq!(play.turn(VmExit::PortIo(io)), Next::Continue);
    assert_eq!((play.vcpu.hw.rip, play.vcpu.hw.rflags & RF), (0x1000, RF));
    assert_eq!(play.turn(VmExit::PortIo(io)), Next::Continue);
    assert_eq!((play.vcpu.hw.rip, play.vcpu.hw.rflags & RF), (0x1002, 0));
}

#[test]
fn an_nmi_in_a_shadow_gets_a_window() {
    for (flags, sees, window) in
        [(IF, false, true), (IF, true, false), (2, false, false), (2, true, false)]
    {
        let mut play = Play::new();
        play.vcpu.hw.rflags = flags;
        play.vcpu.hw.shadow = true;
        play.vcpu.hw.quirks.set(Quirks::NMI_WINDOW_SEES_SHADOW, sees);
        play.vcpu.post_nmi();
        play.turn(VmExit::InterruptWindow);
        assert_eq!((play.injected(), play.vcpu.hw.window), (None, window), "{flags:#x} {sees}");
        play.vcpu.hw.shadow = false;
        play.turn(VmExit::HostInterrupt);
        assert_eq!((play.injected(), play.vcpu.hw.window), (Some(Event::nmi()), false));
    }
}
