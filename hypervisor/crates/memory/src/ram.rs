//! A guest's memory as policy code sees it: copies in and out, never a slice.

use crate::slots::Rights;
use alloc::sync::Arc;
use x86defs::{GuestPhysAddr, Width};

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
    /// Something else stands at the address again and again: the guest is to run its instruction
    /// once more.
    #[error("guest-physical {0} changes all the time")]
    Moved(GuestPhysAddr),
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

    /// The `width` bytes at each of `places`, which lie in one page each: in one access, where they
    /// are naturally aligned. Those of before are read first.
    ///
    /// # Errors
    /// Those of [`read`](Self::read).
    fn load<const N: usize>(
        &self,
        places: [GuestPhysAddr; N],
        width: Width,
    ) -> Result<[u64; N], MemoryError> {
        read_each(self, places, width)
    }

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

/// [`GuestMemory::load`] by copies.
///
/// # Errors
/// Those of [`GuestMemory::read`].
pub fn read_each<M: GuestMemory + ?Sized, const N: usize>(
    memory: &M,
    places: [GuestPhysAddr; N],
    width: Width,
) -> Result<[u64; N], MemoryError> {
    let mut values = [0; N];
    for (value, gpa) in values.iter_mut().zip(places) {
        let mut bytes = [0; 8];
        if let Some(part) = bytes.get_mut(..width.bytes()) {
            memory.read(gpa, part)?;
        }
        *value = u64::from_le_bytes(bytes);
    }
    Ok(values)
}

/// Operations of a vCPU's owner on the guest's RAM, beside copies.
pub trait GuestRam: GuestMemory {
    /// Access that the guest has to the memory at `gpa`, backed or not; `None` where there is
    /// none.
    fn rights(&self, gpa: GuestPhysAddr) -> Option<Rights>;

    /// Whether there is memory at `gpa`.
    #[inline]
    fn is_ram(&self, gpa: GuestPhysAddr) -> bool {
        self.rights(gpa).is_some()
    }

    /// Whether there is memory at `gpa` that the guest can't write to.
    #[inline]
    fn is_rom(&self, gpa: GuestPhysAddr) -> bool {
        self.rights(gpa) == Some(Rights::Rom)
    }

    /// How often something was taken away from the memory, when no change of it is under way: waits
    /// for one that is. What was found out in an earlier generation may not be true any more.
    fn changed_to(&self) -> u64;

    /// This CPU, which has the memory's address space loaded for a vCPU, forgets what was taken
    /// away since the generation `seen`, which becomes the present one. `true`: the vCPU's own
    /// translations are stale. Nothing of the guest's memory is held across this.
    fn pay(&self, seen: &mut u64) -> bool;

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

/// Operations of the hot handler on the guest's RAM.
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

    fn load<const N: usize>(
        &self,
        places: [GuestPhysAddr; N],
        width: Width,
    ) -> Result<[u64; N], MemoryError> {
        (**self).load(places, width)
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
    #[inline]
    fn rights(&self, gpa: GuestPhysAddr) -> Option<Rights> {
        (**self).rights(gpa)
    }

    fn changed_to(&self) -> u64 {
        (**self).changed_to()
    }

    #[inline]
    fn pay(&self, seen: &mut u64) -> bool {
        (**self).pay(seen)
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
