//! A paused guest that is to go on is saved, and restored into a fresh one with the same memory,
//! which goes on in its place. For tests: a guest asks for it on its command line.

use super::{AnyGuest, Guest, Slots};
use crate::hw::VendorCpu;
use crate::machine::world::World;
use alloc::sync::Arc;
use alloc::vec::Vec;
use config::GuestSettings;
use state::StateError;
use vmm::state::restore_vcpu;

/// Word of a command line that asks for it.
const WORD: &str = "steward.restore";

/// Whether a guest with `settings` asks for it.
pub(crate) fn is_requested(settings: &GuestSettings) -> bool {
    settings.cmdline.split_ascii_whitespace().any(|word| word == WORD)
}

/// The machine of `guest`, whose clock stands. (No device of it has a medium.)
///
/// # Errors
/// Says what is in the way.
pub(crate) fn save(guest: &AnyGuest) -> Result<Vec<u8>, StateError> {
    let cpuid = guest.with_vcpu(0, 0, |vcpu| Arc::clone(&vcpu.core.cpuid));
    let cpuid = cpuid.ok_or_else(|| StateError::Lacks("vCPU 0 can't be had".into()))?;
    // Without the sections of a vCPU that can't be had the machine is refused.
    vmm::state::save(&guest.vm, &cpuid, |writer| guest.vcpus.save(&guest.vm.memory, writer))
}

/// Restores `saved` into `guest`, which nobody has run, and lets its time go on.
///
/// # Errors
/// Says what was refused.
pub(super) fn restore<C: VendorCpu>(
    guest: &Guest<Slots<C>>,
    saved: &[u8],
    world: &World,
) -> Result<(), StateError> {
    let (vm, slots) = (&guest.vm, &guest.vcpus.0);
    let lacks = |what: &str| StateError::Lacks(what.into());
    let first = slots.first().and_then(|slot| slot.private.try_lock());
    let cpuid = first.map(|private| Arc::clone(&private.vcpu.core.cpuid));
    vmm::state::restore(
        vm,
        &*cpuid.ok_or_else(|| lacks("there is no vCPU"))?,
        saved,
        |sections| {
            slots.iter().try_for_each(|slot| {
                let mut private = slot.private.try_lock().ok_or_else(|| lacks("a vCPU runs"))?;
                let vcpu = &mut private.vcpu;
                let restored = vm.memory.enter(|| restore_vcpu(vcpu, vm, sections));
                C::unload(&mut vcpu.hw);
                let extended = restored?;
                let extended =
                    extended.as_array().ok_or_else(|| lacks("extended state is short"))?;
                private.extended.set_bytes(extended);
                Ok(())
            })
        },
    )?;
    vm.board.go_on();
    vm.resume(world.time());
    Ok(())
}
