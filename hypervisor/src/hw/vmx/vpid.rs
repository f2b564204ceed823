//! Each CPU's virtual-processor identifiers (SDM: "Virtual-Processor
//! Identifiers (VPIDs)").

use crate::cpu::percpu::{self, MAX_CPUS};
use memory::tags::{Flush, FlushOne, Tag, TagPool};
use spin::Mutex;

/// Every number of 16 bits but the host's, 0.
static POOLS: [Mutex<TagPool>; MAX_CPUS] =
    [const { Mutex::new(TagPool::new(1 << 16, FlushOne::Offered)) }; MAX_CPUS];

/// Makes `vpid`, which this CPU gave, good for the next entry; see
/// [`TagPool::assign`].
pub(super) fn assign(vpid: &mut Tag, stale: bool) -> Flush {
    POOLS[percpu::this().index() % MAX_CPUS].lock().assign(vpid, stale)
}
