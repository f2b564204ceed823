//! The devices of a guest's machine, whatever the guest does to their ports and registers
//! in memory and whenever, and though it is saved and restored meanwhile: no access panics, changes the 8259s' output without telling the vCPU, or
//! leaves a deadline in the past, for which the CPU would wake again and again.

use super::accesses::{PLACE, act};
use super::input::Input;
use chipset::fabric::{Fabric, Kick};
use chipset::pci::Placed;
use chipset::test_device::TestDevice;
use chipset::{Board, ConsoleSink, HotPorts, Quiet};
use config::GuestSettings;
use state::{Sections, Writer};
use std::boxed::Box;
use std::sync::Arc;
use std::vec::Vec;
use x86defs::time::Nanos;

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
    let mut bells = HotPorts::default();
    let mut now = Nanos(0);
    for _ in 0..ACCESSES {
        if input.0.is_empty() {
            break;
        }
        let mut asked = fabric.pic_output();
        let _ = fabric.mailbox(0).map(|mailbox| mailbox.take_requests());
        let [operation, choice] = Input(input.0).take();
        match operation & 15 {
            12 => {
                let [_, _] = input.take();
                let later = now.0.saturating_add(input.u64() >> (choice & 63));
                now = Nanos(later.min(MOST_NANOS));
            }
            14 if choice & 0x87 == 0x87 => {
                let [_, _] = input.take();
                let (other, fresh) = machine(wall, switches);
                move_over(&board, &fresh);
                (fabric, board, bells) = (other, fresh, HotPorts::default());
            }
            _ => {
                if act(&board, &fabric, &mut bells, &mut input, now).acknowledged {
                    asked = fabric.pic_output();
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
