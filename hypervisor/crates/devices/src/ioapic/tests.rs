//! Tests of the I/O APIC.

use super::*;
use alloc::vec::Vec;
use proptest::prelude::*;

fn write(io: &mut IoApic, index: u8, value: u32) {
    io.mmio_write(SELECT, Width::B4, index.into()).unwrap();
    io.mmio_write(WINDOW, Width::B4, value.into()).unwrap();
}

fn read(io: &mut IoApic, index: u8) -> u32 {
    io.mmio_write(SELECT, Width::B4, index.into()).unwrap();
    u32::try_from(io.mmio_read(WINDOW, Width::B4).unwrap()).unwrap()
}

fn program(io: &mut IoApic, pin: u8, low: u32, destination: u8) {
    write(io, INDEX_TABLE + 2 * pin + 1, u32::from(destination) << 24);
    write(io, INDEX_TABLE + 2 * pin, low);
}

fn queued(io: &mut IoApic) -> Vec<u8> {
    core::iter::from_fn(|| io.next_message()).map(|message| message.vector).collect()
}

/// Pins 16 to 23, wired active low.
const PCI_PINS: u32 = 0x00ff_0000;

const LEVEL: u32 = 1 << 15;
const MASKED: u32 = 1 << 16;
const ACTIVE_LOW: u32 = 1 << 13;
const REMOTE_IRR: u32 = 1 << 14;

#[test]
fn registers_and_their_bits() {
    let mut io = IoApic::new(2, PCI_PINS);
    assert_eq!(read(&mut io, 0), 0x0200_0000);
    assert_eq!(read(&mut io, 1), 0x0017_0020);
    for pin in 0..PINS {
        assert_eq!(read(&mut io, 0x10 + 2 * pin), MASKED);
        assert_eq!(read(&mut io, 0x11 + 2 * pin), 0);
        write(&mut io, 0x10 + 2 * pin, u32::MAX);
        write(&mut io, 0x11 + 2 * pin, u32::MAX);
        assert_eq!(read(&mut io, 0x10 + 2 * pin), 0x1_afff);
        assert_eq!(read(&mut io, 0x11 + 2 * pin), 0xff00_0000);
    }
    write(&mut io, 0, u32::MAX);
    assert_eq!(read(&mut io, 0), 0x0f00_0000);
    assert_eq!(read(&mut io, 2), 0x0f00_0000);
    write(&mut io, 1, 0);
    assert_eq!(read(&mut io, 1), 0x0017_0020);
    for index in [3, 0xf, 0x40, 0xff] {
        write(&mut io, index, u32::MAX);
        assert_eq!(read(&mut io, index), 0);
    }
    assert_eq!(io.mmio_read(SELECT, Width::B1), Ok(0xff));
    assert_eq!(io.mmio_read(WINDOW, Width::B1), Err(AccessError::Width));
    assert_eq!(io.mmio_write(SELECT, Width::B8, 0), Err(AccessError::Width));
    assert_eq!(io.mmio_read(0x20, Width::B4), Err(AccessError::NoRegister));
}

#[test]
fn an_edge_is_sent_once() {
    let mut io = IoApic::new(0, 0);
    program(&mut io, 4, 0x931, 0x0f);
    let message = io.set_line(4, true).unwrap();
    assert_eq!(
        message,
        InterruptMessage {
            destination: Destination { id: 0x0f, mode: DestinationMode::Logical },
            mode: DeliveryMode::LowestPriority,
            vector: 0x31,
            trigger: Trigger::Edge,
        }
    );
    assert_eq!(io.set_line(4, true), None);
    assert_eq!(io.set_line(4, false), None);
    assert!(io.pulse(4).is_some());
    assert!(io.pulse(4).is_some(), "no EOI needed");
    assert_eq!(io.set_line(24, true), None);
    assert_eq!(io.set_line(255, true), None);
}

#[test]
fn an_edge_at_a_masked_pin_is_lost() {
    let mut io = IoApic::new(0, 0);
    program(&mut io, 4, MASKED | 0x31, 0);
    assert_eq!(io.set_line(4, true), None);
    program(&mut io, 4, 0x31, 0);
    assert_eq!(io.next_message(), None);
    assert_eq!(io.set_line(4, false), None);
    assert!(io.set_line(4, true).is_some());
}

#[test]
fn a_level_waits_for_its_eoi() {
    let mut io = IoApic::new(0, 0);
    program(&mut io, 9, LEVEL | 0x39, 1);
    let message = io.set_line(9, true).unwrap();
    assert_eq!((message.vector, message.trigger), (0x39, Trigger::Level));
    assert_eq!(read(&mut io, 0x10 + 18), LEVEL | REMOTE_IRR | 0x39);
    assert_eq!(io.set_line(9, false), None);
    assert_eq!(io.set_line(9, true), None, "remote IRR holds it");
    assert!(!io.eoi(0x38), "another vector");
    assert!(io.eoi(0x39));
    assert_eq!(queued(&mut io), [0x39]);
    assert!(!{
        io.set_line(9, false);
        io.eoi(0x39)
    });
    assert_eq!(read(&mut io, 0x10 + 18), LEVEL | 0x39);
}

#[test]
fn an_asserted_level_is_sent_when_unmasked() {
    let mut io = IoApic::new(0, 0);
    program(&mut io, 9, LEVEL | MASKED | 0x39, 1);
    assert_eq!(io.set_line(9, true), None);
    program(&mut io, 9, LEVEL | 0x39, 1);
    assert_eq!(queued(&mut io), [0x39]);
    program(&mut io, 9, LEVEL | MASKED | 0x39, 1);
    io.eoi(0x39);
    assert_eq!(queued(&mut io), [0; 0], "masked at the EOI");
    program(&mut io, 9, LEVEL | 0x39, 1);
    assert_eq!(queued(&mut io), [0x39]);
}

#[test]
fn directed_eoi_and_shared_vectors() {
    let mut io = IoApic::new(0, 0);
    program(&mut io, 9, LEVEL | 0x39, 1);
    program(&mut io, 10, LEVEL | 0x39, 1);
    program(&mut io, 11, LEVEL | 0x40, 1);
    for pin in 9..=11 {
        assert!(io.set_line(pin, true).is_some());
    }
    io.mmio_write(EOI, Width::B4, 0x39).unwrap();
    assert_eq!(queued(&mut io), [0x39, 0x39]);
    assert_eq!(io.mmio_read(EOI, Width::B4), Ok(0));
}

#[test]
fn a_stuck_line_costs_one_message_for_each_eoi() {
    let mut io = IoApic::new(0, 0);
    program(&mut io, 9, LEVEL | 0x39, 1);
    assert!(io.set_line(9, true).is_some());
    for _ in 0..1000 {
        assert!(io.eoi(0x39));
        assert_eq!(queued(&mut io).len(), 1);
    }
}

#[test]
fn switching_to_edge_clears_remote_irr() {
    let mut io = IoApic::new(0, 0);
    program(&mut io, 9, LEVEL | 0x39, 1);
    io.set_line(9, true);
    program(&mut io, 9, MASKED | 0x39, 1);
    assert_eq!(read(&mut io, 0x10 + 18), MASKED | 0x39);
    program(&mut io, 9, LEVEL | 0x39, 1);
    assert_eq!(queued(&mut io), [0x39]);
}

#[test]
fn polarity_is_compared_with_the_wire() {
    let mut io = IoApic::new(0, PCI_PINS);
    program(&mut io, 16, LEVEL | ACTIVE_LOW | 0x50, 1);
    assert_eq!(queued(&mut io), [0; 0], "idle is high");
    assert!(io.set_line(16, true).is_some());
    program(&mut io, 17, LEVEL | 0x51, 1);
    assert_eq!(queued(&mut io), [0x51], "wrong polarity: idle looks asserted");
    program(&mut io, 4, ACTIVE_LOW | 0x34, 1);
    assert_eq!(io.set_line(4, true), None);
    assert!(io.set_line(4, false).is_some(), "the falling edge");
}

#[test]
fn modes_without_a_vector_are_edges() {
    let mut io = IoApic::new(0, 0);
    program(&mut io, 0, LEVEL | 0x400, 1);
    let message = io.set_line(0, true).unwrap();
    assert_eq!((message.mode, message.trigger), (DeliveryMode::Nmi, Trigger::Edge));
    assert_eq!(read(&mut io, 0x10), LEVEL | 0x400, "no remote IRR");
    program(&mut io, 0, 0x700, 1);
    assert_eq!(io.pulse(0), None, "the line is still asserted");
    assert_eq!(io.pulse(0).unwrap().mode, DeliveryMode::ExtInt);
}

#[test]
fn reset_keeps_the_lines() {
    let mut io = IoApic::new(3, 0);
    write(&mut io, 0, 0x0500_0000);
    program(&mut io, 9, LEVEL | 0x39, 1);
    io.set_line(9, true);
    io.reset();
    assert_eq!(read(&mut io, 0), 0x0300_0000);
    assert_eq!(read(&mut io, 0x10 + 18), MASKED);
    assert!(io.is_asserted(9));
    program(&mut io, 9, LEVEL | 0x39, 1);
    assert_eq!(queued(&mut io), [0x39]);
}

#[test]
fn impossible_states_are_refused() {
    let mut io = IoApic::new(0, 0);
    let good = serde_json::to_value(io.save()).unwrap();
    let mut table = good["table"].clone();
    for (name, entry) in [("reserved", 1_u64 << 20), ("remote IRR of an edge", 1 << 14)] {
        table[0] = entry.into();
        let mut bad = good.clone();
        bad["table"] = table.clone();
        assert!(io.restore(serde_json::from_value(bad).unwrap()).is_err(), "{name}");
    }
    for field in ["id", "asserted", "queued"] {
        let mut bad = good.clone();
        bad[field] = if field == "id" { 16.into() } else { (1_u32 << 24).into() };
        assert!(io.restore(serde_json::from_value(bad).unwrap()).is_err(), "{field}");
    }
    assert_eq!(io, IoApic::new(0, 0));
}

#[derive(Clone, Debug)]
enum Step {
    Line(u8, bool),
    Write(u8, u32),
    Raw(u64, u64),
    Eoi(u8),
}

fn step() -> impl Strategy<Value = Step> {
    let value = prop_oneof![any::<u32>(), 0_u32..0x100, (0_u32..0x100).prop_map(|v| v | LEVEL)];
    prop_oneof![
        (0_u8..26, any::<bool>()).prop_map(|(pin, level)| Step::Line(pin, level)),
        (0_u8..0x44, value).prop_map(|(index, value)| Step::Write(index, value)),
        (0_u64..0x60, any::<u64>()).prop_map(|(offset, value)| Step::Raw(offset, value)),
        any::<u8>().prop_map(Step::Eoi),
    ]
}

/// Does one step; returns what was sent.
fn apply(io: &mut IoApic, step: &Step) -> Vec<InterruptMessage> {
    let mut sent = Vec::new();
    match *step {
        Step::Line(pin, level) => sent.extend(io.set_line(pin, level)),
        Step::Write(index, value) => write(io, index, value),
        Step::Raw(offset, value) => {
            let _ = io.mmio_write(offset, Width::B4, value);
            let _ = io.mmio_read(offset, Width::B4);
        }
        Step::Eoi(vector) => {
            io.eoi(vector);
        }
    }
    sent.extend(core::iter::from_fn(|| io.next_message()));
    sent
}

proptest! {
    #[test]
    fn any_steps(before in prop::collection::vec(step(), 0..80),
                 after in prop::collection::vec(step(), 0..40)) {
        let mut io = IoApic::new(1, PCI_PINS);
        for step in &before {
            prop_assert!(apply(&mut io, step).len() <= usize::from(PINS));
            for pin in 0..PINS {
                // An open level pin that is active has been sent and not ended.
                let entry = io.entry(pin).unwrap();
                prop_assert!(!entry.is_level() || entry.masked() || entry.remote_irr()
                    || !io.is_active(pin, entry));
            }
        }
        let mut twin = IoApic::new(1, PCI_PINS);
        let json = serde_json::to_string(&io.save()).unwrap();
        twin.restore(serde_json::from_str(&json).unwrap()).unwrap();
        for step in &after {
            prop_assert_eq!(apply(&mut io, step), apply(&mut twin, step));
        }
        prop_assert_eq!(io, twin);
    }
}

#[test]
fn the_state_is_laid_out_as_it_was() {
    state::golden::check(env!("CARGO_MANIFEST_DIR"), || {
        let mut io = IoApic::new(2, PCI_PINS);
        program(&mut io, 4, 0x31, 1);
        program(&mut io, 9, LEVEL | 0x49, 2);
        program(&mut io, 16, LEVEL | ACTIVE_LOW | MASKED | 0x51, 3);
        for pin in [4, 9, 16] {
            let _ = io.set_line(pin, true);
        }
        io.save()
    });
}
