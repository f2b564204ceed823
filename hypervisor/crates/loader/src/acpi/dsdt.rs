//! The DSDT: the machine's devices in AML (ACPI: "ACPI Machine Language (AML)
//! Specification").

use super::{HEADER_SIZE, OEM_ID, OEM_REVISION, OEM_TABLE_ID};
use acpi_tables::Aml;
use acpi_tables::aml::{
    AddressSpace, AddressSpaceCacheable, Device, EISAName, IO, Interrupt, Name, Package,
    PackageBuilder, Path, ResourceTemplate, Scope, ZERO,
};
use acpi_tables::sdt::Sdt;
use alloc::vec::Vec;
use alloc::{format, vec};
use config::layout::{
    COM1_IRQ, COM1_PORT, FIRMWARE_PORT, HIGH_PCI_WINDOW_END, HIGH_PCI_WINDOW_START, PCI_SLOTS,
    PCI_WINDOW_END, PCI_WINDOW_START, PM1A_EVENT_PORT, PVPANIC_PORT, RTC_IRQ, SLEEP_TYPE_S5,
    pci_ioapic_pin,
};
use x86defs::Low;

/// The revision that makes integers 64 bits wide.
const REVISION: u8 = 2;
/// `_STA`: present, enabled, shown and working.
const PRESENT: u8 = 0xf;
/// Ports of PCI configuration mechanism 1.
const PCI_CONFIG_PORT: u16 = 0xcf8;
const PCI_CONFIG_PORTS: u8 = 8;
/// Ports by which the ROM says that it was entered.
const FIRMWARE_PORTS: u8 = 4;
/// Ports of the power-management registers.
const PM_PORTS: u8 = 12;

/// The whole table.
pub(super) fn build(vcpus: u32) -> Vec<u8> {
    let mut dsdt = Sdt::new(*b"DSDT", HEADER_SIZE, REVISION, OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    let mut sleep = Vec::new();
    sleep_state(&mut sleep);
    dsdt.append_slice(&sleep);
    let mut devices = Vec::new();
    pci_root(&mut devices);
    legacy_devices(&mut devices);
    for id in 0..vcpus {
        processor(id, &mut devices);
    }
    dsdt.append_slice(&Scope::raw(Path::new("\\_SB_"), devices));
    dsdt.as_slice().to_vec()
}

/// How to power off: what to write to PM1a's SLP_TYP.
fn sleep_state(sink: &mut Vec<u8>) {
    let values = Package::new(vec![&SLEEP_TYPE_S5, &ZERO, &ZERO, &ZERO]);
    Name::new(Path::new("_S5_"), &values).to_aml_bytes(sink);
}

/// The PCI host bridge, bus 0.
fn pci_root(devices: &mut Vec<u8>) {
    let buses = AddressSpace::<u16>::new_bus_number(0, 0);
    let config = IO::new(PCI_CONFIG_PORT, PCI_CONFIG_PORT, 1, PCI_CONFIG_PORTS);
    // Ports for PCI devices: every port but those of the bridge itself.
    let low_ports = AddressSpace::<u16>::new_io(0, PCI_CONFIG_PORT - 1, None);
    let high_ports =
        AddressSpace::<u16>::new_io(PCI_CONFIG_PORT + u16::from(PCI_CONFIG_PORTS), 0xffff, None);
    let memory = AddressSpace::<u32>::new_memory(
        AddressSpaceCacheable::NotCacheable,
        true,
        PCI_WINDOW_START.low32(),
        (PCI_WINDOW_END - 1).low32(),
        None,
    );
    let high_memory = AddressSpace::<u64>::new_memory(
        AddressSpaceCacheable::NotCacheable,
        true,
        HIGH_PCI_WINDOW_START,
        HIGH_PCI_WINDOW_END - 1,
        None,
    );
    let resources = ResourceTemplate::new(vec![
        &buses,
        &config,
        &low_ports,
        &high_ports,
        &memory,
        &high_memory,
    ]);

    let mut routing = PackageBuilder::new();
    for slot in 0..PCI_SLOTS {
        for pin in 0..4 {
            // Any function of the device; pin; no link device; the I/O APIC's input.
            let address = u32::from(slot) << 16 | 0xffff;
            let gsi = pci_ioapic_pin(slot, pin);
            routing.add_element(&Package::new(vec![&address, &pin, &ZERO, &gsi]));
        }
    }
    Device::new(
        Path::new("PCI0"),
        vec![
            &Name::new(Path::new("_HID"), &EISAName::new("PNP0A03")),
            &Name::new(Path::new("_UID"), &ZERO),
            &Name::new(Path::new("_BBN"), &ZERO),
            &Name::new(Path::new("_CRS"), &resources),
            &Name::new(Path::new("_PRT"), &routing),
        ],
    )
    .to_aml_bytes(devices);
}

/// Devices that every PC has, and pvpanic.
fn legacy_devices(devices: &mut Vec<u8>) {
    let ports = |first: u16, count: u8| IO::new(first, first, 1, count);
    // ISA interrupts: edge-triggered, active high, not shared.
    let interrupt = |irq: u8| Interrupt::new(true, true, false, false, irq.into());
    let mut add = |name: &str, id: &dyn Aml, uid: u8, resources: Vec<&dyn Aml>| {
        Device::new(
            Path::new(name),
            vec![
                &Name::new(Path::new("_HID"), id),
                &Name::new(Path::new("_UID"), &uid),
                &Name::new(Path::new("_STA"), &PRESENT),
                &Name::new(Path::new("_CRS"), &ResourceTemplate::new(resources)),
            ],
        )
        .to_aml_bytes(devices);
    };
    let eisa = EISAName::new;
    add("PIC_", &eisa("PNP0000"), 0, vec![&ports(0x20, 2), &ports(0xa0, 2), &ports(0x4d0, 2)]);
    add("TIMR", &eisa("PNP0100"), 0, vec![&ports(0x40, 4), &interrupt(0)]);
    add("SPKR", &eisa("PNP0800"), 0, vec![&ports(0x61, 1)]);
    add("RTC_", &eisa("PNP0B00"), 0, vec![&ports(0x70, 2), &interrupt(RTC_IRQ)]);
    add("COM1", &eisa("PNP0501"), 1, vec![&ports(COM1_PORT, 8), &interrupt(COM1_IRQ)]);
    // The power-management registers and the ROM's port, so that nothing else is put there.
    let (pm, firmware) = (ports(PM1A_EVENT_PORT, PM_PORTS), ports(FIRMWARE_PORT, FIRMWARE_PORTS));
    add("PMRG", &eisa("PNP0C02"), 0, vec![&pm, &firmware]);
    add("PEVT", &"QEMU0001", 0, vec![&ports(PVPANIC_PORT, 1)]);
}

/// A processor device; its UID is that of its local APIC in the MADT.
fn processor(id: u32, devices: &mut Vec<u8>) {
    Device::new(
        Path::new(&format!("C{:03X}", id & 0xfff)),
        vec![&Name::new(Path::new("_HID"), &"ACPI0007"), &Name::new(Path::new("_UID"), &id)],
    )
    .to_aml_bytes(devices);
}
