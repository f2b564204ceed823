//! The hypervisor's heap: cold objects only, never touched on a hot exit.

use super::{FRAMES, layout};
use crate::mm::pool::Tables;
use core::alloc::{GlobalAlloc, Layout};
use core::ptr::NonNull;
use linked_list_allocator::Heap;
use paging::frames::{ORDER_2M, Owner};
use paging::stage2::{Attributes, HostTable, Mapper, PageSize, Permissions};
use spin::Mutex;
use x86defs::HostPhysAddr;

/// What the heap grows by: one large page.
const STEP: usize = 2 << 20;
/// What it may grow to.
const LIMIT: usize = 1 << 30;

struct State {
    heap: Heap,
    root: HostPhysAddr,
    size: usize,
}

struct Global(Mutex<Option<State>>);

#[global_allocator]
static HEAP: Global = Global(Mutex::new(None));

impl State {
    /// Makes the heap one step larger.
    fn grow(&mut self) -> bool {
        if self.size >= LIMIT {
            return false;
        }
        let taken = FRAMES.lock().as_mut().and_then(|f| f.allocate(ORDER_2M, Owner::HYPERVISOR));
        let Some((first, _)) = taken else { return false };
        let mapped = Mapper::<HostTable>::from_root(self.root, PageSize::Size2M).map(
            &mut Tables,
            layout::HEAP + self.size as u64,
            first.base(),
            STEP as u64,
            Attributes::ram(Permissions::RW | Permissions::GLOBAL),
        );
        if mapped.is_err() {
            if let Some(frames) = FRAMES.lock().as_mut() {
                frames.free(first, ORDER_2M);
            }
            return false;
        }
        if self.size == 0 {
            // SAFETY: the range was just mapped, writable, for the heap alone, for good.
            unsafe { self.heap.init(layout::HEAP as *mut u8, STEP) };
        } else {
            // SAFETY: as above, right behind the heap's end.
            unsafe { self.heap.extend(STEP) };
        }
        self.size += STEP;
        true
    }
}

/// Starts the heap, in the tables at `root`. `false` if there is no memory.
pub(super) fn start(root: HostPhysAddr) -> bool {
    let mut state = State { heap: Heap::empty(), root, size: 0 };
    if !state.grow() {
        return false;
    }
    *HEAP.0.lock() = Some(state);
    true
}

/// Makes sure that `bytes` are free, which need not lie in one piece. `false` if there is no
/// memory for that.
pub(super) fn make_room(bytes: usize) -> bool {
    let mut guard = HEAP.0.lock();
    let Some(state) = guard.as_mut() else { return false };
    while state.heap.free() < bytes {
        if !state.grow() {
            return false;
        }
    }
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
            if !state.grow() {
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
