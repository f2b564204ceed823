//! Writes the tables that firmware would have left in memory: the interrupt vector table and the
//! ROM behind it, the BIOS data area, the ACPI tables, SMBIOS, the MP table.

use crate::{acpi, mptable, rom, smbios};
use config::layout::{
    COM1_PORT, LEGACY_HOLE_START, LOW_RAM_END, ROM_CODE_START, ROM_START, TABLES_START,
};
use memory::{GuestMemory, MemoryError};
use x86defs::{GuestPhysAddr, Low};

/// SMBIOS goes here, and the MP table behind it: their anchors are looked for in the last
/// 64 KiB below 1 MiB.
const SMBIOS_START: u64 = ROM_START;

/// BIOS data area: the segment in which real mode finds it.
const BDA: u64 = 0x400;
/// Equipment: a numeric coprocessor, one serial port.
const EQUIPMENT: u16 = 1 << 1 | 1 << 9;
/// BIOS data area: base port of the first serial port.
const BDA_COM1: u64 = 0x400;
/// BIOS data area: segment of the extended BIOS data area.
const BDA_EBDA_SEGMENT: u64 = 0x40e;

/// Contents of the tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TablesConfig {
    /// The guest's memory in bytes, at least 1 MiB.
    pub memory: u64,
    /// Number of vCPUs. vCPU n has APIC identity n.
    pub vcpus: u32,
    /// The machine's UUID, its bytes in the order of the text form.
    pub uuid: [u8; 16],
}

/// Addresses of the tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TableAddresses {
    /// The ACPI root pointer (RSDP), in 0xe0000 to 0xfffff so that a scan finds it.
    pub rsdp: GuestPhysAddr,
    /// The SMBIOS entry point, in 0xf0000 to 0xfffff so that a scan finds it.
    pub smbios: GuestPhysAddr,
}

/// Why the tables could not be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TablesError {
    /// The tables don't fit into their part of memory.
    #[error("the {what} table ends at {end:#x}, beyond {limit:#x}; give the guest fewer vCPUs")]
    NoRoom {
        /// Name of the table that does not fit.
        what: &'static str,
        /// End of the table.
        end: u64,
        /// The highest end that is allowed.
        limit: u64,
    },
    /// The guest's memory could not be written.
    #[error("writing firmware tables: {0}")]
    Memory(#[from] MemoryError),
}

/// Writes all tables into a guest's memory.
///
/// # Errors
/// [`TablesError::NoRoom`] for absurd numbers of vCPUs, before anything is
/// written; [`TablesError::Memory`] where there is no RAM.
pub fn write_tables(
    memory: &impl GuestMemory,
    config: &TablesConfig,
) -> Result<TableAddresses, TablesError> {
    let fits = |what, end: u64, limit: u64| {
        if end <= limit { Ok(()) } else { Err(TablesError::NoRoom { what, end, limit }) }
    };
    let rsdp = GuestPhysAddr::new(TABLES_START);
    let acpi = acpi::build(rsdp, config.vcpus);
    for table in &acpi {
        fits(table.name, table.address.as_u64() + table.bytes.len() as u64, SMBIOS_START)?;
    }
    let smbios = GuestPhysAddr::new(SMBIOS_START);
    let bytes = smbios::build(smbios, config.memory, config.vcpus, config.uuid);
    let behind = (SMBIOS_START + bytes.len() as u64).next_multiple_of(16);
    let mp = GuestPhysAddr::new(behind);
    let mp_bytes = mptable::build(mp, config.vcpus);
    fits("SMBIOS", behind, ROM_CODE_START)?;
    fits("MP", behind + mp_bytes.len() as u64, ROM_CODE_START)?;

    for table in &acpi {
        memory.write(table.address, &table.bytes)?;
    }
    memory.write(smbios, &bytes)?;
    memory.write(mp, &mp_bytes)?;
    memory.write(GuestPhysAddr::new(ROM_CODE_START), &rom::code())?;
    memory.write(GuestPhysAddr::new(0), &rom::vectors())?;

    // The extended BIOS data area is where conventional memory ends; its first
    // byte is its size in KiB.
    let word = |at, value: u64| memory.write(GuestPhysAddr::new(at), &value.low16().to_le_bytes());
    word(BDA_COM1, COM1_PORT.into())?;
    word(BDA_EBDA_SEGMENT, LOW_RAM_END >> 4)?;
    word(BDA + u64::from(rom::BDA_EQUIPMENT), EQUIPMENT.into())?;
    word(BDA + u64::from(rom::BDA_MEMORY), LOW_RAM_END >> 10)?;
    word(LOW_RAM_END, (LEGACY_HOLE_START - LOW_RAM_END) >> 10)?;
    Ok(TableAddresses { rsdp, smbios })
}
