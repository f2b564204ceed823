//! Rings that no honest driver or device writes.

use super::{BASE, Words, layout};
use crate::{Chain, DeviceQueue, DriverQueue, QueueError, RingMemory, Segment, UsedError};
use proptest::prelude::*;
use std::vec::Vec;

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

/// A descriptor: address, length, flags, next.
type Entry = (u64, u32, u16, u16);

/// A queue of four whose driver writes descriptors by hand. Two tables fit behind it.
struct Driver {
    memory: Words,
    device: DeviceQueue,
    chain: Chain,
    index: u16,
    tables: u64,
}

impl Driver {
    fn new(indirect: bool) -> Self {
        let (layout, bytes) = layout(4);
        let tables = (BASE + bytes as u64).next_multiple_of(16);
        Self {
            memory: Words::new(0x1000),
            device: DeviceQueue::new(layout, false, indirect),
            chain: Chain::new(4),
            index: 0,
            tables,
        }
    }

    /// Writes a descriptor at an address.
    fn write(&self, at: u64, (address, len, flags, next): Entry) {
        let mut bytes = Vec::new();
        bytes.extend(address.to_le_bytes());
        bytes.extend(len.to_le_bytes());
        bytes.extend(flags.to_le_bytes());
        bytes.extend(next.to_le_bytes());
        self.memory.write(at, &bytes).unwrap();
    }

    fn table(&self, entries: &[Entry]) {
        for (n, entry) in (0..).zip(entries) {
            self.write(BASE + 16 * n, *entry);
        }
    }

    /// Makes the chain at `head` available, and has the device take it.
    fn take(&mut self, head: u16) -> Result<bool, QueueError<u64>> {
        let layout = *self.device.layout();
        self.memory.poke(layout.available_entry(self.index), head);
        self.index = self.index.wrapping_add(1);
        self.memory.poke(layout.available_index(), self.index);
        self.device.take(&self.memory, &mut self.chain)
    }
}

#[test]
fn chains_that_can_not_be() {
    let cases: [(&[Entry], QueueError<u64>); 9] = [
        // A circle, of one and of two.
        (&[(0x1000, 8, NEXT, 0)], QueueError::TooLong),
        (&[(0x1000, 8, NEXT, 1), (0x2000, 8, NEXT, 0)], QueueError::TooLong),
        (&[(0x1000, 8, NEXT, 4)], QueueError::NoDescriptor(4)),
        (&[(0x1000, 8, NEXT, 0xffff)], QueueError::NoDescriptor(0xffff)),
        (&[(0x1000, 0, 0, 0)], QueueError::Empty(0x1000)),
        (&[(u64::MAX - 7, 8, 0, 0)], QueueError::Beyond(u64::MAX - 7)),
        (&[(0, u32::MAX, NEXT, 1), (0, 1, 0, 0)], QueueError::Bytes),
        (&[(0, 8, NEXT | WRITE, 1), (0, 8, 0, 0)], QueueError::Order),
        (&[(0, 16, INDIRECT, 0)], QueueError::Indirect("that was not negotiated")),
    ];
    for (table, error) in cases {
        let mut driver = Driver::new(false);
        driver.table(table);
        assert_eq!(driver.take(0), Err(error), "{table:x?}");
        assert!(driver.chain.bytes() <= u32::MAX.into());
    }
    let mut driver = Driver::new(false);
    assert_eq!(driver.take(4), Err(QueueError::NoDescriptor(4)));
}

#[test]
fn tables_that_can_not_be() {
    let at = Driver::new(true).tables;
    let buffer = |next| (0x1000, 8, NEXT, next);
    let cases: [(_, &[_], _); 7] = [
        ((at, 0, INDIRECT, 0), &[], QueueError::Indirect("whose length is no multiple of 16")),
        ((at, 24, INDIRECT, 0), &[], QueueError::Indirect("whose length is no multiple of 16")),
        ((at, 16, INDIRECT | NEXT, 1), &[], QueueError::Indirect("in the middle of a chain")),
        ((at, 16, INDIRECT, 0), &[(at, 16, INDIRECT, 0)], QueueError::Indirect("within another")),
        (
            (at, 32, INDIRECT, 0),
            &[buffer(1), buffer(2)],
            QueueError::Indirect("that goes on behind its end"),
        ),
        ((at, 32, INDIRECT, 0), &[buffer(1), buffer(0)], QueueError::TooLong),
        ((u64::MAX - 15, 16, INDIRECT, 0), &[], QueueError::Beyond(u64::MAX - 15)),
    ];
    for (first, table, error) in cases {
        let mut driver = Driver::new(true);
        driver.table(&[first]);
        for (n, entry) in (0..).zip(table) {
            driver.write(at + 16 * n, *entry);
        }
        assert_eq!(driver.take(0), Err(error), "{first:x?} {table:x?}");
    }
    // A table longer than the queue is none, and one of which less is used is.
    let mut driver = Driver::new(true);
    driver.table(&[(0x1000, 8, NEXT, 1), (at, 16 * 200, INDIRECT | WRITE, 0)]);
    driver.write(at, (0x2000, 8, NEXT, 100));
    driver.write(at + 1600, (0x3000, 8, WRITE, 0));
    assert_eq!(driver.take(0), Ok(true), "descriptors of both kinds, and a flag that is ignored");
    assert_eq!(driver.chain.readable().len(), 2);
    assert_eq!(driver.chain.writable(), [Segment { at: 0x3000, len: 8 }]);
    for n in 0..4 {
        driver.write(at + 16 * n, buffer(u16::try_from(n).unwrap() + 1));
    }
    driver.table(&[(at, 16 * 5, INDIRECT, 0)]);
    assert_eq!(driver.take(0), Err(QueueError::TooLong));
}

#[test]
fn indices_that_jump() {
    let mut driver = Driver::new(false);
    driver.table(&[(0x1000, 8, 0, 0)]);
    let index = driver.device.layout().available_index();
    driver.memory.poke(index, 5);
    let jumped = QueueError::Jumped { from: 0, to: 5 };
    assert_eq!(driver.device.take(&driver.memory, &mut driver.chain), Err(jumped));
    driver.memory.poke(index, 0xffff);
    let jumped = QueueError::Jumped { from: 0, to: 0xffff };
    assert_eq!(driver.device.want_notifications(&driver.memory), Err(jumped));
    driver.memory.poke(index, 4);
    for _ in 0..4 {
        assert_eq!(driver.device.take(&driver.memory, &mut driver.chain), Ok(true));
    }
    // Nothing has gone back.
    driver.memory.poke(index, 5);
    let jumped = QueueError::Jumped { from: 4, to: 5 };
    assert_eq!(driver.device.take(&driver.memory, &mut driver.chain), Err(jumped));
    driver.device.give_back(&driver.memory, 0, 0).unwrap();
    assert_eq!(driver.device.take(&driver.memory, &mut driver.chain), Ok(true));
}

#[test]
fn rings_where_no_memory_is() {
    let (layout, _) = layout(4);
    let memory = Words::new(0x20);
    let mut device = DeviceQueue::new(layout, true, true);
    let index = layout.available_index();
    let nowhere = QueueError::Memory(index);
    assert_eq!(device.take(&memory, &mut Chain::new(4)), Err(nowhere));
    let entry = layout.used_entry(0);
    assert_eq!(device.give_back(&memory, 0, 0), Err(QueueError::Memory(entry)));
    assert!(device.want_notifications(&memory).is_err());
}

/// A device that lies.
#[test]
fn what_a_device_gives_back_is_checked() {
    let (layout, bytes) = layout(4);
    let memory = Words::new(bytes);
    let mut driver = DriverQueue::new(layout, false);
    let two = [Segment { at: 0x1000, len: 8 }; 2];
    let head = driver.add(&memory, &two[..1], &two).unwrap();
    driver.publish(&memory).unwrap();
    let gives = |index: u16, id: u32, written: u32| {
        let [a, b, c, d] = id.to_le_bytes();
        let [e, f, g, h] = written.to_le_bytes();
        memory.write(layout.used_entry(index), &[a, b, c, d, e, f, g, h]).unwrap();
        memory.poke(layout.used_index(), index + 1);
    };
    gives(1, 0, 0);
    assert_eq!(driver.take_back(&memory), Err(UsedError::Jumped { from: 0, to: 2 }));
    for id in [1, 3, 4, 0x1_0000, u32::MAX] {
        gives(0, id, 0);
        assert_eq!(driver.take_back(&memory), Err(UsedError::Unknown(id)));
    }
    gives(0, head.into(), 16);
    assert_eq!(driver.take_back(&memory).unwrap().unwrap().written, 16);
    assert_eq!(driver.free(), 4);
    let head = driver.add(&memory, &[], &two).unwrap();
    driver.publish(&memory).unwrap();
    gives(1, head.into(), 17);
    let error = UsedError::TooMuch { head, written: 17, room: 16 };
    assert_eq!(driver.take_back(&memory), Err(error));
}

proptest! {
    /// Whatever stands in the rings: no panic, no chain that is too long, no more chains than the
    /// queue has entries.
    #[test]
    fn any_contents(
        size in 0u32..5,
        event_index: bool,
        words in prop::collection::vec(prop_oneof![any::<u16>(), 0u16..8], 0x200),
        rounds in 1usize..80,
    ) {
        let size = 1u16 << size;
        let (layout, _) = layout(size);
        let memory = Words::new(0x400);
        for (at, word) in (BASE..).step_by(2).zip(&words) {
            memory.poke(at, *word);
        }
        let mut device = DeviceQueue::new(layout, event_index, true);
        let mut driver = DriverQueue::new(layout, event_index);
        let mut chain = Chain::new(size);
        for _ in 0..rounds {
            if let Ok(true) = device.take(&memory, &mut chain) {
                prop_assert!(device.in_flight() <= size);
                let all = chain.readable().iter().chain(chain.writable());
                prop_assert_eq!(all.clone().map(|s| u64::from(s.len)).sum::<u64>(), chain.bytes());
                prop_assert!(all.count() <= usize::from(size));
                let _ = device.give_back(&memory, chain.head(), 1);
            }
            let _ = device.publish(&memory);
            let _ = device.want_notifications(&memory);
            let _ = driver.add(&memory, &[], &[Segment { at: 0, len: 1 }]);
            let _ = driver.publish(&memory);
            let _ = driver.take_back(&memory);
            prop_assert!(driver.free() <= size);
        }
    }
}
