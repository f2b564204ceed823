//! The serial port: a 16550A with its FIFOs, interrupts, modem lines and
//! loopback.
//!
//! [`Uart`] sits between the guest's eight ports and a back end (a console
//! ring): the back end offers bytes with [`Uart::receive`], which takes as many
//! as there is room for, and fetches what the guest sent with
//! [`Uart::drain_output`]. Fetching *is* transmission: a byte that the back end
//! has not fetched still stands in the transmitter, so a slow back end slows
//! the guest down as a slow line would.
//!
//! A terminal is always there, and nothing goes wrong on the line: no parity or
//! framing error, no break. In loopback a receiver that is not read overruns.
//!
//! Data sheet: "PC16550D Universal Asynchronous Receiver/Transmitter with
//! FIFOs", chapter "Registers" and "FIFO Interrupt Mode Operation".

use alloc::vec::Vec;
use bitflags::bitflags;
use serde::{Deserialize, Serialize};
use state::Saved;
use x86defs::{Low, Width};

use crate::ports::PortRange;
use crate::{AccessError, Device, PortDevice, RestoreError, Timed};
use x86defs::time::{NANOS_PER_SECOND, Nanos};

mod fifo;
#[cfg(test)]
mod tests;

use fifo::Fifo;

/// Bytes that each FIFO holds.
const FIFO_SIZE: usize = 16;
/// The crystal's frequency over 16: bits per second at a divisor of 1.
const BASE_BAUD: u64 = 115_200;

bitflags! {
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    struct InterruptEnable: u8 {
        const RECEIVED_DATA = 1 << 0;
        const TRANSMITTER_EMPTY = 1 << 1;
        const LINE_STATUS = 1 << 2;
        const MODEM_STATUS = 1 << 3;
    }

    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    struct LineControl: u8 {
        /// Two bits: 5, 6, 7 or 8 bits in a character.
        const WORD_LENGTH = 0b11;
        const TWO_STOP_BITS = 1 << 2;
        const PARITY = 1 << 3;
        const EVEN_PARITY = 1 << 4;
        const STICK_PARITY = 1 << 5;
        const BREAK = 1 << 6;
        const DIVISOR_ACCESS = 1 << 7;
    }

    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    struct ModemControl: u8 {
        const DTR = 1 << 0;
        const RTS = 1 << 1;
        const OUT1 = 1 << 2;
        /// On a PC this output lets the interrupt through to the bus.
        const OUT2 = 1 << 3;
        const LOOPBACK = 1 << 4;
    }

    /// The four modem inputs, at their bits of the modem status register.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    struct ModemLines: u8 {
        /// Clear to send.
        const CTS = 1 << 4;
        /// Data set ready.
        const DSR = 1 << 5;
        /// Ring indicator.
        const RI = 1 << 6;
        /// Data carrier detect.
        const DCD = 1 << 7;
    }
}

/// The modem inputs that the terminal drives: it is there, and ready.
const TERMINAL: ModemLines = ModemLines::CTS.union(ModemLines::DSR).union(ModemLines::DCD);

/// The line status register's offset.
const LINE_STATUS: u16 = 5;
const DATA_READY: u8 = 1 << 0;
/// A character was lost: the receiver was full.
const OVERRUN: u8 = 1 << 1;
/// THRE and TEMT: nothing waits to be sent. They are one here, because the
/// shift register belongs to the back end.
const TRANSMITTER_EMPTY: u8 = 1 << 5 | 1 << 6;

/// FIFO control register.
mod fcr {
    pub(super) const ENABLE: u8 = 1 << 0;
    pub(super) const CLEAR_RECEIVER: u8 = 1 << 1;
    pub(super) const CLEAR_TRANSMITTER: u8 = 1 << 2;
}

/// The interrupt identification register's codes, most urgent first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    LineStatus = 0b0110,
    ReceivedData = 0b0100,
    Timeout = 0b1100,
    TransmitterEmpty = 0b0010,
    ModemStatus = 0b0000,
}

/// A 16550A serial port. See the module's description.
#[derive(Clone, Debug)]
pub struct Uart {
    ier: InterruptEnable,
    lcr: LineControl,
    mcr: ModemControl,
    fifos: bool,
    /// Characters in the receiver that raise its interrupt, with FIFOs on.
    trigger: u8,
    scratch: u8,
    divisor: u16,
    /// The receiver has overrun: the line status register shows it until it is read.
    overrun: bool,
    /// Bits 3:0 of the modem status register.
    deltas: u8,
    rx: Fifo,
    tx: Fifo,
    /// The transmitter ran empty, and the guest was not told yet.
    thr_interrupt: bool,
    /// Time at which the receiver was last filled or read.
    rx_touched: Nanos,
    /// Characters lie in the receiver FIFO for too long.
    rx_timeout: bool,
}

impl Default for Uart {
    fn default() -> Self {
        Self::new()
    }
}

impl Uart {
    /// Ports of a PC's first serial port.
    pub const COM1: PortRange = PortRange::new(0x3f8, 8, 0);

    /// A serial port as after a reset.
    #[must_use]
    pub fn new() -> Self {
        Self {
            ier: InterruptEnable::empty(),
            lcr: LineControl::empty(),
            mcr: ModemControl::empty(),
            fifos: false,
            trigger: 1,
            scratch: 0,
            divisor: 12,
            overrun: false,
            deltas: 0,
            rx: Fifo::default(),
            tx: Fifo::default(),
            thr_interrupt: false,
            rx_touched: Nanos(0),
            rx_timeout: false,
        }
    }

    /// The level of the interrupt line. OUT2 gates it, and loopback switches
    /// OUT2 off.
    #[inline]
    #[must_use]
    pub fn irq(&self) -> bool {
        self.mcr & (ModemControl::OUT2 | ModemControl::LOOPBACK) == ModemControl::OUT2
            && self.source().is_some()
    }

    /// How many bytes [`receive`](Self::receive) takes now: none in loopback,
    /// where the line is cut off.
    fn rx_space(&self) -> usize {
        if self.mcr.contains(ModemControl::LOOPBACK) {
            0
        } else {
            self.capacity().saturating_sub(self.rx.len())
        }
    }

    /// Bytes come in on the line. As many are taken as there is room for, and
    /// the number is returned: nothing is lost, the rest waits with the caller.
    pub fn receive(&mut self, bytes: &[u8], now: Nanos) -> usize {
        let count = self.rx_space().min(bytes.len());
        for byte in bytes.iter().take(count) {
            self.character_arrives(*byte, now);
        }
        count
    }

    /// The next byte that the guest sent, if any. When the last one is
    /// fetched, the transmitter is empty and says so to the guest.
    #[inline]
    fn take_output(&mut self) -> Option<u8> {
        let byte = self.tx.pop()?;
        if self.tx.is_empty() {
            self.thr_interrupt = true;
        }
        Some(byte)
    }

    /// Fetches as many bytes as fit `buffer`; how many there were.
    pub fn drain_output(&mut self, buffer: &mut [u8]) -> usize {
        let mut count = 0;
        for slot in buffer {
            let Some(byte) = self.take_output() else { break };
            *slot = byte;
            count += 1;
        }
        count
    }

    /// Whether bytes wait to be fetched.
    #[inline]
    #[must_use]
    pub fn has_output(&self) -> bool {
        !self.tx.is_empty()
    }

    /// A read of one byte at `offset` that changes nothing: of the line status
    /// while nothing was received and nothing waits to be sent. (A guest that waits for the
    /// transmitter waits for the back end that empties it: that has to have its turn.)
    #[inline]
    #[must_use]
    pub fn hot_read(&self, offset: u16) -> Option<u8> {
        let quiet = !self.overrun && self.rx.is_empty() && self.tx.is_empty();
        (offset == LINE_STATUS && quiet).then_some(TRANSMITTER_EMPTY)
    }

    /// Whether a byte written to the transmitter can be
    /// [sent at once](Self::send_at_once): nothing is before it, and nobody
    /// waits for an interrupt.
    #[inline]
    #[must_use]
    pub fn sends_at_once(&self) -> bool {
        !self.lcr.contains(LineControl::DIVISOR_ACCESS)
            && !self.mcr.contains(ModemControl::LOOPBACK)
            && !self.ier.contains(InterruptEnable::TRANSMITTER_EMPTY)
            && self.tx.is_empty()
    }

    /// A write to the transmitter and the fetching of that byte in one, where
    /// [`sends_at_once`](Self::sends_at_once) holds; the byte that was sent.
    #[inline]
    pub fn send_at_once(&mut self, byte: u8) -> u8 {
        self.thr_interrupt = true;
        byte & self.word_mask()
    }

    /// How long one character takes on the line, start and stop bits included.
    fn character_time(&self) -> Nanos {
        let bits = u64::from((self.lcr & LineControl::WORD_LENGTH).bits()) + 5;
        let parity = u64::from(self.lcr.contains(LineControl::PARITY));
        // Counted in half bits, for the one and a half stop bits of 5-bit words.
        let stop = match (self.lcr.contains(LineControl::TWO_STOP_BITS), bits) {
            (false, _) => 2,
            (true, 5) => 3,
            (true, _) => 4,
        };
        let halves = 2 * (1 + bits + parity) + stop;
        // A divisor of 0 counts through all 16 bits.
        let divisor = if self.divisor == 0 { 0x1_0000 } else { u64::from(self.divisor) };
        Nanos(halves * divisor * NANOS_PER_SECOND / (2 * BASE_BAUD))
    }

    fn capacity(&self) -> usize {
        if self.fifos { FIFO_SIZE } else { 1 }
    }

    fn word_mask(&self) -> u8 {
        0xff >> (3 - (self.lcr & LineControl::WORD_LENGTH).bits())
    }

    fn source(&self) -> Option<Source> {
        if self.ier.contains(InterruptEnable::LINE_STATUS) && self.overrun {
            return Some(Source::LineStatus);
        }
        if self.ier.contains(InterruptEnable::RECEIVED_DATA) {
            let level = if self.fifos { usize::from(self.trigger) } else { 1 };
            if self.rx.len() >= level {
                return Some(Source::ReceivedData);
            }
            if self.rx_timeout {
                return Some(Source::Timeout);
            }
        }
        if self.ier.contains(InterruptEnable::TRANSMITTER_EMPTY) && self.thr_interrupt {
            return Some(Source::TransmitterEmpty);
        }
        (self.ier.contains(InterruptEnable::MODEM_STATUS) && self.deltas != 0)
            .then_some(Source::ModemStatus)
    }

    /// Time at which the characters in the receiver FIFO have lain there too long.
    fn timeout_due(&self) -> Option<Nanos> {
        (self.fifos && !self.rx.is_empty() && !self.rx_timeout)
            .then(|| Nanos(self.rx_touched.0.saturating_add(4 * self.character_time().0)))
    }

    fn character_arrives(&mut self, byte: u8, now: Nanos) {
        if self.rx.len() >= self.capacity() {
            self.overrun = true;
            // Without FIFOs the new character takes the old one's place; with
            // FIFOs it is lost in the shift register.
            if self.fifos {
                return;
            }
            self.rx.pop();
        }
        self.rx.push(byte & self.word_mask());
        self.rx_touched = now;
    }

    fn read_receiver(&mut self, now: Nanos) -> u8 {
        self.rx_touched = now;
        self.rx_timeout = false;
        self.rx.pop().unwrap_or(0)
    }

    #[inline]
    fn write_transmitter(&mut self, byte: u8, now: Nanos) {
        let byte = byte & self.word_mask();
        self.thr_interrupt = false;
        if self.mcr.contains(ModemControl::LOOPBACK) {
            self.character_arrives(byte, now);
            self.thr_interrupt = self.tx.is_empty();
        } else if self.fifos {
            // A character too many is lost.
            self.tx.push(byte);
        } else {
            self.tx.pop();
            self.tx.push(byte);
        }
    }

    fn write_ier(&mut self, value: u8) {
        let enabled = InterruptEnable::from_bits_truncate(value);
        let newly = enabled & !self.ier;
        if newly.contains(InterruptEnable::TRANSMITTER_EMPTY) && self.tx.is_empty() {
            self.thr_interrupt = true;
        }
        self.ier = enabled;
    }

    fn write_fcr(&mut self, value: u8) {
        let enable = value & fcr::ENABLE != 0;
        let switched = enable != self.fifos;
        self.fifos = enable;
        if switched || value & fcr::CLEAR_RECEIVER != 0 {
            self.rx.clear();
            self.rx_timeout = false;
        }
        if (switched || value & fcr::CLEAR_TRANSMITTER != 0) && !self.tx.is_empty() {
            self.tx.clear();
            self.thr_interrupt = true;
        }
        // The other bits are programmed only together with the enable bit.
        self.trigger = match (enable, value >> 6) {
            (false, _) | (true, 0) => 1,
            (true, 1) => 4,
            (true, 2) => 8,
            (true, _) => 14,
        };
    }

    fn write_mcr(&mut self, value: u8) {
        let before = self.modem_lines();
        self.mcr = ModemControl::from_bits_truncate(value);
        self.note_modem_change(before);
    }

    /// The modem inputs as the chip sees them: in loopback, its own outputs.
    fn modem_lines(&self) -> ModemLines {
        if !self.mcr.contains(ModemControl::LOOPBACK) {
            return TERMINAL;
        }
        let mut lines = ModemLines::empty();
        lines.set(ModemLines::CTS, self.mcr.contains(ModemControl::RTS));
        lines.set(ModemLines::DSR, self.mcr.contains(ModemControl::DTR));
        lines.set(ModemLines::RI, self.mcr.contains(ModemControl::OUT1));
        lines.set(ModemLines::DCD, self.mcr.contains(ModemControl::OUT2));
        lines
    }

    fn note_modem_change(&mut self, before: ModemLines) {
        let after = self.modem_lines();
        let mut changed = before ^ after;
        // Of the ring indicator only the trailing edge counts.
        changed.set(ModemLines::RI, (before & !after).contains(ModemLines::RI));
        self.deltas |= changed.bits() >> 4;
    }

    fn read_iir(&mut self, now: Nanos) -> u8 {
        self.advance(now);
        let fifos = if self.fifos { 0xc0 } else { 0 };
        let Some(source) = self.source() else { return fifos | 1 };
        if source == Source::TransmitterEmpty {
            self.thr_interrupt = false;
        }
        fifos | source as u8
    }

    fn read_lsr(&mut self) -> u8 {
        let mut value = if core::mem::take(&mut self.overrun) { OVERRUN } else { 0 };
        if !self.rx.is_empty() {
            value |= DATA_READY;
        }
        if self.tx.is_empty() {
            value |= TRANSMITTER_EMPTY;
        }
        value
    }
}

impl PortDevice for Uart {
    fn port_read(&mut self, offset: u16, width: Width, now: Nanos) -> Result<u32, AccessError> {
        if width != Width::B1 {
            return Err(AccessError::Width);
        }
        let divisor = self.lcr.contains(LineControl::DIVISOR_ACCESS);
        let [low, high] = self.divisor.to_le_bytes();
        let value = match offset {
            0 if divisor => low,
            0 => self.read_receiver(now),
            1 if divisor => high,
            1 => self.ier.bits(),
            2 => self.read_iir(now),
            3 => self.lcr.bits(),
            4 => self.mcr.bits(),
            5 => self.read_lsr(),
            6 => self.modem_lines().bits() | core::mem::take(&mut self.deltas),
            7 => self.scratch,
            _ => return Err(AccessError::NoRegister),
        };
        Ok(value.into())
    }

    #[inline]
    fn port_write(
        &mut self,
        offset: u16,
        width: Width,
        value: u32,
        now: Nanos,
    ) -> Result<(), AccessError> {
        if width != Width::B1 {
            return Err(AccessError::Width);
        }
        let byte = value.low8();
        let divisor = self.lcr.contains(LineControl::DIVISOR_ACCESS);
        let [low, high] = self.divisor.to_le_bytes();
        match offset {
            0 if !divisor => self.write_transmitter(byte, now),
            0 => self.divisor = u16::from_le_bytes([byte, high]),
            1 if divisor => self.divisor = u16::from_le_bytes([low, byte]),
            1 => self.write_ier(byte),
            2 => self.write_fcr(byte),
            3 => self.lcr = LineControl::from_bits_retain(byte),
            4 => self.write_mcr(byte),
            // The line and modem status registers are for reading.
            5 | 6 => {}
            7 => self.scratch = byte,
            _ => return Err(AccessError::NoRegister),
        }
        Ok(())
    }
}

impl Timed for Uart {
    fn next_deadline(&self) -> Option<Nanos> {
        let wanted = self.ier.contains(InterruptEnable::RECEIVED_DATA)
            && self.rx.len() < usize::from(self.trigger);
        self.timeout_due().filter(|_| wanted)
    }

    fn advance(&mut self, now: Nanos) {
        if self.timeout_due().is_some_and(|due| due <= now) {
            self.rx_timeout = true;
        }
    }
}

/// The saved state of a [`Uart`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UartState {
    ier: u8,
    lcr: u8,
    mcr: u8,
    fifos: bool,
    trigger: u8,
    scratch: u8,
    divisor: u16,
    overrun: bool,
    deltas: u8,
    rx: Vec<u8>,
    tx: Vec<u8>,
    thr_interrupt: bool,
    rx_touched: Nanos,
    rx_timeout: bool,
}

impl Saved for UartState {
    const NAME: &'static str = "uart";
    const VERSION: u16 = 1;
}

impl Device for Uart {
    type State = UartState;

    fn save(&self) -> UartState {
        UartState {
            ier: self.ier.bits(),
            lcr: self.lcr.bits(),
            mcr: self.mcr.bits(),
            fifos: self.fifos,
            trigger: self.trigger,
            scratch: self.scratch,
            divisor: self.divisor,
            overrun: self.overrun,
            deltas: self.deltas,
            rx: self.rx.iter().collect(),
            tx: self.tx.iter().collect(),
            thr_interrupt: self.thr_interrupt,
            rx_touched: self.rx_touched,
            rx_timeout: self.rx_timeout,
        }
    }

    fn restore(&mut self, state: UartState) -> Result<(), RestoreError> {
        let bits = |what| RestoreError(what);
        let capacity = if state.fifos { FIFO_SIZE } else { 1 };
        if state.rx.len() > capacity || state.tx.len() > capacity {
            return Err(RestoreError("UART: more characters than the FIFOs hold"));
        }
        if !matches!(state.trigger, 1 | 4 | 8 | 14) || state.deltas > 0xf {
            return Err(RestoreError("UART: impossible trigger level or modem status"));
        }
        let (mut rx, mut tx) = (Fifo::default(), Fifo::default());
        state.rx.iter().for_each(|&byte| rx.push(byte));
        state.tx.iter().for_each(|&byte| tx.push(byte));
        *self = Self {
            ier: InterruptEnable::from_bits(state.ier).ok_or(bits("UART: impossible IER"))?,
            lcr: LineControl::from_bits_retain(state.lcr),
            mcr: ModemControl::from_bits(state.mcr).ok_or(bits("UART: impossible MCR"))?,
            fifos: state.fifos,
            trigger: state.trigger,
            scratch: state.scratch,
            divisor: state.divisor,
            overrun: state.overrun,
            deltas: state.deltas,
            rx,
            tx,
            thr_interrupt: state.thr_interrupt,
            rx_touched: state.rx_touched,
            rx_timeout: state.rx_timeout,
        };
        Ok(())
    }

    /// Master reset. The divisor and the scratch register are not touched by it;
    /// what stood in the FIFOs is gone.
    fn reset(&mut self) {
        *self = Self { scratch: self.scratch, divisor: self.divisor, ..Self::new() };
    }
}
