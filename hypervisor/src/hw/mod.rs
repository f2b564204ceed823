//! Hardware virtualization: what the CPU offers, and the backends that use it.

mod extra;
pub mod svm;

use crate::cpu;
use crate::error::HostError;
use x86defs::cpuid::{LEAF1_ECX_VMX, LEAF8000_0001_ECX_SVM};

/// The CPU's virtualization extension.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extension {
    /// AMD-V.
    Svm,
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
        return Err(vmx_refusal());
    }
    Err(HostError::NoVirtualization)
}

fn vmx_refusal() -> HostError {
    use x86defs::Msr;
    use x86defs::msr::{FEATURE_CONTROL_LOCK, FEATURE_CONTROL_VMX};
    match cpu::msr::try_read(Msr::FEATURE_CONTROL) {
        Some(value)
            if value & FEATURE_CONTROL_LOCK != 0 && value & FEATURE_CONTROL_VMX == 0 =>
        {
            HostError::VmxLocked { feature_control: value }
        }
        _ => HostError::VmxNotYet,
    }
}
