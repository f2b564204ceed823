//! Registers are data until the next entry: what is set is read back, the hardware gets it once
//! and whole, and what the guest changes meanwhile is seen after the next exit.

extern crate std;

use super::Play;
use proptest::prelude::*;
use std::vec;
use std::vec::Vec;
use x86defs::exit::{Direction, PortIo};
use x86defs::{
    Cr0, DescriptorTable, Event, Gpr, Rflags, Segment, SegmentAttributes, SegmentRegister, VmExit,
    Width,
};

#[derive(Clone, Debug)]
enum Act {
    Rip(u64),
    Flags(u64),
    Rsp(u64),
    Cr0(u64),
    Cr2(u64),
    Shadow(bool),
    Nmi(bool),
    Dr(u8, u64),
    Segment(usize, u64, u8),
    Gdtr(u64),
    /// The vCPU leaves its CPU, or enters the guest.
    Settle,
    /// The guest ran meanwhile and changed these itself.
    Guest(u64, u64),
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        any::<u64>().prop_map(Act::Rip),
        any::<u64>().prop_map(Act::Flags),
        any::<u64>().prop_map(Act::Rsp),
        any::<u64>().prop_map(Act::Cr0),
        any::<u64>().prop_map(Act::Cr2),
        any::<bool>().prop_map(Act::Shadow),
        any::<bool>().prop_map(Act::Nmi),
        (0u8..8, any::<u64>()).prop_map(|(number, value)| Act::Dr(number, value)),
        (0usize..8, any::<u64>(), 0u8..4).prop_map(|(n, base, dpl)| Act::Segment(n, base, dpl)),
        any::<u64>().prop_map(Act::Gdtr),
        Just(Act::Settle),
        (any::<u64>(), any::<u64>()).prop_map(|(rip, flags)| Act::Guest(rip, flags)),
    ]
}

/// All that both can be asked for.
fn seen(play: &Play) -> Vec<u64> {
    let v = &play.vcpu;
    let mut all = vec![v.rip(), v.rflags().bits(), v.rsp(), v.cr0().bits(), v.cr2()];
    all.extend([u64::from(v.interrupt_shadow()), v.nmi_blocked().into(), v.cpl().into()]);
    all.extend([0, 1, 2, 3, 6, 7].map(|number| v.dr(number)));
    all.extend(SegmentRegister::ALL.map(|register| v.segment(register).base));
    all.push(v.gdtr().base);
    all
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_is_set_is_what_is_read(acts in prop::collection::vec(act(), 0..40)) {
        // The same with the hardware brought up to date after each step.
        let (mut lazy, mut eager) = (Play::new(), Play::new());
        for act in acts {
            for play in [&mut lazy, &mut eager] {
                let v = &mut play.vcpu;
                match act.clone() {
                    Act::Rip(value) => v.set_rip(value),
                    Act::Flags(value) => v.set_rflags(Rflags::from_bits_retain(value)),
                    Act::Rsp(value) => v.set_gpr(Gpr::Rsp, value),
                    Act::Cr0(value) => v.set_cr0(Cr0::from_bits_retain(value)),
                    Act::Cr2(value) => v.set_cr2(value),
                    Act::Shadow(on) => v.set_interrupt_shadow(on),
                    Act::Nmi(on) => v.set_nmi_blocked(on),
                    Act::Dr(number, value) => v.set_dr(number, value),
                    Act::Segment(n, base, dpl) => {
                        let attributes = SegmentAttributes::from_bits(0xc093).with_dpl(dpl);
                        let value = Segment { base, attributes, ..Segment::data32(8) };
                        v.set_segment(SegmentRegister::ALL[n], value);
                    }
                    Act::Gdtr(base) => v.set_gdtr(DescriptorTable { base, limit: 7 }),
                    Act::Settle => v.settle(),
                    Act::Guest(rip, flags) => {
                        v.settle();
                        (v.hw.rip, v.hw.rflags) = (rip, flags);
                    }
                }
            }
            eager.vcpu.settle();
            prop_assert_eq!(seen(&lazy), seen(&eager));
        }
        let before = seen(&lazy);
        lazy.vcpu.settle();
        prop_assert_eq!(before, seen(&lazy), "the hardware has it all");
    }
}

#[test]
fn an_entry_has_them_all() {
    let mut play = Play::new();
    play.vcpu.set_rip(0x1234);
    play.vcpu.set_rflags(Rflags::from_bits_retain(Rflags::IF.bits() | 2));
    play.vcpu.raise(Event::ud());
    play.vcpu.hw.next_rip = Some(0x1236);
    let port = PortIo { port: 0x80, width: Width::B1, direction: Direction::Out, string: None };
    play.turn(VmExit::PortIo(port));
    assert_eq!(play.vcpu.hw.injected, [Some(Event::ud())]);
    assert_eq!(play.vcpu.hw.rip, 0x1236);
    // An exit that needs nothing reads nothing that would be old at the next one.
    play.vcpu.hw.rip = 0x2000;
    play.turn(VmExit::HostInterrupt);
    assert_eq!(play.vcpu.rip(), 0x2000);
}
