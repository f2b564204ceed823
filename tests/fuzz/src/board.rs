//! The devices of a guest's machine, whatever the guest does to their ports and registers
//! in memory and whenever, and though it is saved and restored meanwhile: no access panics, changes the 8259s' output without telling the vCPU, or
//! leaves a deadline in the past, for which the CPU would wake again and again.

use super::input::Input;
use chipset::fabric::{Fabric, Kick};
use chipset::pci::Placed;
use chipset::test_device::TestDevice;
use chipset::{Board, ConsoleSink, HotBells, Quiet, has_device};
use config::GuestSettings;
use config::layout::IOAPIC_BASE;
use devices::pci::DevFn;
use state::{Sections, Writer};
use std::boxed::Box;
use std::sync::{Arc, LazyLock};
use std::vec::Vec;
use x86defs::time::Nanos;
use x86defs::{GuestPhysAddr, Width};

/// Ports that devices have.
static PORTS: LazyLock<Vec<u16>> =
    LazyLock::new(|| (0..=u16::MAX).filter(|port| has_device(*port)).collect());
/// Accesses in one case at the most.
const ACCESSES: usize = 200;
/// No guest is older: a hundred years and more.
const MOST_NANOS: u64 = 1 << 62;

/// A console with room for so much at a time.
#[derive(Debug)]
struct Room(usize);

impl ConsoleSink for Room {
    fn room(&self) -> usize {
        self.0
    }

    fn put(&self, bytes: &[u8]) {
        assert!(bytes.len() <= self.0, "more than there is room for");
    }
}

fn width_of(choice: u8) -> Width {
    match choice & 3 {
        0 | 1 => Width::B1,
        2 => Width::B2,
        _ => Width::B4,
    }
}

/// Settings whose switches, whatever their names, stand as the bits of `switches` say: a device
/// that a setting can leave out is there in some cases.
fn settings(switches: u8) -> GuestSettings {
    let settings = GuestSettings::new("guest", 1 << 20, "kernel");
    let mut json = serde_json::to_value(&settings).expect("settings can be written");
    let values = json.as_object_mut().into_iter().flat_map(|keys| keys.values_mut());
    for (n, switch) in values.filter(|value| value.is_boolean()).enumerate() {
        *switch = (switches >> (n % 8) & 1 != 0).into();
    }
    serde_json::from_value(json).expect("a switch is on or off")
}

/// Place of the device on the PCI bus.
const PLACE: DevFn = DevFn::new(3, 0).expect("there is such a place");

/// Register `offset` of the device's configuration space: read, or written with `value`.
fn config(board: &Board, offset: u8, value: Option<u32>, now: Nanos) -> u32 {
    let address = 1 << 31 | u32::from(PLACE.device()) << 11 | u32::from(offset & 0xfc);
    let _ = board.port_write(0xcf8, Width::B4, address, now);
    match value {
        Some(value) => _ = board.port_write(0xcfc, Width::B4, value, now),
        None => return board.port_read(0xcfc, Width::B4, now),
    }
    0
}

/// An access to the device on the PCI bus, wherever the guest has it.
fn pci(board: &Board, bells: &mut HotBells, how: u8, input: &mut Input<'_>, now: Nanos) {
    let [first, second] = input.take();
    let value = u32::from_le_bytes(input.take());
    let width = width_of(first);
    let base = |bar: u8| config(board, 0x10 + 4 * bar, None, now);
    match how & 7 {
        0 | 1 => _ = config(board, second, Some(value), now),
        // Its BARs where a guest would have them.
        2 => {
            let ports = 0xc000 | value & 0xf00;
            for (offset, value) in [(0x10, ports), (0x14, 0xc100_0000), (0x18, 0xc200_0000), (4, 7)]
            {
                config(board, offset, Some(value), now);
            }
        }
        3 | 4 => {
            let at = u64::from(base(1 + (how >> 3 & 1)) & !15) + (u64::from(value) & 0xfff);
            board.mmio_write(GuestPhysAddr::new(at), width, value.into(), now);
        }
        5 => {
            let at = u64::from(base(1 + (how >> 3 & 1)) & !15) + (u64::from(value) & 0xfff);
            let read = board.mmio_read(GuestPhysAddr::new(at), width, now);
            assert_eq!(width.truncate(read), read);
        }
        _ => {
            // A doorbell that the hot handler finds is one that the general code would.
            let [low, high, ..] = (base(0) & !3).to_le_bytes();
            let port = u16::from_le_bytes([low, high]).wrapping_add(second.into());
            if how & 8 != 0 {
                board.follow_bells(bells);
            }
            if let Some((device, bits)) = board.hot_bell(port, bells) {
                assert!(config(board, 4, None, now) & 1 != 0, "rung though ports are off");
                assert_eq!(bits, 1 << (second / 4), "port {port:#x}");
                if board.hot_mark(device, bits) {
                    board.pay(1 << device);
                }
            }
        }
    }
}

/// A guest's devices, as they are made.
fn machine(wall: u64, switches: u8) -> (Arc<Fabric>, Board) {
    let fabric = Arc::new(Fabric::new(1, Kick(Box::new(|_| ()))));
    let console = Arc::new(Room(100));
    let device = TestDevice::inline(PLACE, Arc::clone(&fabric)).expect("its layout fits");
    let placed: [Placed; 1] = [(PLACE, device)];
    let board = Board::new(wall, &settings(switches), Arc::clone(&fabric), console, &placed);
    (fabric, board)
}

/// The devices as they are saved.
fn save(board: &Board) -> Vec<u8> {
    assert_eq!(board.quiesce(), Quiet::Now);
    let mut writer = Writer::new();
    board.save(&mut writer);
    writer.finish().expect("every board can be saved")
}

/// Restores `board` into `fresh`, which is the same then.
fn move_over(board: &Board, fresh: &Board) {
    let saved = save(board);
    let mut sections = Sections::open(&saved).expect("what was saved can be read");
    fresh.restore(&mut sections).expect("what was saved can be restored");
    assert_eq!(sections.finish(), Ok(()));
    assert_eq!(save(fresh), saved);
    fresh.go_on();
}

/// One case.
pub fn run(data: &[u8]) {
    let mut input = Input(data);
    let [seconds, switches] = input.take();
    let wall = 1_700_000_000 + (u64::from(seconds) << 24);
    let (mut fabric, mut board) = machine(wall, switches);
    let mut bells = HotBells::default();
    let mut now = Nanos(0);
    for _ in 0..ACCESSES {
        if input.0.is_empty() {
            break;
        }
        let mut asked = fabric.pic_output();
        let _ = fabric.mailbox(0).map(|mailbox| mailbox.take_requests());
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
            }
            4..=8 => {
                let value = u32::from_le_bytes(input.take());
                let _ = board.port_write(port, width, value, now);
            }
            9 | 10 => {
                let at = GuestPhysAddr::new(IOAPIC_BASE + u64::from(choice & 0x3f) * 4);
                let value = board.mmio_read(at, width, now);
                assert_eq!(width.truncate(value), value);
            }
            11 => {
                let register = u32::from(choice & 0x3f);
                let value = u32::from_le_bytes(input.take());
                for (offset, value) in [(0, register), (0x10, value)] {
                    let at = GuestPhysAddr::new(IOAPIC_BASE + offset);
                    board.mmio_write(at, Width::B4, value.into(), now);
                }
            }
            12 => {
                let later = now.0.saturating_add(input.u64() >> (choice & 63));
                now = Nanos(later.min(MOST_NANOS));
            }
            13 if choice & 1 != 0 => pci(&board, &mut bells, choice >> 1, &mut input, now),
            13 => {
                let typed = [choice; 20];
                let taken = board.console_input(&typed, now);
                assert!(taken <= typed.len());
                let _ = board.try_flush_console();
            }
            14 if choice & 0x87 == 0x87 => {
                let (other, fresh) = machine(wall, switches);
                move_over(&board, &fresh);
                (fabric, board, bells) = (other, fresh, HotBells::default());
            }
            14 => match choice & 3 {
                0 => board.press_power_button(),
                1 => fabric.end_of_interrupt(input.byte()),
                _ if fabric.pic_output() => {
                    let _ = fabric.pic_acknowledge();
                    // The vCPU that acknowledges looks itself.
                    asked = fabric.pic_output();
                }
                _ => {}
            },
            // Hot accesses give what the general code would.
            _ => {
                if let Some(value) = board.hot_read(port) {
                    let slow = board.port_read(port, Width::B1, now);
                    assert_eq!(slow, u32::from(value), "port {port:#x}");
                }
                if let Some(mut write) = board.hot_write(port) {
                    write.write(choice);
                }
            }
        }
        board.advance(now);
        let is_quiet = fabric.mailbox(0).is_none_or(|mailbox| mailbox.is_quiet());
        assert!(asked == fabric.pic_output() || !is_quiet, "the vCPU is not told");
        let next = board.deadline();
        assert!(next > now, "a deadline at {next:?} that {now:?} does not end");
        let lines = fabric.lines();
        assert!(lines.pins.len() <= usize::from(devices::ioapic::PINS));
    }
}
