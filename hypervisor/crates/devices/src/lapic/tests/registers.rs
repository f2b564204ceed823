//! SDM: "Local APIC Register Address Map", "x2APIC Register Address Space",
//! "x2APIC State Transitions", "Local APIC State After Power-Up or Reset".

use super::*;
use crate::{AccessError, Device};

#[test]
fn power_up() {
    let mut apic = Lapic::new(7, RATIO, Role::Bootstrap);
    assert_eq!(apic.apic_base(), 0xfee0_0900);
    let expected = [
        (0x20, 0x0700_0000),
        (0x30, 0x0105_0014),
        (0x80, 0),
        (0xd0, 0),
        (0xe0, u32::MAX),
        (0xf0, 0xff),
        (0x280, 0),
        (0x300, 0),
        (0x310, 0),
        (0x320, 0x1_0000),
        (0x370, 0x1_0000),
        (0x380, 0),
        (0x390, 0),
        (0x3e0, 0),
    ];
    for (offset, value) in expected {
        assert_eq!(load(&mut apic, offset), value, "offset {offset:#x}");
    }
    let apic = Lapic::new(7, RATIO, Role::Application);
    assert_eq!(apic.apic_base(), 0xfee0_0800);
}

#[test]
fn writable_bits() {
    let mut apic = xapic(0);
    let expected = [
        (0x20, 0),
        (0x30, 0x0105_0014),
        (0x80, 0xff),
        (0xd0, 0xff00_0000),
        (0xe0, u32::MAX),
        (0xf0, 0x13ff),
        (0x310, 0xff00_0000),
        (0x320, 0x7_00ff),
        (0x330, 0x1_07ff),
        (0x340, 0x1_07ff),
        (0x350, 0x1_a7ff),
        (0x360, 0x1_a7ff),
        (0x370, 0x1_00ff),
        (0x3e0, 0xb),
    ];
    for (offset, value) in expected {
        let _ = store(&mut apic, offset, u32::MAX);
        assert_eq!(load(&mut apic, offset), value, "offset {offset:#x}");
    }
}

#[test]
fn access_sizes() {
    let mut apic = xapic(0x12);
    assert_eq!(apic.mmio_read(0x23, Width::B1, NOW), Ok(0x12));
    assert_eq!(apic.mmio_read(0x22, Width::B2, NOW), Ok(0x1200));
    assert_eq!(apic.mmio_read(0x22, Width::B4, NOW), Err(AccessError::Width));
    assert_eq!(apic.mmio_read(0x20, Width::B8, NOW), Err(AccessError::Width));
    assert_eq!(apic.mmio_read(0x24, Width::B4, NOW), Err(AccessError::NoRegister));
    assert_eq!(apic.mmio_read(0x1020, Width::B4, NOW), Err(AccessError::NoRegister));
    assert_eq!(apic.mmio_write(0x81, Width::B1, 1, NOW), Err(AccessError::Width));
    assert_eq!(apic.mmio_write(0x80, Width::B2, 1, NOW), Err(AccessError::Width));
}

#[test]
fn msr_space() {
    let mut apic = x2apic(0x25);
    assert_eq!(apic.mmio_read(0x20, Width::B4, NOW), Err(AccessError::NoRegister));
    assert_eq!(rdmsr(&mut apic, 0x802), Ok(0x25));
    let readable = (0x800..=0x8ff).filter(|&msr| rdmsr(&mut apic, msr).is_ok());
    let expected = [0x802, 0x803, 0x808, 0x80a, 0x80d, 0x80f]
        .into_iter()
        .chain(0x810..=0x828)
        .chain([0x830])
        .chain(0x832..=0x839)
        .chain([0x83e]);
    assert!(readable.eq(expected));
    let writable = (0x800..=0x8ff).filter(|&msr| apic.clone().msr_write(Msr(msr), 0, NOW).is_ok());
    let expected =
        [0x808, 0x80b, 0x80f, 0x828, 0x830].into_iter().chain(0x832..=0x838).chain([0x83e, 0x83f]);
    assert!(writable.eq(expected));
    let mut apic = xapic(0);
    assert!((0x800..=0x8ff).all(|msr| rdmsr(&mut apic, msr) == Err(Gp)));
    assert!((0x800..=0x8ff).all(|msr| wrmsr(&mut apic, msr, 0) == Err(Gp)));
    assert_eq!(rdmsr(&mut apic, 0x10), Err(Gp));
}

#[test]
fn msr_reserved_bits() {
    let mut apic = x2apic(1);
    for (msr, allowed) in [
        (0x808, 0xff_u64),
        (0x80b, 0),
        (0x80f, 0x13ff),
        (0x828, 0),
        (0x832, 0x7_50ff),
        (0x833, 0x1_57ff),
        (0x834, 0x1_57ff),
        (0x835, 0x1_f7ff),
        (0x836, 0x1_f7ff),
        (0x837, 0x1_50ff),
        (0x838, 0xffff_ffff),
        (0x83e, 0xb),
    ] {
        for bit in 0..64 {
            let ok = apic.clone().msr_write(Msr(msr), 1 << bit, NOW).is_ok();
            assert_eq!(ok, allowed >> bit & 1 != 0, "MSR {msr:#x} bit {bit}");
        }
        let before = apic.clone();
        assert_eq!(wrmsr(&mut apic, msr, 1 << 40), Err(Gp));
        assert_eq!(apic, before);
    }
}

#[test]
fn the_base_moves() {
    let mut apic = xapic(5);
    assert!(apic.is_in_place());
    let _ = store(&mut apic, 0xd0, 0x0100_0000);
    apic.accept(0x45, Trigger::Edge);
    assert_eq!(apic.write_apic_base(0xfed4_0800), Ok(Effect::IdentityChanged));
    assert_eq!(apic.apic_base(), 0xfed4_0900);
    assert_eq!((apic.window(), apic.is_in_place()), (Some(0xfed4_0000), false));
    assert_eq!(apic.deliverable(), Some(0x45), "nothing else changes");
    apic.init();
    assert_eq!(apic.window(), Some(0xfed4_0000), "INIT leaves it there");
    assert_eq!(apic.write_apic_base(0xfed4_1000), Ok(Effect::IdentityChanged));
    assert_eq!((apic.window(), apic.apic_base()), (None, 0xfed4_1100), "off, at another place");
    assert_eq!(apic.write_apic_base(0xfee0_0800), Ok(Effect::IdentityChanged));
    assert!(apic.is_in_place());
    apic.reset();
    assert_eq!(apic.apic_base(), 0xfee0_0900);
}

#[test]
fn modes() {
    let disabled = 0xfee0_0000;
    let (x, x2) = (0xfee0_0800, 0xfee0_0c00);
    let mut apic = xapic(5);
    assert_eq!(apic.write_apic_base(0xfee0_0400), Err(Gp));
    assert_eq!(apic.write_apic_base(0xfee0_0a00), Err(Gp), "reserved bit 9");
    assert_eq!(apic.write_apic_base(1 << 60 | x), Err(Gp));
    assert_eq!(apic.write_apic_base(x), Ok(Effect::None));
    assert_eq!(apic.apic_base(), 0xfee0_0900, "the bootstrap flag stays");
    let _ = store(&mut apic, 0xd0, 0x0100_0000);
    apic.accept(0x45, Trigger::Edge);
    assert_eq!(apic.write_apic_base(x2), Ok(Effect::IdentityChanged));
    assert_eq!(apic.deliverable(), Some(0x45), "requests survive the change");
    assert_eq!(rdmsr(&mut apic, 0x80f), Ok(0x1ff));
    assert_eq!(apic.write_apic_base(x), Err(Gp));
    assert_eq!(rdmsr(&mut apic, 0x1b), Ok(0xfee0_0d00));
    assert_eq!(wrmsr(&mut apic, 0x1b, disabled), Ok(Effect::IdentityChanged));
    assert_eq!(apic.deliverable(), None);
    assert!(!apic.accept(0x45, Trigger::Edge));
    assert_eq!(apic.mmio_read(0x20, Width::B4, NOW), Err(AccessError::NoRegister));
    assert_eq!(apic.write_apic_base(x2), Err(Gp));
    assert_eq!(apic.write_apic_base(x), Ok(Effect::IdentityChanged));
    assert_eq!(load(&mut apic, 0xf0), 0xff);
    assert_eq!(load(&mut apic, 0xd0), 0);
    assert_eq!(load(&mut apic, 0x20), 5 << 24);
}

#[test]
fn init_keeps_mode_and_identity() {
    let mut apic = x2apic(5);
    apic.set_tpr(0x20);
    apic.accept(0x45, Trigger::Edge);
    apic.init();
    assert_eq!(apic.mode(), ApicMode::X2Apic);
    assert_eq!(rdmsr(&mut apic, 0x802), Ok(5));
    assert_eq!(rdmsr(&mut apic, 0x80f), Ok(0xff));
    assert_eq!(apic.tpr(), 0);
    assert_eq!(apic.highest_pending(), None);
    apic.reset();
    assert_eq!(apic.mode(), ApicMode::XApic);
    assert_eq!(load(&mut apic, 0x20), 5 << 24);
}

#[test]
fn impossible_states_are_refused() {
    let good = xapic(1);
    let mut target = Lapic::new(1, RATIO, Role::Bootstrap);
    target.restore(good.save()).unwrap();
    assert_eq!(target, good);
    let json = serde_json::to_value(good.save()).unwrap();
    for (field, value) in [
        ("irr", serde_json::json!([1, 0, 0, 0])),
        ("isr", serde_json::json!([0, 1, 0, 0])),
        ("isr_top", 0x40.into()),
        ("svr", 0x2_01ff.into()),
        ("lvt", serde_json::json!([0x8_0000, 0, 0, 0, 0, 0])),
        ("divide", 4.into()),
        ("id", 2.into()),
        ("bootstrap", false.into()),
        ("apic_base", 0xfee0_0000_u64.into()),
        ("dfr", 0.into()),
        ("ldr", 1.into()),
        ("icr_low", 0x1000.into()),
        ("esr", 1.into()),
        ("lint_asserted", 4.into()),
        ("mode", "Disabled".into()),
    ] {
        let mut json = json.clone();
        json[field] = value;
        let bad: LapicState = serde_json::from_value(json).unwrap();
        assert!(target.restore(bad).is_err(), "{field}");
        assert_eq!(target, good, "{field}");
    }
}

/// Without x2APIC mode and TSC deadlines, an APIC refuses the one and ignores the other.
#[test]
fn features_that_are_not_there() {
    let mut apic = Lapic::new(0, TickRatio::from_khz(1_000_000), Role::Bootstrap);
    apic = apic.with_features(false, false);
    assert_eq!(apic.write_apic_base(0xfee0_0c00), Err(Gp));
    assert_eq!(apic.mode(), ApicMode::XApic);
    let entry = |apic: &mut Lapic, value: u32| {
        let _ = apic.mmio_write(0x320, Width::B4, value, Ticks(0)).unwrap();
        apic.mmio_read(0x320, Width::B4, Ticks(0)).unwrap()
    };
    assert_eq!(entry(&mut apic, 0x4_0030) & 0x6_0000, 0, "no deadline mode");
    assert_eq!(entry(&mut apic, 0x2_0030) & 0x6_0000, 0x2_0000, "periodic mode as ever");
    let mut apic = Lapic::new(0, TickRatio::from_khz(1_000_000), Role::Bootstrap);
    assert_eq!(entry(&mut apic, 0x4_0030) & 0x6_0000, 0x4_0000);
    assert_eq!(apic.write_apic_base(0xfee0_0c00), Ok(Effect::IdentityChanged));
}
