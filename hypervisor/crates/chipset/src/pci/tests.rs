//! Tests of devices on the bus: places that move, doorbells, messages.

extern crate std;

use super::*;
use crate::fabric::{Fabric, Kick};
use crate::test_device::TestDevice;
use crate::{Board, ConsoleSink, HotPorts};
use alloc::boxed::Box;
use alloc::vec::Vec;
use config::GuestSettings;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use devices::lapic::{ApicIdentity, ApicMode};
use devices::pci::{command, header};
use proptest::prelude::*;
use std::thread;
use x86defs::{GuestPhysAddr, Low};

const NOW: Nanos = Nanos(0);
/// No vectors.
const NONE: [u8; 0] = [];
const SLOT: u8 = 3;

#[derive(Debug)]
struct NoConsole;

impl ConsoleSink for NoConsole {
    fn room(&self) -> usize {
        0
    }

    fn put(&self, _: &[u8]) {}
}

struct World {
    fabric: Arc<Fabric>,
    device: Arc<TestDevice>,
    board: Board,
}

fn world() -> World {
    let fabric = Arc::new(Fabric::new(1, Kick(Box::new(|_| ()))));
    let identity =
        ApicIdentity::new().with_id(0).with_mode(ApicMode::XApic).with_software_enabled(true);
    fabric.routes().publish(0, identity);
    let place = DevFn::new(SLOT, 0).unwrap();
    let device = TestDevice::inline(place, Arc::clone(&fabric)).unwrap();
    let settings = GuestSettings::new("guest", 1 << 20, "kernel");
    let any: Arc<dyn BoardDevice> = Arc::<TestDevice>::clone(&device);
    let devices = [(place, any)];
    let board = Board::new(0, &settings, Arc::clone(&fabric), Arc::new(NoConsole), &devices);
    World { fabric, device, board }
}

impl World {
    /// In how many turns the device saw doorbell `n`.
    fn seen(&self, n: usize) -> u32 {
        self.device.seen().nth(n).unwrap()
    }

    /// The same for all.
    fn total(&self) -> u32 {
        self.device.seen().sum()
    }

    fn select(&self, offset: u8) {
        let address = 1 << 31 | u32::from(SLOT) << 11 | u32::from(offset & !3);
        let _ = self.board.port_write(0xcf8, Width::B4, address, NOW);
    }

    fn config(&self, offset: u8, width: Width) -> u32 {
        self.select(offset);
        self.board.port_read(0xcfc + u16::from(offset & 3), width, NOW)
    }

    fn set_config(&self, offset: u8, width: Width, value: u32) {
        self.select(offset);
        let _ = self.board.port_write(0xcfc + u16::from(offset & 3), width, value, NOW);
    }

    fn set_command(&self, value: u16) {
        self.set_config(header::COMMAND, Width::B2, value.into());
    }

    fn capability(&self, id: u8) -> u8 {
        let mut at = self.config(header::CAPABILITIES, Width::B1).low8();
        while self.config(at, Width::B1).low8() != id {
            at = self.config(at + 1, Width::B1).low8();
            assert_ne!(at, 0, "there is no such capability");
        }
        at
    }

    fn out(&self, port: u16) {
        let _ = self.board.port_write(port, Width::B2, 0, NOW);
    }

    fn store(&self, address: u64, value: u32) {
        self.board.mmio_write(GuestPhysAddr::new(address), Width::B4, value.into(), || NOW);
    }

    /// Takes the vectors that were sent since this was called last.
    fn vectors(&self) -> Vec<u8> {
        let mailbox = &self.fabric.mailboxes()[0];
        let _ = mailbox.take_requests();
        let (words, _) = mailbox.take();
        (0..=u8::MAX).filter(|v| words[usize::from(v >> 6)] >> (v & 63) & 1 != 0).collect()
    }
}

const ALL: u16 = command::IO_SPACE | command::MEMORY_SPACE | command::BUS_MASTER;

#[test]
fn a_bar_answers_where_the_guest_put_it_and_nowhere_else() {
    let world = world();
    let ring = |port: u16| {
        let before = world.total();
        world.out(port);
        world.total() - before
    };
    assert_eq!(world.config(0, Width::B4), 0x5354_1234);
    world.set_config(header::BAR0, Width::B4, 0xc000);
    assert_eq!(ring(0xc000), 0, "it does not answer yet");
    world.set_command(ALL);
    assert_eq!((ring(0xc000), ring(0xc004), ring(0xc0fc)), (1, 1, 1));
    assert_eq!((ring(0xc001), ring(0xc100), ring(0xbffc)), (0, 0, 0));
    // Beyond the table of fixed ports and below.
    world.set_config(header::BAR0, Width::B4, 0x700);
    assert_eq!((ring(0xc000), ring(0x704)), (0, 1));
    // A fixed device comes first.
    world.set_config(header::BAR0, Width::B4, 0x300);
    assert_eq!((ring(0x300), ring(0x3f8)), (1, 0));
    // Sizing.
    world.set_config(header::BAR0, Width::B4, u32::MAX);
    assert_eq!(world.config(header::BAR0, Width::B4), 0xffff_ff01);
    assert_eq!(ring(0xff00), 0, "not below 64 KiB");
    world.set_config(header::BAR0, Width::B4, 0xc000);
    world.set_command(command::MEMORY_SPACE);
    assert_eq!(ring(0xc000), 0, "it may not");
    // By memory, where the BAR is.
    world.set_config(header::BAR0 + 4, Width::B4, 0xd000_0000);
    world.store(0xd000_0008, 0);
    world.store(0xd000_1008, 0);
    assert_eq!(world.seen(2), 1);
    let read = |at| world.board.mmio_read(GuestPhysAddr::new(at), Width::B4, || NOW);
    assert_eq!((read(0xd000_0008), read(0xd000_1000)), (1, u64::from(u32::MAX)));
    let beyond = world.board.mmio_read(GuestPhysAddr::new(0xd000_0ffe), Width::B4, || NOW);
    assert_eq!(beyond, u64::from(u32::MAX), "an access over the end");
}

#[test]
fn marks_are_owed_and_paid_once() {
    let world = world();
    world.set_config(header::BAR0, Width::B4, 0xc000);
    world.set_command(ALL);
    let mut bells = HotPorts::default();
    assert_eq!(world.board.hot_bell(0xc004, &bells), None, "the copy is old");
    world.board.follow_ports(&mut bells);
    let (device, bits) = world.board.hot_bell(0xc004, &bells).unwrap();
    assert_eq!((device, bits), (0, 2));
    assert_eq!(world.board.hot_bell(0xc006, &bells), None);
    assert_eq!(world.board.hot_bell(0xc100, &bells), None);
    assert!(world.board.hot_mark(device, bits), "owed");
    assert!(!world.board.hot_mark(device, 1 << 63), "still owed");
    assert_eq!(world.total(), 0);
    world.board.pay(1 << device);
    assert_eq!((world.seen(1), world.seen(63)), (1, 1));
    assert!(world.board.hot_mark(device, bits), "owed again");
    // A copy from before the bell has moved finds nothing.
    world.set_config(header::BAR0, Width::B4, 0xd000);
    assert_eq!(world.board.hot_bell(0xc004, &bells), None);
    world.board.follow_ports(&mut bells);
    assert_eq!(world.board.hot_bell(0xc004, &bells), None);
    assert_eq!(world.board.hot_bell(0xd004, &bells), Some((0, 2)));
    // The end of the ports.
    world.set_config(header::BAR0, Width::B4, 0xff00);
    world.board.follow_ports(&mut bells);
    assert_eq!(world.board.hot_bell(0xfffc, &bells), Some((0, 1 << 63)));
}

/// Two CPUs mark, by port and by memory, while a third moves the BAR to and fro. Each mark at the
/// right place is seen; none at a place that was left before.
#[test]
fn no_mark_is_lost_and_none_comes_from_an_old_place() {
    const ROUNDS: u32 = 2_000;
    let world = Arc::new(world());
    world.set_config(header::BAR0, Width::B4, 0xc000);
    world.set_config(header::BAR0 + 4, Width::B4, 0xd000_0000);
    world.set_command(ALL);
    let done = Arc::new(AtomicBool::new(false));
    // The place of the BAR, and how often it was there: odd while it moves.
    let place = Arc::new(AtomicU64::new(0xc000 << 32));
    let mover = {
        let (world, done, place) = (Arc::clone(&world), Arc::clone(&done), Arc::clone(&place));
        thread::spawn(move || {
            let mut turn = 0_u64;
            while !done.load(Ordering::SeqCst) {
                let to: u32 = if turn.is_multiple_of(2) { 0xe000 } else { 0xc000 };
                let old = place.fetch_or(1, Ordering::SeqCst);
                world.set_config(header::BAR0, Width::B4, to);
                turn += 1;
                let count = (old & 0xffff_ffff) + 2;
                place.store(u64::from(to) << 32 | count, Ordering::SeqCst);
            }
        })
    };
    let ringer = |bit: u16, by_memory: bool| {
        let (world, place) = (Arc::clone(&world), Arc::clone(&place));
        thread::spawn(move || {
            let mut bells = HotPorts::default();
            let mut counted = 0;
            let count = |world: &World| world.seen(bit.into());
            while counted < ROUNDS {
                let before = place.load(Ordering::SeqCst);
                let (port, other) = match before >> 32 {
                    0xc000 => (0xc000, 0xe000),
                    _ => (0xe000, 0xc000),
                };
                // A mark of the round before, which a move has cut short, may still wait.
                world.device.turn();
                let rung = count(&world);
                if by_memory {
                    world.store(0xd000_0000 + 4 * u64::from(bit), 0);
                } else {
                    world.board.follow_ports(&mut bells);
                    let ring = |port: u16| match world.board.hot_bell(port, &bells) {
                        Some((device, bits)) => {
                            if world.board.hot_mark(device, bits) {
                                world.board.pay(1 << device);
                            }
                        }
                        None => world.out(port),
                    };
                    ring(other + 4 * bit);
                    let strays = count(&world) - rung;
                    if place.load(Ordering::SeqCst) == before && before & 1 == 0 {
                        assert_eq!(strays, 0, "rung where it no longer was");
                    }
                    ring(port + 4 * bit);
                }
                if by_memory || place.load(Ordering::SeqCst) == before && before & 1 == 0 {
                    while count(&world) == rung {
                        thread::yield_now();
                    }
                    counted += 1;
                }
            }
        })
    };
    let ringers = [ringer(1, false), ringer(2, false), ringer(3, true)];
    for ringer in ringers {
        ringer.join().unwrap();
    }
    done.store(true, Ordering::SeqCst);
    mover.join().unwrap();
}

const TABLE: u64 = 0xd100_0000;

fn with_msix() -> (World, u8) {
    let world = world();
    world.set_config(header::BAR0 + 8, Width::B4, TABLE.low32());
    world.set_command(ALL);
    let capability = world.capability(0x11);
    assert_eq!(world.config(capability + 2, Width::B2), 63, "64 vectors");
    (world, capability)
}

fn set_vector(world: &World, n: u64, vector: u8, masked: bool) {
    let at = TABLE + 16 * n;
    world.store(at, 0xfee0_0000);
    world.store(at + 4, 0);
    world.store(at + 8, vector.into());
    world.store(at + 12, masked.into());
}

#[test]
fn msix_masks_keeps_and_sends() {
    let (world, capability) = with_msix();
    let notify = |vector| world.device.pci().notify(vector);
    let pending = |n: u64| {
        let at = GuestPhysAddr::new(TABLE + 0x800 + n / 64 * 8);
        world.board.mmio_read(at, Width::B8, || NOW) >> (n % 64) & 1
    };
    set_vector(&world, 0, 0x40, false);
    set_vector(&world, 63, 0x3f, true);
    notify(0);
    assert_eq!(world.vectors(), NONE, "not enabled");
    world.set_config(capability + 2, Width::B2, 1 << 15);
    assert_eq!(world.vectors(), NONE, "it was lost");
    notify(0);
    notify(63);
    notify(64);
    assert_eq!(world.vectors(), [0x40]);
    assert_eq!((pending(0), pending(63)), (0, 1));
    world.store(TABLE + 16 * 63 + 12, 0);
    assert_eq!((world.vectors(), pending(63)), (std::vec![0x3f], 0));
    // All at once.
    world.set_config(capability + 2, Width::B2, 3 << 14);
    notify(0);
    notify(63);
    assert_eq!((world.vectors(), pending(0), pending(63)), (NONE.to_vec(), 1, 1));
    world.store(TABLE + 12, 1);
    world.set_config(capability + 2, Width::B2, 1 << 15);
    assert_eq!(world.vectors(), [0x3f]);
    // A message that waits goes by the entry's data when it is sent.
    world.store(TABLE + 8, 0x50);
    let at = GuestPhysAddr::new(TABLE + 8);
    world.board.mmio_write(at, Width::B8, 0x51, || NOW);
    assert_eq!(world.vectors(), [0x51], "data and mask in one access");
    assert_eq!(world.board.mmio_read(at, Width::B8, || NOW), 0x51);
    assert_eq!(world.board.mmio_read(GuestPhysAddr::new(TABLE + 2), Width::B2, || NOW), 0);
    // Neither without leave to write memory, nor to where no APIC is.
    world.set_command(command::MEMORY_SPACE);
    notify(0);
    world.set_command(ALL);
    world.store(TABLE, 0x1000);
    notify(0);
    assert_eq!(world.vectors(), NONE);
}

#[test]
fn msi_masks_keeps_and_sends() {
    let world = world();
    world.set_command(ALL);
    let at = world.capability(5);
    assert_eq!(world.config(at + 2, Width::B2), 0x184, "four messages, 64 bits, masks");
    world.set_config(at + 4, Width::B4, 0xfee0_0003);
    assert_eq!(world.config(at + 4, Width::B4), 0xfee0_0000);
    world.set_config(at + 0xc, Width::B2, 0x63);
    let notify = |message| world.device.pci().notify(message);
    notify(1);
    assert_eq!(world.vectors(), NONE, "not enabled");
    // One message of four: all become that one, whose data is the guest's.
    world.set_config(at + 2, Width::B2, 1);
    notify(0);
    notify(2);
    assert_eq!(world.vectors(), [0x63]);
    // Two, of more than there are.
    world.set_config(at + 2, Width::B2, 5 << 4 | 1);
    notify(2);
    assert_eq!(world.vectors(), [0x62]);
    notify(4);
    assert_eq!(world.vectors(), [0x60]);
    world.set_config(at + 0x10, Width::B4, u32::MAX);
    assert_eq!(world.config(at + 0x10, Width::B4), 0xf);
    notify(3);
    assert_eq!((world.vectors(), world.config(at + 0x14, Width::B4)), (NONE.to_vec(), 8));
    world.set_config(at + 0x10, Width::B4, 7);
    assert_eq!((world.vectors(), world.config(at + 0x14, Width::B4)), (std::vec![0x63], 0));
}

#[test]
fn the_line_is_quiet_while_messages_are_used() {
    let (world, capability) = with_msix();
    let asserted = || world.fabric.lines().pins.iter().any(|pin| pin.asserted);
    let shown = || world.config(header::STATUS, Width::B2) >> 3 & 1;
    assert_eq!(world.config(header::INTERRUPT_PIN, Width::B1), 1);
    world.device.pci().set_intx(true);
    assert_eq!((asserted(), shown()), (true, 1));
    world.set_command(ALL | command::INTERRUPT_DISABLE);
    assert_eq!((asserted(), shown()), (false, 1));
    world.set_command(ALL);
    assert!(asserted());
    world.set_config(capability + 2, Width::B2, 1 << 15);
    assert!(!asserted());
    world.set_config(capability + 2, Width::B2, 0);
    assert!(asserted());
    world.device.pci().reset();
    assert_eq!((asserted(), shown()), (false, 0));
}

/// A guest may put a BAR where a device of the PC is.
#[test]
fn fixed_devices_go_before_bars() {
    let world = world();
    world.set_config(header::BAR0, Width::B4, 0);
    world.set_command(ALL);
    let mut bells = HotPorts::default();
    world.board.follow_ports(&mut bells);
    for port in [0xa0, 0x60, 0xf0] {
        assert_eq!(world.board.hot_bell(port, &bells), None, "{port:#x}");
    }
    assert_eq!(world.board.port_read(0xf0, Width::B2, NOW), 0xffff, "no wider than asked for");
    let _ = world.board.port_write(0xa0, Width::B1, 0, NOW);
    assert_eq!(world.total(), 0, "that is an 8259's");
    let _ = world.board.port_write(0xf0, Width::B1, 0, NOW);
    assert_eq!(world.total(), 1, "here nobody else is");
}

/// One CPU masks, unmasks and moves a vector, another one sends by it. No interrupt comes while it
/// is masked, and one that came meanwhile comes then.
#[test]
fn masks_hold_under_fire() {
    const ROUNDS: u32 = 500;
    let (world, capability) = with_msix();
    world.set_config(capability + 2, Width::B2, 1 << 15);
    set_vector(&world, 0, 0x40, true);
    let world = Arc::new(world);
    let (sent, done) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicBool::new(false)));
    let sender = {
        let (world, sent, done) = (Arc::clone(&world), Arc::clone(&sent), Arc::clone(&done));
        thread::spawn(move || {
            while !done.load(Ordering::SeqCst) {
                world.device.pci().notify(0);
                sent.fetch_add(1, Ordering::SeqCst);
            }
        })
    };
    for round in 0..ROUNDS {
        let vector: u8 = if round.is_multiple_of(2) { 0x40 } else { 0x41 };
        world.store(TABLE + 8, vector.into());
        // Interrupts of the last round are taken; the vector is masked.
        let before = world.vectors();
        assert!(before.iter().all(|seen| *seen == vector ^ 1), "{before:?}");
        let start = sent.load(Ordering::SeqCst);
        while sent.load(Ordering::SeqCst) < start + 2 {
            thread::yield_now();
        }
        assert_eq!(world.vectors(), NONE, "masked");
        world.store(TABLE + 12, 0);
        assert_eq!(world.vectors(), [vector], "it waited");
        world.store(TABLE + 12, 1);
    }
    done.store(true, Ordering::SeqCst);
    sender.join().unwrap();
}

proptest! {
    /// Whatever is written to a device's configuration space, table and ports, nothing panics, and
    /// a copy of the doorbells' ports finds what the bus finds.
    #[test]
    fn any_access(
        accesses in prop::collection::vec((0_u8..4, any::<u8>(), any::<u32>(), 0_u8..3), 0..100),
    ) {
        let world = world();
        let mut bells = HotPorts::default();
        for (kind, at, value, width) in accesses {
            let width = [Width::B1, Width::B2, Width::B4][usize::from(width)];
            match kind {
                0 => world.set_config(at, width, value),
                1 => world.set_config(header::COMMAND, Width::B2, value & 7),
                2 => world.board.mmio_write(
                    GuestPhysAddr::new(u64::from(value) & !0xfff | u64::from(at)),
                    width,
                    value.into(),
                    || NOW,
                ),
                _ => {
                    world.set_config(header::BAR0, Width::B4, value & 0xffff);
                    world.board.follow_ports(&mut bells);
                    let port = (value & 0xff00).low16() | u16::from(at);
                    let found = world.board.hot_bell(port, &bells);
                    let before = world.total();
                    let _ = world.board.port_write(port, width, 0, NOW);
                    if let Some((_, bits)) = found {
                        prop_assert_eq!(world.total(), before + 1);
                        prop_assert_eq!(bits, 1 << (at >> 2));
                    }
                }
            }
            let _ = world.config(at, Width::B4);
        }
    }
}
