use super::*;
use crate::testing::{Subject, device_properties};

const NOW: Nanos = Nanos(0);

fn read(pic: &mut PicPair, offset: u16) -> u8 {
    u8::try_from(pic.port_read(offset, Width::B1, NOW).unwrap()).unwrap()
}

fn write(pic: &mut PicPair, offset: u16, value: u8) {
    pic.port_write(offset, Width::B1, value.into(), NOW).unwrap();
}

/// Initialized as a PC's operating system does it: vectors 0x30 and 0x38.
fn set_up_with(icw4: [u8; 2]) -> PicPair {
    let mut pic = PicPair::new();
    for (base, words) in [(0, [0x11, 0x30, 0x04, icw4[0]]), (2, [0x11, 0x38, 0x02, icw4[1]])] {
        write(&mut pic, base, words[0]);
        words[1..].iter().for_each(|&word| write(&mut pic, base + 1, word));
    }
    pic
}

fn set_up() -> PicPair {
    set_up_with([0x01, 0x01])
}

fn isr(pic: &mut PicPair, base: u16) -> u8 {
    write(pic, base, 0x0b);
    read(pic, base)
}

fn irr(pic: &mut PicPair, base: u16) -> u8 {
    write(pic, base, 0x0a);
    read(pic, base)
}

#[test]
fn masked_until_initialized() {
    let mut pic = PicPair::new();
    for line in 0..16 {
        pic.set_irq(line, true);
    }
    assert!(!pic.output());
    // The mask can be read back, which is how an operating system looks for it.
    write(&mut pic, 1, 0xfb);
    assert_eq!(read(&mut pic, 1), 0xfb);
}

#[test]
fn only_bytes_are_served() {
    let mut pic = PicPair::new();
    assert_eq!(pic.port_read(0, Width::B2, NOW), Err(AccessError::Width));
    assert_eq!(pic.port_write(0, Width::B2, 0, NOW), Err(AccessError::Width));
    assert_eq!(pic.port_read(6, Width::B1, NOW), Err(AccessError::NoRegister));
    assert_eq!(pic.port_write(6, Width::B1, 0, NOW), Err(AccessError::NoRegister));
}

#[test]
fn every_line_has_its_vector() {
    for line in (0..16).filter(|&line| line != 2) {
        let mut pic = set_up();
        pic.set_irq(line, true);
        assert!(pic.output());
        assert_eq!(pic.acknowledge(), 0x30 + line);
        assert!(!pic.output());
        if line >= 8 {
            assert_eq!(isr(&mut pic, 2), 1 << (line - 8));
            assert_eq!(isr(&mut pic, 0), 0x04);
        } else {
            assert_eq!(isr(&mut pic, 0), 1 << line);
        }
    }
}

#[test]
fn an_edge_interrupts_once() {
    let mut pic = set_up();
    pic.set_irq(4, true);
    pic.set_irq(4, true);
    assert_eq!(pic.acknowledge(), 0x34);
    write(&mut pic, 0, 0x20);
    assert!(!pic.output());
    pic.set_irq(4, false);
    pic.set_irq(4, true);
    assert!(pic.output());
}

#[test]
fn a_level_interrupts_until_it_falls() {
    let mut pic = set_up();
    write(&mut pic, 4, 0xff);
    write(&mut pic, 5, 0xff);
    assert_eq!((read(&mut pic, 4), read(&mut pic, 5)), (0xf8, 0xde));
    for line in [5, 11] {
        pic.set_irq(line, true);
        for _ in 0..3 {
            assert_eq!(pic.acknowledge(), 0x30 + line);
            assert!(!pic.output());
            write(&mut pic, 2, 0x20);
            write(&mut pic, 0, 0x20);
            assert!(pic.output());
        }
        pic.set_irq(line, false);
        assert!(!pic.output());
    }
}

#[test]
fn level_mode_of_icw1_holds_for_all_inputs() {
    let mut pic = set_up();
    write(&mut pic, 0, 0x19);
    for word in [0x30, 0x04, 0x01] {
        write(&mut pic, 1, word);
    }
    pic.set_irq(0, true);
    for _ in 0..2 {
        assert_eq!(pic.acknowledge(), 0x30);
        write(&mut pic, 0, 0x20);
    }
    assert!(pic.output());
}

#[test]
fn a_request_that_goes_is_spurious() {
    let mut pic = set_up();
    pic.set_irq(3, true);
    pic.set_irq(3, false);
    assert!(!pic.output());
    assert_eq!(pic.acknowledge(), 0x37);
    assert_eq!(isr(&mut pic, 0), 0, "nothing is in service after a spurious interrupt");
}

#[test]
fn the_slaves_spurious_interrupt_is_15() {
    let mut pic = set_up();
    pic.set_irq(9, true);
    // The slave's request goes after the master was acknowledged.
    pic.slave.set_line(1, false);
    assert_eq!(pic.acknowledge(), 0x3f);
    assert_eq!((isr(&mut pic, 0), isr(&mut pic, 2)), (0x04, 0));
}

#[test]
fn a_pulse_stays_until_acknowledged() {
    let mut pic = set_up();
    write(&mut pic, 1, 0x01);
    pic.pulse_irq(0);
    pic.pulse_irq(0);
    assert!(!pic.output());
    assert_eq!(irr(&mut pic, 0), 0x01);
    write(&mut pic, 1, 0x00);
    assert_eq!(pic.acknowledge(), 0x30);
    write(&mut pic, 0, 0x20);
    assert!(!pic.output());
    pic.pulse_irq(2);
    pic.pulse_irq(16);
    assert!(!pic.output());
    pic.pulse_irq(14);
    assert_eq!(pic.acknowledge(), 0x3e);
}

#[test]
fn priority_and_nesting() {
    let mut pic = set_up();
    pic.set_irq(5, true);
    pic.set_irq(3, true);
    assert_eq!(pic.acknowledge(), 0x33);
    assert!(!pic.output(), "5 ranks below 3");
    pic.set_irq(1, true);
    assert_eq!(pic.acknowledge(), 0x31);
    assert_eq!(isr(&mut pic, 0), 0x0a);
    write(&mut pic, 0, 0x20); // ends the most urgent: 1
    assert_eq!(isr(&mut pic, 0), 0x08);
    write(&mut pic, 0, 0x63); // specific: 3
    assert_eq!(isr(&mut pic, 0), 0);
    assert_eq!(pic.acknowledge(), 0x35);
    write(&mut pic, 0, 0x64); // specific, of one not in service
    assert_eq!(isr(&mut pic, 0), 0x20);
}

#[test]
fn slave_lines_rank_as_input_2() {
    let mut pic = set_up();
    pic.set_irq(3, true);
    pic.set_irq(15, true);
    assert_eq!(pic.acknowledge(), 0x3f);
    pic.set_irq(8, true);
    assert!(!pic.output(), "without special nesting the slave waits for itself");
    write(&mut pic, 2, 0x20);
    assert!(!pic.output(), "and for the master's own end of interrupt");
    write(&mut pic, 0, 0x20);
    assert_eq!(pic.acknowledge(), 0x38);
}

#[test]
fn special_fully_nested_mode_lets_the_slave_nest() {
    let mut pic = set_up_with([0x11, 0x01]);
    pic.set_irq(12, true);
    assert_eq!(pic.acknowledge(), 0x3c);
    pic.set_irq(3, true);
    assert!(!pic.output(), "3 still ranks below the slave");
    pic.set_irq(14, true);
    assert!(!pic.output(), "14 ranks below 12 in the slave");
    pic.set_irq(9, true);
    assert!(pic.output());
    assert_eq!(pic.acknowledge(), 0x39);
    assert_eq!(isr(&mut pic, 2), 0x12);
}

#[test]
fn automatic_end_of_interrupt() {
    let mut pic = set_up_with([0x03, 0x03]);
    pic.set_irq(8, true);
    pic.set_irq(9, true);
    pic.set_irq(4, true);
    assert_eq!(pic.acknowledge(), 0x38);
    assert_eq!((isr(&mut pic, 0), isr(&mut pic, 2)), (0, 0));
    assert_eq!(pic.acknowledge(), 0x39);
    assert_eq!(pic.acknowledge(), 0x34);
    assert!(!pic.output());
}

#[test]
fn rotation() {
    let mut pic = set_up();
    write(&mut pic, 0, 0xc3); // 3 has the lowest priority, 4 the highest
    pic.set_irq(3, true);
    pic.set_irq(0, true);
    pic.set_irq(4, true);
    assert_eq!(pic.acknowledge(), 0x34);
    write(&mut pic, 0, 0xa0); // end of interrupt, 4 becomes the lowest
    assert_eq!(pic.acknowledge(), 0x30);
    write(&mut pic, 0, 0xe1); // ends 1, which is not in service; 1 the lowest
    assert_eq!(isr(&mut pic, 0), 0x01);
    assert!(pic.output(), "3 ranks above 0 now");
    assert_eq!(pic.acknowledge(), 0x33);
    write(&mut pic, 0, 0x20);
    assert_eq!(isr(&mut pic, 0), 0x01);
    write(&mut pic, 0, 0x40); // no operation
    assert_eq!(isr(&mut pic, 0), 0x01);
}

#[test]
fn rotation_with_automatic_end_of_interrupt() {
    let mut pic = set_up_with([0x03, 0x01]);
    write(&mut pic, 4, 0xf8);
    pic.set_irq(5, true);
    pic.set_irq(6, true);
    assert_eq!((pic.acknowledge(), pic.acknowledge()), (0x35, 0x35));
    write(&mut pic, 0, 0x80);
    let taken: [u8; 4] = core::array::from_fn(|_| pic.acknowledge());
    assert_eq!(taken, [0x35, 0x36, 0x35, 0x36]);
    write(&mut pic, 0, 0x00);
    assert_eq!((pic.acknowledge(), pic.acknowledge()), (0x35, 0x35));
}

#[test]
fn special_mask_mode_lets_lower_inputs_through() {
    let mut pic = set_up();
    pic.set_irq(1, true);
    assert_eq!(pic.acknowledge(), 0x31);
    pic.set_irq(6, true);
    assert!(!pic.output());
    write(&mut pic, 1, 0x02);
    assert!(!pic.output());
    write(&mut pic, 0, 0x68);
    assert_eq!(pic.acknowledge(), 0x36);
    // A non-specific end passes over the masked one.
    write(&mut pic, 0, 0x20);
    assert_eq!(isr(&mut pic, 0), 0x02);
    write(&mut pic, 0, 0x20);
    assert_eq!(isr(&mut pic, 0), 0x02);
    write(&mut pic, 0, 0x61);
    assert_eq!(isr(&mut pic, 0), 0);
    // Without the enable bit the mode stays; with it, it is left.
    write(&mut pic, 0, 0x08);
    assert!(pic.master.special_mask());
    write(&mut pic, 0, 0x48);
    assert!(!pic.master.special_mask());
}

#[test]
fn poll_acknowledges() {
    let mut pic = set_up();
    write(&mut pic, 0, 0x0c);
    assert_eq!(read(&mut pic, 0), 0x07);
    pic.set_irq(10, true);
    write(&mut pic, 0, 0x0c);
    assert_eq!(read(&mut pic, 1), 0x82, "at either port");
    assert_eq!(read(&mut pic, 1), 0x00, "once only");
    write(&mut pic, 2, 0x0c);
    assert_eq!(read(&mut pic, 2), 0x82);
    assert_eq!((isr(&mut pic, 0), isr(&mut pic, 2)), (0x04, 0x04));
    assert_eq!(irr(&mut pic, 0), 0);
}

#[test]
fn initialization_resets_what_the_data_sheet_says() {
    let mut pic = set_up();
    pic.set_irq(3, true);
    pic.set_irq(6, true);
    pic.acknowledge();
    write(&mut pic, 1, 0xff);
    write(&mut pic, 0, 0xc2);
    write(&mut pic, 0, 0x6b);
    write(&mut pic, 0, 0x11);
    assert!(!pic.output());
    assert_eq!(read(&mut pic, 0), 0, "IRR is selected, and no edge is left");
    assert_eq!(read(&mut pic, 1), 0, "the mask is clear");
    for word in [0x50, 0x04, 0x01] {
        write(&mut pic, 1, word);
    }
    assert!(!pic.output(), "an input that is high must fall first");
    pic.set_irq(6, false);
    pic.set_irq(6, true);
    pic.set_irq(0, true);
    assert_eq!(pic.acknowledge(), 0x50);
}

#[test]
fn shorter_initializations() {
    let mut pic = set_up();
    // Single, no ICW4: ICW2 alone; MCS-80/85 with 4-byte intervals.
    write(&mut pic, 0, 0x16 | 0xa0);
    write(&mut pic, 1, 0x12);
    write(&mut pic, 1, 0xf0);
    assert_eq!(read(&mut pic, 1), 0xf0);
    pic.set_irq(3, true);
    assert_eq!(pic.acknowledge(), 0xa0 | 3 << 2);
    write(&mut pic, 0, 0x12 | 0xc0);
    write(&mut pic, 1, 0x12);
    pic.pulse_irq(1);
    assert_eq!(pic.acknowledge(), 0xc0 | 1 << 3);
}

#[test]
fn a_cascade_that_is_told_wrong() {
    // The slave does not know its number: nobody answers.
    let mut pic = set_up();
    write(&mut pic, 2, 0x11);
    for word in [0x38, 0x05, 0x01] {
        write(&mut pic, 3, word);
    }
    pic.set_irq(8, true);
    assert_eq!(pic.acknowledge(), 0xff);
    // The master does not know of the slave: it answers itself.
    let mut pic = set_up();
    write(&mut pic, 0, 0x11);
    for word in [0x30, 0x00, 0x01] {
        write(&mut pic, 1, word);
    }
    pic.set_irq(8, true);
    assert_eq!(pic.acknowledge(), 0x32);
}

#[test]
fn masking_a_slave_line_withdraws_its_request() {
    let mut pic = set_up();
    pic.set_irq(13, true);
    assert!(pic.output());
    write(&mut pic, 3, 0x20);
    assert!(!pic.output());
    write(&mut pic, 3, 0x00);
    assert_eq!(pic.acknowledge(), 0x3d);
}

#[test]
fn reset_masks_all_and_sees_no_edge() {
    let mut pic = set_up();
    pic.set_irq(5, true);
    pic.set_irq(9, true);
    pic.reset();
    assert!(!pic.output());
    assert_eq!((read(&mut pic, 1), read(&mut pic, 3)), (0xff, 0xff));
    assert_eq!((irr(&mut pic, 0), irr(&mut pic, 2)), (0, 0));
}

#[test]
fn impossible_states_are_refused() {
    let mut pic = set_up();
    let good = pic.save();
    for change in [(0, 8), (1, 1)] {
        let mut value = serde_json::to_value(&good).unwrap();
        let key = if change.0 == 0 { "lowest" } else { "level" };
        value["slave"][key] = change.1.into();
        assert!(pic.restore(serde_json::from_value(value).unwrap()).is_err());
        assert_eq!(pic.save(), good);
    }
}

impl Subject for PicPair {
    fn fresh() -> Self {
        Self::new()
    }

    fn act(&mut self, what: u8, value: u32, _now: Nanos) -> u64 {
        let line = value.low8() % 17;
        match what % 5 {
            0 => return self.acknowledge().into(),
            1 => self.set_irq(line, false),
            2 => self.pulse_irq(line),
            _ => self.set_irq(line, true),
        }
        0
    }

    fn look(&self) -> u64 {
        self.output().into()
    }
}

device_properties!(PicPair, 6);
