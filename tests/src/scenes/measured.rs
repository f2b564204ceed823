//! Scenes that are measured: shares of the CPU, caps, and neighbours of a guest that misbehaves.

use anyhow::{Result, ensure};
use control::Operation;
use regex_lite::Regex;

use super::{reference, tiny, to_monitor, wait_until_over};
use crate::drive::Drive;

/// Windows that `steady` printed: share, worst lateness and hash of each.
type Windows = Vec<(u64, u64, String)>;

/// Attaches to guest `number`; where its output begins.
fn to_console(drive: &mut Drive, number: usize) -> Result<usize> {
    drive.send(&format!("\x1d{number}"));
    // Another's output may come before it.
    drive.expect("console of", 300)?;
    Ok(drive.text().rfind("console of").unwrap_or_default())
}

fn parse_windows(text: &str) -> Windows {
    numbered(text).into_iter().map(|(_, window)| window).collect()
}

/// Windows that `steady` printed, with their numbers.
fn numbered(text: &str) -> Vec<(usize, (u64, u64, String))> {
    let line = Regex::new(r"window (\d+) share=(\d+) late=(\d+) hash=([0-9a-f]+)\r")
        .expect("the expression is constant");
    let windows = line.captures_iter(text).filter_map(|found| {
        let word = |index| found.get(index).map_or("", |word| word.as_str());
        let number = |index| word(index).parse().ok();
        let index = word(1).parse().ok()?;
        Some((index, (number(2)?, number(3)?, word(4).to_owned())))
    });
    windows.collect()
}

fn mean(windows: &[(u64, u64, String)]) -> f64 {
    let sum: u64 = windows.iter().map(|(share, ..)| share).sum();
    sum as f64 / windows.len().max(1) as f64
}

/// `count` windows of guest `number`: what its console kept, and what comes then.
fn last_windows(drive: &mut Drive, number: usize, count: usize) -> Result<Windows> {
    let from = to_console(drive, number)?;
    loop {
        drive.expect("window", 600)?;
        // The last one may still be on its way.
        let all = parse_windows(drive.text().get(from..).unwrap_or_default());
        if let Some(last) = all.len().checked_sub(count) {
            return Ok(all.get(last..).unwrap_or_default().to_vec());
        }
    }
}

/// Waits until the last of the guests has gone through so many windows.
fn settle(drive: &mut Drive, guests: usize, windows: usize) -> Result<()> {
    // Before that nobody listens.
    drive.expect("window 0 ", 300)?;
    for number in (1..=guests).rev() {
        to_console(drive, number)?;
        drive.expect(&format!("window {windows} "), 900)?;
    }
    Ok(())
}

fn power_off(drive: &mut Drive) -> Result<()> {
    to_monitor(drive)?;
    drive.send("poweroff\r");
    drive.ends(0).map(|_| ())
}

/// Windows that are looked at.
const LOOKED_AT: usize = 8;

pub(super) fn shares_scene() -> String {
    let mut text = String::from("[host]\ncpus = 1\nwhen_empty = \"stay\"\n");
    for (name, weight) in [("one", 100), ("two", 200), ("four", 400)] {
        let rest = format!("weight = {weight}\ncmdline = \"windows=100000 ticks=200000000\"");
        text.push_str(&tiny(name, "steady", &rest));
    }
    text
}

/// Three guests that compute get the CPU as 1 : 2 : 4, within 3 %.
pub(super) fn shares(drive: &mut Drive) -> Result<()> {
    settle(drive, 3, LOOKED_AT + 2)?;
    let all: Vec<Windows> =
        (1..=3).map(|number| last_windows(drive, number, LOOKED_AT)).collect::<Result<_>>()?;
    let means: Vec<f64> = all.iter().map(|windows| mean(windows)).collect();
    let sum: f64 = means.iter().sum();
    println!("       shares in per mille of the CPU: {means:.1?}");
    for (share, weight) in means.iter().zip([1.0, 2.0, 4.0]) {
        let wanted = sum * weight / 7.0;
        ensure!((share - wanted).abs() <= wanted * 0.03, "shares {means:?} for 1 : 2 : 4");
    }
    ensure!(sum > 900.0, "together they got {sum} per mille of the CPU");
    power_off(drive)
}

pub(super) fn caps_scene() -> String {
    let mut text = String::from("[host]\ncpus = 1\nwhen_empty = \"stay\"\n");
    for (name, cap) in [("ten", 10), ("fifty", 50)] {
        let rest = format!("cap = {cap}\ncmdline = \"windows=100000 ticks=200000000\"");
        text.push_str(&tiny(name, "steady", &rest));
    }
    text
}

/// Caps hold within a point.
pub(super) fn caps(drive: &mut Drive) -> Result<()> {
    settle(drive, 2, LOOKED_AT + 2)?;
    for (number, cap) in [(1, 10.0), (2, 50.0)] {
        let share = mean(&last_windows(drive, number, LOOKED_AT)?) / 10.0;
        println!("       with a cap of {cap} %: {share:.2} %");
        ensure!((share - cap).abs() <= 1.0, "a cap of {cap} % gave {share} %");
    }
    power_off(drive)
}

/// Command lines of the guests beside the neighbours: each says what its guest does.
const CRASHES: [&str; 7] =
    ["triple-fault", "pvpanic", "jump", "exit=3", "shutdown-call", "loop", "flood"];
/// The command lines of guests that do not end by themselves.
const LIVES_ON: [&str; 2] = ["loop", "flood"];

fn crash_name(word: &str) -> String {
    format!("c-{}", word.replace('=', "-"))
}

pub(super) fn neighbours_scene() -> String {
    let mut text = String::from("[host]\ncpus = 1\nwhen_empty = \"stay\"\n");
    let steady = |name: &str, more: &str| {
        // The sleeper's windows are shown at the end, all of them.
        let rest = format!(
            "weight = 10000\nconsole.ring = \"256K\"\ncmdline = \"windows=100000 ticks=40000000{more}\""
        );
        tiny(name, "steady", &rest)
    };
    text.push_str(&steady("steady", ""));
    text.push_str(&steady("sleeper", " sleep=400000"));
    for word in CRASHES {
        // Little enough that its own share is none that anybody misses.
        let rest = format!("weight = 100\ncmdline = \"{word}\"");
        text.push_str(&tiny(&crash_name(word), "crash", &rest));
    }
    text
}

/// Windows that are looked at before and after a crash.
const QUIET: usize = 8;
/// The latest that a guest within its share wakes for its timer: after the least of what
/// runs, behind one that was woken before it, and one that runs ahead of its turn
/// (`docs/scheduler.md`), in ticks of 1 ns.
const WAKES_WITHIN: u64 = 100_000 + 2 * 200_000 + 5 * 50_000 + 50_000;

/// The number of the last window that is shown.
fn last_window(drive: &Drive) -> usize {
    numbered(drive.text()).last().map_or(0, |(number, _)| *number)
}

/// Neighbours keep their memory and their share, and wake in time, whatever
/// crashes beside them.
pub(super) fn neighbours(drive: &mut Drive) -> Result<()> {
    drive.expect("window 2 ", 300)?;
    let mut client = drive.client()?;
    let c = &mut client;
    for word in CRASHES {
        let name = crash_name(word);
        drive.ask(c, Operation::Kill(reference(&name)))?;
        wait_until_over(drive, c, &name, 60)?;
    }
    let wait = |drive: &mut Drive, windows: usize| -> Result<usize> {
        let until = last_window(drive) + windows;
        drive.expect(&format!("window {until} "), 300)?;
        Ok(until)
    };
    // While it is measured nobody asks: answers take time, too. And what was said of
    // those guests is on the screen by then: until it is, the operator draws.
    let first = wait(drive, 6 * QUIET)?;
    let mut phases = vec![("before", first, wait(drive, QUIET)?)];
    for word in CRASHES {
        let name = crash_name(word);
        let begin = last_window(drive) + 1;
        drive.ask(c, Operation::Start(reference(&name)))?;
        if LIVES_ON.contains(&word) {
            drive.expect(&format!("guest: \"{name}\" starts"), 300)?;
            wait(drive, 2 * QUIET)?;
            drive.ask(c, Operation::Kill(reference(&name)))?;
        }
        // The line about its end.
        drive.expect(&format!("guest \"{name}\""), 300)?;
        phases.push((word, begin, wait(drive, QUIET)?));
    }
    let last = wait(drive, QUIET)?;
    let from = to_console(drive, 2)?;
    drive.expect(&format!("window {last} "), 300)?;
    let all = numbered(drive.text().get(..from).unwrap_or_default());
    let sleeper = numbered(drive.text().get(from..).unwrap_or_default());
    let within = |all: &[(usize, (u64, u64, String))], first: usize, last: usize| -> Windows {
        let chosen = all.iter().filter(|(number, _)| (first..last).contains(number));
        chosen.map(|(_, window)| window.clone()).collect()
    };
    let alone = mean(&within(&all, first, first + QUIET));
    let mut late = 0;
    for (what, first, last) in phases {
        let (mine, its) = (within(&all, first, last), within(&sleeper, first, last));
        // The operator's lines may stand in the middle of one.
        ensure!(mine.len() * 2 > QUIET && its.len() * 2 > QUIET, "{what}: hardly a window");
        let hashes: std::collections::BTreeSet<_> =
            mine.iter().chain(&its).map(|(.., hash)| hash).collect();
        ensure!(hashes.len() == 1, "{what}: memory has changed: {hashes:?}");
        let share = mean(&mine);
        let worst = its.iter().map(|(_, late, _)| *late).max().unwrap_or(u64::MAX);
        println!("       {what}: share {share:.0} per mille, worst wake-up {worst} ns");
        ensure!((share - alone).abs() <= 20.0, "{what}: a share of {share:.0}, alone {alone:.0}");
        late = late.max(worst);
    }
    ensure!(late <= WAKES_WITHIN, "a wake-up came {late} ns late");
    power_off(drive)
}
