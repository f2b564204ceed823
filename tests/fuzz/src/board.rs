//! The devices of a guest's machine, whatever the guest does to their ports and registers
//! in memory and whenever: no access panics, changes the 8259s' output without telling the vCPU, or
//! leaves a deadline in the past, for which the CPU would wake again and again.

use super::input::Input;
use chipset::fabric::{Fabric, Kick};
use chipset::{Board, ConsoleSink, has_device};
use config::GuestSettings;
use config::layout::IOAPIC_BASE;
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

/// One case.
pub fn run(data: &[u8]) {
    let mut input = Input(data);
    let [seconds, switches] = input.take();
    let fabric = Arc::new(Fabric::new(1, Kick(Box::new(|_| ()))));
    let mailbox = fabric.mailbox(0).expect("there is one vCPU");
    let wall = 1_700_000_000 + (u64::from(seconds) << 24);
    let console = Arc::new(Room(100));
    let board = Board::new(wall, &settings(switches), Arc::clone(&fabric), console, &[]);
    let mut now = Nanos(0);
    for _ in 0..ACCESSES {
        if input.0.is_empty() {
            break;
        }
        let asked = fabric.pic_output();
        let _ = mailbox.take_requests();
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
            13 => {
                let typed = [choice; 20];
                let taken = board.console_input(&typed, now);
                assert!(taken <= typed.len());
                let _ = board.try_flush_console();
            }
            14 => match choice & 3 {
                0 => board.press_power_button(),
                1 => fabric.end_of_interrupt(input.byte()),
                _ if fabric.pic_output() => _ = fabric.pic_acknowledge(),
                _ => {}
            },
            // Hot accesses give what the general code would.
            _ => {
                if let Some(value) = board.hot_read(port) {
                    let slow = board.port_read(port, Width::B1, now);
                    assert_eq!(slow, u32::from(value), "port {port:#x}");
                }
                if let Some(mut write) = board.hot_write(port, Width::B1) {
                    write.write(choice);
                }
            }
        }
        board.advance(now);
        assert!(asked == fabric.pic_output() || !mailbox.is_quiet(), "the vCPU is not told");
        let next = board.deadline();
        assert!(next > now, "a deadline at {next:?} that {now:?} does not end");
        let lines = fabric.lines();
        assert!(lines.pins.len() <= usize::from(devices::ioapic::PINS));
    }
}
