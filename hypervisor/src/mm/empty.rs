//! The page that stands where a guest has nothing below 1 MiB: all ones, as an empty bus reads.
//!
//! Kernels search that range for the ROMs of devices, word by word. One page serves all guests;
//! their nested tables map it for reading and fetching, no guest's window does. So a read costs no
//! exit, no guest's end gives the page back, and the hypervisor's own copies still find no RAM.

use super::{allocate_page, direct};
use spin::Mutex;
use x86defs::HostPhysAddr;

static PAGE: Mutex<Option<HostPhysAddr>> = Mutex::new(None);

/// The page, taken when the first guest is made. `None`: there is no frame for it.
pub(super) fn page() -> Option<HostPhysAddr> {
    let mut page = PAGE.lock();
    if page.is_none() {
        let taken = allocate_page()?;
        let bytes = direct(taken) as *mut u8;
        // SAFETY: the page was just taken, and is mapped at its direct address.
        unsafe { bytes.write_bytes(0xff, 4096) };
        *page = Some(taken);
    }
    *page
}
