//! Many starts of one machine, several at a time: what their first guests are told of the
//! TSC's rate must be the same.

use std::fmt::Write as _;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use anyhow::{Context, Result, bail, ensure};
use xtask::session::Session;

use crate::drive::Drive;

/// A rate within this many parts per million of the median is right.
const RIGHT_PPM: u64 = 100;
/// A rate that is further off than this, in parts per million, is wrong.
const WRONG_PPM: u64 = 500;
/// One start in so many may be told something between.
const SELDOM: usize = 100;
/// Text that a guest prints before and behind its rate, at the beginning of a line.
const RATE: [&str; 2] = ["\nrate: ", " kHz"];
/// How long a start may take, in seconds.
const SECONDS: u64 = 300;

/// The starts of a case.
#[derive(Debug, Clone)]
pub struct Starts {
    /// One start each: more for the emulator's command line.
    pub each: Vec<&'static [&'static str]>,
    /// How many run at a time.
    pub at_once: usize,
    /// Threads that do nothing but keep this computer busy meanwhile.
    pub busy: usize,
}

/// The rate in kHz that a guest printed.
pub(crate) fn rate_of(text: &str) -> Result<u64> {
    let [before, behind] = RATE;
    let rest = text.split_once(before).context("no rate was printed")?.1;
    let number = rest.split_once(behind).context("no rate was printed")?.0;
    number.parse().with_context(|| format!("{number:?} is no rate"))
}

/// Starts a machine with more on the emulator's command line, a log and a folder.
pub(crate) type Start<'a> =
    dyn Fn(&'static [&'static str], &Path, &Path) -> Result<Session> + Sync + 'a;

/// Runs them all, and compares.
///
/// # Errors
/// A start that came to another end, and rates that differ.
pub(crate) fn run(starts: &Starts, log: &Path, dir: &Path, start: &Start<'_>) -> Result<String> {
    let next = AtomicUsize::new(0);
    let over = AtomicBool::new(false);
    let rates = Mutex::new(Vec::new());
    let one = |at: usize, words: &'static [&'static str]| -> Result<()> {
        let dir = dir.join(at.to_string());
        std::fs::create_dir_all(&dir)?;
        let mut drive = Drive::new(start(words, &log.with_extension(format!("{at}.log")), &dir)?);
        drive.expect(RATE[0], SECONDS)?;
        drive.ends(0)?;
        let rate = rate_of(drive.text())?;
        rates.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push((rate, at));
        // Only space.
        let _ = std::fs::remove_dir_all(&dir);
        Ok(())
    };
    let result = std::thread::scope(|scope| {
        for _ in 0..starts.busy {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            });
        }
        let work = || -> Result<()> {
            loop {
                let at = next.fetch_add(1, Ordering::Relaxed);
                let Some(words) = starts.each.get(at) else { return Ok(()) };
                one(at, words).with_context(|| format!("start {at}, {words:?}"))?;
            }
        };
        let workers: Vec<_> = (0..starts.at_once).map(|_| scope.spawn(work)).collect();
        let results =
            workers.into_iter().map(|w| w.join().unwrap_or_else(|_| bail!("it panicked")));
        let result = results.collect::<Vec<_>>().into_iter().collect::<Result<Vec<()>>>();
        over.store(true, Ordering::Relaxed);
        result
    });
    result?;
    judge(rates.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner))
}

/// Whether the rates are the same, and what is to be said of them.
fn judge(mut rates: Vec<(u64, usize)>) -> Result<String> {
    rates.sort_unstable();
    let Some((median, _)) = rates.get(rates.len() / 2).copied() else { return Ok(String::new()) };
    let ppm = |khz: u64| khz.abs_diff(median) * 1_000_000 / median.max(1);
    let beyond = |limit: u64| rates.iter().filter(move |(khz, _)| ppm(*khz) > limit);
    let worst = rates.iter().map(|(khz, _)| ppm(*khz)).max().unwrap_or(0);
    let mut said = format!("{} rates, median {median} kHz, worst {worst} ppm", rates.len());
    for (khz, at) in beyond(RIGHT_PPM) {
        // Writing to a string does not fail.
        let _ = write!(said, "; start {at}: {khz} kHz");
    }
    let seldom = beyond(RIGHT_PPM).count() <= rates.len() / SELDOM;
    ensure!(seldom && beyond(WRONG_PPM).next().is_none(), "{said}");
    Ok(said)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_that_a_guest_printed() {
        assert_eq!(rate_of("xx\r\nrate: 2596000 kHz, invariant 1\r\n").unwrap(), 2_596_000);
        assert!(rate_of("\nrate: much kHz").is_err());
        assert!(rate_of("the TSC's rate: 1 kHz").is_err());
        assert!(rate_of("").is_err());
    }

    #[test]
    fn rates_that_differ_are_told() {
        let with = |others: &[u64]| {
            let usual = std::iter::repeat_n(1_000_000, 200 - others.len());
            judge(usual.chain(others.iter().copied()).zip(0..).collect())
        };
        assert!(with(&[]).is_ok());
        assert!(with(&[1_000_100, 999_900, 1_000_100, 1_000_099]).is_ok());
        // Two may be a little off, three may not; none may be far off.
        assert!(with(&[1_000_101, 1_000_499]).is_ok());
        assert!(with(&[1_000_101, 1_000_200, 999_800]).is_err());
        let error = with(&[1_000_501]).unwrap_err().to_string();
        assert!(error.contains("worst 501 ppm") && error.contains("start 199: 1000501 kHz"));
        // Of ten starts, none may be off.
        let ten = (0..10).map(|at| (if at == 3 { 1_000_150 } else { 1_000_000 }, at)).collect();
        assert!(judge(ten).is_err());
    }
}
