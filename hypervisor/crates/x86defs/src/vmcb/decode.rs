//! EXITCODE to [`VmExit`] (APM volume 2: "SVM Intercept Exit Codes").

use super::EventInjection;
use crate::addr::GuestPhysAddr;
use crate::bits::{Low, Width};
use crate::event::{Event, EventKind, Exception};
use crate::exit::{
    CacheControl, CrAccess, DescriptorTableAccess, Direction, DrAccess, ExceptionExit, MonitorWait,
    NestedAccess, NestedFault, PlainPort, PortIo, RawExit, StringIo, TaskSwitch, TaskSwitchSource,
    VmExit,
};
use crate::reg::Gpr;

/// An EXITCODE. Only the low 32 bits count: one emulator does not
/// sign-extend the invalid-state code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub struct ExitCode(pub u32);

macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident = $value:literal;)*) => {
        impl ExitCode {
            $($(#[$doc])* pub const $name: Self = Self($value);)*
        }
    };
}

codes! {
    /// Interrupt of the machine.
    INTR = 0x60;
    /// NMI.
    NMI = 0x61;
    /// SMI.
    SMI = 0x62;
    /// INIT.
    INIT = 0x63;
    /// Virtual-interrupt window.
    VINTR = 0x64;
    /// Selective CR0 write.
    CR0_SELECTIVE = 0x65;
    /// SIDT; SGDT, SLDT, STR, LIDT, LGDT, LLDT and LTR follow.
    IDTR_READ = 0x66;
    /// SLDT.
    LDTR_READ = 0x68;
    /// STR.
    TR_READ = 0x69;
    /// LLDT.
    LDTR_WRITE = 0x6c;
    /// LTR.
    TR_WRITE = 0x6d;
    /// RDTSC.
    RDTSC = 0x6e;
    /// RDPMC.
    RDPMC = 0x6f;
    /// CPUID.
    CPUID = 0x72;
    /// IRET.
    IRET = 0x74;
    /// INVD.
    INVD = 0x76;
    /// PAUSE.
    PAUSE = 0x77;
    /// HLT.
    HLT = 0x78;
    /// INVLPG.
    INVLPG = 0x79;
    /// INVLPGA.
    INVLPGA = 0x7a;
    /// IN, OUT, INS, OUTS.
    IOIO = 0x7b;
    /// RDMSR or WRMSR.
    MSR = 0x7c;
    /// Task switch.
    TASK_SWITCH = 0x7d;
    /// Triple fault.
    SHUTDOWN = 0x7f;
    /// VMRUN.
    VMRUN = 0x80;
    /// VMMCALL.
    VMMCALL = 0x81;
    /// SKINIT.
    SKINIT = 0x86;
    /// RDTSCP.
    RDTSCP = 0x87;
    /// WBINVD.
    WBINVD = 0x89;
    /// MONITOR.
    MONITOR = 0x8a;
    /// MWAIT.
    MWAIT = 0x8b;
    /// MWAIT with the monitor armed.
    MWAIT_ARMED = 0x8c;
    /// XSETBV.
    XSETBV = 0x8d;
    /// RDPRU.
    RDPRU = 0x8e;
    /// INVPCID.
    INVPCID = 0xa2;
    /// Nested page fault.
    NPF = 0x400;
    /// The VMCB's state was refused.
    INVALID = 0xffff_ffff;
}

fn width_of(bits: u64) -> Option<Width> {
    match bits & 7 {
        1 => Some(Width::B1),
        2 => Some(Width::B2),
        4 => Some(Width::B4),
        _ => None,
    }
}

/// The access of an IOIO exit, if it is no string instruction's: for the hot handler.
#[must_use]
pub const fn plain_port(info1: u64) -> Option<PlainPort> {
    let width = match info1 & PORT_KIND {
        0x10 => Width::B1,
        0x20 => Width::B2,
        0x40 => Width::B4,
        _ => return None,
    };
    Some(port_of(info1, width))
}

/// The same, if it is of one byte, as most are.
#[inline(always)]
#[must_use]
pub const fn byte_port(info1: u64) -> Option<PlainPort> {
    if info1 & PORT_KIND != 0x10 {
        return None;
    }
    Some(port_of(info1, Width::B1))
}

/// Whether an IOIO exit is a plain access of one byte to a port below 0x1000.
#[inline(always)]
#[must_use]
pub const fn is_low_byte_port(info1: u64) -> bool {
    info1 & (PORT_KIND | 0xf000_0000) == 0x10
}

/// STR, and SZ8, SZ16 and SZ32.
const PORT_KIND: u64 = 1 << 2 | 7 << 4;

#[inline(always)]
const fn port_of(info1: u64, width: Width) -> PlainPort {
    let direction = if info1 & 1 != 0 { Direction::In } else { Direction::Out };
    #[expect(clippy::cast_possible_truncation, reason = "the port stands in bits 31:16")]
    let port = (info1 >> 16) as u16;
    PlainPort { port, width, direction }
}

/// Whether a nested page fault met an entry that maps nothing.
#[inline(always)]
#[must_use]
pub const fn is_first_touch(info1: u64) -> bool {
    info1 & 1 == 0
}

/// Task switch: EXITINFO1 and EXITINFO2 (APM: "Task Switch Intercept"). A gate whose event has no
/// error code looks like a CALL: EXITINTINFO alone tells them apart.
fn task_switch(info1: u64, info2: u64) -> TaskSwitch {
    let source = if info2 & 1 << 36 != 0 {
        TaskSwitchSource::Iret
    } else if info2 & 1 << 38 != 0 {
        TaskSwitchSource::Jump
    } else if info2 & 1 << 44 != 0 {
        TaskSwitchSource::Gate
    } else {
        TaskSwitchSource::Call
    };
    TaskSwitch { selector: info1.low16(), source }
}

/// IOIO: EXITINFO1 (APM: "IOIO Intercept Information").
fn port_io(info1: u64) -> Option<PortIo> {
    let width = width_of(info1 >> 4)?;
    let string = if info1 & 1 << 2 != 0 {
        Some(StringIo {
            rep: info1 & 1 << 3 != 0,
            // One emulator leaves the address size out.
            address_width: match info1 >> 7 & 7 {
                1 => Some(Width::B2),
                2 => Some(Width::B4),
                4 => Some(Width::B8),
                _ => None,
            },
            // The segment is reported with decode assists only, and zero is
            // ES as well as "unknown": the instruction is decoded instead.
            segment: None,
        })
    } else {
        None
    };
    Some(PortIo {
        port: (info1 >> 16).low16(),
        width,
        direction: if info1 & 1 != 0 { Direction::In } else { Direction::Out },
        string,
    })
}

/// The general register that decode assists name, if they do.
fn assisted_gpr(info1: u64) -> Option<Gpr> {
    (info1 >> 63 != 0).then(|| Gpr::from_number(info1.low8() & 15))
}

/// A nested page fault.
#[inline]
fn nested_fault(info1: u64, info2: u64) -> VmExit {
    let mut access = NestedAccess::empty();
    access.set(NestedAccess::PRESENT, info1 & 1 != 0);
    access.set(NestedAccess::WRITE, info1 & 1 << 1 != 0);
    access.set(NestedAccess::FETCH, info1 & 1 << 4 != 0);
    access.set(NestedAccess::WALK, info1 & 1 << 33 != 0);
    VmExit::NestedFault(NestedFault { gpa: GuestPhysAddr::new(info2), access, gva: None })
}

/// The exit that EXITCODE, EXITINFO1 and EXITINFO2 describe. `decode_assists` tells
/// whether the CPU names the register of MOV CR and MOV DR.
#[must_use]
pub fn decode(exit_code: u64, info1: u64, info2: u64, decode_assists: bool) -> VmExit {
    let raw = RawExit { reason: exit_code, info1, info2 };
    let code = ExitCode(exit_code.low32());
    if code == ExitCode::NPF {
        // Comes often, and would be the last of many comparisons.
        return nested_fault(info1, info2);
    }
    let gpr = || if decode_assists { assisted_gpr(info1) } else { None };
    match code {
        ExitCode(cr @ 0..=0x0f) => VmExit::CrAccess(CrAccess::Read { cr: cr.low8(), gpr: gpr() }),
        ExitCode(cr @ 0x10..=0x1f) => {
            VmExit::CrAccess(CrAccess::Write { cr: (cr - 0x10).low8(), gpr: gpr() })
        }
        ExitCode(dr @ 0x20..=0x2f) => VmExit::DrAccess(DrAccess {
            dr: (dr - 0x20).low8(),
            write: false,
            gpr: decode_assists.then(|| Gpr::from_number(info1.low8())),
        }),
        ExitCode(dr @ 0x30..=0x3f) => VmExit::DrAccess(DrAccess {
            dr: (dr - 0x30).low8(),
            write: true,
            gpr: decode_assists.then(|| Gpr::from_number(info1.low8())),
        }),
        ExitCode(vector @ 0x40..=0x5f) => {
            let exception = Exception((vector - 0x40).low8());
            if exception == Exception::MC {
                return VmExit::MachineCheck;
            }
            VmExit::Exception(ExceptionExit {
                exception,
                error_code: exception.has_error_code().then(|| info1.low32()),
                address: (exception == Exception::PF).then_some(info2),
            })
        }
        ExitCode::INTR => VmExit::HostInterrupt,
        ExitCode::NMI => VmExit::Nmi,
        ExitCode::INIT => VmExit::Init,
        ExitCode::VINTR => VmExit::InterruptWindow,
        ExitCode::CR0_SELECTIVE => VmExit::CrAccess(CrAccess::Write { cr: 0, gpr: gpr() }),
        ExitCode::LDTR_READ | ExitCode::TR_READ | ExitCode::LDTR_WRITE | ExitCode::TR_WRITE => {
            VmExit::DescriptorTable(DescriptorTableAccess::LdtrTr)
        }
        ExitCode(0x66 | 0x67 | 0x6a | 0x6b) => {
            VmExit::DescriptorTable(DescriptorTableAccess::GdtrIdtr)
        }
        ExitCode::RDTSC | ExitCode::RDTSCP => VmExit::Rdtsc,
        ExitCode::RDPMC => VmExit::Rdpmc,
        ExitCode::CPUID => VmExit::Cpuid,
        ExitCode::IRET => VmExit::NmiWindow,
        ExitCode::INVD => VmExit::CacheControl(CacheControl::Invd),
        ExitCode::WBINVD => VmExit::CacheControl(CacheControl::Wbinvd),
        ExitCode::INVLPG => VmExit::CacheControl(CacheControl::Invlpg(
            decode_assists.then_some(crate::GuestVirtAddr::new(info1)),
        )),
        ExitCode::INVPCID => VmExit::CacheControl(CacheControl::Invpcid),
        ExitCode::PAUSE => VmExit::Pause,
        ExitCode::HLT => VmExit::Halt,
        ExitCode::IOIO => port_io(info1).map_or(VmExit::Unhandled(raw), VmExit::PortIo),
        ExitCode::MSR => match info1 {
            0 => VmExit::ReadMsr,
            1 => VmExit::WriteMsr,
            _ => VmExit::Unhandled(raw),
        },
        ExitCode::TASK_SWITCH => VmExit::TaskSwitch(task_switch(info1, info2)),
        ExitCode::SHUTDOWN => VmExit::TripleFault,
        ExitCode::VMMCALL => VmExit::Hypercall,
        ExitCode(0x80 | 0x82..=0x86 | 0x7a) => VmExit::VirtualizationInstruction,
        ExitCode::RDPRU => VmExit::Unoffered,
        ExitCode::MONITOR => VmExit::Monitor(MonitorWait::Monitor),
        ExitCode::MWAIT | ExitCode::MWAIT_ARMED => VmExit::Monitor(MonitorWait::Mwait),
        ExitCode::XSETBV => VmExit::Xsetbv,
        ExitCode::INVALID => VmExit::InvalidState(raw),
        _ => VmExit::Unhandled(raw),
    }
}

/// The event whose delivery the exit interrupted, from EXITINTINFO. A software
/// interrupt is reported without its length: RIP still points at it, so it is
/// executed again rather than injected.
#[must_use]
pub fn interrupted_event(info: EventInjection) -> Option<Event> {
    if !info.valid() {
        return None;
    }
    let kind = match info.kind() {
        0 => EventKind::Interrupt,
        2 => EventKind::Nmi,
        // INT3 and INTO are reported as exceptions; RIP stands at them, and
        // executing them again delivers the event (and pushes the right RIP).
        3 if matches!(info.vector(), 3 | 4) => return None,
        3 => EventKind::Exception,
        _ => return None,
    };
    Some(Event {
        vector: info.vector(),
        kind,
        error_code: info.error_code_valid().then(|| info.error_code()),
    })
}

impl From<Event> for EventInjection {
    fn from(event: Event) -> Self {
        let kind = match event.kind {
            EventKind::Interrupt => 0,
            EventKind::Nmi => 2,
            EventKind::Exception | EventKind::SoftwareException(_) => 3,
            EventKind::SoftwareInterrupt(_) => 4,
        };
        Self::new()
            .with_vector(event.vector)
            .with_kind(kind)
            .with_error_code_valid(event.error_code.is_some())
            .with_error_code(event.error_code.unwrap_or(0))
            .with_valid(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_short_way_to_a_port_agrees_with_the_long_one() {
        for low in 0..0x400u64 {
            let info1 = 0x03f8_0000 | low;
            let wanted = match decode(0x7b, info1, 0, false) {
                VmExit::PortIo(PortIo { port, width, direction, string: None }) => {
                    Some(PlainPort { port, width, direction })
                }
                _ => None,
            };
            assert_eq!(plain_port(info1), wanted, "{low:#x}");
        }
        assert!(is_first_touch(1 << 32 | 6) && !is_first_touch(1 << 32 | 7));
    }

    #[test]
    fn ioio() {
        // OUT DX=0x3f8, AL: SZ8, A64.
        assert_eq!(
            decode(0x7b, 0x03f8_0210, 0x1002, false),
            VmExit::PortIo(PortIo {
                port: 0x3f8,
                width: Width::B1,
                direction: Direction::Out,
                string: None
            })
        );
        // REP INSD from 0x1f0, A32.
        assert_eq!(
            decode(0x7b, 0x01f0_014d, 0, false),
            VmExit::PortIo(PortIo {
                port: 0x1f0,
                width: Width::B4,
                direction: Direction::In,
                string: Some(StringIo { rep: true, address_width: Some(Width::B4), segment: None })
            })
        );
        // An access without a size is not known.
        assert!(matches!(decode(0x7b, 0x03f8_0000, 0, false), VmExit::Unhandled(_)));
    }

    #[test]
    fn nested_faults() {
        assert_eq!(
            decode(0x400, 0x1_0000_0006, 0xfee0_00b0, false),
            VmExit::NestedFault(NestedFault {
                gpa: GuestPhysAddr::new(0xfee0_00b0),
                access: NestedAccess::WRITE,
                gva: None
            })
        );
        assert_eq!(
            decode(0x400, 0x2_0000_0007, 0x1000, false),
            VmExit::NestedFault(NestedFault {
                gpa: GuestPhysAddr::new(0x1000),
                access: NestedAccess::WRITE | NestedAccess::PRESENT | NestedAccess::WALK,
                gva: None
            })
        );
    }

    #[test]
    fn task_switches() {
        for (info2, source) in [
            (0, TaskSwitchSource::Call),
            (1 << 36, TaskSwitchSource::Iret),
            (1 << 38 | 1 << 48, TaskSwitchSource::Jump),
            (1 << 44 | 0x1234, TaskSwitchSource::Gate),
        ] {
            let wanted = VmExit::TaskSwitch(TaskSwitch { selector: 0x28, source });
            assert_eq!(decode(0x7d, 0x28, info2, false), wanted);
        }
    }

    #[test]
    fn invalid_state_with_and_without_sign_extension() {
        assert!(matches!(decode(0xffff_ffff, 0, 0, false), VmExit::InvalidState(_)));
        assert!(matches!(decode(u64::MAX, 0, 0, false), VmExit::InvalidState(_)));
    }

    #[test]
    fn control_and_debug_registers() {
        let gpr = Some(Gpr::Rbx);
        assert_eq!(
            decode(0x10, 1 << 63 | 3, 0, true),
            VmExit::CrAccess(CrAccess::Write { cr: 0, gpr })
        );
        assert_eq!(
            decode(0x10, 1 << 63 | 3, 0, false),
            VmExit::CrAccess(CrAccess::Write { cr: 0, gpr: None })
        );
        assert_eq!(
            decode(0x37, 3, 0, true),
            VmExit::DrAccess(DrAccess { dr: 7, write: true, gpr })
        );
        assert_eq!(
            decode(0x20, 0, 0, false),
            VmExit::DrAccess(DrAccess { dr: 0, write: false, gpr: None })
        );
    }

    #[test]
    fn plain_codes() {
        for (code, exit) in [
            (0x60, VmExit::HostInterrupt),
            (0x61, VmExit::Nmi),
            (0x64, VmExit::InterruptWindow),
            (0x6e, VmExit::Rdtsc),
            (0x6f, VmExit::Rdpmc),
            (0x72, VmExit::Cpuid),
            (0x74, VmExit::NmiWindow),
            (0x77, VmExit::Pause),
            (0x78, VmExit::Halt),
            (0x7f, VmExit::TripleFault),
            (0x80, VmExit::VirtualizationInstruction),
            (0x81, VmExit::Hypercall),
            (0x86, VmExit::VirtualizationInstruction),
            (0x8d, VmExit::Xsetbv),
            (0x8e, VmExit::Unoffered),
            (0x52, VmExit::MachineCheck),
        ] {
            assert_eq!(decode(code, 0, 0, false), exit, "{code:#x}");
        }
        assert!(matches!(decode(0x403, 0, 0, false), VmExit::Unhandled(_)));
        assert!(matches!(decode(0x7c, 2, 0, false), VmExit::Unhandled(_)));
    }

    #[test]
    fn events_round_trip() {
        for event in [
            Event::interrupt(0x31),
            Event::nmi(),
            Event::ud(),
            Event::exception_with_code(Exception::PF, 2),
        ] {
            assert_eq!(interrupted_event(event.into()), Some(event));
        }
        assert_eq!(interrupted_event(EventInjection::new()), None);
        let int3 = EventInjection::new().with_valid(true).with_kind(3).with_vector(3);
        assert_eq!(interrupted_event(int3), None);
    }
}
