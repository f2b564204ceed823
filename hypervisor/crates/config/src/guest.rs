//! Settings of one guest: what the developer's machine tells the image.

use crate::features::CpuSettings;
use crate::limits::{
    DEFAULT_CONSOLE_RING, DEFAULT_WEIGHT, HASTY_RESET_MS, MAX_BACK_OFF_MS, MAX_CAP,
    MAX_CONSOLE_RING, MAX_CPU, MAX_MEMORY, MAX_MODULES, MAX_NAME, MAX_VCPUS, MAX_WATCHDOG_MS,
    MAX_WEIGHT, MIN_BACK_OFF_MS, MIN_CONSOLE_RING, MIN_MEMORY, MIN_WATCHDOG_MS, MIN_WEIGHT,
};
use crate::plain::plain_settings;
use crate::values::{Hypercalls, Uuid};
use crate::{
    BackOff, BackOffSettings, CpuSet, GuestFault, OnHalt, OnReset, OnTripleFault, RestartPolicy,
    Rules,
};
use alloc::collections::BTreeSet;
use alloc::string::String;
use alloc::vec::Vec;
use serde::{Deserialize, Serialize};
use x86defs::time::TscFrequency;

macro_rules! guest_settings {
    ($($(#[$doc:meta])* $name:ident: $type:ty = $words:tt;)*) => {
        /// Settings of one guest. [`GuestSettings::new`] has a default for most.
        #[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
        #[serde(deny_unknown_fields)]
        pub struct GuestSettings {
            /// Its name, unique: 1 to 64 of `A-Z a-z 0-9 . _ -`.
            pub name: String,
            /// The UUID of its machine; see [`GuestSettings::machine_uuid`].
            #[serde(default)]
            pub uuid: Option<Uuid>,
            /// Memory in bytes: a multiple of 4096, [`MIN_MEMORY`] to [`MAX_MEMORY`].
            pub memory: u64,
            /// When its memory is populated.
            #[serde(default)]
            pub populate: Populate,
            /// Its number of vCPUs, 1 to 64.
            pub vcpus: u32,
            /// Its part of the CPUs in proportion to the others': [`MIN_WEIGHT`] to
            /// [`MAX_WEIGHT`].
            #[serde(default = "default_weight")]
            pub weight: u32,
            /// The most that all its vCPUs get together, in percent of one CPU: 1 to
            /// [`MAX_CAP`]. `None`: no limit.
            #[serde(default)]
            pub cap: Option<u32>,
            /// The CPUs that its vCPUs may run on, 0 to [`MAX_CPU`], each once. `None`: all.
            #[serde(default)]
            pub affinity: Option<Vec<u8>>,
            /// The file with its kernel.
            pub kernel: String,
            /// The file with its initial ramdisk, if any.
            pub initrd: Option<String>,
            /// Multiboot and PVH modules, in order; at most 64.
            pub modules: Vec<ModuleSettings>,
            /// The kernel's command line.
            pub cmdline: String,
            /// Whether the guest has the debug-exit port 0xf4.
            pub debug_exit: bool,
            /// How long a restart waits.
            #[serde(default)]
            pub back_off: BackOffSettings,
            /// A guest that shows no sign of life for so many milliseconds has failed:
            /// [`MIN_WATCHDOG_MS`] to [`MAX_WATCHDOG_MS`]. `None`: no watchdog.
            #[serde(default)]
            pub watchdog_ms: Option<u32>,
            /// How many bytes of its console's output are kept while nobody looks:
            /// [`MIN_CONSOLE_RING`] to [`MAX_CONSOLE_RING`].
            #[serde(default = "default_console_ring")]
            pub console_ring: u32,
            $($(#[$doc])*
            #[serde(default)]
            pub $name: $type,)*
        }

        impl GuestSettings {
            /// A guest with one vCPU, the file `kernel`, and the default of everything else.
            #[must_use]
            pub fn new(name: impl Into<String>, memory: u64, kernel: impl Into<String>) -> Self {
                Self {
                    name: name.into(),
                    uuid: None,
                    memory,
                    populate: Populate::default(),
                    vcpus: 1,
                    weight: DEFAULT_WEIGHT,
                    cap: None,
                    affinity: None,
                    kernel: kernel.into(),
                    initrd: None,
                    modules: Vec::new(),
                    cmdline: String::new(),
                    debug_exit: false,
                    back_off: BackOffSettings::default(),
                    watchdog_ms: None,
                    console_ring: DEFAULT_CONSOLE_RING,
                    $($name: Default::default(),)*
                }
            }
        }
    };
}
plain_settings!(guest_settings);

const fn default_weight() -> u32 {
    DEFAULT_WEIGHT
}

const fn default_console_ring() -> u32 {
    DEFAULT_CONSOLE_RING
}

/// When a guest's memory, which is reserved at its start, gets its frames.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Populate {
    /// Each page when it is first touched.
    #[default]
    OnDemand,
    /// All before the guest starts.
    UpFront,
}

/// Rule that makes the run's status of a value V, written to the debug-exit port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DebugStatus {
    /// (V << 1) | 1, as QEMU's device has it.
    #[default]
    Shifted,
    /// V.
    Plain,
}

impl DebugStatus {
    /// The run's status where `value` was written: eight bits of (V << 1) | 1, or V, of which
    /// 255 stands for all that are larger: only 0 is a good end.
    #[must_use]
    pub const fn status(self, value: u32) -> u8 {
        let status = match self {
            Self::Shifted => value << 1 | 1,
            Self::Plain if value > 0xff => 0xff,
            Self::Plain => value,
        };
        let [low, ..] = status.to_le_bytes();
        low
    }
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

/// The signature that CPUID shows at leaf 0x4000_0000; the other one is at 0x4000_0100.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Signature {
    /// Steward's.
    #[default]
    Steward,
    /// KVM's, for programs that look nowhere else.
    Kvm,
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

/// Whether `name` can be a guest's: 1 to [`MAX_NAME`] of `A-Z a-z 0-9 . _ -`.
#[must_use]
pub fn is_guest_name(name: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    (1..=MAX_NAME).contains(&name.len()) && name.chars().all(allowed)
}

impl GuestSettings {
    /// The UUID of its machine: the one in the settings, or the one of its name.
    #[must_use]
    pub fn machine_uuid(&self) -> Uuid {
        self.uuid.unwrap_or_else(|| Uuid::from_name(&self.name))
    }

    /// The CPUs that its vCPUs may run on.
    #[must_use]
    pub fn cpus(&self) -> CpuSet {
        match &self.affinity {
            Some(cpus) => cpus.iter().map(|cpu| usize::from(*cpu)).collect(),
            None => CpuSet::ALL,
        }
    }

    /// Rules of its life, on a machine whose TSC counts at `frequency`.
    #[must_use]
    pub fn rules(&self, frequency: TscFrequency) -> Rules {
        let ticks = |ms: u32| u64::from(ms).saturating_mul(frequency.khz());
        let BackOffSettings { first_ms, most_ms, healthy_ms } = self.back_off;
        Rules {
            restart: self.restart,
            on_reset: self.on_reset,
            back_off: BackOff {
                first: ticks(first_ms),
                most: ticks(most_ms),
                healthy: ticks(healthy_ms),
                hasty: ticks(HASTY_RESET_MS),
            },
        }
    }

    /// Checks what JSON can't say; `files` are the names of the files that are there.
    ///
    /// # Errors
    /// The first fault that is found.
    pub fn check(&self, files: &BTreeSet<&str>) -> Result<(), GuestFault> {
        if !is_guest_name(&self.name) {
            return Err(GuestFault::Name);
        }
        if !(MIN_MEMORY..=MAX_MEMORY).contains(&self.memory) || !self.memory.is_multiple_of(4096) {
            return Err(GuestFault::Memory(self.memory));
        }
        if !(1..=MAX_VCPUS).contains(&self.vcpus) {
            return Err(GuestFault::Vcpus(self.vcpus));
        }
        self.check_scheduling()?;
        self.check_life()?;
        if !(MIN_CONSOLE_RING..=MAX_CONSOLE_RING).contains(&self.console_ring) {
            return Err(GuestFault::ConsoleRing(self.console_ring));
        }
        if self.modules.len() > MAX_MODULES {
            return Err(GuestFault::Modules(self.modules.len()));
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

    fn check_scheduling(&self) -> Result<(), GuestFault> {
        if !(MIN_WEIGHT..=MAX_WEIGHT).contains(&self.weight) {
            return Err(GuestFault::Weight(self.weight));
        }
        if let Some(cap) = self.cap
            && !(1..=MAX_CAP).contains(&cap)
        {
            return Err(GuestFault::Cap(cap));
        }
        let Some(affinity) = &self.affinity else { return Ok(()) };
        if affinity.is_empty() {
            return Err(GuestFault::NoCpu);
        }
        let mut seen = BTreeSet::new();
        for cpu in affinity {
            if *cpu > MAX_CPU {
                return Err(GuestFault::Cpu(*cpu));
            }
            if !seen.insert(cpu) {
                return Err(GuestFault::CpuTwice(*cpu));
            }
        }
        Ok(())
    }

    fn check_life(&self) -> Result<(), GuestFault> {
        let BackOffSettings { first_ms, most_ms, healthy_ms } = self.back_off;
        for (key, value) in [
            ("back_off.first_ms", first_ms),
            ("back_off.most_ms", most_ms),
            ("back_off.healthy_ms", healthy_ms),
        ] {
            if !(MIN_BACK_OFF_MS..=MAX_BACK_OFF_MS).contains(&value) {
                return Err(GuestFault::BackOff { key, value });
            }
        }
        if most_ms < first_ms {
            return Err(GuestFault::BackOffOrder { first_ms, most_ms });
        }
        match self.watchdog_ms {
            Some(value) if !(MIN_WATCHDOG_MS..=MAX_WATCHDOG_MS).contains(&value) => {
                Err(GuestFault::Watchdog(value))
            }
            _ => Ok(()),
        }
    }
}
