//! A guest's memory as policy code sees it: copies in and out, never a slice.

mod transfer;

use alloc::sync::Arc;
use x86defs::{GuestPhysAddr, Width};

pub use transfer::{Populate, Populated, exchange, transfer};

/// The place at which the hypervisor sees the RAM of the guest that it serves: a range of
/// [`GuestPhysAddr::END`] bytes of its own addresses, in which guest-physical address 0 stands first.
///
/// Nothing else adds a guest's address to one of the hypervisor's: behind the window lies
/// the hypervisor's own memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window(u64);

impl Window {
    /// The window at `base`, a multiple of [`GuestPhysAddr::END`] (what is over is cut off).
    #[must_use]
    pub const fn new(base: u64) -> Self {
        Self(base & !(GuestPhysAddr::END - 1))
    }

    /// The address of the `len` bytes at `gpa`. `None` if one of them would be outside.
    #[inline(always)]
    #[must_use]
    pub const fn at(self, gpa: GuestPhysAddr, len: u64) -> Option<u64> {
        let gpa = gpa.as_u64();
        if gpa < GuestPhysAddr::END && len <= GuestPhysAddr::END - gpa {
            Some(self.0 | gpa)
        } else {
            None
        }
    }
}

/// A guest-physical access that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MemoryError {
    /// There is no RAM at this address.
    #[error("no RAM at guest-physical {0}")]
    NotRam(GuestPhysAddr),
    /// The RAM there may not be written.
    #[error("guest-physical {0} is read-only")]
    ReadOnly(GuestPhysAddr),
    /// The memory behind the address can't be read or written: the machine's
    /// hardware has failed.
    #[error("the memory behind guest-physical {0} is broken")]
    Broken(GuestPhysAddr),
    /// The machine has no memory left to back the address.
    #[error("no frame left to back guest-physical {0}")]
    NoFrame(GuestPhysAddr),
}

/// The RAM of one guest. A range may cross pages; on an error nothing is
/// promised of how much was copied.
pub trait GuestMemory {
    /// Copies RAM at `gpa` into `buffer`.
    ///
    /// # Errors
    /// [`MemoryError`] names the first address that failed.
    fn read(&self, gpa: GuestPhysAddr, buffer: &mut [u8]) -> Result<(), MemoryError>;

    /// Copies `data` into RAM at `gpa`.
    ///
    /// # Errors
    /// [`MemoryError`] names the first address that failed.
    fn write(&self, gpa: GuestPhysAddr, data: &[u8]) -> Result<(), MemoryError>;

    /// Compares the naturally aligned `width` bytes at `gpa` with `current` and,
    /// where they are equal, replaces them by `new` in one atomic step. Returns
    /// what was there before.
    ///
    /// # Errors
    /// [`MemoryError`] where there is no writable RAM, or `gpa` is not aligned.
    fn compare_exchange(
        &self,
        gpa: GuestPhysAddr,
        width: Width,
        current: u64,
        new: u64,
    ) -> Result<u64, MemoryError>;
}

/// What the vCPU's owner can do with the guest's RAM beside copying.
pub trait GuestRam: GuestMemory {
    /// Whether `gpa` is RAM, backed or not.
    fn is_ram(&self, gpa: GuestPhysAddr) -> bool;

    /// Whether the guest itself can't write there: the firmware's ROM.
    fn is_rom(&self, gpa: GuestPhysAddr) -> bool;

    /// Backs the page at `gpa`, if it is RAM that is not backed yet.
    ///
    /// # Errors
    /// [`MemoryError`] where it is no RAM, or no frame is left.
    fn populate(&self, gpa: GuestPhysAddr) -> Result<(), MemoryError>;

    /// Lets accesses through to the page by which a CPU that virtualizes the
    /// local APIC recognizes them, where there is one.
    fn open_apic_page(&self);

    /// Stops writes to that page: an APIC has no registers in memory any more.
    /// One that still has them gets its writes emulated. Cached translations
    /// are the caller's to forget.
    fn close_apic_page(&self);
}

/// What the hot handler can do with the guest's RAM.
pub trait HotRam: core::fmt::Debug + Send + Sync {
    /// Backs the RAM at `gpa`, which the guest has touched for the first time,
    /// if that takes no waiting, no allocation and no zeroing. `false`: nothing
    /// has changed.
    fn touch(&self, gpa: GuestPhysAddr) -> bool;
}

impl<M: GuestMemory> GuestMemory for Arc<M> {
    fn read(&self, gpa: GuestPhysAddr, buffer: &mut [u8]) -> Result<(), MemoryError> {
        (**self).read(gpa, buffer)
    }

    fn write(&self, gpa: GuestPhysAddr, data: &[u8]) -> Result<(), MemoryError> {
        (**self).write(gpa, data)
    }

    fn compare_exchange(
        &self,
        gpa: GuestPhysAddr,
        width: Width,
        current: u64,
        new: u64,
    ) -> Result<u64, MemoryError> {
        (**self).compare_exchange(gpa, width, current, new)
    }
}

impl<M: GuestRam> GuestRam for Arc<M> {
    fn is_ram(&self, gpa: GuestPhysAddr) -> bool {
        (**self).is_ram(gpa)
    }

    fn is_rom(&self, gpa: GuestPhysAddr) -> bool {
        (**self).is_rom(gpa)
    }

    fn populate(&self, gpa: GuestPhysAddr) -> Result<(), MemoryError> {
        (**self).populate(gpa)
    }

    fn open_apic_page(&self) {
        (**self).open_apic_page();
    }

    fn close_apic_page(&self) {
        (**self).close_apic_page();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::e820::ram_regions;
    use config::layout::{HIGH_PCI_WINDOW_END, HIGH_PCI_WINDOW_START, RAM_LIMIT};
    use config::limits::{MAX_MEMORY, MIN_MEMORY};
    use proptest::prelude::*;

    const BASE: u64 = 0xffff_8000_0000_0000;
    const WINDOW: Window = Window::new(BASE);

    #[test]
    fn the_largest_guest_ends_inside_and_below_the_devices() {
        let regions = ram_regions(MAX_MEMORY);
        let end = regions.last().unwrap().end.as_u64();
        assert_eq!((end, RAM_LIMIT), (384 << 30, HIGH_PCI_WINDOW_START));
        assert_eq!(HIGH_PCI_WINDOW_END, GuestPhysAddr::END);
        for region in &regions {
            let bytes = region.end.as_u64() - region.start.as_u64();
            assert_eq!(WINDOW.at(region.start, bytes), Some(BASE + region.start.as_u64()));
        }
        // A page more would be a device's.
        let beyond = ram_regions(MAX_MEMORY + 4096);
        assert!(beyond.last().unwrap().end.as_u64() > HIGH_PCI_WINDOW_START);
        assert_eq!(ram_regions(MIN_MEMORY).last().unwrap().end.as_u64(), MIN_MEMORY);
    }

    #[test]
    fn the_window_ends_where_addresses_do() {
        let last = GuestPhysAddr::new(GuestPhysAddr::END - 1);
        assert_eq!(WINDOW.at(last, 1), Some(BASE + GuestPhysAddr::END - 1));
        assert_eq!(WINDOW.at(last, 2), None);
        assert_eq!(WINDOW.at(GuestPhysAddr::new(GuestPhysAddr::END), 0), None);
        assert_eq!(WINDOW.at(GuestPhysAddr::new(0), GuestPhysAddr::END), Some(BASE));
        assert_eq!(WINDOW.at(GuestPhysAddr::new(1), u64::MAX), None);
        assert_eq!(Window::new(BASE + 0x1234_5000), WINDOW);
    }

    proptest! {
        #[test]
        fn no_address_leaves_the_window(
            gpa in prop_oneof![any::<u64>(), 0..GuestPhysAddr::END + 0x1000],
            len in prop_oneof![any::<u64>(), 0..0x1_0000u64],
        ) {
            match WINDOW.at(GuestPhysAddr::new(gpa), len) {
                Some(at) => {
                    prop_assert_eq!(at, BASE + gpa);
                    prop_assert!((BASE..BASE + GuestPhysAddr::END).contains(&at));
                    prop_assert!(len <= BASE + GuestPhysAddr::END - at);
                }
                None => prop_assert!(
                    gpa.checked_add(len).is_none_or(|end| end > GuestPhysAddr::END) || gpa == GuestPhysAddr::END
                ),
            }
        }
    }
}
