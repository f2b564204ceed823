//! Accesses to the devices of a guest's machine, and what else happens to them.

// `vmm`, which includes this file too, has no prelude of `std`.
extern crate std;

use super::input::Input;
use chipset::fabric::Fabric;
use chipset::{Board, HotPorts, has_device};
use config::layout::IOAPIC_BASE;
use devices::pci::DevFn;
use std::sync::LazyLock;
use std::vec::Vec;
use x86defs::time::Nanos;
use x86defs::{GuestPhysAddr, Width};

/// Ports that devices have.
pub static PORTS: LazyLock<Vec<u16>> =
    LazyLock::new(|| (0..=u16::MAX).filter(|port| has_device(*port)).collect());
fn width_of(choice: u8) -> Width {
    match choice & 3 {
        0 | 1 => Width::B1,
        2 => Width::B2,
        _ => Width::B4,
    }
}

/// Place of the device on the PCI bus.
pub const PLACE: DevFn = DevFn::new(3, 0).expect("there is such a place");

/// Register `offset` of the device's configuration space: read, or written with `value`.
pub fn config(board: &Board, offset: u8, value: Option<u32>, now: Nanos) -> u32 {
    let address = 1 << 31 | u32::from(PLACE.device()) << 11 | u32::from(offset & 0xfc);
    let _ = board.port_write(0xcf8, Width::B4, address, now);
    match value {
        Some(value) => _ = board.port_write(0xcfc, Width::B4, value, now),
        None => return board.port_read(0xcfc, Width::B4, now),
    }
    0
}

/// An access to the device on the PCI bus, wherever the guest has it; what was read.
fn pci(board: &Board, bells: &mut HotPorts, how: u8, input: &mut Input<'_>, now: Nanos) -> u64 {
    let [first, second] = input.take();
    let value = u32::from_le_bytes(input.take());
    let width = width_of(first);
    let base = |bar: u8| config(board, 0x10 + 4 * bar, None, now);
    match how & 7 {
        0 | 1 => _ = config(board, second, Some(value), now),
        // The BARs where a guest would have them.
        2 => {
            let ports = 0xc000 | value & 0xf00;
            for (offset, value) in [(0x10, ports), (0x14, 0xc100_0000), (0x18, 0xc200_0000), (4, 7)]
            {
                config(board, offset, Some(value), now);
            }
        }
        3 | 4 => {
            let at = u64::from(base(1 + (how >> 3 & 1)) & !15) + (u64::from(value) & 0xfff);
            board.mmio_write(GuestPhysAddr::new(at), width, value.into(), || now);
        }
        5 => {
            let at = u64::from(base(1 + (how >> 3 & 1)) & !15) + (u64::from(value) & 0xfff);
            let read = board.mmio_read(GuestPhysAddr::new(at), width, || now);
            assert_eq!(width.truncate(read), read);
            return read;
        }
        _ => {
            // A doorbell that the hot handler finds is one that the general code would.
            let [low, high, ..] = (base(0) & !3).to_le_bytes();
            let port = u16::from_le_bytes([low, high]).wrapping_add(second.into());
            if how & 8 != 0 {
                board.follow_ports(bells);
            }
            if let Some((device, bits)) = board.hot_bell(port, bells) {
                assert!(config(board, 4, None, now) & 1 != 0, "rung though ports are off");
                assert_eq!(bits, 1 << (second / 4), "port {port:#x}");
                if board.hot_mark(device, bits) {
                    board.pay(1 << device);
                }
                return bits;
            }
        }
    }
    0
}

/// Result of an access.
#[derive(Debug, PartialEq, Eq)]
pub struct Acted {
    /// The value that was read.
    pub seen: u64,
    /// A vCPU has acknowledged an interrupt of the 8259s, and looks at them by itself.
    pub acknowledged: bool,
}

/// One access, or something else that happens to the devices but the passing of time.
pub fn act(
    board: &Board,
    fabric: &Fabric,
    bells: &mut HotPorts,
    input: &mut Input<'_>,
    now: Nanos,
) -> Acted {
    let mut acted = Acted { seen: 0, acknowledged: false };
    let [operation, choice] = input.take();
    let width = width_of(operation >> 6);
    let port = match PORTS.get(usize::from(choice)) {
        Some(port) => *port,
        None => u16::from_le_bytes(input.take()),
    };
    match operation & 15 {
        0..=3 => {
            let value = u64::from(board.port_read(port, width, now));
            assert_eq!(width.truncate(value), value);
            acted.seen = value;
        }
        4..=8 => {
            let value = u32::from_le_bytes(input.take());
            let _ = board.port_write(port, width, value, now);
        }
        9 | 10 => {
            let at = GuestPhysAddr::new(IOAPIC_BASE + u64::from(choice & 0x3f) * 4);
            let value = board.mmio_read(at, width, || now);
            assert_eq!(width.truncate(value), value);
            acted.seen = value;
        }
        11 => {
            let register = u32::from(choice & 0x3f);
            let value = u32::from_le_bytes(input.take());
            for (offset, value) in [(0, register), (0x10, value)] {
                let at = GuestPhysAddr::new(IOAPIC_BASE + offset);
                board.mmio_write(at, Width::B4, value.into(), || now);
            }
        }
        13 if choice & 1 != 0 => acted.seen = pci(board, bells, choice >> 1, input, now),
        13 => {
            let typed = [choice; 20];
            let taken = board.console_input(&typed, now);
            assert!(taken <= typed.len());
            let _ = board.try_flush_console();
        }
        12 | 14 => match choice & 3 {
            0 => board.press_power_button(),
            1 => fabric.end_of_interrupt(input.byte()),
            _ if fabric.pic_output() => {
                acted.seen = fabric.pic_acknowledge().into();
                acted.acknowledged = true;
            }
            _ => {}
        },
        // Hot accesses give what the general code would.
        _ => {
            if let Some(value) = board.hot_read(port) {
                let slow = board.port_read(port, Width::B1, now);
                assert_eq!(slow, u32::from(value), "port {port:#x}");
                acted.seen = slow.into();
            }
            if let Some(mut write) = board.hot_write(port) {
                write.write(choice);
            }
            if board.is_nobodys(port, bells) {
                assert_eq!(board.port_read(port, Width::B1, now), 0xff, "port {port:#x}");
                let lost = board.port_write(port, Width::B1, choice.into(), now);
                assert_eq!(lost, chipset::PortOutcome::default(), "port {port:#x}");
            }
        }
    }
    acted
}
