//! One half against the other, in one thread.

use super::{BASE, Words, layout};
use crate::{Chain, DeviceQueue, DriverQueue, Full, RingMemory, Segment, passed};
use proptest::prelude::*;
use std::collections::VecDeque;
use std::vec::Vec;

#[test]
fn an_event_is_passed_where_it_lies_between() {
    for old in [0, 1, 0x7fff, 0x8000, 0xfffe, 0xffff_u16] {
        for count in [0, 1, 2, 255, 256, 0x7fff, 0x8000] {
            for event in 0..=u16::MAX {
                let between = event.wrapping_sub(old) < count;
                let new = old.wrapping_add(count);
                assert_eq!(passed(event, old, new), between, "{old} {count} {event}");
            }
        }
    }
}

/// Both halves of a queue.
struct Pair {
    memory: Words,
    driver: DriverQueue,
    device: DeviceQueue,
    chain: Chain,
}

impl Pair {
    fn new(size: u16, event_index: bool) -> Self {
        let (layout, bytes) = layout(size);
        Self {
            memory: Words::new(bytes),
            driver: DriverQueue::new(layout, event_index),
            device: DeviceQueue::new(layout, event_index, false),
            chain: Chain::new(size),
        }
    }
}

/// Each index of a queue of each size, in steps of different lengths: chains come in the order in
/// which they were made available, with their buffers, and go back with what was written.
#[test]
fn all_indices_of_all_sizes() {
    for size in (0..16).map(|n| 1u16 << n) {
        for event_index in [false, true] {
            let mut pair = Pair::new(size, event_index);
            let Pair { memory, driver, device, chain } = &mut pair;
            let (mut done, mut step) = (0u32, 1u16);
            while done <= 0x1_0000 {
                step = step % size.min(300) + 1;
                let batch: Vec<_> = (0..step).map(|n| done + u32::from(n)).collect();
                for n in &batch {
                    let at = 0x1000 * u64::from(*n);
                    let segment = Segment { at, len: n + 1 };
                    // A direction each.
                    let (readable, writable): (&[_], &[_]) =
                        if n % 2 == 0 { (&[segment], &[]) } else { (&[], &[segment]) };
                    driver.add(memory, readable, writable).unwrap();
                }
                let _ = driver.publish(memory).unwrap();
                for n in &batch {
                    assert!(device.take(memory, chain).unwrap());
                    let segment = Segment { at: 0x1000 * u64::from(*n), len: n + 1 };
                    let (readable, writable): (&[_], &[_]) =
                        if n % 2 == 0 { (&[segment], &[]) } else { (&[], &[segment]) };
                    assert_eq!((chain.readable(), chain.writable()), (readable, writable));
                    let written = if n % 2 == 0 { 0 } else { n / 2 };
                    device.give_back(memory, chain.head(), written).unwrap();
                }
                assert!(!device.take(memory, chain).unwrap());
                let _ = device.publish(memory).unwrap();
                for n in &batch {
                    let back = driver.take_back(memory).unwrap().unwrap();
                    assert_eq!(back.written, if n % 2 == 0 { 0 } else { n / 2 });
                }
                assert_eq!(driver.take_back(memory).unwrap(), None);
                assert_eq!((driver.free(), driver.in_flight()), (size, 0));
                assert_eq!(device.in_flight(), 0);
                done += u32::from(step);
            }
        }
    }
}

#[derive(Clone, Debug)]
enum Step {
    /// A chain of so many buffers to read and to write.
    Add(usize, usize),
    Publish,
    Take,
    /// The chain that was taken so long ago goes back.
    GiveBack(usize),
    PublishUsed,
    TakeBack,
    PutBack,
    DeviceWants(bool),
    DriverWants(bool),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => (0usize..4, 0usize..4).prop_map(|(r, w)| Step::Add(r, w)),
        2 => Just(Step::Publish),
        4 => Just(Step::Take),
        4 => (0usize..8).prop_map(Step::GiveBack),
        2 => Just(Step::PublishUsed),
        4 => Just(Step::TakeBack),
        1 => Just(Step::PutBack),
        1 => any::<bool>().prop_map(Step::DeviceWants),
        1 => any::<bool>().prop_map(Step::DriverWants),
    ];
    prop::collection::vec(step, 1..300)
}

/// A chain as the reference knows it.
#[derive(Clone, Debug, PartialEq)]
struct Known {
    head: u16,
    readable: Vec<Segment>,
    writable: Vec<Segment>,
}

proptest! {
    /// Random steps of both halves against plain lists. A half that sleeps, after it has asked to be
    /// told and has found nothing, is told of the next thing.
    #[test]
    fn as_a_reference(size in 0u32..6, event_index: bool, steps in steps()) {
        let size = 1u16 << size;
        let mut pair = Pair::new(size, event_index);
        let Pair { memory, driver, device, chain } = &mut pair;
        let mut number = 0u32;
        let (mut added, mut taken, mut back) = (VecDeque::new(), Vec::new(), VecDeque::new());
        let (mut shown, mut seen) = (0usize, 0usize);
        let (mut device_sleeps, mut driver_sleeps) = (false, false);
        let mut just_taken = false;
        for step in steps {
            let was_taken = core::mem::take(&mut just_taken);
            match step {
                Step::Add(readable, writable) => {
                    let mut make = |count: usize| -> Vec<Segment> {
                        (0..count).map(|_| {
                            number += 1;
                            Segment { at: BASE + u64::from(number) * 64, len: number }
                        }).collect()
                    };
                    let (readable, writable) = (make(readable), make(writable));
                    let count = readable.len() + writable.len();
                    let fits = count != 0 && count <= usize::from(driver.free());
                    match driver.add(memory, &readable, &writable) {
                        Ok(head) => {
                            prop_assert!(fits);
                            added.push_back(Known { head, readable, writable });
                        }
                        Err(error) => {
                            prop_assert!(!fits);
                            prop_assert_eq!(error, Full::Room(count));
                        }
                    }
                }
                Step::Publish => {
                    let told = driver.publish(memory).unwrap();
                    let new = added.len() > shown;
                    prop_assert!(!told || new);
                    prop_assert!(told || !(new && device_sleeps), "the device sleeps on");
                    shown = added.len();
                    device_sleeps &= !told;
                }
                Step::Take => {
                    let any = device.take(memory, chain).unwrap();
                    prop_assert_eq!(any, shown > 0);
                    if any {
                        let known = added.pop_front().unwrap();
                        shown -= 1;
                        let (readable, writable) = (chain.readable(), chain.writable());
                        prop_assert_eq!(chain.head(), known.head);
                        prop_assert_eq!(readable, &known.readable[..]);
                        prop_assert_eq!(writable, &known.writable[..]);
                        taken.push(known);
                    }
                    just_taken = any;
                }
                Step::PutBack => {
                    if let Some(known) = taken.pop_if(|_| was_taken) {
                        device.put_back();
                        added.push_front(known);
                        shown += 1;
                    }
                }
                Step::GiveBack(which) => {
                    if taken.is_empty() {
                        continue;
                    }
                    let known = taken.remove(which % taken.len());
                    let room: u32 = known.writable.iter().map(|segment| segment.len).sum();
                    device.give_back(memory, known.head, room / 2).unwrap();
                    back.push_back((known.head, room / 2));
                }
                Step::PublishUsed => {
                    let told = device.publish(memory).unwrap();
                    let new = back.len() > seen;
                    prop_assert!(told || !(new && driver_sleeps), "the driver sleeps on");
                    seen = back.len();
                    driver_sleeps &= !told;
                }
                Step::TakeBack => {
                    let done = driver.take_back(memory).unwrap();
                    prop_assert_eq!(done.is_some(), seen > 0);
                    if let Some(done) = done {
                        seen -= 1;
                        prop_assert_eq!(Some((done.head, done.written)), back.pop_front());
                    }
                }
                Step::DeviceWants(true) => {
                    device_sleeps = !device.want_notifications(memory).unwrap();
                    prop_assert_eq!(device_sleeps, shown == 0);
                }
                Step::DeviceWants(false) => {
                    device.stop_notifications(memory).unwrap();
                    device_sleeps = false;
                }
                Step::DriverWants(true) => {
                    driver_sleeps = !driver.want_interrupts(memory).unwrap();
                    prop_assert_eq!(driver_sleeps, seen == 0);
                }
                Step::DriverWants(false) => {
                    driver.stop_interrupts(memory).unwrap();
                    driver_sleeps = false;
                }
            }
            prop_assert_eq!(usize::from(device.in_flight()), taken.len());
        }
    }
}

/// A queue's device half goes on in another one.
#[test]
fn restored() {
    let mut pair = Pair::new(4, true);
    let Pair { memory, driver, device, chain } = &mut pair;
    let segment = Segment { at: 0x5000, len: 8 };
    for _ in 0..3 {
        driver.add(memory, &[segment], &[]).unwrap();
    }
    driver.publish(memory).unwrap();
    assert!(device.take(memory, chain).unwrap());
    device.give_back(memory, chain.head(), 0).unwrap();
    device.publish(memory).unwrap();
    let mut other = DeviceQueue::restored(*device.layout(), true, false, device.state());
    for _ in 0..2 {
        assert!(other.take(memory, chain).unwrap());
        other.give_back(memory, chain.head(), 0).unwrap();
    }
    assert!(!other.want_notifications(memory).unwrap());
    other.publish(memory).unwrap();
    assert_eq!(memory.load(other.layout().used_index()), Ok(3));
    for _ in 0..3 {
        assert!(driver.take_back(memory).unwrap().is_some());
    }
}
