//! [`HostError`]: why the machine can't run guests, and the cure.

use alloc::string::String;

/// A condition of the machine that stops the boot.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// Neither vendor's extension is there.
    #[error(
        "this CPU offers neither Intel VT-x (CPUID 1:ECX.VMX) nor AMD-V (CPUID 8000_0001:ECX.SVM). \
         Cure: a CPU that has one of them; in a virtual machine, turn nested virtualization on"
    )]
    NoVirtualization,
    /// AMD-V is there but locked off.
    #[error(
        "AMD-V is switched off by the firmware: VM_CR = {vm_cr:#x} has SVMDIS set{}. \
         Cure: enable SVM in the BIOS set-up",
        if *.locked { " and locked" } else { "" }
    )]
    SvmDisabled {
        /// The register.
        vm_cr: u64,
        /// Whether it is locked.
        locked: bool,
    },
    /// VT-x is there but locked off.
    #[error(
        "VT-x is locked off by the firmware: IA32_FEATURE_CONTROL = {feature_control:#x}. \
         Cure: enable VT-x in the BIOS set-up"
    )]
    VmxLocked {
        /// The register.
        feature_control: u64,
    },
    /// VT-x lacks controls that are needed.
    #[error(
        "this CPU's VT-x lacks {word} controls that Steward needs: {names}. \
         Cure: a CPU of the last fifteen years"
    )]
    MissingControls {
        /// The control word.
        word: &'static str,
        /// The controls that are missing in it.
        names: String,
    },
    /// A needed feature is missing.
    #[error("this CPU lacks {feature}, which Steward needs. Cure: {cure}")]
    MissingFeature {
        /// The missing feature.
        feature: &'static str,
        /// The remedy.
        cure: &'static str,
    },
    /// The bootloader left something out.
    #[error("the bootloader passed no {0}. Cure: write the image anew with `cargo xtask image`")]
    BootInfo(&'static str),
    /// A page of the image is both writable and executable.
    #[error("the image's page at {0:#x} is both writable and executable. Cure: build it anew")]
    WritableCode(u64),
    /// There is too little memory for the hypervisor itself.
    #[error("out of memory while setting up {0}. Cure: a machine with more memory")]
    OutOfMemory(&'static str),
    /// The bundle is damaged.
    #[error("the bundle of guests is not usable: {0}")]
    Bundle(#[from] config::bundle::BundleError),
    /// Guests ask for more memory than there is.
    #[error(
        "guest \"{guest}\" asks for {wanted} MiB, but only {available} MiB are free. \
         Cure: give it less, or the machine more"
    )]
    GuestMemory {
        /// The guest's name.
        guest: String,
        /// Memory that it asks for, in MiB.
        wanted: u64,
        /// Memory that is free, in MiB.
        available: u64,
    },
    /// A guest could not be set up.
    #[error("guest \"{guest}\" can't be started: {why}")]
    Guest {
        /// The guest's name.
        guest: String,
        /// The reason and the cure.
        why: String,
    },
    /// The TSC stands still, or counts at a rate that is none.
    #[error("the time-stamp counter does not count. Cure: another machine")]
    NoTsc,
    /// No timer for the scheduler.
    #[error("the timer of this CPU's local APIC does not count. Cure: another machine")]
    ApicTimer,
    /// Nothing to measure the TSC against.
    #[error(
        "nothing tells how fast this machine's time-stamp counter runs: {0}. Cure: in the BIOS \
         set-up, switch the HPET on and \"8254 clock gating\" off; a virtual machine needs a PIT, \
         an HPET, or ACPI tables with a PM timer"
    )]
    NoClock(String),
}
