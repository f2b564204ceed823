//! Places of things in a guest's machine: one PC, described once, for the buses, the ACPI tables,
//! the E820 map and the loaders.

use x86defs::GuestPhysAddr;

/// RAM ends here at the latest: 384 GiB. PCI devices have what is above it.
pub const RAM_LIMIT: u64 = 384 << 30;
/// PCI memory window above RAM.
pub const HIGH_PCI_WINDOW_START: u64 = RAM_LIMIT;
/// End of the PCI memory window above RAM.
pub const HIGH_PCI_WINDOW_END: u64 = GuestPhysAddr::END;
/// Conventional memory ends here; an extended BIOS data area would follow.
pub const LOW_RAM_END: u64 = 0x9_fc00;
/// The legacy video hole begins here.
pub const LEGACY_HOLE_START: u64 = 0xa_0000;
/// The legacy hole ends here: RAM goes on at 1 MiB.
pub const LEGACY_HOLE_END: u64 = 0x10_0000;
/// ACPI, SMBIOS and MP tables and the ROM's code are written from here to 1 MiB; the guest sees the
/// range as reserved RAM.
pub const TABLES_START: u64 = 0xe_0000;
/// The upper part of that range is read-only for the guest, as firmware's ROM
/// is: what it writes there is lost.
pub const ROM_START: u64 = 0xf_0000;
/// The ROM's code, from here to 1 MiB; the tables end here at the latest.
pub const ROM_CODE_START: u64 = 0xf_f000;
/// From video memory's place to those tables a guest has nothing: the range reads as an empty bus
/// does, all ones, without an exit, and what is written there is lost.
pub const LOW_HOLE: core::ops::Range<u64> = LEGACY_HOLE_START..TABLES_START;
/// RAM below 4 GiB ends here at the latest; what is left goes above 4 GiB.
pub const LOW_RAM_LIMIT: u64 = 0xc000_0000;
/// PCI memory window below 4 GiB.
pub const PCI_WINDOW_START: u64 = 0xc000_0000;
/// End of the PCI memory window below 4 GiB.
pub const PCI_WINDOW_END: u64 = 0xfec0_0000;
/// I/O APIC registers.
pub const IOAPIC_BASE: u64 = 0xfec0_0000;
/// Bytes of I/O APIC registers.
pub const IOAPIC_SIZE: u64 = 0x1000;
/// Local APIC registers after reset.
pub const LAPIC_BASE: u64 = 0xfee0_0000;
/// Bytes of local APIC registers.
pub const LAPIC_SIZE: u64 = 0x1000;
/// RAM above 4 GiB starts here.
pub const HIGH_RAM_START: u64 = 0x1_0000_0000;
/// Bytes of RAM in the largest guest: 383 GiB, as those between [`LOW_RAM_LIMIT`] and 4 GiB
/// are lost to devices.
pub const MAX_RAM: u64 = RAM_LIMIT - (HIGH_RAM_START - LOW_RAM_LIMIT);
const _: () = assert!(RAM_LIMIT < GuestPhysAddr::END && MAX_RAM > LOW_RAM_LIMIT);

/// ACPI PM1a event block (status 16 bits, enable 16 bits).
pub const PM1A_EVENT_PORT: u16 = 0x600;
/// ACPI PM1a control block (16 bits).
pub const PM1A_CONTROL_PORT: u16 = 0x604;
/// ACPI power-management timer (32 bits, 3.579545 MHz).
pub const PM_TIMER_PORT: u16 = 0x608;
/// Reset control register; ACPI's reset register too (value [`RESET_VALUE`]).
pub const RESET_PORT: u16 = 0xcf9;
/// The value that resets the machine when written to [`RESET_PORT`].
pub const RESET_VALUE: u8 = 0x06;
/// SLP_TYP value of the state S5 (soft off).
pub const SLEEP_TYPE_S5: u8 = 5;
/// The ACPI system control interrupt, level-triggered, active high.
pub const SCI_IRQ: u8 = 9;
/// The pvpanic device's port.
pub const PVPANIC_PORT: u16 = 0x505;
/// By this port the ROM says that it was entered (module `rom` of the crate `loader`).
pub const FIRMWARE_PORT: u16 = 0x508;
/// The value that the ROM writes to [`FIRMWARE_PORT`] when it is entered at its reset vector.
pub const FIRMWARE_RESET: u32 = 1 << 24;
/// The debug-exit port, where a guest's settings switch it on.
pub const DEBUG_EXIT_PORT: u16 = 0xf4;
/// First port of those by which tests have a guest's exits written down (module `trace` of the
/// crate `vmm`); they are there if the debug-exit port is.
pub const TRACE_PORT: u16 = 0xf8;
/// First serial port.
pub const COM1_PORT: u16 = 0x3f8;
/// Its interrupt.
pub const COM1_IRQ: u8 = 4;
/// Interrupt of the RTC.
pub const RTC_IRQ: u8 = 8;
/// The PIT's channel 0 drives ISA interrupt 0, which is wired to this input.
pub const IOAPIC_PIT_PIN: u8 = 2;
/// The I/O APIC's identity.
pub const IOAPIC_ID: u8 = 0;
/// Devices on PCI bus 0.
pub const PCI_SLOTS: u8 = 32;
/// The first I/O APIC input that PCI interrupts are wired to; eight in all.
pub const PCI_FIRST_PIN: u8 = 16;
/// How many I/O APIC inputs PCI interrupts share.
pub const PCI_PINS: u8 = 8;

/// The I/O APIC input that pin `pin` (0 is INTA#, 3 is INTD#) of the device in
/// `slot` drives: level-triggered, active low, as PCI has it.
#[must_use]
pub const fn pci_ioapic_pin(slot: u8, pin: u8) -> u8 {
    PCI_FIRST_PIN + slot.wrapping_add(pin) % PCI_PINS
}
