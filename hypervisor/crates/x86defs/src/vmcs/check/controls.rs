//! SDM: "Checks on VMX Controls".

use super::{Rule, Subject, allowed, implies, rules};
use crate::control::Cr0;
use crate::event::Exception;
use crate::vmcs::{
    EntryControls, ExitControls, Field16, Field32, Field64, InterruptionInfo, InterruptionKind,
    PinControls, PrimaryControls, SecondaryControls,
};

/// Whether an injected event says what it may about its error code.
fn error_code_fits(s: &Subject<'_>, info: InterruptionInfo) -> bool {
    let real_mode = s.unrestricted() && !s.cr0().contains(Cr0::PE);
    let hardware = info.kind() == InterruptionKind::EXCEPTION;
    if real_mode || !hardware {
        return !info.error_code_valid();
    }
    // #CP came later than the list of the manual and needs CR4.CET.
    let exception = Exception(info.vector());
    let has_code = exception.has_error_code() && exception != Exception::CP;
    s.limits.any_error_code || info.error_code_valid() == has_code
}

fn ept_pointer_fits(s: &Subject<'_>) -> bool {
    const ACCESSED_DIRTY: u64 = 1 << 6;
    let pointer = s.image.get64(Field64::EPT_POINTER);
    matches!(pointer & 7, 0 | 6)
        && matches!(pointer >> 3 & 7, 3 | 4)
        && s.physical(pointer & !(0x3f | ACCESSED_DIRTY), 0x1000)
}

/// Whether the MSR area at `address` is one, if `count` is not 0.
fn msr_area(s: &Subject<'_>, count: Field32, address: Field64) -> bool {
    implies(s.image.get32(count) != 0, s.physical(s.image.get64(address), 16))
}

/// The rules.
pub(super) static RULES: &[Rule] = rules! { "Checks on VMX Controls":
    "a reserved bit of the pin-based controls has the wrong value" =>
        |s| allowed(s.pin().bits(), s.limits.pin);
    "a reserved bit of the primary processor-based controls has the wrong value" =>
        |s| allowed(s.primary().bits(), s.limits.primary);
    "a reserved bit of the secondary processor-based controls has the wrong value" =>
        |s| implies(
            s.primary().contains(PrimaryControls::SECONDARY),
            allowed(s.secondary().bits(), s.limits.secondary),
        );
    "there are more than four CR3 targets" =>
        |s| s.image.get32(Field32::CR3_TARGET_COUNT) <= 4;
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
        |s| implies(
            s.primary().contains(PrimaryControls::TPR_SHADOW)
                && !s.secondary().contains(SecondaryControls::VIRTUAL_INTERRUPT_DELIVERY),
            s.image.get32(Field32::TPR_THRESHOLD) < 16,
        );
    "the TPR threshold is above the virtual task priority" =>
        |s| implies(
            s.primary().contains(PrimaryControls::TPR_SHADOW)
                && !s.secondary().intersects(
                    SecondaryControls::VIRTUAL_INTERRUPT_DELIVERY
                        | SecondaryControls::VIRTUAL_APIC_ACCESSES,
                ),
            s.task_priority.is_none_or(|priority| {
                s.image.get32(Field32::TPR_THRESHOLD) & 0xf <= u32::from(priority >> 4)
            }),
        );
    "APIC virtualization without the TPR shadow" =>
        |s| implies(
            !s.primary().contains(PrimaryControls::TPR_SHADOW),
            !s.secondary().intersects(
                SecondaryControls::VIRTUAL_X2APIC
                    | SecondaryControls::APIC_REGISTER_VIRTUALIZATION
                    | SecondaryControls::VIRTUAL_INTERRUPT_DELIVERY,
            ),
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
        |s| implies(
            s.secondary().contains(SecondaryControls::VIRTUAL_APIC_ACCESSES),
            s.physical(s.image.get64(Field64::APIC_ACCESS), 0x1000),
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
    "posted interrupts without virtual-interrupt delivery and acknowledgement, or with a \
     vector or descriptor that is none" =>
        |s| implies(
            s.pin().contains(PinControls::POSTED_INTERRUPTS),
            s.secondary().contains(SecondaryControls::VIRTUAL_INTERRUPT_DELIVERY)
                && s.exit().contains(ExitControls::ACKNOWLEDGE_INTERRUPT)
                && s.image.get16(Field16::POSTED_INTERRUPT_VECTOR) < 256
                && s.physical(s.image.get64(Field64::POSTED_INTERRUPT_DESCRIPTOR), 64),
        );
    "VPID 0" =>
        |s| implies(
            s.secondary().contains(SecondaryControls::VPID),
            s.image.get16(Field16::VPID) != 0,
        );
    "the EPT pointer has a wrong memory type, number of levels or reserved bit" =>
        |s| implies(s.secondary().contains(SecondaryControls::EPT), ept_pointer_fits(s));
    "a page-modification log without EPT, or one that is not a page" =>
        |s| implies(
            s.secondary().contains(SecondaryControls::PML),
            s.secondary().contains(SecondaryControls::EPT)
                && s.physical(s.image.get64(Field64::PML_ADDRESS), 0x1000),
        );
    "unrestricted guest without EPT" =>
        |s| implies(s.unrestricted(), s.secondary().contains(SecondaryControls::EPT));
    "mode-based execute control without EPT" =>
        |s| implies(
            s.secondary().contains(SecondaryControls::MODE_BASED_EXECUTE),
            s.secondary().contains(SecondaryControls::EPT),
        );
    "a reserved bit of the exit controls has the wrong value" =>
        |s| allowed(s.exit().bits(), s.limits.exit);
    "the preemption timer is saved but not used" =>
        |s| implies(
            s.exit().contains(ExitControls::SAVE_PREEMPTION_TIMER),
            s.pin().contains(PinControls::PREEMPTION_TIMER),
        );
    "the exit's MSR-store area is misplaced" =>
        |s| msr_area(s, Field32::EXIT_MSR_STORE_COUNT, Field64::EXIT_MSR_STORE);
    "the exit's MSR-load area is misplaced" =>
        |s| msr_area(s, Field32::EXIT_MSR_LOAD_COUNT, Field64::EXIT_MSR_LOAD);
    "a reserved bit of the entry controls has the wrong value" =>
        |s| allowed(s.entry().bits(), s.limits.entry);
    "the injected event is of a kind that is reserved" =>
        |s| s.injected().is_none_or(|info| match info.kind() {
            InterruptionKind(1) => false,
            InterruptionKind::OTHER => s.limits.primary.may
                & PrimaryControls::MONITOR_TRAP.bits() != 0,
            _ => true,
        });
    "the injected event's vector is not one of its kind" =>
        |s| s.injected().is_none_or(|info| match info.kind() {
            InterruptionKind::NMI => info.vector() == 2,
            InterruptionKind::EXCEPTION => info.vector() < 32,
            InterruptionKind::OTHER => info.vector() == 0,
            _ => true,
        });
    "the injected event has an error code where it must have none, or none where it must" =>
        |s| s.injected().is_none_or(|info| error_code_fits(s, info));
    "the injected event has a reserved bit" =>
        |s| s.injected().is_none_or(|info| info.into_bits() & 0x7fff_f000 == 0);
    "the injected error code is wider than 16 bits" =>
        |s| s.injected().is_none_or(|info| {
            implies(
                info.error_code_valid(),
                s.image.get32(Field32::ENTRY_EXCEPTION_ERROR) >> 16 == 0,
            )
        });
    "the injected software event has an instruction length that no instruction has" =>
        |s| s.injected().is_none_or(|info| {
            implies(
                matches!(info.kind_number(), 4..=6),
                (1..=15).contains(&s.image.get32(Field32::ENTRY_INSTRUCTION_LENGTH)),
            )
        });
    "the entry's MSR-load area is misplaced" =>
        |s| msr_area(s, Field32::ENTRY_MSR_LOAD_COUNT, Field64::ENTRY_MSR_LOAD);
    "an entry to system-management mode from outside" =>
        |s| !s.entry().intersects(
            EntryControls::ENTRY_TO_SMM | EntryControls::DEACTIVATE_DUAL_MONITOR,
        );
};
