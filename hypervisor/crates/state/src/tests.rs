//! Round trips, damage of every kind, and versions.

use crate::format::{END, HEADER, MOST_PAYLOAD, MOST_SECTIONS};
use crate::writer::append;
use crate::{FORMAT, ReadPrevious, Saved, SectionName, Sections, StateError, Writer, decode};
use alloc::string::{String, ToString};
use alloc::vec;
use alloc::vec::Vec;
use proptest::prelude::*;
use serde::{Deserialize, Serialize};

/// A state of some age.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Clock {
    hours: u8,
    minutes: u32,
}

/// The version before, which had no minutes.
#[derive(Serialize, Deserialize)]
struct Clock1 {
    hours: u8,
}

impl Saved for Clock {
    const NAME: &'static str = "clock";
    const VERSION: u16 = 2;
    const PREVIOUS: Option<ReadPrevious<Self>> = Some(|payload| {
        decode::<Clock1>(payload).map(|Clock1 { hours }| Self { hours, minutes: 0 })
    });
}

/// Any bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Tape(Vec<u8>);

impl Saved for Tape {
    const NAME: &'static str = "tape";
    const VERSION: u16 = 1;
}

fn header() -> Vec<u8> {
    let mut bytes = b"STEWARDM".to_vec();
    bytes.extend_from_slice(&FORMAT.to_le_bytes());
    bytes
}

/// A machine with one section, as it may come from outside.
fn one(name: &str, instance: u32, version: u16, payload: &[u8]) -> Vec<u8> {
    let mut bytes = header();
    append(&mut bytes, name, instance, version, payload);
    append(&mut bytes, END, 0, 1, &1u32.to_le_bytes());
    bytes
}

fn name(name: &str, instance: u32) -> SectionName {
    SectionName { name: name.to_string(), instance }
}

fn machine(clock: &Clock, tapes: &[Tape]) -> Vec<u8> {
    let mut writer = Writer::new();
    writer.put(0, clock);
    for (instance, tape) in (0..).zip(tapes) {
        writer.put(instance, tape);
    }
    writer.finish().unwrap()
}

fn read(bytes: &[u8], tapes: usize) -> Result<(Clock, Vec<Tape>), StateError> {
    let mut sections = Sections::open(bytes)?;
    let clock = sections.take(0)?;
    let tapes = (0..u32::try_from(tapes).unwrap()).map(|n| sections.take(n));
    let tapes = tapes.collect::<Result<_, _>>()?;
    sections.finish()?;
    Ok((clock, tapes))
}

fn any_machine() -> impl Strategy<Value = (Clock, Vec<Tape>)> {
    let clock = (any::<u8>(), any::<u32>()).prop_map(|(hours, minutes)| Clock { hours, minutes });
    let tape = prop::collection::vec(any::<u8>(), 0..40).prop_map(Tape);
    (clock, prop::collection::vec(tape, 0..4))
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_is_written_is_read((clock, tapes) in any_machine()) {
        let bytes = machine(&clock, &tapes);
        prop_assert_eq!(read(&bytes, tapes.len()), Ok((clock, tapes)));
    }

    #[test]
    fn a_part_is_refused((clock, tapes) in any_machine()) {
        let bytes = machine(&clock, &tapes);
        for length in 0..bytes.len() {
            prop_assert!(Sections::open(&bytes[..length]).is_err(), "{} bytes", length);
        }
        let mut longer = bytes;
        longer.push(0);
        prop_assert!(Sections::open(&longer).is_err());
    }

    #[test]
    fn a_flipped_bit_is_noticed((clock, tapes) in any_machine()) {
        let bytes = machine(&clock, &tapes);
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(Sections::open(&flipped).is_err(), "bit {}", bit);
        }
    }
}

#[test]
fn the_version_before_is_read_and_no_other() {
    let before = postcard::to_extend(&Clock1 { hours: 7 }, Vec::new()).unwrap();
    let bytes = one("clock", 0, 1, &before);
    assert_eq!(read(&bytes, 0), Ok((Clock { hours: 7, minutes: 0 }, vec![])));
    for found in [0, 3, u16::MAX] {
        let error = read(&one("clock", 0, found, &before), 0).unwrap_err();
        let section = name("clock", 0);
        assert_eq!(error, StateError::Version { section, found, oldest: 1, newest: 2 });
    }
    let bytes = one("tape", 0, 0, &[]);
    let error = Sections::open(&bytes).unwrap().take::<Tape>(0).unwrap_err();
    let section = name("tape", 0);
    assert_eq!(error, StateError::Version { section, found: 0, oldest: 1, newest: 1 });
}

#[test]
fn payloads_that_are_too_long_or_too_short_are_refused() {
    let whole = postcard::to_extend(&Clock { hours: 1, minutes: 2 }, Vec::new()).unwrap();
    for payload in [&whole[..1], &[&whole[..], &[0]].concat()] {
        let error = read(&one("clock", 0, 2, payload), 0).unwrap_err();
        assert_eq!(error, StateError::Payload { section: name("clock", 0), version: 2 });
    }
}

#[test]
fn unknown_and_missing_sections_are_named() {
    let clock = Clock { hours: 1, minutes: 2 };
    let bytes = machine(&clock, &[Tape(vec![1]), Tape(vec![])]);
    let error = read(&bytes, 1).unwrap_err();
    assert_eq!(error, StateError::Unknown { section: name("tape", 1), version: 1 });
    assert_eq!(
        error.to_string(),
        "section `tape` 1, version 1, is unknown here: restore it into a machine with the same \
         settings, by the Steward that saved it"
    );
    assert_eq!(read(&bytes, 3), Err(StateError::Missing(name("tape", 2))));
}

#[test]
fn a_section_can_not_be_there_twice() {
    let mut writer = Writer::new();
    writer.put(0, &Tape(vec![]));
    writer.put(0, &Tape(vec![]));
    writer.put(1, &Tape(vec![0; MOST_PAYLOAD]));
    assert_eq!(writer.finish(), Err(StateError::Twice(name("tape", 0))), "the first failure");
    let mut bytes = header();
    append(&mut bytes, "tape", 0, 1, &[0]);
    append(&mut bytes, "tape", 0, 1, &[0]);
    assert_eq!(Sections::open(&bytes).unwrap_err(), StateError::Twice(name("tape", 0)));
}

#[test]
fn limits_hold_on_both_sides() {
    let mut writer = Writer::new();
    writer.put(0, &Tape(vec![0; MOST_PAYLOAD]));
    let section = name("tape", 0);
    assert!(matches!(writer.finish(), Err(StateError::TooLong { section: s, .. }) if s == section));
    let mut bytes = one("tape", 0, 1, &[]);
    let length = HEADER + 1 + 4 + 4 + 2;
    bytes[length..length + 4]
        .copy_from_slice(&(u32::try_from(MOST_PAYLOAD).unwrap() + 1).to_le_bytes());
    let error = Sections::open(&bytes).unwrap_err();
    assert_eq!(error, StateError::TooLong { section, length: MOST_PAYLOAD + 1 });

    let mut writer = Writer::new();
    let mut bytes = header();
    for instance in 0..=u32::try_from(MOST_SECTIONS).unwrap() {
        writer.put(instance, &Tape(vec![]));
        append(&mut bytes, "tape", instance, 1, &[0]);
    }
    let first = name("tape", u32::try_from(MOST_SECTIONS).unwrap());
    assert_eq!(writer.finish(), Err(StateError::TooMany(first.clone())));
    assert_eq!(Sections::open(&bytes).unwrap_err(), StateError::TooMany(first));
}

#[test]
fn other_files_are_refused() {
    assert_eq!(Sections::open(b"").unwrap_err(), StateError::NotAMachine);
    assert_eq!(Sections::open(&[0x7f; 100]).unwrap_err(), StateError::NotAMachine);
    let mut bytes = machine(&Clock { hours: 1, minutes: 2 }, &[]);
    bytes[8] = 9;
    assert_eq!(Sections::open(&bytes).unwrap_err(), StateError::Format(9));
    for bad in ["", "Tape", "a tape", &String::from_iter(['a'; 33])] {
        let bytes = one(bad, 0, 1, &[]);
        assert_eq!(Sections::open(&bytes).unwrap_err(), StateError::Head(HEADER), "{bad:?}");
    }
    let mut bytes = header();
    append(&mut bytes, END, 0, 1, &3u32.to_le_bytes());
    assert_eq!(Sections::open(&bytes).unwrap_err(), StateError::Count { found: 0 });
}
