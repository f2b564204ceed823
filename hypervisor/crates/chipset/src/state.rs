//! A board that is saved and restored: each of its devices has a section.
//!
//! Nobody uses the board meanwhile: the guest is paused, its vCPUs have left their CPUs, and its
//! devices are quiet ([`Board::quiesce`]).

use crate::board::Board;
use crate::saved::{Quiet, take};
use crate::trace_port::TraceState;
use devices::Device;
use locks::Mutex;
use state::{Sections, StateError, Writer};

/// Writes the section of a device of which the board has one.
fn put<D: Device>(writer: &mut Writer, device: &Mutex<D>) {
    writer.put(0, &device.lock().save());
}

impl Board {
    /// Has all devices finish what is in flight at a medium. Their marks stay, and what the guest
    /// has not submitted stays in its rings. They begin nothing new until they
    /// [go on](Self::go_on).
    pub fn quiesce(&self) -> Quiet {
        let busy = self.bus.devices().filter(|device| device.quiesce() == Quiet::NotYet).count();
        if busy == 0 { Quiet::Now } else { Quiet::NotYet }
    }

    /// Ends what [`quiesce`](Self::quiesce) began.
    pub fn go_on(&self) {
        self.bus.devices().for_each(|device| device.go_on());
    }

    /// Writes a section for each device.
    pub fn save(&self, writer: &mut Writer) {
        // A device of which nothing is said here does not compile.
        let Self {
            fabric,
            pit,
            rtc,
            serial,
            pm,
            keyboard,
            reset,
            pci,
            bus,
            pvpanic,
            firmware,
            debug_exit,
            scratch,
            trace,
            // The devices know them.
            deadlines: _,
            earliest: _,
            deciding: _,
        } = self;
        put(writer, pit);
        put(writer, rtc);
        {
            let serial = serial.lock();
            writer.put(0, &serial.uart.save());
            writer.put(0, &serial.sent.save());
        }
        put(writer, pm);
        put(writer, keyboard);
        put(writer, reset);
        put(writer, pci);
        put(writer, pvpanic);
        put(writer, firmware);
        if let Some(device) = debug_exit {
            put(writer, device);
            writer.put(0, &trace.save());
        }
        if let Some(scratch) = scratch {
            writer.put(0, &scratch.lock().save());
        }
        bus.devices().for_each(|device| device.save(writer));
        fabric.save(writer);
    }

    /// Restores a board that has just been made, with the settings and the devices of the one that
    /// was saved.
    ///
    /// # Errors
    /// Names the section that is missing, or that can't be. The board is of no use then.
    pub fn restore(&self, sections: &mut Sections<'_>) -> Result<(), StateError> {
        let Self {
            fabric,
            pit,
            rtc,
            serial,
            pm,
            keyboard,
            reset,
            pci,
            bus,
            pvpanic,
            firmware,
            debug_exit,
            scratch,
            trace,
            deadlines: _,
            earliest: _,
            deciding: _,
        } = self;
        take(sections, &mut *pit.lock())?;
        take(sections, &mut *rtc.lock())?;
        {
            let serial = &mut *serial.lock();
            take(sections, &mut serial.uart)?;
            serial.sent.restore(sections)?;
        }
        take(sections, &mut *pm.lock())?;
        take(sections, &mut *keyboard.lock())?;
        take(sections, &mut *reset.lock())?;
        take(sections, &mut *pci.lock())?;
        take(sections, &mut *pvpanic.lock())?;
        take(sections, &mut *firmware.lock())?;
        if let Some(device) = debug_exit {
            take(sections, &mut *device.lock())?;
            trace.restore(sections.take::<TraceState>(0)?);
        }
        if let Some(scratch) = scratch {
            scratch.lock().restore(sections)?;
        }
        bus.devices().try_for_each(|device| device.restore(sections))?;
        bus.restored();
        // The lines are as they were, whatever the devices made of them on the way here.
        fabric.restore(sections)?;
        self.note_deadlines();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fabric::{Fabric, Kick};
    use crate::pci::{BoardDevice, Placed};
    use crate::test_device::TestDevice;
    use crate::{ConsoleSink, Flushed};
    use alloc::boxed::Box;
    use alloc::string::ToString;
    use alloc::sync::Arc;
    use alloc::vec::Vec;
    use config::GuestSettings;
    use devices::pci::DevFn;
    use x86defs::Width;
    use x86defs::time::Nanos;

    #[derive(Debug)]
    struct NoConsole;

    impl ConsoleSink for NoConsole {
        fn room(&self) -> usize {
            0
        }

        fn put(&self, _: &[u8]) {}
    }

    fn board(slot: u8, debug: bool) -> Board {
        let fabric = Arc::new(Fabric::new(1, Kick(Box::new(|_| ()))));
        let mut settings = GuestSettings::new("guest", 1 << 20, "kernel");
        settings.debug_exit = debug;
        let place = DevFn::new(slot, 0).unwrap();
        let device: Arc<dyn BoardDevice> = TestDevice::inline(place, Arc::clone(&fabric)).unwrap();
        let devices: [Placed; 1] = [(place, device)];
        Board::new(0, &settings, fabric, Arc::new(NoConsole), &devices)
    }

    fn saved(board: &Board) -> Vec<u8> {
        let mut writer = Writer::new();
        board.save(&mut writer);
        writer.finish().unwrap()
    }

    fn restored(bytes: &[u8], board: &Board) -> Result<(), StateError> {
        let mut sections = Sections::open(bytes)?;
        board.restore(&mut sections)?;
        sections.finish()
    }

    #[test]
    fn another_machines_state_is_refused_by_the_name_of_what_differs() {
        let bytes = saved(&board(3, true));
        assert_eq!(restored(&bytes, &board(3, true)), Ok(()));
        let start = |error: StateError| error.to_string()[..25].to_string();
        let error = restored(&bytes, &board(4, true)).unwrap_err();
        assert_eq!(start(error), "section `pci-interface` 3");
        let error = restored(&bytes, &board(3, false)).unwrap_err();
        assert_eq!(start(error), "section `debug-exit` 0, v");
        let error = restored(&saved(&board(3, false)), &board(3, true)).unwrap_err();
        assert_eq!(start(error), "section `debug-exit` 0 is");
    }

    #[test]
    fn a_doorbell_of_a_restored_board_wakes_its_device() {
        let bytes = saved(&board(3, false));
        let after = board(3, false);
        restored(&bytes, &after).unwrap();
        after.go_on();
        for (offset, value) in [(0x10, 0xc000), (4, 1)] {
            let _ = after.port_write(0xcf8, Width::B4, 0x8000_1800 | offset, Nanos(0));
            let _ = after.port_write(0xcfc, Width::B4, value, Nanos(0));
        }
        let mut bells = crate::HotPorts::default();
        after.follow_ports(&mut bells);
        let (device, bits) = after.hot_bell(0xc000, &bells).unwrap();
        assert!(after.hot_mark(device, bits), "the first one owes the wake-up");
    }

    #[test]
    fn what_the_console_had_no_room_for_is_not_lost() {
        let before = board(3, false);
        // Characters of eight bits.
        let _ = before.port_write(0x3fb, Width::B1, 3, Nanos(0));
        for byte in *b"boot" {
            before.hot_write(0x3f8).unwrap().write(byte);
        }
        let _ = before.port_write(0x3f8, Width::B1, 0x21, Nanos(0));
        let after = board(3, false);
        restored(&saved(&before), &after).unwrap();
        assert_eq!(after.try_flush_console(), Some(Flushed::OutOfRoom));
        let mut sent = [0; 5];
        assert_eq!(after.serial.lock().sent.take(&mut sent), 4);
        assert_eq!(after.serial.lock().uart.drain_output(&mut sent[4..]), 1);
        assert_eq!(&sent, b"boot!");
    }
}
