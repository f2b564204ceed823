//! SDM: "Checks on Guest Control Registers, Debug Registers, and MSRs",
//! "Checks on Guest Descriptor-Table Registers", "Checks on Guest RIP, RFLAGS,
//! and SSP", "Checks on Guest Non-Register State", "Checks on Guest
//! Page-Directory-Pointer-Table Entries".

use super::{
    Rule, Subject, canonical, implies, rules, valid_efer, valid_pat, valid_s_cet, valid_ssp,
};
use crate::bits::Low;
use crate::control::{Cr0, Cr4, Efer, Rflags};
use crate::event::Exception;
use crate::reg::SegmentRegister;
use crate::segment::SegmentAttributes;
use crate::vmcs::{
    EntryControls, Field32, Field64, FieldNatural, Interruptibility, InterruptionKind,
    PENDING_DEBUG_BS, PinControls, SecondaryControls,
};

fn cr0_fits(s: &Subject<'_>) -> bool {
    let (must, may) = s.limits.cr0;
    let modes = Cr0::PE | Cr0::PG;
    // Caching is not switched by an entry.
    let exempt = (Cr0::CD | Cr0::NW).bits();
    let exempt = if s.unrestricted() { exempt | modes.bits() } else { exempt };
    let value = s.cr0().bits();
    !value & must & !exempt == 0 && value & !may & !exempt == 0
}

/// Activity states (SDM: "Guest Non-Register State").
const ACTIVE: u32 = 0;
const HALTED: u32 = 1;
const SHUT_DOWN: u32 = 2;

fn activity(s: &Subject<'_>) -> u32 {
    s.image.get32(Field32::GUEST_ACTIVITY)
}

/// Whether the event to inject can wake the guest, if it is not active.
fn event_fits_activity(s: &Subject<'_>) -> bool {
    let Some(info) = s.injected() else { return true };
    let exception = |one: Exception| {
        info.kind() == InterruptionKind::EXCEPTION && Exception(info.vector()) == one
    };
    let nmi = info.kind() == InterruptionKind::NMI;
    match activity(s) {
        ACTIVE => true,
        HALTED => {
            nmi || exception(Exception::DB)
                || exception(Exception::MC)
                || matches!(info.kind(), InterruptionKind::INTERRUPT | InterruptionKind::OTHER)
        }
        SHUT_DOWN => nmi || exception(Exception::MC),
        _ => false,
    }
}

/// Pending debug exceptions: bit 16, of a transaction (RTM), wants bit 12 and
/// no other.
fn transaction_fits(s: &Subject<'_>) -> bool {
    const TRANSACTION: u64 = 1 << 16;
    const ENABLED_BREAKPOINT: u64 = 1 << 12;
    let pending = s.image.get(FieldNatural::GUEST_PENDING_DEBUG);
    implies(
        pending & TRANSACTION != 0,
        pending == TRANSACTION | ENABLED_BREAKPOINT
            && !blocked(s).contains(Interruptibility::MOV_SS),
    )
}

fn blocked(s: &Subject<'_>) -> Interruptibility {
    Interruptibility::from_bits_retain(s.image.get32(Field32::GUEST_INTERRUPTIBILITY))
}

fn injects(s: &Subject<'_>, kind: InterruptionKind) -> bool {
    s.injected().is_some_and(|info| info.kind() == kind)
}

fn attributes(s: &Subject<'_>, register: SegmentRegister) -> SegmentAttributes {
    let rights = s.image.get32(Field32::guest_rights(register));
    SegmentAttributes::from_bits(rights.low16() & 0xf0ff)
}

fn rip_fits(s: &Subject<'_>) -> bool {
    let rip = s.image.get(FieldNatural::GUEST_RIP);
    if s.long_mode() && attributes(s, SegmentRegister::Cs).long() {
        canonical(rip)
    } else {
        rip >> 32 == 0
    }
}

/// Bits 63:22, 15, 5 and 3 are 0, bit 1 is 1.
fn rflags_fit(s: &Subject<'_>) -> bool {
    let bits = s.rflags().bits();
    bits & 0xffff_ffff_ffc0_8028 == 0 && bits & Rflags::RESERVED1.bits() != 0
}

fn step_fits(s: &Subject<'_>) -> bool {
    const BTF: u64 = 1 << 1;
    let stops = blocked(s).intersects(Interruptibility::SHADOW) || activity(s) == HALTED;
    let btf = s.image.get64(Field64::GUEST_DEBUGCTL) & BTF != 0;
    let due = s.rflags().contains(Rflags::TF) && !btf;
    let pending = s.image.get(FieldNatural::GUEST_PENDING_DEBUG) & PENDING_DEBUG_BS != 0;
    implies(stops, pending == due)
}

fn pointers_fit(s: &Subject<'_>) -> bool {
    let pae = s.cr0().contains(Cr0::PG) && s.cr4().contains(Cr4::PAE) && !s.long_mode();
    let used = pae && s.secondary().contains(SecondaryControls::EPT);
    let reserved = 0x1e6 | u64::MAX << s.limits.physical_bits;
    implies(
        used,
        [
            Field64::GUEST_PDPTE0,
            Field64::GUEST_PDPTE1,
            Field64::GUEST_PDPTE2,
            Field64::GUEST_PDPTE3,
        ]
        .into_iter()
        .map(|field| s.image.get64(field))
        .all(|entry| entry & 1 == 0 || entry & reserved == 0),
    )
}

/// The rules.
pub(super) static RULES: &[Rule] = rules! {
    "Checks on Guest Control Registers, Debug Registers, and MSRs" {
        "guest CR0 has a bit that VT-x does not allow, or lacks one" => cr0_fits;
        "guest CR0.PG = 1 with CR0.PE = 0" =>
            |s| implies(s.cr0().contains(Cr0::PG), s.cr0().contains(Cr0::PE));
        "guest CR4 has a bit that VT-x does not allow, or lacks one" =>
            |s| {
                let ((must, may), value) = (s.limits.cr4, s.cr4().bits());
                value & must == must && value & !may == 0
            };
        "guest CR4.CET = 1 with CR0.WP = 0" =>
            |s| implies(s.cr4().contains(Cr4::CET), s.cr0().contains(Cr0::WP));
        "guest DEBUGCTL has a reserved bit" =>
            |s| implies(
                s.entry().contains(EntryControls::LOAD_DEBUG),
                s.image.get64(Field64::GUEST_DEBUGCTL) & !0xdfc3 == 0,
            );
        "guest CR0.PG = 0 in long mode" =>
            |s| implies(s.long_mode(), s.cr0().contains(Cr0::PG));
        "guest CR4.PAE = 0 in long mode" =>
            |s| implies(s.long_mode(), s.cr4().contains(Cr4::PAE));
        "guest CR4.PCIDE = 1 outside long mode" =>
            |s| implies(s.cr4().contains(Cr4::PCIDE), s.long_mode());
        "guest CR3 is wider than physical addresses" =>
            |s| s.image.get(FieldNatural::GUEST_CR3) >> s.limits.physical_bits == 0;
        "guest DR7 is wider than 32 bits" =>
            |s| implies(
                s.entry().contains(EntryControls::LOAD_DEBUG),
                s.image.get(FieldNatural::GUEST_DR7) >> 32 == 0,
            );
        "guest SYSENTER_ESP or SYSENTER_EIP is not canonical" =>
            |s| canonical(s.image.get(FieldNatural::GUEST_SYSENTER_ESP))
                && canonical(s.image.get(FieldNatural::GUEST_SYSENTER_EIP));
        "guest S_CET has a reserved bit, or is not canonical" =>
            |s| implies(
                s.entry().contains(EntryControls::LOAD_CET),
                valid_s_cet(s.image.get(FieldNatural::GUEST_S_CET)),
            );
        "the table of the guest's shadow-stack pointers is not canonical" =>
            |s| implies(
                s.entry().contains(EntryControls::LOAD_CET),
                canonical(s.image.get(FieldNatural::GUEST_INTERRUPT_SSP_TABLE)),
            );
        "guest PERF_GLOBAL_CTRL has a counter that the CPU does not have" =>
            |s| implies(
                s.entry().contains(EntryControls::LOAD_PERF_GLOBAL_CTRL),
                s.image.get64(Field64::GUEST_PERF_GLOBAL_CTRL) & !s.limits.performance_counters == 0,
            );
        "guest PAT has a byte that is no memory type" =>
            |s| implies(
                s.entry().contains(EntryControls::LOAD_PAT),
                valid_pat(s.image.get64(Field64::GUEST_PAT)),
            );
        "guest EFER has a reserved bit" =>
            |s| implies(
                s.entry().contains(EntryControls::LOAD_EFER),
                valid_efer(s.efer().bits()),
            );
        "guest EFER.LMA differs from the entry control \"IA-32e mode guest\"" =>
            |s| implies(
                s.entry().contains(EntryControls::LOAD_EFER),
                s.efer().contains(Efer::LMA) == s.long_mode(),
            );
        "guest EFER.LMA differs from EFER.LME with CR0.PG = 1" =>
            |s| implies(
                s.entry().contains(EntryControls::LOAD_EFER) && s.cr0().contains(Cr0::PG),
                s.efer().contains(Efer::LMA) == s.efer().contains(Efer::LME),
            );
        "guest BNDCFGS has a reserved bit, or is not canonical" =>
            |s| {
                let bounds = s.image.get64(Field64::GUEST_BNDCFGS);
                implies(
                    s.entry().contains(EntryControls::LOAD_BNDCFGS),
                    bounds & 0xffc == 0 && canonical(bounds),
                )
            };
        "guest PKRS is wider than 32 bits" =>
            |s| implies(
                s.entry().contains(EntryControls::LOAD_PKRS),
                s.image.get64(Field64::GUEST_PKRS) >> 32 == 0,
            );
    }
    "Checks on Guest Descriptor-Table Registers" {
        "the base of the guest's GDTR or IDTR is not canonical" =>
            |s| canonical(s.image.get(FieldNatural::GUEST_GDTR_BASE))
                && canonical(s.image.get(FieldNatural::GUEST_IDTR_BASE));
        "the limit of the guest's GDTR or IDTR is wider than 16 bits" =>
            |s| s.image.get32(Field32::GUEST_GDTR_LIMIT) >> 16 == 0
                && s.image.get32(Field32::GUEST_IDTR_LIMIT) >> 16 == 0;
    }
    "Checks on Guest RIP, RFLAGS, and SSP" {
        "guest RIP is wider than the mode, or not canonical" => rip_fits;
        "guest RFLAGS has a reserved bit, or bit 1 clear" => rflags_fit;
        "guest RFLAGS.VM = 1 in long mode or real mode" =>
            |s| implies(s.virtual_8086(), !s.long_mode() && s.cr0().contains(Cr0::PE));
        "an interrupt is injected with guest RFLAGS.IF = 0" =>
            |s| implies(
                injects(s, InterruptionKind::INTERRUPT),
                s.rflags().contains(Rflags::IF),
            );
        "guest SSP is not aligned, or not canonical" =>
            |s| implies(
                s.entry().contains(EntryControls::LOAD_CET),
                valid_ssp(s.image.get(FieldNatural::GUEST_SSP)),
            );
    }
    "Checks on Guest Non-Register State" {
        "the guest's activity state is none that the CPU has" =>
            |s| match activity(s) {
                ACTIVE => true,
                state @ 1..=3 => s.limits.misc.activity_states() >> (state - 1) & 1 != 0,
                _ => false,
            };
        "the guest is halted with SS.DPL > 0" =>
            |s| implies(
                activity(s) == HALTED,
                attributes(s, SegmentRegister::Ss).dpl() == 0,
            );
        "the guest is not active while STI or MOV SS blocks interrupts" =>
            |s| implies(
                blocked(s).intersects(Interruptibility::SHADOW),
                activity(s) == ACTIVE,
            );
        "an event is injected that the guest's activity state does not let in" => event_fits_activity;
        "guest interruptibility has a reserved bit" =>
            |s| Interruptibility::from_bits(blocked(s).bits()).is_some();
        "STI and MOV SS block at the same time" =>
            |s| !blocked(s).contains(Interruptibility::SHADOW);
        "STI blocks with guest RFLAGS.IF = 0" =>
            |s| implies(
                blocked(s).contains(Interruptibility::STI),
                s.rflags().contains(Rflags::IF),
            );
        "an interrupt is injected while STI or MOV SS blocks" =>
            |s| implies(
                injects(s, InterruptionKind::INTERRUPT),
                !blocked(s).intersects(Interruptibility::SHADOW),
            );
        "an NMI is injected while MOV SS blocks" =>
            |s| implies(
                injects(s, InterruptionKind::NMI),
                !blocked(s).contains(Interruptibility::MOV_SS),
            );
        "SMIs block outside system-management mode" =>
            |s| !blocked(s).contains(Interruptibility::SMI);
        "an NMI is injected while NMIs block" =>
            |s| implies(
                injects(s, InterruptionKind::NMI) && s.pin().contains(PinControls::VIRTUAL_NMIS),
                !blocked(s).contains(Interruptibility::NMI),
            );
        "an enclave was interrupted while MOV SS blocks" =>
            |s| !blocked(s).contains(Interruptibility::ENCLAVE | Interruptibility::MOV_SS);
        "guest pending debug exceptions have a reserved bit" =>
            |s| s.image.get(FieldNatural::GUEST_PENDING_DEBUG) & !0x1_500f == 0;
        "in an interrupt shadow, the pending single step does not match guest RFLAGS.TF" => step_fits;
        "a pending debug exception in a transaction does not stand alone" => transaction_fits;
        "the VMCS link pointer is neither all ones nor a page" =>
            |s| {
                let link = s.image.get64(Field64::GUEST_VMCS_LINK);
                link == u64::MAX || s.physical(link, 0x1000)
            };
    }
    "Checks on Guest Page-Directory-Pointer-Table Entries" {
        "a page-directory pointer of PAE paging has a reserved bit" => pointers_fit;
    }
};
