//! The guest's memory map: which RAM backs a memory size, and how firmware
//! would report it (ACPI: "System Address Map Interfaces").
//!
//! A guest of S bytes has RAM at [0, S) up to 3 GiB, with the legacy hole
//! simply lost, and the rest from 4 GiB up. The range of the tables is backed
//! by RAM too but reported as reserved; the range of video memory and option
//! ROMs is open bus.

use arrayvec::ArrayVec;
use config::layout::{
    HIGH_RAM_START, LEGACY_HOLE_END, LEGACY_HOLE_START, LOW_RAM_END, LOW_RAM_LIMIT, TABLES_START,
};
use core::ops::Range;
use x86defs::GuestPhysAddr;

/// Kind of a range of the map; the numbers are those of E820, which
/// PVH and Multiboot share.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum E820Kind {
    /// RAM that the guest may use.
    Ram = 1,
    /// Not to be used.
    Reserved = 2,
}

/// One range of the map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct E820Entry {
    /// The first byte.
    pub base: GuestPhysAddr,
    /// Size in bytes, at least 1.
    pub size: u64,
    /// Kind of the range.
    pub kind: E820Kind,
}

/// End of RAM below 4 GiB in a guest of `memory` bytes.
#[must_use]
pub const fn low_ram_end(memory: u64) -> u64 {
    if memory < LOW_RAM_LIMIT { memory } else { LOW_RAM_LIMIT }
}

/// End of RAM above 4 GiB in a guest of `memory` bytes;
/// [`HIGH_RAM_START`] if there is none.
#[must_use]
pub const fn high_ram_end(memory: u64) -> u64 {
    HIGH_RAM_START.saturating_add(memory.saturating_sub(LOW_RAM_LIMIT))
}

/// The ranges to back with RAM in a guest of `memory` bytes (at least 1 MiB),
/// in rising order, none empty.
#[must_use]
pub fn ram_regions(memory: u64) -> ArrayVec<Range<GuestPhysAddr>, 3> {
    [
        (0, LEGACY_HOLE_START),
        (TABLES_START, low_ram_end(memory)),
        (HIGH_RAM_START, high_ram_end(memory)),
    ]
    .into_iter()
    .filter(|(start, end)| start < end)
    .map(|(start, end)| GuestPhysAddr::new(start)..GuestPhysAddr::new(end))
    .collect()
}

/// The memory map of a guest of `memory` bytes (at least 1 MiB), in rising
/// order, none empty.
#[must_use]
pub fn e820(memory: u64) -> ArrayVec<E820Entry, 5> {
    [
        (0, LOW_RAM_END, E820Kind::Ram),
        (LOW_RAM_END, LEGACY_HOLE_START, E820Kind::Reserved),
        (TABLES_START, LEGACY_HOLE_END, E820Kind::Reserved),
        (LEGACY_HOLE_END, low_ram_end(memory), E820Kind::Ram),
        (HIGH_RAM_START, high_ram_end(memory), E820Kind::Ram),
    ]
    .into_iter()
    .filter(|(start, end, _)| start < end)
    .map(|(start, end, kind)| E820Entry {
        base: GuestPhysAddr::new(start),
        size: end - start,
        kind,
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;
    use config::layout::{HIGH_PCI_WINDOW_END, HIGH_PCI_WINDOW_START, LOW_HOLE, RAM_LIMIT};
    use config::limits::{MAX_MEMORY, MIN_MEMORY};
    use memory::Window;
    use proptest::prelude::*;

    const GIB: u64 = 1 << 30;

    fn map(memory: u64) -> Vec<(u64, u64, E820Kind)> {
        e820(memory).iter().map(|e| (e.base.as_u64(), e.base.as_u64() + e.size, e.kind)).collect()
    }

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
    fn sizes_around_the_holes() {
        use E820Kind::{Ram, Reserved};
        let below =
            [(0, 0x9_fc00, Ram), (0x9_fc00, 0xa_0000, Reserved), (0xe_0000, 0x10_0000, Reserved)];
        assert_eq!(map(1 << 20), below);
        assert_eq!(map(128 << 20)[3..], [(0x10_0000, 128 << 20, Ram)]);
        assert_eq!(map(3 * GIB)[3..], [(0x10_0000, 3 * GIB, Ram)]);
        assert_eq!(map(6 * GIB)[3..], [(0x10_0000, 3 * GIB, Ram), (4 * GIB, 7 * GIB, Ram)]);
        assert_eq!(ram_regions(1 << 20).len(), 2);
        assert_eq!(ram_regions(6 * GIB)[2].end, GuestPhysAddr::new(7 * GIB));
    }

    #[test]
    fn below_1_mib_each_page_is_ram_or_empty() {
        for at in (0..1 << 20).step_by(4096) {
            let ram = ram_regions(1 << 30).iter().any(|r| r.contains(&GuestPhysAddr::new(at)));
            assert_ne!(ram, LOW_HOLE.contains(&at), "{at:#x}");
        }
    }

    proptest! {
        #[test]
        fn ram_is_the_size_less_the_holes(pages in 256u64..(1 << 28)) {
            let memory = pages * 4096;
            let entries = e820(memory);
            for pair in entries.windows(2) {
                prop_assert!(pair[0].base.as_u64() + pair[0].size <= pair[1].base.as_u64());
            }
            let sum: u64 = entries.iter().filter(|e| e.kind == E820Kind::Ram).map(|e| e.size).sum();
            prop_assert_eq!(sum, memory - (LEGACY_HOLE_END - LOW_RAM_END));
            // Every entry is backed, and what is backed is reported.
            let regions = ram_regions(memory);
            let backed: u64 = regions.iter().map(|r| r.end.as_u64() - r.start.as_u64()).sum();
            let reported: u64 = entries.iter().map(|e| e.size).sum();
            prop_assert_eq!(backed, reported);
            for e in &entries {
                let last = e.base.wrapping_add(e.size - 1);
                prop_assert!(regions.iter().any(|r| r.contains(&e.base) && r.contains(&last)));
            }
        }
    }
}
