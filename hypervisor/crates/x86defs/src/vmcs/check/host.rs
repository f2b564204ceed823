//! SDM: "Checks on Host Control Registers, MSRs, and SSP", "Checks on Host
//! Segment and Descriptor-Table Registers", "Checks Related to Address-Space
//! Size". The host is in 64-bit mode.

use super::{Rule, canonical, implies, rules, valid_efer, valid_pat};
use crate::control::{Cr4, Efer};
use crate::vmcs::{ExitControls, Field16, Field64, FieldNatural};

/// The rules.
pub(super) static RULES: &[Rule] = rules! { "Checks on Host-State Area":
    "host CR0 has a bit that VT-x does not allow, or lacks one" =>
        |s| {
            let ((must, may), value) = (s.limits.cr0, s.image.get(FieldNatural::HOST_CR0));
            value & must == must && value & !may == 0
        };
    "host CR4 has a bit that VT-x does not allow, or lacks one" =>
        |s| {
            let ((must, may), value) = (s.limits.cr4, s.image.get(FieldNatural::HOST_CR4));
            value & must == must && value & !may == 0
        };
    "host CR3 is wider than physical addresses" =>
        |s| s.image.get(FieldNatural::HOST_CR3) >> s.limits.physical_bits == 0;
    "host SYSENTER_ESP or SYSENTER_EIP is not canonical" =>
        |s| canonical(s.image.get(FieldNatural::HOST_SYSENTER_ESP))
            && canonical(s.image.get(FieldNatural::HOST_SYSENTER_EIP));
    "host PAT has a byte that is no memory type" =>
        |s| implies(
            s.exit().contains(ExitControls::LOAD_PAT),
            valid_pat(s.image.get64(Field64::HOST_PAT)),
        );
    "host EFER has a reserved bit, or LMA or LME clear" =>
        |s| {
            let efer = s.image.get64(Field64::HOST_EFER);
            let long = Efer::LMA | Efer::LME;
            implies(
                s.exit().contains(ExitControls::LOAD_EFER),
                valid_efer(efer) && Efer::from_bits_retain(efer).contains(long),
            )
        };
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
    "the host's address space is not of 64 bits" =>
        |s| s.exit().contains(ExitControls::HOST_64_BIT);
    "host CR4.PAE = 0 in 64-bit mode" =>
        |s| s.image.get(FieldNatural::HOST_CR4) & Cr4::PAE.bits() != 0;
    "host RIP is not canonical" => |s| canonical(s.image.get(FieldNatural::HOST_RIP));
};
