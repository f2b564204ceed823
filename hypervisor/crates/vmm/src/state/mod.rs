//! A machine that is saved and restored: what its target must offer, its clock, its devices, and
//! each vCPU.
//!
//! The caller pauses the guest first: no vCPU has a CPU, the guest's time stands, its devices are
//! [quiet](chipset::Board::quiesce). RAM and the bytes of extended state are the caller's. A machine is
//! restored into one that has just been made with the same settings; [`check`] comes before
//! anything is touched, and if anything is refused afterwards the machine is of no use. Before the
//! machine's time goes on ([`Vm::resume`]), its devices do ([`Board::go_on`]); then each vCPU is
//! made to look into its mailbox. `docs/state.md` has more. Fuzz target: `restore`.
//!
//! [`Board::go_on`]: chipset::Board::go_on

mod extended;
mod registers;
mod requirements;
#[cfg(test)]
mod tests;
mod vcpu;

pub use extended::MOST_EXTENDED;
pub use vcpu::{restore_vcpu, save_vcpu};

use crate::clock::VmClockState;
use crate::cpuid::CpuidTable;
use crate::msr::mtrr::Mtrrs;
use crate::vm::Vm;
use alloc::vec::Vec;
use devices::RestoreError;
use memory::GuestRam;
use requirements::Requirements;
use state::{Saved, Sections, StateError, Writer};
use x86defs::time::TscFrequency;

impl Saved for VmClockState {
    const NAME: &'static str = "vm-clock";
    const VERSION: u16 = 1;
}

impl Saved for Mtrrs {
    const NAME: &'static str = "mtrrs";
    const VERSION: u16 = 1;
}

/// The error of a state that was refused.
fn refused<T: Saved>(instance: u32) -> impl FnOnce(RestoreError) -> StateError {
    move |RestoreError(why)| StateError::refused(T::NAME, instance, why)
}

/// Writes what the target must offer, and all that the guest's vCPUs share. They have `cpuid`. The
/// guest's time stands, so that the host's does not matter.
pub fn save_vm<M: GuestRam>(vm: &Vm<M>, cpuid: &CpuidTable, writer: &mut Writer) {
    // Refusals are remembered for the log alone.
    let Vm { name: _, memory: _, clock, board, mtrrs, fabric, refusals: _ } = vm;
    let clock = clock.read().save(0);
    let vcpus = fabric.mailboxes().len();
    writer.put(0, &Requirements::of(cpuid, clock.frequency, vcpus));
    writer.put(0, &clock);
    writer.put(0, &*mtrrs.lock());
    board.save(writer);
}

/// A paused machine, whose vCPUs have `cpuid`, as bytes. `vcpus` writes the sections of each
/// ([`save_vcpu`]).
///
/// # Errors
/// The first section that could not be written, and why.
pub fn save<M: GuestRam>(
    vm: &Vm<M>,
    cpuid: &CpuidTable,
    vcpus: impl FnOnce(&mut Writer),
) -> Result<Vec<u8>, StateError> {
    let mut writer = Writer::new();
    save_vm(vm, cpuid, &mut writer);
    vcpus(&mut writer);
    writer.finish()
}

/// Puts `saved` into a machine that has just been made, whose vCPUs have `cpuid`. `vcpus` restores
/// each ([`restore_vcpu`]).
///
/// # Errors
/// Names what the machine lacks, or the section that is missing, unknown, or can't be.
pub fn restore<M: GuestRam>(
    vm: &Vm<M>,
    cpuid: &CpuidTable,
    saved: &[u8],
    vcpus: impl FnOnce(&mut Sections<'_>) -> Result<(), StateError>,
) -> Result<(), StateError> {
    let mut sections = Sections::open(saved)?;
    let frequency = vm.clock.read().frequency();
    check(&mut sections, cpuid, frequency, vm.fabric.mailboxes().len())?;
    restore_vm(vm, cpuid, &mut sections)?;
    vcpus(&mut sections)?;
    sections.finish()
}

/// Takes what the target must offer, and compares it with what it does: vCPUs that have `cpuid`,
/// whose TSC counts as `frequency` says.
///
/// # Errors
/// Names what differs, and what to do about it.
pub fn check(
    sections: &mut Sections<'_>,
    cpuid: &CpuidTable,
    frequency: TscFrequency,
    vcpus: usize,
) -> Result<(), StateError> {
    let wanted: Requirements = sections.take(0)?;
    wanted.met_by(&Requirements::of(cpuid, frequency, vcpus))
}

/// Restores what the vCPUs share: their machine has been [checked](check), and has just been made.
///
/// # Errors
/// Names the section that is missing, or that can't be.
pub fn restore_vm<M: GuestRam>(
    vm: &Vm<M>,
    cpuid: &CpuidTable,
    sections: &mut Sections<'_>,
) -> Result<(), StateError> {
    let Vm { name: _, memory: _, clock, board, mtrrs, fabric: _, refusals: _ } = vm;
    let state: VmClockState = sections.take(0)?;
    clock.write().restore(state).map_err(refused::<VmClockState>(0))?;
    let saved: Mtrrs = sections.take(0)?;
    let restored = Mtrrs::restored(&saved, cpuid.physical_address_bits());
    *mtrrs.lock() = restored.map_err(refused::<Mtrrs>(0))?;
    board.restore(sections)
}
