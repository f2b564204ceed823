//! Zeroing frames before they are a guest's.
//!
//! Each CPU has two places of its own for that, one for a large page and one for a small one.
//! A frame is mapped there, zeroed and taken away again within one call. No CPU uses another
//! one's places, so what it may have cached of them is never used; what it has cached of
//! its own goes before the first store.

use super::pool::Tables;
use super::{copy, host, layout};
use crate::cpu::percpu::{self, MAX_CPUS};
use memory::stage2::{Attributes, PageSize, Permissions};
use x86_64::VirtAddr;
use x86_64::instructions::tlb;
use x86defs::HostPhysAddr;

/// The small places begin here, behind the large ones.
const SMALL: u64 = layout::ZEROING + MAX_CPUS as u64 * PageSize::Size2M.bytes();
const _: () =
    assert!(MAX_CPUS <= 256, "one table has both kinds of places, and one the small ones");

/// The place of CPU `cpu` for a page of this size.
fn place(cpu: usize, size: PageSize) -> Option<u64> {
    let start = match size {
        PageSize::Size4K => SMALL,
        PageSize::Size2M => layout::ZEROING,
        PageSize::Size1G => return None,
    };
    (cpu < MAX_CPUS).then(|| start + cpu as u64 * size.bytes())
}

/// Makes the tables, which stay: a page comes and goes by one store. `None` if there is no
/// frame for them.
pub(super) fn start() -> Option<()> {
    let mut mapper = host::kernel_mapper();
    for size in [PageSize::Size2M, PageSize::Size4K] {
        let _ = mapper.make_vacancy(&mut Tables, place(0, size)?, size).ok()?;
    }
    Some(())
}

/// Zeroes `len` bytes (a multiple of 8) from `offset` on in the page at `base`, which nobody
/// else has. Returns how many it could not zero.
#[must_use]
pub(super) fn zero(base: HostPhysAddr, size: PageSize, offset: u64, len: usize) -> usize {
    let inside = offset.checked_add(len as u64).is_some_and(|end| end <= size.bytes());
    let Some(at) = place(percpu::this().index(), size).filter(|_| inside) else { return len };
    let mut mapper = host::kernel_mapper();
    let Some(vacancy) = mapper.vacancy(&Tables, at, size) else { return len };
    let user = Attributes::ram(Permissions::RW | Permissions::USER);
    mapper.fill(&mut Tables, vacancy, base, user);
    // A CPU may cache what it does not use: nothing of an earlier frame is to be hit.
    tlb::flush(VirtAddr::new(at));
    // SAFETY: the page was just mapped there, for this, and the range lies within it. It is
    // not the hypervisor's own memory, and nobody else has it.
    let left = unsafe { copy::zero(at + offset, len) };
    mapper.vacate(&mut Tables, at, size);
    tlb::flush(VirtAddr::new(at));
    left
}
