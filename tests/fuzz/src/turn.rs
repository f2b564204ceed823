//! Turns of a vCPU, whatever the guest's registers, memory and exits are: no panic, no
//! "internal error" for what hardware may report, nothing injected that no CPU takes, and no
//! sleep until a moment that is past.

// The crate under test, which includes this file, has no prelude of `std`.
extern crate std;

use super::input::Input;
use super::{exits_svm, exits_vmx};
use chipset::fabric::Requests;
use memory::GuestMemory;
use std::boxed::Box;
use std::vec::Vec;
use vmm::backend::Quirks;
use vmm::end::{EndReason, VmError};
use vmm::run::{Next, off_cpu, on_cpu};
use vmm::scripted::Play;
use vmm::vcpu::Activity;
use x86defs::exit::{CacheControl, ExceptionExit};
use x86defs::{
    Cr0, Efer, Event, EventKind, Exception, Gpr, GuestPhysAddr, Rflags, Segment, SegmentAttributes,
    SegmentRegister, VmExit,
};

/// Bytes of RAM: two pages of code and data, and page tables that the case writes.
pub const RAM: usize = 32 << 10;
/// No machine is on for longer: a hundred years and more.
const MOST_TICKS: u64 = 1 << 62;
/// Steps in one case at the most.
const STEPS: usize = 64;

/// One case.
pub fn run(data: &[u8]) {
    let mut input = Input(data);
    let mut play = Play::with_ram(RAM);
    begin(&mut play, input.byte());
    for _ in 0..STEPS {
        if input.0.is_empty() || !step(&mut play, &mut input) {
            break;
        }
    }
}

/// Makes the CPU, and the mode in which it starts, as `choices` has them.
pub fn begin(play: &mut Play, choices: u8) {
    cpu(play, choices);
    mode(play, choices >> 2);
}

/// Makes the CPU as `choices` has it.
pub fn cpu(play: &mut Play, choices: u8) {
    if choices & 1 != 0 {
        play.vcpu.hw.page = Some(Box::default());
    }
    play.vcpu.hw.quirks.set(Quirks::LOSES_SHADOW, choices & 2 != 0);
}

/// One step; whether the guest goes on.
pub fn step(play: &mut Play, input: &mut Input<'_>) -> bool {
    let [operation, choice] = input.take();
    match operation % 16 {
        0 => play.vcpu.set_gpr(Gpr::from_number(choice & 15), input.u64()),
        // Most pointers lie in RAM, and most numbers of registers are small.
        1 => {
            let [low, high] = input.take();
            let value = u64::from(u16::from_le_bytes([low, high]));
            play.vcpu.set_gpr(Gpr::from_number(choice & 15), value);
        }
        2 => {
            let base = match choice & 3 {
                0 => 0xfec0_0000,
                1 => 0xfee0_0000,
                2 => 0xc000_0000,
                _ => 0x4b56_4d00,
            };
            let value = base + u64::from(input.byte()) * 4;
            play.vcpu.set_gpr(Gpr::from_number(choice >> 4), value);
        }
        3 => {
            play.vcpu.hw.rip = 0x1000 + u64::from(choice);
            let code: [u8; 15] = input.take();
            play.code(&code);
        }
        4 => {
            let [low, high] = input.take();
            let at = u64::from(u16::from_le_bytes([low, high])) % (RAM as u64 - 8);
            let bytes = input.u64().to_le_bytes();
            play.vm.memory.write(GuestPhysAddr::new(at & !7), &bytes).expect("RAM");
        }
        5 => registers(play, choice, input),
        6 => others(play, choice),
        7 => {
            let ticks = input.u64() >> (choice & 63);
            play.stage.tsc = play.stage.tsc.saturating_add(ticks).min(play.stage.boot + MOST_TICKS);
        }
        8 => {
            let fresh = play.vm.board.console_input(&[choice; 3], play.vm.now(play.stage.tsc));
            assert!(fresh <= 3);
            if choice & 1 != 0 {
                play.vm.board.press_power_button();
            }
        }
        9 => {
            off_cpu(&mut play.vcpu, &play.vm);
            on_cpu(&mut play.vcpu, &play.vm, play.stage.tsc - play.stage.waits_since);
        }
        _ => {
            let exit = exit(operation, input);
            let interrupted = if choice & 0xc0 == 0xc0 { event(choice) } else { None };
            play.vcpu.hw.next_rip = (choice & 1 != 0).then(|| play.vcpu.hw.rip.wrapping_add(2));
            return one(play, exit, interrupted);
        }
    }
    true
}

/// An exit as one of the decoders reports it, but for exceptions that there are not.
fn exit(operation: u8, input: &mut Input<'_>) -> VmExit {
    let exit = if operation & 0x80 != 0 {
        let [code, info1, info2] = exits_svm::information(input);
        x86defs::vmcb::decode(code, info1, info2, operation & 0x40 != 0)
    } else {
        x86defs::vmcs::decode(&exits_vmx::information(input))
    };
    match exit {
        VmExit::Exception(ExceptionExit { exception, error_code, .. })
            if exception.0 == 2
                || exception.0 > 31
                || exception.has_error_code() != error_code.is_some() =>
        {
            VmExit::Nmi
        }
        exit => exit,
    }
}

/// An event whose delivery hardware might report as interrupted.
fn event(choice: u8) -> Option<Event> {
    match choice >> 1 & 7 {
        0 => Some(Event::interrupt(choice | 0x20)),
        1 => Some(Event::nmi()),
        2 => Some(Event::exception_with_code(Exception::PF, 2)),
        3 => Some(Event::exception_with_code(Exception::DF, 0)),
        4 => Some(Event::gp0()),
        5 => Some(Event { vector: 0x80, kind: EventKind::SoftwareInterrupt(2), error_code: None }),
        6 => Some(Event { vector: 3, kind: EventKind::SoftwareException(1), error_code: None }),
        _ => None,
    }
}

/// One turn; whether the guest goes on.
fn one(play: &mut Play, exit: VmExit, interrupted: Option<Event>) -> bool {
    let entries = play.vcpu.hw.injected.len();
    let next = play.turn_with(exit, interrupted);
    // A vCPU that sleeps was not entered.
    play.vcpu.hw.exits.clear();
    if let Some(event) = play.vcpu.hw.injected.get(entries).copied().flatten() {
        check(event);
    }
    let asked_for = !matches!(
        exit,
        VmExit::Rdtsc
            | VmExit::CacheControl(CacheControl::Invlpg(_) | CacheControl::Invpcid)
            | VmExit::DescriptorTable(_)
            | VmExit::DirtyLogFull
            | VmExit::StartupIpi(_)
    );
    match next {
        Next::End(EndReason::Failed(VmError::Internal(what))) => {
            assert!(!asked_for, "{what}: {exit:?}");
            false
        }
        Next::End(_) => false,
        Next::Idle(until) => {
            assert_ne!(play.vcpu.activity, Activity::Running);
            assert!(until > play.stage.tsc, "{until} is past");
            true
        }
        Next::Continue | Next::Yield => true,
    }
}

/// Events that an entry may inject (SDM: "VM-Entry Controls for Event Injection").
fn check(event: Event) {
    match event.kind {
        EventKind::Nmi => assert_eq!(event.vector, 2),
        EventKind::Exception => {
            assert!(event.vector < 32 && event.vector != 2, "{event:?}");
            if event.error_code.is_some() {
                assert!(Exception(event.vector).has_error_code(), "{event:?}");
            }
        }
        EventKind::Interrupt => assert!(event.error_code.is_none(), "{event:?}"),
        EventKind::SoftwareInterrupt(length) | EventKind::SoftwareException(length) => {
            assert!((1..=15).contains(&length), "{event:?}");
        }
    }
}

/// Starts in one of the modes.
fn mode(play: &mut Play, choice: u8) {
    let hw = &mut play.vcpu.hw;
    let cs = SegmentRegister::Cs as usize;
    match choice & 3 {
        0 => {}
        1 => {
            hw.cr0 = 0x10;
            hw.segments = [Segment::real_mode(0, 3); 8];
        }
        2 => {
            // Long mode; the tables are what the case writes to RAM.
            hw.cr0 = (Cr0::PE | Cr0::PG | Cr0::ET).bits();
            hw.cr3 = 0x2000;
            hw.cr4 = 1 << 5;
            hw.efer = (Efer::LME | Efer::LMA).bits();
            hw.segments[cs] = Segment::code64(8);
            // One table that maps itself: whatever is looked up is one of its words.
            let at = GuestPhysAddr::new(0x2000);
            let words: Vec<u8> = [0x2003_u64; 512].into_iter().flat_map(u64::to_le_bytes).collect();
            play.vm.memory.write(at, &words).expect("RAM");
        }
        _ => {
            hw.cr0 = (Cr0::PE | Cr0::PG | Cr0::ET).bits();
            hw.cr3 = 0x3000;
        }
    }
}

/// Registers of the hardware that guests change without an exit.
fn registers(play: &mut Play, choice: u8, input: &mut Input<'_>) {
    let value = input.u64();
    let hw = &mut play.vcpu.hw;
    match choice & 7 {
        0 | 1 => hw.rflags = (Rflags::from_bits_truncate(value) | Rflags::RESERVED1).bits(),
        2 => hw.cr3 = value & 0x7fff,
        3 => hw.dr7 = value & 0xffff_ffff | 0x400,
        4 => {
            let register = usize::from(choice >> 3) & 7;
            hw.segments[register] = Segment {
                selector: 0x18,
                attributes: SegmentAttributes::from_bits(value as u16),
                limit: (value >> 16) as u32,
                base: value >> 48 << 4,
            };
        }
        5 => hw.rip = value & 0x7fff,
        6 => hw.shadow = value & 1 != 0,
        _ => hw.breakpoints[usize::from(choice >> 3) & 3] = value,
    }
}

/// Requests of other CPUs and devices to the vCPU.
fn others(play: &mut Play, choice: u8) {
    let posted = &play.vm.fabric.mailboxes()[0];
    match choice & 3 {
        0 | 1 => _ = posted.post(choice | 0x10, devices::lapic::Trigger::Edge),
        2 => _ = posted.request(Requests::NMI),
        _ => _ = posted.request(Requests::CLOCK | Requests::UNHALT | Requests::KICK),
    }
}
