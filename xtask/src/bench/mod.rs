//! `bench`: what exits cost, in instructions that a guest sees go by.
//!
//! The tiny guest `bench` measures and prints; here its machines are started, its
//! lines read ([`figures`]) and set against what the document says ([`baseline`]). On Bochs the
//! TSC counts instructions; so it does on QEMU with `-icount shift=0`.

pub mod baseline;
pub mod figures;
mod table;

use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use config::{ApicAssist, LogLevel, OnReset};
use serde_json::{Value, json};

use self::figures::{Figures, Line};
use crate::bundle::{Guest, host};
use crate::emulator::{Boot, Clock, DiskKind, Launch};
use crate::kernel::{self, Profile};
use crate::machine::{Firmware, Machine};
use crate::run::write_image;
use crate::session::{Ending, Event, Session};
use crate::ui::{self, Out, Step};
use crate::{paths, setup};

/// The machines whose TSC counts instructions.
const MACHINES: [Machine; 3] = [Machine::BochsVmx, Machine::BochsSvm, Machine::QemuSvm];
/// A debug exit with the value 0: the guest measured everything.
const GUEST_DONE: u8 = 1;
/// Memory of the guest, in MiB: enough for first touches with and without memory zeroed ahead.
pub const GUEST_MEMORY: u64 = 128;
/// The status when a target was missed, with `--check`.
const MISSED: u8 = 2;

/// Options of `bench`.
#[derive(Debug, Clone, Args)]
pub struct BenchOptions {
    /// Only this machine; may be repeated [default: bochs-vmx, bochs-svm, qemu-svm]
    #[arg(long = "machine", value_enum)]
    pub machines: Vec<Machine>,
    /// How often each operation is done
    #[arg(long, default_value_t = 10_000, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub count: u32,
    /// Exit with status 2 where an operation takes more than docs/performance.md says (hot exits:
    /// 3 instructions, cold ones: 2 %), or was not measured
    #[arg(long)]
    pub check: bool,
    /// End a machine's run after this many seconds
    #[arg(long, default_value_t = 900, value_name = "SECONDS")]
    pub timeout: u64,
    /// How far the CPU may run the guest's local APIC: full, priority or none
    #[arg(long, default_value = "full", value_name = "HOW", value_parser = crate::run::parse_apic)]
    pub apic: ApicAssist,
    /// Put this ELF file into the image instead of building the hypervisor
    #[arg(long, value_name = "FILE", hide = true)]
    pub image_elf: Option<std::path::PathBuf>,
    /// Only operations whose name contains this
    pub filter: Option<String>,
}

/// Measures, prints a table for each machine, and returns the status to exit with:
/// 0 well, 1 a run failed, 2 with `--check` a target was missed.
pub fn bench(options: &BenchOptions) -> Result<u8> {
    let machines =
        if options.machines.is_empty() { MACHINES.to_vec() } else { options.machines.clone() };
    for machine in &machines {
        ensure!(
            MACHINES.contains(machine),
            "{} has no TSC that counts instructions; take {}",
            machine.name(),
            MACHINES.map(Machine::name).join(", ")
        );
        setup::ensure(&setup::needs(*machine, Firmware::Bios))?;
    }
    if let Some(filter) = &options.filter {
        ensure!(
            !filter.is_empty() && !filter.contains(char::is_whitespace),
            "`{filter}` is no part of an operation's name"
        );
    }
    let guest = kernel::guests()?
        .into_iter()
        .find(|(name, _)| name == "bench")
        .context("there is no tiny guest `bench`")?
        .1;
    // Built once, before the machines' own steps begin.
    let elf = match &options.image_elf {
        Some(elf) => elf.clone(),
        None => kernel::hypervisor(&Profile { release: true, ..Profile::default() })?,
    };
    let profile = Profile { elf: Some(elf), ..Profile::default() };
    let (mut failed, mut missed) = (false, false);
    for machine in machines {
        match run(options, machine, &guest, &profile) {
            Ok(figures) => {
                let targets = baseline::targets(machine, options.apic)?;
                let rows = table::judge(&targets, &figures, options.filter.as_deref());
                writeln!(Out, "{}", table::render(machine, &rows))?;
                missed |= rows.iter().any(table::Row::missed);
                failed |= figures.failed();
                if figures.failed() {
                    writeln!(Out, "{}: some operations could not be measured\n", machine.name())?;
                }
                write_json(machine, options, &figures, &rows)?;
            }
            Err(error) => {
                failed = true;
                writeln!(Out, "{}: the run failed: {error:#}\n", machine.name())?;
            }
        }
    }
    Ok(match (failed, missed && options.check) {
        (true, _) => 1,
        (false, true) => MISSED,
        (false, false) => 0,
    })
}

fn run(
    options: &BenchOptions,
    machine: Machine,
    kernel: &Path,
    profile: &Profile,
) -> Result<Figures> {
    let dir = paths::run_dir().join(format!("bench-{}", machine.name()));
    fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
    let result = run_in(options, machine, kernel, profile, &dir);
    // Files that stay behind only take space.
    let _ = fs::remove_dir_all(&dir);
    result
}

fn run_in(
    options: &BenchOptions,
    machine: Machine,
    kernel: &Path,
    profile: &Profile,
    dir: &Path,
) -> Result<Figures> {
    let mut cmdline = format!("n={}", options.count);
    if let Some(filter) = &options.filter {
        cmdline.push_str(&format!(" only={filter}"));
    }
    let mut guest = Guest::new("bench", GUEST_MEMORY << 20, kernel);
    guest.settings.cmdline = cmdline;
    guest.settings.debug_exit = true;
    guest.settings.on_reset = OnReset::End;
    guest.settings.apic = options.apic;
    let image = dir.join("steward.img");
    let host = host(machine, LogLevel::Info)?;
    let end_key = host.end_key;
    let memory = write_image(machine, &[guest], host, profile, None, &image)?;
    let launch = Launch {
        machine,
        firmware: Firmware::Bios,
        cpus: 1,
        memory,
        cpu_model: None,
        clock: Clock::Instructions,
        display: false,
        boot: Boot::Image(image),
        disk: DiskKind::Virtio,
        dir: dir.to_path_buf(),
        control: None,
        end_key,
        extra: Vec::new(),
    };
    let log = paths::target().join("bench").join(format!("{}.log", machine.name()));
    let step = Step::new(format!("measuring on {}", machine.name()));
    let mut session = Session::start(&launch, &log, Some(Duration::from_secs(options.timeout)))?;
    let mut text = String::new();
    let ending = loop {
        match session.next(Duration::from_millis(200))? {
            Event::Output(bytes) => {
                text.push_str(&String::from_utf8_lossy(&bytes));
                if let Some(line) = text.lines().rev().find(|line| Line::parse(line).is_some()) {
                    step.detail(line);
                }
            }
            Event::Quiet => {}
            Event::Ended(ending) => break ending,
        }
    };
    let figures = Figures::parse(&text)?;
    match &ending {
        Ending::Steward { status: GUEST_DONE, .. } if figures.complete() => {}
        // The guest says which operations failed, and ends with the value 1 for it.
        Ending::Steward { status: 3, .. } if figures.complete() && figures.failed() => {}
        _ => bail!("{}; the serial log is {}", ending.describe(), log.display()),
    }
    if figures.lines().is_empty() {
        bail!("no operation's name contains `{}`", options.filter.as_deref().unwrap_or(""));
    }
    step.done();
    Ok(figures)
}

fn write_json(
    machine: Machine,
    options: &BenchOptions,
    figures: &Figures,
    rows: &[table::Row],
) -> Result<()> {
    let path = paths::target().join("bench").join(format!("{}.json", machine.name()));
    let not_measured: Vec<Value> = figures
        .lines()
        .iter()
        .filter_map(|line| match line {
            Line::Measured(_) => None,
            Line::Skipped { name, why } => Some(json!({ "name": name, "skipped": why })),
            Line::Failed { name, why } => Some(json!({ "name": name, "failed": why })),
        })
        .collect();
    let value = json!({
        "machine": machine.name(),
        "count": options.count,
        "filter": options.filter,
        "operations": rows.iter().filter_map(table::Row::json).collect::<Vec<_>>(),
        "not_measured": not_measured,
    });
    let text = serde_json::to_string_pretty(&value)? + "\n";
    fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    ui::say(format!("written to {}", path.display()));
    Ok(())
}
