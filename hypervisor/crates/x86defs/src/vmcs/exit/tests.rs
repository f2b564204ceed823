use super::*;

fn default() -> ExitInformation {
    ExitInformation::default()
}

fn exit(reason: u32, qualification: u64) -> VmExit {
    decode(&ExitInformation { reason, qualification, ..ExitInformation::default() })
}

#[test]
fn plain_reasons() {
    for (reason, wanted) in [
        (1, VmExit::HostInterrupt),
        (2, VmExit::TripleFault),
        (3, VmExit::Init),
        (7, VmExit::InterruptWindow),
        (8, VmExit::NmiWindow),
        (10, VmExit::Cpuid),
        (11, VmExit::VirtualizationInstruction),
        (12, VmExit::Halt),
        (13, VmExit::CacheControl(CacheControl::Invd)),
        (15, VmExit::Rdpmc),
        (16, VmExit::Rdtsc),
        (18, VmExit::Hypercall),
        (19, VmExit::VirtualizationInstruction),
        (27, VmExit::VirtualizationInstruction),
        (31, VmExit::ReadMsr),
        (32, VmExit::WriteMsr),
        (36, VmExit::Monitor(MonitorWait::Mwait)),
        (39, VmExit::Monitor(MonitorWait::Monitor)),
        (40, VmExit::Pause),
        (43, VmExit::TaskPriorityLowered),
        (46, VmExit::DescriptorTable(DescriptorTableAccess::GdtrIdtr)),
        (47, VmExit::DescriptorTable(DescriptorTableAccess::LdtrTr)),
        (50, VmExit::VirtualizationInstruction),
        (51, VmExit::Rdtsc),
        (52, VmExit::TimesliceExpired),
        (53, VmExit::VirtualizationInstruction),
        (54, VmExit::CacheControl(CacheControl::Wbinvd)),
        (55, VmExit::Xsetbv),
        (58, VmExit::CacheControl(CacheControl::Invpcid)),
        (59, VmExit::VirtualizationInstruction),
        (60, VmExit::Unoffered),
        (62, VmExit::DirtyLogFull),
        (76, VmExit::Unoffered),
        (77, VmExit::Unoffered),
        (84, VmExit::Unoffered),
        (85, VmExit::Unoffered),
    ] {
        assert_eq!(exit(reason, 0), wanted, "{reason}");
    }
    assert!(matches!(exit(49, 0), VmExit::InvalidState(_)));
    for reason in [5, 17, 35, 37, 57, 63, 200] {
        assert!(matches!(exit(reason, 0), VmExit::Unhandled(_)), "{reason}");
    }
}

#[test]
fn failed_entries() {
    assert!(matches!(exit(0x8000_0021, 0), VmExit::InvalidState(_)));
    assert!(matches!(exit(0x8000_0022, 1), VmExit::InvalidState(_)));
    assert_eq!(exit(0x8000_0029, 0), VmExit::MachineCheck);
}

#[test]
fn qualifications_with_a_number() {
    assert_eq!(exit(4, 0x99), VmExit::StartupIpi(0x99));
    for (number, source) in [
        (0, TaskSwitchSource::Call),
        (1, TaskSwitchSource::Iret),
        (2, TaskSwitchSource::Jump),
        (3, TaskSwitchSource::Gate),
    ] {
        let wanted = VmExit::TaskSwitch(TaskSwitch { selector: 0x28, source });
        assert_eq!(exit(9, number << 30 | 0x28), wanted);
    }
    assert_eq!(exit(45, 0x31), VmExit::VirtualEoi(0x31));
    let information =
        ExitInformation { reason: 56, qualification: 0x300, apic_register: 0x4_0045, ..default() };
    let write = ApicWrite { offset: 0x300, value: 0x4_0045 };
    assert_eq!(decode(&information), VmExit::ApicWrite(write));
    assert_eq!(
        exit(14, 0x7000),
        VmExit::CacheControl(CacheControl::Invlpg(Some(GuestVirtAddr::new(0x7000))))
    );
}

#[test]
fn apic_accesses() {
    for (qualification, offset, kind) in [
        (0x0390, Some(0x390), ApicAccessKind::Read),
        (0x1300, Some(0x300), ApicAccessKind::Write),
        (0x2ffc, Some(0xffc), ApicAccessKind::Fetch),
        (0x3010, Some(0x010), ApicAccessKind::Delivery),
        (0xa010, None, ApicAccessKind::Delivery),
        (0xf010, None, ApicAccessKind::Physical),
        // Asynchronous to the instruction.
        (0x1_0080, Some(0x080), ApicAccessKind::Read),
    ] {
        let wanted = VmExit::ApicAccess(ApicAccess { offset, kind });
        assert_eq!(exit(44, qualification), wanted, "{qualification:#x}");
    }
    assert!(matches!(exit(44, 0x5000), VmExit::Unhandled(_)));
}

#[test]
fn control_registers() {
    let gpr = Some(Gpr::R9);
    for (qualification, wanted) in [
        (0x900, CrAccess::Write { cr: 0, gpr }),
        (0x913, CrAccess::Read { cr: 3, gpr }),
        (0x908, CrAccess::Write { cr: 8, gpr }),
        (0x20, CrAccess::Clts),
        (0xfff1_0030, CrAccess::Lmsw(Some(0xfff1))),
        (0x0001_0070, CrAccess::Lmsw(Some(1))),
    ] {
        assert_eq!(exit(28, qualification), VmExit::CrAccess(wanted), "{qualification:#x}");
    }
}

#[test]
fn debug_registers() {
    let gpr = Some(Gpr::Rbx);
    assert_eq!(exit(29, 0x307), VmExit::DrAccess(DrAccess { dr: 7, write: true, gpr }));
    assert_eq!(exit(29, 0x316), VmExit::DrAccess(DrAccess { dr: 6, write: false, gpr }));
}

#[test]
fn ports() {
    let plain =
        |port, width, direction| VmExit::PortIo(PortIo { port, width, direction, string: None });
    assert_eq!(exit(30, 0x03f8_0000), plain(0x3f8, Width::B1, Direction::Out));
    assert_eq!(exit(30, 0x0cfc_000b), plain(0xcfc, Width::B4, Direction::In));
    assert_eq!(exit(30, 0x0060_0049), plain(0x60, Width::B2, Direction::In));
    assert!(matches!(exit(30, 2), VmExit::Unhandled(_)));
    let string = |qualification, instruction| {
        decode(&ExitInformation {
            reason: 30,
            qualification,
            instruction,
            ..ExitInformation::default()
        })
    };
    assert_eq!(
        string(0x01f0_0039, 0x100),
        VmExit::PortIo(PortIo {
            port: 0x1f0,
            width: Width::B2,
            direction: Direction::In,
            string: Some(StringIo {
                rep: true,
                address_width: Some(Width::B8),
                segment: Some(SegmentRegister::Es)
            })
        })
    );
    assert_eq!(
        string(0x0402_0010, 0x2_0080),
        VmExit::PortIo(PortIo {
            port: 0x402,
            width: Width::B1,
            direction: Direction::Out,
            string: Some(StringIo {
                rep: false,
                address_width: Some(Width::B4),
                segment: Some(SegmentRegister::Fs)
            })
        })
    );
}

#[test]
fn ept_violations() {
    let fault = |qualification| match decode(&ExitInformation {
        reason: 48,
        qualification,
        guest_physical: 0xfee0_00b0,
        guest_linear: 0xffff_8000_0000_00b0,
        ..ExitInformation::default()
    }) {
        VmExit::NestedFault(fault) => fault,
        other => panic!("{other:?}"),
    };
    let write = fault(0x182);
    assert_eq!(write.gpa, GuestPhysAddr::new(0xfee0_00b0));
    assert_eq!(write.access, NestedAccess::WRITE);
    assert_eq!(write.gva, Some(GuestVirtAddr::new(0xffff_8000_0000_00b0)));
    assert_eq!(fault(0x184).access, NestedAccess::FETCH);
    assert_eq!(fault(0x181).access, NestedAccess::empty());
    // A page that may be read, written to.
    assert_eq!(fault(0x18a).access, NestedAccess::WRITE | NestedAccess::PRESENT);
    // The CPU walking the guest's tables.
    assert_eq!(fault(0x083).access, NestedAccess::WRITE | NestedAccess::WALK);
    // MOV to CR3 with PAE paging.
    let pointers = fault(0x001);
    assert_eq!((pointers.access, pointers.gva), (NestedAccess::WALK, None));
}

#[test]
fn exceptions() {
    let with = |interruption, qualification| {
        decode(&ExitInformation {
            interruption,
            interruption_error: 0x15,
            qualification,
            ..ExitInformation::default()
        })
    };
    assert_eq!(with(0x8000_0202, 0), VmExit::Nmi);
    assert_eq!(with(0x8000_0312, 0), VmExit::MachineCheck);
    let caught = |exception, error_code, address| {
        VmExit::Exception(ExceptionExit { exception, error_code, address })
    };
    assert_eq!(with(0x8000_0301, 0x4000), caught(Exception::DB, None, None));
    assert_eq!(with(0x8000_0501, 0), caught(Exception::DB, None, None));
    assert_eq!(with(0x8000_0b0e, 0x1234), caught(Exception::PF, Some(0x15), Some(0x1234)));
    assert_eq!(with(0x8000_0b11, 0), caught(Exception::AC, Some(0x15), None));
    assert!(matches!(with(0x0000_0301, 0), VmExit::Unhandled(_)));
}

#[test]
fn nmi_unblocking() {
    let violation =
        ExitInformation { reason: 48, qualification: 0x1181, ..ExitInformation::default() };
    assert!(unblocks_nmi(&violation, false));
    assert!(!unblocks_nmi(&violation, true));
    let fault = |interruption| ExitInformation { interruption, ..ExitInformation::default() };
    assert!(unblocks_nmi(&fault(0x8000_1b0e), false));
    assert!(!unblocks_nmi(&fault(0x8000_0b0e), false));
    // Undefined for a double fault.
    assert!(!unblocks_nmi(&fault(0x8000_1b08), false));
    let cpuid = ExitInformation { reason: 10, qualification: 0x1000, ..ExitInformation::default() };
    assert!(!unblocks_nmi(&cpuid, false));
}

/// The length is defined for the reasons on the manual's list, and no others.
#[test]
fn instruction_lengths() {
    let defined = [
        9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31,
        32, 36, 39, 40, 46, 47, 50, 51, 53, 54, 55, 57, 58, 59, 60, 61, 63, 64, 67, 68, 76, 77, 84,
        85,
    ];
    for reason in 0..0x100 {
        assert_eq!(
            ExitReason(reason).length_field().is_some(),
            defined.contains(&reason),
            "{reason}"
        );
    }
}

#[test]
fn common_instruction_lengths() {
    let good = [ExitReason::CPUID, ExitReason::VMCALL];
    assert_eq!(ExitReason::common_length_field(&good), ExitReason::CPUID.length_field());
    let bad = [ExitReason::CPUID, ExitReason::EPT_VIOLATION];
    assert_eq!(ExitReason::common_length_field(&bad), None);
}

/// Nobody reads the instruction length but through [`ExitReason::length_field`]
/// and its like: its name is out of reach outside this module, and its number
/// stands in the list of fields alone.
#[test]
fn the_length_has_no_other_way_in() {
    extern crate std;
    use std::path::{Path, PathBuf};
    use std::vec::Vec;

    fn sources(dir: &Path, found: &mut Vec<PathBuf>) {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                sources(&path, found);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(path);
            }
        }
    }
    let crate_dir = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut found = Vec::new();
    sources(&crate_dir.join("../../src"), &mut found);
    sources(&crate_dir.join(".."), &mut found);
    assert!(found.len() > 100, "{} sources", found.len());
    let number = std::format!("{:x}", 0x4400 + 0xc);
    let mut readers = Vec::new();
    for path in found {
        let text = std::fs::read_to_string(&path).unwrap().to_lowercase().replace('_', "");
        if text.contains(&number) {
            readers.push(path.file_name().unwrap().to_os_string());
        }
    }
    assert_eq!(readers, ["fields.rs"]);
}

#[test]
fn the_short_way_to_a_port_agrees_with_the_long_one() {
    for low in 0..0x80u64 {
        let qualification = 0x03f8_0000 | low;
        let wanted = match exit(30, qualification) {
            VmExit::PortIo(PortIo { port, width, direction, string: None }) => {
                Some(PlainPort { port, width, direction })
            }
            _ => None,
        };
        assert_eq!(plain_port(qualification), wanted, "{low:#x}");
    }
}

#[test]
fn first_touches_leave_nothing_to_put_right() {
    assert!(is_first_touch(0x181), "a read");
    assert!(is_first_touch(0x182), "a write");
    assert!(!is_first_touch(0x18a), "a write to what can be read");
    assert!(!is_first_touch(0x1182), "an IRET has unblocked NMIs");
}
