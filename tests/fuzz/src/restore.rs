//! A machine that is saved in the middle of a script, and whose copy on another host plays the rest
//! alike; and a saved machine of which a part is arbitrary: it is refused, or does no harm.

// The crate under test, which includes this file, has no prelude of `std`.
extern crate std;

use super::accesses::act;
use super::input::Input;
use super::prepared::{look, prepare};
use super::turn;
use chipset::{HotPorts, Quiet};
use state::{Sections, StateError, Writer};
use std::vec::Vec;
use vmm::run::{off_cpu, on_cpu};
use vmm::scripted::Play;
use vmm::state::{check, restore_vcpu, restore_vm, save_vcpu, save_vm};
use vmm::vm::Host;
use x86defs::Rflags;

/// Steps in one case at the most, before the save and after it.
const STEPS: usize = 64;
/// By so many ticks is the other host's TSC ahead.
const AHEAD: u64 = 1 << 40;
/// vCPUs of the guest; the first alone is played.
const VCPUS: usize = 2;

/// A machine and its vCPU's copy of the doorbells' ports.
struct Machine {
    play: Play,
    bells: HotPorts,
}

/// One case.
pub fn run(data: &[u8]) {
    let mut input = Input(data);
    let [choices, before, what] = input.take();
    let mut one = Machine { play: Play::with(turn::RAM, VCPUS), bells: HotPorts::default() };
    turn::begin(&mut one.play, choices);
    for _ in 0..choices >> 4 {
        prepare(&mut one.play, &mut input);
    }
    for _ in 0..usize::from(before) % STEPS {
        if step(&mut one, &mut input).is_none() {
            return;
        }
    }
    let extended = extended(what);
    leave(&mut one.play);
    let saved = save(&mut one.play, &extended);
    if what & 1 != 0 {
        harmless(&one, &tampered(&saved, &mut input), choices, &mut input);
        return;
    }
    let mut other = fresh(&one, choices);
    assert_eq!(restore(&mut other.play, &saved), Ok(extended.clone()));
    assert!(save(&mut other.play, &extended) == saved, "saved again it is another one");
    goes_on_alike(&mut one, &mut other, &mut input);
    for machine in [&mut one, &mut other] {
        leave(&mut machine.play);
    }
    let ends = [&mut one, &mut other].map(|machine| save(&mut machine.play, &[]));
    let [first, second] = ends;
    assert!(first == second, "the copy has come to another end: {}", differ(&first, &second));
}

/// Both machines play the rest.
fn goes_on_alike(one: &mut Machine, other: &mut Machine, input: &mut Input<'_>) {
    let (sent, told) = (one.play.stage.console.bytes.lock().len(), one.play.stage.firmware.len());
    let injected = one.play.vcpu.hw.injected.len();
    enter(&mut one.play);
    enter(&mut other.play);
    other.play.stage.waits_since = other.play.stage.tsc;
    for number in 0..STEPS {
        if input.0.is_empty() {
            break;
        }
        let mut same = Input(input.0);
        let came = step(one, input);
        assert_eq!(step(other, &mut same), came, "step {number}");
        assert_eq!(input.0.len(), same.0.len());
        alike(&one.play, &other.play, injected, number);
        if came.is_none() {
            return same_outside(one, other, sent, told);
        }
    }
    assert_eq!(look(&mut one.play), look(&mut other.play));
    alike(&one.play, &other.play, injected, STEPS);
    same_outside(one, other, sent, told);
}

/// The RAM of both, and what both have sent and told since they went their ways.
fn same_outside(one: &Machine, other: &Machine, sent: usize, told: usize) {
    let (a, b) = (&one.play.stage, &other.play.stage);
    assert!(a.console.bytes.lock()[sent..] == b.console.bytes.lock()[..], "the console differs");
    assert_eq!(a.firmware[told..], b.firmware);
    assert!(one.play.vm.memory.contents() == other.play.vm.memory.contents(), "the RAM differs");
}

/// Compares the hardware's parts of both vCPUs.
fn alike(one: &Play, other: &Play, injected: usize, number: usize) {
    let (a, b) = (&one.vcpu.hw, &other.vcpu.hw);
    assert_eq!(a.injected[injected..], b.injected, "step {number}");
    let registers = |hw: &vmm::scripted::Script| {
        (
            (hw.rip, hw.rflags, hw.cr0, hw.cr3, hw.cr4, hw.efer, hw.cpl),
            (hw.segments, hw.breakpoints, hw.dr6, hw.dr7, hw.shadow),
            (hw.pointers, hw.others),
        )
    };
    assert_eq!(registers(a), registers(b), "step {number}");
    // The copy has what belongs to an entry after its first one.
    let entered = !b.injected.is_empty();
    assert!(!entered || (a.window, a.status) == (b.window, b.status), "step {number}");
    assert_eq!(a.tsc_offset, b.tsc_offset.wrapping_add(AHEAD), "step {number}");
    let (a, b) = (&one.vcpu, &other.vcpu);
    assert_eq!((a.activity, a.core.hot.gpr), (b.activity, b.core.hot.gpr), "step {number}");
    let (armed, same) = (a.core.timer.armed, b.core.timer.armed);
    assert!(!entered || armed.saturating_add(AHEAD) == same, "step {number}: {armed}, {same}");
    let now = |play: &Play| play.vm.now(play.stage.tsc);
    assert_eq!(now(one), now(other), "step {number}");
    let answers_to = |play: &Play| play.vm.fabric.routes().identity(0);
    assert_eq!(answers_to(one), answers_to(other), "step {number}");
}

/// One step of the vCPU, or of its devices; `None` if the guest has ended, else what was read.
fn step(machine: &mut Machine, input: &mut Input<'_>) -> Option<u64> {
    let Machine { play, bells } = machine;
    if input.byte() & 3 != 0 {
        return turn::step(play, input).then_some(0);
    }
    let now = play.vm.now(play.stage.tsc);
    let acted = act(&play.vm.board, &play.vm.fabric, bells, input, now);
    play.vm.board.advance(now);
    Some(acted.seen)
}

/// Some extended state.
fn extended(what: u8) -> Vec<u8> {
    let mut bytes = std::vec![what; if what & 2 != 0 { 512 } else { 832 }];
    for (at, byte) in bytes.iter_mut().enumerate() {
        if matches!(at, 26 | 27 | 512..576) {
            *byte = 0;
        }
    }
    bytes
}

/// The guest is paused.
fn leave(play: &mut Play) {
    let ready = play.stage.tsc - play.stage.waits_since;
    on_cpu(&mut play.vcpu, &play.vm, ready);
    off_cpu(&mut play.vcpu, &play.vm);
    play.vm.pause(play.stage.tsc);
    assert_eq!(play.vm.board.quiesce(), Quiet::Now);
}

/// The guest goes on.
fn enter(play: &mut Play) {
    play.vm.board.go_on();
    play.vm.resume(play.stage.time());
    on_cpu(&mut play.vcpu, &play.vm, play.stage.tsc - play.stage.waits_since);
}

fn save(play: &mut Play, extended: &[u8]) -> Vec<u8> {
    let mut writer = Writer::new();
    save_vm(&play.vm, &play.vcpu.core.cpuid, &mut writer);
    save_vcpu(&play.vcpu, extended, &mut writer);
    writer.finish().expect("every machine can be saved")
}

/// A machine as `one` was made, with its RAM, on a host that has been on for longer.
fn fresh(one: &Machine, choices: u8) -> Machine {
    let mut play = Play::with(turn::RAM, VCPUS);
    turn::cpu(&mut play, choices);
    play.vm.memory.fill(&one.play.vm.memory.contents());
    play.stage.tsc = one.play.stage.tsc + AHEAD;
    play.stage.boot = one.play.stage.boot + AHEAD;
    play.stage.waits_since = play.stage.tsc;
    Machine { play, bells: HotPorts::default() }
}

fn restore(play: &mut Play, saved: &[u8]) -> Result<Vec<u8>, StateError> {
    let mut sections = Sections::open(saved)?;
    let cpuid = std::sync::Arc::clone(&play.vcpu.core.cpuid);
    let frequency = play.vm.clock.read().frequency();
    check(&mut sections, &cpuid, frequency, VCPUS)?;
    restore_vm(&play.vm, &cpuid, &mut sections)?;
    let extended = restore_vcpu(&mut play.vcpu, &play.vm, &mut sections)?;
    sections.finish()?;
    Ok(extended)
}

/// A section as it stands in a saved machine: where it begins, where its payload lies, its end.
fn sections(saved: &[u8]) -> Vec<[usize; 4]> {
    let mut found = Vec::new();
    let mut at = 10;
    while at < saved.len() {
        let head = at + 1 + usize::from(saved[at]);
        let length = saved[head + 6..head + 10].first_chunk().map_or(0, |b| u32::from_le_bytes(*b));
        let payload = head + 10;
        let end = payload + length as usize;
        found.push([at, payload, end, end + 4]);
        at = end + 4;
    }
    found
}

/// The first section in which two saved machines differ.
fn differ(one: &[u8], other: &[u8]) -> std::string::String {
    let pairs = sections(one).into_iter().zip(sections(other));
    let mut pairs = pairs.map(|(a, b)| (&one[a[0]..a[3]], &other[b[0]..b[3]]));
    let first = pairs.find(|(a, b)| a != b);
    first.map_or_else(Default::default, |(a, b)| {
        let name = std::string::String::from_utf8_lossy(&a[1..=usize::from(a[0])]);
        std::format!("{name}\n{a:x?}\n{b:x?}")
    })
}

/// The saved machine with some bytes of some payloads changed, and checksums that are right.
fn tampered(saved: &[u8], input: &mut Input<'_>) -> Vec<u8> {
    let mut bytes = saved.to_vec();
    let found = sections(saved);
    let [count] = input.take::<1>();
    for _ in 0..=count % 4 {
        let [section, low, high, value] = input.take();
        // The last section has the number of the others.
        let [start, payload, end, _] = found[usize::from(section) % (found.len() - 1)];
        if payload != end {
            let at = payload + usize::from(u16::from_le_bytes([low, high])) % (end - payload);
            bytes[at] ^= value;
            let crc = crc32fast::hash(&bytes[start..end]);
            bytes[end..end + 4].copy_from_slice(&crc.to_le_bytes());
        }
    }
    bytes
}

/// A machine that is none is refused, or the guest alone feels it.
fn harmless(one: &Machine, saved: &[u8], choices: u8, input: &mut Input<'_>) {
    let mut machine = fresh(one, choices);
    if restore(&mut machine.play, saved).is_err() {
        return;
    }
    // The reserved bits are the hardware's to refuse.
    let hw = &mut machine.play.vcpu.hw;
    hw.rflags = (Rflags::from_bits_truncate(hw.rflags) | Rflags::RESERVED1).bits();
    enter(&mut machine.play);
    for _ in 0..STEPS {
        if input.0.is_empty() || step(&mut machine, input).is_none() {
            break;
        }
    }
}
