//! The counting element of a channel: its output and its count at a number of clocks
//! after it was loaded, for each of the six modes.
//!
//! Data sheet: "82C54 Programmable Interval Timer", "Mode Definitions".

use serde::{Deserialize, Serialize};

/// How a channel counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    /// 0: the output goes high at the terminal count.
    TerminalCount,
    /// 1: low for the count after the gate rose.
    OneShot,
    /// 2: low for one clock in each period.
    RateGenerator,
    /// 3: high for half of each period.
    SquareWave,
    /// 4: low for one clock at the terminal count.
    SoftwareStrobe,
    /// 5: the same after the gate rose.
    HardwareStrobe,
}

impl Mode {
    /// Bits 3:1 of a control word.
    pub(super) fn from_control(control: u8) -> Self {
        match control >> 1 & 7 {
            0 => Self::TerminalCount,
            1 => Self::OneShot,
            2 | 6 => Self::RateGenerator,
            3 | 7 => Self::SquareWave,
            4 => Self::SoftwareStrobe,
            _ => Self::HardwareStrobe,
        }
    }

    /// Whether it starts over by itself.
    pub(super) fn is_periodic(self) -> bool {
        matches!(self, Self::RateGenerator | Self::SquareWave)
    }

    /// Whether only a rising gate starts it.
    pub(super) fn is_triggered(self) -> bool {
        matches!(self, Self::OneShot | Self::HardwareStrobe)
    }

    /// Clocks of a period of `n` for which a square wave is high.
    fn high_half(n: u64) -> u64 {
        n.div_ceil(2)
    }

    /// The output `elapsed` clocks after `n` was loaded.
    pub(super) fn output(self, n: u64, elapsed: u64) -> bool {
        match self {
            Self::TerminalCount | Self::OneShot => elapsed >= n,
            Self::RateGenerator => elapsed % n != n - 1,
            Self::SquareWave => elapsed % n < Self::high_half(n),
            Self::SoftwareStrobe | Self::HardwareStrobe => elapsed != n,
        }
    }

    /// The output before any count was loaded.
    pub(super) fn idle_output(self) -> bool {
        self != Self::TerminalCount
    }

    /// How often the output has risen in `elapsed` clocks after the load.
    /// A period of 1, which the data sheet forbids, never changes the output.
    pub(super) fn rises(self, n: u64, elapsed: u64) -> u64 {
        match self {
            Self::TerminalCount | Self::OneShot => u64::from(elapsed >= n),
            Self::RateGenerator | Self::SquareWave if n < 2 => 0,
            Self::RateGenerator | Self::SquareWave => elapsed / n,
            Self::SoftwareStrobe | Self::HardwareStrobe => u64::from(elapsed > n),
        }
    }

    /// How many clocks after the load the output next rises, later than `elapsed`.
    pub(super) fn next_rise(self, n: u64, elapsed: u64) -> Option<u64> {
        match self {
            Self::TerminalCount | Self::OneShot => (elapsed < n).then_some(n),
            Self::RateGenerator | Self::SquareWave => {
                (n >= 2).then(|| (elapsed / n).saturating_add(1).saturating_mul(n))
            }
            Self::SoftwareStrobe | Self::HardwareStrobe => (elapsed <= n).then_some(n + 1),
        }
    }

    /// How many clocks after the load, later than `elapsed`, a periodic mode
    /// takes a new count: at the end of a period, or of half a square wave.
    pub(super) fn next_reload(self, n: u64, elapsed: u64) -> u64 {
        let start = elapsed - elapsed % n;
        let half = Self::high_half(n);
        if self == Self::SquareWave && elapsed % n < half {
            start.saturating_add(half)
        } else {
            start.saturating_add(n)
        }
    }

    /// The count as it reads; `modulus` is 65,536, or 10,000 in BCD.
    pub(super) fn count(self, n: u64, elapsed: u64, modulus: u64) -> u64 {
        let count = match self {
            Self::RateGenerator => n - elapsed % n,
            // Counts down by two from the even part of n, once for each half.
            Self::SquareWave => {
                let position = elapsed % n;
                let half = Self::high_half(n);
                let in_half = if position < half { position } else { position - half };
                (n & !1).saturating_sub(2 * in_half)
            }
            // These modes count on below zero.
            _ => n % modulus + modulus - elapsed % modulus,
        };
        count % modulus
    }
}

/// State of the counting element.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Element {
    /// Nothing was loaded since the mode was set; the count stands still.
    Idle {
        /// The count as it reads.
        count: u16,
    },
    /// Counts since the clock `start`, when it was loaded with `n`.
    Running {
        /// A clock number; negative where half a square wave is skipped.
        start: i64,
        /// 1 to 65,536 (in BCD a little more for digits beyond 9: up to 16,665).
        n: u32,
    },
    /// The gate holds it, `elapsed` clocks after `n` was loaded.
    Held {
        /// Clocks that were counted.
        elapsed: u64,
        /// The count with which it was loaded, as in `Running`.
        n: u32,
    },
}
