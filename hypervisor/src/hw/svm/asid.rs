//! Each CPU's address-space identifiers (APM volume 2: "TLB Control").

use crate::cpu::percpu::{self, MAX_CPUS};
use memory::tags::{Flush, FlushOne, Tag, TagPool};
use spin::Mutex;

static POOLS: [Mutex<TagPool>; MAX_CPUS] =
    [const { Mutex::new(TagPool::new(2, FlushOne::Missing)) }; MAX_CPUS];

fn pool() -> &'static Mutex<TagPool> {
    &POOLS[percpu::this().index() % MAX_CPUS]
}

/// Says how many ASIDs this CPU has, the host's own (0) included, and whether
/// it can flush one of them.
pub(super) fn init(count: u32, one: FlushOne) {
    *pool().lock() = TagPool::new(count, one);
}

/// Makes `asid`, which this CPU gave, good for the next entry; see
/// [`TagPool::assign`].
pub(super) fn assign(asid: &mut Tag, stale: bool) -> Flush {
    pool().lock().assign(asid, stale)
}
