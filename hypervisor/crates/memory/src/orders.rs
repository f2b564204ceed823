//! Tests of all orders in which CPUs may meet: small models of what they share without a lock, or
//! with one for a moment only.

use crate::debts::Debts;
use crate::frames::{Frame, FrameAllocator, Owner, Source};
use crate::limbo::{Limbo, Thing};
use crate::slots::{Region, Regions, Rights, View};
use loom::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use loom::sync::{Arc, Mutex};
use loom::thread;
use std::vec::Vec;
use x86defs::GuestPhysAddr;
use x86defs::addr::Hfn;

/// All orders in which a thread is interrupted so often at the most.
fn all_orders(interruptions: usize, model: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(interruptions);
    builder.check(model);
}

/// A reader of the regions sees those of before or those of after, and no mixture.
#[test]
fn a_view_is_of_one_moment() {
    let regions = |start: u64| -> Regions {
        let all = [(start, 0x10_0000 + start), (start + 0x8000, start)];
        let region =
            |(start, offset)| Region { start, end: start + 0x1000, offset, rights: Rights::Ram };
        all.into_iter().map(region).collect()
    };
    all_orders(3, move || {
        let view = Arc::new(View::default());
        view.publish(&regions(0x1000));
        let other = view.clone();
        let changer = thread::spawn(move || other.publish(&regions(0x1800)));
        for (at, seen) in
            [(0x1800, [0x10_0000 + 0x1800, 0x10_0000 + 0x1800]), (0x9800, [0x1800, 0x1800])]
        {
            let found = view.find(GuestPhysAddr::new(at)).unwrap();
            assert!(seen.contains(&found.place(at)), "{at:#x}: {found:x?}");
            let whole = [found.start, found.end, found.offset];
            let first = [[0x1000, 0x2000, 0x10_1000], [0x9000, 0xa000, 0x1000]];
            let second = [[0x1800, 0x2800, 0x10_1800], [0x9800, 0xa800, 0x1800]];
            assert!(first.contains(&whole) || second.contains(&whole), "{whole:x?}");
        }
        changer.join().unwrap();
        assert!(view.find(GuestPhysAddr::new(0x1000)).is_none());
    });
}

/// Somebody finds nothing where a region has been: when the change is over, which takes the lock,
/// the generation has risen.
#[test]
fn what_is_not_there_any_more_has_changed() {
    all_orders(3, || {
        let view = Arc::new(View::default());
        let debts = Arc::new(Debts::new(1));
        let lock = Arc::new(Mutex::new(()));
        let region = Region { start: 0x1000, end: 0x2000, offset: 0, rights: Rights::Ram };
        view.publish(&core::iter::once(region).collect());
        let seen = debts.generation();
        let changer = {
            let (view, debts, lock) = (view.clone(), debts.clone(), lock.clone());
            thread::spawn(move || {
                let _held = lock.lock().unwrap();
                view.publish(&Regions::new());
                debts.owe();
            })
        };
        if view.find(GuestPhysAddr::new(0x1000)).is_none() {
            let _held = lock.lock().unwrap();
            assert_ne!(debts.generation(), seen, "an exit of the past");
        }
        changer.join().unwrap();
    });
}

/// A page table's entry, and the frame behind it, which must not be used when it is free.
struct Page {
    debts: Debts,
    /// Behind the guest's lock.
    limbo: Mutex<Limbo>,
    present: AtomicBool,
    /// How often the frame was freed.
    freed: AtomicU64,
}

impl Page {
    fn new(cpus: usize) -> Self {
        Self {
            debts: Debts::new(cpus),
            limbo: Mutex::new(Limbo::default()),
            present: AtomicBool::new(true),
            freed: AtomicU64::new(0),
        }
    }

    fn take_away(&self) {
        let mut limbo = self.limbo.lock().unwrap();
        self.present.store(false, Ordering::Release);
        assert!(limbo.put(self.debts.next_generation(), Thing::Block(Hfn::new(1))));
        self.debts.set_waiting(true);
        self.debts.owe();
        drop(limbo);
        self.settle();
    }

    fn settle(&self) {
        if !self.debts.has_waiting() {
            return;
        }
        let mut limbo = self.limbo.lock().unwrap();
        while limbo.take(|generation| self.debts.is_settled(generation)).is_some() {
            self.freed.fetch_add(1, Ordering::AcqRel);
        }
        self.debts.set_waiting(!limbo.is_empty());
    }

    /// The CPU has the entry cached, and uses the frame.
    fn use_cached(&self, cached: bool) {
        if cached {
            assert_eq!(self.freed.load(Ordering::Acquire), 0, "a free frame was used");
        }
    }
}

/// A CPU comes, uses what it has cached, pays, and leaves, while another one takes the page away.
#[test]
fn what_a_cpu_has_cached_is_not_freed() {
    all_orders(3, || {
        let page = Arc::new(Page::new(1));
        let other = page.clone();
        let changer = thread::spawn(move || other.take_away());
        let mut paid = page.debts.enter(0);
        // From here on the space is loaded.
        let mut cached = page.present.load(Ordering::Acquire);
        page.use_cached(cached);
        page.debts.pay(0, paid);
        page.use_cached(cached);
        let now = page.debts.generation();
        if now != paid {
            // The CPU's caches are empty from here on.
            page.debts.pay(0, now);
            paid = now;
            page.settle();
            cached = page.present.load(Ordering::Acquire);
            assert!(!cached, "it was gone before the generation rose");
        }
        page.use_cached(cached);
        page.debts.leave(0);
        page.settle();
        changer.join().unwrap();
        page.settle();
        assert!(paid <= 2);
        assert_eq!(page.freed.load(Ordering::Acquire), 1, "it is freed once");
    });
}

/// The last one that lets go frees what was taken away, whoever that is: nobody asks later.
#[test]
fn the_last_one_frees() {
    all_orders(2, || {
        let page = Arc::new(Page::new(2));
        let cpu = |number: usize| {
            let page = page.clone();
            move || {
                let paid = page.debts.enter(number);
                page.debts.pay(number, paid);
                page.debts.leave(number);
                page.settle();
            }
        };
        let others = [thread::spawn(cpu(0)), thread::spawn(cpu(1))];
        page.take_away();
        for other in others {
            other.join().unwrap();
        }
        assert_eq!(page.freed.load(Ordering::Acquire), 1, "it is freed once");
    });
}

/// A frame that a device has pinned is nobody else's, in whatever order its owner gives it back
/// and the device has done.
#[test]
fn a_pinned_frame_is_nobody_elses() {
    all_orders(3, || {
        let table = (0..2).map(|_| Frame::ABSENT).collect::<Vec<_>>().leak();
        let mut frames = FrameAllocator::new(table);
        frames.add(Hfn::new(1), 1);
        let (owner, other) = (Owner(16), Owner(17));
        let frame = frames.allocate(0, owner, Source::Spare).unwrap();
        let frames = Arc::new(Mutex::new(frames));
        let busy = Arc::new(AtomicBool::new(false));
        let device = {
            let (frames, busy) = (frames.clone(), busy.clone());
            thread::spawn(move || {
                let pinned = frames.lock().unwrap().pin(frame, owner).is_ok();
                if pinned {
                    busy.store(true, Ordering::Release);
                    thread::yield_now();
                    busy.store(false, Ordering::Release);
                    frames.lock().unwrap().unpin(frame).unwrap();
                }
            })
        };
        frames.lock().unwrap().free(frame, 0, owner).unwrap();
        let taken = frames.lock().unwrap().allocate(0, other, Source::Spare);
        if taken.is_some() {
            assert!(!busy.load(Ordering::Acquire), "a device still uses it");
        }
        device.join().unwrap();
        let mut frames = frames.lock().unwrap();
        assert_eq!(taken.is_some(), frames.allocate(0, other, Source::Spare).is_none());
    });
}
