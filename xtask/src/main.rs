//! `cargo xtask`: the developer's entry to everything.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};
use xtask::bench::BenchOptions;
use xtask::ctl::CtlOptions;
use xtask::run::RunOptions;
use xtask::setup::{self, Need};
use xtask::test::{self, TestOptions};
use xtask::top::TopOptions;
use xtask::{bench, ctl, lint, run, top, ui};

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
    /// to its debug-exit port; 2 Steward refused the machine or the bundle; 3 the guest crashed;
    /// 4 Steward crashed; 124 the timeout passed; 125 the emulator died; 130 the keyboard ended
    /// it. With --exec: the command's status.
    Run(Box<RunOptions>),
    /// Make the disk image, print where it is and its size
    Image(Box<RunOptions>),
    /// Run the tests: on this computer, then on emulated machines
    ///
    /// Each machine's serial log stays in target/test-logs. The last line counts.
    Test(TestOptions),
    /// Count the instructions that exits cost, as a guest sees them
    ///
    /// Prints a table for each machine and writes target/bench/MACHINE.json. The exit status
    /// is 1 where a run failed; with --check, 2 where a target is missed.
    Bench(BenchOptions),
    /// Control a running Steward: guests, statistics, events (docs/control.md)
    ///
    /// Needs `run --control`. The exit status is 1 where the control line does not work, 3
    /// where Steward refused, 4 where a dry run says no.
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
    /// and ends. The exit status is 1 where the control line does not work.
    Top(TopOptions),
    /// Count lines of Rust and unsafe blocks; fails on `unsafe` where none may be
    Lint,
}

fn main() -> ExitCode {
    match perform(Cli::parse().task) {
        Ok(status) => ExitCode::from(status),
        Err(error) => {
            ui::say(format!("error: {error:#}"));
            ExitCode::FAILURE
        }
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
        Task::Test(options) => test::test(&options),
        Task::Bench(options) => bench::bench(&options),
        Task::Ctl(options) => ctl::ctl(&options),
        Task::Top(options) => top::top(&options),
        Task::Lint => lint::lint(),
    }
}
