//! SDM: "VM-Exit Control Fields", "VM-Entry Control Fields": their checks, of
//! which most are about the event to inject.

use super::{Rule, Subject, allowed, implies, rules};
use crate::control::Cr0;
use crate::event::Exception;
use crate::vmcs::{
    EntryControls, ExitControls, Field32, Field64, InterruptionInfo, InterruptionKind, PinControls,
    PrimaryControls,
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

/// Whether the MSR area at `address` is one, if `count` is not 0: aligned, its
/// last byte no further than physical addresses reach.
fn msr_area(s: &Subject<'_>, count: Field32, address: Field64) -> bool {
    const ENTRY: u64 = 16;
    let count = u64::from(s.image.get32(count));
    let first = s.image.get64(address);
    let last = first.checked_add(count * ENTRY).and_then(|end| end.checked_sub(1));
    implies(count != 0, s.physical(first, ENTRY) && last.is_some_and(|last| s.physical(last, 1)))
}

/// The rules.
pub(super) static RULES: &[Rule] = rules! {
    "VM-Exit Control Fields" {
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
    }
    "VM-Entry Control Fields" {
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
                let least = if s.limits.misc.injects_length_0() { 0 } else { 1 };
                implies(
                    matches!(info.kind_number(), 4..=6),
                    (least..=15).contains(&s.image.get32(Field32::ENTRY_INSTRUCTION_LENGTH)),
                )
            });
        "the entry's MSR-load area is misplaced" =>
            |s| msr_area(s, Field32::ENTRY_MSR_LOAD_COUNT, Field64::ENTRY_MSR_LOAD);
        "an entry to system-management mode, or the end of its monitor, from outside" =>
            |s| !s.entry().intersects(
                EntryControls::ENTRY_TO_SMM | EntryControls::DEACTIVATE_DUAL_MONITOR,
            );
    }
};
