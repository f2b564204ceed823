//! Abilities of this CPU's AMD-V (APM volume 3: "Function 8000_000Ah: SVM Features").

use crate::cpu::{self, msr};
use crate::error::HostError;
use core::fmt;
use x86defs::Msr;
use x86defs::msr::{VM_CR_LOCK, VM_CR_SVMDIS};
use x86defs::vmcb::check::Limits;

bitflags::bitflags! {
    /// CPUID 8000_000A EDX.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct SvmFeatures: u32 {
        /// Nested paging.
        const NESTED_PAGING = 1 << 0;
        /// Last-branch virtualization.
        const LBR = 1 << 1;
        /// SVM lock.
        const LOCK = 1 << 2;
        /// Next-RIP save.
        const NEXT_RIP = 1 << 3;
        /// TSC ratio.
        const TSC_RATE = 1 << 4;
        /// VMCB clean bits.
        const VMCB_CLEAN = 1 << 5;
        /// Flush by ASID.
        const FLUSH_BY_ASID = 1 << 6;
        /// Decode assists.
        const DECODE_ASSISTS = 1 << 7;
        /// Pause filter.
        const PAUSE_FILTER = 1 << 10;
        /// Pause-filter threshold.
        const PAUSE_THRESHOLD = 1 << 12;
        /// AVIC.
        const AVIC = 1 << 13;
        /// Virtual GIF.
        const VGIF = 1 << 16;
    }
}

/// AMD-V's abilities.
#[derive(Clone, Copy, Debug)]
pub struct Caps {
    /// Optional features.
    pub features: SvmFeatures,
    /// Address-space identifiers, the host's included.
    pub asids: u32,
    /// Revision.
    pub revision: u8,
    /// Limits that an entry is checked against.
    pub limits: Limits,
}

/// Whether firmware left SVM usable.
///
/// # Errors
/// [`HostError::SvmDisabled`] when it did not.
pub fn check_enabled() -> Result<(), HostError> {
    // One emulator offers SVM without this register; then nothing disables it.
    match msr::try_read(Msr::VM_CR) {
        Some(vm_cr) if vm_cr & VM_CR_SVMDIS != 0 => {
            Err(HostError::SvmDisabled { vm_cr, locked: vm_cr & VM_CR_LOCK != 0 })
        }
        _ => Ok(()),
    }
}

impl Caps {
    /// Reads them.
    ///
    /// # Errors
    /// [`HostError::MissingFeature`] without nested paging.
    pub fn read() -> Result<Self, HostError> {
        let leaf = cpu::cpuid_checked(0x8000_000a, 0);
        let features = SvmFeatures::from_bits_truncate(leaf.edx);
        if !features.contains(SvmFeatures::NESTED_PAGING) {
            return Err(HostError::MissingFeature {
                feature: "nested paging (CPUID 8000_000A:EDX.NP)",
                cure: "a CPU of the last fifteen years",
            });
        }
        let [revision, ..] = leaf.eax.to_le_bytes();
        let limits = Limits::of(&cpu::cpuid_checked);
        Ok(Self { features, asids: leaf.ebx, revision, limits })
    }

    /// Whether CR2 has to be put into the CPU before an entry, DR6 is lost at
    /// an intercepted #DB, and EXITINTINFO is wrong for INT n: true of one
    /// emulator, which is told by flush-by-ASID without clean bits. Real CPUs
    /// got both together.
    #[must_use]
    pub const fn switches_less(&self) -> bool {
        self.features.contains(SvmFeatures::FLUSH_BY_ASID)
            && !self.features.contains(SvmFeatures::VMCB_CLEAN)
    }
}

impl fmt::Display for Caps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AMD-V revision {}, {} ASIDs", self.revision, self.asids)?;
        for (name, _) in self.features.iter_names() {
            write!(f, ", {}", name.to_ascii_lowercase().replace('_', "-"))?;
        }
        Ok(())
    }
}
