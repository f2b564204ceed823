//! The machine's CPUs, as its firmware lists them
//! (ACPI: "Multiple APIC Description Table (MADT)").

use crate::mm;
use acpi::madt::{Madt, MadtEntry};
use acpi::{AcpiHandler, AcpiTables, PhysicalMapping};
use alloc::vec::Vec;
use core::ptr::NonNull;
use x86defs::HostPhysAddr;

/// MADT: the processor is ready for use.
const ENABLED: u32 = 1 << 0;
/// The identifier of "all CPUs", which is none.
const BROADCAST: u32 = u32::MAX;

/// Lets the table reader see firmware's memory.
#[derive(Clone, Copy, Debug)]
struct Window;

impl AcpiHandler for Window {
    unsafe fn map_physical_region<T>(
        &self,
        address: usize,
        size: usize,
    ) -> PhysicalMapping<Self, T> {
        let size = size.max(size_of::<T>());
        let base = HostPhysAddr::new(address as u64);
        let Some(place) =
            mm::map_firmware(base, size as u64).and_then(|p| NonNull::new(p as *mut T))
        else {
            // The reader knows no failure here; firmware names a table that is
            // larger than all memory that it could be in.
            panic!("firmware's tables can't be mapped: {size} bytes at {base}");
        };
        // SAFETY: the mapping is read-only and stays for good.
        unsafe { PhysicalMapping::new(address, place, size, size, *self) }
    }

    fn unmap_physical_region<T>(_: &PhysicalMapping<Self, T>) {
        // A few pages, read once at boot: they stay mapped.
    }
}

/// The local-APIC identifiers of all CPUs that are ready for use, in firmware's
/// order; empty where there are no tables.
pub(super) fn cpus(rsdp: Option<HostPhysAddr>) -> Vec<u32> {
    let mut ids = Vec::new();
    let Some(rsdp) = rsdp.and_then(|at| usize::try_from(at.as_u64()).ok()) else { return ids };
    // SAFETY: the bootloader found the root pointer there; the reader checks
    // every table's checksum.
    let tables = match unsafe { AcpiTables::from_rsdp(Window, rsdp) } {
        Ok(tables) => tables,
        Err(error) => {
            log::warn!("firmware's ACPI tables: {error:?}");
            return ids;
        }
    };
    match tables.find_table::<Madt>() {
        Ok(madt) => {
            for entry in madt.get().entries() {
                let (id, flags) = match entry {
                    MadtEntry::LocalApic(apic) => (u32::from(apic.apic_id), apic.flags),
                    MadtEntry::LocalX2Apic(apic) => (apic.x2apic_id, apic.flags),
                    _ => continue,
                };
                if flags & ENABLED != 0 && id != BROADCAST && !ids.contains(&id) {
                    ids.push(id);
                }
            }
        }
        Err(error) => log::warn!("firmware's list of CPUs: {error:?}"),
    }
    ids
}
