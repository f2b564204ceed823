//! Layouts of states, and what is refused. The property of a machine that goes on alike elsewhere
//! is the fuzz target `restore`.

use super::{check, restore_vcpu, restore_vm, save_vcpu, save_vm};
use crate::clock::{VcpuClock, VmClockState};
use crate::msr::MsrFile;
use crate::msr::mtrr::Mtrrs;
use crate::pv::PvState;
use crate::scripted::Play;
use alloc::string::ToString;
use alloc::sync::Arc;
use alloc::vec::Vec;
use memory::GuestMemory;
use state::{Saved, Sections, StateError, Writer};
use x86defs::time::TscFrequency;
use x86defs::{Event, Gpr, GuestPhysAddr, Msr, Rflags, VmExit};

const FOLDER: &str = env!("CARGO_MANIFEST_DIR");

fn saved(play: &Play) -> Vec<u8> {
    let mut writer = Writer::new();
    save_vm(&play.vm, &play.vcpu.core.cpuid, &mut writer);
    save_vcpu(&play.vcpu, &[], &mut writer);
    writer.finish().unwrap()
}

fn restored(play: &mut Play, bytes: &[u8], frequency: TscFrequency) -> Result<(), StateError> {
    let mut sections = Sections::open(bytes)?;
    let cpuid = Arc::clone(&play.vcpu.core.cpuid);
    check(&mut sections, &cpuid, frequency, 1)?;
    restore_vm(&play.vm, &cpuid, &mut sections)?;
    restore_vcpu(&mut play.vcpu, &play.vm, &mut sections)?;
    sections.finish()
}

/// Has the guest write an MSR.
fn wrmsr(play: &mut Play, msr: Msr, value: u64) {
    let (low, high) = (value & 0xffff_ffff, value >> 32);
    for (gpr, value) in [(Gpr::Rcx, msr.0.into()), (Gpr::Rax, low), (Gpr::Rdx, high)] {
        play.vcpu.set_gpr(gpr, value);
    }
    play.vcpu.hw.next_rip = Some(0x1000);
    play.turn(VmExit::WriteMsr);
    assert_eq!(play.vcpu.event, None, "{msr:?}");
}

/// A machine that has been used.
pub(super) fn used() -> Play {
    let mut play = Play::new();
    play.vm.memory.write(GuestPhysAddr::new(0x8000), &[0; 256]).unwrap();
    play.stage.tsc = 12_345;
    wrmsr(&mut play, Msr::TSC_ADJUST, 77);
    for (msr, value) in [
        (Msr::LSTAR, 0xffff_8000_1234_5678),
        (Msr::PAT, 0x0007_0406_0007_0406),
        (Msr::MCG_STATUS, 5),
        (Msr::KVM_SYSTEM_TIME, 0x8001),
        (Msr::KVM_STEAL_TIME, 0x8041),
        (Msr::KVM_PV_EOI, 0x80c1),
    ] {
        wrmsr(&mut play, msr, value);
    }
    play.vcpu.set_gpr(Gpr::R15, 0x1515);
    play.vcpu.set_gpr(Gpr::Rsp, 0x9000);
    play.vcpu.set_rflags(Rflags::IF | Rflags::RESERVED1);
    play.vcpu.raise(Event::gp0());
    play.vcpu.post_nmi();
    play.vcpu.write_back();
    play.vm.pause(20_000);
    play
}

#[test]
fn the_states_are_laid_out_as_they_were() {
    fn one<T: Saved>() {
        state::golden::check(FOLDER, || {
            let bytes = saved(&used());
            Sections::open(&bytes).unwrap().take::<T>(0).unwrap()
        });
    }
    one::<VmClockState>();
    one::<Mtrrs>();
    one::<VcpuClock>();
    one::<MsrFile>();
    one::<PvState>();
}

#[test]
fn a_machine_that_is_restored_is_the_one_that_was_saved() {
    let before = used();
    let bytes = saved(&before);
    let mut after = Play::new();
    let frequency = after.vm.clock.read().frequency();
    assert_eq!(restored(&mut after, &bytes, frequency), Ok(()));
    assert_eq!(saved(&after), bytes);
    assert_eq!(after.vcpu.hw.others, before.vcpu.hw.others);
    assert_eq!(after.vcpu.gpr(Gpr::Rsp), 0x9000);
    assert_eq!(after.vm.tsc_agreement(), before.vm.tsc_agreement());
}

#[test]
fn what_the_target_lacks_is_found_before_anything_is_touched() {
    let bytes = saved(&used());
    let mut other = Play::new();
    other.vm.pause(5);
    let untouched = saved(&other);
    let slow = TscFrequency::from_khz(5_000).unwrap();
    let error = restored(&mut other, &bytes, slow).unwrap_err();
    assert_eq!(
        error.to_string(),
        "this machine can't take the guest: its TSC counts 1000000 kHz, and this machine's 5000 \
         kHz; restore it on one with the same"
    );
    assert_eq!(saved(&other), untouched);
}

#[test]
fn registers_that_the_hypervisor_would_fault_upon_are_refused() {
    type Change = fn(&mut Play);
    let refused = |change: Change| {
        let mut play = used();
        change(&mut play);
        let bytes = saved(&play);
        let mut other = Play::new();
        let frequency = other.vm.clock.read().frequency();
        restored(&mut other, &bytes, frequency).unwrap_err().to_string()
    };
    let cases: [(Change, &str); 6] = [
        (|play| play.vcpu.core.xcr0 = 5, "XCR0"),
        (|play| play.vcpu.core.tsc_aux = 1 << 32, "TSC_AUX"),
        (|play| play.vcpu.set_dr(6, 1 << 32), "debug register"),
        (|play| play.vcpu.set_cr4(x86defs::Cr4::VMXE), "CR4"),
        (|play| _ = play.vcpu.set_msr(Msr::LSTAR, 1 << 63), "MSR"),
        (|play| _ = play.vcpu.set_msr(Msr::GS_BASE, 1 << 63), "base"),
    ];
    for (change, word) in cases {
        let told = refused(change);
        assert!(
            told.starts_with("section `vcpu` 0 holds what can't be") && told.contains(word),
            "{told}"
        );
    }
}
