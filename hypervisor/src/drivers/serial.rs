//! The machine's serial ports, the operator's [`CONSOLE`] and the [`CONTROL`]
//! line for programs: each a ring that its interrupts drain. Nothing ever waits
//! for them but the very end.

use crate::cpu::vectors::LEGACY_VECTOR_BASE;
use crate::cpu::{asm, legacy, tsc};
use spin::Mutex;
use uart_16550::backend::PioBackend;
use uart_16550::spec::registers::{IER, LSR};
use uart_16550::{BaudRate, Config, Uart16550};

/// Bytes that can wait: a power of two.
const RING: usize = 1 << 16;
/// Room that guests' output leaves for the operator's.
const RESERVE: usize = RING / 4;
/// How long the transmitter may stand still before output is given up.
const PATIENCE_MS: u64 = 1000;
/// Assumed rate of the TSC until it is measured: 5 GHz.
const FAST_KHZ: u64 = 5_000_000;

/// The operator's terminal: COM1.
pub static CONSOLE: Line = Line::new(0x3f8, 4);
/// The line on which programs speak the control protocol: COM2.
pub static CONTROL: Line = Line::new(0x2f8, 3);

/// [`PATIENCE_MS`] in ticks.
fn patience() -> u64 {
    let khz = match tsc::khz() {
        0 => FAST_KHZ,
        khz => khz,
    };
    khz * PATIENCE_MS
}

/// A serial port of the machine. One that is not there takes what is written
/// and reads nothing.
pub struct Line {
    base: u16,
    irq: u8,
    port: Mutex<Option<Port>>,
}

struct Port {
    uart: Uart16550<PioBackend>,
    ring: [u8; RING],
    head: usize,
    tail: usize,
    /// The tick when the transmitter last took something, or something to do.
    moved: u64,
}

impl Port {
    fn room(&self) -> usize {
        RING - 1 - (self.head.wrapping_sub(self.tail) & (RING - 1))
    }

    /// Queues bytes for which there is room.
    fn queue(&mut self, bytes: &[u8]) {
        // Otherwise its interrupt goes on with it.
        let idle = self.head == self.tail;
        if idle {
            self.moved = asm::rdtsc();
        }
        let (first, second) = bytes.split_at(bytes.len().min(RING - self.head));
        self.ring[self.head..self.head + first.len()].copy_from_slice(first);
        self.ring[..second.len()].copy_from_slice(second);
        self.head = (self.head + bytes.len()) & (RING - 1);
        if idle {
            self.drain();
        }
    }

    /// Sends what the transmitter takes; whether anything is left.
    fn drain(&mut self) -> bool {
        while self.head != self.tail {
            let end = if self.head > self.tail { self.head } else { RING };
            let sent = self.uart.send_bytes(&self.ring[self.tail..end]);
            if sent == 0 {
                return true;
            }
            self.tail = (self.tail + sent) & (RING - 1);
            self.moved = asm::rdtsc();
        }
        false
    }
}

impl Line {
    const fn new(base: u16, irq: u8) -> Self {
        Self { base, irq, port: Mutex::new(None) }
    }

    /// The vector of its interrupt.
    pub const fn vector(&self) -> u8 {
        LEGACY_VECTOR_BASE + self.irq
    }

    /// Looks for the port and sets it up. `false` if there is none.
    pub fn init(&self) -> bool {
        // SAFETY: on a PC nothing else answers at a serial port's ports, and this
        // is the only driver for them.
        let Ok(mut uart) = (unsafe { Uart16550::new_port(self.base) }) else { return false };
        let config = Config { baud_rate: BaudRate::Baud115200, ..Config::default() };
        if !uart.check_present() || uart.init(config).is_err() {
            return false;
        }
        *self.port.lock() = Some(Port { uart, ring: [0; RING], head: 0, tail: 0, moved: 0 });
        true
    }

    /// Lets the port interrupt.
    pub fn enable_interrupts(&self) {
        if let Some(port) = self.port.lock().as_mut() {
            port.uart.enable_interrupts(IER::DATA_READY | IER::THR_EMPTY);
            legacy::unmask(self.irq);
        }
    }

    /// Queues bytes for output; returns how many there was room for.
    pub fn write(&self, bytes: &[u8]) -> usize {
        self.write_leaving(0, bytes)
    }

    /// As [`write`](Self::write), for a guest: it leaves room for the operator.
    pub fn write_for_guest(&self, bytes: &[u8]) -> usize {
        self.write_leaving(RESERVE, bytes)
    }

    /// Queues all of `bytes`, for a guest, or nothing: what belongs together is not torn
    /// apart. Whether there was room.
    pub fn write_whole_for_guest(&self, bytes: &[u8]) -> bool {
        let mut guard = self.port.lock();
        let Some(port) = guard.as_mut() else { return true };
        let fits = bytes.len() <= port.room().saturating_sub(RESERVE);
        if fits {
            port.queue(bytes);
        }
        fits
    }

    fn write_leaving(&self, reserve: usize, bytes: &[u8]) -> usize {
        let mut guard = self.port.lock();
        let Some(port) = guard.as_mut() else { return bytes.len() };
        let count = bytes.len().min(port.room().saturating_sub(reserve));
        port.queue(&bytes[..count]);
        count
    }

    /// How many bytes [`write`](Self::write) would take.
    #[must_use]
    pub fn room(&self) -> usize {
        self.port.lock().as_ref().map_or(usize::MAX, Port::room)
    }

    /// How many bytes [`write_for_guest`](Self::write_for_guest) would take.
    #[must_use]
    pub fn room_for_guest(&self) -> usize {
        self.room().saturating_sub(RESERVE)
    }

    /// Whether the transmitter has had something to send for a second and took
    /// nothing.
    #[must_use]
    pub fn stands_still(&self) -> bool {
        self.port.lock().as_ref().is_some_and(|port| {
            port.head != port.tail && asm::rdtsc().wrapping_sub(port.moved) > patience()
        })
    }

    /// Sends what the transmitter takes; whether anything is left.
    pub fn drain(&self) -> bool {
        self.port.lock().as_mut().is_some_and(|port| {
            // Reading what interrupts ends the transmitter's request, so that the
            // next one is an edge again.
            let _ = port.uart.isr();
            port.drain()
        })
    }

    /// Fetches bytes that came; how many.
    pub fn read(&self, buffer: &mut [u8]) -> usize {
        self.port.lock().as_mut().map_or(0, |port| port.uart.receive_bytes(buffer))
    }

    /// Sends everything, waiting for the transmitter: for the boot and the end.
    pub fn flush(&self) {
        let mut guard = self.port.lock();
        let Some(port) = guard.as_mut() else { return };
        port.moved = asm::rdtsc();
        // The last bytes are gone when the transmitter itself is empty.
        while port.drain() || !port.uart.lsr().contains(LSR::TRANSMITTER_EMPTY) {
            if asm::rdtsc().wrapping_sub(port.moved) > patience() {
                return;
            }
        }
    }

    /// Whatever the state of the lock, write this: for a panic.
    pub fn write_in_panic(&self, bytes: &[u8]) {
        super::wait_in_panic(|| self.port.is_locked());
        if self.port.is_locked() {
            // SAFETY: the CPU that holds the lock is this one, or was told to stop and
            // had time to: it will not go on, and the ring is plain data.
            unsafe { self.port.force_unlock() };
        }
        for chunk in bytes.chunks(RING / 2) {
            self.flush();
            self.write(chunk);
        }
        self.flush();
    }
}
