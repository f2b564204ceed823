//! The devices of a guest's machine, their ports and interrupt lines.
//!
//! A device is locked for each access. Lines are set under that lock, so that
//! they never lag behind the device. Lock order: device, then interrupt
//! controllers, then (by the atomics of [`crate::fabric`]) local APICs.

use crate::lines::{IrqChip, Lines};
use crate::scratch::{SCRATCH_BASE, SCRATCH_SIZE, Scratch};
use crate::serial::Serial;
use crate::trace_port::TracePort;
use config::GuestSettings;
use config::layout::{COM1_IRQ, IOAPIC_BASE, IOAPIC_ID, IOAPIC_SIZE, RTC_IRQ, SCI_IRQ};
use core::sync::atomic::{AtomicU64, Ordering};
use devices::acpi_pm::{AcpiPm, TimerWidth};
use devices::debug_exit::DebugExit;
use devices::firmware::{FirmwareNews, FirmwarePort};
use devices::i8042::I8042;
use devices::ioapic::IoApic;
use devices::lapic::InterruptMessage;
use devices::pci::{ConfigSpace, PciBus};
use devices::pic::PicPair;
use devices::pit::Pit;
use devices::pvpanic::PvPanic;
use devices::reset::ResetControl;
use devices::rtc::Rtc;
use devices::uart::Uart;
use devices::{MmioDevice, Timed};
use spin::Mutex;
use x86defs::time::Nanos;
use x86defs::{GuestPhysAddr, Vector, Width};

/// Interrupt of the keyboard.
const KEYBOARD_IRQ: u8 = 1;
/// Interrupt of the mouse.
const MOUSE_IRQ: u8 = 12;

/// Effects of an access on the virtual machine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PortOutcome {
    /// The guest is to end.
    pub end: Option<BoardEnd>,
    /// The console has output to be fetched.
    pub console: bool,
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
    pub(crate) irq: Mutex<IrqChip>,
    pub(crate) pit: Mutex<Pit>,
    pub(crate) rtc: Mutex<Rtc>,
    pub(crate) serial: Mutex<Serial>,
    pub(crate) pm: Mutex<AcpiPm>,
    pub(crate) keyboard: Mutex<I8042>,
    pub(crate) reset: Mutex<ResetControl>,
    pub(crate) pci: Mutex<PciBus<ConfigSpace>>,
    pub(crate) pvpanic: Mutex<PvPanic>,
    pub(crate) firmware: Mutex<FirmwarePort>,
    pub(crate) debug_exit: Option<Mutex<DebugExit>>,
    pub(crate) scratch: Option<Mutex<Scratch>>,
    pub(crate) trace: TracePort,
    /// Time at which each timed device next wants to act, in nanoseconds.
    pub(crate) deadlines: [AtomicU64; 4],
}

impl Board {
    /// The devices after power-up. `unix_nanos`, nanoseconds since 1970-01-01 UTC when the
    /// guest's time is 0, sets the real-time clock; the guest's `settings` say which devices it
    /// has: with `debug_exit` port 0xf4, the scratch memory that tests of instruction emulation
    /// use, and the trace of its exits.
    #[must_use]
    pub fn new(unix_nanos: u64, settings: &GuestSettings) -> Self {
        let debug = settings.debug_exit;
        Self {
            irq: Mutex::new(IrqChip::new(PicPair::new(), IoApic::new(IOAPIC_ID, 0))),
            pit: Mutex::new(Pit::new()),
            rtc: Mutex::new(Rtc::new(unix_nanos, Nanos(0))),
            serial: Mutex::new(Serial::new()),
            pm: Mutex::new(AcpiPm::new(TimerWidth::Bits32)),
            keyboard: Mutex::new(I8042::new()),
            reset: Mutex::new(ResetControl::new()),
            pci: Mutex::new(PciBus::new()),
            pvpanic: Mutex::new(PvPanic::new()),
            firmware: Mutex::new(FirmwarePort::new()),
            debug_exit: debug.then(|| Mutex::new(DebugExit::new())),
            scratch: debug.then(|| Mutex::new(Scratch::new())),
            trace: TracePort::default(),
            deadlines: [const { AtomicU64::new(u64::MAX) }; 4],
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

    /// Pins of the I/O APIC that are asserted or open, and the 8259s, for display.
    #[must_use]
    pub fn lines(&self) -> Lines {
        self.irq.lock().look()
    }

    /// Time at which a device next wants to act.
    #[must_use]
    pub fn deadline(&self) -> Nanos {
        let least = self.deadlines.iter().map(|d| d.load(Ordering::Relaxed)).min();
        Nanos(least.unwrap_or(u64::MAX))
    }

    fn note_deadline(&self, which: TimedDevice, device: &impl Timed) {
        if let Some(slot) = self.deadlines.get(which as usize) {
            slot.store(device.next_deadline().map_or(u64::MAX, |n| n.0), Ordering::Relaxed);
        }
    }

    /// Time has come to `now`.
    pub fn advance(&self, now: Nanos, mut deliver: impl FnMut(InterruptMessage)) {
        let due = |which: TimedDevice| {
            self.deadlines
                .get(which as usize)
                .is_some_and(|slot| slot.load(Ordering::Relaxed) <= now.0)
        };
        if due(TimedDevice::Pit) {
            let mut pit = self.pit.lock();
            pit.advance(now);
            self.after_pit(&mut pit, now, &mut deliver);
        }
        if due(TimedDevice::Rtc) {
            let mut rtc = self.rtc.lock();
            rtc.advance(now);
            self.after_rtc(&rtc, &mut deliver);
        }
        if due(TimedDevice::Uart) {
            let uart = &mut self.serial.lock().uart;
            uart.advance(now);
            self.after_uart(uart, &mut deliver);
        }
        if due(TimedDevice::Pm) {
            let mut pm = self.pm.lock();
            pm.advance(now);
            self.after_pm(&pm, &mut deliver);
        }
    }

    pub(crate) fn after_pit(
        &self,
        pit: &mut Pit,
        now: Nanos,
        deliver: &mut impl FnMut(InterruptMessage),
    ) {
        if pit.take_interrupt(now) {
            self.irq.lock().pulse(0, deliver);
        }
        self.note_deadline(TimedDevice::Pit, pit);
    }

    pub(crate) fn after_rtc(&self, rtc: &Rtc, deliver: &mut impl FnMut(InterruptMessage)) {
        self.irq.lock().set(RTC_IRQ, rtc.irq(), deliver);
        self.note_deadline(TimedDevice::Rtc, rtc);
    }

    pub(crate) fn after_uart(&self, uart: &Uart, deliver: &mut impl FnMut(InterruptMessage)) {
        self.irq.lock().set(COM1_IRQ, uart.irq(), deliver);
        self.note_deadline(TimedDevice::Uart, uart);
    }

    pub(crate) fn after_keyboard(
        &self,
        keyboard: &I8042,
        deliver: &mut impl FnMut(InterruptMessage),
    ) {
        let mut irq = self.irq.lock();
        irq.set(KEYBOARD_IRQ, keyboard.irq_keyboard(), deliver);
        irq.set(MOUSE_IRQ, keyboard.irq_mouse(), deliver);
    }

    pub(crate) fn after_pm(&self, pm: &AcpiPm, deliver: &mut impl FnMut(InterruptMessage)) {
        self.irq.lock().set(SCI_IRQ, pm.irq(), deliver);
        self.note_deadline(TimedDevice::Pm, pm);
    }

    /// Bytes typed at the console; returns how many were taken.
    pub fn console_input(
        &self,
        bytes: &[u8],
        now: Nanos,
        mut deliver: impl FnMut(InterruptMessage),
    ) -> usize {
        let uart = &mut self.serial.lock().uart;
        let taken = uart.receive(bytes, now);
        self.after_uart(uart, &mut deliver);
        taken
    }

    /// Fetches what the guest sent to its console; how many bytes that were.
    pub fn console_output(
        &self,
        buffer: &mut [u8],
        mut deliver: impl FnMut(InterruptMessage),
    ) -> usize {
        let serial = &mut *self.serial.lock();
        let old = serial.sent.take(buffer);
        let new = serial.uart.drain_output(buffer.get_mut(old..).unwrap_or_default());
        if new != 0 {
            self.after_uart(&serial.uart, &mut deliver);
        }
        old + new
    }

    /// Presses the power button.
    pub fn press_power_button(&self, mut deliver: impl FnMut(InterruptMessage)) {
        let mut pm = self.pm.lock();
        pm.press_power_button();
        self.after_pm(&pm, &mut deliver);
    }

    /// Whether the 8259s ask for an interrupt.
    #[must_use]
    pub fn pic_output(&self) -> bool {
        self.irq.lock().pic_output()
    }

    /// The vector of the interrupt that the 8259s ask for.
    pub fn pic_acknowledge(&self, mut deliver: impl FnMut(InterruptMessage)) -> Vector {
        self.irq.lock().pic_acknowledge(&mut deliver)
    }

    /// A local APIC ended level-triggered `vector`.
    pub fn end_of_interrupt(&self, vector: Vector, mut deliver: impl FnMut(InterruptMessage)) {
        self.irq.lock().end_of_interrupt(vector, &mut deliver);
    }

    /// Reads device memory at `gpa`: all ones if nothing answers.
    pub fn mmio_read(&self, gpa: GuestPhysAddr, width: Width, now: Nanos) -> u64 {
        let at = |base: u64, size: u64| {
            gpa.checked_offset_from(GuestPhysAddr::new(base)).filter(|offset| *offset < size)
        };
        let value = if let Some(offset) = at(IOAPIC_BASE, IOAPIC_SIZE) {
            self.irq.lock().ioapic().mmio_read(offset, width, now).ok()
        } else if let (Some(scratch), Some(offset)) =
            (&self.scratch, at(SCRATCH_BASE, SCRATCH_SIZE))
        {
            scratch.lock().read(offset, width)
        } else {
            None
        };
        width.truncate(value.unwrap_or(u64::MAX))
    }

    /// Writes device memory at `gpa`: the write is lost if nothing listens.
    pub fn mmio_write(
        &self,
        gpa: GuestPhysAddr,
        width: Width,
        value: u64,
        now: Nanos,
        mut deliver: impl FnMut(InterruptMessage),
    ) {
        let at = |base: u64, size: u64| {
            gpa.checked_offset_from(GuestPhysAddr::new(base)).filter(|offset| *offset < size)
        };
        if let Some(offset) = at(IOAPIC_BASE, IOAPIC_SIZE) {
            let mut irq = self.irq.lock();
            // A width or register that is not there: the write is lost, as on hardware.
            let _ = irq.ioapic().mmio_write(offset, width, value, now);
            irq.flush(&mut deliver);
        } else if let (Some(scratch), Some(offset)) =
            (&self.scratch, at(SCRATCH_BASE, SCRATCH_SIZE))
        {
            scratch.lock().write(offset, width, value);
        }
    }
}
