use super::*;
use crate::testing::{Subject, device_properties};

const NOW: Nanos = Nanos(1_000_000);

fn read(uart: &mut Uart, offset: u16) -> u8 {
    u8::try_from(uart.port_read(offset, Width::B1, NOW).unwrap()).unwrap()
}

fn write(uart: &mut Uart, offset: u16, value: u8) {
    uart.port_write(offset, Width::B1, value.into(), NOW).unwrap();
}

/// 8N1 at 115,200 baud, FIFOs on with a trigger of 8, interrupts let through.
fn set_up(ier: u8) -> Uart {
    let mut uart = Uart::new();
    write(&mut uart, 3, 0x83);
    write(&mut uart, 0, 1);
    write(&mut uart, 1, 0);
    write(&mut uart, 3, 0x03);
    write(&mut uart, 2, 0x87);
    write(&mut uart, 4, 0x0b);
    write(&mut uart, 1, ier);
    uart
}

#[test]
fn after_reset() {
    let mut uart = Uart::new();
    assert_eq!(read(&mut uart, 1), 0);
    assert_eq!(read(&mut uart, 2), 0x01);
    assert_eq!(read(&mut uart, 3), 0);
    assert_eq!(read(&mut uart, 4), 0);
    assert_eq!(read(&mut uart, 5), 0x60);
    assert_eq!(read(&mut uart, 6), 0xb0);
    assert!(!uart.irq());
}

#[test]
fn only_bytes_are_served() {
    let mut uart = Uart::new();
    assert_eq!(uart.port_read(0, Width::B2, NOW), Err(AccessError::Width));
    assert_eq!(uart.port_read(8, Width::B1, NOW), Err(AccessError::NoRegister));
    assert_eq!(uart.port_write(0, Width::B4, 0, NOW), Err(AccessError::Width));
    assert_eq!(uart.port_write(8, Width::B1, 0, NOW), Err(AccessError::NoRegister));
}

#[test]
fn divisor_hides_data_and_enable_registers() {
    let mut uart = set_up(0x01);
    write(&mut uart, 3, 0x83);
    assert_eq!((read(&mut uart, 0), read(&mut uart, 1)), (1, 0));
    write(&mut uart, 0, 0x34);
    write(&mut uart, 1, 0x12);
    assert_eq!((read(&mut uart, 0), read(&mut uart, 1)), (0x34, 0x12));
    write(&mut uart, 3, 0x03);
    assert_eq!(read(&mut uart, 1), 0x01);
    assert!(!uart.has_output());
}

#[test]
fn character_time_follows_the_line_settings() {
    let mut uart = set_up(0);
    assert_eq!(uart.character_time(), Nanos(86_805)); // 10 bits at 115,200
    write(&mut uart, 3, 0x1f); // 8 bits, parity, 2 stop bits: 12 bits
    assert_eq!(uart.character_time(), Nanos(104_166));
    write(&mut uart, 3, 0x04); // 5 bits, 1.5 stop bits: 7.5 bits
    assert_eq!(uart.character_time(), Nanos(65_104));
    write(&mut uart, 3, 0x80);
    write(&mut uart, 0, 0); // a divisor of 0 is 65,536: 7 bits of 568,888 ns
    write(&mut uart, 3, 0x00);
    assert_eq!(uart.character_time().0, 7 * 65_536 * 1_000_000_000 / 115_200);
}

#[test]
fn scratch_and_unused_bits() {
    let mut uart = Uart::new();
    write(&mut uart, 7, 0xa5);
    assert_eq!(read(&mut uart, 7), 0xa5);
    write(&mut uart, 1, 0xf0);
    assert_eq!(read(&mut uart, 1), 0);
    write(&mut uart, 4, 0xe0);
    assert_eq!(read(&mut uart, 4), 0);
    write(&mut uart, 5, 0xff);
    write(&mut uart, 6, 0xff);
    assert_eq!(read(&mut uart, 5), 0x60);
}

#[test]
fn transmitter_interrupt_arms_and_clears() {
    let mut uart = set_up(0);
    // Enabling it while the transmitter is empty raises it, each time anew.
    for _ in 0..2 {
        write(&mut uart, 1, 0x02);
        assert!(uart.irq());
        assert_eq!(read(&mut uart, 2), 0xc2);
        // Reading the identification clears it.
        assert!(!uart.irq());
        assert_eq!(read(&mut uart, 2), 0xc1);
        // Enabling what is enabled does not.
        write(&mut uart, 1, 0x02);
        assert!(!uart.irq());
        write(&mut uart, 1, 0x00);
    }
    write(&mut uart, 1, 0x02);
    // Writing a character clears it; it comes back when the last one has left.
    write(&mut uart, 0, b'a');
    write(&mut uart, 0, b'b');
    assert!(!uart.irq());
    assert_eq!(read(&mut uart, 5), 0x00);
    assert_eq!(uart.take_output(), Some(b'a'));
    assert!(!uart.irq());
    assert_eq!(uart.take_output(), Some(b'b'));
    assert!(uart.irq());
    assert_eq!(read(&mut uart, 5), 0x60);
    assert_eq!(uart.take_output(), None);
}

#[test]
fn full_transmitter_drops_or_overwrites() {
    let mut uart = set_up(0);
    for byte in 0..20 {
        write(&mut uart, 0, byte);
    }
    let mut out = [0; 32];
    assert_eq!(uart.drain_output(&mut out), 16);
    assert_eq!(out[..16], core::array::from_fn::<u8, 16, _>(|i| u8::try_from(i).unwrap()));
    write(&mut uart, 2, 0);
    write(&mut uart, 0, b'x');
    write(&mut uart, 0, b'y');
    assert_eq!(uart.drain_output(&mut out[..1]), 1);
    assert_eq!(out[0], b'y');
    assert!(!uart.has_output());
}

#[test]
fn nothing_that_waits_is_hot() {
    let mut uart = set_up(0);
    assert_eq!(uart.hot_read(5), Some(0x60));
    write(&mut uart, 0, b'a');
    assert_eq!(uart.hot_read(5), None);
    assert_eq!(read(&mut uart, 5), 0);
    assert_eq!(uart.take_output(), Some(b'a'));
    assert_eq!(uart.hot_read(5), Some(0x60));
}

#[test]
fn drain_stops_at_the_buffers_end() {
    let mut uart = set_up(0);
    for byte in b"hello" {
        write(&mut uart, 0, *byte);
    }
    let mut out = [0; 3];
    assert_eq!(uart.drain_output(&mut out), 3);
    assert_eq!(&out, b"hel");
    assert_eq!(uart.take_output(), Some(b'l'));
}

#[test]
fn receiver_triggers_at_its_level() {
    for (bits, level) in [(0x01, 1_u8), (0x41, 4), (0x81, 8), (0xc1, 14)] {
        let mut uart = set_up(0x01);
        write(&mut uart, 2, bits);
        for n in 1..=16 {
            assert_eq!(uart.receive(&[n], NOW), 1);
            assert_eq!(uart.irq(), n >= level, "level {level}, {n} characters");
        }
        assert_eq!(uart.rx_space(), 0);
        assert_eq!(uart.receive(b"z", NOW), 0);
        assert_eq!(read(&mut uart, 2), 0xc4);
        // The interrupt goes when the level is no longer reached.
        for n in 1..=16 {
            assert_eq!(read(&mut uart, 0), n);
            assert_eq!(uart.irq(), 16 - n >= level);
        }
        assert_eq!(read(&mut uart, 5) & 0x01, 0);
    }
}

#[test]
fn receive_takes_what_fits() {
    let mut uart = set_up(0);
    assert_eq!(uart.receive(&[7; 100], NOW), 16);
    read(&mut uart, 0);
    assert_eq!(uart.rx_space(), 1);
    write(&mut uart, 2, 0); // FIFOs off: emptied
    assert_eq!(read(&mut uart, 5) & 0x01, 0);
    assert_eq!(uart.receive(&[7; 100], NOW), 1);
    assert_eq!(read(&mut uart, 5), 0x61);
}

#[test]
fn lone_character_times_out_after_four_character_times() {
    let mut uart = set_up(0x01);
    uart.receive(b"x", NOW);
    assert!(!uart.irq());
    let due = uart.next_deadline().unwrap();
    assert_eq!(due.0, NOW.0 + 4 * 86_805);
    uart.advance(Nanos(due.0 - 1));
    assert!(!uart.irq());
    uart.advance(due);
    assert!(uart.irq());
    assert_eq!(uart.next_deadline(), None);
    assert_eq!(read(&mut uart, 2), 0xcc);
    assert!(uart.irq());
    assert_eq!(read(&mut uart, 0), b'x');
    assert!(!uart.irq());
    assert_eq!(uart.next_deadline(), None);
}

#[test]
fn timeout_restarts_with_each_character_and_each_read() {
    let mut uart = set_up(0x01);
    uart.receive(b"ab", NOW);
    uart.receive(b"c", Nanos(NOW.0 + 100_000));
    assert_eq!(uart.next_deadline().unwrap().0, NOW.0 + 100_000 + 4 * 86_805);
    uart.port_read(0, Width::B1, Nanos(NOW.0 + 200_000)).unwrap();
    assert_eq!(uart.next_deadline().unwrap().0, NOW.0 + 200_000 + 4 * 86_805);
    // Without FIFOs, without the enable bit or above the trigger there is none.
    write(&mut uart, 1, 0);
    assert_eq!(uart.next_deadline(), None);
    write(&mut uart, 1, 1);
    uart.receive(b"0123456789", NOW);
    assert_eq!(uart.next_deadline(), None);
}

#[test]
fn sources_rank_as_in_the_data_sheet() {
    let mut uart = set_up(0x0f);
    // In loopback, DTR falls, and a receiver that nobody reads overruns.
    write(&mut uart, 4, 0x1b);
    write(&mut uart, 4, 0x1a);
    for _ in 0..17 {
        write(&mut uart, 0, 0);
    }
    assert_eq!(read(&mut uart, 2), 0xc6);
    read(&mut uart, 5);
    assert_eq!(read(&mut uart, 2), 0xc4);
    write(&mut uart, 2, 0x83);
    assert_eq!(read(&mut uart, 2), 0xc2);
    assert_eq!(read(&mut uart, 2), 0xc0);
    assert_eq!(read(&mut uart, 6), 0x90 | 0x02);
    assert_eq!(read(&mut uart, 2), 0xc1);
    assert!(!uart.irq());
}

#[test]
fn ring_counts_its_trailing_edge_only() {
    let mut uart = set_up(0x08);
    write(&mut uart, 4, 0x10);
    assert_eq!(read(&mut uart, 6), 0x0b, "the terminal is cut off");
    write(&mut uart, 4, 0x14);
    assert_eq!(read(&mut uart, 6), 0x40);
    write(&mut uart, 4, 0x10);
    assert_eq!(read(&mut uart, 2), 0xc0);
    assert_eq!(read(&mut uart, 6), 0x04);
    assert_eq!(read(&mut uart, 6), 0);
}

#[test]
fn loopback_returns_characters_and_modem_outputs() {
    let mut uart = set_up(0x01);
    read(&mut uart, 6);
    write(&mut uart, 4, 0x1a); // loop, RTS and OUT2: CTS and DCD
    assert_eq!(read(&mut uart, 6), 0x92); // DSR went off
    for (mcr, msr) in [(0x11, 0x20), (0x12, 0x10), (0x14, 0x40), (0x18, 0x80), (0x10, 0)] {
        write(&mut uart, 4, mcr);
        assert_eq!(read(&mut uart, 6) & 0xf0, msr);
    }
    for byte in 0..9 {
        write(&mut uart, 0, byte);
    }
    assert!(!uart.has_output());
    assert_eq!(read(&mut uart, 2), 0xc4);
    assert!(!uart.irq(), "OUT2 is off in loopback");
    assert_eq!(read(&mut uart, 5), 0x61);
    assert_eq!((read(&mut uart, 0), read(&mut uart, 0)), (0, 1));
    // The line is cut off.
    assert_eq!((uart.rx_space(), uart.receive(b"x", NOW)), (0, 0));
    write(&mut uart, 4, 0x0b);
    assert_eq!(read(&mut uart, 6) & 0xf0, 0xb0);
    assert_eq!(uart.receive(b"x", NOW), 1);
}

#[test]
fn overrun_loses_the_new_character_with_fifos_and_the_old_without() {
    let mut uart = set_up(0x04);
    write(&mut uart, 4, 0x10);
    for byte in 0..17 {
        write(&mut uart, 0, byte);
    }
    write(&mut uart, 4, 0x08);
    assert!(uart.irq());
    assert_eq!(read(&mut uart, 5), 0x63);
    assert!(!uart.irq());
    for byte in 0..16 {
        assert_eq!(read(&mut uart, 0), byte);
    }
    write(&mut uart, 2, 0);
    write(&mut uart, 4, 0x10);
    write(&mut uart, 0, b'o');
    write(&mut uart, 0, b'n');
    assert_eq!(read(&mut uart, 5), 0x63);
    assert_eq!(read(&mut uart, 0), b'n');
}

#[test]
fn short_words_lose_their_high_bits() {
    let mut uart = set_up(0);
    write(&mut uart, 3, 0x00);
    write(&mut uart, 0, 0xff);
    assert_eq!(uart.take_output(), Some(0x1f));
    uart.receive(&[0xff], NOW);
    assert_eq!(read(&mut uart, 0), 0x1f);
    write(&mut uart, 3, 0x42);
    uart.receive(&[0xff], NOW);
    assert_eq!(read(&mut uart, 0), 0x7f);
}

#[test]
fn fifo_control_clears_each_side() {
    let mut uart = set_up(0x03);
    uart.receive(b"abc", NOW);
    write(&mut uart, 0, b'x');
    read(&mut uart, 2);
    write(&mut uart, 2, 0x83);
    assert_eq!(read(&mut uart, 5), 0x00);
    write(&mut uart, 2, 0x85);
    assert_eq!(read(&mut uart, 5), 0x60);
    assert_eq!(read(&mut uart, 2), 0xc2);
    assert_eq!(uart.take_output(), None);
    // Trigger bits without the enable bit are not programmed.
    write(&mut uart, 2, 0xc0);
    uart.receive(b"a", NOW);
    assert_eq!(read(&mut uart, 2), 0x04);
}

#[test]
fn interrupts_need_out2() {
    let mut uart = set_up(0x02);
    assert!(uart.irq());
    write(&mut uart, 4, 0x03);
    assert!(!uart.irq());
}

#[test]
fn reset_keeps_what_the_reset_pin_does_not_touch() {
    let mut uart = set_up(0x0f);
    write(&mut uart, 7, 9);
    uart.receive(b"abc", NOW);
    uart.reset();
    assert_eq!((read(&mut uart, 1), read(&mut uart, 2), read(&mut uart, 5)), (0, 1, 0x60));
    assert_eq!(read(&mut uart, 7), 9);
    write(&mut uart, 3, 0x80);
    assert_eq!(read(&mut uart, 0), 1);
}

#[test]
fn impossible_states_are_refused() {
    let good = set_up(0).save();
    let bad = [
        UartState { rx: alloc::vec![0; 17], ..good.clone() },
        UartState { fifos: false, tx: alloc::vec![0; 2], ..good.clone() },
        UartState { trigger: 5, ..good.clone() },
        UartState { ier: 0x10, ..good.clone() },
        UartState { mcr: 0x80, ..good.clone() },
    ];
    for state in bad {
        let mut uart = Uart::new();
        let before = uart.save();
        assert!(uart.restore(state).is_err());
        assert_eq!(uart.save(), before);
    }
}

impl Subject for Uart {
    fn fresh() -> Self {
        Self::new()
    }

    fn act(&mut self, what: u8, value: u32, now: Nanos) -> u64 {
        match what % 3 {
            0 => self.receive(&value.to_le_bytes(), now) as u64,
            1 => self.take_output().map_or(256, u64::from),
            _ => {
                self.advance(now);
                0
            }
        }
    }

    fn look(&self) -> u64 {
        self.next_deadline().map_or(1, |due| due.0 << 2)
            ^ u64::from(self.irq())
            ^ (self.rx_space() as u64) << 58
    }
}

device_properties!(Uart, 8);
