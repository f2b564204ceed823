//! `run --exec`: one command in the default guest.
//!
//! The command travels in a second archive of the initial ramdisk. The guest's
//! `steward-exec` prints a mark, runs the command, prints a second mark with the
//! status, and powers off. What stands between the marks is the command's output,
//! byte for byte; the marks carry a number that no command can know beforehand.

use std::fs;
use std::io::{ErrorKind, IsTerminal, Read, Write};
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use vmm::operator::Screen;

use crate::bundle::Guest;
use crate::guest::{self, Archive};
use crate::session::{Ending, Event, Session};
use crate::{cmd, console, ui};

/// The exit status where the command did not end.
const UNDONE: u8 = 125;

/// A command to run in the guest.
pub struct Command {
    text: String,
    mark: String,
}

impl Command {
    /// The command `text`; `-` reads it from standard input.
    pub fn new(text: &str) -> Result<Command> {
        let text = if text == "-" {
            let mut text = String::new();
            std::io::stdin()
                .read_to_string(&mut text)
                .context("cannot read the command from standard input")?;
            text
        } else {
            text.to_owned()
        };
        if text.trim().is_empty() {
            bail!("there is no command to run");
        }
        let nanoseconds =
            SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_nanos());
        Ok(Command { text, mark: format!("{nanoseconds:x}-{:x}", std::process::id()) })
    }

    /// Puts the command into the guest.
    pub fn prepare(&self, guest: &mut Guest, dir: &Path) -> Result<()> {
        let Some(initrd) = &guest.initrd else {
            bail!("--exec needs the Debian guest, which cannot be had here");
        };
        let mut archive = Archive::new();
        archive.dir("steward")?;
        archive.file("steward/mark", self.mark.as_bytes())?;
        archive.file("steward/command", self.text.as_bytes())?;
        let first =
            fs::read(initrd).with_context(|| format!("cannot read {}", initrd.display()))?;
        let path = dir.join("exec-initrd");
        fs::write(&path, guest::append(&first, &archive.finish()?))?;
        guest.initrd = Some(path);
        guest.settings.cmdline.push_str(" quiet loglevel=0");
        Ok(())
    }

    /// What the command printed and its status, from all that the guest printed;
    /// nothing if it did not end.
    pub fn outcome(&self, text: &[u8]) -> Option<(Vec<u8>, u8)> {
        let mut filter = Filter::new(&self.mark);
        let output = filter.feed(text);
        filter.status.map(|status| (output, status))
    }

    /// Prints what the command prints until the run ends; returns its status.
    pub fn attend(&self, session: &mut Session, log: &Path) -> Result<u8> {
        let signals = console::signals()?;
        let mut filter = Filter::new(&self.mark);
        let mut stdout = std::io::stdout();
        // A program gets every byte, a terminal what it only shows.
        let mut screen = stdout.is_terminal().then(Screen::new);
        let ending = loop {
            match session.next(Duration::from_millis(50))? {
                Event::Output(bytes) => {
                    let text = filter.feed(&bytes);
                    let text = match &mut screen {
                        Some(screen) => screen.filter(&text),
                        None => text,
                    };
                    if let Err(error) = stdout.write_all(&text).and_then(|()| stdout.flush()) {
                        session.stop(Ending::Closed)?;
                        if error.kind() != ErrorKind::BrokenPipe {
                            return Err(error).context("cannot write what the command prints");
                        }
                        return Ok(Ending::Closed.status());
                    }
                }
                Event::Quiet => {}
                Event::Ended(ending) => break ending,
            }
            if let Ok(signal) = signals.try_recv() {
                session.stop(Ending::Signal(signal))?;
                break Ending::Signal(signal);
            }
        };
        if let Some(screen) = &mut screen {
            // Where it fails, the terminal is gone.
            let _ = stdout.write_all(&screen.reset()).and_then(|()| stdout.flush());
        }
        if let Some(status) = filter.status {
            return Ok(status);
        }
        let text = fs::read(log).unwrap_or_default();
        ui::say(format!("the serial log {} ends with:", log.display()));
        // An error means that nobody reads it: there is nobody to tell.
        let _ = writeln!(std::io::stderr(), "{}", cmd::tail(&ui::printable(&text), 25));
        ui::say(undone(&ending));
        Ok(undone_status(&ending))
    }
}

/// The status of a command that did not end: one, whatever the run's; but who ends the run
/// himself gets what he is used to.
fn undone_status(ending: &Ending) -> u8 {
    match ending {
        Ending::Steward { .. } | Ending::Died { .. } => UNDONE,
        Ending::Timeout(_) | Ending::Key | Ending::Signal(_) | Ending::Closed => ending.status(),
    }
}

/// The sentence that goes with it. It names one status, the one that xtask ends with.
fn undone(ending: &Ending) -> String {
    let status = undone_status(ending);
    match ending {
        Ending::Steward { reason, .. } => {
            format!("the command did not end: {reason}; status {status}")
        }
        Ending::Died { how, said } => {
            let said = if said.is_empty() { String::new() } else { format!("; it said:\n{said}") };
            let brief = Ending::Died { how: how.clone(), said: String::new() };
            format!("the command did not end: {}; status {status}{said}", brief.describe())
        }
        other => format!("the command did not end: {}; status {status}", other.describe()),
    }
}

/// Cuts the command's output out of the serial stream.
struct Filter {
    begin: Vec<u8>,
    end: Vec<u8>,
    held: Vec<u8>,
    begun: bool,
    status: Option<u8>,
}

impl Filter {
    fn new(mark: &str) -> Filter {
        Filter {
            begin: format!("STEWARD-BEGIN-{mark}\n").into_bytes(),
            end: format!("STEWARD-END-{mark}-").into_bytes(),
            held: Vec::new(),
            begun: false,
            status: None,
        }
    }

    fn feed(&mut self, bytes: &[u8]) -> Vec<u8> {
        self.held.extend_from_slice(bytes);
        if !self.begun {
            let Some(at) = find(&self.held, &self.begin) else {
                let keep = self.held.len().min(self.begin.len());
                self.held.drain(..self.held.len() - keep);
                return Vec::new();
            };
            self.held.drain(..at + self.begin.len());
            self.begun = true;
        }
        if self.status.is_some() {
            return Vec::new();
        }
        match find(&self.held, &self.end) {
            Some(at) => {
                let rest = self.held.get(at + self.end.len()..).unwrap_or_default();
                // The status is complete with the line's end.
                let Some(length) = rest.iter().position(|byte| *byte == b'\n') else {
                    return self.held.drain(..at).collect();
                };
                let digits =
                    String::from_utf8_lossy(rest.get(..length).unwrap_or_default()).into_owned();
                self.status = Some(digits.trim().parse().unwrap_or(UNDONE));
                self.held.drain(..at).collect()
            }
            None => {
                // The held bytes may be the beginning of the mark.
                let keep = (0..=self.held.len().min(self.end.len()))
                    .rev()
                    .find(|count| {
                        self.end.starts_with(
                            self.held.get(self.held.len() - count..).unwrap_or_default(),
                        )
                    })
                    .unwrap_or(0);
                let out = self.held.len() - keep;
                self.held.drain(..out).collect()
            }
        }
    }
}

fn find(bytes: &[u8], what: &[u8]) -> Option<usize> {
    bytes.windows(what.len()).position(|window| window == what)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(pieces: &[&[u8]]) -> (Vec<u8>, Option<u8>) {
        let mut filter = Filter::new("m");
        let mut out = Vec::new();
        for piece in pieces {
            out.extend(filter.feed(piece));
        }
        (out, filter.status)
    }

    #[test]
    fn output_is_exact_however_the_stream_is_cut() {
        let stream = b"boot\r\n\nSTEWARD-BEGIN-m\na\r\n\x00STEWARD-ENDb\nSTEWARD-END-m-7\nafter\n";
        let expected = (b"a\r\n\x00STEWARD-ENDb\n".to_vec(), Some(7));
        assert_eq!(run(&[stream]), expected);
        for at in 0..stream.len() {
            assert_eq!(run(&[&stream[..at], &stream[at..]]), expected, "cut at {at}");
        }
        let bytes: Vec<&[u8]> = stream.chunks(1).collect();
        assert_eq!(run(&bytes), expected);
    }

    #[test]
    fn output_without_a_last_line_feed_stays_without() {
        assert_eq!(run(&[b"STEWARD-BEGIN-m\nabcSTEWARD-END-m-0\n"]), (b"abc".to_vec(), Some(0)));
    }

    #[test]
    fn output_comes_before_the_end() {
        let mut filter = Filter::new("m");
        assert_eq!(filter.feed(b"STEWARD-BEGIN-m\nfirst\n"), b"first\n");
        assert_eq!(filter.status, None);
    }

    #[test]
    fn an_outcome_is_there_when_the_command_has_ended() {
        let command = Command { text: String::new(), mark: "m".to_owned() };
        let text = b"boot\nSTEWARD-BEGIN-m\nabc\nSTEWARD-END-m-7\nafter\n";
        assert_eq!(command.outcome(text), Some((b"abc\n".to_vec(), 7)));
        assert_eq!(command.outcome(b"STEWARD-BEGIN-m\nabc\nSTEWARD-END-m-7"), None);
    }

    #[test]
    fn no_mark_no_output() {
        assert_eq!(run(&[b"Kernel panic\n"]), (Vec::new(), None));
    }

    #[test]
    fn a_command_that_did_not_end_has_one_status_and_says_why() {
        let run = |status, reason: &str| Ending::Steward {
            status,
            reason: reason.to_owned(),
            left: true,
        };
        for (status, reason) in [(0, "guest debian reset"), (3, "guest debian reported a panic")] {
            let ending = run(status, reason);
            assert_eq!(undone_status(&ending), UNDONE);
            assert_eq!(
                undone(&ending),
                format!("the command did not end: {reason}; status 125"),
                "the sentence names the status that xtask ends with"
            );
        }
        let died = Ending::Died { how: "x".to_owned(), said: String::new() };
        assert_eq!(undone_status(&died), UNDONE);
        assert!(undone(&died).contains("; status 125"));
        let said = Ending::Died { how: "x".to_owned(), said: "y".to_owned() };
        assert!(undone(&said).ends_with("; status 125; it said:\ny"), "{}", undone(&said));
        let late = Ending::Timeout(Duration::from_secs(3));
        assert_eq!(undone_status(&late), 124);
        assert!(undone(&late).ends_with("; status 124"), "{}", undone(&late));
        assert_eq!(undone_status(&Ending::Signal(15)), 143);
    }
}
