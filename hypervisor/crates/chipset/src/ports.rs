//! The I/O port bus: a table finds the device of a port, and what nothing
//! answers reads as all ones.

use crate::board::{Board, BoardEnd, PortOutcome};
use crate::pci::OnBus;
use crate::trace_port::TracePort;
use config::layout::{
    DEBUG_EXIT_PORT, FIRMWARE_PORT, FIRMWARE_RESET, PM1A_EVENT_PORT, PVPANIC_PORT, TRACE_PORT,
};
use devices::acpi_pm::AcpiPm;
use devices::debug_exit::DebugExit;
use devices::firmware::{FirmwareEntry, FirmwarePort};
use devices::i8042::I8042;
use devices::pci::PciBus;
use devices::pic::PicPair;
use devices::pit::Pit;
use devices::ports::PortRange;
use devices::pvpanic::PanicEvents;
use devices::reset::ResetControl;
use devices::rtc::Rtc;
use devices::uart::Uart;
use devices::{AccessError, PortDevice};
use x86defs::time::Nanos;
use x86defs::{Low, Width};

// The ROM and the device behind its port agree on the value of a reset.
const _: () = assert!(FIRMWARE_RESET == FirmwareEntry::RESET_VALUE);

/// Device that has a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Target {
    Nobody,
    Pic,
    Pit,
    Rtc,
    Uart,
    Pm,
    Keyboard,
    Reset,
    Pci,
    PvPanic,
    Firmware,
    DebugExit,
    Trace,
}

const PM_PORTS: PortRange = PortRange::new(PM1A_EVENT_PORT, AcpiPm::PORT_COUNT, 0);
const PVPANIC_PORTS: PortRange = PortRange::new(PVPANIC_PORT, 1, 0);
const FIRMWARE_PORTS: PortRange = PortRange::new(FIRMWARE_PORT, FirmwarePort::PORT_COUNT, 0);
const DEBUG_EXIT_PORTS: PortRange = PortRange::new(DEBUG_EXIT_PORT, DebugExit::PORT_COUNT, 0);
const TRACE_PORTS: PortRange = PortRange::new(TRACE_PORT, TracePort::PORT_COUNT, 0);

/// Ports that devices have; no device has any above.
const TABLE_SIZE: usize = 0x1000;

/// The device of each port, and the port's offset in it.
static TABLE: [(Target, u8); TABLE_SIZE] = {
    let mut table = [(Target::Nobody, 0); TABLE_SIZE];
    table = fill(table, Target::Pic, &PicPair::PORTS);
    table = fill(table, Target::Pit, &Pit::PORTS);
    table = fill(table, Target::Rtc, &[Rtc::PORTS]);
    table = fill(table, Target::Uart, &[Uart::COM1]);
    table = fill(table, Target::Pm, &[PM_PORTS]);
    table = fill(table, Target::Keyboard, &I8042::PORTS);
    table = fill(table, Target::Pci, &[PciBus::<OnBus>::PORTS]);
    table = fill(table, Target::Reset, &ResetControl::PORTS);
    table = fill(table, Target::PvPanic, &[PVPANIC_PORTS]);
    table = fill(table, Target::Firmware, &[FIRMWARE_PORTS]);
    table = fill(table, Target::DebugExit, &[DEBUG_EXIT_PORTS]);
    table = fill(table, Target::Trace, &[TRACE_PORTS]);
    table
};

#[expect(
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "evaluated when compiled: a range that does not fit is a compile error"
)]
const fn fill(
    mut table: [(Target, u8); TABLE_SIZE],
    target: Target,
    ranges: &[PortRange],
) -> [(Target, u8); TABLE_SIZE] {
    let mut n = 0;
    while n < ranges.len() {
        let range = ranges[n];
        let mut port = 0;
        while port < range.count {
            let offset = range.offset + port;
            assert!(offset <= 0xff);
            let place = &mut table[(range.first + port) as usize];
            // A port has one device. The reset register 0xcf9 alone lies among PCI's, as on a PC.
            assert!(matches!(
                (place.0, target),
                (Target::Nobody, _) | (Target::Pci, Target::Reset)
            ));
            *place = (target, offset as u8);
            port += 1;
        }
        n += 1;
    }
    table
}

/// Whether a device of the board answers at `port`; some are there only if a setting says so.
#[must_use]
pub fn has_device(port: u16) -> bool {
    lookup(port).0 != Target::Nobody
}

#[inline(always)]
pub(crate) fn lookup(port: u16) -> (Target, u16) {
    let (target, offset) = TABLE.get(usize::from(port)).copied().unwrap_or((Target::Nobody, 0));
    (target, offset.into())
}

impl Board {
    /// IN from `port`. Wide accesses to devices that have only bytes are split
    /// into bytes, as the ISA bus does.
    pub fn port_read(&self, port: u16, width: Width, now: Nanos) -> u32 {
        match self.port_read_one(port, width, now) {
            Ok(value) => value,
            Err(AccessError::Width) if width != Width::B1 => {
                (0u16..).zip(0..width.bytes()).fold(0, |value, (n, _)| {
                    let byte =
                        self.port_read_one(port.wrapping_add(n), Width::B1, now).unwrap_or(0xff);
                    value | (byte & 0xff) << (8 * u32::from(n))
                })
            }
            Err(_) => width.mask().low32(),
        }
    }

    fn port_read_one(&self, port: u16, width: Width, now: Nanos) -> Result<u32, AccessError> {
        let (target, offset) = lookup(port);
        match target {
            Target::Nobody => self.bus.port_read(port, width, now).ok_or(AccessError::NoRegister),
            Target::Pic => self.fabric.pic_read(offset, width, now),
            Target::Pit => {
                let mut pit = self.pit.lock();
                let value = pit.port_read(offset, width, now);
                self.after_pit(&mut pit, now);
                value
            }
            Target::Rtc => {
                let mut rtc = self.rtc.lock();
                let value = rtc.port_read(offset, width, now);
                self.after_rtc(&rtc);
                value
            }
            Target::Uart => {
                let uart = &mut self.serial.lock().uart;
                let value = uart.port_read(offset, width, now);
                self.after_uart(uart);
                value
            }
            Target::Pm => {
                let mut pm = self.pm.lock();
                let value = pm.port_read(offset, width, now);
                self.after_pm(&pm);
                value
            }
            Target::Keyboard => {
                let mut keyboard = self.keyboard.lock();
                let value = keyboard.port_read(offset, width, now);
                self.after_keyboard(&keyboard);
                value
            }
            Target::Reset => self.reset.lock().port_read(offset, width, now),
            Target::Pci => self.pci.lock().port_read(offset, width, now),
            Target::PvPanic => self.pvpanic.lock().port_read(offset, width, now),
            Target::Firmware => self.firmware.lock().port_read(offset, width, now),
            Target::DebugExit => match &self.debug_exit {
                Some(device) => device.lock().port_read(offset, width, now),
                None => Err(AccessError::NoRegister),
            },
            Target::Trace if self.debug_exit.is_some() => self.trace.port_read(offset, width),
            Target::Trace => Err(AccessError::NoRegister),
        }
    }

    /// OUT to `port`, split into bytes where the device has only those.
    pub fn port_write(&self, port: u16, width: Width, value: u32, now: Nanos) -> PortOutcome {
        let mut outcome = PortOutcome::default();
        let result = self.port_write_one(port, width, value, now, &mut outcome);
        if result == Err(AccessError::Width) && width != Width::B1 {
            for (n, byte) in (0u16..).zip(value.to_le_bytes()).take(width.bytes()) {
                let at = port.wrapping_add(n);
                let one = Width::B1;
                // A byte that nothing listens to is lost, as on the bus.
                let _ = self.port_write_one(at, one, byte.into(), now, &mut outcome);
            }
        }
        outcome
    }

    fn port_write_one(
        &self,
        port: u16,
        width: Width,
        value: u32,
        now: Nanos,
        outcome: &mut PortOutcome,
    ) -> Result<(), AccessError> {
        let (target, offset) = lookup(port);
        match target {
            Target::Nobody => {
                self.bus.port_write(port, width, value, now).ok_or(AccessError::NoRegister)
            }
            Target::Pic => self.fabric.pic_write(offset, width, value, now),
            Target::Pit => {
                let mut pit = self.pit.lock();
                let result = pit.port_write(offset, width, value, now);
                self.after_pit(&mut pit, now);
                result
            }
            Target::Rtc => {
                let mut rtc = self.rtc.lock();
                let result = rtc.port_write(offset, width, value, now);
                self.after_rtc(&rtc);
                result
            }
            Target::Uart => {
                let serial = &mut *self.serial.lock();
                let result = serial.uart.port_write(offset, width, value, now);
                // The 8259s see the line fall before the port is empty again.
                self.after_uart(&serial.uart);
                if serial.uart.has_output() {
                    self.flush_console(serial);
                }
                result
            }
            Target::Pm => {
                let mut pm = self.pm.lock();
                let result = pm.port_write(offset, width, value, now);
                if pm.take_sleep() == Some(config::layout::SLEEP_TYPE_S5) {
                    outcome.end = Some(BoardEnd::PowerOff);
                }
                self.after_pm(&pm);
                result
            }
            Target::Keyboard => {
                let mut keyboard = self.keyboard.lock();
                let result = keyboard.port_write(offset, width, value, now);
                if keyboard.take_reset() {
                    outcome.end = Some(BoardEnd::Reset);
                }
                self.after_keyboard(&keyboard);
                result
            }
            Target::Reset => {
                let mut reset = self.reset.lock();
                let result = reset.port_write(offset, width, value, now);
                if reset.take_reset().is_some() {
                    outcome.end = Some(BoardEnd::Reset);
                }
                result
            }
            Target::Pci => {
                let mut pci = self.pci.lock();
                let result = pci.port_write(offset, width, value, now);
                if let Some(place) = pci.take_moved() {
                    self.bus.moved(place);
                }
                result
            }
            Target::PvPanic => {
                let mut pvpanic = self.pvpanic.lock();
                let result = pvpanic.port_write(offset, width, value, now);
                // A guest that loads its crash kernel goes on.
                if pvpanic.take_event().is_some_and(|e| e.contains(PanicEvents::PANICKED)) {
                    outcome.end = Some(BoardEnd::Panicked);
                }
                result
            }
            Target::Firmware => {
                let mut firmware = self.firmware.lock();
                let result = firmware.port_write(offset, width, value, now);
                outcome.firmware = firmware.take_news();
                result
            }
            Target::DebugExit => {
                let Some(device) = &self.debug_exit else { return Err(AccessError::NoRegister) };
                let mut device = device.lock();
                let result = device.port_write(offset, width, value, now);
                if let Some(value) = device.take_exit() {
                    outcome.end = Some(BoardEnd::DebugExit(value));
                }
                result
            }
            Target::Trace if self.debug_exit.is_some() => {
                self.trace.port_write(offset, width, value)
            }
            Target::Trace => Err(AccessError::NoRegister),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ConsoleSink;
    use crate::fabric::{Fabric, Kick};
    use alloc::boxed::Box;
    use alloc::sync::Arc;
    use config::GuestSettings;

    const NOW: Nanos = Nanos(0);

    #[derive(Debug)]
    struct NoConsole;

    impl ConsoleSink for NoConsole {
        fn room(&self) -> usize {
            0
        }

        fn put(&self, _: &[u8]) {}
    }

    /// The board of a guest with one vCPU and these settings.
    fn board_with(set: impl FnOnce(&mut GuestSettings)) -> Board {
        let mut settings = GuestSettings::new("guest", 1 << 20, "kernel");
        set(&mut settings);
        let fabric = Arc::new(Fabric::new(1, Kick(Box::new(|_| ()))));
        Board::new(0, &settings, fabric, Arc::new(NoConsole), &[])
    }

    fn read(board: &Board, port: u16, width: Width) -> u32 {
        board.port_read(port, width, NOW)
    }

    fn write(board: &Board, port: u16, width: Width, value: u32) -> PortOutcome {
        board.port_write(port, width, value, NOW)
    }

    #[test]
    fn a_device_that_the_settings_leave_out_is_not_there() {
        let port = DEBUG_EXIT_PORT;
        assert!(has_device(port));
        let without = board_with(|_| ());
        assert_eq!(read(&without, port, Width::B4), u32::MAX);
        assert_eq!(write(&without, port, Width::B4, 5), PortOutcome::default());
        let with = board_with(|settings| settings.debug_exit = true);
        assert_eq!(read(&with, port, Width::B4), 0);
        assert_eq!(write(&with, port, Width::B4, 5).end, Some(BoardEnd::DebugExit(5)));
    }

    #[test]
    fn wide_accesses_are_split_where_a_device_has_bytes() {
        let board = board_with(|_| ());
        // Port 0x92 has a device, its neighbours have none.
        assert_eq!([0x91, 0x92, 0x93].map(has_device), [false, true, false]);
        let byte = read(&board, 0x92, Width::B1);
        assert_eq!(read(&board, 0x92, Width::B2), 0xff00 | byte);
        assert_eq!(read(&board, 0x91, Width::B1), 0xff, "nobody answers");
        // The reset register is a byte among PCI's, which are wide.
        assert_eq!((lookup(0xcf8).0, lookup(0xcf9).0), (Target::Pci, Target::Reset));
        write(&board, 0xcf8, Width::B4, 0x8000_0000);
        assert_eq!(read(&board, 0xcf8, Width::B4), 0x8000_0000);
        assert_eq!(read(&board, 0xcf9, Width::B1), 0);
        let reset = write(&board, 0xcf9, Width::B1, 6);
        assert_eq!(reset.end, Some(BoardEnd::Reset));
    }
}
