//! SDM: "VM-Execution Control Fields": their checks.

use super::{Rule, Subject, allowed, implies, rules};
use crate::vmcs::{
    EntryControls, EptVpidCapabilities, ExitControls, Field16, Field32, Field64, PinControls,
    PrimaryControls, SecondaryControls,
};

/// The TPR shadow, without virtual-interrupt delivery, which has no threshold.
fn has_threshold(s: &Subject<'_>) -> bool {
    s.primary().contains(PrimaryControls::TPR_SHADOW)
        && !s.secondary().contains(SecondaryControls::VIRTUAL_INTERRUPT_DELIVERY)
}

/// Whether a field that `control` brings holds a page's address.
fn page(s: &Subject<'_>, control: SecondaryControls, field: Field64) -> bool {
    implies(s.secondary().contains(control), s.physical(s.image.get64(field), 0x1000))
}

/// Whether `control` comes with EPT.
fn with_ept(s: &Subject<'_>, control: SecondaryControls) -> bool {
    implies(s.secondary().contains(control), s.secondary().contains(SecondaryControls::EPT))
}

fn posts(s: &Subject<'_>) -> bool {
    s.pin().contains(PinControls::POSTED_INTERRUPTS)
}

/// Whether `fits` holds of the EPT pointer, if it is used, and of what the CPU
/// has of EPT.
fn ept_pointer(s: &Subject<'_>, fits: impl Fn(u64, EptVpidCapabilities) -> bool) -> bool {
    implies(
        s.secondary().contains(SecondaryControls::EPT),
        fits(s.image.get64(Field64::EPT_POINTER), s.limits.ept),
    )
}

/// EPT pointer: accessed and dirty flags are used.
const ACCESSED_DIRTY: u64 = 1 << 6;
/// EPT pointer: supervisor shadow stacks have their own permission.
const SHADOW_STACK: u64 = 1 << 7;
/// VM-function controls: VMFUNC can change the EPT pointer.
const EPTP_SWITCHING: u64 = 1 << 0;

/// The rules.
pub(super) static RULES: &[Rule] = rules! {
    "VM-Execution Control Fields" {
        "a reserved bit of the pin-based controls has the wrong value" =>
            |s| allowed(s.pin().bits(), s.limits.pin);
        "a reserved bit of the primary processor-based controls has the wrong value" =>
            |s| allowed(s.primary().bits(), s.limits.primary);
        "a reserved bit of the secondary processor-based controls has the wrong value" =>
            |s| implies(
                s.primary().contains(PrimaryControls::SECONDARY),
                allowed(s.secondary().bits(), s.limits.secondary),
            );
        "a reserved bit of the tertiary processor-based controls is set" =>
            |s| implies(
                s.primary().contains(PrimaryControls::TERTIARY),
                s.image.get64(Field64::TERTIARY_CONTROLS) & !s.limits.tertiary == 0,
            );
        "there are more CR3 targets than the CPU has" =>
            |s| s.image.get32(Field32::CR3_TARGET_COUNT) <= s.limits.misc.cr3_targets().into();
        "an I/O bitmap is not a page" =>
            |s| implies(
                s.primary().contains(PrimaryControls::IO_BITMAPS),
                s.physical(s.image.get64(Field64::IO_BITMAP_A), 0x1000)
                    && s.physical(s.image.get64(Field64::IO_BITMAP_B), 0x1000),
            );
        "the MSR bitmap is not a page" =>
            |s| implies(
                s.primary().contains(PrimaryControls::MSR_BITMAP),
                s.physical(s.image.get64(Field64::MSR_BITMAP), 0x1000),
            );
        "the virtual-APIC page is not a page" =>
            |s| implies(
                s.primary().contains(PrimaryControls::TPR_SHADOW),
                s.physical(s.image.get64(Field64::VIRTUAL_APIC), 0x1000),
            );
        "the TPR threshold is above 15" =>
            |s| implies(has_threshold(s), s.image.get32(Field32::TPR_THRESHOLD) < 16);
        "the TPR threshold is above the virtual task priority" =>
            |s| implies(
                has_threshold(s)
                    && !s.secondary().contains(SecondaryControls::VIRTUAL_APIC_ACCESSES),
                s.task_priority.is_none_or(|priority| {
                    s.image.get32(Field32::TPR_THRESHOLD) & 0xf <= u32::from(priority >> 4)
                }),
            );
        "virtual NMIs without NMI exiting" =>
            |s| implies(
                s.pin().contains(PinControls::VIRTUAL_NMIS),
                s.pin().contains(PinControls::NMI_EXITING),
            );
        "an NMI window without virtual NMIs" =>
            |s| implies(
                s.primary().contains(PrimaryControls::NMI_WINDOW),
                s.pin().contains(PinControls::VIRTUAL_NMIS),
            );
        "the APIC-access page is not a page" =>
            |s| page(s, SecondaryControls::VIRTUAL_APIC_ACCESSES, Field64::APIC_ACCESS);
        "APIC virtualization without the TPR shadow" =>
            |s| implies(
                !s.primary().contains(PrimaryControls::TPR_SHADOW),
                !s.secondary().intersects(
                    SecondaryControls::VIRTUAL_X2APIC
                        | SecondaryControls::APIC_REGISTER_VIRTUALIZATION
                        | SecondaryControls::VIRTUAL_INTERRUPT_DELIVERY,
                ),
            );
        "virtual x2APIC together with virtual APIC accesses" =>
            |s| !s.secondary().contains(
                SecondaryControls::VIRTUAL_X2APIC | SecondaryControls::VIRTUAL_APIC_ACCESSES,
            );
        "virtual-interrupt delivery without external-interrupt exiting" =>
            |s| implies(
                s.secondary().contains(SecondaryControls::VIRTUAL_INTERRUPT_DELIVERY),
                s.pin().contains(PinControls::EXTERNAL_INTERRUPT_EXITING),
            );
        "posted interrupts without virtual-interrupt delivery" =>
            |s| implies(
                posts(s),
                s.secondary().contains(SecondaryControls::VIRTUAL_INTERRUPT_DELIVERY),
            );
        "posted interrupts without acknowledgement at exits" =>
            |s| implies(posts(s), s.exit().contains(ExitControls::ACKNOWLEDGE_INTERRUPT));
        "the vector of posted interrupts is above 255" =>
            |s| implies(posts(s), s.image.get16(Field16::POSTED_INTERRUPT_VECTOR) < 256);
        "the posted-interrupt descriptor is not aligned to 64 bytes, or too high" =>
            |s| implies(
                posts(s),
                s.physical(s.image.get64(Field64::POSTED_INTERRUPT_DESCRIPTOR), 64),
            );
        "VPID 0, which is the host's" =>
            |s| implies(
                s.secondary().contains(SecondaryControls::VPID),
                s.image.get16(Field16::VPID) != 0,
            );
        "the EPT pointer has a memory type that the CPU does not have for it" =>
            |s| ept_pointer(s, |pointer, ept| match pointer & 7 {
                0 => ept.contains(EptVpidCapabilities::UNCACHEABLE),
                6 => ept.contains(EptVpidCapabilities::WRITE_BACK),
                _ => false,
            });
        "the EPT pointer has a number of levels that the CPU does not have" =>
            |s| ept_pointer(s, |pointer, ept| match pointer >> 3 & 7 {
                3 => ept.contains(EptVpidCapabilities::FOUR_LEVELS),
                4 => ept.contains(EptVpidCapabilities::FIVE_LEVELS),
                _ => false,
            });
        "the EPT pointer asks for accessed and dirty flags, which the CPU does not have" =>
            |s| ept_pointer(s, |pointer, ept| {
                implies(
                    pointer & ACCESSED_DIRTY != 0,
                    ept.contains(EptVpidCapabilities::ACCESSED_DIRTY),
                )
            });
        "the EPT pointer has a reserved bit, or is too high" =>
            |s| ept_pointer(s, |pointer, ept| {
                let shadow = ept.contains(EptVpidCapabilities::SHADOW_STACK);
                let flags = 0x3f | ACCESSED_DIRTY | if shadow { SHADOW_STACK } else { 0 };
                s.physical(pointer & !flags, 0x1000)
            });
        "a page-modification log without EPT" => |s| with_ept(s, SecondaryControls::PML);
        "the page-modification log is not a page" =>
            |s| page(s, SecondaryControls::PML, Field64::PML_ADDRESS);
        "unrestricted guest without EPT" =>
            |s| with_ept(s, SecondaryControls::UNRESTRICTED_GUEST);
        "mode-based execute control without EPT" =>
            |s| with_ept(s, SecondaryControls::MODE_BASED_EXECUTE);
        "sub-page permissions without EPT" =>
            |s| with_ept(s, SecondaryControls::SUB_PAGE_PERMISSIONS);
        "the table of sub-page permissions is not a page" =>
            |s| page(s, SecondaryControls::SUB_PAGE_PERMISSIONS, Field64::SUB_PAGE_PERMISSIONS);
        "the VM-function controls have a function that the CPU does not have" =>
            |s| implies(
                s.secondary().contains(SecondaryControls::VMFUNC),
                s.image.get64(Field64::VM_FUNCTION_CONTROLS) & !s.limits.functions == 0,
            );
        "EPTP switching without EPT, or with a list that is not a page" =>
            |s| implies(
                s.secondary().contains(SecondaryControls::VMFUNC)
                    && s.image.get64(Field64::VM_FUNCTION_CONTROLS) & EPTP_SWITCHING != 0,
                s.secondary().contains(SecondaryControls::EPT)
                    && s.physical(s.image.get64(Field64::EPTP_LIST), 0x1000),
            );
        "the bitmap of VMREADs or VMWRITEs is not a page" =>
            |s| page(s, SecondaryControls::VMCS_SHADOWING, Field64::VMREAD_BITMAP)
                && page(s, SecondaryControls::VMCS_SHADOWING, Field64::VMWRITE_BITMAP);
        "the area for virtualization exceptions is not a page" =>
            |s| page(
                s,
                SecondaryControls::VIRTUALIZATION_EXCEPTIONS,
                Field64::VIRTUALIZATION_EXCEPTION,
            );
        "Processor Trace uses guest-physical addresses without EPT" =>
            |s| with_ept(s, SecondaryControls::PT_GUEST_PHYSICAL);
        "Processor Trace uses guest-physical addresses, but RTIT_CTL is not switched" =>
            |s| implies(
                s.secondary().contains(SecondaryControls::PT_GUEST_PHYSICAL),
                s.entry().contains(EntryControls::LOAD_RTIT_CTL)
                    && s.exit().contains(ExitControls::CLEAR_RTIT_CTL),
            );
    }
};
