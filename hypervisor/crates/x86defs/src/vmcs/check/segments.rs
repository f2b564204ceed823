//! SDM: "Checks on Guest Segment Registers".

use super::{Rule, Subject, canonical, implies, rules};
use crate::bits::Low;
use crate::control::Cr0;
use crate::reg::SegmentRegister::{self, Cs, Ds, Es, Fs, Gs, Ldtr, Ss, Tr};
use crate::segment::SegmentAttributes;
use crate::vmcs::{ACCESS_RIGHTS_UNUSABLE, Field16, Field32, FieldNatural};

const SIX: [SegmentRegister; 6] = [Es, Cs, Ss, Ds, Fs, Gs];
const DATA: [SegmentRegister; 4] = [Es, Ds, Fs, Gs];

const TABLE_INDICATOR: u16 = 1 << 2;
/// Access rights: bits 11:8 and 31:17.
const RESERVED_RIGHTS: u32 = 0xfffe_0f00;
/// Access rights in virtual-8086 mode.
const VIRTUAL_8086_RIGHTS: u32 = 0xf3;

/// A segment register of the guest, by its fields.
struct Part {
    register: SegmentRegister,
    selector: u16,
    base: u64,
    limit: u32,
    rights: u32,
}

impl Part {
    fn of(s: &Subject<'_>, register: SegmentRegister) -> Self {
        Self {
            register,
            selector: s.image.get16(Field16::guest_selector(register)),
            base: s.image.get(FieldNatural::guest_base(register)),
            limit: s.image.get32(Field32::guest_limit(register)),
            rights: s.image.get32(Field32::guest_rights(register)),
        }
    }

    fn attributes(&self) -> SegmentAttributes {
        SegmentAttributes::from_bits(self.rights.low16() & 0xf0ff)
    }

    fn usable(&self) -> bool {
        self.rights & ACCESS_RIGHTS_UNUSABLE == 0
    }

    fn dpl(&self) -> u8 {
        self.attributes().dpl()
    }

    fn rpl(&self) -> u8 {
        self.selector.to_le_bytes().first().map_or(0, |low| low & 3)
    }

    /// Whether the granularity bit suits the limit.
    fn granularity_fits(&self) -> bool {
        let granular = self.attributes().granular();
        implies(self.limit & 0xfff != 0xfff, !granular) && implies(self.limit >> 20 != 0, granular)
    }

    fn kind(&self) -> u8 {
        self.attributes().kind()
    }

    /// Whether what is in the register counts: CS and TR always do.
    fn counts(&self) -> bool {
        self.usable() || matches!(self.register, Cs | Tr)
    }
}

/// Whether `fits` holds of each of the registers, outside virtual-8086 mode.
fn each(s: &Subject<'_>, registers: &[SegmentRegister], fits: impl Fn(&Part) -> bool) -> bool {
    s.virtual_8086() || registers.iter().all(|register| fits(&Part::of(s, *register)))
}

/// Whether `fits` holds of each of the six, in virtual-8086 mode.
fn each_8086(s: &Subject<'_>, fits: impl Fn(&Part) -> bool) -> bool {
    !s.virtual_8086() || SIX.iter().all(|register| fits(&Part::of(s, *register)))
}

fn system_fits(s: &Subject<'_>, register: SegmentRegister, fits: impl Fn(&Part) -> bool) -> bool {
    let part = Part::of(s, register);
    !part.counts() || fits(&part)
}

fn code_dpl_fits(s: &Subject<'_>, cs: &Part) -> bool {
    let stack = Part::of(s, Ss).dpl();
    match cs.kind() {
        3 => cs.dpl() == 0,
        9 | 11 => cs.dpl() == stack,
        13 | 15 => cs.dpl() <= stack,
        _ => true,
    }
}

/// The rules.
pub(super) static RULES: &[Rule] = rules! {
    "Checks on Guest Segment Registers" {
        "guest TR refers to the local table" =>
            |s| Part::of(s, Tr).selector & TABLE_INDICATOR == 0;
        "guest LDTR refers to the local table" =>
            |s| system_fits(s, Ldtr, |part| part.selector & TABLE_INDICATOR == 0);
        "guest SS.RPL differs from CS.RPL" =>
            |s| s.unrestricted() || each(s, &[Ss], |part| part.rpl() == Part::of(s, Cs).rpl());
        "in virtual-8086 mode, a guest segment's base is not 16 times its selector" =>
            |s| each_8086(s, |part| part.base == u64::from(part.selector) << 4);
        "in virtual-8086 mode, a guest segment's limit is not 0xffff" =>
            |s| each_8086(s, |part| part.limit == 0xffff);
        "in virtual-8086 mode, a guest segment's access rights are not 0xf3" =>
            |s| each_8086(s, |part| part.rights == VIRTUAL_8086_RIGHTS);
        "the base of the guest's FS, GS, LDTR or TR is not canonical" =>
            |s| each(s, &[Fs, Gs], |part| canonical(part.base))
                && canonical(Part::of(s, Tr).base)
                && system_fits(s, Ldtr, |part| canonical(part.base));
        "the base of the guest's CS, SS, DS or ES is wider than 32 bits" =>
            |s| each(s, &[Cs, Ss, Ds, Es], |part| !part.counts() || part.base >> 32 == 0);
        "guest CS is no accessed code segment" =>
            |s| each(s, &[Cs], |part| match part.kind() {
                9 | 11 | 13 | 15 => true,
                3 => s.unrestricted(),
                _ => false,
            });
        "guest SS is no accessed, writable data segment" =>
            |s| each(s, &[Ss], |part| !part.usable() || matches!(part.kind(), 3 | 7));
        "guest DS, ES, FS or GS was never accessed, or is code that can't be read" =>
            |s| each(s, &DATA, |part| {
                !part.usable() || part.kind() & 1 != 0 && implies(part.kind() & 8 != 0, part.kind() & 2 != 0)
            });
        "a guest code or data segment is a system segment" =>
            |s| each(s, &SIX, |part| !part.counts() || part.attributes().code_or_data());
        "guest CS.DPL does not suit its type and SS.DPL" =>
            |s| each(s, &[Cs], |part| code_dpl_fits(s, part));
        "guest SS.DPL differs from its RPL" =>
            |s| s.unrestricted() || each(s, &[Ss], |part| part.dpl() == part.rpl());
        "guest SS.DPL is not 0 in real mode" =>
            |s| implies(
                !s.cr0().contains(Cr0::PE) || Part::of(s, Cs).kind() == 3,
                each(s, &[Ss], |part| part.dpl() == 0),
            );
        "guest DS, ES, FS or GS has a DPL below its RPL" =>
            |s| s.unrestricted()
                || each(s, &DATA, |part| {
                    !part.usable() || part.kind() > 11 || part.dpl() >= part.rpl()
                });
        "a guest segment is not present" =>
            |s| each(s, &SIX, |part| !part.counts() || part.attributes().present());
        "a guest segment's access rights have a reserved bit" =>
            |s| each(s, &SIX, |part| !part.counts() || part.rights & RESERVED_RIGHTS == 0);
        "guest CS.D = 1 with CS.L = 1 in long mode" =>
            |s| each(s, &[Cs], |part| {
                !(s.long_mode() && part.attributes().long() && part.attributes().big())
            });
        "a guest segment's granularity does not suit its limit" =>
            |s| each(s, &SIX, |part| !part.counts() || part.granularity_fits());
        "guest TR is no busy task-state segment of the mode" =>
            |s| match Part::of(s, Tr).kind() {
                11 => true,
                3 => !s.long_mode(),
                _ => false,
            };
        "guest TR is not a present system segment, or is unusable" =>
            |s| {
                let part = Part::of(s, Tr);
                part.usable() && part.attributes().present() && !part.attributes().code_or_data()
            };
        "guest TR has a reserved bit, or a granularity that does not suit its limit" =>
            |s| {
                let part = Part::of(s, Tr);
                part.rights & RESERVED_RIGHTS == 0 && part.granularity_fits()
            };
        "guest LDTR is no present local table" =>
            |s| system_fits(s, Ldtr, |part| {
                let attributes = part.attributes();
                part.kind() == 2 && attributes.present() && !attributes.code_or_data()
            });
        "guest LDTR has a reserved bit, or a granularity that does not suit its limit" =>
            |s| system_fits(s, Ldtr, |part| {
                part.rights & RESERVED_RIGHTS == 0 && part.granularity_fits()
            });
    }
};
