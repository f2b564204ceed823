//! The guest's SMBIOS tables (DMTF DSP0134, version 2.8): who made the machine,
//! what it is called, how much memory it has.

use crate::e820::{high_ram_end, low_ram_end};
use alloc::vec::Vec;
use config::layout::HIGH_RAM_START;
use x86defs::{GuestPhysAddr, Low};

/// Bytes in the entry point.
const ENTRY_POINT_SIZE: usize = 0x1f;
/// The structures follow the entry point at this distance.
const TABLE_OFFSET: u64 = 0x20;
const MANUFACTURER: &str = "Steward";
const PRODUCT: &str = "Steward virtual machine";
const VERSION: &str = env!("CARGO_PKG_VERSION");

// Handles of structures that others refer to.
const HANDLE_CHASSIS: u16 = 0x300;
const HANDLE_MEMORY_ARRAY: u16 = 0x1000;

/// No other structure.
const NONE: u16 = 0xffff;
/// No error information.
const NOT_PROVIDED: u16 = 0xfffe;

/// The entry point and the structures, one after the other, for a guest with
/// `memory` bytes and `vcpus` vCPUs, at `base` (a multiple of 16 in the last
/// 64 KiB below 1 MiB). `uuid` is in the order of its text form.
pub(crate) fn build(base: GuestPhysAddr, memory: u64, vcpus: u32, uuid: [u8; 16]) -> Vec<u8> {
    let structures = structures(memory, vcpus, uuid);
    let table: Vec<u8> = structures.iter().flat_map(|s| s.bytes.iter().copied()).collect();
    let largest = structures.iter().map(|s| s.bytes.len()).max().unwrap_or_default();

    // "SMBIOS 2.1 (32-bit) Entry Point".
    let mut entry = Vec::with_capacity(ENTRY_POINT_SIZE);
    entry.extend_from_slice(b"_SM_\0\x1f\x02\x08");
    entry.extend_from_slice(&largest.low16().to_le_bytes());
    entry.extend_from_slice(&[0; 6]);
    entry.extend_from_slice(b"_DMI_\0");
    entry.extend_from_slice(&table.len().low16().to_le_bytes());
    let address = base.wrapping_add(TABLE_OFFSET).as_u64().low32();
    entry.extend_from_slice(&address.to_le_bytes());
    entry.extend_from_slice(&structures.len().low16().to_le_bytes());
    entry.push(0x28);
    // The second checksum first: the first one covers it.
    set_checksum(&mut entry, 0x10, 0x15);
    set_checksum(&mut entry, 0, 4);

    entry.push(0);
    entry.extend_from_slice(&table);
    entry
}

/// Sets the byte at `at` so that all bytes from `start` on add up to 0.
fn set_checksum(bytes: &mut [u8], start: usize, at: usize) {
    let sum = bytes.iter().skip(start).fold(0u8, |sum, byte| sum.wrapping_add(*byte));
    if let Some(byte) = bytes.get_mut(at) {
        *byte = byte.wrapping_sub(sum);
    }
}

/// A structure that is being written: the formatted part, then its strings.
struct Structure {
    bytes: Vec<u8>,
}

impl Structure {
    fn new(kind: u8, handle: u16) -> Self {
        let [low, high] = handle.to_le_bytes();
        Self { bytes: Vec::from([kind, 0, low, high]) }
    }

    fn byte(self, value: u8) -> Self {
        self.raw(&[value])
    }

    fn word(self, value: u16) -> Self {
        self.raw(&value.to_le_bytes())
    }

    fn dword(self, value: u32) -> Self {
        self.raw(&value.to_le_bytes())
    }

    fn qword(self, value: u64) -> Self {
        self.raw(&value.to_le_bytes())
    }

    fn raw(mut self, value: &[u8]) -> Self {
        self.bytes.extend_from_slice(value);
        self
    }

    /// Ends the formatted part and appends the strings that its fields number
    /// from 1.
    fn strings(mut self, strings: &[&str]) -> Self {
        let size = self.bytes.len().low8();
        if let Some(byte) = self.bytes.get_mut(1) {
            *byte = size;
        }
        for string in strings {
            self.bytes.extend_from_slice(string.as_bytes());
            self.bytes.push(0);
        }
        if strings.is_empty() {
            self.bytes.push(0);
        }
        self.bytes.push(0);
        self
    }
}

fn structures(memory: u64, vcpus: u32, uuid: [u8; 16]) -> Vec<Structure> {
    let mut all = Vec::from([bios(), system(uuid), chassis(), processor(vcpus)]);
    all.extend([memory_array(memory), memory_device(memory)]);
    all.push(mapped_range(0, 0, low_ram_end(memory)));
    let high = high_ram_end(memory);
    if high > HIGH_RAM_START {
        all.push(mapped_range(1, HIGH_RAM_START, high));
    }
    // "System Boot Information": no errors detected.
    all.push(Structure::new(32, 0x2000).raw(&[0; 7]).strings(&[]));
    // "End-of-Table".
    all.push(Structure::new(127, 0x7f00).strings(&[]));
    all
}

/// "BIOS Information (Type 0)".
fn bios() -> Structure {
    /// BIOS characteristics are not supported.
    const NO_CHARACTERISTICS: u64 = 1 << 3;
    /// Second extension byte: this is a virtual machine.
    const VIRTUAL_MACHINE: u8 = 1 << 4;
    Structure::new(0, 0)
        .raw(&[1, 2])
        .word(0xe000)
        .raw(&[3, 1])
        .qword(NO_CHARACTERISTICS)
        .raw(&[0, VIRTUAL_MACHINE])
        // Release of this firmware, and of an embedded controller: none.
        .raw(&[0, 0, 0xff, 0xff])
        .strings(&[MANUFACTURER, VERSION, "01/01/2026"])
}

/// "System Information (Type 1)".
fn system(uuid: [u8; 16]) -> Structure {
    const POWER_SWITCH: u8 = 6;
    // The first three fields of the UUID are little-endian here.
    let [a0, a1, a2, a3, b0, b1, c0, c1, rest @ ..] = uuid;
    Structure::new(1, 0x100)
        .raw(&[1, 2, 3, 0])
        .raw(&[a3, a2, a1, a0, b1, b0, c1, c0])
        .raw(&rest)
        .raw(&[POWER_SWITCH, 0, 0])
        .strings(&[MANUFACTURER, PRODUCT, VERSION])
}

/// "System Enclosure or Chassis (Type 3)".
fn chassis() -> Structure {
    const OTHER: u8 = 1;
    const SAFE: u8 = 3;
    const NO_SECURITY: u8 = 3;
    Structure::new(3, HANDLE_CHASSIS)
        .raw(&[1, OTHER, 0, 0, 0])
        .raw(&[SAFE, SAFE, SAFE, NO_SECURITY])
        .dword(0)
        // Height, power cords, contained elements: none; SKU number: none.
        .raw(&[0, 0, 0, 0, 0])
        .strings(&[MANUFACTURER])
}

/// "Processor Information (Type 4)": one package with a core for each vCPU.
fn processor(vcpus: u32) -> Structure {
    const CENTRAL: u8 = 3;
    const OTHER: u8 = 1;
    const UNKNOWN: u8 = 2;
    const POPULATED_ENABLED: u8 = 0x41;
    const CAPABLE_64_BIT: u16 = 1 << 2;
    let cores = u8::try_from(vcpus).unwrap_or(u8::MAX);
    Structure::new(4, 0x400)
        .raw(&[1, CENTRAL, OTHER, 2])
        // CPUID tells who made it; voltage and clocks are unknown.
        .qword(0)
        .byte(0)
        .raw(&[0; 7])
        .raw(&[POPULATED_ENABLED, UNKNOWN])
        .word(NONE)
        .word(NONE)
        .word(NONE)
        .raw(&[0, 0, 0])
        .raw(&[cores, cores, cores])
        .word(CAPABLE_64_BIT)
        .word(OTHER.into())
        .strings(&["CPU 0", MANUFACTURER])
}

/// "Physical Memory Array (Type 16)".
fn memory_array(memory: u64) -> Structure {
    const SYSTEM_BOARD: u8 = 3;
    const SYSTEM_MEMORY: u8 = 3;
    const NO_ERROR_CORRECTION: u8 = 3;
    /// The size stands in the extended field.
    const EXTENDED: u32 = 0x8000_0000;
    let kib = u32::try_from(memory / 1024).ok().filter(|&kib| kib < EXTENDED);
    Structure::new(16, HANDLE_MEMORY_ARRAY)
        .raw(&[SYSTEM_BOARD, SYSTEM_MEMORY, NO_ERROR_CORRECTION])
        .dword(kib.unwrap_or(EXTENDED))
        .word(NOT_PROVIDED)
        .word(1)
        .qword(if kib.is_some() { 0 } else { memory })
        .strings(&[])
}

/// "Memory Device (Type 17)".
fn memory_device(memory: u64) -> Structure {
    const DIMM: u8 = 9;
    const RAM: u8 = 7;
    const OTHER: u16 = 1 << 1;
    /// The size counts KiB.
    const KIB: u16 = 1 << 15;
    /// The size stands in the extended field.
    const EXTENDED: u16 = 0x7fff;
    const MIB: u64 = 1 << 20;
    let (size, extended) = match (memory / 1024, memory / MIB) {
        (kib, _) if !memory.is_multiple_of(MIB) && kib < u64::from(EXTENDED) => {
            (KIB | kib.low16(), 0)
        }
        (_, mib) if mib < u64::from(EXTENDED) => (mib.low16(), 0),
        (_, mib) => (EXTENDED, mib.low32()),
    };
    Structure::new(17, 0x1100)
        .word(HANDLE_MEMORY_ARRAY)
        .word(NOT_PROVIDED)
        .word(64)
        .word(64)
        .word(size)
        .raw(&[DIMM, 0, 1, 0, RAM])
        .word(OTHER)
        .word(0)
        .raw(&[2, 0, 0, 0, 0])
        .dword(extended)
        // Speed and voltages are unknown.
        .raw(&[0; 8])
        .strings(&["DIMM 0", MANUFACTURER])
}

/// "Memory Array Mapped Address (Type 19)": `start` to `end`, both multiples
/// of 1 KiB.
fn mapped_range(index: u16, start: u64, end: u64) -> Structure {
    /// The addresses stand in the extended fields.
    const EXTENDED: u32 = u32::MAX;
    let first = u32::try_from(start / 1024).unwrap_or(EXTENDED);
    let last = u32::try_from((end / 1024).saturating_sub(1)).unwrap_or(EXTENDED);
    let structure = Structure::new(19, 0x1300 + index);
    if first == EXTENDED || last == EXTENDED {
        structure.dword(EXTENDED).dword(EXTENDED)
    } else {
        structure.dword(first).dword(last)
    }
    .word(HANDLE_MEMORY_ARRAY)
    .byte(1)
    .qword(if last == EXTENDED { start } else { 0 })
    .qword(if last == EXTENDED { end - 1 } else { 0 })
    .strings(&[])
}

#[cfg(test)]
mod tests;
