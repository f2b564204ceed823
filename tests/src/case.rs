//! The description of a case.

use anyhow::Result;
use config::{ApicAssist, HostExit, OnReset};
use xtask::emulator::{Clock, DiskKind};
use xtask::machine::{Firmware, Machine};

use crate::drive::Drive;
use crate::starts::Starts;

/// When a case runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tier {
    /// Each time.
    Usual,
    /// With `--full`.
    Full,
}

/// The kernel that runs as the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kernel {
    /// Debian's cloud kernel with xtask's initial ramdisk.
    Debian,
    /// Debian's 32-bit kernel with an initial ramdisk of the same making.
    Debian32,
    /// Debian's cloud kernel with an initial ramdisk whose one program prints this
    /// line and switches the machine off.
    DebianInit(&'static str),
    /// One of the tiny guests of `tests/guests`.
    Tiny(String),
    /// Debian's memtest86+.
    Memtest,
    /// Debian's Xen 4.17, by Multiboot, without a kernel for its first domain.
    Xen,
    /// A file with something wrong in it.
    Garbage,
}

/// How the hypervisor is built.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Build {
    /// For tests: with assertions, less optimised.
    Debug,
    /// As it is used: the only one whose exits are worth counting.
    Release,
    /// The same with every exit stamped.
    Stamped,
}

/// Several guests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scene {
    /// A configuration of the repository, by its path there.
    File(&'static str),
    /// This configuration.
    Text(String),
}

/// Damage that is done to the bundle before it goes into the image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Damage {
    /// Nothing.
    None,
    /// One bit of the guest's kernel, in the bundle.
    File,
    /// One bit of the manifest.
    Manifest,
    /// The end is missing.
    Truncated,
}

/// A command that runs in place of a shell, and what is to come of it.
#[derive(Debug, Clone, Copy)]
pub struct Exec {
    /// The command.
    pub command: &'static str,
    /// The last line of its output, without the line feed.
    pub ends_with: &'static str,
    /// Its status.
    pub status: u8,
}

/// A script that talks to the machine; an error fails the case.
pub type Script = fn(&mut Drive) -> Result<()>;

/// The disk that a machine boots from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Medium {
    /// The image's file.
    Image,
    /// A larger disk, onto which it was flashed.
    Flashed,
    /// A larger disk, onto whose beginning it was copied as it is.
    Copied,
}

/// One test on one emulated machine.
#[derive(Debug, Clone)]
pub struct Case {
    /// Its name: the log's, and what a filter looks at.
    pub name: String,
    /// When it runs.
    pub tier: Tier,
    /// The machine that it runs on.
    pub machine: Machine,
    /// Build of the hypervisor.
    pub build: Build,
    /// The firmware that boots the machine.
    pub firmware: Firmware,
    /// Connection of the disk that the machine boots from.
    pub disk: DiskKind,
    /// The kind of that disk.
    pub medium: Medium,
    /// The same machine booted from a disk connected like this before, and its firmware
    /// remembers.
    pub before: Option<DiskKind>,
    /// The emulated CPU model, if not the usual one.
    pub cpu: Option<&'static str>,
    /// More for the emulator: words of QEMU's command line, lines of Bochs' configuration.
    pub machine_args: &'static [&'static str],
    /// CPUs of the machine, and vCPUs of the guest.
    pub cpus: (u32, u32),
    /// The guest's memory in MiB.
    pub memory: u64,
    /// The machine's memory in MiB, if not what xtask computes.
    pub machine_memory: Option<u64>,
    /// The guest.
    pub kernel: Kernel,
    /// Modules: their contents and command lines.
    pub modules: Vec<(&'static str, &'static str)>,
    /// Its command line; nothing: the guest's usual one.
    pub cmdline: Option<&'static str>,
    /// More words for the command line.
    pub words: String,
    /// Damage to the bundle.
    pub damage: Damage,
    /// How the hypervisor leaves the machine, if not as it leaves that emulator.
    pub host_exit: Option<HostExit>,
    /// Whether the guest may write to port 0xf4.
    pub debug_exit: bool,
    /// The hypervisor's reaction when the guest resets its machine.
    pub on_reset: OnReset,
    /// How far the CPU may run the guest's local APIC.
    pub apic: ApicAssist,
    /// Time base of the machine's clocks, but for scenes of the release build.
    pub clock: Clock,
    /// How long it may take, in seconds.
    pub seconds: u64,
    /// The script that talks to the machine.
    pub script: Script,
    /// A command that runs in the Debian guest, as `run --exec` has it.
    pub exec: Option<Exec>,
    /// Whether a tiny guest hears on its command line which emulator it runs in.
    pub tells_host: bool,
    /// Instead of one guest: those of this configuration. The machine has a control
    /// line.
    pub scene: Option<Scene>,
    /// Instead of one machine and a script: this many random programs in lock
    /// step on several.
    pub lockstep: Option<u64>,
    /// Instead of one machine and a script: many starts.
    pub starts: Option<Starts>,
    /// The image has this planted fault, which it is to find and mend.
    pub fault: Option<&'static str>,
}

impl Case {
    /// A tiny guest on QEMU's AMD-V, booted by the BIOS (it is quicker), that must
    /// report that all its cases passed.
    pub fn tiny(guest: &str) -> Case {
        Case {
            name: format!("tiny-{guest}"),
            tier: Tier::Usual,
            machine: Machine::QemuSvm,
            build: Build::Debug,
            firmware: Firmware::Bios,
            disk: DiskKind::Virtio,
            medium: Medium::Image,
            before: None,
            cpu: None,
            machine_args: &[],
            cpus: (1, 1),
            memory: 64,
            machine_memory: None,
            kernel: Kernel::Tiny(guest.to_owned()),
            modules: Vec::new(),
            cmdline: None,
            words: String::new(),
            damage: Damage::None,
            host_exit: None,
            debug_exit: true,
            on_reset: OnReset::End,
            apic: ApicAssist::Full,
            clock: Clock::Usual,
            seconds: 240,
            script: crate::cases::tiny_passes,
            exec: None,
            tells_host: true,
            scene: None,
            lockstep: None,
            starts: None,
            fault: None,
        }
    }

    /// Several guests on QEMU's AMD-V.
    pub fn scene(name: &str, scene: Scene, script: Script) -> Case {
        Case { name: name.to_owned(), scene: Some(scene), seconds: 600, script, ..Case::tiny("") }
    }

    /// Debian on QEMU's AMD-V.
    pub fn debian(name: &str, firmware: Firmware, script: Script) -> Case {
        Case {
            name: name.to_owned(),
            firmware,
            memory: 512,
            kernel: Kernel::Debian,
            debug_exit: false,
            on_reset: OnReset::Restart,
            seconds: 600,
            script,
            ..Case::tiny("")
        }
    }
}
