//! The MSRs of SYSCALL and SWAPGS, which an entry does not switch. The
//! hypervisor uses none of them, so a vCPU's own stay in the CPU until another
//! vCPU runs there.

use crate::cpu::msr;
use crate::cpu::percpu::{self, MAX_CPUS};
use core::sync::atomic::{AtomicU64, Ordering};
use x86defs::Msr;

/// The vCPU whose values each CPU holds; 0: none.
static OWNERS: [AtomicU64; MAX_CPUS] = [const { AtomicU64::new(0) }; MAX_CPUS];
/// The last name given to a vCPU.
static LAST: AtomicU64 = AtomicU64::new(0);

/// The vCPU whose values this CPU holds.
fn owner() -> &'static AtomicU64 {
    &OWNERS[percpu::this().index() % MAX_CPUS]
}

/// A vCPU's values.
#[derive(Debug)]
pub(super) struct SyscallMsrs {
    owner: u64,
    star: u64,
    lstar: u64,
    cstar: u64,
    sfmask: u64,
    kernel_gs_base: u64,
}

impl SyscallMsrs {
    /// As after reset.
    pub(super) fn new() -> Self {
        Self {
            owner: LAST.fetch_add(1, Ordering::Relaxed) + 1,
            star: 0,
            lstar: 0,
            cstar: 0,
            sfmask: 0,
            kernel_gs_base: 0,
        }
    }

    /// Puts the values into the CPU, if they are not there.
    pub(super) fn load(&self) {
        let owner = owner();
        if owner.load(Ordering::Relaxed) == self.owner {
            return;
        }
        owner.store(self.owner, Ordering::Relaxed);
        for (msr, value) in [
            (Msr::STAR, self.star),
            (Msr::LSTAR, self.lstar),
            (Msr::CSTAR, self.cstar),
            (Msr::SFMASK, self.sfmask),
            (Msr::KERNEL_GS_BASE, self.kernel_gs_base),
        ] {
            // SAFETY: every 64-bit CPU has these registers, the values were
            // checked when the guest set them, and the hypervisor uses none.
            unsafe { msr::write(msr, value) };
        }
    }

    /// Notes the one value that the guest changes without an exit.
    pub(super) fn note(&mut self) {
        // SAFETY: every 64-bit CPU has it.
        self.kernel_gs_base = unsafe { msr::read(Msr::KERNEL_GS_BASE) };
    }

    /// One of the values.
    pub(super) fn get(&self, msr: Msr) -> Option<u64> {
        Some(match msr {
            Msr::STAR => self.star,
            Msr::LSTAR => self.lstar,
            Msr::CSTAR => self.cstar,
            Msr::SFMASK => self.sfmask,
            Msr::KERNEL_GS_BASE => self.kernel_gs_base,
            _ => return None,
        })
    }

    /// Sets one of the values, which was checked; `false` if it is none of them.
    pub(super) fn set(&mut self, msr: Msr, value: u64) -> bool {
        match msr {
            Msr::STAR => self.star = value,
            Msr::LSTAR => self.lstar = value,
            Msr::CSTAR => self.cstar = value,
            Msr::SFMASK => self.sfmask = value,
            Msr::KERNEL_GS_BASE => self.kernel_gs_base = value,
            _ => return false,
        }
        // The next entry loads them all.
        self.forget();
        true
    }

    /// The values that this CPU holds are not this vCPU's any more.
    pub(super) fn forget(&self) {
        let _ = owner().compare_exchange(self.owner, 0, Ordering::Relaxed, Ordering::Relaxed);
    }
}
