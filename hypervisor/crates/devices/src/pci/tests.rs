use super::*;
use crate::testing::{Subject, device_properties};

const NOW: Nanos = Nanos(0);
const CARD: Identity = Identity {
    vendor: 0x1af4,
    device: 0x1041,
    class: 0x02_00_01,
    revision: 1,
    subsystem_vendor: 0x1234,
    subsystem: 0x5678,
};

fn card() -> ConfigSpace {
    let mut config = ConfigSpace::new(CARD);
    config.add_bar(0, Bar::Io { size: 32 }).unwrap();
    config.add_bar(1, Bar::Memory32 { size: 0x1000, prefetchable: false }).unwrap();
    config.add_bar(4, Bar::Memory64 { size: 0x4000, prefetchable: true }).unwrap();
    config.set_interrupt_pin(1);
    config
}

fn bus() -> PciBus<ConfigSpace> {
    let mut bus = PciBus::new();
    bus.add(DevFn::new(3, 0).unwrap(), card()).unwrap();
    bus
}

fn select(bus: &mut PciBus<ConfigSpace>, address: u32) {
    bus.port_write(0, Width::B4, address, NOW).unwrap();
}

fn read(bus: &mut PciBus<ConfigSpace>, address: u32) -> u32 {
    select(bus, address);
    bus.port_read(4, Width::B4, NOW).unwrap()
}

#[test]
fn address_register() {
    let mut bus = bus();
    select(&mut bus, 0x8000_0000);
    assert_eq!(bus.port_read(0, Width::B4, NOW), Ok(0x8000_0000));
    select(&mut bus, 0xffff_ffff);
    assert_eq!(bus.port_read(0, Width::B4, NOW), Ok(0x80ff_fffc));
    // Only as four bytes: the rest is other devices'.
    for (offset, width) in [(0, Width::B1), (0, Width::B2), (1, Width::B1), (2, Width::B2)] {
        assert_eq!(bus.port_read(offset, width, NOW), Err(AccessError::NoRegister));
        assert_eq!(bus.port_write(offset, width, 0, NOW), Err(AccessError::NoRegister));
    }
    assert_eq!(bus.port_read(0, Width::B4, NOW), Ok(0x80ff_fffc));
    assert_eq!(bus.port_read(8, Width::B1, NOW), Err(AccessError::NoRegister));
    assert_eq!(bus.port_read(0, Width::B8, NOW), Err(AccessError::Width));
}

#[test]
fn data_register_needs_the_enable_bit() {
    let mut bus = bus();
    select(&mut bus, 0x0000_1800);
    assert_eq!(bus.selected(), None);
    assert_eq!(bus.port_read(4, Width::B4, NOW), Err(AccessError::NoRegister));
    assert_eq!(bus.port_write(4, Width::B4, 0, NOW), Err(AccessError::NoRegister));
}

#[test]
fn host_bridge_card_and_nothing() {
    let mut bus = bus();
    assert_eq!(read(&mut bus, 0x8000_0000), 0x1237_8086);
    assert_eq!(read(&mut bus, 0x8000_0008), 0x0600_0002);
    assert_eq!(read(&mut bus, 0x8000_1800), 0x1041_1af4);
    assert_eq!(bus.selected(), DevFn::new(3, 0));
    assert_eq!(read(&mut bus, 0x8000_182c), 0x5678_1234);
    for absent in [0x8000_0100, 0x8000_1900, 0x8000_2000, 0x8001_1800] {
        assert_eq!(read(&mut bus, absent), u32::MAX);
        assert_eq!(bus.port_read(5, Width::B1, NOW), Ok(0xff));
        assert_eq!(bus.port_read(6, Width::B2, NOW), Ok(0xffff));
        bus.port_write(4, Width::B4, 0, NOW).unwrap();
    }
    assert_eq!(read(&mut bus, 0x8000_0000), 0x1237_8086);
}

#[test]
fn every_width_and_lane() {
    let mut bus = bus();
    select(&mut bus, 0x8000_1808);
    let bytes = [4, 5, 6, 7].map(|offset| bus.port_read(offset, Width::B1, NOW).unwrap());
    assert_eq!(bytes, [0x01, 0x01, 0x00, 0x02]);
    assert_eq!(bus.port_read(4, Width::B2, NOW), Ok(0x0101));
    assert_eq!(bus.port_read(5, Width::B2, NOW), Ok(0x0001));
    assert_eq!(bus.port_read(6, Width::B2, NOW), Ok(0x0200));
    assert_eq!(bus.port_read(7, Width::B2, NOW), Err(AccessError::Width));
    assert_eq!(bus.port_read(5, Width::B4, NOW), Err(AccessError::Width));
    select(&mut bus, 0x8000_183c);
    bus.port_write(4, Width::B1, 0x0b, NOW).unwrap();
    bus.port_write(5, Width::B1, 0x04, NOW).unwrap();
    assert_eq!(bus.port_read(4, Width::B4, NOW), Ok(0x0000_010b), "the pin is fixed");
    select(&mut bus, 0x8000_1804);
    bus.port_write(5, Width::B1, 0xff, NOW).unwrap();
    assert_eq!(bus.port_read(4, Width::B2, NOW), Ok(0x0500));
}

#[test]
fn places() {
    assert_eq!(DevFn::new(32, 0), None);
    assert_eq!(DevFn::new(0, 8), None);
    let place = DevFn::new(31, 7).unwrap();
    assert_eq!((place.device(), place.function()), (31, 7));
    let mut bus = bus();
    assert!(bus.add(DevFn::HOST_BRIDGE, card()).is_err());
    assert!(bus.add(DevFn::new(3, 0).unwrap(), card()).is_err());
    assert!(bus.add(place, card()).is_ok());
    assert_eq!(read(&mut bus, 0x8000_ff00), 0x1041_1af4);
    assert_eq!(bus.functions_mut().count(), 2);
    assert!(bus.function_mut(place).is_some());
    let mut boxed: PciBus<Box<dyn PciFunction>> = PciBus::new();
    assert!(boxed.add(place, Box::new(card())).is_ok());
    assert_eq!(boxed.config_read(place, 0, Width::B2), 0x1af4);
    boxed.config_write(place, 0x3c, Width::B1, 5);
    assert_eq!(boxed.config_read(place, 0x3c, Width::B1), 5);
}

#[test]
fn bars_tell_their_size() {
    let mut config = card();
    for (offset, reset, sized) in [
        (0x10, 1, 0xffff_ffe1),
        (0x14, 0, 0xffff_f000),
        (0x18, 0, 0),
        (0x1c, 0, 0),
        (0x20, 0xc, 0xffff_c00c),
        (0x24, 0, 0xffff_ffff),
    ] {
        assert_eq!(config.config_read(offset, Width::B4), reset);
        let _ = config.config_write(offset, Width::B4, u32::MAX);
        assert_eq!(config.config_read(offset, Width::B4), sized, "{offset:#x}");
    }
}

#[test]
fn bars_are_where_the_guest_puts_them() {
    let mut config = card();
    let _ = config.config_write(0x10, Width::B4, 0xc07f);
    let _ = config.config_write(0x14, Width::B4, 0xfebf_1fff);
    let _ = config.config_write(0x20, Width::B4, 0x1234_7fff);
    let _ = config.config_write(0x24, Width::B4, 0x40);
    assert_eq!((config.bar_range(0), config.bar_range(1), config.bar_range(4)), (None, None, None));
    let _ = config.config_write(4, Width::B2, 1);
    assert_eq!(config.bar_range(0), Some(BarRange::Io { base: 0xc060, size: 32 }));
    assert_eq!(config.bar_range(1), None);
    let _ = config.config_write(4, Width::B2, 2);
    assert_eq!(config.bar_range(0), None);
    let memory = |base, size| Some(BarRange::Memory { base, size });
    assert_eq!(config.bar_range(1), memory(0xfebf_1000, 0x1000));
    assert_eq!(config.bar_range(4), memory(0x40_1234_4000, 0x4000));
    assert_eq!((config.bar_range(2), config.bar_range(5), config.bar_range(6)), (None, None, None));
    // Ports beyond the last are nowhere; the top of memory is.
    let _ = config.config_write(4, Width::B2, 3);
    let _ = config.config_write(0x10, Width::B4, 0x1_0000);
    assert_eq!(config.bar_range(0), None);
    let _ = config.config_write(0x20, Width::B4, u32::MAX);
    let _ = config.config_write(0x24, Width::B4, u32::MAX);
    assert_eq!(config.bar_range(4), memory(0xffff_ffff_ffff_c000, 0x4000));
}

#[test]
fn wrong_layouts_are_refused() {
    let mut config = card();
    let memory = |size| Bar::Memory32 { size, prefetchable: false };
    assert_eq!(config.add_bar(0, memory(16)), Err(LayoutError::Bar));
    assert_eq!(config.add_bar(5, memory(16)), Err(LayoutError::Bar), "the upper half of 4");
    assert_eq!(config.add_bar(6, memory(16)), Err(LayoutError::Bar));
    assert_eq!(config.add_bar(2, memory(24)), Err(LayoutError::Size));
    assert_eq!(config.add_bar(2, memory(8)), Err(LayoutError::Size));
    assert_eq!(config.add_bar(2, Bar::Io { size: 512 }), Err(LayoutError::Size));
    let wide = Bar::Memory64 { size: 16, prefetchable: false };
    assert_eq!(config.add_bar(3, wide), Err(LayoutError::Bar));
    assert_eq!(config.add_bar(2, wide), Ok(()));
    assert_eq!(config.add_capability(9, &[0], &[]), Err(LayoutError::Mask));
    assert_eq!(config.add_capability(9, &[0; 191], &[0; 191]), Err(LayoutError::Room));
    assert_eq!(config.add_capability(9, &[0; 190], &[0; 190]), Ok(0x40));
    assert_eq!(config.add_capability(9, &[], &[]), Err(LayoutError::Room));
}

#[test]
fn capabilities_are_a_list() {
    let mut config = card();
    assert_eq!(config.config_read(6, Width::B2) & 0x10, 0);
    assert_eq!(config.add_capability(0x11, &[1, 2, 3], &[0, 0xf0, 0]), Ok(0x40));
    assert_eq!(config.add_capability(0x09, &[4; 6], &[0; 6]), Ok(0x48));
    assert_eq!(config.config_read(6, Width::B2) & 0x10, 0x10);
    assert_eq!(config.config_read(0x34, Width::B1), 0x40);
    assert_eq!(config.config_read(0x40, Width::B4), 0x0201_4811);
    assert_eq!(config.config_read(0x48, Width::B4), 0x0404_0009);
    let _ = config.config_write(0x40, Width::B4, u32::MAX);
    assert_eq!(config.config_read(0x40, Width::B4), 0xf201_4811);
    config.reset();
    assert_eq!(config.config_read(0x40, Width::B4), 0x0201_4811);
}

#[test]
fn status_bits() {
    let mut config = card();
    config.set_value(6, Width::B2, 0xf908);
    let _ = config.config_write(6, Width::B2, 0x8008);
    assert_eq!(config.config_read(6, Width::B2), 0x7908, "ones clear the error bits alone");
    config.set_interrupt_status(false);
    assert_eq!(config.config_read(6, Width::B2), 0x7900);
    config.set_interrupt_status(true);
    assert_eq!(config.config_read(6, Width::B2), 0x7908);
    config.set_multifunction();
    assert_eq!(config.config_read(0x0e, Width::B1), 0x80);
}

#[test]
fn another_devices_state_is_refused() {
    let mut config = card();
    let _ = config.config_write(0x14, Width::B4, 0xfebf_1000);
    config.set_interrupt_status(true);
    let saved = config.save();
    let mut other = ConfigSpace::new(Identity { device: 0x1042, ..CARD });
    assert!(other.restore(saved.clone()).is_err());
    let mut same = card();
    same.restore(saved.clone()).unwrap();
    assert_eq!(same.save(), saved);
    let mut bus = bus();
    let state = PciBusState { address: 1, ..bus.save() };
    assert!(bus.restore(state).is_err());
}

impl Subject for PciBus<ConfigSpace> {
    fn fresh() -> Self {
        Self::new()
    }

    /// Aims at the host bridge's registers.
    fn act(&mut self, what: u8, value: u32, now: Nanos) -> u64 {
        let address = 0x8000_0000 | value & 0xfc;
        self.port_write(0, Width::B4, address, now).unwrap();
        self.config_write(DevFn::HOST_BRIDGE, what & 0xfc, Width::B4, value);
        0
    }

    fn look(&self) -> u64 {
        self.selected().map_or(u64::MAX, |place| place.device().into())
    }
}

device_properties!(PciBus<ConfigSpace>, 8);

#[test]
fn the_state_of_a_configuration_space_is_laid_out_as_it_was() {
    state::golden::check(env!("CARGO_MANIFEST_DIR"), || {
        let mut config = card();
        let _ = config.config_write(header::COMMAND, Width::B2, 7);
        let _ = config.config_write(header::BAR0, Width::B4, 0xc000);
        config.save()
    });
}
