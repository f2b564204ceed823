//! Firmware's tables of the machine: its CPUs, how it is switched off, and its clocks. The
//! code that decides is in [`x86defs::acpi`]; here is the memory that it looks at.

use crate::cpu;
use crate::cpu::power::SoftOff;
use crate::mm;
use alloc::vec::Vec;
use x86defs::HostPhysAddr;
use x86defs::acpi::tables::{HEADER, Memory, Tables, processors, table};
use x86defs::acpi::{FixedTable, PmTimer, hpet_base, soft_off_types};

/// Firmware's memory, mapped read-only where it is looked at: a few pages, once at boot,
/// that stay mapped.
struct Window;

impl Memory for Window {
    fn bytes(&self, at: u64, len: u32) -> Option<&[u8]> {
        // An address beyond the CPU's physical bits must not get into page tables.
        let bits = cpu::cpuid_checked(0x8000_0008, 0).eax & 0xff;
        let last = at.checked_add(len.into())?;
        if last.checked_shr(bits.max(32)).is_some_and(|rest| rest != 0) {
            return None;
        }
        let start = mm::map_firmware(HostPhysAddr::new(at), len.into())?;
        // SAFETY: it was just mapped, read-only and for good, and nobody writes to it.
        Some(unsafe { core::slice::from_raw_parts(start as *const u8, len as usize) })
    }
}

/// Facts in the tables that the hypervisor needs.
#[derive(Debug, Default)]
pub(super) struct Firmware {
    /// The local-APIC identifiers of all CPUs that are ready for use, in firmware's
    /// order.
    pub(super) cpus: Vec<u32>,
    /// How the machine is switched off.
    pub(super) soft_off: Option<SoftOff>,
    /// The power-management timer.
    pub(super) pm_timer: Option<PmTimer>,
    /// Host-physical address of the HPET's registers.
    pub(super) hpet: Option<u64>,
}

/// Reads the tables; nothing is known where there are none.
pub(super) fn read(rsdp: Option<HostPhysAddr>) -> Firmware {
    let Some(rsdp) = rsdp else { return Firmware::default() };
    match Tables::open(&Window, rsdp.as_u64()) {
        Ok(tables) => {
            let fixed = tables.find(*b"FACP").ok();
            Firmware {
                cpus: cpus(&tables),
                soft_off: fixed.and_then(soft_off),
                pm_timer: fixed.and_then(PmTimer::read),
                hpet: tables.find(*b"HPET").ok().and_then(hpet_base),
            }
        }
        Err(error) => {
            log::warn!("firmware's ACPI tables: {error}");
            Firmware::default()
        }
    }
}

/// Reads how the machine is switched off; `None` where firmware has it done by other
/// means than the fixed registers. Nothing of it may keep the machine from its work.
fn soft_off(fixed: &[u8]) -> Option<SoftOff> {
    let fixed = FixedTable::read(fixed)?;
    let code = table(&Window, fixed.dsdt, *b"DSDT").ok()?.get(HEADER..)?;
    let types = soft_off_types(code)?;
    Some(SoftOff { control: fixed.control, types, enable: fixed.enable })
}

/// The local-APIC identifiers of all CPUs that are ready for use.
fn cpus(tables: &Tables<'_, Window>) -> Vec<u32> {
    let mut ids = Vec::new();
    match tables.find(*b"APIC") {
        Ok(madt) => {
            for id in processors(madt) {
                if !ids.contains(&id) {
                    ids.push(id);
                }
            }
        }
        Err(error) => log::warn!("firmware's list of CPUs: {error}"),
    }
    ids
}
