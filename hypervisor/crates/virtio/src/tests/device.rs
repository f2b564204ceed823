//! The device's registers, queues, interrupts and reset.

use super::{NOW, PORTS, SHOUT, TABLE, World};
use crate::feature;
use crate::ring::Ring;
use alloc::sync::Arc;
use chipset::Quiet;
use chipset::pci::BoardDevice;
use core::sync::atomic::Ordering;
use memory::GuestMemory;
use std::sync::Barrier;
use std::thread;
use std::vec::Vec;
use virtqueue::{DriverQueue, Layout, Segment};
use x86defs::bits::Low;
use x86defs::{GuestPhysAddr, Width};

const STATUS: u64 = 0x14;
const ISR: u64 = 0x100;
const NOTIFY: u64 = 0x400;
const ACCEPTED: u64 = feature::TRANSPORT | SHOUT;

/// Places of queue `n`.
fn layout(n: u64, size: u16) -> Layout {
    let at = 0x4000 * n;
    Layout::new(size, at, at + 0x1000, at + 0x2000).unwrap()
}

/// A driver of the device.
struct Driver<'a> {
    world: &'a World,
    queue: DriverQueue,
}

impl<'a> Driver<'a> {
    /// Brings the device up, with `vectors` of MSI-X or INTA#.
    fn new(world: &'a World, vectors: Option<[u16; 3]>) -> Self {
        world.place();
        world.write(STATUS, Width::B1, 0);
        assert_eq!(world.read(STATUS, Width::B1), 0);
        world.write(STATUS, Width::B1, 3);
        for (select, half) in [(0, ACCEPTED.low32()), (1, 1)] {
            world.write(8, Width::B4, select);
            world.write(12, Width::B4, half.into());
        }
        world.write(STATUS, Width::B1, 0xb);
        assert_eq!(world.read(STATUS, Width::B1), 0xb);
        if let Some([config, ..]) = vectors {
            for vector in 0..3u64 {
                let entry = TABLE + 16 * vector;
                for (offset, value) in [(0, 0xfee0_0000), (8, 0x41 + vector), (12, 0)] {
                    let at = GuestPhysAddr::new(entry + offset);
                    world.board.mmio_write(at, Width::B4, value, || NOW);
                }
            }
            let msix = world.capabilities(0x11)[0];
            world.set_config(msix + 2, Width::B2, 0x8000);
            world.write(0x10, Width::B2, config.into());
        }
        for (n, size) in [(0u64, 16u16), (1, 4)] {
            world.write(0x16, Width::B2, n);
            assert_eq!(world.read(0x18, Width::B2), u64::from(size));
            for (offset, place) in [0x20, 0x28, 0x30].into_iter().zip(layout(n, size).places()) {
                world.write(offset, Width::B4, place);
                world.write(offset + 4, Width::B4, 0);
            }
            if let Some([_, vectors @ ..]) = vectors {
                world.write(0x1a, Width::B2, vectors[usize::try_from(n).unwrap()].into());
            }
            world.write(0x1c, Width::B2, 1);
        }
        Self { world, queue: DriverQueue::new(layout(0, 16), true) }
    }

    fn ready(&self) {
        self.world.write(STATUS, Width::B1, 0xf);
    }

    /// Makes a request of `text` available; whether the device wants to be notified.
    fn submit(&mut self, text: &[u8]) -> bool {
        let ram = &self.world.ram;
        GuestMemory::write(ram, GuestPhysAddr::new(0x1_0000), text).unwrap();
        let segment = |at| Segment { at, len: u32::try_from(text.len()).unwrap() };
        self.queue.add(&Ring(ram), &[segment(0x1_0000)], &[segment(0x1_1000)]).unwrap();
        self.queue.publish(&Ring(ram)).unwrap()
    }

    /// The answer, if there is one.
    fn answer(&mut self) -> Option<Vec<u8>> {
        let done = self.queue.take_back(&Ring(&self.world.ram)).unwrap()?;
        let mut text = std::vec![0; usize::try_from(done.written).unwrap()];
        GuestMemory::read(&self.world.ram, GuestPhysAddr::new(0x1_1000), &mut text).unwrap();
        Some(text)
    }

    fn kick(&self) {
        let _ = self.world.board.port_write(PORTS, Width::B2, 0, NOW);
    }

    fn turn(&self) -> bool {
        self.world.device.turn(|| false)
    }
}

#[test]
fn the_structures_are_where_they_are_said_to_be() {
    let world = World::new();
    assert_eq!(world.config(0, Width::B4), 0x1042_1af4);
    let all = world.capabilities(9);
    let read = |at: u8| {
        let number = world.config(at + 3, Width::B1);
        let bar = world.config(at + 4, Width::B1);
        (number, bar, world.config(at + 8, Width::B4), world.config(at + 12, Width::B4))
    };
    let found: Vec<_> = all.iter().map(|at| read(*at)).collect();
    let wanted = [
        (1, 1, 0, 0x40),
        (3, 1, 0x100, 4),
        // Ports come first.
        (2, 0, 0, 8),
        (2, 1, 0x400, 8),
        (4, 1, 0x200, 0x200),
        (5, 0, 0, 0),
    ];
    assert_eq!(found, wanted);
    assert_eq!(world.config(all[2] + 16, Width::B4), 4, "four bytes for each queue");
    // The registers, reached through configuration space.
    world.place();
    let access = all[5];
    let at = |bar: u32, offset: u32, length: u32| {
        world.set_config(access + 4, Width::B1, bar);
        world.set_config(access + 8, Width::B4, offset);
        world.set_config(access + 12, Width::B4, length);
    };
    at(1, 0x12, 2);
    assert_eq!(world.config(access + 16, Width::B2), 2, "queues");
    at(1, 0x14, 1);
    world.set_config(access + 16, Width::B1, 3);
    assert_eq!(world.read(STATUS, Width::B1), 3);
    for (bar, offset, length) in [(3, 0, 4), (1, 2, 4), (1, 0, 3), (1, 0x1000, 4), (1, 0, 8)] {
        at(bar, offset, length);
        world.set_config(access + 16, Width::B4, 0);
        assert_eq!(world.read(STATUS, Width::B1), 3, "{bar} {offset} {length}");
    }
}

#[test]
fn requests_go_through() {
    for vectors in [None, Some([0, 1, 2])] {
        let world = World::new();
        let mut driver = Driver::new(&world, vectors);
        assert!(driver.submit(b"before"));
        driver.kick();
        assert!(!driver.turn(), "not before the driver is set up");
        assert_eq!(driver.answer(), None);
        let woken = world.woken.0.load(Ordering::Relaxed);
        driver.ready();
        assert!(world.woken.0.load(Ordering::Relaxed) > woken, "the kick is remembered");
        assert!(!driver.turn());
        assert_eq!(driver.answer().as_deref(), Some(&b"BEFORE"[..]));
        let wanted = if vectors.is_some() { std::vec![0x42] } else { std::vec![] };
        assert_eq!(world.vectors(), wanted);
        assert_eq!(world.read(ISR, Width::B1), 1);
        assert_eq!(world.read(ISR, Width::B1), 0, "reading clears it");
        // The driver does not want to hear of the next one; and the device of that.
        assert!(driver.submit(b"again"), "the device sleeps");
        world.write(NOTIFY, Width::B2, 0);
        driver.turn();
        assert_eq!(driver.answer().as_deref(), Some(&b"AGAIN"[..]));
        assert!(world.vectors().is_empty());
        assert_eq!(world.read(ISR, Width::B1), 0);
        assert!(!driver.queue.want_interrupts(&Ring(&world.ram)).unwrap());
        driver.submit(b"third");
        driver.kick();
        driver.turn();
        assert_eq!(world.vectors(), wanted);
        assert_eq!(world.device.counts().requests.load(Ordering::Relaxed), 3);
    }
}

#[test]
fn a_turn_ends_when_it_is_told() {
    let world = World::new();
    let mut driver = Driver::new(&world, None);
    driver.ready();
    driver.turn();
    for _ in 0..5 {
        driver.submit(b"x");
    }
    driver.kick();
    let mut left = 2;
    let over = || {
        left -= 1;
        left < 0
    };
    assert!(world.device.turn(over), "there is more");
    let answers = core::iter::from_fn(|| driver.answer()).count();
    assert_eq!(answers, 2);
    assert!(!driver.turn());
    assert_eq!(core::iter::from_fn(|| driver.answer()).count(), 3);
}

#[test]
fn what_can_not_be_served_stays_in_the_ring() {
    let world = World::new();
    let mut driver = Driver::new(&world, None);
    driver.ready();
    driver.turn();
    world.device.kind().later.store(true, Ordering::Relaxed);
    driver.submit(b"wait");
    driver.kick();
    assert!(!driver.turn());
    assert_eq!(driver.answer(), None);
    world.device.kind().later.store(false, Ordering::Relaxed);
    world.device.ring(0);
    driver.turn();
    assert_eq!(driver.answer().as_deref(), Some(&b"WAIT"[..]));
}

#[test]
fn a_broken_ring_needs_a_reset_and_nothing_else() {
    let world = World::new();
    let mut driver = Driver::new(&world, Some([0, 1, 2]));
    driver.ready();
    driver.turn();
    driver.submit(b"fine");
    // The head of the next chain is no descriptor.
    world.ram.0.lock().unwrap()[0x1006] = 0xff;
    driver.submit(b"lost");
    world.ram.0.lock().unwrap()[0x1006] = 0xff;
    driver.kick();
    driver.turn();
    assert_eq!(world.read(STATUS, Width::B1), 0x4f);
    assert!(world.vectors().contains(&0x41), "a configuration interrupt");
    assert_eq!(world.read(ISR, Width::B1) & 2, 2);
    driver.kick();
    driver.turn();
    assert_eq!(world.device.counts().broken.load(Ordering::Relaxed), 1, "said once");
    let resets = world.device.kind().resets.load(Ordering::Relaxed);
    let mut driver = Driver::new(&world, Some([0, 1, 2]));
    assert_eq!(world.device.kind().resets.load(Ordering::Relaxed), resets + 1);
    world.ram.0.lock().unwrap()[..0x8000].fill(0);
    driver.ready();
    driver.turn();
    driver.submit(b"well");
    driver.kick();
    driver.turn();
    assert_eq!(driver.answer().as_deref(), Some(&b"WELL"[..]));
    // A request that is none.
    let segment = Segment { at: 0x1_0000, len: 4 };
    driver.queue.add(&Ring(&world.ram), &[segment], &[]).unwrap();
    driver.queue.publish(&Ring(&world.ram)).unwrap();
    driver.kick();
    driver.turn();
    assert_eq!(world.read(STATUS, Width::B1), 0x4f);
}

/// A reset while the service is at work: the status is 0 only when it is not any more.
#[test]
fn a_reset_waits_for_the_service() {
    let world = Arc::new(World::new());
    let mut driver = Driver::new(&world, None);
    driver.ready();
    driver.turn();
    driver.submit(b"busy");
    driver.kick();
    // In the middle of its turn the service waits until the reset has been asked for.
    let both = Arc::new(Barrier::new(2));
    let service = {
        let (world, both) = (Arc::clone(&world), Arc::clone(&both));
        thread::spawn(move || {
            let mut first = true;
            world.device.turn(|| {
                if core::mem::take(&mut first) {
                    both.wait();
                    both.wait();
                }
                false
            })
        })
    };
    both.wait();
    world.write(STATUS, Width::B1, 0);
    assert_eq!(world.read(STATUS, Width::B1), 0xf, "it is not reset yet");
    both.wait();
    service.join().unwrap();
    assert_eq!(world.read(STATUS, Width::B1), 0xf);
    world.device.turn(|| false);
    assert_eq!(world.read(STATUS, Width::B1), 0);
    assert_eq!(world.read(0x1c, Width::B2), 0);
    assert_eq!(world.read(ISR, Width::B1), 0);
}

#[test]
fn saved_and_restored() {
    let world = World::new();
    let mut driver = Driver::new(&world, None);
    driver.ready();
    driver.turn();
    driver.submit(b"first");
    driver.kick();
    driver.turn();
    assert_eq!(driver.answer().as_deref(), Some(&b"FIRST"[..]));
    driver.submit(b"left");
    driver.kick();
    assert_eq!(world.device.quiesce(), Quiet::Now);
    assert!(!driver.turn());
    assert_eq!(driver.answer(), None, "nothing new is begun");
    let mut writer = state::Writer::new();
    world.device.save(&mut writer);
    let image = writer.finish().unwrap();
    let other = World::new();
    other.ram.0.lock().unwrap().copy_from_slice(&world.ram.0.lock().unwrap());
    let mut sections = state::Sections::open(&image).unwrap();
    other.device.restore(&mut sections).unwrap();
    other.device.go_on();
    let Driver { queue, .. } = driver;
    let mut driver = Driver { world: &other, queue };
    assert!(other.woken.0.load(Ordering::Relaxed) > 0);
    driver.turn();
    assert_eq!(driver.answer().as_deref(), Some(&b"LEFT"[..]));
}
