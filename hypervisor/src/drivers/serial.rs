//! The machine's first serial port: a ring that its interrupts drain.
//! Nothing ever waits for it but the very end.

use crate::cpu::legacy;
use spin::Mutex;
use uart_16550::backend::PioBackend;
use uart_16550::spec::registers::IER;
use uart_16550::{Config, Uart16550};

const COM1: u16 = 0x3f8;
const IRQ: u8 = 4;
/// Bytes that can wait: a power of two.
const RING: usize = 1 << 16;
/// How often the transmitter is polled for room before output is given up.
const PATIENCE: u32 = 10_000_000;

struct Port {
    uart: Uart16550<PioBackend>,
    ring: [u8; RING],
    head: usize,
    tail: usize,
}

static PORT: Mutex<Option<Port>> = Mutex::new(None);

impl Port {
    fn room(&self) -> usize {
        RING - 1 - (self.head.wrapping_sub(self.tail) & (RING - 1))
    }

    fn push(&mut self, byte: u8) {
        self.ring[self.head] = byte;
        self.head = (self.head + 1) & (RING - 1);
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
        }
        false
    }
}

/// Looks for the port and sets it up. `false` if there is none.
pub fn init() -> bool {
    // SAFETY: on a PC nothing else answers at COM1's ports, and this is the
    // only driver for them.
    let Ok(mut uart) = (unsafe { Uart16550::new_port(COM1) }) else { return false };
    if !uart.check_present() || uart.init(Config::default()).is_err() {
        return false;
    }
    *PORT.lock() = Some(Port { uart, ring: [0; RING], head: 0, tail: 0 });
    true
}

/// Lets the port interrupt.
pub fn enable_interrupts() {
    if let Some(port) = PORT.lock().as_mut() {
        port.uart.enable_interrupts(IER::DATA_READY);
        legacy::unmask(IRQ);
    }
}

/// Queues bytes for output; returns how many there was room for.
pub fn write(bytes: &[u8]) -> usize {
    let mut guard = PORT.lock();
    let Some(port) = guard.as_mut() else { return bytes.len() };
    let count = bytes.len().min(port.room());
    for byte in &bytes[..count] {
        port.push(*byte);
    }
    port.drain();
    count
}

/// How many bytes [`write`] would take.
#[must_use]
pub fn room() -> usize {
    PORT.lock().as_ref().map_or(usize::MAX, Port::room)
}

/// Sends what the transmitter takes; whether anything is left.
pub fn drain() -> bool {
    PORT.lock().as_mut().is_some_and(Port::drain)
}

/// Fetches bytes that were typed; how many.
pub fn read(buffer: &mut [u8]) -> usize {
    PORT.lock().as_mut().map_or(0, |port| port.uart.receive_bytes(buffer))
}

/// Sends everything, waiting for the transmitter: for the boot and the end.
pub fn flush() {
    if let Some(port) = PORT.lock().as_mut() {
        let mut patience = PATIENCE;
        while port.drain() && patience > 0 {
            patience -= 1;
        }
    }
}

/// Whatever the state of the lock, write this: for a panic.
pub fn write_in_panic(bytes: &[u8]) {
    if PORT.is_locked() {
        // SAFETY: the CPU that held the lock is this one, it will never go on,
        // and the ring is plain data.
        unsafe { PORT.force_unlock() };
    }
    for chunk in bytes.chunks(RING / 2) {
        flush();
        write(chunk);
    }
    flush();
}
