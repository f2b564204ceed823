//! SDM: "Issuing Interprocessor Interrupts", "Determining IPI Destination",
//! "Lowest Priority Delivery Mode".

use super::*;

fn ipi(effect: Effect) -> IpiCommand {
    match effect {
        Effect::Ipi(command) => command,
        other => panic!("{other:?}"),
    }
}

#[test]
fn xapic_commands() {
    let mut apic = xapic(1);
    let _ = store(&mut apic, 0x310, 0x0512_3456);
    assert_eq!(load(&mut apic, 0x310), 0x0500_0000);
    let command = ipi(store(&mut apic, 0x300, 0x0000_40d1));
    assert_eq!(command.shorthand, Shorthand::None);
    assert_eq!(
        command.message,
        InterruptMessage {
            destination: Destination { id: 5, mode: DestinationMode::Physical },
            mode: DeliveryMode::Fixed,
            vector: 0xd1,
            trigger: Trigger::Edge,
        }
    );
    assert_eq!(load(&mut apic, 0x300), 0x40d1, "delivered at once");
    let command = ipi(store(&mut apic, 0x300, 0x000c_c500));
    assert_eq!(command.message.mode, DeliveryMode::Init);
    assert_eq!(command.shorthand, Shorthand::AllExcludingSelf);
    assert_eq!(store(&mut apic, 0x300, 0x0008_8500), Effect::None, "INIT de-assert");
    assert_eq!(ipi(store(&mut apic, 0x300, 0x0000_4608)).message.vector, 8, "SIPI page");
    let _ = store(&mut apic, 0x310, 0xff00_0000);
    let command = ipi(store(&mut apic, 0x300, 0x0000_0c00));
    assert_eq!(command.message.destination.id, Destination::BROADCAST);
    assert_eq!(command.message.destination.mode, DestinationMode::Logical);
    assert_eq!(command.message.mode, DeliveryMode::Nmi);
}

#[test]
fn to_oneself() {
    let mut apic = xapic(1);
    assert_eq!(store(&mut apic, 0x300, 0x0004_0070), Effect::Pending);
    assert_eq!(apic.deliverable(), Some(0x70));
    assert_eq!(store(&mut apic, 0x300, 0x0004_0400), Effect::None, "NMI to self is invalid");
    let mut apic = x2apic(1);
    assert_eq!(wrmsr(&mut apic, 0x83f, 0x71), Ok(Effect::Pending));
    assert_eq!(apic.deliverable(), Some(0x71));
    assert_eq!(apic.write_icr(0x0004_0072), Ok(Effect::Pending));
    assert_eq!(apic.deliverable(), Some(0x72));
    assert_eq!(wrmsr(&mut apic, 0x83f, 0x171), Err(Gp));
    assert_eq!(rdmsr(&mut apic, 0x83f), Err(Gp));
}

#[test]
fn x2apic_commands() {
    let mut apic = x2apic(1);
    let command = ipi(wrmsr(&mut apic, 0x830, 0x1234_5678_0000_09d1).unwrap());
    assert_eq!(command.message.destination.id, 0x1234_5678);
    assert_eq!(command.message.destination.mode, DestinationMode::Logical);
    assert_eq!(command.message.mode, DeliveryMode::LowestPriority);
    assert_eq!(rdmsr(&mut apic, 0x830), Ok(0x1234_5678_0000_09d1));
    for reserved in [13, 16, 17, 20, 31] {
        assert_eq!(apic.write_icr(1 << reserved | 0x40), Err(Gp), "bit {reserved}");
    }
    assert!(apic.write_icr(1 << 12 | 0x40).is_ok(), "delivery status is ignored");
    assert_eq!(rdmsr(&mut apic, 0x830), Ok(0x40));
}

#[test]
fn illegal_vectors_are_not_sent() {
    let mut apic = x2apic(1);
    assert_eq!(apic.write_icr(0x0f), Ok(Effect::Pending));
    let _ = wrmsr(&mut apic, 0x828, 0);
    assert_eq!(rdmsr(&mut apic, 0x828), Ok(u64::from(Esr::SEND_ILLEGAL_VECTOR.bits())));
}

fn logical(id: u8) -> Destination {
    Destination::from_xapic(id, DestinationMode::Logical)
}

#[test]
fn flat_and_cluster() {
    let mut apic = xapic(3);
    let _ = store(&mut apic, 0xd0, 0x0812_3456);
    assert_eq!(load(&mut apic, 0xd0), 0x0800_0000);
    assert!(apic.identity().matches(logical(0x0f)));
    assert!(!apic.identity().matches(logical(0xf7)));
    assert!(apic.identity().matches(logical(0xff)));
    assert_eq!(store(&mut apic, 0xe0, 0), Effect::IdentityChanged);
    assert_eq!(load(&mut apic, 0xe0), 0x0fff_ffff);
    let _ = store(&mut apic, 0xd0, 0x2400_0000);
    assert!(apic.identity().matches(logical(0x2c)));
    assert!(!apic.identity().matches(logical(0x1c)), "another cluster");
    assert!(!apic.identity().matches(logical(0x23)));
    assert!(apic.identity().matches(Destination::from_xapic(3, DestinationMode::Physical)));
    assert!(!apic.identity().matches(Destination::from_xapic(4, DestinationMode::Physical)));
    assert!(apic.identity().matches(Destination::from_xapic(255, DestinationMode::Physical)));
}

#[test]
fn x2apic_logical() {
    let mut apic = x2apic(0x25);
    assert_eq!(rdmsr(&mut apic, 0x80d), Ok(0x0002_0020));
    let to = |id| Destination::from_x2apic(id, DestinationMode::Logical);
    assert!(apic.identity().matches(to(0x0002_0021)));
    assert!(!apic.identity().matches(to(0x0002_001f)));
    assert!(!apic.identity().matches(to(0x0003_0020)));
    assert!(apic.identity().matches(to(u32::MAX)));
    assert!(!apic.identity().matches(to(0x0002_0000)));
    let physical = |id| Destination::from_x2apic(id, DestinationMode::Physical);
    assert!(apic.identity().matches(physical(0x25)));
    assert!(!apic.identity().matches(physical(0x125)));
    assert!(!apic.identity().matches(physical(0xff)), "no broadcast in 32 bits");
}

#[test]
fn identities_pack() {
    let apic = x2apic(0x1_0007);
    let identity = apic.identity();
    assert_eq!(identity.id(), 0x1_0007);
    assert_eq!(identity.mode(), ApicMode::X2Apic);
    assert!(identity.software_enabled());
    assert_eq!(ApicIdentity::from_bits(identity.into_bits()), identity);
    assert!(!ApicIdentity::new().matches(logical(0xff)), "an absent APIC matches nothing");
}

#[test]
fn arbitration() {
    let with = |priority| {
        ApicIdentity::new()
            .with_mode(ApicMode::XApic)
            .with_software_enabled(true)
            .with_priority(priority)
    };
    let set = [(0, with(0x20)), (1, with(0x1f)), (2, with(0x10)), (5, with(0x30))];
    assert_eq!(arbitrate(set.into_iter(), 0), Some(1), "sub-classes do not count");
    assert_eq!(arbitrate(set.into_iter(), 2), Some(2));
    assert_eq!(arbitrate(set.into_iter(), 3), Some(1), "the turn wraps");
    let off = with(0).with_software_enabled(false);
    assert_eq!(arbitrate([(0, off), (1, with(0xff))].into_iter(), 0), Some(1));
    assert_eq!(arbitrate([(0, off)].into_iter(), 0), None);
}

#[test]
fn message_signalled() {
    let message = InterruptMessage::from_msi(0xfee0_2000, 0x4031).unwrap();
    assert_eq!(message.destination, Destination { id: 2, mode: DestinationMode::Physical });
    assert_eq!((message.mode, message.vector), (DeliveryMode::Fixed, 0x31));
    assert_eq!(message.trigger, Trigger::Edge);
    let message = InterruptMessage::from_msi(0xfee0_300c, 0xc141).unwrap();
    assert_eq!(message.destination, logical(3));
    assert_eq!((message.mode, message.trigger), (DeliveryMode::LowestPriority, Trigger::Level));
    assert_eq!(InterruptMessage::from_msi(0xfed0_0000, 0), None);
    assert_eq!(InterruptMessage::from_msi(0x1_fee0_0000, 0), None);
}
