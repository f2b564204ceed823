//! Each exit that intercepts and controls ask for is known and served, and no
//! program of a guest can end it by one.

extern crate std;

use super::{Play, Vec};
use crate::end::{EndReason, VmError};
use crate::run::Next;
use std::vec;
use x86defs::exit::RawExit;
use x86defs::vmcb::{self, Intercepts};
use x86defs::vmcs::check::Limits;
use x86defs::vmcs::{
    self, ApicSpace, ControlCapability, ControlWords, EptVpidCapabilities, ExitInformation,
    PinControls, PrimaryControls, SecondaryControls, VmxMisc,
};
use x86defs::{Exception, VmExit};

/// EXITINFO1 of an AMD-V exit code, in all forms that matter.
fn informations(code: u64) -> Vec<u64> {
    match code {
        // IN and OUT of each width, single and repeated.
        0x7b => vec![0x0060_0011, 0x0060_0010, 0x0080_0020, 0x0080_0041, 0x0080_021d, 0x0080_0214],
        0x7c => vec![0, 1],
        // Nested faults: read, write, fetch of nothing, write to a read-only page.
        0x400 => vec![4, 6, 0x14, 7],
        _ => vec![0],
    }
}

/// All exits that the intercepts of AMD-V can lead to. Nested paging and CPUs that
/// speak to each other add theirs.
fn exits_of_svm() -> Vec<VmExit> {
    let codes = Intercepts::POSSIBLE.exit_codes().chain([0x400]);
    let mut exits = Vec::new();
    for code in codes {
        for info1 in informations(code) {
            for assists in [false, true] {
                // A nested fault above all RAM.
                exits.push(vmcb::decode(code, info1, 1 << 38, assists));
            }
        }
    }
    exits
}

/// Exits of VT-x that no control is needed for (SDM: "Instructions That Cause VM
/// Exits Unconditionally", "Other Causes of VM Exits"). The last four: CPUs that
/// have SEAMCALL, TDCALL, or MSR numbers in the instruction.
const UNCONDITIONAL: &[u16] = &[
    2, 3, 9, 10, 11, 13, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 31, 32, 50, 53, 55, 76,
    77, 84, 85,
];

/// Which exit reasons a pin-based control leads to.
fn of_pin(control: PinControls) -> Option<&'static [u16]> {
    Some(match control {
        PinControls::EXTERNAL_INTERRUPT_EXITING => &[1],
        PinControls::NMI_EXITING => &[0],
        PinControls::VIRTUAL_NMIS => &[],
        PinControls::PREEMPTION_TIMER => &[52],
        _ => return None,
    })
}

/// Which exit reasons a primary control leads to.
fn of_primary(control: PrimaryControls) -> Option<&'static [u16]> {
    Some(match control {
        PrimaryControls::INTERRUPT_WINDOW => &[7],
        PrimaryControls::TSC_OFFSETTING | PrimaryControls::SECONDARY => &[],
        PrimaryControls::HLT_EXITING => &[12],
        PrimaryControls::MWAIT_EXITING => &[36],
        PrimaryControls::RDPMC_EXITING => &[15],
        PrimaryControls::CR8_LOAD_EXITING | PrimaryControls::CR8_STORE_EXITING => &[28],
        PrimaryControls::TPR_SHADOW => &[43],
        PrimaryControls::NMI_WINDOW => &[8],
        PrimaryControls::IO_BITMAPS => &[30],
        PrimaryControls::MSR_BITMAP => &[31, 32],
        PrimaryControls::MONITOR_EXITING => &[39],
        _ => return None,
    })
}

/// Which exit reasons a secondary control leads to.
fn of_secondary(control: SecondaryControls) -> Option<&'static [u16]> {
    Some(match control {
        SecondaryControls::VIRTUAL_APIC_ACCESSES => &[44],
        SecondaryControls::EPT => &[48],
        SecondaryControls::WBINVD_EXITING => &[54],
        SecondaryControls::APIC_REGISTER_VIRTUALIZATION => &[56],
        SecondaryControls::VIRTUAL_INTERRUPT_DELIVERY => &[45, 56],
        SecondaryControls::PAUSE_LOOP_EXITING => &[40],
        SecondaryControls::ENCLS_EXITING => &[60],
        SecondaryControls::RDTSCP
        | SecondaryControls::VIRTUAL_X2APIC
        | SecondaryControls::VPID
        | SecondaryControls::UNRESTRICTED_GUEST
        | SecondaryControls::INVPCID => &[],
        _ => return None,
    })
}

/// Bits that are 1 on each CPU and stand for nothing
/// (SDM: "Reserved Controls and Default Settings").
const PRIMARY_ONES: u32 = 0x0400_6172;
const PIN_ONES: u32 = 0x16;

/// The reasons that `bits` lead to; a control that is not in the table fails.
fn reasons<F: bitflags::Flags<Bits = u32> + Copy>(
    bits: F,
    ones: u32,
    of: impl Fn(F) -> Option<&'static [u16]>,
) -> Vec<u16> {
    let mut found = Vec::new();
    for number in 0..32 {
        let bit = bits.bits() & 1 << number;
        if bit & !ones != 0 {
            let Some(reasons) = of(F::from_bits_retain(bit)) else {
                panic!("the exits of control {bit:#x} are not in the table");
            };
            found.extend_from_slice(reasons);
        }
    }
    found
}

/// Exit information of a VT-x exit reason, in all forms that matter.
fn details(reason: u16) -> Vec<ExitInformation> {
    let plain = ExitInformation { reason: reason.into(), ..ExitInformation::default() };
    let qualified = |list: &[u64]| {
        list.iter().map(|q| ExitInformation { qualification: *q, ..plain }).collect()
    };
    match reason {
        // The exceptions that exit, and an NMI.
        0 => [0x8000_0301, 0x8000_0501, 0x8000_0b11, 0x8000_0312, 0x8000_0202]
            .iter()
            .map(|interruption| ExitInformation { interruption: *interruption, ..plain })
            .collect(),
        // MOV to and from CR0, CR3, CR4 and CR8, CLTS, LMSW.
        28 => qualified(&[0, 0x10, 3, 0x13, 4, 0x14, 8, 0x18, 0x20, 0x30, 0x70]),
        30 => qualified(&[0x60_0008, 0x60_0000, 0x80_0009, 0x80_0013, 0x80_0018, 0x80_0030]),
        44 => qualified(&[0x80, 0x1080, 0x2080]),
        48 => [0x181, 0x182, 0x184, 0x18a]
            .iter()
            .map(|q| ExitInformation { qualification: *q, guest_physical: 1 << 38, ..plain })
            .collect(),
        _ => vec![plain],
    }
}

/// All exits that the controls of VT-x can lead to, with all that a CPU may offer.
fn exits_of_vmx() -> Vec<VmExit> {
    let capability = ControlCapability::from_msr;
    let cpu = Limits {
        pin: capability(0xff_0000_0000 | u64::from(PIN_ONES)),
        primary: capability(0xffff_ffff_0000_0000 | u64::from(PRIMARY_ONES)),
        secondary: capability(0xffff_ffff_0000_0000),
        exit: capability(0xffff_ffff_0003_6dfb),
        entry: capability(0xffff_ffff_0000_11fb),
        ept: EptVpidCapabilities::all(),
        tertiary: 0,
        cr0: (0x8000_0021, 0xffff_ffff),
        cr4: (0x2000, 0x0037_67ff),
        physical_bits: 39,
        any_error_code: false,
        misc: VmxMisc::new().with_preemption_timer_rate(5),
        functions: 0,
        performance_counters: 0,
    };
    let most = ControlWords::choose(&cpu).unwrap();
    let mut found = UNCONDITIONAL.to_vec();
    for words in [most, most.without_delivery(), most.without_apic()] {
        let windows = PrimaryControls::INTERRUPT_WINDOW | PrimaryControls::NMI_WINDOW;
        found.extend(reasons(words.pin, PIN_ONES, of_pin));
        found.extend(reasons(words.primary | windows, PRIMARY_ONES, of_primary));
        for space in [ApicSpace::Memory, ApicSpace::Msrs, ApicSpace::None] {
            found.extend(reasons(words.for_apic_mode(space), 0, of_secondary));
        }
    }
    found.sort_unstable();
    found.dedup();
    found.into_iter().flat_map(details).map(|information| vmcs::decode(&information)).collect()
}

/// One turn that ends in `exit`, of a guest at privilege level `cpl`.
fn outcome(exit: VmExit, cpl: u8) -> Next {
    let mut play = Play::new();
    play.vcpu.hw.cpl = cpl;
    play.vcpu.hw.next_rip = Some(0x1002);
    // MOVUPS [RAX], XMM0, to where there is no RAM.
    play.code(&[0x0f, 0x11, 0x00]);
    play.vcpu.set_gpr(x86defs::Gpr::Rax, 0xf000_0000);
    play.turn(exit)
}

#[test]
fn each_exit_that_is_asked_for_is_served() {
    let exits = [exits_of_svm(), exits_of_vmx()].concat();
    assert!(exits.contains(&VmExit::Unoffered) && exits.contains(&VmExit::Rdpmc));
    for exit in exits {
        let Next::End(EndReason::Failed(error)) = outcome(exit, 0) else { continue };
        // Errors that a kernel can cause itself, and that of the machine.
        let its_own = matches!(
            error,
            VmError::NotOffered(_) | VmError::Instruction(_) | VmError::MachineCheck
        );
        assert!(its_own, "{exit:?}: {error}");
    }
}

/// Exits that a program can't bring about, whatever it does: its kernel's tables are the
/// cause, or the machine.
fn is_beyond_a_program(exit: VmExit) -> bool {
    matches!(exit, VmExit::TripleFault | VmExit::MachineCheck | VmExit::TaskSwitch(_))
}

#[test]
fn no_exit_of_a_program_ends_the_guest() {
    for exit in [exits_of_svm(), exits_of_vmx()].concat() {
        let next = outcome(exit, 3);
        let ended = matches!(next, Next::End(_));
        assert!(!ended || is_beyond_a_program(exit), "{exit:?}: {next:?}");
    }
}

#[test]
fn what_nothing_asks_for_is_still_told() {
    let raw = RawExit { reason: 0x8f, info1: 0, info2: 0 };
    let next = outcome(VmExit::Unhandled(raw), 3);
    assert_eq!(next, Next::End(EndReason::Failed(VmError::UnknownExit(raw))));
}

#[test]
fn a_program_gets_invalid_opcode_where_its_kernel_would_end() {
    let fetch = vmcb::decode(0x400, 0x14, 0xf000_0000, false);
    let write = vmcb::decode(0x400, 6, 0xf000_0000, false);
    for exit in [fetch, write, VmExit::Unoffered] {
        let mut play = Play::new();
        play.vcpu.hw.cpl = 3;
        play.code(&[0x0f, 0x11, 0x00]);
        play.vcpu.set_gpr(x86defs::Gpr::Rax, 0xf000_0000);
        assert_eq!(play.turn(exit), Next::Continue, "{exit:?}");
        play.turn(VmExit::HostInterrupt);
        let event = play.injected().unwrap();
        assert_eq!(Exception(event.vector), Exception::UD, "{exit:?}");
        assert_eq!(play.vcpu.hw.rip, 0x1000, "a fault leaves RIP at the instruction");
    }
}
