//! The keyboard controller (i8042), with neither a keyboard nor a mouse.
//!
//! A PC's software uses it for other things, too: to find out that nothing is
//! attached, to switch address line 20, and to reset the machine. The
//! controller's own commands are complete. A byte that is sent to a device
//! gets the controller's answer for a device that does not take it: 0xfe with
//! the time-out bit set, at once, so that probing costs no waiting.
//!
//! Offset 0 is port 0x60 (data), offset 1 port 0x64 (status and command).
//! IBM: "PS/2 Hardware Interface Technical Reference", "Keyboard and Auxiliary
//! Device Controller".

use alloc::vec::Vec;
use bitflags::bitflags;
use serde::{Deserialize, Serialize};
use state::Saved;
use x86defs::{Low, Width};

use crate::ports::PortRange;
use crate::{AccessError, Device, PortDevice, RestoreError};
use x86defs::time::Nanos;

bitflags! {
    /// The status register.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    struct Status: u8 {
        const OUTPUT_FULL = 1 << 0;
        const SYSTEM = 1 << 2;
        /// The last write was a command, not data.
        const COMMAND = 1 << 3;
        /// The key lock is open.
        const UNLOCKED = 1 << 4;
        const AUX_DATA = 1 << 5;
        const TIMEOUT = 1 << 6;
    }

    /// The command byte: byte 0 of the controller's memory.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    struct Mode: u8 {
        const KEYBOARD_INTERRUPT = 1 << 0;
        const AUX_INTERRUPT = 1 << 1;
        const SYSTEM = 1 << 2;
        const KEYBOARD_OFF = 1 << 4;
        const AUX_OFF = 1 << 5;
        const TRANSLATE = 1 << 6;
    }
}

/// The controller's commands.
mod command {
    pub(super) const PASSWORD_TEST: u8 = 0xa4;
    pub(super) const DISABLE_AUX: u8 = 0xa7;
    pub(super) const ENABLE_AUX: u8 = 0xa8;
    pub(super) const TEST_AUX: u8 = 0xa9;
    pub(super) const SELF_TEST: u8 = 0xaa;
    pub(super) const TEST_KEYBOARD: u8 = 0xab;
    pub(super) const DISABLE_KEYBOARD: u8 = 0xad;
    pub(super) const ENABLE_KEYBOARD: u8 = 0xae;
    pub(super) const READ_INPUT_PORT: u8 = 0xc0;
    pub(super) const READ_OUTPUT_PORT: u8 = 0xd0;
    pub(super) const WRITE_OUTPUT_PORT: u8 = 0xd1;
    pub(super) const ECHO_AS_KEYBOARD: u8 = 0xd2;
    pub(super) const ECHO_AS_AUX: u8 = 0xd3;
    pub(super) const WRITE_AUX: u8 = 0xd4;
    pub(super) const A20_OFF: u8 = 0xdd;
    pub(super) const A20_ON: u8 = 0xdf;
    pub(super) const READ_TEST_INPUTS: u8 = 0xe0;
}

/// Bit 0 of the output port: the processor runs while it is 1.
const OUTPUT_RUN: u8 = 1 << 0;
/// Bit 1 of the output port: address line 20.
const OUTPUT_A20: u8 = 1 << 1;
/// The output port's bits that are pins to be written: the two above, and the
/// data and clock lines of both devices.
const OUTPUT_DRIVEN: u8 = 0b1100_1111;
/// Output port bits 4 and 5 show the two interrupt lines.
const OUTPUT_KEYBOARD_IRQ: u8 = 1 << 4;
const OUTPUT_AUX_IRQ: u8 = 1 << 5;
/// The input port: the keyboard is not inhibited.
const INPUT_PORT: u8 = 1 << 7;
/// The test inputs are the clock lines: both idle, that is, high.
const TEST_INPUTS: u8 = 0b11;
const SELF_TEST_PASSED: u8 = 0x55;
const INTERFACE_WORKS: u8 = 0x00;
const NO_PASSWORD: u8 = 0xf1;
/// The answer in place of a device that takes no bytes.
const RESEND: u8 = 0xfe;
/// Bytes of the controller's memory that can be read and written.
const MEMORY_SIZE: usize = 32;

/// Source of a byte for the guest: one of the two devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Source {
    Keyboard,
    Aux,
}

/// Use of the next byte that is written to the data port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Expects {
    Keyboard,
    Memory(u8),
    OutputPort,
    EchoAsKeyboard,
    EchoAsAux,
    Aux,
}

/// The output buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Output {
    /// The byte that the data port reads as; it stays after it was read.
    byte: u8,
    full: bool,
    source: Source,
    timeout: bool,
}

/// The controller. See the module's description.
#[derive(Clone, Debug)]
pub struct I8042 {
    /// Byte 0 is the command byte.
    memory: [u8; MEMORY_SIZE],
    output_port: u8,
    output: Output,
    expects: Expects,
    last_was_command: bool,
    reset: bool,
}

impl Default for I8042 {
    fn default() -> Self {
        Self::new()
    }
}

impl I8042 {
    /// Ports of the registers in a PC.
    pub const PORTS: [PortRange; 2] = [PortRange::new(0x60, 1, 0), PortRange::new(0x64, 1, 1)];

    /// A controller as firmware leaves it: tested, both devices off, no
    /// interrupts, address line 20 on.
    #[must_use]
    pub fn new() -> Self {
        let mut memory = [0; MEMORY_SIZE];
        if let Some(byte) = memory.first_mut() {
            *byte = (Mode::SYSTEM | Mode::KEYBOARD_OFF | Mode::AUX_OFF).bits();
        }
        Self {
            memory,
            output_port: OUTPUT_DRIVEN,
            output: Output { byte: 0, full: false, source: Source::Keyboard, timeout: false },
            expects: Expects::Keyboard,
            last_was_command: false,
            reset: false,
        }
    }

    /// The level of interrupt line 1: a byte of the keyboard or of the
    /// controller itself waits.
    #[must_use]
    pub fn irq_keyboard(&self) -> bool {
        self.output.full
            && self.output.source == Source::Keyboard
            && self.mode().contains(Mode::KEYBOARD_INTERRUPT)
    }

    /// The level of interrupt line 12: a byte of the mouse waits.
    #[must_use]
    pub fn irq_mouse(&self) -> bool {
        self.output.full
            && self.output.source == Source::Aux
            && self.mode().contains(Mode::AUX_INTERRUPT)
    }

    /// Whether the guest has pulled the processor's reset line since this was
    /// called last.
    pub fn take_reset(&mut self) -> bool {
        core::mem::take(&mut self.reset)
    }

    fn mode(&self) -> Mode {
        Mode::from_bits_retain(self.memory.first().copied().unwrap_or(0))
    }

    fn change_mode(&mut self, bits: Mode, on: bool) {
        let mut mode = self.mode();
        mode.set(bits, on);
        self.write_memory(0, mode.bits());
    }

    fn write_memory(&mut self, index: u8, value: u8) {
        if let Some(byte) = self.memory.get_mut(usize::from(index)) {
            *byte = value;
        }
    }

    fn status(&self) -> u8 {
        let mut status = Status::UNLOCKED;
        status.set(Status::OUTPUT_FULL, self.output.full);
        status.set(Status::SYSTEM, self.mode().contains(Mode::SYSTEM));
        status.set(Status::COMMAND, self.last_was_command);
        status.set(Status::AUX_DATA, self.output.full && self.output.source == Source::Aux);
        status.set(Status::TIMEOUT, self.output.full && self.output.timeout);
        status.bits()
    }

    fn answer(&mut self, byte: u8, source: Source) {
        self.output = Output { byte, full: true, source, timeout: false };
    }

    fn device_times_out(&mut self, source: Source) {
        self.output = Output { byte: RESEND, full: true, source, timeout: true };
    }

    fn write_output_port(&mut self, value: u8) {
        self.output_port = value & OUTPUT_DRIVEN;
        self.reset |= value & OUTPUT_RUN == 0;
    }

    fn write_command(&mut self, value: u8) {
        self.last_was_command = true;
        // A command in place of the last one's data takes its place.
        self.expects = Expects::Keyboard;
        let index = value & 0x1f;
        let answer = match value {
            0x20..0x40 => self.memory.get(usize::from(index)).copied().unwrap_or(0),
            0x60..0x80 => return self.expects = Expects::Memory(index),
            command::PASSWORD_TEST => NO_PASSWORD,
            command::DISABLE_AUX => return self.change_mode(Mode::AUX_OFF, true),
            command::ENABLE_AUX => return self.change_mode(Mode::AUX_OFF, false),
            command::TEST_AUX | command::TEST_KEYBOARD => INTERFACE_WORKS,
            command::SELF_TEST => {
                self.write_memory(0, (Mode::SYSTEM | Mode::KEYBOARD_OFF | Mode::AUX_OFF).bits());
                self.output_port = OUTPUT_DRIVEN;
                SELF_TEST_PASSED
            }
            command::DISABLE_KEYBOARD => return self.change_mode(Mode::KEYBOARD_OFF, true),
            command::ENABLE_KEYBOARD => return self.change_mode(Mode::KEYBOARD_OFF, false),
            command::READ_INPUT_PORT => INPUT_PORT,
            command::READ_OUTPUT_PORT => {
                let keyboard = if self.irq_keyboard() { OUTPUT_KEYBOARD_IRQ } else { 0 };
                let aux = if self.irq_mouse() { OUTPUT_AUX_IRQ } else { 0 };
                self.output_port | keyboard | aux
            }
            command::WRITE_OUTPUT_PORT => return self.expects = Expects::OutputPort,
            command::ECHO_AS_KEYBOARD => return self.expects = Expects::EchoAsKeyboard,
            command::ECHO_AS_AUX => return self.expects = Expects::EchoAsAux,
            command::WRITE_AUX => return self.expects = Expects::Aux,
            command::A20_OFF => return self.output_port &= !OUTPUT_A20,
            command::A20_ON => return self.output_port |= OUTPUT_A20,
            command::READ_TEST_INPUTS => TEST_INPUTS,
            // Pulses those of the four low output pins whose bits are 0. A
            // pulse of 6 µs on line 20 is nothing that software could see.
            0xf0.. => return self.reset |= value & OUTPUT_RUN == 0,
            // The controller knows no such command, and says nothing.
            _ => return,
        };
        self.answer(answer, Source::Keyboard);
    }

    fn write_data(&mut self, value: u8) {
        self.last_was_command = false;
        match core::mem::replace(&mut self.expects, Expects::Keyboard) {
            Expects::Keyboard => {
                // Sending to the keyboard switches it on.
                self.change_mode(Mode::KEYBOARD_OFF, false);
                self.device_times_out(Source::Keyboard);
            }
            Expects::Aux => {
                self.change_mode(Mode::AUX_OFF, false);
                self.device_times_out(Source::Aux);
            }
            Expects::Memory(index) => self.write_memory(index, value),
            Expects::OutputPort => self.write_output_port(value),
            Expects::EchoAsKeyboard => self.answer(value, Source::Keyboard),
            Expects::EchoAsAux => self.answer(value, Source::Aux),
        }
    }
}

fn check(offset: u16, width: Width) -> Result<(), AccessError> {
    match (offset, width) {
        (0 | 1, Width::B1) => Ok(()),
        (0 | 1, _) => Err(AccessError::Width),
        _ => Err(AccessError::NoRegister),
    }
}

impl PortDevice for I8042 {
    fn port_read(&mut self, offset: u16, width: Width, _now: Nanos) -> Result<u32, AccessError> {
        check(offset, width)?;
        if offset == 0 {
            self.output.full = false;
            Ok(self.output.byte.into())
        } else {
            Ok(self.status().into())
        }
    }

    fn port_write(
        &mut self,
        offset: u16,
        width: Width,
        value: u32,
        _now: Nanos,
    ) -> Result<(), AccessError> {
        check(offset, width)?;
        if offset == 0 {
            self.write_data(value.low8());
        } else {
            self.write_command(value.low8());
        }
        Ok(())
    }
}

/// The saved state of an [`I8042`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct I8042State {
    memory: Vec<u8>,
    output_port: u8,
    output: Output,
    expects: Expects,
    last_was_command: bool,
    reset: bool,
}

impl Saved for I8042State {
    const NAME: &'static str = "i8042";
    const VERSION: u16 = 1;
}

impl Device for I8042 {
    type State = I8042State;

    fn save(&self) -> I8042State {
        I8042State {
            memory: self.memory.to_vec(),
            output_port: self.output_port,
            output: self.output,
            expects: self.expects,
            last_was_command: self.last_was_command,
            reset: self.reset,
        }
    }

    fn restore(&mut self, state: I8042State) -> Result<(), RestoreError> {
        let I8042State { memory, output_port, output, expects, last_was_command, reset } = state;
        let memory: [u8; MEMORY_SIZE] =
            memory.try_into().map_err(|_| RestoreError("i8042: the memory has not 32 bytes"))?;
        if output_port & !OUTPUT_DRIVEN != 0 {
            return Err(RestoreError("i8042: impossible output port"));
        }
        if matches!(expects, Expects::Memory(index) if usize::from(index) >= MEMORY_SIZE) {
            return Err(RestoreError("i8042: data is expected for memory that is not there"));
        }
        *self = Self { memory, output_port, output, expects, last_was_command, reset };
        Ok(())
    }

    fn reset(&mut self) {
        *self = Self::new();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Subject, device_properties};

    fn data(device: &mut I8042) -> u32 {
        device.port_read(0, Width::B1, Nanos(0)).unwrap()
    }

    fn status(device: &mut I8042) -> u32 {
        device.port_read(1, Width::B1, Nanos(0)).unwrap()
    }

    fn command(device: &mut I8042, value: u32) {
        device.port_write(1, Width::B1, value, Nanos(0)).unwrap();
    }

    fn send(device: &mut I8042, value: u32) {
        device.port_write(0, Width::B1, value, Nanos(0)).unwrap();
    }

    /// A command's answer; the buffer is empty before and after.
    fn ask(device: &mut I8042, value: u32) -> u32 {
        assert_eq!(status(device) & 1, 0);
        command(device, value);
        assert_eq!(status(device) & 0x69, 0x09);
        let answer = data(device);
        assert_eq!(status(device) & 1, 0);
        answer
    }

    #[test]
    fn tests_and_fixed_answers() {
        let mut device = I8042::new();
        assert_eq!(status(&mut device), 0x14);
        assert_eq!(ask(&mut device, 0xaa), 0x55);
        assert_eq!(ask(&mut device, 0xab), 0x00);
        assert_eq!(ask(&mut device, 0xa9), 0x00);
        assert_eq!(ask(&mut device, 0xa4), 0xf1);
        assert_eq!(ask(&mut device, 0xc0), 0x80);
        assert_eq!(ask(&mut device, 0xe0), 0x03);
    }

    #[test]
    fn command_byte_and_memory() {
        let mut device = I8042::new();
        assert_eq!(ask(&mut device, 0x20), 0x34);
        for (off, on, bit) in [(0xad, 0xae, 0x10), (0xa7, 0xa8, 0x20)] {
            command(&mut device, off);
            assert_eq!(ask(&mut device, 0x20) & bit, bit);
            command(&mut device, on);
            assert_eq!(ask(&mut device, 0x20) & bit, 0);
        }
        for index in 0..32 {
            command(&mut device, 0x60 + index);
            send(&mut device, index ^ 0x47);
            assert_eq!(status(&mut device) & 0x09, 0, "the last write was data");
        }
        for index in 0..32 {
            assert_eq!(ask(&mut device, 0x20 + index), index ^ 0x47);
        }
        command(&mut device, 0x60);
        send(&mut device, 0x00);
        assert_eq!(status(&mut device) & 0x04, 0, "the system flag follows the command byte");
        assert_eq!(ask(&mut device, 0xaa), 0x55);
        assert_eq!(status(&mut device) & 0x04, 0x04, "and the self-test sets it");
    }

    #[test]
    fn nothing_is_attached() {
        let mut device = I8042::new();
        for byte in [0xff, 0xf2, 0xed, 0xf4] {
            send(&mut device, byte);
            assert_eq!(status(&mut device) & 0x61, 0x41);
            assert_eq!(data(&mut device), 0xfe);
            command(&mut device, 0xd4);
            send(&mut device, byte);
            assert_eq!(status(&mut device) & 0x61, 0x61);
            assert_eq!(data(&mut device), 0xfe);
            assert_eq!(status(&mut device) & 0x61, 0);
        }
        assert_eq!(ask(&mut device, 0x20) & 0x30, 0, "sending switched both on");
    }

    #[test]
    fn interrupts() {
        let mut device = I8042::new();
        command(&mut device, 0xd2);
        send(&mut device, 0x1e);
        assert!(!device.irq_keyboard());
        assert_eq!(data(&mut device), 0x1e);
        command(&mut device, 0x60);
        send(&mut device, 0x07);
        command(&mut device, 0xd2);
        send(&mut device, 0x1e);
        assert!(device.irq_keyboard() && !device.irq_mouse());
        assert_eq!(data(&mut device), 0x1e);
        assert!(!device.irq_keyboard());
        command(&mut device, 0xd3);
        send(&mut device, 0x08);
        assert!(!device.irq_keyboard() && device.irq_mouse());
        assert_eq!(status(&mut device) & 0x21, 0x21);
        command(&mut device, 0xd0);
        assert_eq!(data(&mut device), 0xef, "the port shows the line");
        assert!(!device.irq_mouse());
    }

    #[test]
    fn resets() {
        let mut device = I8042::new();
        assert!(!device.take_reset());
        command(&mut device, 0xfe);
        assert!(device.take_reset());
        assert!(!device.take_reset());
        for other in [0xff, 0xf1, 0xfd] {
            command(&mut device, other);
            assert!(!device.take_reset());
        }
        command(&mut device, 0xd1);
        send(&mut device, 0xcf);
        assert!(!device.take_reset());
        command(&mut device, 0xd1);
        send(&mut device, 0xce);
        assert!(device.take_reset());
    }

    #[test]
    fn address_line_20() {
        let mut device = I8042::new();
        assert_eq!(ask(&mut device, 0xd0), 0xcf);
        command(&mut device, 0xdd);
        assert_eq!(ask(&mut device, 0xd0), 0xcd);
        command(&mut device, 0xdf);
        assert_eq!(ask(&mut device, 0xd0), 0xcf);
        command(&mut device, 0xd1);
        send(&mut device, 0xdd);
        assert_eq!(ask(&mut device, 0xd0) & 0x02, 0);
        assert!(!device.take_reset());
    }

    #[test]
    fn a_command_instead_of_data_cancels() {
        let mut device = I8042::new();
        command(&mut device, 0x60);
        assert_eq!(ask(&mut device, 0xab), 0);
        send(&mut device, 0x00);
        assert_eq!(data(&mut device), 0xfe, "it went to the keyboard");
    }

    #[test]
    fn unknown_commands_are_silent() {
        let mut device = I8042::new();
        for value in [0x00, 0x40, 0x80, 0xac, 0xb0, 0xd5, 0xe1] {
            command(&mut device, value);
            assert_eq!(status(&mut device), 0x1c);
        }
    }

    #[test]
    fn bounds() {
        let mut device = I8042::new();
        assert_eq!(device.port_read(0, Width::B2, Nanos(0)), Err(AccessError::Width));
        assert_eq!(device.port_write(2, Width::B1, 0, Nanos(0)), Err(AccessError::NoRegister));
        let good = device.save();
        for bad in [
            I8042State { memory: alloc::vec![0; 31], ..good.clone() },
            I8042State { output_port: 0x10, ..good.clone() },
            I8042State { expects: Expects::Memory(32), ..good.clone() },
        ] {
            assert!(device.restore(bad).is_err());
            assert_eq!(device.save(), good);
        }
    }

    impl Subject for I8042 {
        fn fresh() -> Self {
            Self::new()
        }

        fn act(&mut self, _what: u8, _value: u32, _now: Nanos) -> u64 {
            self.take_reset().into()
        }

        fn look(&self) -> u64 {
            u64::from(self.irq_keyboard())
                | u64::from(self.irq_mouse()) << 1
                | u64::from(self.output_port) << 2
        }
    }

    device_properties!(I8042, 2);
}
