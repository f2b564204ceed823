//! `cargo xtask`: the developer's entry to everything.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use anyhow::Result;
use clap::error::ErrorKind;
use clap::{Parser, Subcommand};
use xtask::bench::BenchOptions;
use xtask::ctl::CtlOptions;
use xtask::flash::FlashOptions;
use xtask::fuzz::FuzzOptions;
use xtask::run::{ImageOptions, RunOptions};
use xtask::setup::{self, Need};
use xtask::test::{self, FAILED, TestOptions};
use xtask::top::TopOptions;
use xtask::{bench, ctl, flash, fuzz, lint, run, top, ui};

/// Sets up, builds, runs and tests Steward.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", version)]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Install what is missing: Rust target and components, emulators, firmware
    Setup,
    /// Boot Steward in an emulator with a guest; the terminal is the guest's console
    ///
    /// Without options: Debian's cloud kernel with a root shell. Everything typed goes to the
    /// guest, Ctrl-C too; Ctrl-] then q ends the run.
    ///
    /// The exit status tells how the run ended: 0 the guest powered off; (V << 1) | 1 it wrote V
    /// to its debug-exit port (V with --debug-exit=plain); 2 Steward refused the machine or the
    /// bundle; 3 the guest crashed; 4 Steward crashed; 100 xtask itself failed; 124 the timeout
    /// passed; 125 the emulator died; 130 the keyboard ended it; 141 nobody reads the guest's
    /// console any more. With --exec: the command's status, or 125 if it did not end.
    Run(Box<RunOptions>),
    /// Make the disk image, print where it is and its size
    ///
    /// For any machine: it halts at the end, as nobody waits there. With --release, a file to hand
    /// on: Steward with Debian as its guest, at most 64 MiB without the partition STEWDATA, and its
    /// SHA-256 beside it. `dd` and its like put it on a stick, and so does `cargo xtask flash`.
    Image(Box<ImageOptions>),
    /// Write the image to a USB stick, or another disk, and read it back
    ///
    /// Without a name: lists the removable disks and asks. Everything on the disk is lost. Refuses
    /// disks that are in use or belong to the running system. The exit status is 100 where
    /// something was refused or failed. docs/real-machine.md says how to boot from the stick.
    Flash(FlashOptions),
    /// Run the tests: on this computer, then on emulated machines
    ///
    /// Each machine's serial log stays in target/test-logs. The last line counts.
    Test(TestOptions),
    /// Run the fuzz targets, each on random inputs made of what reached something new before
    ///
    /// They are what guests, kernels, bundles, firmware and the operator's client can reach
    /// (docs/testing.md). A finding prints the input's path and how to run it again, and the
    /// exit status is 1. Inputs that reach something new stay in target/fuzz/work. The tests
    /// run each target's committed inputs and 5 s more, 60 s with --full.
    Fuzz(FuzzOptions),
    /// Count the instructions that exits cost, as a guest sees them
    ///
    /// Prints a table for each machine and writes target/bench/MACHINE.json. The exit status
    /// is 1 where a run failed; with --check, 2 where a target is missed; 100 where xtask failed.
    Bench(BenchOptions),
    /// Control a running Steward: guests, statistics, events (docs/control.md)
    ///
    /// Needs `run --control`. The exit status is 3 where Steward refused, 4 where a dry run says
    /// no, 100 where the control line does not work.
    Ctl(Box<CtlOptions>),
    /// Watch the guests of a running Steward: CPU time, exits, memory, live
    ///
    /// Needs `run --control`. A table with a row for each guest, and the kinds of exits of the
    /// selected one. Keys: arrows or j and k select, s changes the order, p pauses and r resumes
    /// the selected guest, space keeps the picture, q, Esc or Ctrl-C ends it. READY% is the time
    /// that vCPUs would have run but had no CPU; "1 MIN" is the CPU time of the last minute, a
    /// full block where all of a guest's vCPUs were busy.
    ///
    /// With --once, or where standard output is no terminal, it prints what one period brought
    /// and ends. The exit status is 100 where the control line does not work.
    Top(TopOptions),
    /// Count lines of Rust and unsafe blocks; fails on `unsafe` where none may be
    Lint(lint::LintOptions),
}

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // An error means that nobody reads it: there is nobody to tell.
            let _ = error.print();
            return ExitCode::from(status_of(&error));
        }
    };
    match perform(cli.task) {
        Ok(status) => ExitCode::from(status),
        Err(_) if ui::reader_is_gone() => ExitCode::from(ui::READER_GONE),
        Err(error) => {
            ui::say(format!("error: {error:#}"));
            ExitCode::from(FAILED)
        }
    }
}

/// The exit status where the command line asks for nothing to be performed.
fn status_of(error: &clap::Error) -> u8 {
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => 0,
        _ => FAILED,
    }
}

fn perform(task: Task) -> Result<u8> {
    match task {
        Task::Setup => {
            setup::ensure(&Need::ALL)?;
            xtask::stages::Stages::ensure()?;
            setup::report();
            Ok(0)
        }
        Task::Run(options) => run::run(&options),
        Task::Image(options) => run::image(&options),
        Task::Flash(options) => flash::flash(&options),
        Task::Test(options) => test::test(&options),
        Task::Fuzz(options) => fuzz::fuzz(&options),
        Task::Bench(options) => bench::bench(&options),
        Task::Ctl(options) => ctl::ctl(&options),
        Task::Top(options) => top::top(&options),
        Task::Lint(options) => lint::lint(&options),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use config::DebugStatus;

    fn parse(words: &[&str]) -> Result<RunOptions, u8> {
        let words = ["xtask", "run"].iter().chain(words);
        match Cli::try_parse_from(words) {
            Ok(Cli { task: Task::Run(options) }) => Ok(*options),
            Ok(_) => Err(0),
            Err(error) => Err(status_of(&error)),
        }
    }

    #[test]
    fn a_wrong_command_line_is_no_run_s_end() {
        assert_eq!(parse(&["--nonsense"]).err(), Some(FAILED));
        assert_eq!(parse(&["--debug-exit=other"]).err(), Some(FAILED));
        assert_eq!(parse(&["--help"]).err(), Some(0));
    }

    #[test]
    fn a_value_out_of_range_is_told_with_its_option() {
        for words in [["--vcpus", "65"], ["--memory", "0"], ["--machine-memory", "1M"]] {
            let error = Cli::try_parse_from(["xtask", "run"].iter().chain(&words)).err().unwrap();
            let text = error.to_string();
            assert!(text.contains(&format!("'{}' for '{} <", words[1], words[0])), "{text}");
        }
    }

    #[test]
    fn options_of_run() {
        let usual = parse(&[]).unwrap();
        assert!(!usual.guests.debug);
        assert_eq!(usual.guests.debug_exit, None);
        assert_eq!(parse(&["--debug-exit"]).unwrap().guests.debug_exit, Some(DebugStatus::Shifted));
        let plain = parse(&["--debug-exit=plain", "--debug"]).unwrap();
        assert_eq!((plain.guests.debug_exit, plain.guests.debug), (Some(DebugStatus::Plain), true));
        let words = parse(&["--machine-arg", "-machine", "--machine-arg=pit=off"]).unwrap();
        assert_eq!(words.machine_args, ["-machine", "pit=off"]);
    }
}
