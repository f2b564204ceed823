//! Properties that every port device has, checked with random accesses: none
//! of them panics, a saved and restored device goes on as the original does,
//! a state that was tampered with is refused or harmless, and the layout of its version does not
//! change.
//!
//! A model says how to poke it with [`Subject`] and writes
//! `device_properties!(Model, span)` in its tests.

use alloc::vec::Vec;
use proptest::prelude::*;
use serde_json::Value;
use state::{Sections, Writer};
use x86defs::Width;

use crate::{Device, PortDevice};
use x86defs::time::Nanos;

/// One thing that happens to a device.
#[derive(Clone, Debug)]
pub(crate) enum Op {
    /// IN.
    Read(u16, Width),
    /// OUT.
    Write(u16, Width, u32),
    /// Nanoseconds go by.
    Pass(u64),
    /// The owner does something, as the model's [`Subject::act`] has it.
    Act(u8, u32),
}

/// A device under test.
pub(crate) trait Subject: Device + PortDevice {
    /// A device as at power-on.
    fn fresh() -> Self;
    /// The owner's side: what `what` means is the model's affair. The answer
    /// is compared between the original and its copy.
    fn act(&mut self, what: u8, value: u32, now: Nanos) -> u64;
    /// State that the owner sees after each access (interrupt lines, deadlines).
    fn look(&self) -> u64;
}

fn width() -> impl Strategy<Value = Width> {
    prop_oneof![
        8 => Just(Width::B1),
        1 => Just(Width::B2),
        2 => Just(Width::B4),
        1 => Just(Width::B8),
    ]
}

fn value() -> impl Strategy<Value = u32> {
    prop_oneof![3 => 0_u32..256, 1 => any::<u32>()]
}

/// Some operations on a device with `span` offsets (and one beyond).
pub(crate) fn ops(span: u16) -> impl Strategy<Value = Vec<Op>> {
    let op = prop_oneof![
        3 => (0..=span, width()).prop_map(|(o, w)| Op::Read(o, w)),
        6 => (0..=span, width(), value()).prop_map(|(o, w, v)| Op::Write(o, w, v)),
        2 => (0_u32..34, any::<u64>()).prop_map(|(bits, n)| Op::Pass(n & ((1 << bits) - 1))),
        3 => (any::<u8>(), any::<u32>()).prop_map(|(a, v)| Op::Act(a, v)),
    ];
    prop::collection::vec(op, 0..60)
}

/// Does `op` at `now`; returns what came back, and what the owner sees.
pub(crate) fn step<D: Subject>(device: &mut D, op: &Op, now: &mut Nanos) -> (u64, u64) {
    const FAILED: u64 = 1 << 63;
    let answer = match *op {
        Op::Read(offset, width) => match device.port_read(offset, width, *now) {
            Ok(value) => {
                let value = u64::from(value);
                assert_eq!(width.truncate(value), value, "answer wider than asked");
                value
            }
            Err(error) => FAILED | error as u64,
        },
        Op::Write(offset, width, value) => {
            let value = u32::try_from(width.truncate(value.into())).unwrap();
            device.port_write(offset, width, value, *now).map_or_else(|e| FAILED | e as u64, |()| 0)
        }
        Op::Pass(nanos) => {
            now.0 += nanos;
            0
        }
        Op::Act(what, value) => device.act(what, value, *now),
    };
    (answer, device.look())
}

/// A device after accesses of every kind, always the same ones.
pub(crate) fn used<D: Subject>(span: u16) -> D {
    let (mut device, mut now, mut seed) = (D::fresh(), Nanos(5), 1_u32);
    let mut number = || {
        seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        seed >> 16
    };
    for _ in 0..100 {
        let offset = u16::try_from(number() % u32::from(span)).unwrap();
        let value = number() & 0xff;
        let op = match number() % 8 {
            0..=4 => Op::Write(offset, Width::B1, value),
            5 => Op::Write(offset & !3, Width::B4, number() << 16 | value),
            6 => Op::Pass(number().into()),
            _ => Op::Act(0, value),
        };
        step(&mut device, &op, &mut now);
    }
    device
}

/// The state in `device`, by way of the bytes of its section.
fn saved<D: Device>(device: &D) -> D::State {
    let mut writer = Writer::new();
    writer.put(3, &device.save());
    let bytes = writer.finish().unwrap();
    let mut sections = Sections::open(&bytes).unwrap();
    let state = sections.take(3).unwrap();
    sections.finish().unwrap();
    state
}

/// A device saved after `before` and restored into a fresh one answers
/// `after` as the original does.
pub(crate) fn same_after_restore<D: Subject>(before: &[Op], after: &[Op]) {
    let mut now = Nanos(5);
    let mut original = D::fresh();
    for op in before {
        step(&mut original, op, &mut now);
    }
    original.quiesce();
    let mut copy = D::fresh();
    copy.restore(saved(&original)).unwrap();
    assert_eq!(original.save(), copy.save());
    assert_eq!(original.look(), copy.look());
    let mut copy_now = now;
    for op in after {
        let expected = step(&mut original, op, &mut now);
        assert_eq!(step(&mut copy, op, &mut copy_now), expected, "{op:?}");
    }
    assert_eq!(original.save(), copy.save());
    original.reset();
    copy.reset();
    assert_eq!(original.save(), copy.save());
}

fn leaves<'a>(value: &'a mut Value, found: &mut Vec<&'a mut Value>) {
    match value {
        Value::Array(items) => items.iter_mut().for_each(|item| leaves(item, found)),
        Value::Object(items) => items.values_mut().for_each(|item| leaves(item, found)),
        _ => found.push(value),
    }
}

/// A saved state with some of its values replaced is either refused, and
/// then nothing has changed, or serves accesses without a panic.
pub(crate) fn tampered_state_is_harmless<D: Subject>(
    before: &[Op],
    edits: &[(usize, Option<u64>)],
    after: &[Op],
) {
    let mut now = Nanos(5);
    let mut device = D::fresh();
    for op in before {
        step(&mut device, op, &mut now);
    }
    let saved = device.save();
    let mut value = serde_json::to_value(&saved).unwrap();
    let mut found = Vec::new();
    leaves(&mut value, &mut found);
    let count = found.len().max(1);
    for (index, edit) in edits {
        if let Some(leaf) = found.get_mut(index % count) {
            **leaf = match (&**leaf, edit) {
                (Value::Bool(flag), _) => Value::Bool(!flag),
                (_, Some(number)) => Value::from(*number),
                (_, None) => Value::from(-1),
            };
        }
    }
    let Ok(state) = serde_json::from_value(value) else { return };
    if device.restore(state).is_err() {
        assert_eq!(device.save(), saved);
    }
    for op in after {
        step(&mut device, op, &mut now);
    }
    device.reset();
}

/// Replacements for values of a saved state.
pub(crate) fn edits() -> impl Strategy<Value = Vec<(usize, Option<u64>)>> {
    let number = (0_u32..64, any::<u64>(), 0_u8..8).prop_map(|(shift, n, sign)| match sign {
        0 => None,
        1 => Some(u64::MAX),
        2 => Some(i64::MAX.cast_unsigned()),
        _ => Some(n >> shift),
    });
    prop::collection::vec((any::<usize>(), number), 1..4)
}

macro_rules! device_properties {
    ($device:ty, $span:expr) => {
        #[test]
        fn the_state_is_laid_out_as_it_was() {
            let sample = || $crate::testing::used::<$device>($span).save();
            state::golden::check(env!("CARGO_MANIFEST_DIR"), sample);
        }

        proptest::proptest! {
            #[test]
            fn restored_device_goes_on_the_same(
                before in $crate::testing::ops($span),
                after in $crate::testing::ops($span),
            ) {
                $crate::testing::same_after_restore::<$device>(&before, &after);
            }

            #[test]
            fn tampered_state_does_no_harm(
                before in $crate::testing::ops($span),
                edits in $crate::testing::edits(),
                after in $crate::testing::ops($span),
            ) {
                $crate::testing::tampered_state_is_harmless::<$device>(&before, &edits, &after);
            }
        }
    };
}
pub(crate) use device_properties;
