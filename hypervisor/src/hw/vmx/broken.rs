//! VMCSs that are broken on purpose; see [`crate::hw::broken`].

use super::vcpu::VmxVcpu;
use super::vmcs::{Current, Field};
use super::{dump, entry};
use crate::cpu::{apic, asm};
use crate::hw::broken::{Outcome, Plan, Tally};
use alloc::format;
use core::fmt;
use vmm::vcpu::VcpuCore;
use x86defs::vmcs::check::{Image, Rule, Stage};
use x86defs::vmcs::{
    ENTRY_FAILED, EntryControls, ExitInformation, ExitReason, Field16, Field32, Field64,
    FieldNatural, InstructionError, PinControls,
};
use x86defs::{Cr0, Cr4, Efer, Rflags, SegmentRegister};

/// A name, and a change that breaks one rule.
type Case = (&'static str, fn(&mut Image));

fn change32(i: &mut Image, field: Field32, change: impl Fn(u32) -> u32) {
    i.set32(field, change(i.get32(field)));
}

fn change64(i: &mut Image, field: Field64, change: impl Fn(u64) -> u64) {
    i.set64(field, change(i.get64(field)));
}

fn change(i: &mut Image, field: FieldNatural, change: impl Fn(u64) -> u64) {
    i.set(field, change(i.get(field)));
}

fn inject(i: &mut Image, word: u32) {
    i.set32(Field32::ENTRY_INTERRUPTION_INFO, word);
}

fn rights(i: &mut Image, register: SegmentRegister, rights: u32) {
    i.set32(Field32::guest_rights(register), rights);
}

/// Long mode but for CR4.PAE and CR0.PG.
fn half_long(i: &mut Image) {
    change32(i, Field32::ENTRY_CONTROLS, |word| word | EntryControls::IA32E_GUEST.bits());
    i.set64(Field64::GUEST_EFER, (Efer::LME | Efer::LMA).bits());
}

/// The first non-canonical address.
const NOT_CANONICAL: u64 = 1 << 47;

/// The cases. Those of the host leave RSP and RIP alone, which the entry sets.
const CASES: &[Case] = &[
    ("pin-reserved", |i| change32(i, Field32::PIN_CONTROLS, |word| word & !(1 << 1))),
    ("primary-reserved", |i| change32(i, Field32::PRIMARY_CONTROLS, |word| word | 1)),
    ("secondary-reserved", |i| change32(i, Field32::SECONDARY_CONTROLS, |word| word | 1 << 31)),
    ("cr3-targets", |i| i.set32(Field32::CR3_TARGET_COUNT, 0x200)),
    ("io-bitmap", |i| change64(i, Field64::IO_BITMAP_A, |address| address | 8)),
    ("msr-bitmap", |i| change64(i, Field64::MSR_BITMAP, |address| address | 1 << 60)),
    ("virtual-nmis", |i| {
        change32(i, Field32::PIN_CONTROLS, |word| word & !PinControls::NMI_EXITING.bits());
    }),
    ("vpid-0", |i| i.set16(Field16::VPID, 0)),
    ("ept-memory-type", |i| change64(i, Field64::EPT_POINTER, |pointer| pointer & !7 | 1)),
    ("ept-levels", |i| change64(i, Field64::EPT_POINTER, |pointer| pointer & !0x38 | 2 << 3)),
    ("ept-reserved", |i| change64(i, Field64::EPT_POINTER, |pointer| pointer | 1 << 60)),
    ("exit-reserved", |i| change32(i, Field32::EXIT_CONTROLS, |word| word & !1)),
    ("exit-msr-store", |i| {
        i.set32(Field32::EXIT_MSR_STORE_COUNT, 1);
        i.set64(Field64::EXIT_MSR_STORE, 8);
    }),
    ("entry-reserved", |i| change32(i, Field32::ENTRY_CONTROLS, |word| word & !1)),
    ("entry-msr-load", |i| {
        i.set32(Field32::ENTRY_MSR_LOAD_COUNT, 1);
        i.set64(Field64::ENTRY_MSR_LOAD, 1 << 60);
    }),
    ("entry-smm", |i| {
        change32(i, Field32::ENTRY_CONTROLS, |word| word | EntryControls::ENTRY_TO_SMM.bits());
    }),
    ("event-kind", |i| inject(i, 0x8000_0120)),
    ("event-vector", |i| inject(i, 0x8000_0203)),
    ("event-error-code", |i| inject(i, 0x8000_0b06)),
    ("event-reserved", |i| inject(i, 0x8000_1306)),
    ("event-length", |i| {
        inject(i, 0x8000_0480);
        i.set32(Field32::ENTRY_INSTRUCTION_LENGTH, 16);
    }),
    ("host-cr0", |i| change(i, FieldNatural::HOST_CR0, |cr0| cr0 & !Cr0::NE.bits())),
    ("host-cr4", |i| change(i, FieldNatural::HOST_CR4, |cr4| cr4 & !Cr4::VMXE.bits())),
    ("host-cr3", |i| change(i, FieldNatural::HOST_CR3, |cr3| cr3 | 1 << 60)),
    ("host-sysenter", |i| i.set(FieldNatural::HOST_SYSENTER_EIP, NOT_CANONICAL)),
    ("host-pat", |i| i.set64(Field64::HOST_PAT, 2)),
    ("host-efer", |i| change64(i, Field64::HOST_EFER, |efer| efer & !Efer::LMA.bits())),
    ("host-cs-null", |i| i.set16(Field16::HOST_CS_SELECTOR, 0)),
    ("host-tr-rpl", |i| i.set16(Field16::HOST_TR_SELECTOR, i.get16(Field16::HOST_TR_SELECTOR) | 3)),
    ("host-gs-base", |i| i.set(FieldNatural::HOST_GS_BASE, NOT_CANONICAL)),
    ("host-32-bit", |i| change32(i, Field32::EXIT_CONTROLS, |word| word & !(1 << 9))),
    ("guest-cr0-pg", |i| {
        change(i, FieldNatural::GUEST_CR0, |cr0| cr0 & !Cr0::PE.bits() | Cr0::PG.bits());
    }),
    ("guest-cr4", |i| change(i, FieldNatural::GUEST_CR4, |cr4| cr4 & !Cr4::VMXE.bits())),
    ("guest-pae", |i| {
        half_long(i);
        change(i, FieldNatural::GUEST_CR0, |cr0| cr0 | Cr0::PG.bits());
        change(i, FieldNatural::GUEST_CR4, |cr4| cr4 & !Cr4::PAE.bits());
    }),
    ("guest-paging", |i| {
        half_long(i);
        change(i, FieldNatural::GUEST_CR4, |cr4| cr4 | Cr4::PAE.bits());
    }),
    ("guest-pcide", |i| change(i, FieldNatural::GUEST_CR4, |cr4| cr4 | Cr4::PCIDE.bits())),
    ("guest-cr3", |i| i.set(FieldNatural::GUEST_CR3, 1 << 60)),
    ("guest-dr7", |i| change(i, FieldNatural::GUEST_DR7, |dr7| dr7 | 1 << 32)),
    ("guest-sysenter", |i| i.set(FieldNatural::GUEST_SYSENTER_ESP, NOT_CANONICAL)),
    ("guest-debugctl", |i| i.set64(Field64::GUEST_DEBUGCTL, 1 << 5)),
    ("guest-pat", |i| i.set64(Field64::GUEST_PAT, 3)),
    ("guest-efer", |i| change64(i, Field64::GUEST_EFER, |efer| efer | 1 << 1)),
    ("guest-lma", |i| i.set64(Field64::GUEST_EFER, (Efer::LME | Efer::LMA).bits())),
    ("guest-gdtr-limit", |i| i.set32(Field32::GUEST_GDTR_LIMIT, 0x1_0000)),
    ("guest-idtr-base", |i| i.set(FieldNatural::GUEST_IDTR_BASE, NOT_CANONICAL)),
    ("guest-rip", |i| i.set(FieldNatural::GUEST_RIP, 1 << 32)),
    ("guest-rflags", |i| change(i, FieldNatural::GUEST_RFLAGS, |flags| flags & !2)),
    ("guest-if", |i| {
        inject(i, 0x8000_0020);
        change(i, FieldNatural::GUEST_RFLAGS, |flags| flags & !Rflags::IF.bits());
    }),
    ("guest-activity", |i| i.set32(Field32::GUEST_ACTIVITY, 4)),
    ("guest-activity-event", |i| {
        i.set32(Field32::GUEST_ACTIVITY, 1);
        inject(i, 0x8000_0306);
    }),
    ("guest-shadows", |i| {
        i.set32(Field32::GUEST_INTERRUPTIBILITY, 3);
        change(i, FieldNatural::GUEST_RFLAGS, |flags| flags | Rflags::IF.bits());
    }),
    ("guest-smi", |i| i.set32(Field32::GUEST_INTERRUPTIBILITY, 4)),
    ("guest-pending-debug", |i| i.set(FieldNatural::GUEST_PENDING_DEBUG, 1 << 5)),
    ("guest-step", |i| {
        i.set32(Field32::GUEST_INTERRUPTIBILITY, 2);
        i.set(FieldNatural::GUEST_PENDING_DEBUG, 1 << 14);
    }),
    ("guest-link", |i| i.set64(Field64::GUEST_VMCS_LINK, 1)),
    ("guest-pdpte", |i| {
        change(i, FieldNatural::GUEST_CR0, |cr0| cr0 | Cr0::PG.bits());
        change(i, FieldNatural::GUEST_CR4, |cr4| cr4 | Cr4::PAE.bits());
        i.set64(Field64::GUEST_PDPTE2, 3);
    }),
    ("guest-cs-type", |i| rights(i, SegmentRegister::Cs, 0xc09a)),
    ("guest-cs-granularity", |i| i.set32(Field32::GUEST_CS_LIMIT, 0xffff_fffe)),
    ("guest-ss-type", |i| rights(i, SegmentRegister::Ss, 0xc091)),
    ("guest-ds-absent", |i| rights(i, SegmentRegister::Ds, 0xc013)),
    ("guest-es-reserved", |i| rights(i, SegmentRegister::Es, 0xc193)),
    ("guest-fs-base", |i| i.set(FieldNatural::GUEST_FS_BASE, NOT_CANONICAL)),
    ("guest-tr-unusable", |i| rights(i, SegmentRegister::Tr, 0x1_008b)),
    ("guest-ldtr-type", |i| rights(i, SegmentRegister::Ldtr, 0x83)),
];

impl VmxVcpu {
    /// Goes through the cases.
    pub(super) fn try_broken(&mut self, core: &mut VcpuCore, plan: Plan<'_>) {
        self.prepare_entry();
        let good = dump::image(self.current());
        let mut tally = Tally::default();
        for (name, change) in CASES.iter().filter(|(name, _)| plan.includes(name)) {
            let mut image = good.clone();
            change(&mut image);
            self.put(&image);
            let (stage, rule) = self.verdict(&image);
            let outcome = self.attempt(core, stage, plan.slice);
            self.put(&good);
            tally.note(name, rule.map(|rule| rule as &dyn fmt::Display), &outcome);
        }
        tally.finish();
    }

    /// The stage at which the entry must fail, and the rule if it is just one.
    fn verdict(&self, image: &Image) -> (Option<Stage>, Option<&'static Rule>) {
        let mut stages = Stage::ALL.into_iter().map(|stage| {
            let (mut count, mut first) = (0, None);
            self.each_broken(image, stage, |rule| {
                count += 1;
                first = first.or(Some(rule));
            });
            (stage, count, first)
        });
        match stages.find(|(_, count, _)| *count != 0) {
            Some((stage, 1, rule)) => (Some(stage), rule),
            Some((stage, ..)) => (Some(stage), None),
            None => (None, None),
        }
    }

    fn attempt(&mut self, core: &mut VcpuCore, stage: Option<Stage>, slice: u64) -> Outcome {
        // HOST_RSP and HOST_RIP were put back to what they were before the
        // first entry; they are written anew where RSP is not what stands here.
        self.host_rsp = 0;
        apic::arm_timer(slice);
        // SAFETY: the VMCS is current: it was just written to. It differs from
        // one that may be entered in one respect that the manual says the
        // entry fails for; where it does not, the guest has the same controls
        // and nested tables or none that reach anything of the host's.
        let result = unsafe { entry::enter(core, self.launched.into(), &raw mut self.host_rsp) };
        apic::disarm_timer();
        asm::take_pending_interrupts();
        if result != entry::EXITED {
            let error = self.current().error();
            let expected = match stage {
                Some(Stage::Controls) => error == InstructionError::INVALID_CONTROLS,
                Some(Stage::Host) => error == InstructionError::INVALID_HOST_STATE,
                _ => false,
            };
            let words = format!("VM-instruction error {error}");
            return Outcome { as_expected: expected, words };
        }
        let reason = self.current().read(Field32::EXIT_REASON);
        let basic = ExitInformation { reason, ..ExitInformation::default() }.basic();
        if reason & ENTRY_FAILED == 0 {
            self.launched = true;
            let words = format!("nothing, and exits for reason {}", basic.0);
            return Outcome { as_expected: false, words };
        }
        let expected = stage == Some(Stage::Guest) && basic == ExitReason::INVALID_GUEST_STATE;
        let words = format!("VM-entry failure, exit reason {}", basic.0);
        Outcome { as_expected: expected, words }
    }

    /// Makes the VMCS what `image` says.
    fn put(&self, image: &Image) {
        let v = self.current();
        put(v, Field16::ALL, |field| image.get16(field));
        put(v, Field32::ALL, |field| image.get32(field));
        put(v, Field64::ALL, |field| image.get64(field));
        put(v, FieldNatural::ALL, |field| image.get(field));
    }
}

fn put<F: Field>(vmcs: Current<'_>, fields: &[(&'static str, F)], value: impl Fn(F) -> F::Value)
where
    F::Value: PartialEq,
{
    /// Bits 11:10 of an encoding: what an exit reports, which can't be written.
    const EXIT_INFORMATION: u64 = 1;
    for (_, field) in fields {
        let wanted = value(*field);
        if field.code() >> 10 & 3 != EXIT_INFORMATION
            && vmcs.try_read(*field).is_some_and(|now| now != wanted)
        {
            vmcs.write(*field, wanted);
        }
    }
}
