//! Prints the programs of lock-step seeds: `cargo run -p tests --bin micro -- 17 42`.
#![forbid(unsafe_code)]

use clap::Parser;
use micro::{Program, Vendor};
use tests::lockstep::listing;

/// Prints the programs of lock-step seeds.
#[derive(Parser)]
struct Cli {
    /// With VMMCALL instead of VMCALL
    #[arg(long)]
    amd: bool,
    /// The seeds
    seeds: Vec<u64>,
}

fn main() {
    let cli = Cli::parse();
    let vendor = if cli.amd { Vendor::Amd } else { Vendor::Intel };
    for seed in cli.seeds {
        print!("{}", listing::of(&Program::generate(seed, vendor)));
    }
}
