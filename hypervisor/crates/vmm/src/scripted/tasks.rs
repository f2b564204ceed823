//! Hardware task switches as exits.

use super::Play;
use crate::run::Next;
use memory::GuestMemory;
use x86defs::exit::{TaskSwitch, TaskSwitchSource};
use x86defs::{
    Cr0, DescriptorTable, Event, EventKind, Exception, GuestPhysAddr, Segment, SegmentRegister,
    VmExit,
};

const GDT: u64 = 0x2000;
const OLD_TSS: u64 = 0x3000;
const NEW_TSS: u64 = 0x4000;
const STACK: u64 = 0x6000;

fn put(play: &Play, at: u64, bytes: &[u8]) {
    play.vm.memory.write(GuestPhysAddr::new(at), bytes).unwrap();
}

fn long(play: &Play, at: u64) -> u32 {
    let mut bytes = [0; 4];
    play.vm.memory.read(GuestPhysAddr::new(at), &mut bytes).unwrap();
    u32::from_le_bytes(bytes)
}

/// Two tasks of a vCPU at 0x1000.
fn play() -> Play {
    let mut play = Play::new();
    for (entry, bits) in [
        (1, 0x00cf_9b00_0000_ffff_u64),
        (2, 0x00cf_9300_0000_ffff),
        (4, 0x67 | OLD_TSS << 16 | 0x8b << 40),
        (5, 0x67 | NEW_TSS << 16 | 0x89 << 40),
    ] {
        put(&play, GDT + entry * 8, &bits.to_le_bytes());
    }
    put(&play, NEW_TSS, &[0; 104]);
    for (at, value) in [
        (0x20, 0x1234),
        (0x24, 2),
        (0x38, STACK),
        (0x48, 0x10),
        (0x4c, 8),
        (0x50, 0x10),
        (0x54, 0x10),
    ] {
        put(&play, NEW_TSS + at, &value.to_le_bytes()[..4]);
    }
    play.vcpu.set_gdtr(DescriptorTable { base: GDT, limit: 0x2f });
    let tss = Segment { base: OLD_TSS, ..Segment::tss(0x20) };
    play.vcpu.set_segment(SegmentRegister::Tr, tss);
    play.vcpu.settle();
    play
}

fn switch(source: TaskSwitchSource) -> VmExit {
    VmExit::TaskSwitch(TaskSwitch { selector: 0x28, source })
}

#[test]
fn an_instruction_switches() {
    let mut play = play();
    play.vcpu.hw.next_rip = Some(0x1007);
    play.vcpu.hw.shadow = true;
    play.vcpu.hw.dr7 = 0x7ff;
    assert_eq!(play.turn(switch(TaskSwitchSource::Jump)), Next::Continue);
    assert_eq!((play.vcpu.hw.rip, long(&play, OLD_TSS + 0x20)), (0x1234, 0x1007));
    assert_eq!(play.vcpu.segment(SegmentRegister::Tr).selector, 0x28);
    assert!(play.vcpu.cr0().contains(Cr0::TS));
    // Local breakpoints end with the task.
    assert_eq!((play.vcpu.hw.dr7, play.vcpu.hw.shadow), (0x6aa, false));
    play.turn(VmExit::HostInterrupt);
    assert_eq!(play.injected(), None);
}

#[test]
fn a_gate_delivers_the_event() {
    let fault = Event::exception_with_code(Exception::GP, 0x7ff8);
    let int = Event { vector: 0x30, kind: EventKind::SoftwareInterrupt(2), error_code: None };
    for (event, saved_rip, rf) in [
        (fault, 0x1000, 1 << 16),
        (Event::interrupt(0x31), 0x1000, 0),
        (Event::nmi(), 0x1000, 0),
        (int, 0x1002, 0),
    ] {
        let mut play = play();
        let next = play.turn_with(switch(TaskSwitchSource::Gate), Some(event));
        assert_eq!(next, Next::Continue);
        assert_eq!((play.vcpu.hw.rip, long(&play, OLD_TSS + 0x20)), (0x1234, saved_rip));
        assert_eq!(long(&play, OLD_TSS + 0x24) & 1 << 16, rf, "{event:?}: RF");
        if let Some(code) = event.error_code {
            assert_eq!((play.vcpu.rsp(), long(&play, STACK - 4)), (STACK - 4, code));
        }
        assert_eq!(play.vcpu.nmi_blocked(), event.kind == EventKind::Nmi);
        play.turn(VmExit::HostInterrupt);
        assert_eq!(play.injected(), None, "{event:?} was delivered");
    }
}

/// Of an interrupt, RF is what the CPU has found.
#[test]
fn an_interrupt_leaves_the_resume_flag() {
    for event in [Event::interrupt(0x31), Event::nmi()] {
        let mut play = play();
        play.vcpu.hw.rflags |= 1 << 16;
        play.turn_with(switch(TaskSwitchSource::Gate), Some(event));
        assert_eq!(long(&play, OLD_TSS + 0x24) & 1 << 16, 1 << 16, "{event:?}");
    }
}

/// The new task faults at once: the switch was made all the same.
#[test]
fn a_task_that_can_not_begin_has_been_switched_to() {
    let mut play = play();
    // DS of the new task is not present.
    put(&play, GDT + 0x18, &0x00cf_1300_0000_ffff_u64.to_le_bytes());
    put(&play, NEW_TSS + 0x54, &[0x18]);
    play.vcpu.set_dr(7, 0x7ff);
    play.turn_with(switch(TaskSwitchSource::Gate), Some(Event::nmi()));
    assert_eq!((play.vcpu.rip(), play.vcpu.dr(7)), (0x1234, 0x6aa));
    assert!(play.vcpu.nmi_blocked());
    play.turn(VmExit::HostInterrupt);
    assert_eq!(play.injected(), Some(Event::exception_with_code(Exception::NP, 0x19)));
}

/// An NMI whose gate is of no use has come all the same.
#[test]
fn an_nmi_that_faults_blocks_others() {
    let mut play = play();
    put(&play, GDT + 0x2d, &[0x09]);
    play.turn_with(switch(TaskSwitchSource::Gate), Some(Event::nmi()));
    assert_eq!(play.vcpu.rip(), 0x1000);
    assert!(play.vcpu.nmi_blocked());
}

#[test]
fn iret_ends_the_blocking_of_nmis() {
    let mut play = play();
    put(&play, GDT + 0x2d, &[0x8b]);
    play.vcpu.set_nmi_blocked(true);
    play.vcpu.hw.next_rip = Some(0x1001);
    play.turn(switch(TaskSwitchSource::Iret));
    assert!(!play.vcpu.nmi_blocked());
}

#[test]
fn a_fault_joins_the_event() {
    for (event, wanted) in [
        (Event::ud(), Event::exception_with_code(Exception::NP, 0x29)),
        (Event::gp0(), Event::exception_with_code(Exception::DF, 0)),
    ] {
        let mut play = play();
        put(&play, GDT + 0x2d, &[0x09]);
        play.turn_with(switch(TaskSwitchSource::Gate), Some(event));
        assert_eq!(play.vcpu.hw.rip, 0x1000);
        play.turn(VmExit::HostInterrupt);
        assert_eq!(play.injected(), Some(wanted));
    }
}

#[test]
fn the_debug_trap_comes_first() {
    let mut play = play();
    put(&play, NEW_TSS + 0x64, &[1]);
    play.vcpu.hw.next_rip = Some(0x1007);
    play.turn(switch(TaskSwitchSource::Call));
    play.turn(VmExit::HostInterrupt);
    assert_eq!(play.injected(), Some(Event::exception(Exception::DB)));
    assert_eq!((play.vcpu.hw.rip, play.vcpu.hw.dr6 & 1 << 15), (0x1234, 1 << 15));
}

/// CR3 is loaded with paging only: its pointers with it, where paging is PAE's.
#[test]
fn page_tables_are_those_of_the_task() {
    for paging in [false, true] {
        let mut play = play();
        let directory: [u64; 4] = [0x9001, 0, 0, 0];
        for (i, pointer) in (0..).zip(directory) {
            put(&play, 0x8000 + i * 8, &pointer.to_le_bytes());
            put(&play, 0xa000 + i * 8, &pointer.to_le_bytes());
        }
        put(&play, 0x9000, &0xe3_u64.to_le_bytes());
        put(&play, NEW_TSS + 0x1c, &0xa000_u32.to_le_bytes());
        (play.vcpu.hw.cr3, play.vcpu.hw.cr4) = (0x8000, 1 << 5);
        if paging {
            play.vcpu.hw.cr0 |= 1 << 31;
        }
        play.vcpu.hw.next_rip = Some(0x1007);
        play.turn(switch(TaskSwitchSource::Jump));
        assert_eq!(play.vcpu.hw.rip, 0x1234);
        let wanted = if paging { (0xa000, 0x9001) } else { (0x8000, 0) };
        assert_eq!((play.vcpu.hw.cr3, play.vcpu.hw.pointers[0]), wanted);
    }
}
