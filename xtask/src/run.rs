//! `run`: from the options to a running machine and its end.

use std::fs;
use std::io::{IsTerminal, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;
use config::toml::Host;
use config::{
    ApicAssist, ConsoleBytes, DebugStatus, EscapeKey, HostExit, HostSettings, LogLevel, OnHalt,
    OnReset,
};

use crate::bundle::{self, Guest};
use crate::plan::Plans;

use crate::emulator::{Boot, Clock, DiskKind, Launch};
use crate::kernel::{self, Profile};
use crate::lock::Claim;
use crate::machine::{self, Firmware, HostFacts, Machine, Ovmf};
use crate::session::{Ending, Session};
use crate::stages::Stages;
use crate::ui::{self, Out};
use crate::{console, control, ctl, exec, guest, image, paths, setup};

/// Options that say what is in an image.
#[derive(Debug, Clone, Args)]
pub struct GuestOptions {
    /// Run the guests that this file describes (docs/config.md)
    #[arg(long, value_name = "FILE", conflicts_with_all = ["memory", "vcpus", "kernel", "initrd", "modules", "cmdline", "debug_exit", "reset_ends", "apic"])]
    pub config: Option<PathBuf>,
    /// Physical CPUs of the machine [default: what the configuration says, else 1]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=64))]
    pub cpus: Option<u32>,
    /// Memory of the guest; the machine gets more
    #[arg(long, default_value = "512M", value_name = "SIZE", value_parser = bundle::parse_guest_memory)]
    pub memory: u64,
    /// Memory of the machine [default: what the configuration says, else what the guests, the bundle and Steward need]
    #[arg(long, value_name = "SIZE", value_parser = bundle::parse_machine_memory)]
    pub machine_memory: Option<u64>,
    /// Virtual CPUs of the guest
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = bundle::parse_vcpus)]
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
    /// Give the guest port 0xf4: a write of V ends it, and the run's status is (V << 1) | 1, or V with `plain` (255 for a larger V); and the trace port 0xf8
    #[arg(long, value_name = "HOW", require_equals = true, num_args = 0..=1, default_missing_value = "shifted", value_parser = parse_debug_status)]
    pub debug_exit: Option<DebugStatus>,
    /// End the run when the guest resets its machine, instead of starting it again
    #[arg(long)]
    pub reset_ends: bool,
    /// How far the CPU may run the guest's local APIC: full, priority (interrupts are injected) or none
    #[arg(long, default_value = "full", value_name = "HOW", value_parser = parse_apic)]
    pub apic: ApicAssist,
    /// Build the image for debugging: with assertions, less optimised
    #[arg(long)]
    pub debug: bool,
    /// Put this ELF file into the image instead of building the hypervisor
    #[arg(long, value_name = "FILE", hide = true)]
    pub image_elf: Option<PathBuf>,
    /// How much the hypervisor logs: off, error, warn, info, debug or trace [default: what the configuration says, else info]
    #[arg(long, value_name = "LEVEL", value_parser = parse_level)]
    pub verbosity: Option<LogLevel>,
}

/// Options of `run`.
#[derive(Debug, Clone, Args)]
pub struct RunOptions {
    /// The machine to run on [default: nested KVM where it is really usable, else qemu-svm]
    #[arg(long, value_enum)]
    pub machine: Option<Machine>,
    /// The firmware that boots the image [default: uefi where OVMF is there, else bios]
    #[arg(long, value_enum)]
    pub firmware: Option<Firmware>,
    /// The guests and their machine.
    #[command(flatten)]
    pub guests: GuestOptions,
    /// How the disk that the machine boots from is connected
    #[arg(long, value_name = "KIND", value_enum, default_value_t)]
    pub disk: DiskKind,
    /// CPU model to emulate instead of the usual one, for example EPYC,-svm
    #[arg(long, value_name = "MODEL")]
    pub cpu: Option<String>,
    /// Hand WORD to the emulator, behind all of xtask's own: a word of QEMU's command line, or a line of Bochs' configuration; may be repeated
    #[arg(long = "machine-arg", value_name = "WORD", allow_hyphen_values = true)]
    pub machine_args: Vec<String>,
    /// Let QEMU's clocks count instructions, one a tick, instead of real time
    #[arg(long)]
    pub icount: bool,
    /// Run COMMAND in the default guest, print what it prints, end with its status; `-` reads it from standard input
    #[arg(long, value_name = "COMMAND", conflicts_with_all = ["config", "kernel", "initrd", "modules", "cmdline", "debug_exit"])]
    pub exec: Option<String>,
    /// Show no window [default where there is no display]
    #[arg(long)]
    pub headless: bool,
    /// End the run with status 124 after this many seconds
    #[arg(long, value_name = "SECONDS")]
    pub timeout: Option<u64>,
    /// Keep the serial log in this file
    #[arg(long, value_name = "FILE")]
    pub log: Option<PathBuf>,
    /// Make this socket the machine's second serial port, for `cargo xtask ctl`
    #[arg(long, value_name = "PATH", require_equals = true)]
    pub control: Option<Option<PathBuf>>,
}

/// Reads a level of the log by its name.
pub fn parse_level(text: &str) -> Result<LogLevel, String> {
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

/// Reads `--debug-exit`.
fn parse_debug_status(text: &str) -> Result<DebugStatus, String> {
    match text {
        "shifted" => Ok(DebugStatus::Shifted),
        "plain" => Ok(DebugStatus::Plain),
        _ => Err(format!("`{text}` is neither shifted nor plain")),
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

    /// The control line's socket.
    fn control(&self) -> Option<PathBuf> {
        self.control.as_ref().map(|path| match path {
            None => ctl::default_socket(),
            Some(path) => std::path::absolute(path).unwrap_or_else(|_| path.clone()),
        })
    }

    /// The configuration's guests, or the one that the options describe, as they run here.
    fn scene(&self, machine: Machine, config: Option<Plans>) -> Result<Scene> {
        let mut scene = self.guests.scene(machine, config)?;
        if self.exec.is_some() {
            // The output of a command is to come byte for byte and not mixed with much else;
            // xtask filters what it shows.
            scene.host.log = LogLevel::Warn;
            scene.host.console = ConsoleBytes::Raw;
        }
        for guest in &mut scene.guests {
            if self.headless || self.exec.is_some() {
                // Nobody is there to look at a guest that does nothing any more.
                guest.settings.on_halt = OnHalt::End;
            }
            if self.exec.is_some() {
                guest.settings.on_reset = OnReset::End;
            }
        }
        let of_file = self.guests.config.is_some()
            || self.guests.kernel.is_some()
            || self.guests.cmdline.is_some();
        if !of_file
            && std::io::stdin().is_terminal()
            && let Ok((columns @ 1.., lines @ 1..)) = crossterm::terminal::size()
        {
            // The guest's console is this terminal. Linux hands what it does not know to `init`
            // as environment.
            for guest in &mut scene.guests {
                guest.settings.cmdline.push_str(&format!(" LINES={lines} COLUMNS={columns}"));
            }
        }
        Ok(scene)
    }
}

impl GuestOptions {
    fn profile(&self) -> Profile {
        Profile { release: !self.debug, elf: self.image_elf.clone(), ..Profile::default() }
    }

    /// The configuration, if there is one, for a machine that has `usual` CPUs where
    /// neither it nor the options say how many.
    fn config(&self, usual: Option<u32>) -> Result<Option<Plans>> {
        self.config.as_deref().map(|path| Plans::load(path, self.cpus, usual)).transpose()
    }

    /// The configuration's guests, or the one that the options describe.
    fn scene(&self, machine: Machine, config: Option<Plans>) -> Result<Scene> {
        let Host { log, when_empty, escape, cpus, memory } =
            config.as_ref().map(Plans::host).unwrap_or_default();
        let log = self.verbosity.or(log).unwrap_or(LogLevel::Info);
        let guests = match config {
            Some(config) => config.guests()?,
            None => vec![self.guest()?],
        };
        Ok(Scene {
            guests,
            host: HostSettings { when_empty, escape, ..bundle::host(machine, log)? },
            cpus: self.cpus.or(cpus).unwrap_or(USUAL_CPUS),
            memory: self.machine_memory.or(memory),
        })
    }

    /// The guest that the options describe.
    fn guest(&self) -> Result<Guest> {
        let mut guest = match &self.kernel {
            Some(kernel) => {
                let mut guest = Guest::new("guest", self.memory, kernel);
                guest.initrd.clone_from(&self.initrd);
                guest.settings.cmdline = guest::FILE_CMDLINE.to_owned();
                guest
            }
            None => guest::default_guest(self.memory)?,
        };
        let settings = &mut guest.settings;
        settings.vcpus = self.vcpus;
        settings.apic = self.apic;
        if let Some(how) = self.debug_exit {
            settings.debug_exit = true;
            settings.debug_status = how;
        }
        if self.reset_ends {
            settings.on_reset = OnReset::End;
        }
        if let Some(cmdline) = &self.cmdline {
            settings.cmdline.clone_from(cmdline);
        }
        for module in &self.modules {
            let (file, cmdline) = module.split_once('=').unwrap_or((module, ""));
            guest.modules.push((file.into(), cmdline.to_owned()));
        }
        if self.kernel.is_none() && self.initrd.is_some() {
            guest.initrd.clone_from(&self.initrd);
        }
        Ok(guest)
    }
}

/// CPUs of a machine of which nobody says how many it has.
const USUAL_CPUS: u32 = 1;

/// Guests and the machine for them.
struct Scene {
    guests: Vec<Guest>,
    host: HostSettings,
    cpus: u32,
    memory: Option<u64>,
}

/// Bytes of Bochs' disk: 16,383 cylinders, about 8 GiB.
const BOCHS_DISK: u64 = 16_383 * image::CYLINDER as u64;

/// Removes a run's folder when the run is over.
struct RunDir(PathBuf);

impl Drop for RunDir {
    fn drop(&mut self) {
        // Files that stay behind only take space; `cargo clean` removes them.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Runs, and returns the status to exit with.
pub fn run(options: &RunOptions) -> Result<u8> {
    let choice = machine::choose(options.machine, &HostFacts::read());
    let machine = choice.machine;
    // Its faults are told before anything slow begins.
    let config = options.guests.config(Some(USUAL_CPUS))?;
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
    let command = options.exec.as_deref().map(exec::Command::new).transpose()?;
    let mut scene = options.scene(machine, config)?;
    ui::say(format!(
        "machine {} ({}), firmware {}, {} CPU(s)",
        machine.name(),
        choice.why,
        if firmware == Firmware::Uefi { "UEFI" } else { "BIOS" },
        scene.cpus
    ));
    let dir = RunDir(paths::run_dir());
    fs::create_dir_all(&dir.0).with_context(|| format!("cannot make {}", dir.0.display()))?;
    if let (Some(command), [guest]) = (&command, scene.guests.as_mut_slice()) {
        command.prepare(guest, &dir.0)?;
    }
    let profile = options.guests.profile();
    let escape = scene.host.escape;
    let (boot, memory) = if machine == Machine::Bare {
        let [guest] = scene.guests.as_slice() else {
            bail!("the bare machine runs one guest, the configuration has {}", scene.guests.len())
        };
        let (kernel, initrd) = (guest.kernel.clone(), guest.initrd.clone());
        let cmdline = guest.settings.cmdline.clone();
        (Boot::Direct { kernel, initrd, cmdline }, scene.memory.unwrap_or(guest.settings.memory))
    } else {
        let path = dir.0.join("steward.img");
        let memory =
            write_image(machine, &scene.guests, scene.host.clone(), &profile, scene.memory, &path)?;
        (Boot::Image(path), memory)
    };
    let display = !options.headless && command.is_none() && std::env::var_os("DISPLAY").is_some();
    let control = match options.control() {
        Some(wanted) => {
            let free = control::free_socket(&wanted)?;
            if free != wanted {
                let (wanted, free) = (wanted.display(), free.display());
                ui::say(format!(
                    "another run has the control line {wanted}; this one's is {free}, for \
                     `cargo xtask ctl --socket {free}`"
                ));
            }
            Some(free)
        }
        None => None,
    };
    let launch = Launch {
        machine,
        firmware,
        cpus: scene.cpus,
        memory,
        cpu_model: options.cpu.clone(),
        clock: if options.icount { Clock::Instructions } else { Clock::Usual },
        display,
        boot,
        disk: options.disk,
        dir: dir.0.clone(),
        control,
        end_key: scene.host.end_key,
        extra: options.machine_args.clone(),
    };
    let claim = match &options.log {
        Some(_) => None,
        None => Some(Claim::take(&paths::target().join("steward"), "serial", "log")?),
    };
    let log = claim.as_ref().map_or(options.log.as_deref(), |claim| Some(claim.path()));
    let log = log.context("there is no serial log")?.to_owned();
    let mut session = Session::start(&launch, &log, options.timeout.map(Duration::from_secs))?;
    if machine != Machine::Bare {
        session.ask_at_deadline(question(escape, &scene.guests));
    }
    if let Some(command) = &command {
        return command.attend(&mut session, &log);
    }
    ui::say(format!("starting; {}; the serial log is {}", console::help(escape), log.display()));
    let ending = console::attach(&mut session, escape, machine != Machine::Bare)?;
    let ending = bare_ending(machine, ending);
    // Whoever has closed the pipe knows.
    if ending != Ending::Closed {
        ui::say(ending.describe());
    }
    Ok(ending.status())
}

/// Guests that the machine is asked about at the end of `--timeout`.
const ASKED: usize = 4;

/// Keys that are typed at the end of `--timeout`: the way to the monitor, and there the question
/// what each guest waits for.
fn question(escape: EscapeKey, guests: &[Guest]) -> Vec<u8> {
    let mut keys = vec![escape.byte(), b'm'];
    for guest in guests.iter().take(ASKED) {
        keys.extend(format!("why {}\r", guest.settings.name).bytes());
    }
    keys
}

/// Without Steward nobody says how the run ended: the emulator's own end is it.
fn bare_ending(machine: Machine, ending: Ending) -> Ending {
    match ending {
        Ending::Died { how, said } if machine == Machine::Bare && said.is_empty() => {
            Ending::Steward {
                status: 0,
                reason: format!("the bare machine ended ({how})"),
                left: true,
            }
        }
        other => other,
    }
}

/// Builds everything and writes the image to `path`; returns the memory that the
/// machine needs for it.
pub fn write_image(
    machine: Machine,
    guests: &[Guest],
    host: HostSettings,
    profile: &Profile,
    memory: Option<u64>,
    path: &Path,
) -> Result<u64> {
    let (content, memory) = content(guests, host, profile, memory)?;
    write_disk(machine, &content, path)?;
    Ok(memory)
}

/// Builds everything; returns what goes on the disk, and the memory that the machine needs.
fn content(
    guests: &[Guest],
    host: HostSettings,
    profile: &Profile,
    memory: Option<u64>,
) -> Result<(image::Content, u64)> {
    let stages = Stages::ensure()?;
    let elf = kernel::hypervisor(profile)?;
    let bundle = bundle::build(host, guests)?;
    let memory = memory.unwrap_or_else(|| bundle::machine_memory(guests, bundle.len() as u64));
    let elf = fs::read(&elf).with_context(|| format!("cannot read {}", elf.display()))?;
    Ok((image::content(&stages, &elf, &bundle, memory)?, memory))
}

/// Bytes of a file to hand on, at most, but for STEWDATA.
const RELEASE_SIZE: u64 = 64 << 20;

/// `image --release`: the file that people write to a stick with whatever they have.
fn release(options: &GuestOptions) -> Result<u8> {
    let (content, memory) = for_any_machine(options)?;
    let (size, without) = (content.least(), content.without_data());
    if without > RELEASE_SIZE {
        bail!(
            "the image has {} without STEWDATA, and at most {} are to be handed on: take smaller files, \
             or leave out --release",
            ui::size(without),
            ui::size(RELEASE_SIZE)
        );
    }
    let name = format!("steward-{}.img", env!("CARGO_PKG_VERSION"));
    let path = paths::target().join("release-image").join(&name);
    fs::create_dir_all(path.parent().unwrap_or(&path))?;
    let sum = path.with_extension("img.sha256");
    // A checksum of another image is worse than none.
    let _ = fs::remove_file(&sum);
    image::write(&content, &path)?;
    let hash = image::sha256(&path)?;
    fs::write(&sum, format!("{hash}  {name}\n"))
        .with_context(|| format!("cannot write {}", sum.display()))?;
    writeln!(
        Out,
        "{} {size} bytes ({}; {} without STEWDATA)",
        path.display(),
        ui::size(size),
        ui::size(without)
    )?;
    writeln!(Out, "SHA-256 {hash}, in {}", sum.display())?;
    writeln!(Out, "needs a machine with {} of memory", ui::size(memory))?;
    Ok(0)
}

/// The content of a stick: the guests of the configuration at `config`, or Debian; and the
/// memory that the machine needs.
pub fn stick(config: Option<PathBuf>) -> Result<(image::Content, u64)> {
    #[derive(clap::Parser)]
    struct Usual {
        #[command(flatten)]
        guests: GuestOptions,
    }
    let usual = <Usual as clap::Parser>::try_parse_from(["stick"])?;
    for_any_machine(&GuestOptions { config, ..usual.guests })
}

/// The content that the options describe, for machines of which nobody here waits for the end.
fn for_any_machine(options: &GuestOptions) -> Result<(image::Content, u64)> {
    let config = options.config(None)?;
    setup::ensure(&[])?;
    let Scene { guests, host, memory, .. } = options.scene(Machine::QemuSvm, config)?;
    // A real machine's ports are not an emulator's.
    let host = HostSettings { end_key: None, exit: HostExit::Halt, ..host };
    content(&guests, host, &options.profile(), memory)
}

/// Writes the image with `content` to the file that `machine` boots.
pub fn write_disk(machine: Machine, content: &image::Content, path: &Path) -> Result<()> {
    image::write(content, path)?;
    if machine.is_bochs() {
        // Its disk takes 5 ms from one end to the other, in proportion: what we
        // read is nearer together on a large disk. The rest of the file is a hole.
        fs::OpenOptions::new().write(true).open(path)?.set_len(BOCHS_DISK)?;
    }
    Ok(())
}

/// Options of `image`.
#[derive(Debug, Clone, Args)]
pub struct ImageOptions {
    /// Make a file to hand on: named after the version, with its SHA-256 beside it
    #[arg(long, conflicts_with_all = ["machine", "config", "cpus", "memory", "machine_memory", "vcpus", "kernel", "initrd", "modules", "cmdline", "debug_exit", "reset_ends", "apic", "debug", "verbosity"])]
    pub release: bool,
    /// Make it for this emulator, which hears how the run ended [default: for any machine, which halts at the end]
    #[arg(long, value_enum)]
    pub machine: Option<Machine>,
    /// The guests in it.
    #[command(flatten)]
    pub guests: GuestOptions,
}

/// `image`: makes the image with the configuration's guests or the one that the
/// options describe, prints where it is and its size.
pub fn image(options: &ImageOptions) -> Result<u8> {
    if options.release {
        return release(&options.guests);
    }
    let name = options.machine.map(|machine| format!("-{}", machine.name())).unwrap_or_default();
    let path = paths::target().join(format!("steward/steward{name}.img"));
    fs::create_dir_all(path.parent().unwrap_or(&path))?;
    let memory = match options.machine {
        None => {
            let (content, memory) = for_any_machine(&options.guests)?;
            image::write(&content, &path)?;
            memory
        }
        Some(Machine::Bare) => bail!("the bare machine has no image"),
        Some(machine) => {
            let options = &options.guests;
            let config = options.config(None)?;
            setup::ensure(&[])?;
            let Scene { guests, host, memory, .. } = options.scene(machine, config)?;
            // Nobody here waits for its end.
            let host = HostSettings { end_key: None, ..host };
            write_image(machine, &guests, host, &options.profile(), memory, &path)?
        }
    };
    let size = fs::metadata(&path)?.len();
    writeln!(Out, "{} {size} bytes ({})", path.display(), ui::size(size))?;
    writeln!(Out, "needs a machine with {} of memory", ui::size(memory))?;
    Ok(0)
}
