//! Many guests that do nothing: they cost the others nothing, and the operator next to nothing.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use control::status::{CpusStatus, GuestState};
use control::{Answer, Operation};
use xtask::bench::figures::{Figures, Line};
use xtask::ctl::client::Client;

use super::{reference, to_monitor};
use crate::drive::Drive;

/// Guests that do nothing.
const GUESTS: usize = 256;
/// The operator's step may take so many instructions.
const STEP: u64 = 50_000;
/// Nanoseconds between two steps of the operator that has nothing to do.
const POLL: u64 = 10_000_000;
/// The operator is watched for at least so long, in nanoseconds of the machine.
const WATCHED: u64 = 1_000_000_000;
/// `list` may take so many instructions.
const LIST: u64 = 5_000_000;

/// One guest that measures its exits, and many that wait for somebody to type.
pub(super) fn idle_scene() -> String {
    let guest = |name: &str, kernel: &str, memory: &str, rest: &str| {
        format!(
            "[[guest]]\nname = \"{name}\"\nkernel = \"test:{kernel}\"\nmemory = \"{memory}\"\n{rest}\n"
        )
    };
    let mut text = String::from("[host]\ncpus = 1\nmemory = \"4G\"\nwhen_empty = \"stay\"\n");
    text.push_str(&guest("bench", "bench", "128M", "cmdline = \"n=1000\""));
    for number in 1..=GUESTS {
        text.push_str(&guest(&format!("i{number}"), "hello", "8M", ""));
    }
    text
}

fn cpus(drive: &Drive, client: &mut Client) -> Result<CpusStatus> {
    match drive.ask(client, Operation::Cpus)? {
        Answer::Cpus(cpus) => Ok(cpus),
        other => bail!("cpus are answered with {other:?}"),
    }
}

/// Busy and all nanoseconds of the machine's one CPU: instructions, on its clock. And the longest
/// step of the operator since the last call.
fn times(drive: &Drive, client: &mut Client) -> Result<(u64, u64, u64)> {
    let cpus = cpus(drive, client)?;
    let cpu = cpus.cpus.first().context("there is no CPU")?;
    Ok((cpu.busy_ns, cpu.busy_ns + cpu.idle_ns, cpus.longest_step_ns))
}

/// Lets the guest `bench` run, and returns what it measured.
fn measure(drive: &mut Drive, client: &mut Client) -> Result<Figures> {
    drive.ask(client, Operation::Attach(reference("bench")))?;
    let from = drive.text().len();
    drive.ask(client, Operation::Start(reference("bench")))?;
    drive.expect("bench-end", 400)?;
    super::wait_until_over(drive, client, "bench", 60)?;
    Figures::parse(drive.text().get(from..).unwrap_or_default())
}

/// The number of guests that run.
fn running(drive: &Drive, client: &mut Client) -> Result<usize> {
    match drive.ask(client, Operation::List)? {
        Answer::Guests(guests) => {
            Ok(guests.iter().filter(|guest| guest.state == GuestState::Running).count())
        }
        other => bail!("list is answered with {other:?}"),
    }
}

pub(super) fn idle(drive: &mut Drive) -> Result<()> {
    drive.expect("bench-end", 600)?;
    let mut client = drive.client()?;
    let c = &mut client;
    super::wait_until_over(drive, c, "bench", 60)?;
    let end = Instant::now() + Duration::from_secs(300);
    while running(drive, c)? < GUESTS {
        ensure!(Instant::now() < end, "not all guests run");
        std::thread::sleep(Duration::from_millis(500));
    }
    let many = measure(drive, c)?;

    // Nobody's console is shown. What the answer to the request itself takes is divided among the
    // steps, too.
    to_monitor(drive)?;
    let before = times(drive, c)?;
    let after = loop {
        std::thread::sleep(Duration::from_millis(200));
        let after = times(drive, c)?;
        if after.1 - before.1 >= WATCHED {
            break after;
        }
        ensure!(Instant::now() < end + Duration::from_secs(300), "the machine's time stands still");
    };
    let steps = (after.1 - before.1) / POLL;
    let step = (after.0 - before.0) / steps.max(1);
    println!("       a step of the operator: {step} instructions at the most, of {steps} steps");
    ensure!(step <= STEP, "a step of the operator takes {step} instructions");

    // From the last byte of the request to the first of the answer it is one step.
    times(drive, c)?;
    ensure!(running(drive, c)? == GUESTS, "a guest has ended");
    let list = times(drive, c)?.2;
    println!("       list: {list} instructions");
    ensure!(list <= LIST, "list takes {list} instructions");

    for number in 1..=GUESTS {
        drive.ask(c, Operation::Kill(reference(&format!("i{number}"))))?;
    }
    while running(drive, c)? != 0 {
        std::thread::sleep(Duration::from_millis(200));
    }
    let alone = measure(drive, c)?;
    let mut compared = 0;
    for line in alone.lines() {
        let Line::Measured(one) = line else { continue };
        let Some(figure) = many.get(&one.name) else { bail!("{} was not measured", one.name) };
        // These hang on what idle moments were good for: memory zeroed ahead, a deeper sleep.
        if ["first_touch", "first_touch_exits", "fresh_2m", "hlt_wake"].contains(&one.name.as_str())
        {
            continue;
        }
        ensure!(
            figure.median <= one.median + one.median * 3 / 100 + 1,
            "{}: {} instructions beside {GUESTS} guests, {} alone",
            one.name,
            figure.median,
            one.median
        );
        compared += 1;
    }
    ensure!(compared > 20, "{compared} figures");
    let mean = |figures: &Figures| figures.get("cpuid_d").map_or(0.0, |figure| figure.mean);
    let (beside, by_itself) = (mean(&many), mean(&alone));
    println!("       a cold exit: {beside:.1} instructions on average, {by_itself:.1} alone");
    ensure!(beside <= by_itself * 1.03, "a cold exit: {beside:.1} and {by_itself:.1}");
    drive.ask(c, Operation::PowerOff)?;
    drive.ends(0).map(|_| ())
}
