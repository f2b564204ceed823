//! Whatever a CPU with AMD-V reports of an exit is understood in one way: the hot handler agrees
//! with the general code, and events survive being delivered again.

use super::input::Input;
use x86defs::Width;
use x86defs::exit::{NestedAccess, PlainPort, PortIo, VmExit};
use x86defs::vmcb::{EventInjection, decode, interrupted_event, is_first_touch, plain_port};

/// EXITCODE, EXITINFO1 and EXITINFO2 as the case has them. Three of four codes are ones that
/// CPUs have.
pub fn information(input: &mut Input<'_>) -> [u64; 3] {
    let [kind, low] = input.take();
    let code = match kind & 3 {
        0 => input.u64(),
        1 if low & 7 == 0 => 0x400,
        2 if low & 7 == 0 => u64::MAX,
        _ => u64::from(low) % 0xa4,
    };
    [code, input.u64(), input.u64()]
}

/// One case.
pub fn run(data: &[u8]) {
    let mut input = Input(data);
    let [code, info1, info2] = information(&mut input);
    let assists = input.byte() & 1 != 0;
    let exit = decode(code, info1, info2, assists);
    match exit {
        VmExit::InvalidState(raw) | VmExit::Unhandled(raw) => {
            assert_eq!((raw.reason, raw.info1, raw.info2), (code, info1, info2));
        }
        VmExit::PortIo(PortIo { port, width, direction, string }) => {
            let plain = string.is_none().then_some(PlainPort { port, width, direction });
            assert_eq!(plain_port(info1), plain);
            assert_ne!(width, Width::B8, "no port is that wide");
        }
        VmExit::NestedFault(fault) => {
            assert_eq!(is_first_touch(info1), !fault.access.contains(NestedAccess::PRESENT));
            assert_eq!(fault.gpa.as_u64(), info2);
        }
        VmExit::BrokenRule(_) => panic!("the check's business"),
        _ => {}
    }
    // Without decode assists nothing is believed of the registers.
    if let (VmExit::DrAccess(access), false) = (exit, assists) {
        assert_eq!(access.gpr, None);
    }

    let info = EventInjection::from_bits(input.u64());
    if let Some(event) = interrupted_event(info) {
        let again = EventInjection::from(event);
        assert!(again.valid());
        assert_eq!((again.vector(), again.kind()), (info.vector(), info.kind()));
        assert_eq!(interrupted_event(again), Some(event));
    }
}
