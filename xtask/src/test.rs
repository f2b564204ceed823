//! `test`: the tests on this computer, the fuzz targets, then the tests on emulated
//! machines, and one summary of all.

use std::fs;
use std::io::{BufRead, BufReader, Write as _};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, anyhow, bail};
use clap::Args;

use crate::setup::{self, Need};
use crate::ui::{Out, Step};
use crate::{cmd, fuzz, paths};

/// Options of `test`.
#[derive(Debug, Clone, Args)]
pub struct TestOptions {
    /// The slow cases too: large and small guests, memtest86+; fuzz targets for longer
    #[arg(long)]
    pub full: bool,
    /// Instead: build each planted fault in, and see that its test turns red
    #[arg(long)]
    pub planted: bool,
    /// Only machine cases whose name contains this, and no tests on this computer
    pub filter: Option<String>,
}

/// The exit status of xtask's own failures, and of the machine tests': no run's end has it.
pub const FAILED: u8 = 100;

/// Passed and failed.
type Counts = (usize, usize);

/// Runs the tests; the status to exit with.
pub fn test(options: &TestOptions) -> Result<u8> {
    setup::ensure(&[Need::Qemu, Need::Ovmf, Need::Bochs, Need::Iasl])?;
    let mut parts: Vec<(&str, Result<Counts>)> = Vec::new();
    if options.filter.is_none() && !options.planted {
        parts.push(("on this computer", host("host", &[])));
        parts.push(("all orders of what CPUs share", host("orders", &ORDERS)));
        parts.push(("fuzz targets", fuzz::test(options.full)));
    }
    let machines = match machines(options) {
        // They have said what is wrong with the word, and nothing else was to run.
        Ok(None) if options.filter.is_some() => return Ok(FAILED),
        Ok(None) => Err(anyhow!("the machine tests have said why")),
        Ok(Some(counts)) => Ok(counts),
        Err(error) => Err(error),
    };
    parts.push((if options.planted { "planted faults" } else { "on emulated machines" }, machines));
    writeln!(Out)?;
    let (mut passed, mut failed) = (0, 0);
    for (name, result) in &parts {
        match result {
            Ok((good, bad)) => {
                writeln!(Out, "{name}: {good} passed, {bad} failed")?;
                passed += good;
                failed += bad;
            }
            Err(error) => {
                writeln!(Out, "{name}: could not be run: {error:#}")?;
                failed += 1;
            }
        }
    }
    writeln!(Out, "{passed} passed, {failed} failed")?;
    Ok(u8::from(failed > 0))
}

/// Arguments for the tests of all orders in which CPUs may meet: the crates that share something
/// without a lock have models of it instead of the real thing.
const ORDERS: [&str; 7] = [
    "--package=memory",
    "--package=chipset",
    "--package=virtqueue",
    "--features=memory/loom,chipset/loom,virtqueue/loom",
    "--lib",
    "--",
    "orders::",
];

/// The unit and property tests of the pure crates and the tools, or those that `arguments` choose.
/// Their log is called `name`.
fn host(name: &str, arguments: &[&str]) -> Result<Counts> {
    let logs = paths::root().join("target/test-logs");
    fs::create_dir_all(&logs)?;
    let log = logs.join(name).with_extension("log");
    let step = Step::new(match arguments {
        [] => "running the tests on this computer",
        _ => "running the tests of all orders in which CPUs may meet",
    });
    let mut command = cmd::cargo();
    command.current_dir(paths::root()).args(["test", "--no-fail-fast"]).args(arguments);
    // Standard output and errors in one file: a failed compilation explains itself there.
    let file = fs::File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
    let mut child = command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file).spawn()?;
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if let Some(line) = fs::read_to_string(&log).unwrap_or_default().lines().last() {
            step.detail(line);
        }
        std::thread::sleep(std::time::Duration::from_millis(300));
    };
    step.done();
    let text = String::from_utf8_lossy(&fs::read(&log)?).into_owned();
    let (passed, mut failed) = count(&text);
    if !status.success() {
        for line in
            text.lines().filter(|line| line.ends_with("... FAILED") || line.starts_with("error"))
        {
            writeln!(Out, "FAILED on this computer: {line}")?;
        }
        writeln!(Out, "       log: {}", log.display())?;
        if failed == 0 {
            writeln!(Out, "{}", cmd::tail(&text, 30))?;
        }
        // A test program that does not compile, or dies, fails without counting itself.
        failed = failed.max(1);
    }
    Ok((passed, failed))
}

/// Adds up the summaries of `cargo test`.
fn count(text: &str) -> Counts {
    let mut counts = (0, 0);
    for line in text.lines().filter_map(|line| line.strip_prefix("test result: ")) {
        let number = |word: &str| {
            line.split(&[';', '.'][..])
                .filter_map(|part| part.trim().strip_suffix(word))
                .find_map(|number| number.trim().parse::<usize>().ok())
                .unwrap_or(0)
        };
        counts.0 += number("passed");
        counts.1 += number("failed");
    }
    counts
}

/// The cases on emulated machines, which are a program of their own: it depends on
/// this one. Nothing where they could not be run and have said why.
fn machines(options: &TestOptions) -> Result<Option<Counts>> {
    let mut command = cmd::cargo();
    command.current_dir(paths::root()).args([
        "run",
        "--quiet",
        "--package",
        "tests",
        "--bin",
        "machines",
        "--",
    ]);
    if options.full {
        command.arg("--full");
    }
    if options.planted {
        command.arg("--planted");
    }
    command.args(&options.filter);
    relay(&mut command)
}

fn relay(command: &mut Command) -> Result<Option<Counts>> {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start the machine tests")?;
    let stdout = child.stdout.take().context("no output of the machine tests")?;
    let mut counts = None;
    for line in BufReader::new(stdout).lines() {
        let line = line?;
        match summary(&line) {
            Some(found) => counts = Some(found),
            None => {
                if let Err(error) = writeln!(Out, "{line}") {
                    // Nobody wants to know how they go on. They may have ended by themselves.
                    let _ = child.kill();
                    child.wait()?;
                    return Err(error.into());
                }
            }
        }
    }
    let status = child.wait()?;
    match counts {
        Some(counts) => Ok(Some(counts)),
        None if status.code() == Some(i32::from(FAILED)) => Ok(None),
        None => bail!("the machine tests ended without a summary ({status})"),
    }
}

fn summary(line: &str) -> Option<Counts> {
    let (passed, failed) = line.strip_suffix(" failed")?.split_once(" passed, ")?;
    Some((passed.parse().ok()?, failed.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn summaries_of_cargo_add_up() {
        let text = "running 2 tests\ntest result: ok. 2 passed; 0 failed; 0 ignored; 0 measured\n\
                    test result: FAILED. 3 passed; 4 failed; 0 ignored; finished in 0.1s\n";
        assert_eq!(count(text), (5, 4));
        assert_eq!(count(""), (0, 0));
    }

    #[test]
    fn tests_that_could_not_be_run_are_none_that_passed() {
        let relay = |script| relay(Command::new("sh").args(["-c", script]));
        assert_eq!(relay("echo '2 passed, 1 failed'; exit 1").unwrap(), Some((2, 1)));
        assert_eq!(relay("exit 100").unwrap(), None);
        assert!(relay("exit 101").is_err());
    }

    #[test]
    fn the_machines_summary_is_recognised() {
        assert_eq!(summary("12 passed, 0 failed"), Some((12, 0)));
        assert_eq!(summary("ok     x (1.0 s)"), None);
    }
}
