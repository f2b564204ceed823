//! The MSRs of SYSCALL and SWAPGS, which an entry does not switch. The
//! hypervisor uses none of them, so a vCPU's own stay in the CPU until another
//! vCPU runs there.

use crate::cpu::msr;
use crate::cpu::percpu::{self, MAX_CPUS};
use core::sync::atomic::{AtomicU64, Ordering};
use vmm::registers::{Fields, Registers};
use x86defs::Msr;

/// The vCPU whose values each CPU holds; 0: none.
static OWNERS: [AtomicU64; MAX_CPUS] = [const { AtomicU64::new(0) }; MAX_CPUS];
/// The last name given to a vCPU.
static LAST: AtomicU64 = AtomicU64::new(0);

/// A name that no vCPU has had.
fn name() -> u64 {
    LAST.fetch_add(1, Ordering::Relaxed) + 1
}

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
        Self { owner: name(), star: 0, lstar: 0, cstar: 0, sfmask: 0, kernel_gs_base: 0 }
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
        self.kernel_gs_base = kernel_gs_base();
    }

    /// Fills in those of `fields`; `loaded` if the vCPU has this CPU.
    pub(super) fn fetch(&self, r: &Registers, fields: Fields, loaded: bool) {
        for (field, value, own) in [
            (Fields::STAR, &r.star, self.star),
            (Fields::LSTAR, &r.lstar, self.lstar),
            (Fields::CSTAR, &r.cstar, self.cstar),
            (Fields::SFMASK, &r.sfmask, self.sfmask),
        ] {
            if fields.contains(field) {
                value.fill(own);
            }
        }
        if fields.contains(Fields::KERNEL_GS_BASE) {
            r.kernel_gs_base.fill(if loaded { kernel_gs_base() } else { self.kernel_gs_base });
        }
    }

    /// Takes the values that are `changed`; `loaded` if the vCPU has this CPU.
    pub(super) fn store(&mut self, r: &Registers, changed: Fields, loaded: bool) {
        if loaded {
            self.note();
        }
        for (field, own, value) in [
            (Fields::STAR, &mut self.star, &r.star),
            (Fields::LSTAR, &mut self.lstar, &r.lstar),
            (Fields::CSTAR, &mut self.cstar, &r.cstar),
            (Fields::SFMASK, &mut self.sfmask, &r.sfmask),
            (Fields::KERNEL_GS_BASE, &mut self.kernel_gs_base, &r.kernel_gs_base),
        ] {
            if changed.contains(field) {
                *own = value.get();
            }
        }
        // The CPU where the vCPU ran last may hold its old values: under its old name.
        self.owner = name();
        if loaded {
            self.load();
        }
    }

    /// The values that this CPU holds are not this vCPU's any more.
    pub(super) fn forget(&self) {
        let _ = owner().compare_exchange(self.owner, 0, Ordering::Relaxed, Ordering::Relaxed);
    }
}

/// KERNEL_GS_BASE in this CPU.
fn kernel_gs_base() -> u64 {
    // SAFETY: every 64-bit CPU has it.
    unsafe { msr::read(Msr::KERNEL_GS_BASE) }
}
