//! Settings of the hypervisor.

use crate::{EscapeKey, Uuid};
use serde::{Deserialize, Serialize};

/// Settings of the hypervisor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HostSettings {
    /// How to leave the machine when there is nothing left to run.
    pub exit: HostExit,
    /// How much to log.
    pub log: LogLevel,
    /// Whether to leave the machine when the last guest has ended.
    #[serde(default)]
    pub when_empty: WhenEmpty,
    /// The key that begins a command of the operator's.
    #[serde(default)]
    pub escape: EscapeKey,
    /// Bytes of a guest's output that reach the operator's terminal.
    #[serde(default)]
    pub console: ConsoleBytes,
    /// Key in the line that says how the run ended: a guest, which does not know it, can't
    /// say that line.
    #[serde(default)]
    pub end_key: Option<Uuid>,
}

impl HostSettings {
    /// These settings, and the default of everything else.
    #[must_use]
    pub const fn new(exit: HostExit, log: LogLevel) -> Self {
        Self {
            exit,
            log,
            when_empty: WhenEmpty::Exit,
            escape: EscapeKey::DEFAULT,
            console: ConsoleBytes::Filtered,
            end_key: None,
        }
    }
}

/// Bytes of a guest's output that reach the operator's terminal.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ConsoleBytes {
    /// All but what makes a terminal answer or reprogram itself
    /// (`control::screen`).
    #[default]
    Filtered,
    /// Every byte: for a program that wants just what the guest wrote.
    Raw,
}

/// Behaviour of the hypervisor when no guest runs and none waits for a restart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WhenEmpty {
    /// It leaves the machine, as [`HostSettings::exit`] says.
    #[default]
    Exit,
    /// It stays: the operator may start guests.
    Stay,
}

/// How the machine is left when there is nothing left to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HostExit {
    /// QEMU's `isa-debug-exit` at port 0xf4.
    IsaDebugExit,
    /// The bytes `Shutdown` to Bochs' port 0x8900.
    Bochs,
    /// Halt every CPU.
    Halt,
}

/// How much to log: this level and what is graver.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    /// Nothing.
    Off,
    /// Things that went wrong.
    Error,
    /// Things that may go wrong.
    Warn,
    /// Things that happen.
    Info,
    /// Things that a developer wants to know.
    Debug,
    /// Everything.
    Trace,
}

impl LogLevel {
    /// The level's name in lower case, as the `log` crate parses it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Error => "error",
            Self::Warn => "warn",
            Self::Info => "info",
            Self::Debug => "debug",
            Self::Trace => "trace",
        }
    }
}
