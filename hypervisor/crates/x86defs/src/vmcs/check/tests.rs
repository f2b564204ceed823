extern crate std;

use super::*;
use crate::reg::SegmentRegister;
use crate::vmcs::ACCESS_RIGHTS_UNUSABLE;
use std::vec::Vec;

const PIN: u32 = 0x3f;
const PRIMARY: u32 = 0xb620_6dfa;
const SECONDARY: u32 = 0x10ea;
const EXIT: u32 = 0x002b_6fff;
const ENTRY: u32 = 0xd3ff;

fn limits() -> Limits {
    let control = |must, may| ControlCapability { must, may };
    Limits {
        pin: control(0x16, 0xff),
        primary: control(0x0400_6172, 0xfffb_fffe),
        secondary: control(0, 0x7ff_ffff),
        tertiary: 1 << 1,
        exit: control(0x3_6dfb, 0x3fff_ffff),
        entry: control(0x11fb, 0x7f_ffff),
        cr0: (0x8000_0021, 0xffff_ffff),
        cr4: (0x2000, 0xf7_2fff),
        physical_bits: 39,
        any_error_code: false,
        misc: VmxMisc::new().with_activity_states(0b011).with_cr3_targets(4),
        ept: EptVpidCapabilities::FOUR_LEVELS | EptVpidCapabilities::WRITE_BACK,
        functions: 1,
        performance_counters: 0x7_0000_000f,
    }
}

/// A guest in long mode that every CPU would enter.
fn good() -> Image {
    use SegmentRegister::{Cs, Ldtr, Tr};
    let mut i = Image::default();
    for (field, value) in [
        (Field32::PIN_CONTROLS, PIN),
        (Field32::PRIMARY_CONTROLS, PRIMARY),
        (Field32::SECONDARY_CONTROLS, SECONDARY),
        (Field32::EXIT_CONTROLS, EXIT),
        (Field32::ENTRY_CONTROLS, ENTRY),
    ] {
        i.set32(field, value);
    }
    i.set16(Field16::VPID, 1);
    for (field, value) in [
        (Field64::IO_BITMAP_A, 0x1000),
        (Field64::IO_BITMAP_B, 0x2000),
        (Field64::MSR_BITMAP, 0x3000),
        (Field64::VIRTUAL_APIC, 0x4000),
        (Field64::EPT_POINTER, 0x501e),
        (Field64::GUEST_VMCS_LINK, u64::MAX),
        (Field64::GUEST_PAT, 0x0007_0406_0007_0406),
        (Field64::GUEST_EFER, 0xd01),
        (Field64::HOST_PAT, 0x0007_0105_0007_0406),
        (Field64::HOST_EFER, 0xd00),
    ] {
        i.set64(field, value);
    }
    for (field, value) in [
        (FieldNatural::HOST_CR0, 0x8001_0031),
        (FieldNatural::HOST_CR3, 0x6000),
        (FieldNatural::HOST_CR4, 0x4_20a0),
        (FieldNatural::HOST_RIP, 0xffff_8000_0000_1000),
        (FieldNatural::GUEST_CR0, 0x8001_0033),
        (FieldNatural::GUEST_CR3, 0x7000),
        (FieldNatural::GUEST_CR4, 0x2020),
        (FieldNatural::GUEST_DR7, 0x400),
        (FieldNatural::GUEST_RFLAGS, 2),
        (FieldNatural::GUEST_RIP, 0xffff_8000_0000_0000),
    ] {
        i.set(field, value);
    }
    i.set16(Field16::HOST_CS_SELECTOR, 8);
    i.set16(Field16::HOST_TR_SELECTOR, 0x18);
    for register in SegmentRegister::ALL {
        let (rights, limit) = match register {
            Cs => (0xa09b, u32::MAX),
            Ldtr => (ACCESS_RIGHTS_UNUSABLE, 0),
            Tr => (0x8b, 0x67),
            _ => (0xc093, u32::MAX),
        };
        i.set32(Field32::guest_rights(register), rights);
        i.set32(Field32::guest_limit(register), limit);
    }
    i
}

/// Takes the image out of long mode, without paging.
fn protected(i: &mut Image) {
    i.set32(Field32::ENTRY_CONTROLS, ENTRY & !0x200);
    i.set64(Field64::GUEST_EFER, 0);
    i.set(FieldNatural::GUEST_CR0, 0x33);
    i.set(FieldNatural::GUEST_RIP, 0x1000);
    i.set32(Field32::GUEST_CS_RIGHTS, 0xc09b);
}

fn virtual_8086(i: &mut Image) {
    protected(i);
    i.set(FieldNatural::GUEST_RFLAGS, 0x2_0002);
    for register in SegmentRegister::ALL.iter().take(6) {
        i.set32(Field32::guest_rights(*register), 0xf3);
        i.set32(Field32::guest_limit(*register), 0xffff);
    }
}

fn broken(image: &Image, stage: Stage) -> Vec<&'static str> {
    let limits = limits();
    let subject = Subject { image, limits: &limits, task_priority: Some(0x20) };
    stage.broken(&subject).map(|rule| rule.broken).collect()
}

#[test]
fn good_images_break_nothing() {
    let mut others = [good(), good(), good(), good()];
    protected(&mut others[1]);
    virtual_8086(&mut others[2]);
    // Real mode at reset.
    protected(&mut others[3]);
    others[3].set(FieldNatural::GUEST_CR0, 0x30);
    others[3].set32(Field32::GUEST_CS_RIGHTS, 0x93);
    others[3].set32(Field32::GUEST_CS_LIMIT, 0xffff);
    for image in &others {
        for stage in Stage::ALL {
            assert_eq!(broken(image, stage), Vec::<&str>::new(), "{stage:?}");
        }
    }
}

/// A change of one thing, and words of the rule that it breaks.
type Case = (&'static str, fn(&mut Image));

fn inject(i: &mut Image, word: u32) {
    i.set32(Field32::ENTRY_INTERRUPTION_INFO, word);
}

const RIGHTS: fn(SegmentRegister) -> Field32 = Field32::guest_rights;

fn posted(i: &mut Image) {
    i.set32(Field32::PIN_CONTROLS, PIN | 1 << 7);
    i.set32(Field32::SECONDARY_CONTROLS, SECONDARY | 1 << 9);
    i.set32(Field32::EXIT_CONTROLS, EXIT | 1 << 15);
    i.set64(Field64::POSTED_INTERRUPT_DESCRIPTOR, 0x8000);
    i.set16(Field16::POSTED_INTERRUPT_VECTOR, 0xff);
}

/// Switches EPT off with all that needs it, and `control` on.
fn without_ept(i: &mut Image, control: u32) {
    i.set32(Field32::SECONDARY_CONTROLS, SECONDARY & !0x82 | control);
}

fn entry_loads(i: &mut Image, control: u32) {
    i.set32(Field32::ENTRY_CONTROLS, ENTRY | control);
}

fn exit_loads(i: &mut Image, control: u32) {
    i.set32(Field32::EXIT_CONTROLS, EXIT | control);
}

const CONTROLS: &[Case] = &[
    ("pin-based controls has", |i| i.set32(Field32::PIN_CONTROLS, PIN & !2)),
    ("the primary processor-based", |i| i.set32(Field32::PRIMARY_CONTROLS, PRIMARY | 1)),
    ("the secondary processor-based", |i| {
        i.set32(Field32::SECONDARY_CONTROLS, SECONDARY | 1 << 30);
    }),
    ("the tertiary processor-based", |i| {
        i.set32(Field32::PRIMARY_CONTROLS, PRIMARY | 1 << 17);
        i.set64(Field64::TERTIARY_CONTROLS, 1);
    }),
    ("CR3 targets", |i| i.set32(Field32::CR3_TARGET_COUNT, 5)),
    ("an I/O bitmap", |i| i.set64(Field64::IO_BITMAP_B, 0x2008)),
    ("the MSR bitmap", |i| i.set64(Field64::MSR_BITMAP, 1 << 39)),
    ("the virtual-APIC page", |i| i.set64(Field64::VIRTUAL_APIC, 1)),
    ("threshold is above 15", |i| i.set32(Field32::TPR_THRESHOLD, 16)),
    ("above the virtual task", |i| i.set32(Field32::TPR_THRESHOLD, 3)),
    ("without the TPR shadow", |i| {
        i.set32(Field32::PRIMARY_CONTROLS, PRIMARY & !(1 << 21));
        i.set32(Field32::SECONDARY_CONTROLS, SECONDARY | 1 << 8);
    }),
    ("virtual NMIs without", |i| i.set32(Field32::PIN_CONTROLS, PIN & !(1 << 3))),
    ("NMI window", |i| {
        i.set32(Field32::PIN_CONTROLS, PIN & !(1 << 5));
        i.set32(Field32::PRIMARY_CONTROLS, PRIMARY | 1 << 22);
    }),
    ("APIC-access page", |i| {
        i.set32(Field32::SECONDARY_CONTROLS, SECONDARY | 1);
        i.set64(Field64::APIC_ACCESS, 4);
    }),
    ("virtual x2APIC", |i| i.set32(Field32::SECONDARY_CONTROLS, SECONDARY | 1 | 1 << 4)),
    ("without external-interrupt", |i| {
        i.set32(Field32::PIN_CONTROLS, PIN & !1);
        i.set32(Field32::SECONDARY_CONTROLS, SECONDARY | 1 << 9);
    }),
    ("posted interrupts without virtual", |i| {
        posted(i);
        i.set32(Field32::SECONDARY_CONTROLS, SECONDARY);
    }),
    ("posted interrupts without ack", |i| {
        posted(i);
        i.set32(Field32::EXIT_CONTROLS, EXIT);
    }),
    ("vector of posted", |i| {
        posted(i);
        i.set16(Field16::POSTED_INTERRUPT_VECTOR, 0x100);
    }),
    ("posted-interrupt descriptor", |i| {
        posted(i);
        i.set64(Field64::POSTED_INTERRUPT_DESCRIPTOR, 0x8020);
    }),
    ("VPID 0", |i| i.set16(Field16::VPID, 0)),
    ("has a memory type", |i| i.set64(Field64::EPT_POINTER, 0x501f)),
    ("has a memory type", |i| i.set64(Field64::EPT_POINTER, 0x5018)),
    ("number of levels", |i| i.set64(Field64::EPT_POINTER, 0x5016)),
    ("number of levels", |i| i.set64(Field64::EPT_POINTER, 0x5026)),
    ("accessed and dirty", |i| i.set64(Field64::EPT_POINTER, 0x505e)),
    ("EPT pointer has a reserved", |i| i.set64(Field64::EPT_POINTER, 0x509e)),
    ("EPT pointer has a reserved", |i| i.set64(Field64::EPT_POINTER, 1 << 39 | 0x1e)),
    ("modification log without", |i| without_ept(i, 1 << 17)),
    ("modification log is not", |i| {
        i.set32(Field32::SECONDARY_CONTROLS, SECONDARY | 1 << 17);
        i.set64(Field64::PML_ADDRESS, 8);
    }),
    ("unrestricted guest without", |i| i.set32(Field32::SECONDARY_CONTROLS, SECONDARY & !2)),
    ("mode-based", |i| without_ept(i, 1 << 22)),
    ("sub-page permissions without", |i| without_ept(i, 1 << 23)),
    ("table of sub-page", |i| {
        i.set32(Field32::SECONDARY_CONTROLS, SECONDARY | 1 << 23);
        i.set64(Field64::SUB_PAGE_PERMISSIONS, 8);
    }),
    ("function that the CPU", |i| {
        i.set32(Field32::SECONDARY_CONTROLS, SECONDARY | 1 << 13);
        i.set64(Field64::VM_FUNCTION_CONTROLS, 2);
    }),
    ("EPTP switching", |i| {
        i.set32(Field32::SECONDARY_CONTROLS, SECONDARY | 1 << 13);
        i.set64(Field64::VM_FUNCTION_CONTROLS, 1);
        i.set64(Field64::EPTP_LIST, 8);
    }),
    ("EPTP switching", |i| {
        without_ept(i, 1 << 13);
        i.set64(Field64::VM_FUNCTION_CONTROLS, 1);
    }),
    ("VMREADs or", |i| {
        i.set32(Field32::SECONDARY_CONTROLS, SECONDARY | 1 << 14);
        i.set64(Field64::VMWRITE_BITMAP, 8);
    }),
    ("virtualization exceptions", |i| {
        i.set32(Field32::SECONDARY_CONTROLS, SECONDARY | 1 << 18);
        i.set64(Field64::VIRTUALIZATION_EXCEPTION, 8);
    }),
    ("addresses without EPT", |i| {
        without_ept(i, 1 << 24);
        i.set32(Field32::ENTRY_CONTROLS, ENTRY | 1 << 18);
        i.set32(Field32::EXIT_CONTROLS, EXIT | 1 << 25);
    }),
    ("RTIT_CTL is not", |i| {
        i.set32(Field32::SECONDARY_CONTROLS, SECONDARY | 1 << 24);
        i.set32(Field32::ENTRY_CONTROLS, ENTRY | 1 << 18);
    }),
    ("the exit controls", |i| i.set32(Field32::EXIT_CONTROLS, EXIT | 1 << 31)),
    ("preemption timer is saved", |i| i.set32(Field32::EXIT_CONTROLS, EXIT | 1 << 22)),
    ("MSR-store area", |i| {
        i.set32(Field32::EXIT_MSR_STORE_COUNT, 1);
        i.set64(Field64::EXIT_MSR_STORE, 8);
    }),
    // The first entry fits, the last does not.
    ("MSR-store area", |i| {
        i.set32(Field32::EXIT_MSR_STORE_COUNT, 2);
        i.set64(Field64::EXIT_MSR_STORE, (1 << 39) - 16);
    }),
    ("exit's MSR-load", |i| {
        i.set32(Field32::EXIT_MSR_LOAD_COUNT, 1);
        i.set64(Field64::EXIT_MSR_LOAD, 8);
    }),
    ("the entry controls", |i| i.set32(Field32::ENTRY_CONTROLS, ENTRY & !1)),
    ("kind that is reserved", |i| inject(i, 0x8000_0120)),
    ("not one of its kind", |i| inject(i, 0x8000_0203)),
    ("error code where", |i| inject(i, 0x8000_030d)),
    ("error code where", |i| inject(i, 0x8000_0b06)),
    ("event has a reserved bit", |i| inject(i, 0x8000_1306)),
    ("wider than 16 bits", |i| {
        inject(i, 0x8000_0b0e);
        i.set32(Field32::ENTRY_EXCEPTION_ERROR, 0x1_0000);
    }),
    ("no instruction has", |i| inject(i, 0x8000_0480)),
    ("entry's MSR-load", |i| {
        i.set32(Field32::ENTRY_MSR_LOAD_COUNT, 1);
        i.set64(Field64::ENTRY_MSR_LOAD, 8);
    }),
    ("system-management", |i| i.set32(Field32::ENTRY_CONTROLS, ENTRY | 1 << 10)),
];

const HOST: &[Case] = &[
    ("host CR0", |i| i.set(FieldNatural::HOST_CR0, 0x8001_0011)),
    ("host CR4 has", |i| i.set(FieldNatural::HOST_CR4, 0xa0)),
    ("host CR4.CET", |i| {
        i.set(FieldNatural::HOST_CR4, 0xc4_20a0);
        i.set(FieldNatural::HOST_CR0, 0x8000_0031);
    }),
    ("host S_CET", |i| {
        exit_loads(i, 1 << 28);
        i.set(FieldNatural::HOST_S_CET, 0xc00);
    }),
    ("host SSP", |i| {
        exit_loads(i, 1 << 28);
        i.set(FieldNatural::HOST_SSP, 2);
    }),
    ("host SSP", |i| {
        exit_loads(i, 1 << 28);
        i.set(FieldNatural::HOST_INTERRUPT_SSP_TABLE, 1 << 47);
    }),
    ("host PERF", |i| {
        exit_loads(i, 1 << 12);
        i.set64(Field64::HOST_PERF_GLOBAL_CTRL, 1 << 40);
    }),
    ("host PKRS", |i| {
        exit_loads(i, 1 << 29);
        i.set64(Field64::HOST_PKRS, 1 << 32);
    }),
    ("host CR3", |i| i.set(FieldNatural::HOST_CR3, 1 << 40)),
    ("SYSENTER_ESP", |i| i.set(FieldNatural::HOST_SYSENTER_ESP, 1 << 47)),
    ("host PAT", |i| i.set64(Field64::HOST_PAT, 2)),
    ("host EFER has", |i| i.set64(Field64::HOST_EFER, 0x1d00)),
    ("host EFER.LMA", |i| i.set64(Field64::HOST_EFER, 0x900)),
    ("RPL or TI", |i| i.set16(Field16::HOST_SS_SELECTOR, 3)),
    ("CS is null", |i| i.set16(Field16::HOST_CS_SELECTOR, 0)),
    ("TR is null", |i| i.set16(Field16::HOST_TR_SELECTOR, 0)),
    ("base address", |i| i.set(FieldNatural::HOST_TR_BASE, 1 << 50)),
    ("not of 64 bits", |i| i.set32(Field32::EXIT_CONTROLS, EXIT & !(1 << 9))),
    ("CR4.PAE = 0", |i| i.set(FieldNatural::HOST_CR4, 0x2080)),
    ("host RIP", |i| i.set(FieldNatural::HOST_RIP, 1 << 60)),
];

const GUEST: &[Case] = &[
    ("guest CR0 has", |i| i.set(FieldNatural::GUEST_CR0, 0x8001_0013)),
    ("CR0.PG = 1 with", |i| {
        protected(i);
        i.set(FieldNatural::GUEST_CR0, 0x8000_0030);
        i.set(FieldNatural::GUEST_CR4, 0x2000);
        i.set32(RIGHTS(SegmentRegister::Cs), 0x93);
        i.set32(Field32::GUEST_CS_LIMIT, 0xffff);
    }),
    ("guest CR4 has", |i| i.set(FieldNatural::GUEST_CR4, 0x20)),
    ("guest CR4.CET", |i| {
        i.set(FieldNatural::GUEST_CR4, 0x80_2020);
        i.set(FieldNatural::GUEST_CR0, 0x8000_0033);
    }),
    ("guest S_CET", |i| {
        entry_loads(i, 1 << 20);
        i.set(FieldNatural::GUEST_S_CET, 1 << 6);
    }),
    ("table of the guest's shadow", |i| {
        entry_loads(i, 1 << 20);
        i.set(FieldNatural::GUEST_INTERRUPT_SSP_TABLE, 1 << 47);
    }),
    ("guest SSP", |i| {
        entry_loads(i, 1 << 20);
        i.set(FieldNatural::GUEST_SSP, 1);
    }),
    ("guest PERF", |i| {
        entry_loads(i, 1 << 13);
        i.set64(Field64::GUEST_PERF_GLOBAL_CTRL, 1 << 35);
    }),
    ("BNDCFGS", |i| {
        entry_loads(i, 1 << 16);
        i.set64(Field64::GUEST_BNDCFGS, 4);
    }),
    ("guest PKRS", |i| {
        entry_loads(i, 1 << 22);
        i.set64(Field64::GUEST_PKRS, 1 << 63);
    }),
    ("DEBUGCTL", |i| i.set64(Field64::GUEST_DEBUGCTL, 1 << 2)),
    ("CR0.PG = 0 in", |i| i.set(FieldNatural::GUEST_CR0, 0x33)),
    ("CR4.PAE = 0 in", |i| i.set(FieldNatural::GUEST_CR4, 0x2000)),
    ("PCIDE", |i| {
        protected(i);
        i.set(FieldNatural::GUEST_CR4, 0x2_2020);
    }),
    ("guest CR3", |i| i.set(FieldNatural::GUEST_CR3, 1 << 63)),
    ("DR7", |i| i.set(FieldNatural::GUEST_DR7, 1 << 32)),
    ("SYSENTER", |i| i.set(FieldNatural::GUEST_SYSENTER_EIP, 1 << 47)),
    ("guest PAT", |i| i.set64(Field64::GUEST_PAT, 3)),
    ("EFER has", |i| i.set64(Field64::GUEST_EFER, 0x1d00)),
    ("IA-32e mode guest", |i| {
        i.set64(Field64::GUEST_EFER, 0);
    }),
    ("EFER.LME", |i| i.set64(Field64::GUEST_EFER, 0x400)),
    ("GDTR or IDTR is not", |i| i.set(FieldNatural::GUEST_IDTR_BASE, 1 << 47)),
    ("wider than 16 bits", |i| i.set32(Field32::GUEST_GDTR_LIMIT, 0x1_0000)),
    ("guest RIP", |i| i.set(FieldNatural::GUEST_RIP, 1 << 47)),
    ("guest RIP", |i| {
        protected(i);
        i.set(FieldNatural::GUEST_RIP, 1 << 32);
    }),
    ("RFLAGS has", |i| i.set(FieldNatural::GUEST_RFLAGS, 0)),
    ("RFLAGS has", |i| i.set(FieldNatural::GUEST_RFLAGS, 0x8002)),
    ("RFLAGS.VM", |i| {
        virtual_8086(i);
        i.set(FieldNatural::GUEST_CR0, 0x30);
    }),
    ("with guest RFLAGS.IF = 0", |i| inject(i, 0x8000_0020)),
    ("none that the CPU has", |i| i.set32(Field32::GUEST_ACTIVITY, 4)),
    ("none that the CPU has", |i| i.set32(Field32::GUEST_ACTIVITY, 3)),
    // #UD wakes nobody.
    ("does not let in", |i| {
        i.set32(Field32::GUEST_ACTIVITY, 1);
        inject(i, 0x8000_0306);
    }),
    ("does not let in", |i| {
        i.set32(Field32::GUEST_ACTIVITY, 2);
        i.set(FieldNatural::GUEST_RFLAGS, 0x202);
        inject(i, 0x8000_0020);
    }),
    ("halted with", |i| {
        i.set32(Field32::GUEST_ACTIVITY, 1);
        for register in [SegmentRegister::Cs, SegmentRegister::Ss] {
            let rights = i.get32(RIGHTS(register));
            i.set32(RIGHTS(register), rights | 0x60);
        }
    }),
    ("not active while", |i| {
        i.set32(Field32::GUEST_ACTIVITY, 2);
        i.set32(Field32::GUEST_INTERRUPTIBILITY, 2);
    }),
    ("interruptibility has", |i| i.set32(Field32::GUEST_INTERRUPTIBILITY, 1 << 5)),
    ("at the same time", |i| {
        i.set(FieldNatural::GUEST_RFLAGS, 0x202);
        i.set32(Field32::GUEST_INTERRUPTIBILITY, 3);
    }),
    ("STI blocks with", |i| i.set32(Field32::GUEST_INTERRUPTIBILITY, 1)),
    ("interrupt is injected while", |i| {
        inject(i, 0x8000_0020);
        i.set(FieldNatural::GUEST_RFLAGS, 0x202);
        i.set32(Field32::GUEST_INTERRUPTIBILITY, 1);
    }),
    ("while MOV SS", |i| {
        inject(i, 0x8000_0202);
        i.set32(Field32::GUEST_INTERRUPTIBILITY, 2);
    }),
    ("SMIs block", |i| i.set32(Field32::GUEST_INTERRUPTIBILITY, 4)),
    ("while NMIs block", |i| {
        inject(i, 0x8000_0202);
        i.set32(Field32::GUEST_INTERRUPTIBILITY, 8);
    }),
    ("an enclave was", |i| i.set32(Field32::GUEST_INTERRUPTIBILITY, 0x12)),
    ("in a transaction", |i| i.set(FieldNatural::GUEST_PENDING_DEBUG, 0x1_1001)),
    ("debug exceptions have", |i| i.set(FieldNatural::GUEST_PENDING_DEBUG, 1 << 5)),
    ("pending single step", |i| {
        i.set32(Field32::GUEST_INTERRUPTIBILITY, 2);
        i.set(FieldNatural::GUEST_RFLAGS, 0x102);
    }),
    ("pending single step", |i| {
        i.set32(Field32::GUEST_INTERRUPTIBILITY, 2);
        i.set(FieldNatural::GUEST_PENDING_DEBUG, 1 << 14);
    }),
    ("link pointer", |i| i.set64(Field64::GUEST_VMCS_LINK, 1)),
    ("page-directory pointer", |i| {
        protected(i);
        i.set(FieldNatural::GUEST_CR0, 0x8000_0033);
        i.set64(Field64::GUEST_PDPTE2, 3);
    }),
    ("TR refers", |i| i.set16(Field16::GUEST_TR_SELECTOR, 4)),
    ("LDTR refers", |i| {
        i.set32(Field32::GUEST_LDTR_RIGHTS, 0x82);
        i.set16(Field16::GUEST_LDTR_SELECTOR, 4);
    }),
    ("SS.RPL differs", |i| {
        i.set32(Field32::SECONDARY_CONTROLS, SECONDARY & !0x80);
        i.set16(Field16::GUEST_CS_SELECTOR, 3);
    }),
    ("16 times", |i| {
        virtual_8086(i);
        i.set(FieldNatural::GUEST_DS_BASE, 16);
    }),
    ("limit is not 0xffff", |i| {
        virtual_8086(i);
        i.set32(Field32::GUEST_FS_LIMIT, 0xfffff);
    }),
    ("not 0xf3", |i| {
        virtual_8086(i);
        i.set32(Field32::GUEST_GS_RIGHTS, 0xfb);
    }),
    ("LDTR or TR is not canonical", |i| i.set(FieldNatural::GUEST_GS_BASE, 1 << 47)),
    ("LDTR or TR is not canonical", |i| i.set(FieldNatural::GUEST_TR_BASE, 1 << 47)),
    ("wider than 32 bits", |i| i.set(FieldNatural::GUEST_ES_BASE, 1 << 32)),
    ("no accessed code", |i| i.set32(Field32::GUEST_CS_RIGHTS, 0xa09a)),
    ("no accessed, writable", |i| i.set32(Field32::GUEST_SS_RIGHTS, 0xc091)),
    ("never accessed", |i| i.set32(Field32::GUEST_FS_RIGHTS, 0xc090)),
    ("a system segment", |i| i.set32(Field32::GUEST_DS_RIGHTS, 0xc083)),
    ("CS.DPL", |i| i.set32(Field32::GUEST_CS_RIGHTS, 0xa0fb)),
    ("SS.DPL differs", |i| {
        i.set32(Field32::SECONDARY_CONTROLS, SECONDARY & !0x80);
        i.set16(Field16::GUEST_CS_SELECTOR, 3);
        i.set16(Field16::GUEST_SS_SELECTOR, 3);
        i.set16(Field16::GUEST_ES_SELECTOR, 0);
    }),
    ("not 0 in real mode", |i| {
        protected(i);
        i.set(FieldNatural::GUEST_CR0, 0x30);
        i.set32(Field32::GUEST_CS_RIGHTS, 0xc0fb);
        i.set32(Field32::GUEST_SS_RIGHTS, 0xc0f3);
    }),
    ("DPL below", |i| {
        i.set32(Field32::SECONDARY_CONTROLS, SECONDARY & !0x80);
        i.set16(Field16::GUEST_DS_SELECTOR, 3);
    }),
    ("not present", |i| i.set32(Field32::GUEST_ES_RIGHTS, 0xc013)),
    ("rights have a reserved", |i| i.set32(Field32::GUEST_ES_RIGHTS, 0xc193)),
    ("CS.D = 1", |i| i.set32(Field32::GUEST_CS_RIGHTS, 0xe09b)),
    ("segment's granularity", |i| i.set32(Field32::GUEST_SS_LIMIT, 0x10_0000)),
    ("no busy task", |i| i.set32(Field32::GUEST_TR_RIGHTS, 0x89)),
    ("or is unusable", |i| i.set32(Field32::GUEST_TR_RIGHTS, 0x1_008b)),
    ("TR has a reserved", |i| i.set32(Field32::GUEST_TR_RIGHTS, 0x808b)),
    ("no present local", |i| i.set32(Field32::GUEST_LDTR_RIGHTS, 0x83)),
    ("LDTR has a reserved", |i| i.set32(Field32::GUEST_LDTR_RIGHTS, 0x282)),
];

/// Each known field has a place of its own.
#[test]
fn images_keep_every_field() {
    let mut image = Image::default();
    for (_, field) in Field16::ALL {
        image.set16(*field, field.0);
    }
    for (_, field) in Field32::ALL {
        image.set32(*field, field.0.into());
    }
    for (_, field) in Field64::ALL {
        image.set64(*field, field.0.into());
    }
    for (_, field) in FieldNatural::ALL {
        image.set(*field, field.0.into());
    }
    for (name, field) in Field16::ALL {
        assert_eq!(image.get16(*field), field.0, "{name}");
    }
    for (name, field) in Field32::ALL {
        assert_eq!(image.get32(*field), field.0.into(), "{name}");
    }
    for (name, field) in Field64::ALL {
        assert_eq!(image.get64(*field), field.0.into(), "{name}");
    }
    for (name, field) in FieldNatural::ALL {
        assert_eq!(image.get(*field), field.0.into(), "{name}");
    }
    // A field that is not known is 0 and stays so.
    image.set64(Field64(0x23fe), 1);
    assert_eq!(image.get64(Field64(0x23fe)), 0);
}

/// Shut down, a guest can be woken by an NMI or a machine check; halted, also
/// by an interrupt or a debug exception.
#[test]
fn what_wakes_a_guest() {
    for (state, word) in [
        (1, 0x8000_0020),
        (1, 0x8000_0202),
        (1, 0x8000_0301),
        (1, 0x8000_0312),
        (2, 0x8000_0202),
        (2, 0x8000_0312),
    ] {
        let mut image = good();
        image.set(FieldNatural::GUEST_RFLAGS, 0x202);
        image.set32(Field32::GUEST_ACTIVITY, state);
        inject(&mut image, word);
        assert_eq!(broken(&image, Stage::Guest), Vec::<&str>::new(), "{state} {word:#x}");
    }
}

/// A bit that one CPU refuses, another may have.
#[test]
fn limits_widen_the_rules() {
    let rich = Limits {
        any_error_code: true,
        misc: VmxMisc::new()
            .with_activity_states(7)
            .with_cr3_targets(8)
            .with_injects_length_0(true),
        ept: EptVpidCapabilities::all(),
        functions: 3,
        ..limits()
    };
    let changes: [fn(&mut Image); 7] = [
        |i| inject(i, 0x8000_0b06),
        |i| inject(i, 0x8000_0480),
        |i| i.set32(Field32::CR3_TARGET_COUNT, 8),
        |i| i.set32(Field32::GUEST_ACTIVITY, 3),
        |i| i.set64(Field64::EPT_POINTER, 0x50e0),
        |i| i.set64(Field64::EPT_POINTER, 0x505e),
        |i| {
            i.set32(Field32::SECONDARY_CONTROLS, SECONDARY | 1 << 13);
            i.set64(Field64::VM_FUNCTION_CONTROLS, 2);
        },
    ];
    for (number, change) in changes.iter().enumerate() {
        let mut image = good();
        change(&mut image);
        for stage in Stage::ALL {
            let subject = Subject { image: &image, limits: &rich, task_priority: None };
            assert_eq!(stage.broken(&subject).count(), 0, "{number}");
        }
        assert!(Stage::ALL.iter().any(|stage| !broken(&image, *stage).is_empty()), "{number}");
    }
}

/// Each change breaks the rule that it should and no other; each rule is
/// broken by some change.
#[test]
fn one_rule_at_a_time() {
    for (stage, cases) in [(Stage::Controls, CONTROLS), (Stage::Host, HOST), (Stage::Guest, GUEST)]
    {
        for (words, change) in cases {
            let mut image = good();
            change(&mut image);
            let found = broken(&image, stage);
            assert_eq!(found.len(), 1, "{words}: {found:#?}");
            assert!(found[0].contains(words), "{words}: {found:?}");
        }
        for rule in stage.rules() {
            let covered = cases.iter().any(|(words, _)| rule.broken.contains(words));
            assert!(covered, "no case breaks: {rule}");
        }
    }
}
