//! Rules of a guest's life: its ends and restarts, as settings say them and in ticks of the
//! machine that it runs on.

use serde::{Deserialize, Serialize};

/// Consequence of a reset of a guest's machine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnReset {
    /// It starts again.
    #[default]
    Restart,
    /// It has ended.
    End,
}

/// Consequence of a shutdown of a guest's CPU (a triple fault).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnTripleFault {
    /// It has crashed.
    #[default]
    Crash,
    /// It resets its machine, as a PC's chipset does.
    Reset,
}

/// Consequence of a halt of all vCPUs of a guest with interrupts disabled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnHalt {
    /// It stays as it is, for the operator to look at.
    #[default]
    Stay,
    /// It has ended.
    End,
}

/// Whether a guest that has ended is started again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RestartPolicy {
    /// It is not.
    #[default]
    Never,
    /// It is, if it ended by a failure.
    OnFailure,
    /// It is, unless the operator ended it.
    Always,
}

/// How long a restart waits: `first_ms`, then twice as long each time, until the
/// guest has run for `healthy_ms`. Each `MIN_BACK_OFF_MS` to `MAX_BACK_OFF_MS`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BackOffSettings {
    /// The first wait, in milliseconds.
    pub first_ms: u32,
    /// The longest wait, in milliseconds: at least the first.
    pub most_ms: u32,
    /// A guest that ran for so many milliseconds is healthy: the next wait is the
    /// first again.
    pub healthy_ms: u32,
}

impl Default for BackOffSettings {
    /// A second, a minute, a minute.
    fn default() -> Self {
        Self { first_ms: 1000, most_ms: 60_000, healthy_ms: 60_000 }
    }
}

/// How long to wait before a restart: doubled each time, until the guest has
/// run for a healthy time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BackOff {
    /// The first wait, in ticks.
    pub first: u64,
    /// The longest wait, in ticks.
    pub most: u64,
    /// A guest that ran for so many ticks is healthy: the next wait is the
    /// first again.
    pub healthy: u64,
    /// A guest that resets its machine after fewer ticks waits, too: it does
    /// nothing else.
    pub hasty: u64,
}

impl BackOff {
    /// How long to wait after so many failures in a row.
    #[must_use]
    pub fn wait(self, failures: u32) -> u64 {
        let factor = 1u64.checked_shl(failures).unwrap_or(u64::MAX);
        self.first.saturating_mul(factor).min(self.most)
    }
}

/// Rules of a guest's life, as the configuration has them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rules {
    /// Whether it is started again after its end.
    pub restart: RestartPolicy,
    /// Consequence of a reset of its machine.
    pub on_reset: OnReset,
    /// How long to wait before a restart.
    pub back_off: BackOff,
}
