//! The MP table (Intel: "MultiProcessor Specification", version 1.4): vCPUs and interrupt wiring
//! for kernels that don't read ACPI's (Linux' `acpi=off` and `acpi=noirq`).

use alloc::vec::Vec;
use config::layout::{
    IOAPIC_BASE, IOAPIC_ID, IOAPIC_PIT_PIN, LAPIC_BASE, PCI_SLOTS, SCI_IRQ, pci_ioapic_pin,
};
use x86defs::{GuestPhysAddr, Low};

/// Revision 1.4, in both structures.
const REVISION: u8 = 4;
/// Bytes of the floating pointer structure.
const POINTER_SIZE: u64 = 16;
/// Bytes of the configuration table's header.
const HEADER_SIZE: u16 = 44;
/// A local APIC has an identity of eight bits here, and 255 is the broadcast.
const MAX_PROCESSORS: u32 = 255;

// "Base MP Configuration Table Entries": the entries' types.
const PROCESSOR: u8 = 0;
const BUS: u8 = 1;
const IO_APIC: u8 = 2;
const IO_INTERRUPT: u8 = 3;
const LOCAL_INTERRUPT: u8 = 4;

const ENABLED: u8 = 1 << 0;
const BOOTSTRAP: u8 = 1 << 1;
/// Version registers of the local and the I/O APIC.
const LAPIC_VERSION: u8 = 0x14;
const IOAPIC_VERSION: u8 = 0x20;
/// Processor feature flags: a floating point unit and an APIC. Nobody decides by them where
/// there is CPUID.
const PROCESSOR_FEATURES: u32 = 1 << 0 | 1 << 9;
/// Family 6, in the format of CPUID's signature.
const PROCESSOR_SIGNATURE: u32 = 0x600;

/// The buses' numbers: PCI's is that of the bus.
const PCI_BUS: u8 = 0;
const ISA_BUS: u8 = 1;

/// Interrupt type in an interrupt's entry.
#[derive(Clone, Copy)]
#[repr(u8)]
enum Kind {
    /// INT: the vector comes from the APIC.
    Vectored = 0,
    Nmi = 1,
    /// ExtINT: the vector comes from the 8259s.
    External = 3,
}

/// "I/O Interrupt Assignment Entries": polarity and trigger mode.
#[derive(Clone, Copy)]
#[repr(u16)]
enum Signal {
    /// Polarity and trigger mode as the bus has them.
    Conforms = 0,
    ActiveHighLevel = 0b11_01,
    ActiveLowLevel = 0b11_11,
}

/// The pointer, to be found by a scan of the ROM, and the table behind it, at `base` (a multiple
/// of 16 in the last 64 KiB below 1 MiB), for a guest with `vcpus` vCPUs. vCPU n has the APIC
/// identity n; those that eight bits can't name are left out.
pub(crate) fn build(base: GuestPhysAddr, vcpus: u32) -> Vec<u8> {
    let entries = entries(vcpus.min(MAX_PROCESSORS));
    let length = entries.iter().fold(HEADER_SIZE, |sum, entry| sum + entry.len().low16());

    // "MP Configuration Table Header".
    let mut table = Vec::from(*b"PCMP");
    table.extend_from_slice(&length.to_le_bytes());
    table.extend_from_slice(&[REVISION, 0]);
    table.extend_from_slice(b"STEWARD VIRTUAL PC  ");
    // No table of an OEM's.
    table.extend_from_slice(&[0; 6]);
    table.extend_from_slice(&entries.len().low16().to_le_bytes());
    table.extend_from_slice(&LAPIC_BASE.low32().to_le_bytes());
    // No extended entries.
    table.extend_from_slice(&[0; 4]);
    table.extend(entries.into_iter().flatten());
    set_checksum(&mut table, 7);

    // "MP Floating Pointer Structure": one paragraph long; there is a table, and the 8259s reach
    // the first CPU through its local APIC ("virtual wire mode"), not past it.
    let mut bytes = Vec::from(*b"_MP_");
    let address = base.wrapping_add(POINTER_SIZE).as_u64().low32();
    bytes.extend_from_slice(&address.to_le_bytes());
    bytes.extend_from_slice(&[1, REVISION, 0, 0, 0, 0, 0, 0]);
    set_checksum(&mut bytes, 10);
    bytes.extend_from_slice(&table);
    bytes
}

/// Sets the byte at `at` so that all add up to 0.
fn set_checksum(bytes: &mut [u8], at: usize) {
    let sum = bytes.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
    if let Some(byte) = bytes.get_mut(at) {
        *byte = byte.wrapping_sub(sum);
    }
}

/// The entries, by rising type as the specification wants it.
fn entries(vcpus: u32) -> Vec<Vec<u8>> {
    let mut all = Vec::new();
    for id in 0..vcpus {
        let flags = if id == 0 { ENABLED | BOOTSTRAP } else { ENABLED };
        let mut entry = Vec::from([PROCESSOR, id.low8(), LAPIC_VERSION, flags]);
        entry.extend_from_slice(&PROCESSOR_SIGNATURE.to_le_bytes());
        entry.extend_from_slice(&PROCESSOR_FEATURES.to_le_bytes());
        entry.extend_from_slice(&[0; 8]);
        all.push(entry);
    }
    for (id, name) in [(PCI_BUS, b"PCI   "), (ISA_BUS, b"ISA   ")] {
        all.push([&[BUS, id], name.as_slice()].concat());
    }
    let mut ioapic = Vec::from([IO_APIC, IOAPIC_ID, IOAPIC_VERSION, ENABLED]);
    ioapic.extend_from_slice(&IOAPIC_BASE.low32().to_le_bytes());
    all.push(ioapic);

    let mut wire = |kind, signal, bus, source, pin| {
        all.push(interrupt(IO_INTERRUPT, kind, signal, bus, source, IOAPIC_ID, pin));
    };
    // The 8259s are wired to the first input too.
    wire(Kind::External, Signal::Conforms, ISA_BUS, 0, 0);
    for irq in 0..16u8 {
        // Line 2 is the second 8259's; the timer has its input here.
        match irq {
            0 => wire(Kind::Vectored, Signal::Conforms, ISA_BUS, irq, IOAPIC_PIT_PIN),
            2 => {}
            SCI_IRQ => wire(Kind::Vectored, Signal::ActiveHighLevel, ISA_BUS, irq, irq),
            _ => wire(Kind::Vectored, Signal::Conforms, ISA_BUS, irq, irq),
        }
    }
    for slot in 0..PCI_SLOTS {
        for pin in 0..4u8 {
            let input = pci_ioapic_pin(slot, pin);
            wire(Kind::Vectored, Signal::ActiveLowLevel, PCI_BUS, slot << 2 | pin, input);
        }
    }
    // The first CPU's LINT0 takes the 8259s' interrupts, every one's LINT1 the NMI.
    for (kind, lapic, lint) in [(Kind::External, 0, 0), (Kind::Nmi, 0xff, 1)] {
        all.push(interrupt(LOCAL_INTERRUPT, kind, Signal::Conforms, ISA_BUS, 0, lapic, lint));
    }
    all
}

fn interrupt(
    entry: u8,
    kind: Kind,
    signal: Signal,
    bus: u8,
    source: u8,
    apic: u8,
    input: u8,
) -> Vec<u8> {
    let [low, high] = (signal as u16).to_le_bytes();
    Vec::from([entry, kind as u8, low, high, bus, source, apic, input])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sum(bytes: &[u8]) -> u8 {
        bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
    }

    fn word(bytes: &[u8], at: usize) -> usize {
        u16::from_le_bytes([bytes[at], bytes[at + 1]]).into()
    }

    fn dword(bytes: &[u8], at: usize) -> u32 {
        u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
    }

    /// The table's entries, found as a kernel finds them.
    fn parse(vcpus: u32) -> Vec<Vec<u8>> {
        let base = 0xf_0400;
        let bytes = build(GuestPhysAddr::new(base), vcpus);
        let (pointer, table) = bytes.split_at(16);
        assert_eq!((&pointer[..4], pointer[8], sum(pointer)), (b"_MP_".as_slice(), 1, 0));
        assert_eq!(u64::from(dword(pointer, 4)), base + 16);
        assert_eq!(pointer[11..], [0; 5], "a table; virtual wire mode");
        assert_eq!((&table[..4], sum(table)), (b"PCMP".as_slice(), 0));
        assert_eq!(word(table, 4), table.len());
        assert_eq!(dword(table, 36), 0xfee0_0000);
        let mut rest = &table[44..];
        let mut entries = Vec::new();
        while let Some(kind) = rest.first() {
            let (entry, behind) = rest.split_at(if *kind == 0 { 20 } else { 8 });
            entries.push(entry.to_vec());
            rest = behind;
        }
        assert_eq!(word(table, 34), entries.len());
        assert!(entries.is_sorted_by_key(|entry| entry[0]), "by rising type");
        entries
    }

    #[test]
    fn processors() {
        for (vcpus, wanted) in [(1, 1), (2, 2), (64, 64), (400, 255)] {
            let entries = parse(vcpus);
            let ids: Vec<_> = entries.iter().filter(|e| e[0] == 0).map(|e| (e[1], e[3])).collect();
            assert_eq!(ids.len(), wanted);
            for (n, (id, flags)) in (0..=u8::MAX).zip(ids) {
                assert_eq!((id, flags), (n, if n == 0 { 3 } else { 1 }));
            }
        }
    }

    #[test]
    fn interrupts() {
        let entries = parse(2);
        let of = |kind: u8| entries.iter().filter(move |entry| entry[0] == kind);
        assert_eq!(of(2).next().unwrap()[1..4], [IOAPIC_ID, 0x20, 1]);
        let wired = |bus: u8, source: u8| {
            let mut found = of(3).filter(|e| (e[1], e[4], e[5]) == (0, bus, source));
            let entry = found.next()?;
            assert_eq!(found.next(), None, "bus {bus}, source {source}");
            Some((word(entry, 2), entry[7]))
        };
        let isa: Vec<_> = (0..16).map(|irq| wired(1, irq)).collect();
        assert_eq!((isa[0], isa[2]), (Some((0, 2)), None));
        assert_eq!((isa[4], isa[9]), (Some((0, 4)), Some((0b1101, 9))));
        // Bus 0 slot 3 INTB#.
        assert_eq!(wired(0, 3 << 2 | 1), Some((0b1111, pci_ioapic_pin(3, 1))));
        let local: Vec<_> = of(4).map(|e| (e[1], e[6], e[7])).collect();
        assert_eq!(local, [(3, 0, 0), (1, 0xff, 1)]);
    }
}
