//! KVM's paravirtual registers, whatever a guest writes to them and whatever it leaves in
//! the memory that they name: the hypervisor writes there and nowhere else, and what was
//! taken can be read back.

// The crate under test, which includes this file, has no prelude of `std`.
extern crate std;

use super::input::Input;
use memory::GuestMemory;
use std::vec::Vec;
use vmm::clock::HostTime;
use vmm::run::{Next, off_cpu, on_cpu};
use vmm::scripted::Play;
use x86defs::bits::{Low, high32, join};
use x86defs::{Gpr, GuestPhysAddr, Msr, Rflags, VmExit};

/// Bytes of RAM.
const RAM: usize = 16 << 10;
/// Byte that fills the RAM at first.
const FILLING: u8 = 0x90;
/// Steps in one case at the most.
const STEPS: usize = 64;
/// Registers, and how many bytes from their address on the hypervisor may write.
const REGISTERS: [(Msr, u64, u64); 9] = [
    (Msr::KVM_WALL_CLOCK, !0, 12),
    (Msr::KVM_WALL_CLOCK_OLD, !0, 12),
    (Msr::KVM_SYSTEM_TIME, !1, 32),
    (Msr::KVM_SYSTEM_TIME_OLD, !1, 32),
    (Msr::KVM_STEAL_TIME, !0x3f, 64),
    (Msr::KVM_PV_EOI, !3, 1),
    (Msr::KVM_ASYNC_PF_EN, 0, 0),
    (Msr::KVM_POLL_CONTROL, 0, 0),
    (Msr::TSC_ADJUST, 0, 0),
];

/// One case.
pub fn run(data: &[u8]) {
    let mut input = Input(data);
    let mut play = Play::with_ram(RAM);
    play.vcpu.hw.rflags = 2 | Rflags::IF.bits();
    // Ranges that the hypervisor or the guest has had leave to write.
    let mut open: Vec<(u64, u64)> = Vec::new();
    let mut waited = 0;
    let mut on = true;
    for _ in 0..STEPS {
        if input.0.is_empty() {
            break;
        }
        let [operation, choice] = input.take();
        match operation % 8 {
            0..=2 => {
                let (msr, mask, len) = REGISTERS[usize::from(choice) % REGISTERS.len()];
                let value = input.u64();
                // Most of them in RAM.
                let value = if choice & 0x80 != 0 { value } else { value % (RAM as u64 + 64) };
                if write(&mut play, msr, value) {
                    open.push((value & mask, len));
                    if len != 12 {
                        assert_eq!(read(&mut play, msr), Some(value), "{msr:?}");
                    }
                }
            }
            3 => {
                let at = u64::from(u16::from_le_bytes(input.take())) % RAM as u64;
                let address = GuestPhysAddr::new(at);
                play.vm.memory.write(address, &[choice]).expect("RAM");
                open.push((at, 1));
            }
            4 => {
                waited += u64::from(choice) << (operation >> 3);
                if on {
                    off_cpu(&mut play.vcpu, &play.vm);
                } else {
                    on_cpu(&mut play.vcpu, &play.vm, waited);
                }
                on = !on;
            }
            5 => {
                play.stage.tsc =
                    play.stage.tsc.saturating_add(u64::from(choice) << (operation >> 3))
            }
            6 => {
                let tsc = play.stage.tsc;
                play.vm.pause(tsc);
                play.stage.tsc = tsc.saturating_add(u64::from(choice) << 20);
                play.vm.resume(HostTime { tsc: play.stage.tsc, wall: 1 << 60 });
                // It learns of it when it gets a CPU.
                on_cpu(&mut play.vcpu, &play.vm, waited);
                on = true;
            }
            _ => {
                play.vm.fabric.mailboxes()[0].post(choice | 0x20, devices::lapic::Trigger::Edge);
                let next = play.turn(VmExit::HostInterrupt);
                assert_eq!(next, Next::Continue);
            }
        }
    }
    let memory = play.vm.memory.contents();
    for (at, byte) in (0..).zip(&memory) {
        let may = |(start, len): &(u64, u64)| at >= *start && at - start < *len;
        assert!(*byte == FILLING || open.iter().any(may), "{at:#x} was written");
    }
}

/// WRMSR; whether it was taken.
fn write(play: &mut Play, msr: Msr, value: u64) -> bool {
    play.vcpu.set_gpr(Gpr::Rax, value.low32().into());
    play.vcpu.set_gpr(Gpr::Rdx, high32(value).into());
    perform(play, msr, VmExit::WriteMsr)
}

/// RDMSR; `None` where it faults.
fn read(play: &mut Play, msr: Msr) -> Option<u64> {
    let taken = perform(play, msr, VmExit::ReadMsr);
    let half = |gpr| play.vcpu.gpr(gpr).low32();
    taken.then(|| join(half(Gpr::Rdx), half(Gpr::Rax)))
}

fn perform(play: &mut Play, msr: Msr, exit: VmExit) -> bool {
    let rip = play.vcpu.hw.rip;
    play.vcpu.hw.next_rip = Some(rip + 2);
    play.vcpu.set_gpr(Gpr::Rcx, msr.0.into());
    assert_eq!(play.turn(exit), Next::Continue);
    let taken = play.vcpu.hw.rip != rip;
    if !taken {
        // The fault is delivered, and its handler goes on behind the instruction.
        let _ = play.turn(VmExit::HostInterrupt);
        play.vcpu.hw.rip = rip + 2;
    }
    taken
}
