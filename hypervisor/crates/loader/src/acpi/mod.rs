//! The guest's ACPI tables (ACPI 6.5: "ACPI Software Programming Model"): what
//! [`config::layout`] says, in the form that an operating system reads.
//!
//! RSDP, XSDT, FADT, FACS, MADT and DSDT, in one block that begins with the
//! RSDP. There is neither HPET nor MCFG: the machine has neither.

mod dsdt;
#[cfg(test)]
mod tests;

use acpi_tables::Aml;
use acpi_tables::facs::FACS;
use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::madt::{EnabledStatus, IoApic, ProcessorLocalApic};
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use alloc::vec::Vec;
use config::layout::{
    IOAPIC_BASE, IOAPIC_ID, IOAPIC_PIT_PIN, LAPIC_BASE, PM_TIMER_PORT, PM1A_CONTROL_PORT,
    PM1A_EVENT_PORT, RESET_PORT, RESET_VALUE, SCI_IRQ,
};
use x86defs::{GuestPhysAddr, Low};

/// Maker of the tables.
const OEM_ID: [u8; 6] = *b"STEWRD";
/// Machine that the tables are for.
const OEM_TABLE_ID: [u8; 8] = *b"STEWARD ";
const OEM_REVISION: u32 = 1;

/// Bytes in the header that most tables begin with.
const HEADER_SIZE: u32 = 36;

/// A table and where it goes.
#[derive(Clone, Debug)]
pub(crate) struct Table {
    /// Signature of the table.
    pub(crate) name: &'static str,
    /// Address of the table.
    pub(crate) address: GuestPhysAddr,
    /// Contents of the table.
    pub(crate) bytes: Vec<u8>,
}

/// The tables of a guest with `vcpus` vCPUs, from `base` (a multiple of 64,
/// below 4 GiB) up; the first one is the RSDP.
pub(crate) fn build(base: GuestPhysAddr, vcpus: u32) -> Vec<Table> {
    let mut tables = Vec::new();
    // The RSDP points to the rest: its place is kept.
    let mut next = base.wrapping_add(64);
    let mut add = |name, align: u64, bytes: Vec<u8>| {
        let address = next.align_up(align).unwrap_or(next);
        next = address.wrapping_add(bytes.len() as u64);
        tables.push(Table { name, address, bytes });
        address
    };
    let facs = add("FACS", 64, bytes_of(&FACS::new()));
    let dsdt = add("DSDT", 16, dsdt::build(vcpus));
    let fadt = add("FACP", 16, bytes_of(&fadt(facs, dsdt)));
    let madt = add("APIC", 16, madt(vcpus));
    let mut xsdt = XSDT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    xsdt.add_entry(fadt.as_u64());
    xsdt.add_entry(madt.as_u64());
    let xsdt = add("XSDT", 16, bytes_of(&xsdt));
    let rsdp = bytes_of(&Rsdp::new(OEM_ID, xsdt.as_u64()));
    tables.insert(0, Table { name: "RSDP", address: base, bytes: rsdp });
    tables
}

fn bytes_of(table: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    table.to_aml_bytes(&mut bytes);
    bytes
}

/// ACPI: "Fixed ACPI Description Table (FADT)". The machine is always in ACPI
/// mode, so there is no SMI command port; the power button is a fixed feature
/// (its flag, which would make it a device of its own, is clear).
fn fadt(facs: GuestPhysAddr, dsdt: GuestPhysAddr) -> acpi_tables::fadt::FADT {
    /// IA-PC boot flag: devices of the ISA bus.
    const LEGACY_DEVICES: u16 = 1 << 0;
    /// IA-PC boot flag: a keyboard controller.
    const CONTROLLER_8042: u16 = 1 << 1;
    /// IA-PC boot flag: nothing answers at VGA's addresses.
    const VGA_NOT_PRESENT: u16 = 1 << 2;
    /// A latency that says: there is no such state.
    const NO_C2: u16 = 101;
    const NO_C3: u16 = 1001;
    /// RTC register of the century.
    const CENTURY: u8 = 0x32;

    let port = |bits, access, port: u16| {
        GAS::new(AddressSpace::SystemIo, bits, 0, access, u64::from(port))
    };
    let mut fadt = FADTBuilder::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION)
        .firmware_ctrl_32(facs.as_u64().low32())
        .flag(Flags::Wbinvd)
        .flag(Flags::ProcC1)
        .flag(Flags::SlpButton)
        .flag(Flags::FixRtc)
        .flag(Flags::TmrValExt)
        .flag(Flags::ResetRegSup);
    fadt.dsdt = dsdt.as_u64().low32().into();
    fadt.x_dsdt = dsdt.as_u64().into();
    fadt.sci_int = u16::from(SCI_IRQ).into();
    fadt.pm1a_evt_blk = u32::from(PM1A_EVENT_PORT).into();
    fadt.pm1_evt_len = 4;
    fadt.x_pm1a_evt_blk = port(32, AccessSize::WordAccess, PM1A_EVENT_PORT);
    fadt.pm1a_cnt_blk = u32::from(PM1A_CONTROL_PORT).into();
    fadt.pm1_cnt_len = 2;
    fadt.x_pm1a_cnt_blk = port(16, AccessSize::WordAccess, PM1A_CONTROL_PORT);
    fadt.pm_tmr_blk = u32::from(PM_TIMER_PORT).into();
    fadt.pm_tmr_len = 4;
    fadt.x_pm_tmr_blk = port(32, AccessSize::DwordAccess, PM_TIMER_PORT);
    fadt.p_lvl2_lat = NO_C2.into();
    fadt.p_lvl3_lat = NO_C3.into();
    fadt.century = CENTURY;
    fadt.iapc_boot_arch = (LEGACY_DEVICES | CONTROLLER_8042 | VGA_NOT_PRESENT).into();
    fadt.reset_reg = port(8, AccessSize::ByteAccess, RESET_PORT);
    fadt.reset_value = RESET_VALUE;
    fadt.finalize()
}

/// ACPI: "Multiple APIC Description Table (MADT)". A vCPU's local APIC has the
/// vCPU's number as its identity, which is its ACPI processor UID too.
fn madt(vcpus: u32) -> Vec<u8> {
    /// The revision of ACPI 6.3 to 6.5.
    const REVISION: u8 = 5;
    /// There are 8259s too, to be masked.
    const PCAT_COMPAT: u32 = 1;
    const PROCESSOR_LOCAL_X2APIC: u8 = 9;
    const ENABLED: u32 = 1;
    const INTERRUPT_OVERRIDE: u8 = 2;
    const LOCAL_APIC_NMI: u8 = 4;
    const LOCAL_X2APIC_NMI: u8 = 10;
    /// "MPS INTI Flags": polarity and trigger mode as the bus has them.
    const CONFORMS: u16 = 0;
    const ACTIVE_HIGH_LEVEL: u16 = 0b11_01;
    const ISA: u8 = 0;
    const ALL_PROCESSORS: u8 = 0xff;
    const ALL_X2APIC_PROCESSORS: u32 = u32::MAX;
    const LINT1: u8 = 1;
    /// Identities from here on need x2APIC entries; 255 is the broadcast.
    const FIRST_X2APIC: u32 = 255;

    let mut madt = Sdt::new(*b"APIC", HEADER_SIZE, REVISION, OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    madt.append_slice(&LAPIC_BASE.low32().to_le_bytes());
    madt.append_slice(&PCAT_COMPAT.to_le_bytes());
    for id in 0..vcpus.min(FIRST_X2APIC) {
        let apic = ProcessorLocalApic::new(id.low8(), id.low8(), EnabledStatus::Enabled);
        madt.append_slice(&bytes_of(&apic));
    }
    for id in FIRST_X2APIC..vcpus {
        madt.append_slice(&[PROCESSOR_LOCAL_X2APIC, 16, 0, 0]);
        for word in [id, ENABLED, id] {
            madt.append_slice(&word.to_le_bytes());
        }
    }
    madt.append_slice(&bytes_of(&IoApic::new(IOAPIC_ID, IOAPIC_BASE.low32(), 0)));
    let mut wire = |irq: u8, pin: u8, flags: u16| {
        madt.append_slice(&[INTERRUPT_OVERRIDE, 10, ISA, irq]);
        madt.append_slice(&u32::from(pin).to_le_bytes());
        madt.append_slice(&flags.to_le_bytes());
    };
    wire(0, IOAPIC_PIT_PIN, CONFORMS);
    wire(SCI_IRQ, SCI_IRQ, ACTIVE_HIGH_LEVEL);
    madt.append_slice(&[LOCAL_APIC_NMI, 6, ALL_PROCESSORS, 0, 0, LINT1]);
    if vcpus > FIRST_X2APIC {
        madt.append_slice(&[LOCAL_X2APIC_NMI, 12, 0, 0]);
        madt.append_slice(&ALL_X2APIC_PROCESSORS.to_le_bytes());
        madt.append_slice(&[LINT1, 0, 0, 0]);
    }
    madt.as_slice().to_vec()
}
