//! What firmware's tables say of the machine: its CPUs (ACPI: "Multiple APIC Description
//! Table (MADT)"), how it is switched off (ACPI: "Fixed ACPI Description Table (FADT)"), and
//! its clocks.

use crate::cpu;
use crate::cpu::power::SoftOff;
use crate::mm;
use acpi::fadt::Fadt;
use acpi::hpet::HpetTable;
use acpi::madt::{Madt, MadtEntry};
use acpi::sdt::SdtHeader;
use acpi::{AcpiHandler, AcpiTable, AcpiTables, PhysicalMapping};
use alloc::vec::Vec;
use core::ptr::NonNull;
use x86defs::HostPhysAddr;
use x86defs::acpi::{FixedTable, PmTimer, hpet_base, soft_off_types};

/// MADT: the processor is ready for use.
const ENABLED: u32 = 1 << 0;
/// Where a table's header has its length.
const LENGTH: u64 = 4;
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

/// What the hypervisor wants to know.
#[derive(Debug, Default)]
pub(super) struct Firmware {
    /// The local-APIC identifiers of all CPUs that are ready for use, in firmware's
    /// order.
    pub(super) cpus: Vec<u32>,
    /// How the machine is switched off.
    pub(super) soft_off: Option<SoftOff>,
    /// The power-management timer.
    pub(super) pm_timer: Option<PmTimer>,
    /// Where the HPET's registers are.
    pub(super) hpet: Option<u64>,
}

/// Reads the tables; nothing is known where there are none.
pub(super) fn read(rsdp: Option<HostPhysAddr>) -> Firmware {
    let Some(rsdp) = rsdp.and_then(|at| usize::try_from(at.as_u64()).ok()) else {
        return Firmware::default();
    };
    // SAFETY: the bootloader found the root pointer there; the reader checks
    // every table's checksum.
    match unsafe { AcpiTables::from_rsdp(Window, rsdp) } {
        Ok(tables) => {
            let fixed = whole_table::<Fadt>(&tables);
            Firmware {
                cpus: cpus(&tables),
                soft_off: fixed.and_then(soft_off),
                pm_timer: fixed.and_then(PmTimer::read),
                hpet: whole_table::<HpetTable>(&tables).and_then(hpet_base),
            }
        }
        Err(error) => {
            log::warn!("firmware's ACPI tables: {error:?}");
            Firmware::default()
        }
    }
}

/// The bytes of a table; `None` where there is none.
fn whole_table<T: AcpiTable>(tables: &AcpiTables<Window>) -> Option<&'static [u8]> {
    let found = tables.find_table::<T>().ok()?;
    table(found.physical_start() as u64)
}

/// Reads how the machine is switched off; `None` where firmware has it done by other
/// means than the fixed registers. Nothing of it may keep the machine from its work.
fn soft_off(fixed: &[u8]) -> Option<SoftOff> {
    let fixed = FixedTable::read(fixed)?;
    let code = table(fixed.dsdt)?.get(size_of::<SdtHeader>()..)?;
    let types = soft_off_types(code)?;
    Some(SoftOff { control: fixed.control, types, enable: fixed.enable })
}

/// A table of firmware's; `None` where that can't be one.
fn table(at: u64) -> Option<&'static [u8]> {
    // What no address can be must not get into page tables.
    let bits = cpu::cpuid_checked(0x8000_0008, 0).eax & 0xff;
    let at = Some(at).filter(|at| at.checked_shr(bits.max(32)).is_none_or(|rest| rest == 0))?;
    let header = mm::map_firmware(HostPhysAddr::new(at), size_of::<SdtHeader>() as u64)?;
    // SAFETY: it was just mapped, read-only and for good; any bytes are a length.
    let length = unsafe { ((header + LENGTH) as *const u32).read_unaligned() };
    let start = mm::map_firmware(HostPhysAddr::new(at), length.into())?;
    // SAFETY: as above, and nobody writes to it.
    Some(unsafe { core::slice::from_raw_parts(start as *const u8, length as usize) })
}

/// The local-APIC identifiers of all CPUs that are ready for use.
fn cpus(tables: &AcpiTables<Window>) -> Vec<u32> {
    let mut ids = Vec::new();
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
