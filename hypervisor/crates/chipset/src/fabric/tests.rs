//! Tests of mailboxes and routes, with real threads where it matters.

extern crate std;

use super::route::MAX_VCPUS;
use super::*;
use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU64, Ordering};
use devices::lapic::{
    ApicIdentity, ApicMode, DeliveryMode, Destination, DestinationMode, InterruptMessage,
    IpiCommand, Shorthand, Trigger,
};
use spin::Mutex;
use std::thread;
use std::time::{Duration, Instant};
use x86defs::Width;
use x86defs::time::Nanos;

fn message(mode: DeliveryMode, vector: u8, destination: Destination) -> InterruptMessage {
    InterruptMessage { destination, mode, vector, trigger: Trigger::Edge }
}

fn physical(id: u8) -> Destination {
    Destination::from_xapic(id, DestinationMode::Physical)
}

fn logical(id: u8) -> Destination {
    Destination::from_xapic(id, DestinationMode::Logical)
}

#[test]
fn the_first_post_needs_a_kick() {
    let posted = Posted::new();
    assert!(posted.is_quiet());
    assert!(posted.post(0x41, Trigger::Edge));
    assert!(!posted.post(0xc0, Trigger::Level), "the kick is under way");
    assert!(!posted.request(Requests::NMI));
    let taken = posted.take_requests();
    assert_eq!(taken.requests, Requests::INTERRUPT | Requests::NMI);
    assert_eq!(taken.start_up, None);
    assert_eq!(posted.take(), ([0, 2, 0, 1], [0, 0, 0, 1]));
    assert_eq!(posted.take(), ([0; 4], [0; 4]));
    assert!(posted.post(0xc0, Trigger::Edge), "and the next one too");
    assert_eq!(posted.take(), ([0, 0, 0, 1], [0; 4]), "an edge now");
}

#[test]
fn init_and_start_up_in_order() {
    let posted = Posted::new();
    assert!(posted.request_init());
    assert!(!posted.request_start_up(0x9a));
    assert!(!posted.request_start_up(0x9b), "void");
    let taken = posted.take_requests();
    assert_eq!(taken.requests, Requests::INIT | Requests::START_UP);
    assert_eq!(taken.start_up, Some(0x9a));
    assert!(posted.request_start_up(0xff));
    assert!(!posted.request_init());
    let taken = posted.take_requests();
    assert_eq!((taken.requests, taken.start_up), (Requests::INIT, None));
    assert!(posted.request_start_up(0));
    assert_eq!(posted.take_requests().start_up, Some(0));
}

#[test]
fn delivery_by_mode() {
    for (mode, expected) in [
        (DeliveryMode::Fixed, Requests::INTERRUPT),
        (DeliveryMode::LowestPriority, Requests::INTERRUPT),
        (DeliveryMode::Nmi, Requests::NMI),
        (DeliveryMode::Init, Requests::INIT),
        (DeliveryMode::StartUp, Requests::START_UP),
        (DeliveryMode::ExtInt, Requests::PIC),
        (DeliveryMode::Smi, Requests::empty()),
        (DeliveryMode::Reserved, Requests::empty()),
    ] {
        let posted = Posted::new();
        let kick = posted.deliver(&message(mode, 0x20, physical(0)));
        assert_eq!(posted.take_requests().requests, expected, "{mode:?}");
        assert_eq!(kick, !expected.is_empty());
    }
}

fn xapic(id: u32, ldr: u8) -> ApicIdentity {
    ApicIdentity::new()
        .with_id(id)
        .with_xapic_ldr(ldr)
        .with_flat(true)
        .with_mode(ApicMode::XApic)
        .with_software_enabled(true)
}

fn four() -> Routes {
    let routes = Routes::new();
    for index in 0..4 {
        routes.publish(index, xapic(u32::try_from(index).unwrap(), 1 << index));
    }
    routes
}

#[test]
fn physical_and_logical() {
    let routes = four();
    let fixed = |to| routes.route(&message(DeliveryMode::Fixed, 0x40, to));
    assert_eq!(fixed(physical(2)), VcpuSet(0b100));
    assert_eq!(fixed(physical(4)), VcpuSet::EMPTY);
    assert_eq!(fixed(physical(0xff)), VcpuSet(0b1111));
    assert_eq!(fixed(logical(0b1010)), VcpuSet(0b1010));
    assert_eq!(fixed(logical(0xf0)), VcpuSet::EMPTY);
    // Identities need not be indices.
    routes.publish(0, xapic(2, 0x10));
    routes.publish(2, xapic(9, 0x20));
    assert_eq!(fixed(physical(2)), VcpuSet(0b0001));
    assert_eq!(fixed(physical(9)), VcpuSet(0b0100));
    routes.publish(3, xapic(3, 8).with_mode(ApicMode::Disabled));
    assert_eq!(fixed(physical(0xff)), VcpuSet(0b0111));
    routes.publish(64, xapic(64, 1));
    assert_eq!(fixed(physical(64)), VcpuSet::EMPTY);
}

#[test]
fn sixty_four_in_x2apic_mode() {
    let routes = Routes::new();
    for index in 0..MAX_VCPUS {
        let id = u32::try_from(index).unwrap();
        routes.publish(index, xapic(id, 0).with_mode(ApicMode::X2Apic));
    }
    let to = |id, mode| {
        routes.route(&message(DeliveryMode::Fixed, 0x40, Destination::from_x2apic(id, mode)))
    };
    assert_eq!(to(63, DestinationMode::Physical), VcpuSet(1 << 63));
    assert_eq!(to(u32::MAX, DestinationMode::Physical), VcpuSet(u64::MAX));
    assert_eq!(to(0x0003_8001, DestinationMode::Logical), VcpuSet(1 << 63 | 1 << 48));
    assert!(VcpuSet(1 << 63 | 1).into_iter().eq([0, 63]));
}

#[test]
fn shorthands() {
    let routes = four();
    let to = |shorthand| {
        let message = message(DeliveryMode::Fixed, 0x40, physical(3));
        routes.route_ipi(1, &IpiCommand { message, shorthand })
    };
    assert_eq!(to(Shorthand::None), VcpuSet(0b1000));
    assert_eq!(to(Shorthand::ToSelf), VcpuSet(0b0010));
    assert_eq!(to(Shorthand::AllIncludingSelf), VcpuSet(0b1111));
    assert_eq!(to(Shorthand::AllExcludingSelf), VcpuSet(0b1101));
}

#[test]
fn lowest_priority_picks_one_and_takes_turns() {
    let routes = four();
    let pick = || routes.route(&message(DeliveryMode::LowestPriority, 0x40, logical(0b1101)));
    let mut seen = 0;
    for _ in 0..MAX_VCPUS {
        let set = pick();
        assert_eq!(set.0.count_ones(), 1);
        seen |= set.0;
    }
    assert_eq!(seen, 0b1101, "all of equal priority get a turn");
    routes.publish(0, xapic(0, 1).with_priority(0x30));
    routes.publish(2, xapic(2, 4).with_priority(0x20));
    routes.publish(3, xapic(3, 8).with_priority(0x40));
    assert!((0..8).all(|_| pick() == VcpuSet(0b0100)));
    for index in [0, 2, 3] {
        routes.publish(index, routes.identity(index).with_software_enabled(false));
    }
    assert_eq!(pick(), VcpuSet::EMPTY, "nobody accepts vectors");
}

#[test]
fn sending_kicks_who_was_quiet() {
    let kicked = Arc::new(Mutex::new(Vec::new()));
    let kick = {
        let kicked = Arc::clone(&kicked);
        Kick(Box::new(move |index| kicked.lock().push(index)))
    };
    let fabric = Fabric::new(4, kick);
    for index in 0..4 {
        fabric.routes().publish(index, xapic(u32::try_from(index).unwrap(), 1 << index));
    }
    fabric.mailbox(2).unwrap().request(Requests::KICK);
    let fixed = message(DeliveryMode::Fixed, 0x40, physical(0xff));
    fabric.send(&fixed, VcpuSet(0b10_1110));
    assert_eq!(*kicked.lock(), [1, 3]);
    assert!(fabric.mailbox(0).unwrap().is_quiet());
    assert_eq!(fabric.mailbox(2).unwrap().take().0, [0, 1, 0, 0]);
    fabric.deliver(&message(DeliveryMode::Fixed, 0x41, physical(0)));
    assert_eq!(*kicked.lock(), [1, 3, 0]);
    assert_eq!(fabric.mailbox(0).unwrap().take().0, [0, 2, 0, 0]);
}

#[test]
fn the_first_vcpu_looks_when_the_8259s_change() {
    let fabric = Fabric::new(2, Kick(Box::new(|index| assert_eq!(index, 0))));
    let told = || fabric.mailbox(0).unwrap().take_requests().requests.contains(Requests::KICK);
    // The BIOS's set-up of the pair, with line 4 alone unmasked.
    for (port, value) in [(0, 0x11), (1, 8), (1, 4), (1, 1), (1, 0xef)] {
        fabric.pic_write(port, Width::B1, value, Nanos(0)).unwrap();
    }
    fabric.set_line(3, true);
    assert!(!fabric.pic_output() && !told(), "masked");
    fabric.set_line(4, true);
    assert!(fabric.pic_output() && told());
    fabric.set_line(4, true);
    assert!(!told(), "it was so before");
    assert_eq!(fabric.pic_acknowledge(), 0xc);
    assert!(!fabric.pic_output() && !told(), "whoever acknowledges looks itself");
}

/// Whatever enumerates PCI programs its inputs so, and an idle one must not look asserted then.
#[test]
fn pci_inputs_are_active_low() {
    let fabric = Fabric::new(1, Kick(Box::new(|_| ())));
    fabric.routes().publish(0, xapic(0, 1));
    let came = || fabric.mailbox(0).unwrap().take().0;
    for pin in 16..24 {
        for (register, value) in [(0x11, 0), (0x10, 1 << 15 | 1 << 13 | 0x50)] {
            fabric.ioapic_write(0, Width::B4, register + 2 * pin);
            fabric.ioapic_write(0x10, Width::B4, value);
        }
    }
    assert_eq!(came(), [0; 4], "idle");
    fabric.set_intx(3, 0, true);
    assert_eq!(came(), [0, 1 << 16, 0, 0]);
    fabric.set_intx(3, 0, false);
    fabric.end_of_interrupt(0x50);
    assert_eq!(came(), [0; 4], "idle again");
}

#[test]
fn devices_share_inputs_of_the_io_apic() {
    let fabric = Fabric::new(1, Kick(Box::new(|_| ())));
    let asserted = || -> Vec<u8> {
        fabric.lines().pins.iter().filter(|pin| pin.asserted).map(|pin| pin.number).collect()
    };
    // INTA# of slot 3, and INTD# of slot 8 (pin 3 of eight pins).
    fabric.set_intx(3, 0, true);
    fabric.set_intx(8, 3, true);
    assert_eq!(asserted(), [19]);
    fabric.set_intx(3, 0, false);
    assert_eq!(asserted(), [19], "the other one still asks");
    fabric.set_intx(3, 0, false);
    fabric.set_intx(31, 2, true);
    assert_eq!(asserted(), [17, 19]);
    fabric.set_intx(8, 3, false);
    assert_eq!(asserted(), [17]);
}

/// Posters wait for their vector to be taken before they post the next one; the
/// vCPU sleeps whenever it is quiet and only a kick wakes it. One lost
/// wake-up stops the whole.
#[test]
fn no_wake_up_is_lost() {
    // Alone, no other poster's request can make up for a lost one.
    race::<1>(100_000);
    race::<4>(20_000);
}

fn race<const POSTERS: usize>(rounds: u64) {
    const PATIENCE: Duration = Duration::from_secs(20);

    struct Shared<const POSTERS: usize> {
        posted: Posted,
        /// How often each poster's vector was taken.
        taken: [AtomicU64; POSTERS],
    }
    let shared =
        Arc::new(Shared { posted: Posted::new(), taken: [const { AtomicU64::new(0) }; POSTERS] });
    let vector = |poster: usize| u8::try_from(0x30 + 0x31 * poster).unwrap();

    let vcpu = {
        let shared = Arc::clone(&shared);
        thread::spawn(move || {
            let mut total = 0;
            while total < rounds * POSTERS as u64 {
                // Spin a little, to meet posters half-way, before going to sleep.
                if (0..200).all(|_| shared.posted.is_quiet()) {
                    let asleep = Instant::now();
                    thread::park_timeout(PATIENCE);
                    assert!(asleep.elapsed() < PATIENCE, "a wake-up was lost");
                    continue;
                }
                if !shared.posted.take_requests().requests.contains(Requests::INTERRUPT) {
                    continue;
                }
                let (pending, level) = shared.posted.take();
                for poster in 0..POSTERS {
                    let (word, bit) = (usize::from(vector(poster) >> 6), vector(poster) & 63);
                    if pending[word] >> bit & 1 != 0 {
                        // Odd rounds are levels.
                        let round = shared.taken[poster].fetch_add(1, Ordering::Release);
                        assert_eq!(level[word] >> bit & 1, round & 1);
                        total += 1;
                    }
                }
            }
        })
    };
    let posters: Vec<_> = (0..POSTERS)
        .map(|poster| {
            let (shared, vcpu) = (Arc::clone(&shared), vcpu.thread().clone());
            thread::spawn(move || {
                for round in 0..rounds {
                    let trigger = Trigger::from_level_bit(round & 1 != 0);
                    if shared.posted.post(vector(poster), trigger) {
                        vcpu.unpark();
                    }
                    let start = Instant::now();
                    while shared.taken[poster].load(Ordering::Acquire) == round {
                        assert!(start.elapsed() < PATIENCE * 2, "a vector was lost");
                        thread::yield_now();
                    }
                }
            })
        })
        .collect();
    for poster in posters {
        poster.join().unwrap();
    }
    vcpu.join().unwrap();
    assert!(shared.posted.take().0 == [0; 4]);
}
