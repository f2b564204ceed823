//! AMD-V: VMCB, nested paging, ASIDs (APM volume 2: "Secure Virtual Machine").
//!
//! Everything that a CPU may lack is optional here: next-RIP save, decode
//! assists, flush-by-ASID and VMCB clean bits are used where CPUID offers
//! them and done without elsewhere.

mod asid;
#[cfg(feature = "check-entries")]
mod broken;
pub mod caps;
mod entry;
pub(in crate::hw) mod maps;
mod rules;
mod vcpu;

pub use caps::Caps;
pub use vcpu::SvmVcpu;

use crate::cpu::msr;
use crate::error::HostError;
#[cfg(feature = "check-entries")]
use crate::hw::broken::Plan;
use crate::hw::{GuestApic, VendorCpu};
use crate::mm;
use config::ApicAssist;
use memory::stage2::NestedFormat;
use memory::tags::FlushOne;
use vmm::cpuid::FeatureBit;
use vmm::stopwatch::HotCosts;
use vmm::vcpu::VcpuCore;
use x86defs::{Efer, HostPhysAddr, Msr};

/// AMD-V, switched on, on this CPU.
#[derive(Debug)]
pub struct Cpu {
    caps: Caps,
    /// The VMCB from which VMLOAD takes the host's own hidden registers.
    host_vmcb: HostPhysAddr,
}

impl Cpu {
    /// Switches AMD-V on.
    ///
    /// # Errors
    /// [`HostError`] when a feature that Steward needs is missing, or memory.
    pub fn enable() -> Result<Self, HostError> {
        let caps = Caps::read()?;
        let out = || HostError::OutOfMemory("AMD-V's save areas");
        let save_area = mm::allocate_page().ok_or_else(out)?;
        let host_vmcb = mm::allocate_page().ok_or_else(out)?;
        // SAFETY: EFER exists on every 64-bit CPU.
        let efer = unsafe { msr::read(Msr::EFER) } | Efer::SVME.bits();
        // SAFETY: CPUID offers SVM and firmware did not lock it; the bit
        // changes nothing but the availability of its instructions.
        unsafe { msr::write(Msr::EFER, efer) };
        // SAFETY: SVM is on, so the register exists; the page is the CPU's for good.
        unsafe { msr::write(Msr::VM_HSAVE_PA, save_area.as_u64()) };
        // SAFETY: SVM is on; the page is a frame of our own, used for nothing else.
        unsafe { entry::save_host(host_vmcb) };
        let one = if caps.features.contains(caps::SvmFeatures::FLUSH_BY_ASID) {
            FlushOne::Offered
        } else {
            FlushOne::Missing
        };
        asid::init(caps.asids, one);
        Ok(Self { caps, host_vmcb })
    }

    /// Abilities of this CPU's AMD-V.
    #[must_use]
    pub const fn caps(&self) -> &Caps {
        &self.caps
    }
}

impl VendorCpu for Cpu {
    type Vcpu = SvmVcpu;

    // The VMCB.
    const VCPU_BYTES: u64 = 4096;
    const HOT_COSTS: HotCosts = HotCosts::SVM;

    #[cfg(feature = "stamp-exits")]
    const UNSTAMPED: u64 = 48;

    const NESTED: NestedFormat = NestedFormat::Npt;

    fn enable() -> Result<Self, HostError> {
        Self::enable()
    }

    fn describe(&self) -> impl core::fmt::Display {
        *self.caps()
    }

    fn watches_apic_page(&self, _: ApicAssist) -> bool {
        false
    }

    fn delivers_interrupts(&self, _: ApicAssist) -> bool {
        false
    }

    fn vcpu(&self, nested_root: HostPhysAddr, _: GuestApic) -> Result<SvmVcpu, HostError> {
        SvmVcpu::new(self, nested_root)
    }

    #[cfg(feature = "check-entries")]
    fn try_broken(vcpu: &mut Self::Vcpu, core: &mut VcpuCore, plan: Plan<'_>) {
        vcpu.try_broken(core, plan);
    }

    fn load(&self, vcpu: &mut SvmVcpu, core: &VcpuCore, moved: bool) {
        vcpu.load(self.host_vmcb, core, moved);
    }

    fn unload(vcpu: &mut SvmVcpu) {
        vcpu.unload();
    }

    fn withheld(&self) -> &'static [FeatureBit] {
        &[]
    }
}
