//! This CPU's address-space identifiers (APM volume 2: "TLB Control").

use spin::Mutex;
use vmm::tags::{Flush, FlushOne, Tag, TagPool};

static POOL: Mutex<TagPool> = Mutex::new(TagPool::new(2, FlushOne::Missing));

/// Says how many ASIDs the CPU has, the host's own (0) included, and whether
/// it can flush one of them.
pub(super) fn init(count: u32, one: FlushOne) {
    *POOL.lock() = TagPool::new(count, one);
}

/// Makes `asid` good for the next entry; see [`TagPool::assign`].
pub(super) fn assign(asid: &mut Tag, stale: bool) -> Flush {
    POOL.lock().assign(asid, stale)
}
