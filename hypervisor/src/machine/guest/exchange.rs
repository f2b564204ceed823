//! A paused guest is saved and restored into a fresh one with the same memory, which goes on in
//! its place. For tests: a guest asks for it on its command line.

use super::{AnyGuest, Guest, Slots};
use crate::hw::{ExtendedState, VendorCpu};
use crate::mm;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;
use chipset::Quiet;
use config::GuestSettings;
use state::{Sections, Writer};
use vmm::state::{check, restore_vcpu, restore_vm, save_vm};

/// Word of a command line that asks for it.
const WORD: &str = "steward.restore";

/// Whether a guest with `settings` asks for it.
pub(crate) fn is_requested(settings: &GuestSettings) -> bool {
    settings.cmdline.split_ascii_whitespace().any(|word| word == WORD)
}

/// The machine of `guest`, whose clock stands.
///
/// # Errors
/// Says what is in the way.
pub(crate) fn save(guest: &AnyGuest) -> Result<Vec<u8>, String> {
    let vm = &guest.vm;
    if vm.board.quiesce() == Quiet::NotYet {
        return Err("a device is not quiet".into());
    }
    let cpuid = guest.with_vcpu(0, 0, |vcpu| Arc::clone(&vcpu.core.cpuid));
    let cpuid = cpuid.ok_or("vCPU 0 can't be had")?;
    let mut writer = Writer::new();
    save_vm(vm, &cpuid, &mut writer);
    if !guest.vcpus.save(&vm.memory, &mut writer) {
        return Err("a vCPU runs".into());
    }
    writer.finish().map_err(|error| error.to_string())
}

/// Restores `saved` into `guest`, which nobody has run.
///
/// # Errors
/// Says what was refused.
pub(super) fn restore<C: VendorCpu>(guest: &Guest<Slots<C>>, saved: &[u8]) -> Result<(), String> {
    let vm = &guest.vm;
    let told = |error: state::StateError| error.to_string();
    let mut sections = Sections::open(saved).map_err(told)?;
    let first = guest.vcpus.0.first().and_then(|slot| slot.private.try_lock());
    let cpuid = first.map(|private| Arc::clone(&private.vcpu.core.cpuid));
    let cpuid = cpuid.ok_or("there is no vCPU")?;
    let frequency = vm.clock.read().frequency();
    check(&mut sections, &cpuid, frequency, guest.vcpus.0.len()).map_err(told)?;
    restore_vm(vm, &cpuid, &mut sections).map_err(told)?;
    for slot in &guest.vcpus.0 {
        let mut private = slot.private.try_lock().ok_or("a vCPU runs")?;
        let vcpu = &mut private.vcpu;
        let restored = mm::with_root(vm.memory.root(), || restore_vcpu(vcpu, vm, &mut sections));
        C::unload(&mut vcpu.hw);
        let extended = restored.map_err(told)?;
        let length = extended.len();
        let extended = extended.first_chunk().filter(|_| length == ExtendedState::BYTES);
        let extended = extended.ok_or_else(|| format!("{length} bytes of extended state"))?;
        private.extended.set_bytes(extended);
    }
    sections.finish().map_err(told)
}
