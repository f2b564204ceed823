//! VT-x: VMCS, extended page tables, virtual-processor identifiers
//! (SDM volume 3: "Virtual-Machine Extensions").
//!
//! Required are extended page tables, unrestricted guest and virtual NMIs;
//! APIC virtualization (module `apicv`), VPID, RDTSCP and INVPCID are used where
//! the capability MSRs offer them.

mod apicv;
mod backend;
#[cfg(feature = "check-entries")]
mod broken;
pub mod caps;
mod dump;
mod entry;
mod host;
pub(in crate::hw) mod maps;
mod rules;
mod syscall;
mod vcpu;
mod vmcs;
mod vpid;

pub use caps::Caps;
pub use vcpu::VmxVcpu;

use crate::cpu::msr;
use crate::error::HostError;
#[cfg(feature = "check-entries")]
use crate::hw::broken::Plan;
use crate::hw::{GuestApic, VendorCpu};
use crate::mm;
use config::ApicAssist;
use memory::stage2::NestedFormat;
use vmm::cpuid::FeatureBit;
use vmm::stopwatch::HotCosts;
use vmm::vcpu::VcpuCore;
use x86_64::registers::control::{Cr4, Cr4Flags};
use x86defs::msr::{FEATURE_CONTROL_LOCK, FEATURE_CONTROL_VMX};
use x86defs::{HostPhysAddr, Msr};

/// VT-x, switched on, on this CPU.
#[derive(Debug)]
pub struct Cpu {
    caps: Caps,
}

impl Cpu {
    /// Switches VT-x on.
    ///
    /// # Errors
    /// [`HostError`] when a feature that Steward needs is missing, firmware
    /// locked VT-x off, or memory is short.
    pub fn enable() -> Result<Self, HostError> {
        unlock()?;
        let caps = Caps::read()?;
        let region = mm::allocate_page().ok_or(HostError::OutOfMemory("VT-x's own region"))?;
        vmcs::set_revision(region, caps.basic.revision());
        // SAFETY: CPUID offers VT-x; the bit changes nothing but the
        // availability of its instructions.
        unsafe { Cr4::write(Cr4::read() | Cr4Flags::VIRTUAL_MACHINE_EXTENSIONS) };
        // SAFETY: CR4.VMXE is set, firmware allows VMXON, `Caps::read` checked
        // CR0 and CR4, and the region is the CPU's for good.
        if !unsafe { vmcs::vmxon(region) } {
            return Err(HostError::MissingFeature {
                feature: "a VMXON that succeeds",
                cure: "turn off what else uses VT-x on this machine",
            });
        }
        if caps.has_vpid() {
            // Whoever used VT-x before us may have left some.
            vmcs::invalidate_vpid(vmcs::Invvpid::All, 0);
        }
        Ok(Self { caps })
    }

    /// Abilities of this CPU's VT-x.
    #[must_use]
    pub const fn caps(&self) -> &Caps {
        &self.caps
    }
}

impl VendorCpu for Cpu {
    type Vcpu = VmxVcpu;

    // The VMCS and the virtual-APIC page.
    const VCPU_BYTES: u64 = 2 * 4096;
    const HOT_COSTS: HotCosts = HotCosts::VMX;

    #[cfg(feature = "stamp-exits")]
    const UNSTAMPED: u64 = 44;

    const NESTED: NestedFormat = NestedFormat::Ept;

    fn enable() -> Result<Self, HostError> {
        Self::enable()
    }

    fn describe(&self) -> impl core::fmt::Display {
        *self.caps()
    }

    fn watches_apic_page(&self, assist: ApicAssist) -> bool {
        apicv::watches_page(&self.caps, assist)
    }

    fn delivers_interrupts(&self, assist: ApicAssist) -> bool {
        apicv::delivers_interrupts(&self.caps, assist)
    }

    fn vcpu(&self, nested_root: HostPhysAddr, apic: GuestApic) -> Result<VmxVcpu, HostError> {
        VmxVcpu::new(self, nested_root, apic)
    }

    #[cfg(feature = "check-entries")]
    fn try_broken(vcpu: &mut Self::Vcpu, core: &mut VcpuCore, plan: Plan<'_>) {
        vcpu.try_broken(core, plan);
    }

    fn load(&self, vcpu: &mut VmxVcpu, core: &VcpuCore, moved: bool) {
        vcpu.load(core, moved);
    }

    fn unload(vcpu: &mut VmxVcpu) {
        vcpu.unload();
    }

    fn withheld(&self) -> &'static [FeatureBit] {
        self.caps.withheld()
    }
}

/// Sees to it that firmware's lock allows VMXON
/// (SDM: "Enabling and Entering VMX Operation").
///
/// # Errors
/// [`HostError::VmxLocked`].
pub fn unlock() -> Result<(), HostError> {
    // A CPU without the register locks nothing.
    let Some(feature_control) = msr::try_read(Msr::FEATURE_CONTROL) else { return Ok(()) };
    let locked = feature_control & FEATURE_CONTROL_LOCK != 0;
    match (locked, feature_control & FEATURE_CONTROL_VMX != 0) {
        (true, true) => Ok(()),
        (true, false) => Err(HostError::VmxLocked { feature_control }),
        (false, _) => {
            let value = feature_control | FEATURE_CONTROL_VMX | FEATURE_CONTROL_LOCK;
            // SAFETY: the register is there and not locked; the bits allow
            // VMXON and change nothing else.
            unsafe { msr::write(Msr::FEATURE_CONTROL, value) };
            Ok(())
        }
    }
}
