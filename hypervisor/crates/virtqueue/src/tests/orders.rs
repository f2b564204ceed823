//! All orders in which the two halves may meet, where one is about to sleep and the other is about
//! to have something for it.

use super::{Words, layout};
use crate::{Chain, DeviceQueue, DriverQueue, Layout, RingMemory, Segment};
use loom::sync::Arc;
use loom::sync::atomic::{AtomicBool, AtomicU16, Ordering, fence};
use loom::thread;

/// Memory whose indices, flags and events are models.
struct Model {
    places: [u64; 6],
    words: [AtomicU16; 6],
    /// The entries, which are written before an index and read after it.
    entries: Words,
}

impl Model {
    fn new(layout: &Layout, bytes: usize) -> Self {
        Self {
            places: [
                layout.available_flags(),
                layout.available_index(),
                layout.used_event(),
                layout.used_flags(),
                layout.used_index(),
                layout.available_event(),
            ],
            words: [const { 0 }; 6].map(AtomicU16::new),
            entries: Words::new(bytes),
        }
    }

    fn word(&self, at: u64) -> Option<&AtomicU16> {
        self.places.iter().zip(&self.words).find(|(place, _)| **place == at).map(|(_, word)| word)
    }
}

impl RingMemory for Model {
    type Error = u64;

    fn load(&self, at: u64) -> Result<u16, u64> {
        match self.word(at) {
            Some(word) => Ok(word.load(Ordering::Acquire)),
            None => self.entries.load(at),
        }
    }

    fn store(&self, at: u64, value: u16) -> Result<(), u64> {
        match self.word(at) {
            Some(word) => {
                word.store(value, Ordering::Release);
                Ok(())
            }
            None => self.entries.store(at, value),
        }
    }

    fn read<const N: usize>(&self, at: u64) -> Result<[u8; N], u64> {
        self.entries.read(at)
    }

    fn write(&self, at: u64, bytes: &[u8]) -> Result<(), u64> {
        self.entries.write(at, bytes)
    }

    fn fence(&self) {
        fence(Ordering::SeqCst);
    }
}

fn all_orders(model: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(4);
    builder.check(model);
}

const SEGMENT: Segment = Segment { at: 0x1000, len: 8 };

/// A device that looks, finds nothing, asks to be told and sleeps is told of the chain.
#[test]
fn a_device_does_not_sleep_over_a_chain() {
    for event_index in [false, true] {
        all_orders(move || {
            let (layout, bytes) = layout(2);
            let memory = Arc::new(Model::new(&layout, bytes));
            let told = Arc::new(AtomicBool::new(false));
            let driver = {
                let (memory, told) = (memory.clone(), told.clone());
                thread::spawn(move || {
                    let mut driver = DriverQueue::new(layout, event_index);
                    driver.add(&*memory, &[SEGMENT], &[]).unwrap();
                    if driver.publish(&*memory).unwrap() {
                        told.store(true, Ordering::Release);
                    }
                })
            };
            let mut device = DeviceQueue::new(layout, event_index, false);
            let mut chain = Chain::new(2);
            device.stop_notifications(&*memory).unwrap();
            let taken = device.take(&*memory, &mut chain).unwrap();
            let sleeps = !taken && !device.want_notifications(&*memory).unwrap();
            driver.join().unwrap();
            assert!(!sleeps || told.load(Ordering::Acquire), "the device sleeps on");
        });
    }
}

/// The same of a driver, which waits for a chain to come back.
#[test]
fn a_driver_does_not_sleep_over_a_chain() {
    for event_index in [false, true] {
        all_orders(move || {
            let (layout, bytes) = layout(2);
            let memory = Arc::new(Model::new(&layout, bytes));
            let mut driver = DriverQueue::new(layout, event_index);
            driver.add(&*memory, &[], &[SEGMENT]).unwrap();
            driver.publish(&*memory).unwrap();
            let told = Arc::new(AtomicBool::new(false));
            let device = {
                let (memory, told) = (memory.clone(), told.clone());
                thread::spawn(move || {
                    let mut device = DeviceQueue::new(layout, event_index, false);
                    let mut chain = Chain::new(2);
                    assert!(device.take(&*memory, &mut chain).unwrap());
                    device.give_back(&*memory, chain.head(), 8).unwrap();
                    if device.publish(&*memory).unwrap() {
                        told.store(true, Ordering::Release);
                    }
                })
            };
            driver.stop_interrupts(&*memory).unwrap();
            let back = driver.take_back(&*memory).unwrap();
            let sleeps = back.is_none() && !driver.want_interrupts(&*memory).unwrap();
            device.join().unwrap();
            assert!(!sleeps || told.load(Ordering::Acquire), "the driver sleeps on");
        });
    }
}
