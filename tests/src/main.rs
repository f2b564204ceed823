//! Runs the cases on emulated machines. `cargo xtask test` starts it.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use clap::Parser;
use tests::runner::{Options, run};

/// Runs Steward's tests on emulated machines.
#[derive(Parser)]
struct Cli {
    /// The slow cases too
    #[arg(long)]
    full: bool,
    /// Build each planted fault in and see that its case fails
    #[arg(long)]
    planted: bool,
    /// Only cases (or faults) whose name contains this
    filter: Option<String>,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(&Options { full: cli.full, planted: cli.planted, filter: cli.filter }) {
        Ok(counts) => {
            println!("{} passed, {} failed", counts.passed, counts.failed);
            if counts.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(error) => {
            xtask::ui::say(format!("error: {error:#}"));
            // As xtask's own failures have it, which passes the status on.
            ExitCode::from(xtask::test::FAILED)
        }
    }
}
