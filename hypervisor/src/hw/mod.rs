//! Hardware virtualization: what the CPU offers, and the backends that use it.

#[cfg(feature = "check-entries")]
pub mod broken;
mod extra;
pub(crate) use extra::ExtendedState;
#[macro_use]
mod stamp;
pub mod svm;
mod vectors;
pub mod vmx;

use crate::cpu;
use crate::error::HostError;
use config::ApicAssist;
use core::fmt::Debug;
use memory::stage2::NestedFormat;
use vmm::backend::Backend;
use vmm::cpuid::FeatureBit;
use vmm::stopwatch::HotCosts;
use vmm::vcpu::VcpuCore;
use x86defs::HostPhysAddr;
use x86defs::cpuid::{LEAF1_ECX_VMX, LEAF8000_0001_ECX_SVM};

/// The CPU's virtualization extension.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extension {
    /// AMD-V.
    Svm,
    /// VT-x.
    Vmx,
}

/// Help that a guest wants from the CPU for its local APICs.
#[derive(Clone, Copy, Debug)]
pub struct GuestApic {
    /// How far the CPU may go.
    pub assist: ApicAssist,
    /// The page that the nested tables have at the registers' address, where
    /// the CPU [watches](VendorCpu::watches_apic_page) it.
    pub page: Option<HostPhysAddr>,
}

/// A CPU with its vendor's extension switched on: it makes vCPUs. Chosen once
/// at boot; all that runs guests is compiled for each vendor.
pub trait VendorCpu: Debug + Sized + 'static {
    /// A vCPU of this vendor.
    type Vcpu: Backend + Debug + Send + 'static;

    /// Bytes of memory that each vCPU takes for the hardware's sake.
    const VCPU_BYTES: u64;

    /// Costs of the exits that the hot handler serves, in instructions.
    const HOT_COSTS: HotCosts;

    /// Instructions between the stamps around an exit and the exit or the entry itself.
    #[cfg(feature = "stamp-exits")]
    const UNSTAMPED: u64;

    /// The format of its nested tables.
    const NESTED: NestedFormat;

    /// Switches the extension on, on the CPU that calls.
    ///
    /// # Errors
    /// [`HostError`] when a feature that Steward needs is missing, firmware
    /// locked it off, or memory is short.
    fn enable() -> Result<Self, HostError>;

    /// Abilities of the extension, for the operator.
    fn describe(&self) -> impl core::fmt::Display;

    /// Whether vCPUs with this much help recognize accesses to their local APIC
    /// by the page that the nested tables have there.
    fn watches_apic_page(&self, assist: ApicAssist) -> bool;

    /// Whether the CPU delivers and ends the interrupts of vCPUs with this much
    /// help by itself.
    fn delivers_interrupts(&self, assist: ApicAssist) -> bool;

    /// A vCPU in its reset state, on the nested tables at `nested_root`, with a
    /// local APIC in hardware as far as `apic` wants and the CPU goes.
    ///
    /// # Errors
    /// [`HostError::OutOfMemory`].
    fn vcpu(&self, nested_root: HostPhysAddr, apic: GuestApic) -> Result<Self::Vcpu, HostError>;

    /// Breaks what the vCPU enters with, one rule at a time, and prints what the
    /// checker and the CPU say of it.
    #[cfg(feature = "check-entries")]
    fn try_broken(vcpu: &mut Self::Vcpu, core: &mut VcpuCore, plan: broken::Plan<'_>);

    /// Gives `vcpu` this CPU, with all registers that an entry does not switch. It has `moved`
    /// unless this is the CPU where it ran last.
    fn load(&self, vcpu: &mut Self::Vcpu, core: &VcpuCore, moved: bool);

    /// Takes `vcpu` off this CPU, so that any may [`load`](Self::load) it.
    fn unload(vcpu: &mut Self::Vcpu);

    /// Features that the CPU has but can't give to guests.
    fn withheld(&self) -> &'static [FeatureBit];
}

/// Virtual address of the maps of ports and registers that guests may touch, once the
/// first guest is there.
#[cfg(feature = "check-entries")]
pub(crate) fn permission_maps() -> Option<u64> {
    svm::maps::address().or_else(vmx::maps::address)
}

/// Which extension this CPU has, and whether it may be used.
///
/// # Errors
/// [`HostError`] names what is missing or locked off, and the cure.
pub fn detect() -> Result<Extension, HostError> {
    if cpu::cpuid_checked(0x8000_0001, 0).ecx & LEAF8000_0001_ECX_SVM != 0 {
        svm::caps::check_enabled()?;
        return Ok(Extension::Svm);
    }
    if cpu::cpuid(1, 0).ecx & LEAF1_ECX_VMX != 0 {
        vmx::unlock()?;
        return Ok(Extension::Vmx);
    }
    Err(HostError::NoVirtualization)
}
