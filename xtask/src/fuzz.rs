//! `fuzz`: builds and runs the fuzz targets of `tests/fuzz`.
//!
//! libFuzzer comes with the crate `libfuzzer-sys`, whose C++ is compiled here; the counters
//! that it follows are put in by LLVM's own pass, which the stable compiler has. There is no
//! address sanitizer: the code under test has no `unsafe`, and with one the build would need
//! a nightly compiler.

use std::collections::VecDeque;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::Mutex;
use std::thread;

use anyhow::{Context, Result, bail, ensure};
use clap::Args;

use crate::setup::{self, Need};
use crate::ui::{self, Out, Step};
use crate::{cmd, kernel, paths};

/// Seconds of each target, where nothing is said.
const SECONDS: u64 = 60;
/// Seconds beyond its corpus that a target has among the tests.
const TEST_SECONDS: u64 = 5;
/// Seconds beyond its corpus that a target has in the tests' full tier.
const FULL_SECONDS: u64 = 60;
/// Seconds that one input may take: a hang is a finding, a busy computer is none.
const INPUT_SECONDS: u32 = 20;
/// Bytes of an input that are of use at the most.
const MOST_BYTES: u32 = 4096;

/// Flags for what LLVM puts in: a counter for each edge, where it is, and what is compared.
const FLAGS: &str = "--cfg fuzzing -Cpasses=sancov-module \
    -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
    -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares \
    -Cllvm-args=-simplifycfg-branch-fold-threshold=0";

/// Options of `fuzz`.
#[derive(Debug, Clone, Args)]
pub struct FuzzOptions {
    /// One target; all of them, as many at a time as there are CPUs, where none is named
    pub target: Option<String>,
    /// How long each target runs
    #[arg(long, value_name = "N", default_value_t = SECONDS)]
    pub seconds: u64,
    /// Only this input, as a finding names it
    #[arg(long, value_name = "FILE", requires = "target", conflicts_with = "seconds")]
    pub input: Option<PathBuf>,
    /// No run: check the targets' format, and lint them
    #[arg(long, conflicts_with_all = ["target", "seconds", "input"])]
    pub check: bool,
}

/// A fuzz target that was built.
type Target = (String, PathBuf);

/// Result of a run of a target.
enum Outcome {
    /// So many inputs, no finding.
    Clean(u64),
    /// This input, if there is one to show.
    Finding(Option<PathBuf>),
}

/// `cargo xtask fuzz`; the status to exit with: 1 for a finding.
pub fn fuzz(options: &FuzzOptions) -> Result<u8> {
    if options.check {
        return check();
    }
    // The build takes minutes: a misspelt name is told before it.
    if let Some(name) = &options.target {
        let names = names()?;
        ensure!(names.contains(name), "no fuzz target {name}; there are {}", names.join(", "));
    }
    let mut targets = build()?;
    targets.retain(|(known, _)| options.target.as_ref().is_none_or(|name| known == name));
    if let (Some(input), Some((name, program))) = (&options.input, targets.first()) {
        let input = input.canonicalize().with_context(|| format!("no {}", input.display()))?;
        let status = Command::new(program).arg(&input).status().context("cannot start it")?;
        ui::say(if status.success() {
            format!("{name}: this input makes no trouble")
        } else {
            format!("{name}: {status}")
        });
        return Ok(u8::from(!status.success()));
    }
    let (_, failed) = run(targets, options.seconds, Corpus::Kept)?;
    Ok(u8::from(failed > 0))
}

/// Every target among the tests: the committed corpus, then a short run. Passed and failed.
///
/// # Errors
/// The targets can't be built or started.
pub fn test(full: bool) -> Result<(usize, usize)> {
    run(build()?, if full { FULL_SECONDS } else { TEST_SECONDS }, Corpus::Fresh)
}

/// Place for inputs that reach something new.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Corpus {
    /// To those of earlier runs, which run first.
    Kept,
    /// To an empty folder: each run begins at the committed ones.
    Fresh,
}

/// Folder of all files of a target but the committed ones.
fn work(name: &str) -> PathBuf {
    paths::target().join("fuzz/work").join(name)
}

/// The committed inputs of a target.
fn committed(name: &str) -> PathBuf {
    paths::root().join("tests/fuzz/corpus").join(name)
}

/// The targets' names: the programs of `tests/fuzz`.
fn names() -> Result<Vec<String>> {
    let path = paths::root().join("tests/fuzz/Cargo.toml");
    let text =
        fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let names = text.lines().filter_map(|line| line.strip_prefix("path = \"fuzz_targets/"));
    Ok(names.filter_map(|name| name.strip_suffix(".rs\"")).map(str::to_owned).collect())
}

/// Builds all targets, once.
fn build() -> Result<Vec<Target>> {
    setup::ensure(&[Need::Cxx])?;
    let step = Step::new("building the fuzz targets");
    let mut command = cargo("build")?;
    command.arg("--message-format=json-render-diagnostics");
    let messages = cmd::output_with_progress(&mut command, &step)?;
    step.done();
    let targets = kernel::executables(&String::from_utf8_lossy(&messages));
    ensure!(!targets.is_empty(), "the build of tests/fuzz made no programs");
    Ok(targets)
}

/// A cargo command over `tests/fuzz`, for this computer. The target is named so that build
/// scripts, which libFuzzer is no part of, do without the flags.
fn cargo(what: &str) -> Result<Command> {
    let version = cmd::output(Command::new("rustc").arg("-vV").current_dir(paths::root()))?;
    let version = String::from_utf8_lossy(&version).into_owned();
    let host = version.lines().find_map(|line| line.strip_prefix("host: "));
    let mut command = cmd::cargo();
    command
        .current_dir(paths::root())
        .args([what, "--release", "--manifest-path", "tests/fuzz/Cargo.toml"])
        .args(["--target", host.context("rustc does not say what computer this is")?])
        .arg("--target-dir")
        .arg(paths::target().join("fuzz"))
        .env("RUSTFLAGS", FLAGS)
        .env_remove("CARGO_ENCODED_RUSTFLAGS");
    Ok(command)
}

/// Format and lints of the targets, which are no part of the workspace.
fn check() -> Result<u8> {
    setup::ensure(&[Need::Cxx])?;
    let mut format = cmd::cargo();
    format.args(["fmt", "--check", "--manifest-path", "tests/fuzz/Cargo.toml"]);
    let mut lints = cargo("clippy")?;
    lints.args(["--quiet", "--all-targets", "--", "-D", "warnings"]);
    for command in [&mut format, &mut lints] {
        let status = command.current_dir(paths::root()).status().context("cannot start cargo")?;
        if !status.success() {
            return Ok(1);
        }
    }
    Ok(0)
}

/// Runs `targets` for `seconds` each, as many at a time as there are CPUs; clean ones, and
/// those with a finding.
fn run(targets: Vec<Target>, seconds: u64, corpus: Corpus) -> Result<(usize, usize)> {
    let count = targets.len();
    let step = Step::new(format!("running {count} fuzz target(s), {seconds} s each"));
    let left = Mutex::new(VecDeque::from(targets));
    let failures = Mutex::new(Vec::new());
    let workers = thread::available_parallelism().map_or(1, usize::from).min(count);
    thread::scope(|scope| {
        let work = || {
            while let Some((name, program)) = left.lock().ok().and_then(|mut left| left.pop_front())
            {
                let outcome = run_one(&name, &program, seconds, corpus);
                let failed = report(&name, outcome);
                if let (true, Ok(mut failures)) = (failed, failures.lock()) {
                    failures.push(name);
                }
            }
        };
        for _ in 0..workers {
            scope.spawn(work);
        }
    });
    step.done();
    let failed = failures.into_inner().unwrap_or_default().len();
    Ok((count - failed, failed))
}

/// Prints what a target came to; whether it failed.
fn report(name: &str, outcome: Result<Outcome>) -> bool {
    let again = |input: &Path| {
        let input = input.display();
        format!("a finding, {input}\n       again: cargo xtask fuzz {name} --input {input}")
    };
    let trouble = match outcome {
        Ok(Outcome::Clean(inputs)) => {
            // Whether anybody reads it is known to who ends the program.
            let _ = writeln!(Out, "ok     fuzz {name}: {inputs} inputs");
            return false;
        }
        Ok(Outcome::Finding(Some(input))) => again(&input),
        Ok(Outcome::Finding(None)) => "it ended without an input".to_owned(),
        Err(error) => format!("{error:#}"),
    };
    let log = log_of(name);
    let _ = writeln!(Out, "FAILED fuzz {name}: {trouble}\n       log: {}", log.display());
    true
}

fn log_of(name: &str) -> PathBuf {
    work(name).join("log")
}

fn run_one(name: &str, program: &Path, seconds: u64, corpus: Corpus) -> Result<Outcome> {
    let work = work(name);
    let (findings, found) = (
        work.join("findings"),
        match corpus {
            Corpus::Kept => work.join("corpus"),
            Corpus::Fresh => work.join("fresh"),
        },
    );
    if corpus == Corpus::Fresh && found.exists() {
        fs::remove_dir_all(&found).with_context(|| format!("cannot empty {}", found.display()))?;
    }
    for dir in [&found, &findings] {
        fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    }
    let before = files(&findings)?;
    let log = log_of(name);
    let file = fs::File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
    let committed = committed(name);
    if !committed.is_dir() {
        bail!("{} is missing: a target has a few inputs to begin with", committed.display());
    }
    let status = Command::new(program)
        .arg(format!("-max_total_time={seconds}"))
        .arg(format!("-timeout={INPUT_SECONDS}"))
        .arg(format!("-max_len={MOST_BYTES}"))
        .arg(format!("-artifact_prefix={}/", findings.display()))
        .args(["-print_final_stats=1", "-verbosity=1"])
        .args([&found, &committed])
        .stdin(Stdio::null())
        .stdout(file.try_clone()?)
        .stderr(file)
        .status()
        .with_context(|| format!("cannot start {}", program.display()))?;
    let text = String::from_utf8_lossy(&fs::read(&log)?).into_owned();
    let new = files(&findings)?.into_iter().find(|file| !before.contains(file));
    Ok(outcome(status, &text, new))
}

fn outcome(status: ExitStatus, log: &str, new: Option<PathBuf>) -> Outcome {
    match inputs(log) {
        Some(inputs) if status.success() => Outcome::Clean(inputs),
        // The same finding as last time: its file is there already.
        _ => Outcome::Finding(new.or_else(|| written(log))),
    }
}

/// How many inputs the final statistics tell of.
fn inputs(log: &str) -> Option<u64> {
    let line = log.lines().find_map(|line| line.strip_prefix("stat::number_of_executed_units:"));
    line?.trim().parse().ok()
}

/// The file that a finding was written to.
fn written(log: &str) -> Option<PathBuf> {
    log.lines()
        .find_map(|line| line.split_once("Test unit written to "))
        .map(|(_, path)| path.into())
}

fn files(dir: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))?;
    Ok(entries.flatten().map(|entry| entry.path()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fuzzers_own_words_are_understood() {
        let log = "Done 7 runs in 1 second(s)\nstat::number_of_executed_units: 713617\n";
        assert_eq!(inputs(log), Some(713_617));
        let log = "==1== ERROR: libFuzzer: deadly signal\n\
                   artifact_prefix='x/'; Test unit written to x/crash-1\n";
        assert_eq!(inputs(log), None);
        assert_eq!(written(log), Some(PathBuf::from("x/crash-1")));
    }

    #[test]
    fn a_target_that_is_none_is_told_before_anything_is_built() {
        let options = FuzzOptions {
            target: Some("emulatr".to_owned()),
            seconds: 1,
            input: None,
            check: false,
        };
        let error = fuzz(&options).unwrap_err().to_string();
        assert!(error.starts_with("no fuzz target emulatr; there are "), "{error}");
        assert!(error.contains("emulator, "), "{error}");
    }

    /// Each target has inputs to begin with, few and small, and its four lines.
    #[test]
    fn committed_inputs() {
        let names = names().unwrap();
        assert!(names.len() >= 14, "{names:?}");
        for name in names {
            let inputs = files(&committed(&name)).unwrap();
            let bytes: u64 = inputs.iter().map(|file| fs::metadata(file).unwrap().len()).sum();
            assert!(!inputs.is_empty() && bytes <= 16 << 10, "{name}: {bytes} bytes");
        }
    }
}
