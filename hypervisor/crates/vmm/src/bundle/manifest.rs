//! The manifest: what the developer's machine tells the image.

use super::values::{EscapeKey, Uuid};
use super::{
    BundleError, GuestFault, GuestSettings, MANIFEST_CRC_NAME, MANIFEST_NAME, OLDEST_VERSION,
    VERSION,
};
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use serde::{Deserialize, Serialize};

/// The contents of `manifest.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// The format's version: [`OLDEST_VERSION`] to [`VERSION`].
    pub version: u32,
    /// Settings of the hypervisor.
    pub host: HostSettings,
    /// The guests, in the order in which they are started.
    pub guests: Vec<GuestSettings>,
    /// The archive's other members.
    pub files: Vec<FileEntry>,
}

/// Settings of the hypervisor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HostSettings {
    /// What to do when there is nothing left to run.
    pub exit: HostExit,
    /// How much to log.
    pub log: LogLevel,
    /// What to do when the last guest has ended.
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
    /// These, and the default of everything else.
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
    /// ([`operator::screen`](crate::operator::screen)).
    #[default]
    Filtered,
    /// Every byte: for a program that wants just what the guest wrote.
    Raw,
}

/// What the hypervisor does when no guest runs and none waits for a restart.
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
    /// What went wrong.
    Error,
    /// What may go wrong.
    Warn,
    /// What happens.
    Info,
    /// What a developer wants to know.
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

/// A file in the archive.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileEntry {
    /// Its name, unique, at most 100 bytes.
    pub name: String,
    /// Its size in bytes.
    pub size: u64,
    /// The CRC-32 (IEEE 802.3) of its contents.
    pub crc32: u32,
}

/// Of a manifest of any version, this much can be read.
#[derive(Deserialize)]
struct AnyManifest {
    version: u32,
}

impl Manifest {
    /// Reads the JSON text of a manifest.
    ///
    /// # Errors
    /// [`BundleError::Json`] with line and column, [`BundleError::Version`].
    pub fn from_json(json: &[u8]) -> Result<Self, BundleError> {
        // The version goes first: a newer manifest should be refused for what
        // it is, not for the first key that is new in it.
        let any: AnyManifest = parse(json)?;
        if !(OLDEST_VERSION..=VERSION).contains(&any.version) {
            return Err(BundleError::Version { got: any.version });
        }
        parse(json)
    }

    /// Checks what JSON can't say: ranges, unique names, files that exist.
    ///
    /// # Errors
    /// [`BundleError`] names the guest or file.
    pub fn check(&self) -> Result<(), BundleError> {
        if !(OLDEST_VERSION..=VERSION).contains(&self.version) {
            return Err(BundleError::Version { got: self.version });
        }
        let mut files = BTreeSet::new();
        for (index, FileEntry { name, .. }) in self.files.iter().enumerate() {
            let reserved = name == MANIFEST_NAME || name == MANIFEST_CRC_NAME;
            if name.is_empty() || name.len() > 100 || name.contains('\0') || reserved {
                return Err(BundleError::FileName { index, name: name.clone() });
            }
            if !files.insert(name.as_str()) {
                return Err(BundleError::DuplicateFile { index, name: name.clone() });
            }
        }
        if self.guests.is_empty() {
            return Err(BundleError::NoGuests);
        }
        let mut names = BTreeMap::new();
        let mut uuids = BTreeMap::new();
        for (index, guest) in self.guests.iter().enumerate() {
            guest
                .check(&files)
                .and_then(|()| match names.insert(guest.name.as_str(), index) {
                    Some(first) => Err(GuestFault::DuplicateName(first)),
                    None => Ok(()),
                })
                .and_then(|()| match uuids.insert(guest.machine_uuid(), index) {
                    Some(first) => Err(GuestFault::DuplicateUuid(first)),
                    None => Ok(()),
                })
                .map_err(|fault| BundleError::Guest { index, name: guest.name.clone(), fault })?;
        }
        Ok(())
    }
}

fn parse<'a, T: Deserialize<'a>>(json: &'a [u8]) -> Result<T, BundleError> {
    serde_json::from_slice(json).map_err(|error| BundleError::Json {
        line: error.line(),
        column: error.column(),
        message: error.to_string(),
    })
}
