//! The emulators' command lines and configuration files.

use std::ffi::OsString;
use std::fs;
use std::io::Write as _;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use config::Uuid;

use crate::cmd;
use crate::image::CYLINDER;
use crate::machine::{Firmware, Machine, Ovmf};

/// Description of a machine to start.
#[derive(Debug, Clone)]
pub struct Launch {
    /// The machine.
    pub machine: Machine,
    /// Its firmware; Bochs has a BIOS only.
    pub firmware: Firmware,
    /// Physical CPUs.
    pub cpus: u32,
    /// Memory in bytes.
    pub memory: u64,
    /// The emulated CPU model, where it is not the machine's usual one.
    pub cpu_model: Option<String>,
    /// Time base of its clocks.
    pub clock: Clock,
    /// Whether to show the machine's screen.
    pub display: bool,
    /// Source that the machine boots.
    pub boot: Boot,
    /// How the disk with the image is connected; Bochs has an IDE disk only.
    pub disk: DiskKind,
    /// A folder of this run alone, for the emulator's own files.
    pub dir: PathBuf,
    /// The socket that the machine's second serial port shall be, for `ctl`.
    pub control: Option<PathBuf>,
    /// Key in the line that says how the run ended, as the bundle's settings have it.
    pub end_key: Option<Uuid>,
    /// More for the emulator, behind all of ours: words of QEMU's command line, or lines
    /// of Bochs' configuration.
    pub extra: Vec<String>,
}

/// Time base of a machine's clocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Clock {
    /// The emulator's usual: on QEMU real time, on Bochs instructions.
    Usual,
    /// Instructions: one is one tick of the TSC, on Bochs a nanosecond.
    Instructions,
}

/// How a disk is connected.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum DiskKind {
    /// A disk of virtio.
    #[default]
    Virtio,
    /// A USB stick on a controller for USB 3.
    Xhci,
    /// A USB stick on a controller for USB 2.
    Ehci,
    /// A SATA disk.
    Ahci,
    /// An NVMe disk.
    Nvme,
    /// A disk of the old kind, on a machine of the old kind.
    Ide,
}

impl DiskKind {
    /// QEMU's devices for it, with the drive called `boot`.
    fn devices(self) -> &'static [&'static str] {
        const STICK: &str = "usb-storage,bus=usb.0,drive=boot,removable=on,bootindex=0";
        match self {
            Self::Virtio => &["virtio-blk-pci,drive=boot,bootindex=0"],
            Self::Xhci => &["qemu-xhci,id=usb", STICK],
            Self::Ehci => &["usb-ehci,id=usb", STICK],
            // The machine with a SATA disk and the old one both call their controller `ide`.
            Self::Ahci | Self::Ide => &["ide-hd,bus=ide.0,drive=boot,bootindex=0"],
            Self::Nvme => &["nvme,serial=steward,drive=boot,bootindex=0"],
        }
    }
}

/// Source that a machine boots.
#[derive(Debug, Clone)]
pub enum Boot {
    /// Our disk image.
    Image(PathBuf),
    /// A kernel directly, without Steward ([`Machine::Bare`]).
    Direct {
        /// The kernel's file.
        kernel: PathBuf,
        /// The initial ramdisk's file.
        initrd: Option<PathBuf>,
        /// The command line.
        cmdline: String,
    },
}

/// How the emulator's serial port is connected.
pub(crate) enum Serial {
    /// To its standard input and output.
    Pipes,
    /// It connects to this listener.
    Socket(TcpListener),
}

/// Lines that an emulator needs from us while it runs, beside its command.
pub(crate) struct Lines {
    /// The first serial port.
    pub(crate) serial: Serial,
    /// The second one, where the emulator can't make the socket itself: it
    /// connects to this listener.
    pub(crate) control: Option<TcpListener>,
}

/// Longest path of a socket, in bytes (unix(7): "Address format").
const MAX_SOCKET_PATH: usize = 107;

impl Launch {
    /// The command that starts the emulator, and where its serial ports go.
    pub(crate) fn command(&self) -> Result<(Command, Lines)> {
        fs::create_dir_all(&self.dir)
            .with_context(|| format!("cannot make {}", self.dir.display()))?;
        if let Some(path) = &self.control {
            if path.as_os_str().len() > MAX_SOCKET_PATH {
                bail!("{}: a socket's path has at most {MAX_SOCKET_PATH} bytes", path.display());
            }
            if let Some(dir) = path.parent() {
                fs::create_dir_all(dir)
                    .with_context(|| format!("cannot make {}", dir.display()))?;
            }
        }
        let (mut command, lines) = if self.machine.is_bochs() {
            self.bochs()?
        } else {
            (self.qemu()?, Lines { serial: Serial::Pipes, control: None })
        };
        let errors = fs::File::create(self.errors())?;
        match lines.serial {
            Serial::Pipes => command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(errors),
            Serial::Socket(_) => {
                command.stdin(Stdio::null()).stdout(errors.try_clone()?).stderr(errors)
            }
        };
        Ok((command, lines))
    }

    /// File that takes the emulator's own messages.
    pub fn errors(&self) -> PathBuf {
        self.dir.join("emulator.log")
    }

    fn qemu(&self) -> Result<Command> {
        let emulates_several = self.cpus > 1 && self.machine != Machine::Kvm;
        let core = if emulates_several { one_core() } else { None };
        let mut command = supervised("qemu-system-x86_64", core);
        command.args(["-nodefaults", "-no-user-config", "-no-reboot", "-rtc", "base=utc"]);
        let board = if self.disk == DiskKind::Ide { "pc" } else { "q35" };
        command.args(["-machine", board, "-m", &format!("{}M", self.memory >> 20)]);
        command.args(["-smp", &self.cpus.to_string()]);
        let model = match self.machine {
            Machine::Kvm => "host",
            Machine::Bare => "max",
            _ => "EPYC",
        };
        match (self.machine, self.clock) {
            (Machine::Kvm, Clock::Usual) => command.args(["-accel", "kvm"]),
            (Machine::Kvm, Clock::Instructions) => {
                bail!("a real CPU's clock does not count instructions")
            }
            (_, Clock::Usual) => command.args(["-accel", "tcg,thread=multi"]),
            // All CPUs in one thread; where all of them halt, time leaps to the next timer.
            (_, Clock::Instructions) => {
                command.args(["-accel", "tcg,thread=single", "-icount", "shift=0,sleep=off"])
            }
        };
        command.args(["-cpu", self.cpu_model.as_deref().unwrap_or(model)]);
        command.args(["-chardev", "stdio,id=serial,signal=off", "-serial", "chardev:serial"]);
        if let Some(path) = &self.control {
            // A comma in an option's value is doubled.
            let path = path.to_str().context("the socket's path is not UTF-8")?.replace(',', ",,");
            let socket = format!("socket,id=control,path={path},server=on,wait=off");
            command.args(["-chardev", &socket, "-serial", "chardev:control"]);
        }
        command.args([
            "-device",
            "isa-debug-exit,iobase=0xf4,iosize=4",
            "-vga",
            "std",
            "-monitor",
            "none",
        ]);
        if !self.display {
            command.args(["-display", "none"]);
        }
        match &self.boot {
            Boot::Direct { kernel, initrd, cmdline } => {
                command.arg("-kernel").arg(kernel).args(["-append", cmdline]);
                if let Some(initrd) = initrd {
                    command.arg("-initrd").arg(initrd);
                }
            }
            Boot::Image(image) => {
                if self.firmware == Firmware::Uefi {
                    let ovmf = Ovmf::find()
                        .context("OVMF is not installed; `--firmware bios` works without it")?;
                    let vars = self.dir.join("uefi-variables.fd");
                    // Variables that an earlier start in the same folder left are this
                    // machine's memory.
                    if !vars.exists() {
                        fs::copy(&ovmf.vars, &vars).context("cannot copy OVMF's variables")?;
                    }
                    let code = ovmf.code.display();
                    command.args([
                        "-drive",
                        &format!("if=pflash,format=raw,unit=0,readonly=on,file={code}"),
                    ]);
                    command.args([
                        "-drive",
                        &format!("if=pflash,format=raw,unit=1,file={}", vars.display()),
                    ]);
                }
                let image = image.display();
                command.args([
                    "-drive",
                    &format!("if=none,id=boot,format=raw,snapshot=on,file={image}"),
                ]);
                for device in self.disk.devices() {
                    command.args(["-device", device]);
                }
            }
        }
        command.args(&self.extra);
        Ok(command)
    }

    fn bochs(&self) -> Result<(Command, Lines)> {
        let Boot::Image(image) = &self.boot else { bail!("Bochs boots the image only") };
        if !matches!(self.disk, DiskKind::Virtio | DiskKind::Ide) {
            bail!("Bochs has an IDE disk only: without `--disk`");
        }
        if self.firmware == Firmware::Uefi {
            bail!("Bochs has a BIOS only: `--firmware bios`");
        }
        if self.memory > 2 << 30 {
            bail!(
                "Bochs has at most 2 GiB of memory, and this run needs {}: take a smaller `--memory`",
                crate::ui::size(self.memory)
            );
        }
        if self.machine == Machine::BochsSvm && self.cpus > 1 {
            bail!("Bochs runs AMD-V on one CPU only: `--cpus 1`");
        }
        // The emulator connects to us: so the port is ours before it starts.
        let listener = TcpListener::bind(("127.0.0.1", 0))
            .context("cannot open a local port for the serial line")?;
        let port = listener.local_addr()?.port();
        let control = match self.control {
            Some(_) => Some(
                TcpListener::bind(("127.0.0.1", 0))
                    .context("cannot open a local port for the control line")?,
            ),
            None => None,
        };
        let control_port = control.as_ref().map(TcpListener::local_addr).transpose()?;
        let config = self.dir.join("bochsrc");
        let mut file = fs::File::create(&config)?;
        file.write_all(self.bochsrc(image, port, control_port)?.as_bytes())?;
        // Debian's Bochs stops in its debugger at the start: this continues it.
        let commands = self.dir.join("bochs-commands");
        fs::write(&commands, "c\n")?;
        let mut command = supervised("bochs", None);
        command.arg("-q").arg("-f").arg(&config).arg("-rc").arg(&commands);
        if !self.display {
            command.env("SDL_VIDEODRIVER", "dummy").env("SDL_AUDIODRIVER", "dummy");
        }
        Ok((command, Lines { serial: Serial::Socket(listener), control }))
    }

    fn bochsrc(
        &self,
        image: &Path,
        serial_port: u16,
        control: Option<SocketAddr>,
    ) -> Result<String> {
        let length =
            fs::metadata(image).with_context(|| format!("cannot read {}", image.display()))?.len();
        let cylinders = length / CYLINDER as u64;
        // `ips` makes the clock honest: one instruction, one tick.
        let model = match self.machine {
            Machine::BochsSvm => "ryzen",
            _ => "corei7_haswell_4770",
        };
        // 1 GHz is near what the models stand for; slower clocks leave their devices,
        // the serial line above all, more time.
        let ips = match (self.machine, self.clock) {
            (Machine::BochsSvm, Clock::Usual) => 200_000_000_u64,
            _ => 1_000_000_000,
        };
        let model = self.cpu_model.as_deref().unwrap_or(model);
        let memory = self.memory >> 20;
        let dir = self.dir.display();
        let image = image.display();
        Ok(format!(
            "plugin_ctrl: unmapped=1, biosdev=1, speaker=0, extfpuirq=1, parallel=0, serial=1, e1000=0\n\
             config_interface: textconfig\n\
             display_library: sdl2\n\
             cpu: model={model}, count={cpus}, ips={ips}, reset_on_triple_fault=0, ignore_bad_msrs=0\n\
             memory: guest={memory}, host={host}\n\
             romimage: file=/usr/share/bochs/BIOS-bochs-latest, options=fastboot\n\
             vgaromimage: file=/usr/share/bochs/VGABIOS-lgpl-latest\n\
             vga: extension=vbe, update_freq=2\n\
             clock: sync=none, time0=utc\n\
             ata0: enabled=1, ioaddr1=0x1f0, ioaddr2=0x3f0, irq=14\n\
             ata0-master: type=disk, path=\"{image}\", mode=volatile, journal=\"{dir}/disk.redolog\", cylinders={cylinders}, heads=16, spt=63\n\
             boot: disk\n\
             com1: enabled=1, mode=socket-client, dev=127.0.0.1:{serial_port}\n\
             {com2}\
             port_e9_hack: enabled=0\n\
             log: {dir}/bochs.log\n\
             panic: action=fatal\nerror: action=report\ninfo: action=report\ndebug: action=ignore\n\
             magic_break: enabled=0\n\
             {extra}",
            com2 = control.map_or_else(String::new, |address| {
                format!("com2: enabled=1, mode=socket-client, dev={address}\n")
            }),
            cpus = self.cpus,
            host = memory.min(1024),
            extra = self.extra.iter().map(|line| format!("{line}\n")).collect::<String>(),
        ))
    }
}

/// A command whose process dies with us, even where we get no chance to end it; all its
/// threads on the same core of this machine if `core` says which.
fn supervised(program: &str, core: Option<usize>) -> Command {
    let mut words: Vec<OsString> = Vec::new();
    if let Some(setpriv) = cmd::find("setpriv") {
        words.push(setpriv.into());
        words.extend(["--pdeathsig", "KILL", "--"].map(OsString::from));
    }
    if let (Some(core), Some(taskset)) = (core, cmd::find("taskset")) {
        words.push(taskset.into());
        words.extend(["--cpu-list".into(), core.to_string().into()]);
    }
    words.push(program.into());
    let mut command = Command::new(&words[0]);
    command.args(&words[1..]);
    command
}

/// The core for an emulator of several CPUs, another one for each of our processes.
///
/// In QEMU every XRSTOR, on any CPU, writes to the first CPU's internal flags without a lock
/// (`cpu_clear_ignne`). Between threads that truly run at the same time this undoes once in a
/// while what a VMRUN or an exit on the first CPU does to them: the guest runs without nested
/// paging, or the host with it. On one core such a write can't be torn apart.
fn one_core() -> Option<usize> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let list = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"))?;
    let cores = cores(list.trim())?;
    cores.get(std::process::id() as usize % cores.len().max(1)).copied()
}

/// The numbers in a list such as `0-3,8`.
fn cores(list: &str) -> Option<Vec<usize>> {
    let mut all = Vec::new();
    for part in list.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        all.extend(first.parse::<usize>().ok()?..=last.parse().ok()?);
    }
    Some(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn launch(machine: Machine, clock: Clock) -> Launch {
        Launch {
            machine,
            firmware: Firmware::Bios,
            cpus: 1,
            memory: 64 << 20,
            cpu_model: None,
            clock,
            display: false,
            boot: Boot::Image("steward.img".into()),
            disk: DiskKind::Virtio,
            dir: "run".into(),
            control: None,
            end_key: None,
            extra: Vec::new(),
        }
    }

    fn arguments(machine: Machine, clock: Clock) -> Result<Vec<String>> {
        let launch = launch(machine, clock);
        let command = launch.qemu()?;
        Ok(command.get_args().map(|word| word.to_string_lossy().into_owned()).collect())
    }

    #[test]
    fn several_emulated_cpus_share_a_core() {
        let mut several = launch(Machine::QemuSvm, Clock::Usual);
        several.cpus = 2;
        let words = |launch: &Launch| -> Vec<String> {
            let command = launch.qemu().unwrap();
            let all = std::iter::once(command.get_program()).chain(command.get_args());
            all.map(|word| word.to_string_lossy().into_owned()).collect()
        };
        let at = |words: &[String], what: &str| words.iter().position(|word| word.ends_with(what));
        if cmd::find("taskset").is_some() {
            let words = words(&several);
            let taskset = at(&words, "taskset").unwrap();
            assert_eq!(words[taskset + 1], "--cpu-list");
            assert!(one_core().is_some_and(|core| words[taskset + 2] == core.to_string()));
            assert_eq!(at(&words, "qemu-system-x86_64"), Some(taskset + 3));
        }
        assert_eq!(at(&words(&launch(Machine::QemuSvm, Clock::Usual)), "taskset"), None);
        several.machine = Machine::Kvm;
        assert_eq!(at(&words(&several), "taskset"), None);
    }

    #[test]
    fn lists_of_cores() {
        assert_eq!(cores("0-3,8"), Some(vec![0, 1, 2, 3, 8]));
        assert_eq!(cores("5"), Some(vec![5]));
        assert_eq!(cores("a-b"), None);
    }

    #[test]
    fn a_clock_that_counts_instructions_needs_one_thread_and_no_real_cpu() {
        let counts = arguments(Machine::QemuSvm, Clock::Instructions).unwrap();
        let accel = counts.iter().position(|word| word == "-accel").unwrap();
        assert_eq!(counts[accel + 1], "tcg,thread=single");
        assert!(counts.iter().any(|word| word.starts_with("shift=0")));
        let usual = arguments(Machine::QemuSvm, Clock::Usual).unwrap();
        assert!(!usual.iter().any(|word| word == "-icount"));
        assert!(arguments(Machine::Kvm, Clock::Instructions).is_err());
        assert!(arguments(Machine::Kvm, Clock::Usual).unwrap().contains(&"kvm".to_owned()));
    }
    #[test]
    fn the_control_line_is_the_second_serial_port() {
        let mut launch = launch(Machine::QemuSvm, Clock::Usual);
        launch.control = Some("/tmp/a,b".into());
        let command = launch.qemu().unwrap();
        let words: Vec<_> = command.get_args().map(|word| word.to_string_lossy()).collect();
        let serials: Vec<_> =
            words.iter().enumerate().filter(|(_, word)| *word == "-serial").collect();
        assert_eq!(serials.len(), 2);
        assert_eq!(words[serials[0].0 + 1], "chardev:serial");
        assert_eq!(words[serials[1].0 + 1], "chardev:control");
        assert!(words.iter().any(|word| word.contains("path=/tmp/a,,b,server=on,wait=off")));

        let bochs = self::launch(Machine::BochsVmx, Clock::Usual);
        // Any file there is has a length.
        let image = Path::new("Cargo.toml");
        let without = bochs.bochsrc(image, 1, None).unwrap();
        let with = bochs.bochsrc(image, 1, Some(([127, 0, 0, 1], 7).into())).unwrap();
        let com2 = "com2: enabled=1, mode=socket-client, dev=127.0.0.1:7\n";
        assert!(!without.contains("com2") && with.contains(com2));
        assert_eq!(with.replace(com2, ""), without);
    }

    #[test]
    fn what_the_user_adds_comes_last() {
        let mut launch = launch(Machine::QemuSvm, Clock::Usual);
        launch.extra = ["-machine", "pit=off"].map(str::to_owned).to_vec();
        let command = launch.qemu().unwrap();
        let words: Vec<_> = command.get_args().map(|word| word.to_string_lossy()).collect();
        assert_eq!(words[words.len() - 2..], ["-machine", "pit=off"]);

        let mut bochs = self::launch(Machine::BochsVmx, Clock::Usual);
        let usual = bochs.bochsrc(Path::new("Cargo.toml"), 1, None).unwrap();
        bochs.extra = vec!["cpu: ips=5000000".to_owned(), "clock: sync=realtime".to_owned()];
        let more = bochs.bochsrc(Path::new("Cargo.toml"), 1, None).unwrap();
        let added = more.strip_prefix(&usual);
        assert_eq!(added, Some("cpu: ips=5000000\nclock: sync=realtime\n"));
    }

    #[test]
    fn a_sockets_path_that_is_too_long_is_refused() {
        let mut launch = launch(Machine::QemuSvm, Clock::Usual);
        launch.dir = std::env::temp_dir();
        launch.control = Some("x".repeat(108).into());
        let error = launch.command().err().unwrap().to_string();
        assert!(error.contains("at most 107 bytes"), "{error}");
    }
}
