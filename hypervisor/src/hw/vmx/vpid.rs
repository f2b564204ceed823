//! This CPU's virtual-processor identifiers (SDM: "Virtual-Processor
//! Identifiers (VPIDs)").

use spin::Mutex;
use vmm::tags::{Flush, FlushOne, Tag, TagPool};

/// Every number of 16 bits but the host's, 0.
static POOL: Mutex<TagPool> = Mutex::new(TagPool::new(1 << 16, FlushOne::Offered));

/// Makes `vpid` good for the next entry; see [`TagPool::assign`].
pub(super) fn assign(vpid: &mut Tag, stale: bool) -> Flush {
    POOL.lock().assign(vpid, stale)
}
