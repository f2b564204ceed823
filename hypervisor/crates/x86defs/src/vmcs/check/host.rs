//! SDM: "Checks on Host-State Area". The host is in 64-bit mode.

use super::{
    Rule, Subject, canonical, implies, rules, valid_efer, valid_pat, valid_s_cet, valid_ssp,
};
use crate::control::{Cr0, Cr4, Efer};
use crate::vmcs::{ExitControls, Field16, Field64, FieldNatural};

/// Whether `value` has all bits of `must` and none but those of `may`.
fn fixed(value: u64, (must, may): (u64, u64)) -> bool {
    value & must == must && value & !may == 0
}

fn loads(s: &Subject<'_>, control: ExitControls) -> bool {
    s.exit().contains(control)
}

/// The rules.
pub(super) static RULES: &[Rule] = rules! {
    "Checks on Host Control Registers, MSRs, and SSP" {
        "host CR0 has a bit that VT-x does not allow, or lacks one" =>
            |s| fixed(s.image.get(FieldNatural::HOST_CR0), s.limits.cr0);
        "host CR4 has a bit that VT-x does not allow, or lacks one" =>
            |s| fixed(s.image.get(FieldNatural::HOST_CR4), s.limits.cr4);
        "host CR4.CET = 1 with CR0.WP = 0" =>
            |s| implies(
                s.image.get(FieldNatural::HOST_CR4) & Cr4::CET.bits() != 0,
                s.image.get(FieldNatural::HOST_CR0) & Cr0::WP.bits() != 0,
            );
        "host CR3 is wider than physical addresses" =>
            |s| s.physical(s.image.get(FieldNatural::HOST_CR3), 1);
        "host SYSENTER_ESP or SYSENTER_EIP is not canonical" =>
            |s| canonical(s.image.get(FieldNatural::HOST_SYSENTER_ESP))
                && canonical(s.image.get(FieldNatural::HOST_SYSENTER_EIP));
        "host S_CET has a reserved bit, or is not canonical" =>
            |s| implies(
                loads(s, ExitControls::LOAD_CET),
                valid_s_cet(s.image.get(FieldNatural::HOST_S_CET)),
            );
        "host SSP or its table is not aligned, or not canonical" =>
            |s| implies(
                loads(s, ExitControls::LOAD_CET),
                valid_ssp(s.image.get(FieldNatural::HOST_SSP))
                    && canonical(s.image.get(FieldNatural::HOST_INTERRUPT_SSP_TABLE)),
            );
        "host PERF_GLOBAL_CTRL has a counter that the CPU does not have" =>
            |s| implies(
                loads(s, ExitControls::LOAD_PERF_GLOBAL_CTRL),
                s.image.get64(Field64::HOST_PERF_GLOBAL_CTRL) & !s.limits.performance_counters
                    == 0,
            );
        "host PAT has a byte that is no memory type" =>
            |s| implies(
                loads(s, ExitControls::LOAD_PAT),
                valid_pat(s.image.get64(Field64::HOST_PAT)),
            );
        "host EFER has a reserved bit" =>
            |s| implies(
                loads(s, ExitControls::LOAD_EFER),
                valid_efer(s.image.get64(Field64::HOST_EFER)),
            );
        "host EFER.LMA = 0 or EFER.LME = 0 in 64-bit mode" =>
            |s| implies(
                loads(s, ExitControls::LOAD_EFER),
                Efer::from_bits_retain(s.image.get64(Field64::HOST_EFER))
                    .contains(Efer::LMA | Efer::LME),
            );
        "host PKRS is wider than 32 bits" =>
            |s| implies(
                loads(s, ExitControls::LOAD_PKRS),
                s.image.get64(Field64::HOST_PKRS) >> 32 == 0,
            );
    }
    "Checks on Host Segment and Descriptor-Table Registers" {
        "a host selector has its RPL or TI set" =>
            |s| [
                Field16::HOST_ES_SELECTOR,
                Field16::HOST_CS_SELECTOR,
                Field16::HOST_SS_SELECTOR,
                Field16::HOST_DS_SELECTOR,
                Field16::HOST_FS_SELECTOR,
                Field16::HOST_GS_SELECTOR,
                Field16::HOST_TR_SELECTOR,
            ]
            .into_iter()
            .all(|field| s.image.get16(field) & 7 == 0);
        "host CS is null" => |s| s.image.get16(Field16::HOST_CS_SELECTOR) != 0;
        "host TR is null" => |s| s.image.get16(Field16::HOST_TR_SELECTOR) != 0;
        "a base address of the host's FS, GS, GDTR, IDTR or TR is not canonical" =>
            |s| [
                FieldNatural::HOST_FS_BASE,
                FieldNatural::HOST_GS_BASE,
                FieldNatural::HOST_TR_BASE,
                FieldNatural::HOST_GDTR_BASE,
                FieldNatural::HOST_IDTR_BASE,
            ]
            .into_iter()
            .all(|field| canonical(s.image.get(field)));
    }
    "Checks Related to Address-Space Size" {
        "the host's address space is not of 64 bits" =>
            |s| s.exit().contains(ExitControls::HOST_64_BIT);
        "host CR4.PAE = 0 in 64-bit mode" =>
            |s| s.image.get(FieldNatural::HOST_CR4) & Cr4::PAE.bits() != 0;
        "host RIP is not canonical" => |s| canonical(s.image.get(FieldNatural::HOST_RIP));
    }
};
