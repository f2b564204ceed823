//! Tests of frames on their way to a guest, and of its books.

use super::*;
use crate::holdings::{Piece, STOCK};
use proptest::prelude::*;
use std::sync::Condvar;
use std::thread;
use std::time::Duration;

/// A place where threads wait for each other, but not forever.
#[derive(Default)]
struct Meeting(Mutex<usize>, Condvar);

impl Meeting {
    /// Whether `wanted` are here before the time is up.
    fn meet(&self, wanted: usize) -> bool {
        let mut here = self.0.lock().unwrap();
        *here += 1;
        self.1.notify_all();
        let limit = Duration::from_secs(3);
        let (here, _) = self.1.wait_timeout_while(here, limit, |here| *here < wanted).unwrap();
        *here >= wanted
    }
}

/// RAM whose blocks all fit.
const EVEN: u64 = 8 * MIB;
/// RAM whose last pages can't be a block.
const ODD: u64 = 2 * MIB + 512 * 4096 - 4096;

/// Two vCPUs back pages at once, and are zeroing at the same time.
fn two_at_once(ram: u64, pages: [u64; 2]) -> (Guest, [Result<Populated, MemoryError>; 2]) {
    let (meeting, met) = (Arc::new(Meeting::default()), Arc::new(AtomicU64::new(0)));
    let mut guest = Guest::new(ram, 4 * BLOCK_FRAMES, 8 * BLOCK_FRAMES, 40);
    let count = met.clone();
    guest.zeroing = Box::new(move || {
        count.fetch_add(u64::from(meeting.meet(2)), Ordering::Relaxed);
        0
    });
    let backings = thread::scope(|scope| {
        let other = scope.spawn(|| guest.populate(pages[1], Tree::Nested));
        [guest.populate(pages[0], Tree::Nested), other.join().unwrap()]
    });
    assert_eq!(met.load(Ordering::Relaxed), 2, "one waited for the other one's zeroing");
    (guest, backings)
}

#[test]
fn two_zero_different_pages_at_the_same_time() {
    for (ram, pages, frames) in [(EVEN, [0, 2 * MIB], BLOCK_FRAMES), (ODD, [2 * MIB, 3 * MIB], 1)] {
        let (guest, backings) = two_at_once(ram, pages);
        assert_eq!(backings, [Ok(Populated::Now); 2]);
        assert_eq!(guest.audit(ram, 0), 2 * frames);
        guest.end(40);
    }
}

#[test]
fn of_two_frames_for_one_page_one_is_left_over() {
    for (ram, frames, stocked) in [(EVEN, BLOCK_FRAMES, BLOCK_FRAMES), (ODD, 1, 0)] {
        let (guest, backings) = two_at_once(ram, [2 * MIB; 2]);
        let (now, before) = (Ok(Populated::Now), Ok(Populated::Before));
        assert!(backings.contains(&now) && backings.contains(&before));
        assert_eq!(guest.audit(ram, 0), frames);
        assert_eq!(guest.locked(|inside| inside.holdings().stocked()), stocked);
        guest.end(40);
    }
}

/// The places of the backing while the last frames are zeroed.
fn begin(guest: &Guest, at: u64, tree: Tree) -> Result<Admitted, MemoryError> {
    guest.locked(|inside| admit(guest, inside, gpa(at), tree, Access::Read))
}

fn wanted(guest: &Guest, at: u64) -> Wanted {
    match begin(guest, at, Tree::Nested) {
        Ok(Admitted::Wanted(wanted)) => wanted,
        other => panic!("{other:?}"),
    }
}

fn finish(guest: &Guest, at: u64, wanted: Wanted, zeroed: bool) -> Result<Populated, MemoryError> {
    let len = usize::try_from(wanted.size.bytes()).unwrap();
    let zeroed = zeroed && guest.zero(wanted.first, wanted.size, 0, len) == 0;
    let access = (gpa(at), Tree::Nested, Access::Read);
    guest.locked(|inside| arrive(guest, inside, wanted, zeroed, access))
}

/// A vCPU that finds no frame while the last ones are being zeroed has to try again: they may be
/// for its own page.
#[test]
fn the_last_frames_are_not_missed_while_they_are_zeroed() {
    for (promised, ram) in [(BLOCK_FRAMES, EVEN), (1, ODD)] {
        let guest = Guest::new(ram, promised, BLOCK_FRAMES, 40);
        let frame = wanted(&guest, 2 * MIB);
        for at in [2 * MIB, 3 * MIB] {
            assert_eq!(guest.populate(at, Tree::Nested), Ok(Populated::Soon));
        }
        assert_eq!(finish(&guest, 2 * MIB, frame, true), Ok(Populated::Now));
        assert_eq!(guest.populate(2 * MIB, Tree::Nested), Ok(Populated::Before));
        assert_eq!(guest.populate(2 * MIB, Tree::Window), Ok(Populated::Now));
        let last = if ram == EVEN { 4 * MIB } else { 3 * MIB };
        let gone = Err(MemoryError::NoFrame(gpa(last)));
        assert_eq!(guest.populate(last, Tree::Nested), gone);
        assert_eq!(guest.audit(ram, 0), promised);
        guest.end(40);
    }
}

#[test]
fn what_can_not_be_zeroed_is_only_promised_again() {
    for ram in [EVEN, ODD] {
        let mut guest = Guest::new(ram, BLOCK_FRAMES, BLOCK_FRAMES, 40);
        guest.zeroing = Box::new(|| 8);
        let gone = Err(MemoryError::NoFrame(gpa(2 * MIB)));
        assert_eq!(guest.populate(2 * MIB, Tree::Nested), gone);
        assert_eq!(guest.audit(ram, 0), 0);
        guest.zeroing = Box::new(|| 0);
        assert_eq!(guest.populate(2 * MIB, Tree::Nested), Ok(Populated::Now));
        guest.end(40);
    }
}

/// While a frame was zeroed for it, the page became a device's: the frame stays behind it.
#[test]
fn a_frame_that_comes_late_is_kept_behind_what_covers_it() {
    let mut guest = Guest::new(EVEN, 4 * BLOCK_FRAMES, 4 * BLOCK_FRAMES, 40);
    let frame = wanted(&guest, 2 * MIB + 4096);
    let over = 2 * MIB..4 * MIB;
    guest.lay_over(over.clone(), Some(Content::Devices));
    let refused = Err(MemoryError::NotRam(gpa(2 * MIB + 4096)));
    assert_eq!(finish(&guest, 2 * MIB + 4096, frame, true), refused);
    guest.lay_over(over, None);
    guest.zeroing = Box::new(|| panic!("it was zero"));
    assert_eq!(guest.populate(2 * MIB, Tree::Nested), Ok(Populated::Now));
    assert_eq!(guest.audit(EVEN, 0), BLOCK_FRAMES);
    guest.end(40);
}

/// The lock is free while a piece is zeroed ahead, and nobody takes the block meanwhile.
#[test]
fn zeroing_ahead_keeps_nobody_waiting() {
    let mut guest = Guest::new(1 << 31, 2 * BLOCK_FRAMES, 2 * BLOCK_FRAMES, 40);
    let meeting = Arc::new(Meeting::default());
    let met = Arc::new(AtomicU64::new(0));
    let count = met.clone();
    let pieces = AtomicU64::new(0);
    guest.zeroing = Box::new(move || {
        // The first piece, and the page of the other vCPU.
        if pieces.fetch_add(1, Ordering::Relaxed) < 2 {
            count.fetch_add(u64::from(meeting.meet(2)), Ordering::Relaxed);
        }
        0
    });
    thread::scope(|scope| {
        let other = scope.spawn(|| guest.populate(2 * MIB, Tree::Nested));
        while !zero_ahead(&guest) {
            thread::yield_now();
        }
        assert_eq!(other.join().unwrap(), Ok(Populated::Now));
    });
    assert_eq!(met.load(Ordering::Relaxed), 2, "one waited for the other one's zeroing");
    assert!(guest.locked(|inside| inside.holdings().has_begun()));
    while zero_ahead(&guest) {}
    guest.locked(|inside| {
        let holdings = inside.holdings();
        assert_eq!((holdings.stocked(), holdings.has_begun()), (BLOCK_FRAMES, false));
    });
    assert_eq!(guest.audit(8 * MIB, 0), BLOCK_FRAMES);
    // It is shown without being zeroed again, where tables are missing, too.
    guest.zeroing = Box::new(|| panic!("it was zero"));
    assert!(!touch(&guest, gpa(1 << 30)), "tables are missing");
    assert_eq!(guest.populate(1 << 30, Tree::Nested), Ok(Populated::Now));
    assert_eq!(guest.locked(|inside| inside.holdings().populated()), 2 * BLOCK_FRAMES);
    guest.end(40);
}

#[test]
fn a_touch_takes_what_was_zeroed_ahead() {
    let guest = Guest::new(EVEN, 4 * BLOCK_FRAMES, 4 * BLOCK_FRAMES, 40);
    guest.populate(0, Tree::Nested).unwrap();
    assert!(!touch(&guest, gpa(2 * MIB)), "nothing was zeroed ahead");
    while zero_ahead(&guest) {}
    assert!(touch(&guest, gpa(2 * MIB + 5000)));
    assert!(!touch(&guest, gpa(2 * MIB)), "it is there");
    assert_eq!(guest.query(2 * MIB + 4096, Tree::Window), None, "nobody has asked");
    assert_eq!(guest.populate(2 * MIB + 4096, Tree::Window), Ok(Populated::Now));
    guest.lay_over(4 * MIB..4 * MIB + 4096, memory(EVEN, Rights::Rom));
    assert!(!touch(&guest, gpa(4 * MIB)) && !touch(&guest, gpa(4 * MIB + 8192)));
    assert!(!touch(&guest, gpa(EVEN)), "no memory is there");
    assert_eq!(guest.audit(EVEN, 0), 2 * BLOCK_FRAMES);
    guest.end(40);
}

#[test]
fn a_frame_is_zero_before_it_is_shown_in_either_tree() {
    for tree in [Tree::Nested, Tree::Window] {
        let mut guest = Guest::new(EVEN, BLOCK_FRAMES, BLOCK_FRAMES, 40);
        let spy = guest.tables();
        let (window, nested) =
            guest.locked(|inside| (inside.parts.window.root(), inside.parts.nested.root()));
        guest.zeroing = Box::new(move || {
            // Neither a guest nor the hypervisor sees a byte of the page by now.
            let window = Mapper::<HostTable>::from_root(window, PageSize::Size2M);
            let nested = Mapper::<Npt>::from_root(nested, PageSize::Size2M);
            for at in (6 * MIB..8 * MIB).step_by(4096) {
                assert_eq!(window.query(&spy, WINDOW.at(gpa(at), 1).unwrap()), None);
                assert_eq!(nested.query(&spy, at), None);
            }
            0
        });
        assert_eq!(guest.populate(7 * MIB, tree), Ok(Populated::Now));
        let page = guest.query(7 * MIB, tree).unwrap();
        assert_eq!(page.hpa, HostPhysAddr::new(FRAMES * 4096 + MIB));
        guest.end(40);
    }
}

#[test]
fn without_tables_nothing_is_shown() {
    // Two roots, a table of the backing, and three tables more in each tree.
    for tables in 2..=9 {
        let guest = Guest::new(ODD, 1, BLOCK_FRAMES, tables);
        let at = 3 * MIB;
        let shown = [Tree::Nested, Tree::Window].map(|tree| guest.populate(at, tree));
        let none = Err(MemoryError::NoFrame(gpa(at)));
        match tables {
            9 => assert_eq!(shown, [Ok(Populated::Now); 2]),
            6..=8 => assert_eq!(shown, [Ok(Populated::Now), none]),
            _ => assert_eq!(shown, [none; 2]),
        }
        assert_eq!(guest.audit(ODD, 0), u64::from(tables > 2), "{tables} tables");
        guest.end(tables);
    }
}

/// A guest's vCPU on another CPU reads through the window, and through the nested tables,
/// while two more back pages: what it finds is zero.
#[test]
fn another_cpu_finds_only_zero() {
    const PAGES: u64 = 511;
    let mut guest = Guest::new(ODD, PAGES + 2 * BLOCK_FRAMES, PAGES + 3 * BLOCK_FRAMES, 40);
    guest.zeroing = Box::new(|| {
        thread::yield_now();
        0
    });
    let over = AtomicBool::new(false);
    let look = || {
        let mem = guest.tables();
        let (window, nested) =
            guest.locked(|inside| (inside.parts.window.root(), inside.parts.nested.root()));
        let window = Mapper::<HostTable>::from_root(window, PageSize::Size2M);
        let nested = Mapper::<Npt>::from_root(nested, PageSize::Size2M);
        let (mut seen, mut wrong) = (0, 0);
        while !over.load(Ordering::Acquire) || seen == 0 {
            for at in (2 * MIB..ODD).step_by(4096) {
                let window = window.query(&mem, WINDOW.at(gpa(at), 1).unwrap());
                for mapping in [window, nested.query(&mem, at)].into_iter().flatten() {
                    seen += 1;
                    wrong += u64::from(guest.frame(mapping.hpa).load(Ordering::Acquire) != 0);
                }
            }
        }
        wrong
    };
    let touch = |tree| {
        for number in 0..PAGES {
            let backing = guest.populate(2 * MIB + number * 4096, tree);
            assert!(matches!(backing, Ok(Populated::Now)), "{backing:?}");
        }
    };
    thread::scope(|scope| {
        let look = scope.spawn(look);
        let other = scope.spawn(|| touch(Tree::Window));
        touch(Tree::Nested);
        other.join().unwrap();
        over.store(true, Ordering::Release);
        assert_eq!(look.join().unwrap(), 0, "frames were seen before they were zero");
    });
    assert_eq!(guest.audit(ODD, 0), PAGES);
    guest.end(40);
}

/// A vCPU, or a CPU that zeroes ahead, with a frame in its hands.
enum Hands {
    Page(u64, Wanted),
    Piece(Piece),
}

impl Hands {
    fn frames(&self) -> u64 {
        match self {
            Self::Page(_, wanted) => wanted.size.bytes() / 4096,
            // It counts as the stock's all the time.
            Self::Piece(_) => 0,
        }
    }

    /// Does the second half of what somebody began.
    fn finish(self, guest: &Guest, fails: bool) {
        match self {
            Self::Page(at, wanted) => {
                let _ = finish(guest, at, wanted, !fails);
            }
            Self::Piece(piece) => {
                let left = match fails {
                    true => piece.len,
                    false => guest.zero(piece.block, PageSize::Size2M, piece.offset, piece.len),
                };
                guest.locked(|inside| inside.holdings().end_piece(piece, left));
            }
        }
    }
}

#[derive(Clone, Debug)]
enum Step {
    /// A vCPU touches a page, or the hypervisor does.
    Touch(u64, bool),
    /// Somebody zeroes ahead: this many pieces, and the last of them stays in its hands.
    Ahead(u8),
    /// The thread that began is done, or fails.
    Finish(usize, bool),
    /// The hot handler backs a page.
    Ready(u64),
    /// ROM or a device lies over some pages, or nothing.
    Cover(u64, Option<bool>),
    /// Another guest takes a block, or gives one back.
    Neighbour(bool),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..PAGES, any::<bool>()).prop_map(|(at, nested)| Step::Touch(at, nested)),
        2 => (1u8..40).prop_map(Step::Ahead),
        4 => (0usize..4, prop::bool::weighted(0.1)).prop_map(|(who, fails)| Step::Finish(who, fails)),
        1 => (0..PAGES).prop_map(Step::Ready),
        1 => (0..PAGES - 8, any::<Option<bool>>()).prop_map(|(at, rom)| Step::Cover(at, rom)),
        1 => any::<bool>().prop_map(Step::Neighbour),
    ]
}

/// Pages of the guest: three blocks, and a part of one.
const PAGES: u64 = 3 * BLOCK_FRAMES + 100;
/// Pages of ROM, in the backing behind the RAM.
const ROM_PAGES: u64 = 8;
/// The ROM's place there.
const ROM: u64 = 4 * BLOCK_FRAMES * 4096;

proptest! {
    /// In whatever order vCPUs begin and end: the books are right, both trees show the truth, and
    /// the guest gets each page that it was promised.
    #[test]
    fn the_books_are_right_in_all_orders(
        steps in prop::collection::vec(step(), 1..60),
        tables in 8u64..24,
    ) {
        const MACHINE: u64 = 5 * BLOCK_FRAMES;
        let ram = PAGES * 4096;
        let guest = Guest::new(ram, PAGES + ROM_PAGES, MACHINE, tables);
        let mut hands: Vec<Hands> = Vec::new();
        let mut neighbour = Vec::new();
        for step in steps {
            match step {
                Step::Touch(number, nested) => {
                    let tree = if nested { Tree::Nested } else { Tree::Window };
                    let at = number * 4096;
                    match begin(&guest, at, tree) {
                        Ok(Admitted::Wanted(wanted)) => hands.push(Hands::Page(at, wanted)),
                        Ok(Admitted::Shown(Populated::Soon)) => prop_assert!(!hands.is_empty()),
                        _ => (),
                    }
                }
                Step::Ahead(pieces) => {
                    for _ in 1..pieces {
                        zero_ahead(&guest);
                    }
                    let piece = guest.locked(|inside| {
                        guest.frames(|frames| inside.holdings().begin_block(frames));
                        inside.holdings().begin_piece()
                    });
                    hands.extend(piece.map(Hands::Piece));
                }
                Step::Finish(who, fails) if who < hands.len() => {
                    hands.remove(who).finish(&guest, fails);
                }
                Step::Finish(..) => (),
                Step::Ready(number) => {
                    touch(&guest, gpa(number * 4096));
                }
                Step::Cover(at, rom) => {
                    let range = range(at * 4096..(at + ROM_PAGES) * 4096);
                    let content = rom.map(|rom| match rom {
                        true => Content::Memory { offset: ROM, rights: Rights::Rom },
                        false => Content::Devices,
                    });
                    change(&guest, |slots| {
                        slots.truncate(1);
                        slots.extend(content.map(|content| Slot { range, content }));
                    })
                    .unwrap();
                }
                Step::Neighbour(takes) => {
                    let mut frames = guest.frames.lock().unwrap();
                    if takes {
                        let taken = frames.allocate(3, Owner::HYPERVISOR, Source::Spare);
                        neighbour.extend(taken);
                    } else if let Some(first) = neighbour.pop() {
                        frames.free(first, 3, Owner::HYPERVISOR).unwrap();
                    }
                }
            }
            let stocked = guest.locked(|inside| inside.holdings().stocked());
            prop_assert!(stocked <= STOCK as u64 * BLOCK_FRAMES);
        }
        for first in neighbour {
            guest.frames.lock().unwrap().free(first, 3, Owner::HYPERVISOR).unwrap();
        }
        // All of the backing, the ROM's part of it too.
        let everything = range(0..(PAGES + 2 * ROM_PAGES) * 4096);
        change(&guest, |slots| {
            slots.truncate(1);
            let content = Content::Memory { offset: ROM, rights: Rights::Ram };
            let start = everything.end.checked_offset_from(gpa(ROM_PAGES * 4096)).unwrap();
            slots.push(Slot { range: gpa(start)..everything.end, content });
        })
        .unwrap();
        let end = everything.end.as_u64();
        let before = guest.audit(end, hands.iter().map(Hands::frames).sum());
        for hands in hands {
            hands.finish(&guest, false);
        }
        // With tables enough, all of its RAM.
        for at in (0..end).step_by(4096) {
            for tree in [Tree::Nested, Tree::Window] {
                let _ = guest.populate(at, tree);
            }
        }
        let all = guest.audit(end, 0);
        prop_assert!(before <= all, "{all} of {PAGES}");
        prop_assert!(tables < 22 || all == PAGES + ROM_PAGES, "{all} of {PAGES}, {tables} tables");
        guest.end(tables);
    }

    /// Guests come and go: what they were promised, and what they have, adds up.
    #[test]
    fn promises_add_up(starts in prop::collection::vec((0u64..900, 0u64..900, any::<bool>()), 40)) {
        const MACHINE: u64 = 1500;
        let mut table = std::vec![Frame::ABSENT; 2000];
        let mut frames = FrameAllocator::new(&mut table);
        frames.add(Hfn::new(100), MACHINE);
        let mut guests: Vec<(Holdings, Vec<Hfn>, Promise)> = Vec::new();
        for (number, (wanted, takes, ends)) in (0u16..).zip(starts) {
            let mut holdings = Holdings::new(Owner(Owner::GUESTS.0 + number));
            let spare = frames.free_frames() - frames.promised_frames();
            match holdings.promise(&mut frames, wanted) {
                Ok(()) => {
                    prop_assert!(wanted <= spare);
                    let tables = frames.promise(spare - wanted).map(|mut tables| {
                        frames.withdraw(tables.split(takes));
                        tables
                    });
                    guests.push((holdings, Vec::new(), tables.unwrap()));
                }
                Err(left) => prop_assert_eq!((left, wanted > spare), (spare, true)),
            }
            if let Some((holdings, taken, _)) = guests.last_mut() {
                for _ in 0..takes {
                    let Ok(frame) = holdings.take(&mut frames, PageSize::Size4K) else { break };
                    holdings.shown(PageSize::Size4K);
                    taken.push(frame);
                }
                prop_assert!(holdings.populated() == taken.len() as u64);
            }
            if ends && !guests.is_empty() {
                let (mut holdings, taken, tables) = guests.remove(usize::from(number) % guests.len());
                for frame in taken {
                    frames.free(frame, 0, holdings.owner()).unwrap();
                }
                holdings.withdraw(&mut frames);
                frames.withdraw(tables);
            }
            let taken: usize = guests.iter().map(|(_, taken, _)| taken.len()).sum();
            prop_assert_eq!(frames.free_frames(), MACHINE - taken as u64);
            prop_assert!(frames.promised_frames() <= frames.free_frames());
        }
        for (mut holdings, taken, tables) in guests {
            for frame in taken {
                frames.free(frame, 0, holdings.owner()).unwrap();
            }
            holdings.withdraw(&mut frames);
            frames.withdraw(tables);
        }
        prop_assert_eq!((frames.free_frames(), frames.promised_frames()), (MACHINE, 0));
    }
}
