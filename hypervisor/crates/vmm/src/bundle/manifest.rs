//! The manifest: what the developer's machine tells the image.

use super::{BundleError, GuestFault, MANIFEST_CRC_NAME, MANIFEST_NAME, VERSION};
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use serde::{Deserialize, Serialize};

/// The least memory of a guest, in bytes.
pub const MIN_MEMORY: u64 = 1 << 20;
/// The most memory of a guest, in bytes.
pub const MAX_MEMORY: u64 = 1 << 40;
/// The most vCPUs of a guest.
pub const MAX_VCPUS: u32 = 64;
/// The longest name of a guest, in bytes.
pub const MAX_NAME: usize = 64;

/// The contents of `manifest.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// The format's version: [`VERSION`].
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

/// Settings of one guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GuestSettings {
    /// Its name, unique: 1 to 64 of `A-Z a-z 0-9 . _ -`.
    pub name: String,
    /// Its memory in bytes: a multiple of 4096, 1 MiB to 1 TiB.
    pub memory: u64,
    /// Its number of vCPUs, 1 to 64.
    pub vcpus: u32,
    /// The file with its kernel.
    pub kernel: String,
    /// The file with its initial ramdisk, if any.
    pub initrd: Option<String>,
    /// Multiboot and PVH modules, in order.
    pub modules: Vec<ModuleSettings>,
    /// The kernel's command line.
    pub cmdline: String,
    /// Whether the guest has the debug-exit port 0xf4.
    pub debug_exit: bool,
    /// What happens when it resets its machine.
    #[serde(default)]
    pub on_reset: OnReset,
    /// How far the CPU may run its local APICs.
    #[serde(default)]
    pub apic: ApicAssist,
}

/// How far the CPU may run a guest's local APICs, where it can.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ApicAssist {
    /// It keeps the registers, and delivers and ends interrupts by itself.
    #[default]
    Full,
    /// It keeps the task priority; interrupts are injected.
    Priority,
    /// Every access is emulated.
    None,
}

/// What happens when a guest resets its machine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnReset {
    /// It starts again.
    #[default]
    Restart,
    /// It has ended.
    End,
}

/// A module for a Multiboot or PVH kernel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModuleSettings {
    /// The file with its contents.
    pub file: String,
    /// Its command line.
    pub cmdline: String,
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
        if any.version != VERSION {
            return Err(BundleError::Version { got: any.version });
        }
        parse(json)
    }

    /// Checks what JSON can't say: ranges, unique names, files that exist.
    ///
    /// # Errors
    /// [`BundleError`] names the guest or file.
    pub fn check(&self) -> Result<(), BundleError> {
        if self.version != VERSION {
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
        let mut names: BTreeMap<&str, usize> = BTreeMap::new();
        for (index, guest) in self.guests.iter().enumerate() {
            guest
                .check(&files)
                .and_then(|()| match names.insert(&guest.name, index) {
                    Some(first) => Err(GuestFault::DuplicateName(first)),
                    None => Ok(()),
                })
                .map_err(|fault| BundleError::Guest { index, name: guest.name.clone(), fault })?;
        }
        Ok(())
    }
}

impl GuestSettings {
    /// Checks what JSON can't say, where `files` are there.
    ///
    /// # Errors
    /// What is wrong.
    pub fn check(&self, files: &BTreeSet<&str>) -> Result<(), GuestFault> {
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        if self.name.is_empty() || self.name.len() > MAX_NAME || !self.name.chars().all(allowed) {
            return Err(GuestFault::Name);
        }
        if !(MIN_MEMORY..=MAX_MEMORY).contains(&self.memory) || !self.memory.is_multiple_of(4096) {
            return Err(GuestFault::Memory(self.memory));
        }
        if !(1..=MAX_VCPUS).contains(&self.vcpus) {
            return Err(GuestFault::Vcpus(self.vcpus));
        }
        let modules = self.modules.iter().map(|module| ("modules.file", &module.file));
        let named = [("kernel", &self.kernel)].into_iter();
        let named = named.chain(self.initrd.iter().map(|name| ("initrd", name))).chain(modules);
        for (key, name) in named {
            if !files.contains(name.as_str()) {
                return Err(GuestFault::NoFile { key, name: name.clone() });
            }
        }
        let lines = self.modules.iter().map(|module| ("modules.cmdline", &module.cmdline));
        for (key, line) in [("cmdline", &self.cmdline)].into_iter().chain(lines) {
            if let Some(at) = line.find('\0') {
                return Err(GuestFault::Nul(key, at));
            }
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
