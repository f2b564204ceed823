//! SDM: "Interrupt Acceptance for Fixed Interrupts", "Signaling Interrupt
//! Servicing Completion", "Task and Processor Priorities", "Local Vector Table".

use super::*;

#[test]
fn the_highest_class_goes_first_and_nests() {
    let mut apic = xapic(0);
    apic.accept(0x41, Trigger::Edge);
    apic.accept(0x52, Trigger::Edge);
    apic.accept(0x4f, Trigger::Edge);
    assert_eq!(apic.deliverable(), Some(0x52));
    apic.acknowledge(0x52);
    assert_eq!(apic.ppr(), 0x50);
    assert_eq!(apic.deliverable(), None, "class 4 is below class 5");
    apic.accept(0x5f, Trigger::Edge);
    assert_eq!(apic.deliverable(), None, "the same class does not nest");
    apic.accept(0x60, Trigger::Edge);
    assert_eq!(apic.deliverable(), Some(0x60));
    apic.acknowledge(0x60);
    assert_eq!(apic.eoi(), None);
    assert_eq!(apic.ppr(), 0x50);
    assert_eq!(apic.eoi(), None);
    assert_eq!(apic.deliverable(), Some(0x5f));
    apic.acknowledge(0x5f);
    apic.eoi();
    assert_eq!(apic.deliverable(), Some(0x4f));
}

#[test]
fn task_priority_holds_back() {
    let mut apic = xapic(0);
    apic.accept(0x45, Trigger::Edge);
    apic.set_cr8(4);
    assert_eq!(load(&mut apic, 0x80), 0x40);
    assert_eq!(apic.deliverable(), None);
    assert_eq!(apic.cr8_threshold(), 4);
    apic.set_cr8(3);
    assert_eq!(apic.deliverable(), Some(0x45));
    assert_eq!(apic.cr8_threshold(), 0);
    let _ = store(&mut apic, 0x80, 0x1a5);
    assert_eq!((apic.tpr(), apic.cr8()), (0xa5, 0xa));
    assert_eq!(apic.ppr(), 0xa5);
    assert_eq!(load(&mut apic, 0x90), 0xa5, "arbitration priority");
    apic.set_tpr(0);
    apic.acknowledge(0x45);
    apic.accept(0x44, Trigger::Edge);
    apic.set_cr8(5);
    assert_eq!(apic.cr8_threshold(), 0, "it waits for an EOI, not for CR8");
}

#[test]
fn eoi_is_told_to_the_io_apics_for_level_only() {
    let mut apic = xapic(0);
    apic.merge(&posted(0x61), &posted(0x61));
    apic.merge(&posted(0x62), &posted(0x61));
    apic.acknowledge(0x62);
    assert_eq!(store(&mut apic, 0xb0, 0), Effect::Eoi { vector: 0x62, broadcast: false });
    apic.acknowledge(0x61);
    assert_eq!(store(&mut apic, 0xb0, 7), Effect::Eoi { vector: 0x61, broadcast: true });
    assert_eq!(store(&mut apic, 0xb0, 0), Effect::None, "nothing in service");
    apic.merge(&posted(0x61), &[0; 4]);
    apic.acknowledge(0x61);
    assert_eq!(apic.eoi(), None, "the vector is an edge now");
}

#[test]
fn eoi_broadcast_can_be_suppressed() {
    let mut apic = xapic(0);
    assert_eq!(load(&mut apic, 0x30) >> 24, 1, "offered");
    let _ = store(&mut apic, 0xf0, 0x11ff);
    apic.merge(&posted(0x61), &posted(0x61));
    apic.acknowledge(0x61);
    assert_eq!(store(&mut apic, 0xb0, 0), Effect::Eoi { vector: 0x61, broadcast: false });
}

#[test]
fn windows_show_irr_isr_and_tmr() {
    let mut apic = xapic(0);
    apic.merge(&posted(0xe5), &posted(0xe5));
    apic.merge(&posted(0x31), &[0; 4]);
    assert_eq!(load(&mut apic, 0x270), 1 << 5);
    assert_eq!(load(&mut apic, 0x1f0), 1 << 5);
    assert_eq!(load(&mut apic, 0x210), 1 << 0x11);
    apic.acknowledge(0xe5);
    assert_eq!(load(&mut apic, 0x270), 0);
    assert_eq!(load(&mut apic, 0x170), 1 << 5);
    assert_eq!(store(&mut apic, 0x170, u32::MAX), Effect::None, "read-only");
    assert_eq!(load(&mut apic, 0x170), 1 << 5);
}

#[test]
fn software_disabled_loses_new_vectors_and_keeps_old_ones() {
    let mut apic = xapic(0);
    let _ = store(&mut apic, 0x320, 0x33);
    apic.accept(0x45, Trigger::Edge);
    assert_eq!(store(&mut apic, 0xf0, 0xff), Effect::IdentityChanged);
    assert!(!apic.accept(0x46, Trigger::Edge));
    apic.merge(&posted(0x47), &[0; 4]);
    assert_eq!(apic.deliverable(), Some(0x45));
    assert_eq!(apic.vectors().0.0, posted(0x45));
    assert_eq!(load(&mut apic, 0x320), 0x1_0033, "masked by force");
    let _ = store(&mut apic, 0x320, 0x33);
    assert_eq!(load(&mut apic, 0x320), 0x1_0033, "and cannot be unmasked");
    let _ = store(&mut apic, 0xf0, 0x1ff);
    let _ = store(&mut apic, 0x320, 0x33);
    assert_eq!(load(&mut apic, 0x320), 0x33);
}

#[test]
fn errors_are_latched_by_a_write_and_signalled_once() {
    let mut apic = xapic(0);
    let _ = store(&mut apic, 0x370, 0x39);
    apic.merge(&posted(5), &[0; 4]);
    assert_eq!(apic.deliverable(), Some(0x39), "error interrupt");
    apic.acknowledge(0x39);
    apic.eoi();
    assert_eq!(load(&mut apic, 0x280), 0, "not latched yet");
    let _ = apic.accept(3, Trigger::Edge);
    assert_eq!(apic.deliverable(), None, "not armed again");
    let _ = store(&mut apic, 0x280, 0xffff);
    assert_eq!(load(&mut apic, 0x280), Esr::RECEIVE_ILLEGAL_VECTOR.bits());
    let _ = store(&mut apic, 0x280, 0);
    assert_eq!(load(&mut apic, 0x280), 0);
    let _ = load(&mut apic, 0x40);
    assert_eq!(apic.deliverable(), Some(0x39), "armed");
    let _ = store(&mut apic, 0x280, 0);
    assert_eq!(load(&mut apic, 0x280), Esr::ILLEGAL_REGISTER.bits());
}

#[test]
fn an_error_entry_with_an_illegal_vector_ends() {
    let mut apic = xapic(0);
    let _ = store(&mut apic, 0x370, 0x09);
    let _ = store(&mut apic, 0x300, 0x0004_0002);
    let _ = store(&mut apic, 0x280, 0);
    assert_eq!(
        load(&mut apic, 0x280),
        (Esr::SEND_ILLEGAL_VECTOR | Esr::RECEIVE_ILLEGAL_VECTOR).bits()
    );
    assert_eq!(apic.highest_pending(), None);
}

#[test]
fn merge_keeps_the_legal_vectors_beside_an_illegal_one() {
    let mut apic = xapic(0);
    apic.merge(&[1 << 3 | 1 << 40, 0, 0, 1], &[0, 0, 0, 1]);
    assert_eq!(apic.vectors().0.0, [1 << 40, 0, 0, 1]);
    assert_eq!(apic.vectors().2.0, [0, 0, 0, 1]);
}

#[test]
fn lint0_in_ext_int_mode_lets_the_pic_through() {
    let mut apic = Lapic::new(0, RATIO, Role::Bootstrap);
    assert!(!apic.accepts_pic(), "masked by reset");
    apic.set_up_virtual_wire();
    assert!(apic.accepts_pic());
    assert_eq!(load(&mut apic, 0x350), 0x700);
    assert_eq!(apic.set_lint(Lint::Lint0, true), LintEvent::None);
    assert_eq!(apic.set_lint(Lint::Lint1, true), LintEvent::Nmi);
    assert_eq!(apic.set_lint(Lint::Lint1, true), LintEvent::None, "an edge");
    let _ = store(&mut apic, 0x350, 0x1_0700);
    assert!(!apic.accepts_pic());
    let _ = apic.write_apic_base(0xfee0_0000).unwrap();
    assert!(apic.accepts_pic(), "no APIC in between");
}

#[test]
fn lint0_level_waits_for_eoi() {
    let mut apic = xapic(0);
    let _ = store(&mut apic, 0x350, 0x8051);
    assert_eq!(apic.set_lint(Lint::Lint0, true), LintEvent::Pending);
    assert_eq!(load(&mut apic, 0x350), 0xc051, "remote IRR");
    apic.acknowledge(0x51);
    assert_eq!(apic.set_lint(Lint::Lint0, true), LintEvent::None);
    assert_eq!(apic.eoi(), Some(0x51));
    assert_eq!(apic.deliverable(), Some(0x51), "still asserted");
    apic.acknowledge(0x51);
    assert_eq!(apic.set_lint(Lint::Lint0, false), LintEvent::None);
    apic.eoi();
    assert_eq!(apic.deliverable(), None);
    assert_eq!(load(&mut apic, 0x350), 0x8051);
    let _ = store(&mut apic, 0x350, 0x1_8051);
    assert_eq!(apic.set_lint(Lint::Lint0, true), LintEvent::None, "masked");
    let _ = store(&mut apic, 0x350, 0x8051);
    assert_eq!(apic.deliverable(), Some(0x51), "unmasked while asserted");
}

#[test]
fn a_pin_in_mode_smi_or_init_says_so() {
    for (mode, event) in [(0x200, LintEvent::Smi), (0x500, LintEvent::Init)] {
        let mut apic = xapic(0);
        let _ = store(&mut apic, 0x350, mode);
        assert_eq!(apic.set_lint(Lint::Lint0, true), event);
        assert_eq!(apic.set_lint(Lint::Lint0, true), LintEvent::None, "no new edge");
    }
}
