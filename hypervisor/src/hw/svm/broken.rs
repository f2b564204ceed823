//! VMCBs that are broken on purpose; see [`crate::hw::broken`].

use super::vcpu::SvmVcpu;
use crate::cpu::{apic, asm};
use crate::hw::broken::{Outcome, Plan, Tally};
use alloc::boxed::Box;
use alloc::format;
use core::fmt;
use vmm::vcpu::VcpuCore;
use x86defs::bits::Low;
use x86defs::vmcb::check::Limits;
use x86defs::vmcb::{EventInjection, Intercepts4, Vmcb};
use x86defs::{Cr0, Cr4, Efer, Segment, SegmentRegister};

/// A name, and a change that breaks one rule.
type Case = (&'static str, fn(&mut Vmcb, &Limits));

fn inject(v: &mut Vmcb, word: u64) {
    v.control.event_injection = EventInjection::from_bits(word);
}

/// Long mode, 64-bit code.
fn long(v: &mut Vmcb) {
    v.save.efer |= (Efer::LME | Efer::LMA).bits();
    v.save.cr0 |= (Cr0::PG | Cr0::PE).bits();
    v.save.cr4 |= Cr4::PAE.bits();
    v.save.cr3 = 0;
    v.save.segments[SegmentRegister::Cs as usize] = Segment::code64(8).into();
}

/// Code that is 64-bit and 32-bit at once, attributes packed.
const CODE_L_AND_D: u16 = 0xe9b;

const CASES: &[Case] = &[
    ("asid-0", |v, _| v.control.asid = 0),
    ("vmrun-intercept", |v, _| v.control.intercepts4.remove(Intercepts4::VMRUN)),
    ("msr-map", |v, limits| v.control.msrpm_base = 1 << limits.physical_bits),
    ("msr-map-end", |v, limits| v.control.msrpm_base = (1 << limits.physical_bits) - 0x1000),
    ("io-map", |v, limits| v.control.iopm_base = 1 << limits.physical_bits),
    ("io-map-end", |v, limits| v.control.iopm_base = (1 << limits.physical_bits) - 0x2000),
    ("efer-svme", |v, _| v.save.efer &= !Efer::SVME.bits()),
    ("efer-bit-1", |v, _| v.save.efer |= 1 << 1),
    ("efer-bit-32", |v, _| v.save.efer |= 1 << 32),
    ("cr0-nw", |v, _| v.save.cr0 = v.save.cr0 & !Cr0::CD.bits() | Cr0::NW.bits()),
    ("cr0-bit-32", |v, _| v.save.cr0 |= 1 << 32),
    ("cr0-bit-63", |v, _| v.save.cr0 |= 1 << 63),
    ("cr3-wide", |v, limits| {
        long(v);
        v.save.cr3 = 1 << limits.physical_bits;
    }),
    ("cr4-vmxe", |v, _| v.save.cr4 |= Cr4::VMXE.bits()),
    ("cr4-bit-63", |v, _| v.save.cr4 |= 1 << 63),
    ("dr6-bit-32", |v, _| v.save.dr6 |= 1 << 32),
    ("dr7-bit-32", |v, _| v.save.dr7 |= 1 << 32),
    ("long-mode-pae", |v, _| {
        long(v);
        v.save.cr4 &= !Cr4::PAE.bits();
    }),
    ("long-mode-pe", |v, _| {
        long(v);
        v.save.cr0 &= !Cr0::PE.bits();
    }),
    ("long-mode-cs", |v, _| {
        long(v);
        v.save.segments[SegmentRegister::Cs as usize].attributes = CODE_L_AND_D;
    }),
    ("event-type-1", |v, _| inject(v, 0x8000_0120)),
    ("event-type-7", |v, _| inject(v, 0x8000_0720)),
    ("event-exception-2", |v, _| inject(v, 0x8000_0302)),
    ("event-exception-32", |v, _| inject(v, 0x8000_0320)),
    ("event-into-64-bit", |v, _| {
        long(v);
        inject(v, 0x8000_0304);
    }),
    ("nested-cr3", |v, limits| v.control.nested_cr3 |= 1 << limits.physical_bits),
    ("guest-pat", |v, _| v.save.g_pat = 2),
];

impl SvmVcpu {
    /// Goes through the cases.
    pub(super) fn try_broken(&mut self, core: &mut VcpuCore, plan: Plan<'_>) {
        self.prepare_translations();
        let limits = self.caps.limits;
        // A refused entry may leave anything in the VMCB.
        let good = Box::new(*self.vmcb());
        let mut tally = Tally::default();
        for (name, change) in CASES.iter().filter(|(name, _)| plan.includes(name)) {
            *self.vmcb_mut() = *good;
            change(self.vmcb_mut(), &limits);
            let rule = {
                let subject = self.subject();
                let mut rules = subject.broken();
                rules.next().filter(|_| rules.next().is_none())
            };
            let outcome = self.attempt(core, plan.slice);
            tally.note(name, rule.map(|rule| rule as &dyn fmt::Display), &outcome);
        }
        *self.vmcb_mut() = *good;
        tally.finish();
    }

    fn attempt(&mut self, core: &mut VcpuCore, slice: u64) -> Outcome {
        apic::arm_timer(slice);
        // SAFETY: as in `run`, but for one respect for which the manual says
        // that VMRUN fails; where it does not, the guest has the same
        // intercepts and nested tables or none that reach anything of the host's.
        unsafe { self.enter(core) };
        apic::disarm_timer();
        asm::take_pending_interrupts();
        let code = self.vmcb().control.exit_code;
        // Some CPUs do not extend its sign.
        let refused = code.low32() == u32::MAX;
        let words = if refused {
            "VMEXIT_INVALID".into()
        } else {
            format!("nothing, and exits with code {code:#x}")
        };
        Outcome { as_expected: refused, words }
    }
}
