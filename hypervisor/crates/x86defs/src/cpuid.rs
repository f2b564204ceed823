//! CPUID leaves and the feature bits that Steward names.

/// The four registers that CPUID returns.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct CpuidResult {
    /// EAX.
    pub eax: u32,
    /// EBX.
    pub ebx: u32,
    /// ECX.
    pub ecx: u32,
    /// EDX.
    pub edx: u32,
}

/// Source of CPUID's answers: the CPU itself, or a table in tests.
pub trait CpuidSource {
    /// CPUID with EAX = `leaf` and ECX = `subleaf`.
    fn cpuid(&self, leaf: u32, subleaf: u32) -> CpuidResult;
}

impl<F: Fn(u32, u32) -> CpuidResult> CpuidSource for F {
    fn cpuid(&self, leaf: u32, subleaf: u32) -> CpuidResult {
        self(leaf, subleaf)
    }
}

/// Whether IA32_PRED_CMD has the indirect branch predictor barrier: leaf 7 says so
/// on Intel's CPUs, leaf 8000_0008 on AMD's.
pub fn has_branch_barrier(cpu: &impl CpuidSource) -> bool {
    cpu.cpuid(7, 0).edx & 1 << 26 != 0 || cpu.cpuid(0x8000_0008, 0).ebx & 1 << 12 != 0
}

/// How a CPU keeps the hypervisor from using what guests have written, which it maps as
/// user pages: as code (SMEP), and as data but where a copy is meant (SMAP).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Guards {
    /// Supervisor-mode execution prevention.
    pub smep: bool,
    /// Supervisor-mode access prevention.
    pub smap: bool,
}

impl Guards {
    /// Guards of the CPU, by CPUID (leaf 7, EBX).
    #[must_use]
    pub fn of(cpu: &impl CpuidSource) -> Self {
        let features = cpu.cpuid(7, 0).ebx;
        Self { smep: features & 1 << 7 != 0, smap: features & 1 << 20 != 0 }
    }

    /// Warning for the operator, if a guard is missing.
    #[must_use]
    pub const fn warning(self) -> Option<&'static str> {
        match (self.smep, self.smap) {
            (true, true) => None,
            (true, false) => Some(
                "without SMAP: a stray access of the hypervisor to a guest's memory would not be \
                 noticed",
            ),
            (false, true) => Some(
                "without SMEP: only the page tables keep the hypervisor from running code of a \
                 guest",
            ),
            (false, false) => Some(
                "without SMEP and SMAP: a stray access of the hypervisor to a guest's memory would \
                 not be noticed, and only the page tables keep it from running code there",
            ),
        }
    }
}

/// The CPU's maker, as far as it matters here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Vendor {
    /// "GenuineIntel".
    Intel,
    /// "AuthenticAMD" or "HygonGenuine".
    Amd,
    /// Any other.
    Other,
}

impl Vendor {
    /// The vendor that leaf 0 names.
    #[must_use]
    pub fn of(leaf0: CpuidResult) -> Self {
        match (&leaf0.ebx.to_le_bytes(), &leaf0.edx.to_le_bytes(), &leaf0.ecx.to_le_bytes()) {
            (b"Genu", b"ineI", b"ntel") => Self::Intel,
            (b"Auth", b"enti", b"cAMD") | (b"Hygo", b"nGen", b"uine") => Self::Amd,
            _ => Self::Other,
        }
    }
}

/// Leaf 1 ECX: VMX.
pub const LEAF1_ECX_VMX: u32 = 1 << 5;
/// Leaf 8000_0001 ECX: SVM.
pub const LEAF8000_0001_ECX_SVM: u32 = 1 << 2;
