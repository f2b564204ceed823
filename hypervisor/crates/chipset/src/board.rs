//! The devices of a guest's machine, their ports and interrupt lines.
//!
//! A device is locked for each access. Lines are set under that lock, so that
//! they never lag behind the device.

use crate::bus::Bus;
use crate::console::{ConsoleSink, Flushed, Serial};
use crate::fabric::{Fabric, Requests};
use crate::pci::{OnBus, Placed};
use crate::scratch::{SCRATCH_BASE, SCRATCH_SIZE, Scratch};
use crate::trace_port::TracePort;
use alloc::sync::Arc;
use config::GuestSettings;
use config::layout::{COM1_IRQ, IOAPIC_BASE, IOAPIC_SIZE, RTC_IRQ, SCI_IRQ};
use core::sync::atomic::{AtomicU64, Ordering};
use devices::Timed;
use devices::acpi_pm::{AcpiPm, TimerWidth};
use devices::debug_exit::DebugExit;
use devices::firmware::{FirmwareNews, FirmwarePort};
use devices::i8042::I8042;
use devices::pci::PciBus;
use devices::pit::Pit;
use devices::pvpanic::PvPanic;
use devices::reset::ResetControl;
use devices::rtc::Rtc;
use devices::uart::Uart;
use locks::{Mutex, Rank};
use x86defs::time::Nanos;
use x86defs::{GuestPhysAddr, Width};

/// Interrupt of the keyboard.
const KEYBOARD_IRQ: u8 = 1;
/// Interrupt of the mouse.
const MOUSE_IRQ: u8 = 12;

/// Bytes of the console that are moved in one piece.
const CONSOLE_PIECE: usize = 64;
/// Bytes of the console that are moved in one go: other vCPUs may go on sending.
const CONSOLE_TURN: usize = 4096;

/// Effects of an access on the virtual machine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PortOutcome {
    /// The guest is to end.
    pub end: Option<BoardEnd>,
    /// The ROM was entered, and that is to be told.
    pub firmware: Option<FirmwareNews>,
}

/// Ends that a device's register can bring about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BoardEnd {
    /// The machine is switched off.
    PowerOff,
    /// The machine is reset.
    Reset,
    /// The guest said through pvpanic that its kernel has panicked.
    Panicked,
    /// The guest wrote this to the debug-exit port.
    DebugExit(u32),
}

/// A device with a deadline of its own.
#[derive(Clone, Copy, Debug)]
enum TimedDevice {
    Pit,
    Rtc,
    Uart,
    Pm,
}

/// The devices.
#[derive(Debug)]
pub struct Board {
    pub(crate) fabric: Arc<Fabric>,
    pub(crate) pit: Mutex<Pit>,
    pub(crate) rtc: Mutex<Rtc>,
    pub(crate) serial: Mutex<Serial>,
    pub(crate) pm: Mutex<AcpiPm>,
    pub(crate) keyboard: Mutex<I8042>,
    pub(crate) reset: Mutex<ResetControl>,
    pub(crate) pci: Mutex<PciBus<OnBus>>,
    pub(crate) bus: Bus,
    pub(crate) pvpanic: Mutex<PvPanic>,
    pub(crate) firmware: Mutex<FirmwarePort>,
    pub(crate) debug_exit: Option<Mutex<DebugExit>>,
    pub(crate) scratch: Option<Mutex<Scratch>>,
    pub(crate) trace: TracePort,
    /// Time at which each timed device next wants to act, in nanoseconds.
    pub(crate) deadlines: [AtomicU64; 4],
    /// The earliest of them.
    pub(crate) earliest: AtomicU64,
    /// Held to find the earliest.
    pub(crate) deciding: spin::Mutex<()>,
}

impl Board {
    /// The devices after power-up. `unix_nanos`, nanoseconds since 1970-01-01 UTC when the
    /// guest's time is 0, sets the real-time clock; the guest's `settings` say which devices it
    /// has: with `debug_exit` port 0xf4, the scratch memory that tests of instruction emulation
    /// use, and the trace of its exits. Interrupts go to `fabric`, output of the serial port to
    /// `console`. `devices` stand on the PCI bus.
    #[must_use]
    pub fn new(
        unix_nanos: u64,
        settings: &GuestSettings,
        fabric: Arc<Fabric>,
        console: Arc<dyn ConsoleSink>,
        devices: &[Placed],
    ) -> Self {
        let mut pci = PciBus::new();
        for (place, device) in devices {
            // Whoever assembles the board gives each device a place of its own.
            let _ = pci.add(*place, OnBus(Arc::clone(device)));
        }
        let debug = settings.debug_exit;
        Self {
            fabric,
            pit: Mutex::new(Rank::Device, Pit::new()),
            rtc: Mutex::new(Rank::Device, Rtc::new(unix_nanos, Nanos(0))),
            serial: Mutex::new(Rank::Device, Serial::new(console)),
            pm: Mutex::new(Rank::Device, AcpiPm::new(TimerWidth::Bits32)),
            keyboard: Mutex::new(Rank::Device, I8042::new()),
            reset: Mutex::new(Rank::Device, ResetControl::new()),
            pci: Mutex::new(Rank::Pci, pci),
            bus: Bus::new(devices),
            pvpanic: Mutex::new(Rank::Device, PvPanic::new()),
            firmware: Mutex::new(Rank::Device, FirmwarePort::new()),
            debug_exit: debug.then(|| Mutex::new(Rank::Device, DebugExit::new())),
            scratch: debug.then(|| Mutex::new(Rank::Device, Scratch::new())),
            trace: TracePort::default(),
            deadlines: [const { AtomicU64::new(u64::MAX) }; 4],
            earliest: AtomicU64::new(u64::MAX),
            deciding: spin::Mutex::new(()),
        }
    }

    /// Corrects the real-time clock: the host has learned that it is `unix_nanos` at the guest's
    /// `now`. See [`Rtc::correct`].
    pub fn correct_rtc(&self, unix_nanos: u64, now: Nanos) {
        let mut rtc = self.rtc.lock();
        rtc.correct(unix_nanos, now);
        self.note_deadline(TimedDevice::Rtc, &*rtc);
    }

    /// The trace of the guest's exits.
    #[must_use]
    pub fn trace(&self) -> &TracePort {
        &self.trace
    }

    /// Time at which a device next wants to act.
    #[must_use]
    pub fn deadline(&self) -> Nanos {
        Nanos(self.earliest.load(Ordering::Relaxed))
    }

    fn note_deadline(&self, which: TimedDevice, device: &impl Timed) {
        let Some(slot) = self.deadlines.get(which as usize) else { return };
        let at = device.next_deadline().map_or(u64::MAX, |n| n.0);
        // The device's lock is held: nobody else writes its slot.
        if slot.load(Ordering::Relaxed) == at {
            return;
        }
        // One at a time: an older answer must not be stored last.
        let _alone = self.deciding.lock();
        slot.store(at, Ordering::Relaxed);
        let least = self.deadlines.iter().map(|d| d.load(Ordering::Relaxed)).min();
        self.earliest.store(least.unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// Notes when each device next wants to act.
    pub(crate) fn note_deadlines(&self) {
        self.note_deadline(TimedDevice::Pit, &*self.pit.lock());
        self.note_deadline(TimedDevice::Rtc, &*self.rtc.lock());
        self.note_deadline(TimedDevice::Uart, &self.serial.lock().uart);
        self.note_deadline(TimedDevice::Pm, &*self.pm.lock());
    }

    /// Time has come to `now`.
    pub fn advance(&self, now: Nanos) {
        let due = |which: TimedDevice| {
            self.deadlines
                .get(which as usize)
                .is_some_and(|slot| slot.load(Ordering::Relaxed) <= now.0)
        };
        if due(TimedDevice::Pit) {
            let mut pit = self.pit.lock();
            pit.advance(now);
            self.after_pit(&mut pit, now);
        }
        if due(TimedDevice::Rtc) {
            let mut rtc = self.rtc.lock();
            rtc.advance(now);
            self.after_rtc(&rtc);
        }
        if due(TimedDevice::Uart) {
            let uart = &mut self.serial.lock().uart;
            uart.advance(now);
            self.after_uart(uart);
        }
        if due(TimedDevice::Pm) {
            let mut pm = self.pm.lock();
            pm.advance(now);
            self.after_pm(&pm);
        }
    }

    pub(crate) fn after_pit(&self, pit: &mut Pit, now: Nanos) {
        if pit.take_interrupt(now) {
            self.fabric.pulse(0);
        }
        self.note_deadline(TimedDevice::Pit, pit);
    }

    pub(crate) fn after_rtc(&self, rtc: &Rtc) {
        self.fabric.set_line(RTC_IRQ, rtc.irq());
        self.note_deadline(TimedDevice::Rtc, rtc);
    }

    pub(crate) fn after_uart(&self, uart: &Uart) {
        self.fabric.set_line(COM1_IRQ, uart.irq());
        self.note_deadline(TimedDevice::Uart, uart);
    }

    pub(crate) fn after_keyboard(&self, keyboard: &I8042) {
        self.fabric.set_line(KEYBOARD_IRQ, keyboard.irq_keyboard());
        self.fabric.set_line(MOUSE_IRQ, keyboard.irq_mouse());
    }

    pub(crate) fn after_pm(&self, pm: &AcpiPm) {
        self.fabric.set_line(SCI_IRQ, pm.irq());
        self.note_deadline(TimedDevice::Pm, pm);
    }

    /// Has the first vCPU look how long it may sleep: somebody else than a vCPU has changed a
    /// device, which may want to act earlier now.
    fn changed_from_outside(&self) {
        self.fabric.request(0, Requests::KICK);
    }

    /// Bytes typed at the console; returns how many were taken.
    pub fn console_input(&self, bytes: &[u8], now: Nanos) -> usize {
        let uart = &mut self.serial.lock().uart;
        let taken = uart.receive(bytes, now);
        self.after_uart(uart);
        self.changed_from_outside();
        taken
    }

    /// Moves what the guest has sent to its console, as far as that has room; the rest waits in
    /// the serial port. `None` while a vCPU uses the port: the caller must not wait for it.
    pub fn try_flush_console(&self) -> Option<Flushed> {
        Some(self.flush_console(&mut *self.serial.try_lock()?))
    }

    pub(crate) fn flush_console(&self, serial: &mut Serial) -> Flushed {
        let mut buffer = [0; CONSOLE_PIECE];
        let mut room = serial.sink.room().min(CONSOLE_TURN);
        while room != 0 {
            let piece = buffer.get_mut(..room.min(CONSOLE_PIECE)).unwrap_or_default();
            let old = serial.sent.take(piece);
            let new = serial.uart.drain_output(piece.get_mut(old..).unwrap_or_default());
            if new != 0 {
                self.after_uart(&serial.uart);
            }
            if old + new == 0 {
                return Flushed::All;
            }
            serial.sink.put(piece.get(..old + new).unwrap_or_default());
            room -= old + new;
        }
        Flushed::OutOfRoom
    }

    /// Takes `bytes` for the console, behind what the serial port has sent; how many, from the
    /// start.
    pub fn console_write(&self, bytes: &[u8]) -> usize {
        let serial = &mut *self.serial.lock();
        if self.flush_console(serial) == Flushed::OutOfRoom {
            return 0;
        }
        let taken = serial.sink.room().min(bytes.len());
        serial.sink.put(bytes.get(..taken).unwrap_or_default());
        taken
    }

    /// Presses the power button.
    pub fn press_power_button(&self) {
        let mut pm = self.pm.lock();
        pm.press_power_button();
        self.after_pm(&pm);
        self.changed_from_outside();
    }

    /// Reads device memory at `gpa`: all ones if nothing answers.
    /// `now` tells the time to a device that asks.
    pub fn mmio_read(&self, gpa: GuestPhysAddr, width: Width, now: impl FnOnce() -> Nanos) -> u64 {
        let at = |base: u64, size: u64| {
            gpa.checked_offset_from(GuestPhysAddr::new(base)).filter(|offset| *offset < size)
        };
        let value = if let Some(offset) = at(IOAPIC_BASE, IOAPIC_SIZE) {
            self.fabric.ioapic_read(offset, width)
        } else if let (Some(scratch), Some(offset)) =
            (&self.scratch, at(SCRATCH_BASE, SCRATCH_SIZE))
        {
            scratch.lock().read(offset, width)
        } else {
            self.bus.memory_read(gpa, width, now)
        };
        width.truncate(value.unwrap_or(u64::MAX))
    }

    /// Writes device memory at `gpa`: the write is lost if nothing listens.
    pub fn mmio_write(
        &self,
        gpa: GuestPhysAddr,
        width: Width,
        value: u64,
        now: impl FnOnce() -> Nanos,
    ) {
        let at = |base: u64, size: u64| {
            gpa.checked_offset_from(GuestPhysAddr::new(base)).filter(|offset| *offset < size)
        };
        if let Some(offset) = at(IOAPIC_BASE, IOAPIC_SIZE) {
            self.fabric.ioapic_write(offset, width, value);
        } else if let (Some(scratch), Some(offset)) =
            (&self.scratch, at(SCRATCH_BASE, SCRATCH_SIZE))
        {
            scratch.lock().write(offset, width, value);
        } else {
            let _ = self.bus.memory_write(gpa, width, value, now);
        }
    }

    /// Wakes the devices whose doorbells a vCPU has marked: a bit for each, as
    /// [`hot_bell`](Self::hot_bell) numbers them.
    pub fn pay(&self, owed: u64) {
        self.bus.pay(owed);
    }
}
