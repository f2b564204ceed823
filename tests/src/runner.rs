//! Runs cases, two at a time, and counts.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use config::toml::Host;
use config::{HostSettings, LogLevel};
use xtask::bundle::{self, Guest};
use xtask::emulator::{Boot, Clock, Launch};
use xtask::guest::{self, Debian};
use xtask::kernel::{self, Profile};
use xtask::machine::Machine;
use xtask::plan::Plans;
use xtask::session::Session;
use xtask::setup::{self, Need};
use xtask::stages::Stages;
use xtask::{exec, image, paths, run, words};

use crate::case::{Build, Case, Damage, Kernel, Medium, Scene, Tier};
use crate::cases::{self, PROMPT};
use crate::drive::Drive;
use crate::planted::{PLANTED, Planted};
use crate::{lockstep, small_init, starts, stick};

/// The control line's socket, in a case's folder.
const CONTROL: &str = "control";

/// Options: the cases to run.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// The cases of [`Tier::Full`] too.
    pub full: bool,
    /// The planted faults instead of the cases.
    pub planted: bool,
    /// Only names that contain this.
    pub filter: Option<String>,
}

/// How many passed and failed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Passed.
    pub passed: usize,
    /// Failed.
    pub failed: usize,
}

/// Parts that every case needs.
struct Parts {
    stages: Stages,
    debian: Option<Debian>,
    debian32: Option<Debian>,
    tiny: Vec<(String, PathBuf)>,
}

/// Runs what the options ask for.
///
/// # Errors
/// If the cases cannot even be started.
pub fn run(options: &Options) -> Result<Counts> {
    let tiny = kernel::guests()?;
    let names: Vec<String> = tiny.iter().map(|(name, _)| name.clone()).collect();
    let all = cases::all(&names);
    let chosen: Vec<&Case> = all
        .iter()
        .filter(|case| options.planted || options.full || case.tier == Tier::Usual)
        .filter(|case| {
            options.planted || options.filter.as_ref().is_none_or(|text| case.name.contains(text))
        })
        .collect();
    if let Some(word) = &options.filter {
        known(word, options, &all)?;
    }
    let mut needs = vec![Need::Qemu];
    if chosen.iter().any(|case| case.firmware == xtask::machine::Firmware::Uefi) {
        needs.push(Need::Ovmf);
    }
    if chosen.iter().any(|case| case.machine.is_bochs() || case.lockstep.is_some()) {
        needs.push(Need::Bochs);
    }
    if chosen.iter().any(|case| case.medium == Medium::Flashed) {
        needs.push(Need::Checkers);
    }
    setup::ensure(&needs)?;
    let wants_debian = !options.planted
        && chosen.iter().any(|case| matches!(case.kernel, Kernel::Debian | Kernel::DebianInit(_)));
    let wants_32_bit =
        !options.planted && chosen.iter().any(|case| case.kernel == Kernel::Debian32);
    let parts = Parts {
        stages: Stages::ensure()?,
        debian: if wants_debian { Some(Debian::ensure()?) } else { None },
        debian32: if wants_32_bit { Some(Debian::ensure_32_bit()?) } else { None },
        tiny,
    };
    let counts = if options.planted {
        run_planted(options, &parts, &all)
    } else {
        run_cases(&chosen, &parts)
    };
    // Files that stay behind only take space.
    let _ = fs::remove_dir_all(paths::run_dir());
    counts
}

/// Close names that an error lists, at most.
const CLOSE: usize = 5;

/// Whether some case (or fault) that the options allow has `word` in its name: a run of none
/// would pass, whatever is wrong.
fn known(word: &str, options: &Options, all: &[Case]) -> Result<()> {
    let has = |name: &str| name.contains(word);
    if options.planted {
        return some("fault", word, PLANTED.iter().map(|planted| planted.fault).collect(), &[]);
    }
    let (now, with_full): (Vec<&Case>, Vec<&Case>) =
        all.iter().partition(|case| options.full || case.tier == Tier::Usual);
    let names = |cases: &[&Case]| -> Vec<String> {
        cases.iter().map(|case| case.name.to_string()).collect()
    };
    let (now, with_full) = (names(&now), names(&with_full));
    let with_full: Vec<&str> =
        with_full.iter().map(String::as_str).filter(|name| has(name)).collect();
    some("case", word, now.iter().map(String::as_str).collect(), &with_full)
}

/// An error unless one of `names` contains `word`; it lists those `with_full` that do, or else
/// the closest.
fn some(what: &str, word: &str, names: Vec<&str>, with_full: &[&str]) -> Result<()> {
    if names.iter().any(|name| name.contains(word)) {
        return Ok(());
    }
    let more = match with_full {
        [] => match words::closest(word, names.into_iter(), CLOSE).as_slice() {
            [] => String::new(),
            close => format!("; the closest: {}", close.join(", ")),
        },
        cases => format!("; with --full there are {}", cases.join(", ")),
    };
    bail!("no {what}'s name contains `{word}`{more}")
}

/// The hypervisor as it is tested: every entry into a guest is checked first.
fn checked() -> Profile {
    Profile { check_entries: true, ..Profile::default() }
}

fn run_cases(chosen: &[&Case], parts: &Parts) -> Result<Counts> {
    let build = |build| -> Result<Option<PathBuf>> {
        // The released build is measured: it checks nothing before it enters.
        let profile = match build {
            Build::Debug => checked(),
            Build::Release => Profile { release: true, ..Profile::default() },
            Build::Stamped => Profile { release: true, stamp_exits: true, ..Profile::default() },
        };
        let wanted = chosen.iter().any(|case| case.build == build);
        wanted.then(|| kernel::hypervisor(&profile)).transpose()
    };
    let (debug, release) = (build(Build::Debug)?, build(Build::Release)?);
    let stamped = build(Build::Stamped)?;
    let mut faulty = BTreeMap::new();
    for fault in chosen.iter().filter_map(|case| case.fault) {
        if !faulty.contains_key(fault) {
            faulty.insert(fault, with_fault(fault)?);
        }
    }
    let elf_of = |case: &Case| match (case.fault, case.build) {
        (Some(fault), _) => faulty.get(fault).map(PathBuf::as_path),
        (None, Build::Debug) => debug.as_deref(),
        (None, Build::Release) => release.as_deref(),
        (None, Build::Stamped) => stamped.as_deref(),
    };
    let logs = paths::root().join("target/test-logs");
    let next = AtomicUsize::new(0);
    let counts = Mutex::new(Counts::default());
    let times = Mutex::new(Vec::new());
    println!("running {} cases on emulated machines", chosen.len());
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while let Some(case) = chosen.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let start = Instant::now();
                    let log = logs.join(format!("{}.log", case.name));
                    let result = elf_of(case)
                        .context("its build of the hypervisor is missing")
                        .and_then(|elf| run_case(case, parts, elf, &log));
                    let seconds = start.elapsed().as_secs_f32();
                    let mut all = times.lock().unwrap_or_else(PoisonError::into_inner);
                    all.push((seconds, case.name.as_str()));
                    drop(all);
                    // One thread's line at a time; a poisoned lock still counts.
                    let mut counts = counts.lock().unwrap_or_else(PoisonError::into_inner);
                    match result {
                        Ok(said) => {
                            counts.passed += 1;
                            let said = if said.is_empty() { said } else { format!(": {said}") };
                            println!("ok     {} ({seconds:.1} s){said}", case.name);
                        }
                        Err(error) => {
                            counts.failed += 1;
                            println!(
                                "FAILED {} ({seconds:.1} s): {error:#}\n       log: {}",
                                case.name,
                                log.display()
                            );
                        }
                    }
                }
            });
        }
    });
    let times = times.into_inner().unwrap_or_else(PoisonError::into_inner);
    print!("{}", slowest(times, SLOWEST));
    Ok(counts.into_inner().unwrap_or_else(PoisonError::into_inner))
}

/// Cases that the summary names for their time.
const SLOWEST: usize = 20;

/// The lines that name the `count` slowest of several cases, slowest first.
fn slowest(mut times: Vec<(f32, &str)>, count: usize) -> String {
    times.sort_by(|a, b| b.0.total_cmp(&a.0));
    let mut text = match times.len() {
        0 | 1 => return String::new(),
        all => format!("the slowest {} of {all} cases:\n", all.min(count)),
    };
    for (seconds, name) in times.iter().take(count) {
        text.push_str(&format!("{seconds:7.1} s  {name}\n"));
    }
    text
}

/// The hypervisor with a planted fault. Images with faults are built in one place: this one
/// is copied before the next is.
fn with_fault(fault: &str) -> Result<PathBuf> {
    let built = kernel::hypervisor(&Profile { planted: Some(fault.to_owned()), ..checked() })?;
    let copy = built.with_extension(format!("with-{fault}"));
    fs::copy(&built, &copy).with_context(|| format!("cannot write {}", copy.display()))?;
    Ok(copy)
}

fn run_planted(options: &Options, parts: &Parts, all: &[Case]) -> Result<Counts> {
    let mut healthy = Healthy { elf: kernel::hypervisor(&checked())?, known: BTreeMap::new() };
    let mut counts = Counts::default();
    let wanted = |fault: &str| options.filter.as_ref().is_none_or(|text| fault.contains(text));
    for planted in PLANTED.iter().filter(|planted| wanted(planted.fault)) {
        for name in planted.cases {
            let caught = if let Some(test) = name.strip_prefix("host:") {
                catch_on_host(planted.fault, test)
            } else {
                let case = all.iter().find(|case| case.name == *name);
                case.context("there is no such case").and_then(|case| {
                    let usual = healthy.check(case, parts)?;
                    catch(planted, case, usual, parts)
                })
            };
            match caught {
                Ok(error) => {
                    counts.passed += 1;
                    let why = format!("{error:#}");
                    println!("caught     {} by {name}: {}", planted.fault, first_line(&why));
                }
                Err(error) => {
                    counts.failed += 1;
                    println!("NOT CAUGHT {} by {name}: {error:#}", planted.fault);
                }
            }
        }
    }
    Ok(counts)
}

/// Which cases are green without a fault, and how long they take: a case that is
/// red anyway catches nothing.
struct Healthy {
    elf: PathBuf,
    known: BTreeMap<String, Result<Duration, String>>,
}

impl Healthy {
    fn check(&mut self, case: &Case, parts: &Parts) -> Result<Duration> {
        let elf = &self.elf;
        let outcome = self.known.entry(case.name.clone()).or_insert_with(|| {
            let log = planted_log(&format!("{}-healthy", case.name));
            let start = Instant::now();
            match run_case(case, parts, elf, &log) {
                Ok(_) => Ok(start.elapsed()),
                Err(error) => Err(format!("{error:#}")),
            }
        });
        match outcome {
            Ok(usual) => Ok(*usual),
            Err(error) => bail!("the case is red without the fault too: {}", first_line(error)),
        }
    }
}

/// Runs the case with the fault built in, and returns how it failed.
fn catch(planted: &Planted, case: &Case, usual: Duration, parts: &Parts) -> Result<anyhow::Error> {
    let profile = Profile { planted: Some(planted.fault.to_owned()), ..checked() };
    let elf = kernel::hypervisor(&profile)?;
    // A fault may hang the guest: that is caught too, and need not take long.
    let patience = usual.as_secs() * 4 + 30;
    let case = Case { seconds: case.seconds.min(patience), ..case.clone() };
    match run_case(&case, parts, &elf, &planted_log(&format!("{}-{}", planted.fault, case.name))) {
        Ok(_) => bail!("the case stayed green"),
        Err(error) => Ok(error),
    }
}

/// Runs one test (`PACKAGE/TEST`) on this computer, without the fault and with it, and
/// returns how it failed.
fn catch_on_host(fault: &str, test: &str) -> Result<anyhow::Error> {
    let (package, test) = test.split_once('/').context("no package is named")?;
    let run = |flags: &str, dir: &str| {
        std::process::Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
            .args(["test", "--quiet", "--package", package, "--lib", test])
            .env("RUSTFLAGS", flags)
            .env("CARGO_TARGET_DIR", paths::target().join(dir))
            .current_dir(paths::root())
            .output()
            .context("cannot run cargo")
    };
    let healthy = run("", "host")?;
    let text = String::from_utf8_lossy(&healthy.stdout).into_owned();
    if !healthy.status.success() || !text.contains("1 passed") {
        bail!("the test is red (or not there) without the fault too");
    }
    let planted = run(&format!("--cfg planted=\"{fault}\""), "host-planted")?;
    let text = String::from_utf8_lossy(&planted.stdout).into_owned();
    if planted.status.success() {
        bail!("the test stayed green");
    }
    if !text.contains("1 failed") {
        bail!("the test was not built");
    }
    Ok(anyhow::anyhow!("{test} failed"))
}

fn planted_log(name: &str) -> PathBuf {
    paths::root().join("target/test-logs/planted").join(format!("{name}.log"))
}

fn first_line(text: &str) -> &str {
    text.lines().next().unwrap_or_default()
}

/// Runs a case.
fn run_case(case: &Case, parts: &Parts, elf: &Path, log: &Path) -> Result<String> {
    let dir = paths::run_dir().join(&case.name);
    let _ = fs::remove_dir_all(&dir);
    fs::create_dir_all(&dir)?;
    let result = match (case.lockstep, &case.starts) {
        (None, Some(starts)) => starts::run(starts, log, &dir, &|words, log, dir| {
            let one = Case { machine_args: words, ..case.clone() };
            start(&one, parts, elf, log, dir, None)
        }),
        (Some(count), _) => lockstep::run(count, log, &|machine, words, log| {
            let one = Case { machine, words: words.to_owned(), ..case.clone() };
            let mut drive = Drive::new(start(&one, parts, elf, log, &dir, None)?);
            (case.script)(&mut drive)?;
            Ok(drive.text().to_owned())
        }),
        (None, None) => run_script(case, parts, elf, log, &dir).map(|()| String::new()),
    };
    // Only space; a failed removal changes nothing about the case.
    let _ = fs::remove_dir_all(&dir);
    result
}

/// Guests, and the machine that they run on.
struct Crowd {
    guests: Vec<Guest>,
    host: HostSettings,
    cpus: u32,
    /// Bytes, where somebody says so.
    memory: Option<u64>,
}

/// The guests of a case, the hypervisor's settings, and the machine's CPUs.
fn guests(case: &Case, parts: &Parts, dir: &Path) -> Result<Crowd> {
    // A line of ours in the middle of a digest's would spoil it.
    let level = if case.lockstep.is_some() { LogLevel::Warn } else { LogLevel::Info };
    let mut host = bundle::host(case.machine, level)?;
    host.exit = case.host_exit.unwrap_or(host.exit);
    let megabytes = case.machine_memory.map(|mib| mib << 20);
    let path = match &case.scene {
        None => {
            let guests = vec![guest(case, parts, dir)?];
            return Ok(Crowd { guests, host, cpus: case.cpus.0, memory: megabytes });
        }
        Some(Scene::File(name)) => paths::root().join(name),
        Some(Scene::Text(text)) => {
            let path = dir.join("guests.toml");
            fs::write(&path, text)?;
            path
        }
    };
    let plans = Plans::load(&path, None, Some(case.cpus.0))?;
    let Host { when_empty, escape, cpus, memory, log, .. } = plans.host();
    let host = HostSettings { when_empty, escape, log: log.unwrap_or(host.log), ..host };
    let cpus = cpus.unwrap_or(case.cpus.0);
    Ok(Crowd { guests: plans.guests()?, host, cpus, memory: megabytes.or(memory) })
}

fn run_script(case: &Case, parts: &Parts, elf: &Path, log: &Path, dir: &Path) -> Result<()> {
    let command = case.exec.map(|exec| exec::Command::new(exec.command)).transpose()?;
    if let Some(disk) = case.before {
        let before = Case { disk, medium: Medium::Image, before: None, ..case.clone() };
        let mut drive = Drive::new(start(&before, parts, elf, log, dir, None)?);
        drive.expect(PROMPT, 400)?;
    }
    let mut drive = Drive::new(start(case, parts, elf, log, dir, command.as_ref())?);
    drive.control_at(dir.join(CONTROL));
    (case.script)(&mut drive)?;
    let (Some(exec), Some(command)) = (case.exec, command) else { return Ok(()) };
    let (output, status) =
        command.outcome(drive.text().as_bytes()).context("the command did not end")?;
    ensure!(status == exec.status, "the command's status is {status}");
    let output = String::from_utf8_lossy(&output);
    let last = output.strip_suffix('\n').and_then(|text| text.rsplit('\n').next());
    ensure!(last == Some(exec.ends_with), "the command's output ends with {last:?}");
    Ok(())
}

fn start(
    case: &Case,
    parts: &Parts,
    elf: &Path,
    log: &Path,
    dir: &Path,
    command: Option<&exec::Command>,
) -> Result<Session> {
    let Crowd { mut guests, host, cpus, memory } = guests(case, parts, dir)?;
    if let (Some(command), Some(guest)) = (command, guests.first_mut()) {
        command.prepare(guest, dir)?;
    }
    let end_key = host.end_key;
    let mut bundle = bundle::build(host, &guests)?;
    damage(&mut bundle, case.damage)?;
    let memory = memory.unwrap_or_else(|| bundle::machine_memory(&guests, bundle.len() as u64));
    let elf = fs::read(elf).with_context(|| format!("cannot read {}", elf.display()))?;
    let path = dir.join("steward.img");
    let content = image::content(&parts.stages, &elf, &bundle, memory)?;
    match case.medium {
        Medium::Image => run::write_disk(case.machine, &content, &path)?,
        Medium::Flashed => stick::flash(&content, dir, &path)?,
        Medium::Copied => stick::copy(&content, &path)?,
    }
    let launch = Launch {
        machine: case.machine,
        firmware: case.firmware,
        cpus,
        memory,
        cpu_model: case.cpu.map(str::to_owned),
        clock: match (&case.scene, case.build) {
            // Shares of a clock are measured.
            (Some(_), Build::Release) => Clock::Instructions,
            _ => case.clock,
        },
        display: false,
        boot: Boot::Image(path),
        disk: case.disk,
        dir: dir.to_path_buf(),
        control: case.scene.as_ref().map(|_| dir.join(CONTROL)),
        end_key,
        extra: case.machine_args.iter().map(|&word| word.to_owned()).collect(),
    };
    Session::start(&launch, log, Some(Duration::from_secs(case.seconds)))
}

fn guest(case: &Case, parts: &Parts, dir: &Path) -> Result<Guest> {
    let (kernel, initrd, cmdline) = match &case.kernel {
        Kernel::Debian | Kernel::Debian32 => {
            let debian = match case.kernel {
                Kernel::Debian32 => &parts.debian32,
                _ => &parts.debian,
            };
            let debian = debian.as_ref().context("Debian was not fetched")?;
            (debian.kernel.clone(), Some(debian.initrd.clone()), guest::CMDLINE)
        }
        Kernel::DebianInit(line) => {
            let debian = parts.debian.as_ref().context("Debian was not fetched")?;
            let ramdisk = dir.join("initrd");
            fs::write(&ramdisk, small_init::ramdisk(line)?)?;
            (debian.kernel.clone(), Some(ramdisk), guest::CMDLINE)
        }
        Kernel::Memtest => (
            guest::package_file("memtest86+", "boot/memtest86+x64.bin")?,
            None,
            "console=ttyS0,115200",
        ),
        Kernel::Xen => {
            let packed = "boot/xen-4.17-amd64.gz";
            let packed = guest::package_file("xen-hypervisor-4.17-amd64", packed)?;
            let mut xen = Vec::new();
            flate2::read::GzDecoder::new(fs::File::open(&packed)?)
                .read_to_end(&mut xen)
                .with_context(|| format!("{} is damaged", packed.display()))?;
            let path = dir.join("xen");
            fs::write(&path, xen)?;
            (path, None, "")
        }
        Kernel::Tiny(name) => {
            let tiny = parts.tiny.iter().find(|(known, _)| known == name);
            (tiny.with_context(|| format!("there is no tiny guest {name}"))?.1.clone(), None, "")
        }
        Kernel::Garbage => {
            let path = dir.join("garbage");
            fs::write(&path, vec![0xc3; 64 * 1024])?;
            (path, None, "")
        }
    };
    let mut modules = Vec::new();
    for (index, (contents, cmdline)) in case.modules.iter().enumerate() {
        let path = dir.join(format!("module{index}"));
        fs::write(&path, contents)?;
        modules.push((path, (*cmdline).to_owned()));
    }
    let mut guest = Guest::new("guest", case.memory << 20, kernel);
    guest.settings.vcpus = case.cpus.1;
    guest.initrd = initrd;
    guest.modules = modules;
    guest.settings.cmdline = cmdline_of(case, cmdline);
    guest.settings.debug_exit = case.debug_exit;
    guest.settings.on_reset = case.on_reset;
    guest.settings.apic = case.apic;
    Ok(guest)
}

/// A tiny guest is told what CPU it runs on: on QEMU's it leaves out what that
/// one is known not to check.
fn cmdline_of(case: &Case, usual: &str) -> String {
    let cmdline = format!("{} {}", case.cmdline.unwrap_or(usual), case.words);
    let cmdline = cmdline.trim();
    let tiny = matches!(case.kernel, Kernel::Tiny(_));
    match (tiny && case.tells_host, case.machine) {
        (true, Machine::QemuSvm) => format!("{cmdline} host=qemu").trim().to_owned(),
        (true, machine) if machine.is_bochs() => format!("{cmdline} host=bochs").trim().to_owned(),
        _ => cmdline.to_owned(),
    }
}

fn damage(bundle: &mut Vec<u8>, damage: Damage) -> Result<()> {
    match damage {
        Damage::None => {}
        Damage::Truncated => bundle.truncate(bundle.len() / 2),
        // Behind the manifest, its checksum and their headers; the kernel is the largest member.
        Damage::File => {
            let at = bundle.len() / 2;
            *bundle.get_mut(at).context("an empty bundle")? ^= 0x10;
        }
        // Inside the JSON text, behind the first header.
        Damage::Manifest => *bundle.get_mut(512 + 20).context("an empty bundle")? ^= 0x01,
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_that_no_name_contains_is_an_error() {
        let names = || vec!["tiny-exits", "tiny-exits-vmx"];
        assert!(some("case", "exits", names(), &[]).is_ok());
        let error = some("case", "exit-vmx", names(), &[]).unwrap_err().to_string();
        assert_eq!(error, "no case's name contains `exit-vmx`; the closest: tiny-exits-vmx");
        let error = some("case", "zzz", names(), &[]).unwrap_err().to_string();
        assert_eq!(error, "no case's name contains `zzz`");
        let error = some("case", "large", names(), &["debian-large"]).unwrap_err().to_string();
        assert_eq!(error, "no case's name contains `large`; with --full there are debian-large");
    }

    #[test]
    fn the_slowest_cases_are_named_first() {
        let times = vec![(1.0, "a"), (30.25, "b"), (2.0, "c")];
        let text = slowest(times.clone(), 2);
        assert_eq!(text, "the slowest 2 of 3 cases:\n   30.2 s  b\n    2.0 s  c\n");
        assert_eq!(slowest(times, 20).lines().count(), 4);
        // One case has said its time already.
        assert_eq!(slowest(vec![(1.0, "a")], 20), "");
    }
}
