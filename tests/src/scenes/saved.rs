//! A guest that is saved and restored as a fresh one when it goes on after a pause.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::{contains, shell, to_monitor};
use crate::cases::check_dmesg_but;
use crate::drive::Drive;

/// The guest stands for so long, in seconds: its time must not notice.
const PAUSE: u64 = 20;

/// A Debian guest with two vCPUs, which asks for it on its command line.
pub(super) fn saved_scene() -> String {
    format!(
        "[host]\ncpus = 1\n\n[[guest]]\nname = \"alpha\"\nkernel = \"debian\"\nmemory = \"128M\"\n\
         vcpus = 2\ncmdline = \"{} steward.restore\"\n",
        xtask::guest::CMDLINE
    )
}

/// Seconds since the guest's start, as it counts them.
fn uptime(drive: &mut Drive) -> Result<f64> {
    let text = drive.shell("cat /proc/uptime", 120)?;
    let first = text.split_whitespace().next().context("no uptime")?;
    Ok(first.parse()?)
}

/// The shell that was there before goes on, and what it had begun; clock, console and timers are
/// right, on both vCPUs.
pub(super) fn saved(drive: &mut Drive) -> Result<()> {
    shell(drive)?;
    drive.shell("X=before; (sleep 3; >/tmp/slept) & true", 120)?;
    let before = uptime(drive)?;
    shell(drive)?;
    to_monitor(drive)?;
    contains(&drive.monitor("pause alpha")?, "paused")?;
    std::thread::sleep(Duration::from_secs(PAUSE));
    let went = Instant::now();
    contains(&drive.monitor("resume alpha")?, "running")?;
    // Characters that are typed while it is made anew are lost.
    let end = Instant::now() + Duration::from_secs(60);
    while drive.text().matches("\"alpha\" starts").count() < 2 {
        ensure!(Instant::now() < end, "no other guest starts in its place");
        drive.monitor("list")?;
        std::thread::sleep(Duration::from_millis(300));
    }
    drive.send("\x1d1");
    drive.expect("console of \"alpha\"", 30)?;
    drive.send("\n");
    shell(drive)?;
    let after = uptime(drive)?;
    let most = went.elapsed().as_secs_f64() + 5.0;
    ensure!(
        (before..before + most).contains(&after),
        "uptime was {before} and is {after}, and the guest ran for {most} s at the most"
    );
    contains(drive.text(), "\"alpha\": saved in ")?;
    let answer = drive.shell("echo $X; sleep 3; ls /tmp", 120)?;
    for word in ["before", "slept"] {
        contains(&answer, word)?;
    }
    contains(&drive.shell("grep -c ^processor /proc/cpuinfo", 120)?, "2")?;
    // Both vCPUs take interrupts and timers.
    for cpu in 0..2 {
        let slept = drive.shell(&format!("taskset -c {cpu} sleep 1 && echo up"), 120)?;
        contains(&slept, "up")?;
    }
    // Linux says so of a vCPU that had to wait in its timer's interrupt: two share a CPU.
    check_dmesg_but(drive, &["hrtimer: interrupt took"])?;
    drive.send("poweroff\n");
    drive.ends(0).map(|_| ())
}
