//! The programmable interval timer: an 8254 with its three channels, and the
//! port that gates the third.
//!
//! All is worked out from the time of the access, so the 1.193182 MHz clock
//! never drifts. Channel 0 drives ISA interrupt 0: its owner calls
//! [`Pit::take_interrupt`] whenever [`Timed::next_deadline`] has come (and
//! may at any other time), and on `true` pulses the line. If several periods
//! have gone by, that is one interrupt: a real PC loses the others in the same
//! way when interrupts are off for long.
//!
//! Offsets 0 to 3 are ports 0x40 to 0x43, offset 4 is port 0x61.
//!
//! Data sheet: "82C54 Programmable Interval Timer".

use serde::{Deserialize, Serialize};
use state::Saved;
use x86defs::{Low, Width};

use crate::clock::Clock;
use crate::port61::{self, Port61};
use crate::ports::PortRange;
use crate::{AccessError, Device, PortDevice, RestoreError, Timed};
use x86defs::time::Nanos;

mod channel;
mod element;
#[cfg(test)]
mod tests;

use channel::Channel;

/// The clock of all channels, in hertz.
const FREQUENCY: u32 = 1_193_182;
const CLOCK: Clock = Clock::new(FREQUENCY);

/// The PIT and port 0x61. See the module's description.
#[derive(Clone, Debug)]
pub struct Pit {
    timer: Channel,
    refresh: Channel,
    speaker: Channel,
    port61: Port61,
}

impl Default for Pit {
    fn default() -> Self {
        Self::new()
    }
}

impl Pit {
    /// Ports of the registers in a PC.
    pub const PORTS: [PortRange; 2] =
        [PortRange::new(0x40, 4, 0), PortRange::new(port61::PORT, 1, 4)];

    /// A PIT that nobody has programmed: no channel counts. The gates of the
    /// first two channels are always high, the third's is low.
    #[must_use]
    pub fn new() -> Self {
        Self {
            timer: Channel::new(true),
            refresh: Channel::new(true),
            speaker: Channel::new(false),
            port61: Port61::default(),
        }
    }

    /// How often channel 0's output has risen since this was called last.
    fn take_edges(&mut self, now: Nanos) -> u64 {
        self.timer.take_edges(clock(now))
    }

    /// Whether channel 0 interrupts: it has risen at least once since it was
    /// last asked. Rises beyond the first are lost.
    pub fn take_interrupt(&mut self, now: Nanos) -> bool {
        self.take_edges(now) > 0
    }

    fn channel_mut(&mut self, index: u8) -> Option<&mut Channel> {
        match index {
            0 => Some(&mut self.timer),
            1 => Some(&mut self.refresh),
            2 => Some(&mut self.speaker),
            _ => None,
        }
    }

    fn write_control(&mut self, value: u8, clock: i64) {
        let Some(channel) = self.channel_mut(value >> 6) else {
            return self.read_back(value, clock);
        };
        if value & 0x30 == 0 {
            channel.latch_count(clock);
        } else {
            channel.set_mode(value, clock);
        }
    }

    /// The read-back command: bits 1 to 3 choose channels, a clear bit 5
    /// latches their counts, a clear bit 4 their status.
    fn read_back(&mut self, value: u8, clock: i64) {
        for index in (0..3).filter(|index| value & 2 << index != 0) {
            let Some(channel) = self.channel_mut(index) else { continue };
            if value & 0x20 == 0 {
                channel.latch_count(clock);
            }
            if value & 0x10 == 0 {
                channel.latch_status(clock);
            }
        }
    }
}

/// The number of the clock at `now`.
fn clock(now: Nanos) -> i64 {
    i64::try_from(CLOCK.ticks(now)).unwrap_or(i64::MAX)
}

impl PortDevice for Pit {
    fn port_read(&mut self, offset: u16, width: Width, now: Nanos) -> Result<u32, AccessError> {
        if width != Width::B1 {
            return Err(AccessError::Width);
        }
        let clock = clock(now);
        let value = match offset {
            0 => self.timer.read(clock),
            1 => self.refresh.read(clock),
            2 => self.speaker.read(clock),
            4 => self.port61.read(self.speaker.output(clock), CLOCK.ticks(now)),
            // The control word can't be read.
            _ => return Err(AccessError::NoRegister),
        };
        Ok(value.into())
    }

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
        let clock = clock(now);
        let value = value.low8();
        match offset {
            0 => self.timer.write(value, clock),
            1 => self.refresh.write(value, clock),
            2 => self.speaker.write(value, clock),
            3 => self.write_control(value, clock),
            4 => {
                self.port61.write(value);
                self.speaker.set_gate(self.port61.gate(), clock);
            }
            _ => return Err(AccessError::NoRegister),
        }
        Ok(())
    }
}

impl Timed for Pit {
    /// The next rise of channel 0's output.
    fn next_deadline(&self) -> Option<Nanos> {
        let edge = self.timer.next_edge()?;
        Some(CLOCK.when(u64::try_from(edge).unwrap_or(0)))
    }

    fn advance(&mut self, now: Nanos) {
        self.timer.sync(clock(now));
    }
}

/// The saved state of a [`Pit`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PitState {
    channels: [Channel; 3],
    port61: Port61,
}

impl Saved for PitState {
    const NAME: &'static str = "pit";
    const VERSION: u16 = 1;
}

impl Device for Pit {
    type State = PitState;

    fn save(&self) -> PitState {
        PitState { channels: [self.timer, self.refresh, self.speaker], port61: self.port61 }
    }

    fn restore(&mut self, state: PitState) -> Result<(), RestoreError> {
        let PitState { channels, port61 } = state;
        if !channels.iter().all(Channel::is_possible) || !port61.is_possible() {
            return Err(RestoreError("PIT: impossible counter"));
        }
        let [timer, refresh, speaker] = channels;
        if !timer.gate() || !refresh.gate() || speaker.gate() != port61.gate() {
            return Err(RestoreError("PIT: a gate has the wrong level"));
        }
        *self = Self { timer, refresh, speaker, port61 };
        Ok(())
    }

    fn reset(&mut self) {
        *self = Self::new();
    }
}
