//! The host-state area: what an exit loads (SDM: "Host-State Area"). Written
//! once; only CR3 (each guest has its own address space) and RSP follow the
//! code that enters.

use super::vmcs::Current;
use crate::cpu::msr;
use crate::cpu::tables::TSS_SELECTOR;
use core::arch::asm;
use x86_64::instructions::segmentation::{CS, SS, Segment};
use x86_64::instructions::tables::{sgdt, sidt};
use x86_64::registers::control::{Cr0, Cr4};
use x86defs::Msr;
use x86defs::vmcs::{Field16, Field32, Field64, FieldNatural};

/// CR3 as it is.
pub(super) fn cr3() -> u64 {
    let value: u64;
    // SAFETY: reading CR3 has no effect.
    unsafe { asm!("mov {}, cr3", out(reg) value, options(nomem, nostack, preserves_flags)) };
    value
}

/// The base in the descriptor of our task-state segment
/// (SDM: "TSS Descriptor in 64-bit Mode").
fn tss_base() -> u64 {
    let entry = (sgdt().base.as_u64() + u64::from(TSS_SELECTOR)) as *const [u64; 2];
    // SAFETY: the selector is one of the table in force, which lives for ever,
    // and its descriptor has two words.
    let [low, high] = unsafe { entry.read() };
    (low >> 16 & 0xff_ffff) | (low >> 56) << 24 | high << 32
}

/// Fills the area with this CPU's registers.
pub(super) fn write(vmcs: Current<'_>) {
    vmcs.write(FieldNatural::HOST_CR0, Cr0::read_raw());
    vmcs.write(FieldNatural::HOST_CR3, cr3());
    vmcs.write(FieldNatural::HOST_CR4, Cr4::read_raw());
    vmcs.write(Field16::HOST_CS_SELECTOR, CS::get_reg().0);
    vmcs.write(Field16::HOST_SS_SELECTOR, SS::get_reg().0);
    for null in [
        Field16::HOST_ES_SELECTOR,
        Field16::HOST_DS_SELECTOR,
        Field16::HOST_FS_SELECTOR,
        Field16::HOST_GS_SELECTOR,
    ] {
        vmcs.write(null, 0);
    }
    vmcs.write(Field16::HOST_TR_SELECTOR, TSS_SELECTOR);
    vmcs.write(FieldNatural::HOST_FS_BASE, 0);
    // SAFETY: every 64-bit CPU has the register.
    vmcs.write(FieldNatural::HOST_GS_BASE, unsafe { msr::read(Msr::GS_BASE) });
    vmcs.write(FieldNatural::HOST_TR_BASE, tss_base());
    vmcs.write(FieldNatural::HOST_GDTR_BASE, sgdt().base.as_u64());
    vmcs.write(FieldNatural::HOST_IDTR_BASE, sidt().base.as_u64());
    // SYSENTER is not used here.
    vmcs.write(Field32::HOST_SYSENTER_CS, 0);
    vmcs.write(FieldNatural::HOST_SYSENTER_ESP, 0);
    vmcs.write(FieldNatural::HOST_SYSENTER_EIP, 0);
    for (field, msr) in [(Field64::HOST_EFER, Msr::EFER), (Field64::HOST_PAT, Msr::PAT)] {
        // SAFETY: every 64-bit CPU has both.
        vmcs.write(field, unsafe { msr::read(msr) });
    }
}
