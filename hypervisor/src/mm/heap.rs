//! The hypervisor's heap: cold objects only, never touched on a hot exit.

use super::{FRAMES, layout};
use crate::mm::pool::Tables;
use core::alloc::{GlobalAlloc, Layout};
use core::ptr::NonNull;
use linked_list_allocator::Heap;
use locks::{Mutex, Rank};
use memory::frames::{ORDER_2M, Owner, Source};
use memory::stage2::{Attributes, HostTable, Mapper, PageSize, Permissions};
use x86defs::HostPhysAddr;
use x86defs::addr::{Hfn, PAGE_SIZE};

/// Bytes by which the heap grows: one large page.
const STEP: usize = 2 << 20;
/// Bytes to which the heap may grow.
const LIMIT: usize = 1 << 30;

/// Blocks that are set aside for what can't be refused: 4 MiB.
const ASIDE: usize = 2;

struct State {
    heap: Heap,
    root: HostPhysAddr,
    size: usize,
    /// Blocks of [`STEP`] that nobody else gets.
    aside: [Option<Hfn>; ASIDE],
}

struct Global(Mutex<Option<State>>);

#[global_allocator]
static HEAP: Global = Global(Mutex::new(Rank::Heap, None));

/// Memory with which the heap may grow.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Means {
    /// Frames that nobody was promised.
    Spare,
    /// All that there are.
    Any,
}

/// A block that no guest was promised; any block where that is the source.
fn take(from: Source<'_>) -> Option<Hfn> {
    FRAMES.lock().as_mut()?.allocate(ORDER_2M, Owner::HYPERVISOR, from)
}

impl State {
    /// Makes the heap one step larger: of what is to spare; where all may be taken, then of
    /// what was set aside, and in the end of what guests were promised, as the machine can't go on
    /// without the object.
    fn grow(&mut self, means: Means) -> bool {
        if self.size >= LIMIT {
            return false;
        }
        let set_aside = || {
            let any = means == Means::Any;
            let take_any = || take(Source::Any);
            any.then(|| self.aside.iter_mut().find_map(Option::take).or_else(take_any))?
        };
        let Some(first) = take(Source::Spare).or_else(set_aside) else { return false };
        let mapped = Mapper::<HostTable>::from_root(self.root, PageSize::Size2M).map(
            &mut Tables,
            layout::HEAP + self.size as u64,
            first.base(),
            STEP as u64,
            Attributes::ram(Permissions::RW | Permissions::GLOBAL),
        );
        if mapped.is_err() {
            super::free_frames(first, ORDER_2M, Owner::HYPERVISOR);
            return false;
        }
        if self.size == 0 {
            // SAFETY: the range was just mapped, writable, for the heap alone, for good.
            unsafe { self.heap.init(layout::HEAP as *mut u8, STEP) };
        } else {
            // SAFETY: the range was just mapped, writable, for the heap alone, for good; it begins
            // right behind the heap's end.
            unsafe { self.heap.extend(STEP) };
        }
        self.size += STEP;
        true
    }

    /// Whether an object of this layout finds room.
    fn has(&mut self, layout: Layout) -> bool {
        let Ok(block) = self.heap.allocate_first_fit(layout) else { return false };
        // SAFETY: the block was just handed out for this layout, and nobody has it.
        unsafe { self.heap.deallocate(block, layout) };
        true
    }

    /// Sets blocks aside again, as far as there are some.
    fn set_aside(&mut self) {
        for place in self.aside.iter_mut().filter(|place| place.is_none()) {
            *place = take(Source::Spare);
        }
    }
}

/// Starts the heap, in the tables at `root`. `false` if there is no memory.
pub(super) fn start(root: HostPhysAddr) -> bool {
    let mut state = State { heap: Heap::empty(), root, size: 0, aside: [None; ASIDE] };
    if !state.grow(Means::Any) {
        return false;
    }
    state.set_aside();
    *HEAP.0.lock() = Some(state);
    true
}

/// Makes sure that `bytes` are free, which need not lie in one piece. `false` if there is no
/// memory for that which no guest was promised.
pub(super) fn make_room(bytes: usize) -> bool {
    let mut guard = HEAP.0.lock();
    let Some(state) = guard.as_mut() else { return false };
    while state.heap.free() < bytes {
        if !state.grow(Means::Spare) {
            return false;
        }
    }
    state.set_aside();
    true
}

/// Makes sure that an object of `bytes` finds room. `false` if there is no memory for it
/// which no guest was promised.
#[must_use]
pub fn has_room_for(bytes: usize) -> bool {
    let mut guard = HEAP.0.lock();
    let Some(state) = guard.as_mut() else { return false };
    let Ok(layout) = Layout::from_size_align(bytes, align_of::<u128>()) else { return false };
    if state.has(layout) {
        return true;
    }
    // The heap never gives memory back: it does not grow for an object that would not fit then
    // either.
    let missing = bytes.next_multiple_of(STEP);
    let left = super::frame_counts().spare();
    if missing as u64 / PAGE_SIZE > left || state.size + missing > LIMIT {
        return false;
    }
    while !state.has(layout) {
        if !state.grow(Means::Spare) {
            return false;
        }
    }
    state.set_aside();
    true
}

/// Bytes in use, and bytes in all.
#[must_use]
pub fn usage() -> (u64, u64) {
    HEAP.0.lock().as_ref().map_or((0, 0), |s| (s.heap.used() as u64, s.size as u64))
}

// SAFETY: the allocator behind the lock hands out blocks that do not overlap
// and fit the layout; it does not unwind.
unsafe impl GlobalAlloc for Global {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let mut guard = self.0.lock();
        let Some(state) = guard.as_mut() else { return core::ptr::null_mut() };
        loop {
            if let Ok(block) = state.heap.allocate_first_fit(layout) {
                return block.as_ptr();
            }
            if !state.grow(Means::Any) {
                return core::ptr::null_mut();
            }
        }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        if let (Some(state), Some(block)) = (self.0.lock().as_mut(), NonNull::new(block)) {
            // SAFETY: the caller vouches that `alloc` returned the block for this layout.
            unsafe { state.heap.deallocate(block, layout) };
        }
    }
}
