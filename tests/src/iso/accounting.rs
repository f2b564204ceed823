//! Account that the hypervisor gives of its own time.

use anyhow::{Context, Result, ensure};
use regex_lite::Regex;
use xtask::emulator::Clock;
use xtask::machine::Firmware;

use crate::case::{Build, Case, Kernel, Tier};
use crate::drive::Drive;

/// Text that the boot's `/init` prints, behind the TSC.
const INIT_LINE: &str = ": the init of the tests runs";
/// The most of a quiet boot that may be spent outside the guest, in percent.
const OUTSIDE: f64 = 2.0;
/// The most ticks of the TSC that the boot may take, from the guest's first instruction to that of
/// `/init`: here a tick is an instruction.
const BOOT: u64 = 1_395_000_000;
/// By so many hundredths of the boot the ordinary accounting may be off the stamps: 0.3 points.
const OFF: f64 = 0.3;

/// The cases.
pub(crate) fn cases() -> Vec<Case> {
    let boot = |name, build, script| Case {
        kernel: Kernel::DebianInit(INIT_LINE),
        cmdline: Some("console=ttyS0 quiet panic=1"),
        memory: 256,
        build,
        clock: Clock::Instructions,
        tier: Tier::Full,
        ..Case::debian(name, Firmware::Bios, script)
    };
    vec![
        boot("iso-quiet-boot", Build::Release, quiet_boot),
        boot("iso-quiet-boot-stamped", Build::Stamped, stamped_boot),
    ]
}

/// Account of a guest's time, by what the run printed.
struct Account {
    /// Ticks from its first instruction to that of `/init`.
    boot: u64,
    /// Percent of its time that was not its own, by the ordinary accounting.
    outside: f64,
    /// The line.
    line: String,
}

/// Boots and ends, and returns what is said of the guest's time.
fn account(drive: &mut Drive) -> Result<Account> {
    drive.expect(INIT_LINE, 300)?;
    drive.ends(0)?;
    let tsc = Regex::new(&format!("([0-9a-f]{{16}}){INIT_LINE}"))?;
    let tsc = tsc.captures(drive.text()).context("/init does not say its time")?;
    let line = Regex::new(r#"guest "guest": \d+ ticks up, \d+ busy: guest ([\d.]+) %.*"#)?;
    let found = line.captures(drive.text()).context("no line about the guest's time")?;
    Ok(Account {
        boot: u64::from_str_radix(&tsc[1], 16)?,
        outside: 100.0 - found[1].parse::<f64>()?,
        line: found[0].to_owned(),
    })
}

fn quiet_boot(drive: &mut Drive) -> Result<()> {
    let account = account(drive)?;
    println!("       {} ticks to /init; {}", account.boot, account.line);
    ensure!(account.boot <= BOOT, "the boot took {} ticks, more than {BOOT}", account.boot);
    ensure!(account.outside <= OUTSIDE, "{:.2} % outside the guest", account.outside);
    Ok(())
}

fn stamped_boot(drive: &mut Drive) -> Result<()> {
    let account = account(drive)?;
    let line = Regex::new(r#"guest "guest": stamped: outside ([\d.]+) %.*"#)?;
    let found = line.captures(drive.text()).context("no line about the stamps")?;
    println!("       {}\n       {}", account.line, &found[0]);
    let stamped: f64 = found[1].parse()?;
    ensure!(stamped <= OUTSIDE, "{stamped:.2} % outside the guest");
    let off = (stamped - account.outside).abs();
    ensure!(off <= OFF, "{:.2} % by the statistics, {stamped:.2} % by stamps", account.outside);
    // Zeroing is counted, by the word.
    ensure!(!found[0].contains("8 bytes 0 times"), "no copies were counted");
    Ok(())
}
