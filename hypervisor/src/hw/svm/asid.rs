//! Address-space identifiers, recycled by generation: a vCPU keeps its ASID
//! until all are used up, then a new generation begins with the whole TLB
//! flushed and everybody takes a new one (APM volume 2: "TLB Control").

use core::sync::atomic::{AtomicU64, Ordering};
use spin::Mutex;

/// Counts generations; 0 is never current.
static GENERATION: AtomicU64 = AtomicU64::new(0);

struct Pool {
    next: u32,
    end: u32,
}

static POOL: Mutex<Pool> = Mutex::new(Pool { next: 1, end: 1 });

/// An ASID and the generation that it is good for.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Asid {
    pub(super) value: u32,
    generation: u64,
}

/// What the TLB needs before the entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Flush {
    Nothing,
    All,
}

/// Says how many ASIDs the CPU has, the host's own (0) included.
pub(super) fn init(count: u32) {
    *POOL.lock() = Pool { next: 1, end: count.max(2) };
    GENERATION.fetch_add(1, Ordering::Relaxed);
}

impl Asid {
    /// Whether it may still be used.
    pub(super) fn is_current(self) -> bool {
        self.generation == GENERATION.load(Ordering::Relaxed)
    }

    /// A fresh ASID, in whose name nothing is cached once the returned flush
    /// has been done.
    pub(super) fn take() -> (Self, Flush) {
        let mut pool = POOL.lock();
        let mut flush = Flush::Nothing;
        if pool.next >= pool.end {
            GENERATION.fetch_add(1, Ordering::Relaxed);
            pool.next = 1;
            flush = Flush::All;
        }
        let value = pool.next;
        pool.next += 1;
        (Self { value, generation: GENERATION.load(Ordering::Relaxed) }, flush)
    }
}
