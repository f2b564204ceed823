extern crate std;

use super::*;
use crate::cpuid::CpuidResult;
use crate::vmcb::{
    Clean, Control, EventInjection, Intercepts3, Save, VirtualInterrupt, VmcbSegment,
};
use std::vec::Vec;

fn limits() -> Limits {
    Limits {
        physical_bits: 40,
        cr4: Cr4::all() - Cr4::VMXE - Cr4::SMXE - Cr4::PKS,
        efer: Efer::all() - Efer::LMSLE - Efer::AUTOIBRS,
        nested_paging: true,
    }
}

fn zero_control() -> Control {
    Control {
        intercept_cr_read: 0,
        intercept_cr_write: 0,
        intercept_dr_read: 0,
        intercept_dr_write: 0,
        intercept_exceptions: 0,
        intercepts3: Intercepts3::empty(),
        intercepts4: Intercepts4::empty(),
        intercepts5: 0,
        _reserved_018: [0; 9],
        pause_filter_threshold: 0,
        pause_filter_count: 0,
        iopm_base: 0,
        msrpm_base: 0,
        tsc_offset: 0,
        asid: 0,
        tlb_control: 0,
        _reserved_05d: [0; 3],
        virtual_interrupt: VirtualInterrupt::new(),
        interrupt_shadow: 0,
        exit_code: 0,
        exit_info1: 0,
        exit_info2: 0,
        exit_int_info: EventInjection::new(),
        nested_control: 0,
        avic_apic_bar: 0,
        ghcb: 0,
        event_injection: EventInjection::new(),
        nested_cr3: 0,
        virtualization_extensions: 0,
        clean: Clean::empty(),
        _reserved_0c4: 0,
        next_rip: 0,
        fetched_len: 0,
        fetched: [0; 15],
        avic_backing_page: 0,
        _reserved_0e8: 0,
        avic_logical_table: 0,
        avic_physical_table: 0,
        _reserved_100: [0; 0x60],
    }
}

fn zero_save() -> Save {
    let segment = VmcbSegment::default();
    Save {
        segments: [segment; 6],
        gdtr: segment,
        ldtr: segment,
        idtr: segment,
        tr: segment,
        _reserved_4a0: [0; 0x2b],
        cpl: 0,
        _reserved_4cc: 0,
        efer: 0,
        _reserved_4d8: [0; 14],
        cr4: 0,
        cr3: 0,
        cr0: 0,
        dr7: 0,
        dr6: 0,
        rflags: 0,
        rip: 0,
        _reserved_580: [0; 11],
        rsp: 0,
        s_cet: 0,
        ssp: 0,
        interrupt_ssp_table: 0,
        rax: 0,
        star: 0,
        lstar: 0,
        cstar: 0,
        sfmask: 0,
        kernel_gs_base: 0,
        sysenter_cs: 0,
        sysenter_esp: 0,
        sysenter_eip: 0,
        cr2: 0,
        _reserved_648: [0; 4],
        g_pat: 0,
        debugctl: 0,
        br_from: 0,
        br_to: 0,
        last_exception_from: 0,
        last_exception_to: 0,
        _reserved_698: [0; 0x12d],
    }
}

/// A guest in long mode that every CPU would enter.
fn good() -> Vmcb {
    let mut vmcb = Vmcb { control: zero_control(), save: zero_save() };
    let c = &mut vmcb.control;
    c.intercepts4 = Intercepts4::VMRUN;
    c.iopm_base = 0x10_0000;
    c.msrpm_base = 0x10_3000;
    c.asid = 1;
    c.nested_control = 1;
    c.nested_cr3 = 0x20_0000;
    let s = &mut vmcb.save;
    s.efer = 0x1d01;
    s.cr0 = 0x8001_0033;
    s.cr3 = 0x1000;
    s.cr4 = 0x20;
    s.dr6 = 0xffff_0ff0;
    s.dr7 = 0x400;
    s.rflags = 2;
    s.g_pat = 0x0007_0406_0007_0406;
    s.segments[1] = Segment::code64(8).into();
    vmcb
}

fn broken(vmcb: &Vmcb, limits: &Limits) -> Vec<&'static str> {
    Subject { vmcb, limits }.broken().map(|rule| rule.broken).collect()
}

fn inject(v: &mut Vmcb, word: u64) {
    v.control.event_injection = EventInjection::from_bits(word);
}

/// A change of one thing, and words of the rule that it breaks.
type Case = (&'static str, fn(&mut Vmcb));

const CASES: &[Case] = &[
    ("EFER.SVME = 0", |v| v.save.efer = 0xd01),
    ("CR0.NW = 1", |v| v.save.cr0 |= 1 << 29),
    ("CR0 is wider", |v| v.save.cr0 |= 1 << 32),
    ("CR3 is wider", |v| v.save.cr3 |= 1 << 40),
    ("CR3 is wider", |v| v.save.cr3 |= 1 << 63),
    ("CR4 has", |v| v.save.cr4 |= 1 << 13),
    ("CR4 has", |v| v.save.cr4 |= 1 << 63),
    ("DR6", |v| v.save.dr6 |= 1 << 32),
    ("DR7", |v| v.save.dr7 |= 1 << 63),
    ("EFER has", |v| v.save.efer |= 1 << 1),
    ("EFER has", |v| v.save.efer |= 1 << 13),
    ("EFER has", |v| v.save.efer |= 1 << 63),
    ("CR4.PAE = 0", |v| v.save.cr4 = 0),
    ("CR0.PE = 0", |v| v.save.cr0 = 0x8000_0032),
    ("CS.D = 1", |v| v.save.segments[1].attributes |= 1 << 10),
    ("VMRUN is not", |v| v.control.intercepts4 = Intercepts4::VMMCALL),
    ("MSR permission", |v| v.control.msrpm_base = 1 << 40),
    ("MSR permission", |v| v.control.msrpm_base = (1 << 40) - 0x1000),
    ("MSR permission", |v| v.control.msrpm_base = u64::MAX),
    ("I/O permission", |v| v.control.iopm_base = 1 << 40),
    ("I/O permission", |v| v.control.iopm_base = (1 << 40) - 0x2000),
    ("ASID 0", |v| v.control.asid = 0),
    ("S_CET", |v| v.save.s_cet = 4),
    ("CR4.CET = 1", |v| {
        v.save.cr4 |= 1 << 23;
        v.save.cr0 &= !(1 << 16);
    }),
    ("type that is reserved", |v| inject(v, 0x8000_0120)),
    ("type that is reserved", |v| inject(v, 0x8000_0503)),
    ("not one of an exception", |v| inject(v, 0x8000_0302)),
    ("not one of an exception", |v| inject(v, 0x8000_0320)),
    ("#OF or #BR", |v| inject(v, 0x8000_0304)),
    ("#OF or #BR", |v| inject(v, 0x8000_0305)),
    ("nested CR3", |v| v.control.nested_cr3 = 1 << 40),
    ("guest PAT", |v| v.save.g_pat = 2),
];

/// Each change breaks the rule that it should and no other; each rule is
/// broken by some change, or by some CPU.
#[test]
fn one_rule_at_a_time() {
    for (words, change) in CASES {
        let mut vmcb = good();
        change(&mut vmcb);
        let found = broken(&vmcb, &limits());
        assert_eq!(found.len(), 1, "{words}: {found:#?}");
        assert!(found[0].contains(words), "{words}: {found:?}");
    }
    let small = [
        ("without long mode", Limits { efer: limits().efer - Efer::LME - Efer::LMA, ..limits() }),
        ("without nested paging", Limits { nested_paging: false, ..limits() }),
    ];
    for (words, limits) in &small {
        let found = broken(&good(), limits);
        assert_eq!(found.len(), 1, "{words}: {found:#?}");
        assert!(found[0].contains(words), "{words}: {found:?}");
    }
    let words = CASES.iter().map(|case| case.0).chain(small.iter().map(|case| case.0));
    let words: Vec<&str> = words.collect();
    for rule in RULES {
        assert!(words.iter().any(|words| rule.broken.contains(words)), "no case breaks: {rule}");
    }
}

#[test]
fn good_vmcbs_break_nothing() {
    let mut real = good();
    real.save.efer = Efer::SVME.bits();
    real.save.cr0 = 0x6000_0010;
    real.save.cr4 = 0;
    real.save.segments[1] = Segment::real_mode(0xf000, 11).into();
    // #OF and #BR are exceptions there, and CR3 is not looked at.
    inject(&mut real, 0x8000_0304);
    real.save.cr3 = u64::MAX;
    let mut compatibility = good();
    compatibility.save.segments[1] = Segment::code32(8).into();
    inject(&mut compatibility, 0x8000_0305);
    // An event that is not valid is not injected. Without nested paging, the fields of nested
    // paging do not count.
    let mut quiet = good();
    inject(&mut quiet, 0x0000_0702);
    quiet.control.nested_control = 0;
    quiet.control.nested_cr3 = u64::MAX;
    quiet.save.g_pat = 2;
    // The maps may end with the last byte there is.
    let mut high = good();
    high.control.iopm_base = (1 << 40) - 0x3000;
    high.control.msrpm_base = (1 << 40) - 0x2001;
    for vmcb in [good(), real, compatibility, quiet, high] {
        assert_eq!(broken(&vmcb, &limits()), Vec::<&str>::new());
    }
    // Without shadow stacks there is no S_CET.
    let mut old = good();
    old.save.s_cet = u64::MAX;
    let limits = Limits { cr4: limits().cr4 - Cr4::CET, ..limits() };
    assert_eq!(broken(&old, &limits), Vec::<&str>::new());
}

#[test]
fn limits_come_from_cpuid() {
    let nothing = |_: u32, _: u32| CpuidResult::default();
    let limits = Limits::of(&nothing);
    assert_eq!(limits.physical_bits, 32);
    assert_eq!(limits.cr4, Cr4::PCE);
    assert_eq!(limits.efer, Efer::LMSLE);
    assert!(!limits.nested_paging);

    let some = |leaf: u32, _: u32| match leaf {
        1 => CpuidResult { edx: 1 << 6 | 1 << 24, ecx: 1 << 26, ..CpuidResult::default() },
        7 => CpuidResult { ebx: 1 << 20, ecx: 1 << 7, ..CpuidResult::default() },
        0x8000_0001 => {
            CpuidResult { edx: 1 << 29 | 1 << 20, ecx: 1 << 2, ..CpuidResult::default() }
        }
        0x8000_0008 => CpuidResult { eax: 0x3030, ebx: 1 << 20, ..CpuidResult::default() },
        0x8000_000a => CpuidResult { edx: 1, ..CpuidResult::default() },
        0x8000_0021 => CpuidResult { eax: 1 << 8, ..CpuidResult::default() },
        _ => CpuidResult::default(),
    };
    let limits = Limits::of(&some);
    assert_eq!(limits.physical_bits, 48);
    let cr4 = Cr4::PCE | Cr4::PAE | Cr4::OSFXSR | Cr4::OSXSAVE | Cr4::SMAP | Cr4::CET;
    assert_eq!(limits.cr4, cr4);
    assert_eq!(limits.efer, Efer::LME | Efer::LMA | Efer::NXE | Efer::SVME | Efer::AUTOIBRS);
    assert!(limits.nested_paging);
}
