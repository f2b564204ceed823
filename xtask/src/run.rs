//! `run`: from the options to a running machine and its end.

use std::fs;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;
use vmm::bundle::{ApicAssist, LogLevel, OnReset};

use crate::bundle::{self, Guest};
use crate::console;
use crate::emulator::{Boot, Clock, Launch};
use crate::kernel::{self, Profile};
use crate::machine::{self, Firmware, HostFacts, Machine, Ovmf};
use crate::session::{Ending, Session};
use crate::stages::Stages;
use crate::{exec, guest, image, paths, setup, ui};

/// Options of `run`.
#[derive(Debug, Clone, Args)]
pub struct RunOptions {
    /// The machine to run on [default: nested KVM where it is really usable, else qemu-svm]
    #[arg(long, value_enum)]
    pub machine: Option<Machine>,
    /// The firmware that boots the image [default: uefi where OVMF is there, else bios]
    #[arg(long, value_enum)]
    pub firmware: Option<Firmware>,
    /// Physical CPUs of the machine
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub cpus: u32,
    /// CPU model to emulate instead of the usual one, for example EPYC,-svm
    #[arg(long, value_name = "MODEL")]
    pub cpu: Option<String>,
    /// Let QEMU's clocks count instructions, one a tick, instead of real time
    #[arg(long)]
    pub icount: bool,
    /// Memory of the guest; the machine gets more
    #[arg(long, default_value = "512M", value_name = "SIZE", value_parser = bundle::parse_size)]
    pub memory: u64,
    /// Memory of the machine [default: what the guest, the bundle and Steward need]
    #[arg(long, value_name = "SIZE", value_parser = bundle::parse_size)]
    pub machine_memory: Option<u64>,
    /// Virtual CPUs of the guest
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub vcpus: u32,
    /// Kernel to boot as the guest: Linux (bzImage), PVH or Multiboot [default: Debian's cloud kernel]
    #[arg(long, value_name = "FILE")]
    pub kernel: Option<PathBuf>,
    /// Initial ramdisk for it
    #[arg(long, value_name = "FILE")]
    pub initrd: Option<PathBuf>,
    /// Module for a Multiboot or PVH kernel, with its command line; may be repeated
    #[arg(long = "module", value_name = "FILE[=CMDLINE]")]
    pub modules: Vec<String>,
    /// The kernel's command line
    #[arg(long, value_name = "TEXT")]
    pub cmdline: Option<String>,
    /// Give the guest port 0xf4: a write of V ends it, and the run's status is (V << 1) | 1
    #[arg(long)]
    pub debug_exit: bool,
    /// End the run when the guest resets its machine, instead of starting it again
    #[arg(long)]
    pub reset_ends: bool,
    /// How far the CPU may run the guest's local APIC: full, priority (interrupts are injected) or none
    #[arg(long, default_value = "full", value_name = "HOW", value_parser = parse_apic)]
    pub apic: ApicAssist,
    /// Run COMMAND in the default guest, print what it prints, end with its status; `-` reads it from standard input
    #[arg(long, value_name = "COMMAND", conflicts_with_all = ["kernel", "initrd", "modules", "cmdline", "debug_exit"])]
    pub exec: Option<String>,
    /// Show no window [default where there is no display]
    #[arg(long)]
    pub headless: bool,
    /// End the run with status 124 after this many seconds
    #[arg(long, value_name = "SECONDS")]
    pub timeout: Option<u64>,
    /// Build the image with the release profile
    #[arg(long)]
    pub release: bool,
    /// Put this ELF file into the image instead of building the hypervisor
    #[arg(long, value_name = "FILE", hide = true)]
    pub image_elf: Option<PathBuf>,
    /// How much the hypervisor logs: off, error, warn, info, debug or trace
    #[arg(long, default_value = "info", value_name = "LEVEL", value_parser = parse_level)]
    pub verbosity: LogLevel,
    /// Keep the serial log in this file
    #[arg(long, value_name = "FILE")]
    pub log: Option<PathBuf>,
}

fn parse_level(text: &str) -> Result<LogLevel, String> {
    [
        LogLevel::Off,
        LogLevel::Error,
        LogLevel::Warn,
        LogLevel::Info,
        LogLevel::Debug,
        LogLevel::Trace,
    ]
    .into_iter()
    .find(|level| level.as_str() == text)
    .ok_or_else(|| format!("`{text}` is no level"))
}

/// Reads `--apic`.
pub(crate) fn parse_apic(text: &str) -> Result<ApicAssist, String> {
    match text {
        "full" => Ok(ApicAssist::Full),
        "priority" => Ok(ApicAssist::Priority),
        "none" => Ok(ApicAssist::None),
        _ => Err(format!("`{text}` is none of full, priority and none")),
    }
}

impl RunOptions {
    fn firmware(&self, machine: Machine) -> Firmware {
        match self.firmware {
            Some(firmware) => firmware,
            None if machine.is_bochs() || Ovmf::find().is_none() => Firmware::Bios,
            None => Firmware::Uefi,
        }
    }

    fn profile(&self) -> Profile {
        Profile { release: self.release, elf: self.image_elf.clone(), ..Profile::default() }
    }

    /// The guest that the options describe.
    fn guest(&self) -> Result<Guest> {
        let mut guest = match &self.kernel {
            Some(kernel) => Guest {
                name: "guest".to_owned(),
                memory: self.memory,
                vcpus: self.vcpus,
                kernel: kernel.clone(),
                initrd: self.initrd.clone(),
                modules: Vec::new(),
                cmdline: "console=ttyS0".to_owned(),
                debug_exit: self.debug_exit,
                on_reset: OnReset::Restart,
                apic: ApicAssist::Full,
            },
            None => guest::default_guest(self.memory, self.vcpus, self.debug_exit)?,
        };
        guest.apic = self.apic;
        if self.reset_ends || self.exec.is_some() {
            guest.on_reset = OnReset::End;
        }
        for module in &self.modules {
            let (file, cmdline) = module.split_once('=').unwrap_or((module, ""));
            guest.modules.push((file.into(), cmdline.to_owned()));
        }
        if self.kernel.is_none() && self.initrd.is_some() {
            guest.initrd.clone_from(&self.initrd);
        }
        if self.kernel.is_none()
            && std::io::stdin().is_terminal()
            && let Ok((columns @ 1.., lines @ 1..)) = crossterm::terminal::size()
        {
            // Linux hands what it does not know to `init` as environment.
            guest.cmdline.push_str(&format!(" LINES={lines} COLUMNS={columns}"));
        }
        if let Some(cmdline) = &self.cmdline {
            guest.cmdline.clone_from(cmdline);
        }
        Ok(guest)
    }
}

/// Bytes of Bochs' disk: 16,383 cylinders, about 8 GiB.
const BOCHS_DISK: u64 = 16_383 * image::CYLINDER as u64;

/// Removes a run's folder when the run is over.
struct RunDir(PathBuf);

impl Drop for RunDir {
    fn drop(&mut self) {
        // What stays behind is only space; `cargo clean` takes it.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Runs, and returns the status to exit with.
pub fn run(options: &RunOptions) -> Result<u8> {
    let choice = machine::choose(options.machine, &HostFacts::read());
    let machine = choice.machine;
    // OVMF is worth installing only where it is the likely choice.
    let wanted = match options.firmware {
        Some(firmware) => firmware,
        None if machine.is_bochs() || machine == Machine::Bare => Firmware::Bios,
        None => Firmware::Uefi,
    };
    if options.firmware.is_some() || setup::ensure(&setup::needs(machine, wanted)).is_err() {
        setup::ensure(&setup::needs(machine, options.firmware(machine)))?;
    }
    let firmware = options.firmware(machine);
    ui::say(format!(
        "machine {} ({}), firmware {}, {} CPU(s)",
        machine.name(),
        choice.why,
        if firmware == Firmware::Uefi { "UEFI" } else { "BIOS" },
        options.cpus
    ));
    let dir = RunDir(paths::run_dir());
    fs::create_dir_all(&dir.0).with_context(|| format!("cannot make {}", dir.0.display()))?;
    let command = options.exec.as_deref().map(exec::Command::new).transpose()?;
    let mut guest = options.guest()?;
    if let Some(command) = &command {
        command.prepare(&mut guest, &dir.0)?;
    }
    let verbosity = if command.is_some() { LogLevel::Warn } else { options.verbosity };
    let profile = options.profile();
    let (boot, memory) = if machine == Machine::Bare {
        (
            Boot::Direct { kernel: guest.kernel, initrd: guest.initrd, cmdline: guest.cmdline },
            guest.memory,
        )
    } else {
        let guests = [guest];
        let path = dir.0.join("steward.img");
        let memory =
            write_image(machine, &guests, verbosity, &profile, options.machine_memory, &path)?;
        (Boot::Image(path), memory)
    };
    let display = !options.headless && command.is_none() && std::env::var_os("DISPLAY").is_some();
    let launch = Launch {
        machine,
        firmware,
        cpus: options.cpus,
        memory,
        cpu_model: options.cpu.clone(),
        clock: if options.icount { Clock::Instructions } else { Clock::Usual },
        display,
        boot,
        dir: dir.0.clone(),
    };
    let log = options.log.clone().unwrap_or_else(|| paths::target().join("steward/serial.log"));
    let mut session = Session::start(&launch, &log, options.timeout.map(Duration::from_secs))?;
    if let Some(command) = &command {
        return command.attend(&mut session, &log);
    }
    ui::say(format!("starting; {}; the serial log is {}", console::ESCAPE_HELP, log.display()));
    let ending = console::attach(&mut session)?;
    let ending = bare_ending(machine, ending);
    ui::say(ending.describe());
    Ok(ending.status())
}

/// Without Steward nobody says how the run ended: the emulator's own end is it.
fn bare_ending(machine: Machine, ending: Ending) -> Ending {
    match ending {
        Ending::Died { how, said } if machine == Machine::Bare && said.is_empty() => {
            Ending::Steward { status: 0, reason: format!("the bare machine ended ({how})") }
        }
        other => other,
    }
}

/// Builds everything and writes the image to `path`; returns the memory that the
/// machine needs for it.
pub fn write_image(
    machine: Machine,
    guests: &[Guest],
    verbosity: LogLevel,
    profile: &Profile,
    memory: Option<u64>,
    path: &Path,
) -> Result<u64> {
    let stages = Stages::ensure()?;
    let elf = kernel::hypervisor(profile)?;
    let bundle = bundle::build(machine, verbosity, guests)?;
    let memory = memory.unwrap_or_else(|| bundle::machine_memory(guests, bundle.len() as u64));
    let elf = fs::read(&elf).with_context(|| format!("cannot read {}", elf.display()))?;
    write_disk(machine, &image::build(&stages, &elf, &bundle, memory)?, path)?;
    Ok(memory)
}

/// Writes an image's bytes to the file that `machine` boots.
pub fn write_disk(machine: Machine, bytes: &[u8], path: &Path) -> Result<()> {
    fs::write(path, bytes).with_context(|| format!("cannot write {}", path.display()))?;
    if machine.is_bochs() {
        // Its disk takes 5 ms from one end to the other, in proportion: what we
        // read is nearer together on a large disk. The rest of the file is a hole.
        fs::OpenOptions::new().write(true).open(path)?.set_len(BOCHS_DISK)?;
    }
    Ok(())
}

/// `image`: makes the image with the default guest, prints where it is and its size.
pub fn image(options: &RunOptions) -> Result<u8> {
    setup::ensure(&[])?;
    let machine = options.machine.unwrap_or(Machine::QemuSvm);
    if machine == Machine::Bare {
        bail!("the bare machine has no image");
    }
    let guests = [options.guest()?];
    let path = paths::target().join("steward/steward.img");
    fs::create_dir_all(path.parent().unwrap_or(&path))?;
    let profile = options.profile();
    let memory =
        write_image(machine, &guests, options.verbosity, &profile, options.machine_memory, &path)?;
    let size = fs::metadata(&path)?.len();
    println!("{} {size} bytes ({})", path.display(), ui::size(size));
    println!("needs a machine with {} of memory", ui::size(memory));
    Ok(0)
}
