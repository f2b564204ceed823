//! Virtual-processor identifiers, recycled by generation as AMD-V's ASIDs are:
//! a vCPU keeps its own until all are used up, then a new generation begins
//! with all of them invalidated (SDM: "Virtual-Processor Identifiers").

use core::sync::atomic::{AtomicU64, Ordering};
use spin::Mutex;

/// Counts generations; 0 is never current.
static GENERATION: AtomicU64 = AtomicU64::new(0);

/// The next identifier. 0 is the host's.
static NEXT: Mutex<u16> = Mutex::new(1);

/// A VPID and the generation that it is good for.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Vpid {
    pub(super) value: u16,
    generation: u64,
}

/// What the TLB needs before the entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Flush {
    Nothing,
    All,
}

/// Begins the first generation.
pub(super) fn init() {
    GENERATION.fetch_add(1, Ordering::Relaxed);
}

impl Vpid {
    /// Whether it may still be used.
    pub(super) fn is_current(self) -> bool {
        self.generation == GENERATION.load(Ordering::Relaxed)
    }

    /// A fresh VPID, in whose name nothing is cached once the returned flush
    /// has been done.
    pub(super) fn take() -> (Self, Flush) {
        let mut next = NEXT.lock();
        let value = *next;
        let mut flush = Flush::Nothing;
        *next = match value.checked_add(1) {
            Some(after) => after,
            None => {
                GENERATION.fetch_add(1, Ordering::Relaxed);
                flush = Flush::All;
                1
            }
        };
        (Self { value, generation: GENERATION.load(Ordering::Relaxed) }, flush)
    }
}
