//! Whatever a CPU with VT-x reports of an exit is understood in one way: the hot handler agrees
//! with the general code, and events survive being delivered again.

use super::input::Input;
use x86defs::Width;
use x86defs::event::EventKind;
use x86defs::exit::{NestedAccess, PlainPort, PortIo, VmExit};
use x86defs::vmcs::{
    ENTRY_FAILED, ExitInformation, ExitReason, InterruptionInfo, decode, interrupted_event,
    is_first_touch, plain_port, unblocks_nmi,
};

/// Exit information of the case. Three of four basic reasons are below 80.
pub fn information(input: &mut Input<'_>) -> ExitInformation {
    let [kind, low, high, flags] = input.take();
    let reason = match kind & 3 {
        0 => u32::from_le_bytes([low, high, 0, flags]),
        _ => (u32::from(low) % 80) | u32::from(flags & 0x80) << 24,
    };
    ExitInformation {
        reason,
        qualification: input.u64(),
        guest_physical: input.u64(),
        guest_linear: input.u64(),
        interruption: u32::from_le_bytes(input.take()),
        interruption_error: u32::from_le_bytes(input.take()),
        instruction: u32::from_le_bytes(input.take()),
        apic_register: u32::from_le_bytes(input.take()),
    }
}

/// One case.
pub fn run(data: &[u8]) {
    let mut input = Input(data);
    let information = information(&mut input);
    let vectoring = u32::from_le_bytes(input.take());
    let length = input.byte();
    let exit = decode(&information);
    let failed = information.reason & ENTRY_FAILED != 0;
    match exit {
        VmExit::InvalidState(raw) | VmExit::Unhandled(raw) => {
            assert_eq!(raw.reason, u64::from(information.reason));
            // The one exit of a running guest that says that its state is broken.
            let broken = information.basic() == ExitReason::EPT_MISCONFIGURATION;
            assert_eq!(failed || broken, matches!(exit, VmExit::InvalidState(_)));
        }
        VmExit::MachineCheck => {}
        VmExit::PortIo(PortIo { port, width, direction, string }) => {
            let plain = string.is_none().then_some(PlainPort { port, width, direction });
            assert_eq!(plain_port(information.qualification), plain);
            assert_ne!(width, Width::B8, "no port is that wide");
        }
        VmExit::NestedFault(fault) => {
            let first =
                !fault.access.contains(NestedAccess::PRESENT) && !unblocks_nmi(&information, false);
            assert_eq!(is_first_touch(information.qualification), first);
            assert_eq!(fault.gpa.as_u64(), information.guest_physical);
        }
        VmExit::ApicWrite(write) => assert!(write.offset < 0x1000),
        VmExit::ApicAccess(access) => assert!(access.offset.is_none_or(|offset| offset < 0x1000)),
        VmExit::BrokenRule(_) => panic!("the check's business"),
        _ => {}
    }
    assert!(!failed || matches!(exit, VmExit::InvalidState(_) | VmExit::MachineCheck));
    assert!(!unblocks_nmi(&information, true), "an interrupted delivery unblocks nothing");

    // An event whose delivery was interrupted is asked for again, but for a reserved bit or two.
    let info = InterruptionInfo::from_bits(vectoring);
    if let Some(event) = interrupted_event(info, information.interruption_error, length) {
        let (again, error, instruction) = InterruptionInfo::inject(event);
        assert!(again.valid());
        assert_eq!(interrupted_event(again, error, instruction as u8), Some(event));
        assert_eq!(again.kind_number(), info.kind_number());
        let software =
            matches!(event.kind, EventKind::SoftwareInterrupt(_) | EventKind::SoftwareException(_));
        assert_eq!(info.length_field().is_some(), software);
        assert_eq!(instruction, if software { length.into() } else { 0 });
    }
    let reasons = [information.basic(), ExitReason(u16::from(length))];
    let both = ExitReason::common_length_field(&reasons).is_some();
    assert!(!both || reasons.iter().all(|reason| reason.length_field().is_some()));
}
