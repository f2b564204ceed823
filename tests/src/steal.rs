//! How Linux saw the time of its CPUs go by, and whether that is true.

use anyhow::{Context, Result, bail, ensure};

use crate::drive::Drive;

/// How a guest's CPUs spent their time, in hundredths of a second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct CpuTimes {
    /// Since the boot, for one CPU.
    uptime: u64,
    /// All CPUs' together: idle, stolen, and everything else.
    idle: u64,
    stolen: u64,
    busy: u64,
}

impl CpuTimes {
    /// The command that [`CpuTimes::parse`] reads the answer of.
    const COMMAND: &str = "cat /proc/uptime /proc/stat | head -n 2";

    fn parse(text: &str) -> Result<Self> {
        let numbers = |line: &str| -> Vec<u64> {
            line.split_whitespace()
                .map(|word| word.replace('.', ""))
                .flat_map(|n| n.parse())
                .collect()
        };
        let lines: Vec<&str> = text.lines().map(str::trim).collect();
        let at = lines.iter().position(|line| line.starts_with("cpu "));
        let at = at.filter(|at| *at > 0).with_context(|| format!("no times in {text:?}"))?;
        let [uptime, _] = numbers(lines[at - 1])[..] else { bail!("no uptime in {text:?}") };
        // Time that a guest of the guest used is in the user's time already.
        let [user, nice, system, idle, iowait, irq, softirq, stolen, ..] = numbers(lines[at])[..]
        else {
            bail!("not the times of a CPU: {:?}", lines[at]);
        };
        let busy = user + nice + system + irq + softirq;
        Ok(Self { uptime, idle: idle + iowait, stolen, busy })
    }

    /// From `before` to now, in percent of the time that `cpus` CPUs have: idle,
    /// stolen, busy.
    fn percent_since(self, before: Self, cpus: u64) -> [u64; 3] {
        let all = (self.uptime.saturating_sub(before.uptime) * cpus).max(1);
        [(self.idle, before.idle), (self.stolen, before.stolen), (self.busy, before.busy)]
            .map(|(now, before)| now.saturating_sub(before) * 100 / all)
    }
}

/// A loop on each of `vcpus` vCPUs, of which half can run: half of the time is
/// stolen. Nobody tells the guest for how long the emulator itself waits for its CPU:
/// the guest misses ticks of its own, and counts less time than it had.
pub(crate) fn check_steal(drive: &mut Drive, vcpus: usize) -> Result<()> {
    let loops = format!("for i in $(seq {vcpus}); do while :; do :; done & done; sleep 2");
    drive.shell(&loops, 120)?;
    let before = CpuTimes::parse(&drive.shell(CpuTimes::COMMAND, 120)?)?;
    drive.shell("sleep 10", 300)?;
    let after = CpuTimes::parse(&drive.shell(CpuTimes::COMMAND, 120)?)?;
    drive.shell("kill $(jobs -p); sleep 1", 120)?;
    ensure!(after.uptime >= before.uptime + 1000, "10 s took from {before:?} to {after:?}");
    let [idle, stolen, busy] = after.percent_since(before, u64::try_from(vcpus)?);
    ensure!(
        (40..=60).contains(&stolen) && busy > 0 && busy <= 60 && idle <= 5,
        "{stolen} % stolen, {busy} % busy, {idle} % idle with loops on twice as many vCPUs as \
         CPUs, from {before:?} to {after:?}"
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_of_cpus() {
        let text = |up, user, idle, steal| {
            format!("echo\r\n{up} 12.00\r\ncpu  {user} 1 2 {idle} 3 4 5 {steal} 9 9\r\n")
        };
        let before = CpuTimes::parse(&text("10.50", 100, 200, 50)).unwrap();
        assert_eq!(before, CpuTimes { uptime: 1050, idle: 203, stolen: 50, busy: 112 });
        let after = CpuTimes::parse(&text("20.50", 2020, 280, 2030)).unwrap();
        assert_eq!(after.percent_since(before, 4), [2, 49, 48]);
        assert!(CpuTimes::parse("cpu  1 2 3 4 5 6 7 8").is_err());
        assert!(CpuTimes::parse("1.00 2.00\ncpu  1 2 3").is_err());
    }
}
