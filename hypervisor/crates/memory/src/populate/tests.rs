use super::*;
use crate::frames::{Frame, Owner, Source};
use crate::holdings::{Piece, STOCK};
use crate::stage2::{ENTRIES, Npt, Permissions};
use proptest::prelude::*;
use std::boxed::Box;
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread;
use std::time::Duration;
use std::vec::Vec;

const WINDOW: u64 = 0xffff_8000_0000_0000;
const MIB: u64 = 1 << 20;
const BLOCK_FRAMES: u64 = 512;
/// Frames begin here; tables lie below.
const FRAMES: u64 = 2048;
const GUEST: Owner = Owner::GUESTS;
/// Contents that an earlier guest left in a frame.
const LEFT: u64 = 0x5ec2e7;

/// Tables that a second thread may walk, as a CPU does. Some can't be had.
#[derive(Clone)]
struct Tables(Arc<Vec<AtomicU64>>, Arc<AtomicU64>, u64);

impl Tables {
    fn new(tables: u64) -> Self {
        let words = (0..tables * ENTRIES as u64).map(|_| AtomicU64::new(0)).collect();
        Self(Arc::new(words), Arc::new(AtomicU64::new(0)), tables)
    }

    fn word(&self, table: HostPhysAddr, index: usize) -> &AtomicU64 {
        &self.0[(table.as_u64() / 8) as usize + index]
    }
}

impl TableMemory for Tables {
    type Error = ();

    fn alloc_table(&mut self) -> Result<HostPhysAddr, ()> {
        let number = self.1.load(Ordering::Relaxed);
        if number == self.2 {
            return Err(());
        }
        self.1.store(number + 1, Ordering::Relaxed);
        Ok(HostPhysAddr::new(number * 4096))
    }

    fn free_table(&mut self, table: HostPhysAddr) {
        for index in 0..ENTRIES {
            self.word(table, index).store(0, Ordering::Relaxed);
        }
    }

    fn read(&self, table: HostPhysAddr, index: usize) -> u64 {
        self.word(table, index).load(Ordering::Acquire)
    }

    fn write(&mut self, table: HostPhysAddr, index: usize, entry: u64) {
        self.word(table, index).store(entry, Ordering::Release);
    }
}

struct Behind {
    tables: Tables,
    window: Mapper<HostTable>,
    nested: Mapper<Npt>,
    holdings: Holdings,
}

impl Guarded for Behind {
    fn make_room(&mut self, page: &Page) -> Result<(), Backing> {
        make_room(&mut self.tables, &mut self.window, &mut self.nested, page)
    }

    fn show(&mut self, page: &Page, frame: HostPhysAddr) -> bool {
        show(&mut self.tables, &mut self.window, &mut self.nested, page, frame)
    }

    fn holdings(&mut self) -> &mut Holdings {
        &mut self.holdings
    }
}

/// A guest on a machine that has some frames more than it was promised.
struct Guest {
    behind: Mutex<Behind>,
    frames: Mutex<FrameAllocator<'static>>,
    /// Each frame of the machine.
    contents: Vec<AtomicU64>,
    /// Done while a frame is zeroed: returns how many bytes are left.
    zeroing: Box<dyn Fn() -> usize + Send + Sync>,
    promised: u64,
}

impl Guest {
    fn new(promised: u64, machine: u64, tables: u64) -> Self {
        let mut tables = Tables::new(tables);
        let window = Mapper::new(&mut tables, PageSize::Size2M).unwrap();
        let nested = Mapper::new(&mut tables, PageSize::Size2M).unwrap();
        let table = (0..FRAMES + machine).map(|_| Frame::ABSENT).collect::<Vec<_>>().leak();
        let mut frames = FrameAllocator::new(table);
        frames.add(Hfn::new(FRAMES), machine);
        let mut holdings = Holdings::new(GUEST);
        holdings.promise(&mut frames, promised).unwrap();
        Self {
            behind: Mutex::new(Behind { tables, window, nested, holdings }),
            frames: Mutex::new(frames),
            contents: (0..machine).map(|_| AtomicU64::new(LEFT)).collect(),
            zeroing: Box::new(|| 0),
            promised,
        }
    }

    fn back(&self, at: u64, size: PageSize) -> Backing {
        back(self, &page(at, size))
    }

    /// The frame at `at` in both trees, if they agree.
    fn frame(&self, at: u64) -> Option<HostPhysAddr> {
        let behind = self.behind.lock().unwrap();
        let seen = behind.window.query(&behind.tables, WINDOW + at);
        let lived_in = behind.nested.query(&behind.tables, at);
        assert_eq!(seen.map(|m| (m.hpa, m.size)), lived_in.map(|m| (m.hpa, m.size)), "{at:#x}");
        seen.map(|mapping| mapping.hpa)
    }

    /// Compares the books with the machine's and with what the trees show of the first `ram`
    /// bytes; `away` frames are being zeroed. Returns how many the trees show.
    fn audit(&self, ram: u64, away: u64) -> u64 {
        let shown = (0..ram).step_by(4096).filter_map(|at| self.frame(at)).collect::<Vec<_>>();
        assert_eq!(shown.iter().collect::<BTreeSet<_>>().len(), shown.len(), "shown twice");
        for hpa in &shown {
            let number = number_of(*hpa);
            assert_eq!(self.contents[number].load(Ordering::Relaxed), 0, "{hpa} is not zero");
        }
        let behind = self.behind.lock().unwrap();
        let frames = self.frames.lock().unwrap();
        let (populated, stocked) = (behind.holdings.populated(), behind.holdings.stocked());
        assert_eq!(shown.len() as u64, populated);
        let all = FRAMES..FRAMES + self.contents.len() as u64;
        let owned = all.clone().filter(|n| frames.owner(Hfn::new(*n)) == GUEST).count() as u64;
        assert_eq!(owned, populated + stocked + away, "frames are lost");
        assert_eq!(frames.free_frames(), self.contents.len() as u64 - owned);
        assert_eq!(frames.promised_frames() + owned, self.promised, "a promise is wrong");
        populated
    }
}

impl Space for Guest {
    type Guarded = Behind;

    fn locked<R>(&self, work: impl FnOnce(&mut Behind) -> R) -> R {
        work(&mut self.behind.lock().unwrap())
    }

    fn try_locked<R>(&self, work: impl FnOnce(&mut Behind) -> R) -> Option<R> {
        Some(work(&mut *self.behind.try_lock().ok()?))
    }

    fn frames<R>(&self, work: impl FnOnce(&mut FrameAllocator<'_>) -> R) -> Option<R> {
        let mut frames: MutexGuard<'_, FrameAllocator<'static>> = self.frames.lock().unwrap();
        Some(work(&mut frames))
    }

    fn zero(&self, first: Hfn, size: PageSize, offset: u64, len: usize) -> usize {
        let left = (self.zeroing)();
        let start = number_of(first.base()) + (offset / 4096) as usize;
        assert!(offset + len as u64 <= size.bytes());
        for frame in &self.contents[start..start + (len - left) / 4096] {
            frame.store(0, Ordering::Release);
        }
        left
    }
}

/// The number of a frame among the machine's.
fn number_of(hpa: HostPhysAddr) -> usize {
    usize::try_from(hpa.as_u64() / 4096 - FRAMES).unwrap()
}

fn bytes(size: PageSize) -> usize {
    usize::try_from(size.bytes()).unwrap()
}

fn page(at: u64, size: PageSize) -> Page {
    Page {
        window: WINDOW + at,
        nested: at,
        size,
        window_attributes: Attributes::ram(Permissions::RW | Permissions::USER),
        nested_attributes: Attributes::ram(Permissions::RWX),
    }
}

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

/// Two vCPUs back pages at once, and are zeroing at the same time.
fn two_at_once(promised: u64, pages: [(u64, PageSize); 2]) -> (Guest, [Backing; 2]) {
    let (meeting, met) = (Arc::new(Meeting::default()), Arc::new(AtomicU64::new(0)));
    let mut guest = Guest::new(promised, 8 * BLOCK_FRAMES, 40);
    let count = met.clone();
    guest.zeroing = Box::new(move || {
        count.fetch_add(u64::from(meeting.meet(2)), Ordering::Relaxed);
        0
    });
    let [one, other] = pages;
    let backings = thread::scope(|scope| {
        let other = scope.spawn(|| guest.back(other.0, other.1));
        [guest.back(one.0, one.1), other.join().unwrap()]
    });
    assert_eq!(met.load(Ordering::Relaxed), 2, "one waited for the other one's zeroing");
    (guest, backings)
}

#[test]
fn two_zero_different_pages_at_the_same_time() {
    for size in [PageSize::Size2M, PageSize::Size4K] {
        let (guest, backings) = two_at_once(4 * BLOCK_FRAMES, [(0, size), (2 * MIB, size)]);
        assert_eq!(backings, [Backing::Now; 2]);
        assert_eq!(guest.audit(8 * MIB, 0), 2 * size.bytes() / 4096);
    }
}

#[test]
fn of_two_frames_for_one_page_one_is_left_over() {
    for (size, stocked) in [(PageSize::Size2M, BLOCK_FRAMES), (PageSize::Size4K, 0)] {
        let (guest, backings) = two_at_once(4 * BLOCK_FRAMES, [(2 * MIB, size); 2]);
        assert!(backings.contains(&Backing::Now) && backings.contains(&Backing::Before));
        assert_eq!(guest.audit(8 * MIB, 0), size.bytes() / 4096);
        assert_eq!(guest.behind.lock().unwrap().holdings.stocked(), stocked);
    }
}

/// A small page in the range of a large one that is being zeroed: the large one is left over.
#[test]
fn a_large_page_does_not_cover_a_small_one_that_was_faster() {
    let guest = Guest::new(2 * BLOCK_FRAMES, 2 * BLOCK_FRAMES, 40);
    let large = page(2 * MIB, PageSize::Size2M);
    let first = guest.locked(|behind| begin(&guest, behind, &large)).unwrap();
    assert_eq!(guest.zero(first, large.size, 0, 2 << 20), 0);
    assert_eq!(guest.back(2 * MIB + 300 * 4096, PageSize::Size4K), Backing::Now);
    let backing = guest.locked(|behind| end(&guest, behind, &large, first, true));
    assert_eq!((backing, guest.audit(8 * MIB, 0)), (Backing::Before, 1));
    assert_eq!(guest.behind.lock().unwrap().holdings.stocked(), BLOCK_FRAMES);
}

/// A vCPU that finds no frame while the last ones are being zeroed has to try again: they may be
/// for its own page.
#[test]
fn the_last_frames_are_not_missed_while_they_are_zeroed() {
    for (promised, size) in [(BLOCK_FRAMES, PageSize::Size2M), (1, PageSize::Size4K)] {
        let guest = Guest::new(promised, BLOCK_FRAMES, 40);
        let wanted = page(2 * MIB, size);
        let first = guest.locked(|behind| begin(&guest, behind, &wanted)).unwrap();
        assert_eq!(guest.back(2 * MIB, size), Backing::Soon);
        assert_eq!(guest.back(4 * MIB, PageSize::Size4K), Backing::Soon);
        assert_eq!(guest.zero(first, size, 0, bytes(size)), 0);
        let backing = guest.locked(|behind| end(&guest, behind, &wanted, first, true));
        assert_eq!(backing, Backing::Now);
        assert_eq!(guest.back(2 * MIB, size), Backing::Before);
        assert_eq!(guest.back(4 * MIB, PageSize::Size4K), Backing::NoFrame);
        assert_eq!(guest.audit(8 * MIB, 0), promised);
    }
}

#[test]
fn what_can_not_be_zeroed_is_only_promised_again() {
    for size in [PageSize::Size2M, PageSize::Size4K] {
        let mut guest = Guest::new(BLOCK_FRAMES, BLOCK_FRAMES, 40);
        guest.zeroing = Box::new(|| 8);
        assert_eq!(guest.back(2 * MIB, size), Backing::NoFrame);
        assert_eq!(guest.audit(8 * MIB, 0), 0);
        guest.zeroing = Box::new(|| 0);
        assert_eq!(guest.back(2 * MIB, size), Backing::Now);
    }
}

/// The lock is free while a piece is zeroed ahead, and nobody takes the block meanwhile.
#[test]
fn zeroing_ahead_keeps_nobody_waiting() {
    let mut guest = Guest::new(2 * BLOCK_FRAMES, 2 * BLOCK_FRAMES, 40);
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
        let other = scope.spawn(|| guest.back(2 * MIB, PageSize::Size2M));
        while !zero_ahead(&guest) {
            thread::yield_now();
        }
        assert_eq!(other.join().unwrap(), Backing::Now);
    });
    assert_eq!(met.load(Ordering::Relaxed), 2, "one waited for the other one's zeroing");
    assert!(guest.behind.lock().unwrap().holdings.has_begun());
    while zero_ahead(&guest) {}
    {
        let holdings = &guest.behind.lock().unwrap().holdings;
        assert_eq!((holdings.stocked(), holdings.has_begun()), (BLOCK_FRAMES, false));
    }
    assert_eq!(guest.audit(8 * MIB, 0), BLOCK_FRAMES);
    // It is shown without being zeroed again, where tables are missing, too.
    guest.zeroing = Box::new(|| panic!("it was zero"));
    assert_eq!(guest.back(1 << 30, PageSize::Size2M), Backing::Now);
    assert_eq!(guest.audit((1 << 30) + 8 * MIB, 0), 2 * BLOCK_FRAMES);
}

#[test]
fn a_frame_is_zero_before_it_is_shown_in_both_trees() {
    let mut guest = Guest::new(BLOCK_FRAMES, BLOCK_FRAMES, 40);
    let (spy, roots) = {
        let behind = guest.behind.lock().unwrap();
        (behind.tables.clone(), (behind.window.root(), behind.nested.root()))
    };
    guest.zeroing = Box::new(move || {
        // Neither a guest nor the hypervisor sees a byte of the page by now.
        let window = Mapper::<HostTable>::from_root(roots.0, PageSize::Size2M);
        let nested = Mapper::<Npt>::from_root(roots.1, PageSize::Size2M);
        for at in (6 * MIB..8 * MIB).step_by(4096) {
            assert_eq!(window.query(&spy, WINDOW + at), None);
            assert_eq!(nested.query(&spy, at), None);
        }
        0
    });
    assert_eq!(guest.back(6 * MIB, PageSize::Size2M), Backing::Now);
    assert_eq!(guest.frame(7 * MIB), Some(HostPhysAddr::new(FRAMES * 4096 + MIB)));
    let behind = guest.behind.lock().unwrap();
    let seen = behind.window.query(&behind.tables, WINDOW + 7 * MIB).unwrap();
    assert_eq!(seen.attributes, page(0, PageSize::Size2M).window_attributes);
}

#[test]
fn a_large_page_never_covers_small_ones() {
    let mut guest = Guest::new(4 * BLOCK_FRAMES, 4 * BLOCK_FRAMES, 40);
    let small = 6 * MIB + 300 * 4096;
    assert_eq!(guest.back(small, PageSize::Size4K), Backing::Now);
    while zero_ahead(&guest) {}
    guest.zeroing = Box::new(|| panic!("no frame may be taken"));
    assert_eq!(guest.back(6 * MIB, PageSize::Size2M), Backing::Before);
    assert!(!guest.locked(|behind| show_ready(behind, &page(6 * MIB, PageSize::Size2M))));
    for at in (6 * MIB..8 * MIB).step_by(4096) {
        assert_eq!(guest.frame(at).is_some(), at == small, "{at:#x}");
    }
}

#[test]
fn without_tables_nothing_is_shown() {
    // Two roots and three tables more in each tree.
    for tables in 2..=8 {
        let guest = Guest::new(1, BLOCK_FRAMES, tables);
        let backing = guest.back(6 * MIB, PageSize::Size4K);
        let shown = guest.audit(8 * MIB, 0);
        match tables {
            8 => assert_eq!((backing, shown), (Backing::Now, 1)),
            _ => assert_eq!((backing, shown), (Backing::NoFrame, 0)),
        }
    }
}

/// A guest's vCPU on another CPU reads through the window, and through the nested tables,
/// while two more back pages: what it finds is zero.
#[test]
fn another_cpu_finds_only_zero() {
    const PAGES: u64 = 512;
    let mut guest = Guest::new(PAGES + BLOCK_FRAMES, PAGES + BLOCK_FRAMES, 40);
    guest.zeroing = Box::new(|| {
        thread::yield_now();
        0
    });
    let over = AtomicBool::new(false);
    let look = || {
        let (mem, window, nested) = {
            let behind = guest.behind.lock().unwrap();
            (behind.tables.clone(), behind.window.root(), behind.nested.root())
        };
        let window = Mapper::<HostTable>::from_root(window, PageSize::Size2M);
        let nested = Mapper::<Npt>::from_root(nested, PageSize::Size2M);
        let (mut seen, mut wrong) = (0, 0);
        while !over.load(Ordering::Acquire) || seen == 0 {
            for at in (0..PAGES * 4096).step_by(4096) {
                let found = [window.query(&mem, WINDOW + at), nested.query(&mem, at)];
                for mapping in found.into_iter().flatten() {
                    let number = number_of(mapping.hpa);
                    seen += 1;
                    wrong += u64::from(guest.contents[number].load(Ordering::Acquire) != 0);
                }
            }
        }
        wrong
    };
    let touch = || {
        for number in 0..PAGES {
            let backing = guest.back(number * 4096, PageSize::Size4K);
            assert!(matches!(backing, Backing::Now | Backing::Before), "{backing:?}");
        }
    };
    thread::scope(|scope| {
        let look = scope.spawn(look);
        let other = scope.spawn(touch);
        touch();
        other.join().unwrap();
        over.store(true, Ordering::Release);
        assert_eq!(look.join().unwrap(), 0, "frames were seen before they were zero");
    });
    assert_eq!(guest.audit(PAGES * 4096, 0), PAGES);
}

/// A vCPU, or a CPU that zeroes ahead, with a frame in its hands.
enum Hands {
    Page(Page, Hfn),
    Piece(Piece),
}

impl Hands {
    fn frames(&self) -> u64 {
        match self {
            Self::Page(page, _) => page.size.bytes() / 4096,
            // It counts as the stock's all the time.
            Self::Piece(_) => 0,
        }
    }
}

/// Does the second half of what somebody began.
fn finish(guest: &Guest, hands: Hands, fails: bool) {
    match hands {
        Hands::Page(page, first) => {
            let len = bytes(page.size);
            let zeroed = !fails && guest.zero(first, page.size, 0, len) == 0;
            guest.locked(|behind| end(guest, behind, &page, first, zeroed));
        }
        Hands::Piece(piece) if fails => guest.locked(|behind| {
            let len = piece.len;
            behind.holdings.end_piece(piece, len);
        }),
        Hands::Piece(piece) => {
            let left = guest.zero(piece.block, PageSize::Size2M, piece.offset, piece.len);
            guest.locked(|behind| behind.holdings.end_piece(piece, left));
        }
    }
}

#[derive(Clone, Debug)]
enum Step {
    /// A vCPU touches a page.
    Touch(u64, bool),
    /// Somebody zeroes ahead: this many pieces, and the last of them stays in its hands.
    Ahead(u8),
    /// The thread that began is done, or fails.
    Finish(usize, bool),
    /// The hot handler backs a page.
    Ready(u64),
    /// Another guest takes a block, or gives one back.
    Neighbour(bool),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..RAM, any::<bool>()).prop_map(|(at, large)| Step::Touch(at, large)),
        2 => (1u8..40).prop_map(Step::Ahead),
        4 => (0usize..4, prop::bool::weighted(0.1)).prop_map(|(who, fails)| Step::Finish(who, fails)),
        1 => (0..RAM).prop_map(Step::Ready),
        1 => any::<bool>().prop_map(Step::Neighbour),
    ]
}

/// Pages of the guest: three blocks, and a part of one.
const RAM: u64 = 3 * BLOCK_FRAMES + 100;

proptest! {
    /// In whatever order vCPUs begin and end: the books are right, both trees agree, and the guest
    /// gets each page that it was promised.
    #[test]
    fn the_books_are_right_in_all_orders(
        steps in prop::collection::vec(step(), 1..60),
        tables in 8u64..15,
    ) {
        const MACHINE: u64 = 5 * BLOCK_FRAMES;
        let guest = Guest::new(RAM, MACHINE, tables);
        let mut hands: Vec<Hands> = Vec::new();
        let mut neighbour = Vec::new();
        for step in steps {
            match step {
                Step::Touch(number, large) => {
                    let size = if large { PageSize::Size2M } else { PageSize::Size4K };
                    let at = number * 4096 / size.bytes() * size.bytes();
                    if at + size.bytes() > RAM * 4096 {
                        continue;
                    }
                    let wanted = page(at, size);
                    let begun = guest.locked(|behind| begin(&guest, behind, &wanted));
                    match begun {
                        Ok(first) => hands.push(Hands::Page(wanted, first)),
                        Err(Backing::Soon) => prop_assert!(!hands.is_empty()),
                        Err(_) => (),
                    }
                }
                Step::Ahead(pieces) => {
                    for _ in 1..pieces {
                        zero_ahead(&guest);
                    }
                    let piece = guest.locked(|behind| {
                        guest.frames(|frames| behind.holdings.begin_block(frames));
                        behind.holdings.begin_piece()
                    });
                    hands.extend(piece.map(Hands::Piece));
                }
                Step::Finish(who, fails) if who < hands.len() => {
                    finish(&guest, hands.remove(who), fails);
                }
                Step::Finish(..) => (),
                Step::Ready(number) => {
                    let at = number / BLOCK_FRAMES * 2 * MIB;
                    if at + 2 * MIB <= RAM * 4096 {
                        guest.locked(|behind| show_ready(behind, &page(at, PageSize::Size2M)));
                    }
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
            let behind = guest.behind.lock().unwrap();
            prop_assert!(behind.holdings.stocked() <= STOCK as u64 * BLOCK_FRAMES);
        }
        for first in neighbour {
            guest.frames.lock().unwrap().free(first, 3, Owner::HYPERVISOR).unwrap();
        }
        guest.audit(RAM * 4096, hands.iter().map(Hands::frames).sum());
        for hands in hands {
            finish(&guest, hands, false);
        }
        let before = guest.audit(RAM * 4096, 0);
        // With tables enough, all of its RAM.
        for number in 0..RAM {
            guest.back(number * 4096, PageSize::Size4K);
        }
        let all = guest.audit(RAM * 4096, 0);
        prop_assert!(before <= all && (tables < 14 || all == RAM), "{all} of {RAM}");
    }
}
