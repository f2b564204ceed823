//! One channel of the PIT: its registers, latches, gate and output.
//!
//! Time is the number of the clock. The counting element's work between two
//! accesses is computed when somebody looks.
//!
//! Data sheet: "82C54 Programmable Interval Timer", "Write Operations",
//! "Read Operations", "Gate Pin Operations Summary".

use serde::{Deserialize, Serialize};
use x86defs::Low;

use super::element::{Element, Mode};

/// Bytes of a count that are read and written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Access {
    Low,
    High,
    LowThenHigh,
}

/// A channel. `control` holds the six low bits of its control word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Channel {
    control: u8,
    gate: bool,
    element: Element,
    /// The count register: what the guest wrote last, not yet encoded away.
    register: Option<u32>,
    /// The register waits to be loaded: the status's "null count".
    null_count: bool,
    /// The clock at which the register will be loaded.
    load_at: Option<i64>,
    /// The low byte of a count of which the high byte is still to come.
    low_byte: Option<u8>,
    /// The next read gives the high byte.
    read_high: bool,
    latched_count: Option<u16>,
    latched_status: Option<u8>,
    /// The clock up to which rising edges of the output were counted.
    seen: i64,
    /// Rising edges that nobody has taken yet.
    edges: u64,
}

impl Channel {
    pub(super) fn new(gate: bool) -> Self {
        Self {
            // Nothing is defined at power-on: a square wave that never began.
            control: 0x36,
            gate,
            element: Element::Idle { count: 0 },
            register: None,
            null_count: true,
            load_at: None,
            low_byte: None,
            read_high: false,
            latched_count: None,
            latched_status: None,
            seen: 0,
            edges: 0,
        }
    }

    pub(super) fn is_possible(&self) -> bool {
        // No clock of a real guest's life is beyond this: 2,000 years.
        const LATEST: i64 = 1 << 56;
        let clock = |clock: i64| (-0x2_0000..LATEST).contains(&clock);
        let count = |n: u32| (1..=0x1_0000).contains(&n);
        let element = match self.element {
            Element::Idle { .. } => true,
            Element::Running { start, n } => clock(start) && count(n),
            Element::Held { elapsed, n } => elapsed < LATEST.cast_unsigned() && count(n),
        };
        element
            && self.control < 0x40
            && self.control & 0x30 != 0
            && self.register.is_none_or(count)
            && self.load_at.is_none_or(clock)
            && clock(self.seen)
    }

    pub(super) fn gate(&self) -> bool {
        self.gate
    }

    fn mode(&self) -> Mode {
        Mode::from_control(self.control)
    }

    fn access(&self) -> Access {
        match self.control >> 4 & 3 {
            1 => Access::Low,
            2 => Access::High,
            _ => Access::LowThenHigh,
        }
    }

    fn bcd(&self) -> bool {
        self.control & 1 != 0
    }

    fn modulus(&self) -> u64 {
        if self.bcd() { 10_000 } else { 0x1_0000 }
    }

    fn elapsed(start: i64, clock: i64) -> u64 {
        clock.saturating_sub(start).max(0).cast_unsigned()
    }

    /// The output at `clock`, with the counting element as it is.
    fn output_now(&self, clock: i64) -> bool {
        let mode = self.mode();
        match self.element {
            Element::Idle { .. } => mode.idle_output(),
            Element::Running { start, n } => mode.output(n.into(), Self::elapsed(start, clock)),
            // A low gate lifts the output of a periodic mode at once.
            Element::Held { elapsed, n } => mode.is_periodic() || mode.output(n.into(), elapsed),
        }
    }

    fn count_now(&self, clock: i64) -> u16 {
        let (n, elapsed) = match self.element {
            Element::Idle { count } => return count,
            Element::Running { start, n } => (n, Self::elapsed(start, clock)),
            Element::Held { elapsed, n } => (n, elapsed),
        };
        let count = self.mode().count(n.into(), elapsed, self.modulus()).low16();
        if self.bcd() { to_bcd(count) } else { count }
    }

    /// Counts the edges up to `clock`, and loads the counting element where
    /// that fell due on the way.
    pub(super) fn sync(&mut self, clock: i64) {
        if let Some(due) = self.load_at.filter(|&due| due <= clock) {
            self.count_edges(due);
            let was_high = self.output_now(due);
            self.load(due);
            self.note_rise(was_high, due);
        }
        self.count_edges(clock);
    }

    /// An edge, where the output was low and is not any more.
    fn note_rise(&mut self, was_high: bool, clock: i64) {
        let rose = !was_high && self.output_now(clock);
        self.edges = self.edges.saturating_add(rose.into());
    }

    fn count_edges(&mut self, clock: i64) {
        if clock <= self.seen {
            return;
        }
        if let Element::Running { start, n } = self.element {
            let rises = |at| self.mode().rises(n.into(), Self::elapsed(start, at));
            let new = rises(clock).saturating_sub(rises(self.seen));
            self.edges = self.edges.saturating_add(new);
        }
        self.seen = clock;
    }

    fn load(&mut self, clock: i64) {
        self.load_at = None;
        self.null_count = false;
        let Some(n) = self.register else { return };
        let mode = self.mode();
        let low_half = mode == Mode::SquareWave
            && matches!(self.element, Element::Running { .. })
            && !self.output_now(clock);
        self.element = if !self.gate && !mode.is_triggered() {
            Element::Held { elapsed: 0, n }
        } else if low_half {
            Element::Running { start: clock.saturating_sub(n.div_ceil(2).into()), n }
        } else {
            Element::Running { start: clock, n }
        };
    }

    /// Changes something that the output depends on; a rise counts as an edge.
    fn change(&mut self, clock: i64, what: impl FnOnce(&mut Self)) {
        self.sync(clock);
        let was_high = self.output_now(clock);
        what(self);
        self.note_rise(was_high, clock);
    }

    pub(super) fn output(&self, clock: i64) -> bool {
        let mut copy = *self;
        copy.sync(clock);
        copy.output_now(clock)
    }

    pub(super) fn take_edges(&mut self, clock: i64) -> u64 {
        self.sync(clock);
        core::mem::take(&mut self.edges)
    }

    /// The clock of the next rising edge, as things stand; one that was not
    /// taken yet is due now.
    pub(super) fn next_edge(&self) -> Option<i64> {
        if self.edges > 0 {
            return Some(self.seen);
        }
        let mut copy = *self;
        if let Some(due) = self.load_at {
            if let Some(edge) = copy.next_rise().filter(|&edge| edge <= due) {
                return Some(edge);
            }
            copy.sync(due);
            if copy.edges > 0 {
                return Some(due);
            }
        }
        copy.next_rise()
    }

    fn next_rise(&self) -> Option<i64> {
        let Element::Running { start, n } = self.element else { return None };
        let rise = self.mode().next_rise(n.into(), Self::elapsed(start, self.seen))?;
        Some(start.saturating_add_unsigned(rise))
    }

    /// A control word for this channel that sets its mode.
    pub(super) fn set_mode(&mut self, control: u8, clock: i64) {
        self.change(clock, |channel| {
            let count = channel.count_now(clock);
            channel.control = control & 0x3f;
            channel.element = Element::Idle { count };
            channel.register = None;
            channel.null_count = true;
            channel.load_at = None;
            channel.low_byte = None;
            channel.read_high = false;
            channel.latched_count = None;
            channel.latched_status = None;
        });
    }

    pub(super) fn latch_count(&mut self, clock: i64) {
        self.sync(clock);
        if self.latched_count.is_none() {
            self.latched_count = Some(self.count_now(clock));
        }
    }

    pub(super) fn latch_status(&mut self, clock: i64) {
        self.sync(clock);
        if self.latched_status.is_none() {
            let output = u8::from(self.output_now(clock)) << 7;
            let null = u8::from(self.null_count) << 6;
            self.latched_status = Some(output | null | self.control);
        }
    }

    pub(super) fn read(&mut self, clock: i64) -> u8 {
        self.sync(clock);
        if let Some(status) = self.latched_status.take() {
            return status;
        }
        let [low, high] = self.latched_count.unwrap_or_else(|| self.count_now(clock)).to_le_bytes();
        let (byte, last) = match (self.access(), self.read_high) {
            (Access::Low, _) => (low, true),
            (Access::High, _) => (high, true),
            (Access::LowThenHigh, false) => (low, false),
            (Access::LowThenHigh, true) => (high, true),
        };
        self.read_high = !last;
        if last {
            self.latched_count = None;
        }
        byte
    }

    pub(super) fn write(&mut self, byte: u8, clock: i64) {
        self.change(clock, |channel| match (channel.access(), channel.low_byte.take()) {
            (Access::Low, _) => channel.set_register(u16::from(byte), clock),
            (Access::High, _) => channel.set_register(u16::from(byte) << 8, clock),
            (Access::LowThenHigh, Some(low)) => {
                channel.set_register(u16::from_le_bytes([low, byte]), clock);
            }
            (Access::LowThenHigh, None) => {
                channel.low_byte = Some(byte);
                // In mode 0 the first byte stops the counting.
                if channel.mode() == Mode::TerminalCount {
                    channel.element = Element::Idle { count: channel.count_now(clock) };
                    channel.load_at = None;
                }
            }
        });
    }

    fn set_register(&mut self, value: u16, clock: i64) {
        let n = match (value, self.bcd()) {
            (0, true) => 10_000,
            (0, false) => 0x1_0000,
            (digits, true) => from_bcd(digits),
            (n, false) => u32::from(n),
        };
        self.register = Some(n);
        self.null_count = true;
        let mode = self.mode();
        let next = clock.saturating_add(1);
        self.load_at = match self.element {
            // Waits for the gate; a trigger that is on its way stays.
            _ if mode.is_triggered() => self.load_at,
            Element::Running { start, n } if mode.is_periodic() => {
                // A count that is loaded by a clock that is still to come is
                // replaced without a period in between.
                let reload = mode.next_reload(n.into(), Self::elapsed(start, clock));
                Some(start.saturating_add_unsigned(reload).min(self.load_at.unwrap_or(i64::MAX)))
            }
            Element::Held { .. } if mode.is_periodic() => self.load_at,
            _ => Some(next),
        };
        if mode == Mode::TerminalCount {
            self.element = Element::Idle { count: self.count_now(clock) };
        }
    }

    pub(super) fn set_gate(&mut self, gate: bool, clock: i64) {
        if gate == self.gate {
            return;
        }
        self.change(clock, |channel| {
            channel.gate = gate;
            let mode = channel.mode();
            if mode.is_triggered() {
                if gate && channel.register.is_some() {
                    channel.load_at = Some(clock.saturating_add(1));
                }
                return;
            }
            match channel.element {
                Element::Running { start, n } if !gate => {
                    channel.element = Element::Held { elapsed: Self::elapsed(start, clock), n };
                    if mode.is_periodic() {
                        channel.load_at = None;
                    }
                }
                Element::Held { elapsed, n } if gate => {
                    // A periodic mode begins anew with the next clock.
                    if mode.is_periodic() {
                        channel.load_at = Some(clock.saturating_add(1));
                    } else {
                        let start = clock.saturating_sub_unsigned(elapsed);
                        channel.element = Element::Running { start, n };
                    }
                }
                _ => {}
            }
        });
    }
}

fn to_bcd(count: u16) -> u16 {
    let digit = |unit: u16| count / unit % 10;
    digit(1000) << 12 | digit(100) << 8 | digit(10) << 4 | digit(1)
}

fn from_bcd(digits: u16) -> u32 {
    let digit = |shift: u16| u32::from(digits >> shift & 0xf);
    digit(12) * 1000 + digit(8) * 100 + digit(4) * 10 + digit(0)
}
