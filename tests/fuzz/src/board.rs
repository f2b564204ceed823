//! The devices of a guest's machine, whatever the guest does to their ports and registers
//! in memory and whenever: no access panics, sends more than a few interrupts, or leaves a
//! deadline in the past, for which the CPU would wake again and again.

use super::input::Input;
use chipset::{Board, has_device};
use config::GuestSettings;
use config::layout::IOAPIC_BASE;
use core::cell::Cell;
use std::sync::LazyLock;
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
/// Interrupts that one access may send: each pin of the I/O APIC once for each line that it
/// can move.
const MESSAGES: usize = 3 * devices::ioapic::PINS as usize;

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
    let board = Board::new(1_700_000_000 + (u64::from(seconds) << 24), &settings(switches));
    let mut now = Nanos(0);
    let mut console = [0; 100];
    for _ in 0..ACCESSES {
        if input.0.is_empty() {
            break;
        }
        let sent = Cell::new(0);
        let mut deliver = |_| sent.set(sent.get() + 1);
        let [operation, choice] = input.take();
        let width = width_of(operation >> 6);
        let port = match PORTS.get(usize::from(choice)) {
            Some(port) => *port,
            None => u16::from_le_bytes(input.take()),
        };
        match operation & 15 {
            0..=3 => {
                let value = u64::from(board.port_read(port, width, now, &mut deliver));
                assert_eq!(width.truncate(value), value);
            }
            4..=8 => {
                let value = u32::from_le_bytes(input.take());
                let _ = board.port_write(port, width, value, now, &mut deliver);
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
                    board.mmio_write(at, Width::B4, value.into(), now, &mut deliver);
                }
            }
            12 => {
                let later = now.0.saturating_add(input.u64() >> (choice & 63));
                now = Nanos(later.min(MOST_NANOS));
            }
            13 => {
                let typed = [choice; 20];
                let taken = board.console_input(&typed, now, &mut deliver);
                assert!(taken <= typed.len());
                let sent = board.console_output(&mut console, &mut deliver);
                assert!(sent <= console.len());
            }
            14 => match choice & 3 {
                0 => board.press_power_button(&mut deliver),
                1 => board.end_of_interrupt(input.byte(), &mut deliver),
                _ if board.pic_output() => _ = board.pic_acknowledge(&mut deliver),
                _ => {}
            },
            // Hot accesses give what the general code would.
            _ => {
                if let Some(value) = board.hot_read(port) {
                    let slow = board.port_read(port, Width::B1, now, &mut deliver);
                    assert_eq!(slow, u32::from(value), "port {port:#x}");
                }
                if let Some(mut write) = board.hot_write(port) {
                    write.write(choice);
                }
            }
        }
        assert!(sent.get() <= MESSAGES, "{} interrupts", sent.get());
        board.advance(now, |_| sent.set(sent.get() + 1));
        let next = board.deadline();
        assert!(next > now, "a deadline at {next:?} that {now:?} does not end");
        let lines = board.lines();
        assert!(lines.pins.len() <= usize::from(devices::ioapic::PINS));
    }
}
