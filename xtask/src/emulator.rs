//! The emulators' command lines and configuration files.

use std::fs;
use std::io::Write as _;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::cmd;
use crate::image::CYLINDER;
use crate::machine::{Firmware, Machine, Ovmf};

/// What to start.
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
    /// What its clocks go by.
    pub clock: Clock,
    /// Whether to show the machine's screen.
    pub display: bool,
    /// What the machine boots.
    pub boot: Boot,
    /// A folder of this run alone, for the emulator's own files.
    pub dir: PathBuf,
}

/// What the clocks of a machine go by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Clock {
    /// The emulator's usual: on QEMU real time, on Bochs instructions.
    Usual,
    /// Instructions: one is one tick of the TSC.
    Instructions,
}

/// What a machine boots.
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

impl Launch {
    /// The command that starts the emulator, and where its serial port goes.
    pub(crate) fn command(&self) -> Result<(Command, Serial)> {
        fs::create_dir_all(&self.dir)
            .with_context(|| format!("cannot make {}", self.dir.display()))?;
        let (mut command, serial) =
            if self.machine.is_bochs() { self.bochs()? } else { (self.qemu()?, Serial::Pipes) };
        let errors = fs::File::create(self.errors())?;
        match serial {
            Serial::Pipes => command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(errors),
            Serial::Socket(_) => {
                command.stdin(Stdio::null()).stdout(errors.try_clone()?).stderr(errors)
            }
        };
        Ok((command, serial))
    }

    /// What the emulator itself says goes here.
    pub fn errors(&self) -> PathBuf {
        self.dir.join("emulator.log")
    }

    fn qemu(&self) -> Result<Command> {
        let mut command = supervised("qemu-system-x86_64");
        command.args(["-nodefaults", "-no-user-config", "-no-reboot", "-rtc", "base=utc"]);
        command.args(["-machine", "q35", "-m", &format!("{}M", self.memory >> 20)]);
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
                    fs::copy(&ovmf.vars, &vars).context("cannot copy OVMF's variables")?;
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
                command.args(["-device", "virtio-blk-pci,drive=boot,bootindex=0"]);
            }
        }
        Ok(command)
    }

    fn bochs(&self) -> Result<(Command, Serial)> {
        let Boot::Image(image) = &self.boot else { bail!("Bochs boots the image only") };
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
        let config = self.dir.join("bochsrc");
        let mut file = fs::File::create(&config)?;
        file.write_all(self.bochsrc(image, port)?.as_bytes())?;
        // Debian's Bochs stops in its debugger at the start: this continues it.
        let commands = self.dir.join("bochs-commands");
        fs::write(&commands, "c\n")?;
        let mut command = supervised("bochs");
        command.arg("-q").arg("-f").arg(&config).arg("-rc").arg(&commands);
        if !self.display {
            command.env("SDL_VIDEODRIVER", "dummy").env("SDL_AUDIODRIVER", "dummy");
        }
        Ok((command, Serial::Socket(listener)))
    }

    fn bochsrc(&self, image: &Path, serial_port: u16) -> Result<String> {
        let length =
            fs::metadata(image).with_context(|| format!("cannot read {}", image.display()))?.len();
        let cylinders = length / CYLINDER as u64;
        // `ips` makes the clock honest: one instruction, one tick.
        let (model, ips) = match self.machine {
            Machine::BochsSvm => ("ryzen", 200_000_000_u64),
            _ => ("corei7_haswell_4770", 1_000_000_000),
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
             port_e9_hack: enabled=0\n\
             log: {dir}/bochs.log\n\
             panic: action=fatal\nerror: action=report\ninfo: action=report\ndebug: action=ignore\n\
             magic_break: enabled=0\n",
            cpus = self.cpus,
            host = memory.min(1024),
        ))
    }
}

/// A command whose process dies with us, even where we get no chance to end it.
fn supervised(program: &str) -> Command {
    match cmd::find("setpriv") {
        Some(setpriv) => {
            let mut command = Command::new(setpriv);
            command.args(["--pdeathsig", "KILL", "--", program]);
            command
        }
        None => Command::new(program),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arguments(machine: Machine, clock: Clock) -> Result<Vec<String>> {
        let launch = Launch {
            machine,
            firmware: Firmware::Bios,
            cpus: 1,
            memory: 64 << 20,
            cpu_model: None,
            clock,
            display: false,
            boot: Boot::Image("steward.img".into()),
            dir: "run".into(),
        };
        let command = launch.qemu()?;
        Ok(command.get_args().map(|word| word.to_string_lossy().into_owned()).collect())
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
}
