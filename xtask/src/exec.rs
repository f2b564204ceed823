//! `run --exec`: one command in the default guest.
//!
//! The command travels in a second archive of the initial ramdisk. The guest's
//! `steward-exec` prints a mark, runs the command, prints a second mark with the
//! status, and powers off. The text between the marks is the command's output,
//! byte for byte; the marks carry a number that no command can know beforehand.

use std::fs;
use std::io::{ErrorKind, IsTerminal, Read, Stdout, Write};
use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use control::Screen;

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

    /// The command's output and its status, from all that the guest printed;
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
        let mut doubt = Doubt::default();
        let mut stdout = std::io::stdout();
        // A program gets every byte, a terminal what it only shows.
        let mut screen = stdout.is_terminal().then(Screen::new);
        let ending = loop {
            let mut text = match session.next(Duration::from_millis(50))? {
                // The monitor's answer at the end of the time is for the log alone.
                Event::Output(_) if session.is_asked() => Vec::new(),
                Event::Output(bytes) => doubt.feed(&filter.feed(&bytes), Instant::now()),
                Event::Quiet => doubt.relent(Instant::now()),
                Event::Ended(ending) => break ending,
            };
            if filter.status.is_some() {
                text.append(&mut doubt.all());
            }
            if !print(&mut stdout, &mut screen, &text)? {
                session.stop(Ending::Closed)?;
                return Ok(Ending::Closed.status());
            }
            if let Ok(signal) = signals.try_recv() {
                session.stop(Ending::Signal(signal))?;
                break Ending::Signal(signal);
            }
        };
        if filter.status.is_none() {
            let mut rest = doubt.feed(&filter.rest(), Instant::now());
            rest.append(&mut doubt.rest());
            // Nobody is left to be told that nobody reads it.
            let _ = print(&mut stdout, &mut screen, &rest);
        }
        if let Some(screen) = &mut screen {
            // A failure means that the terminal is gone.
            let _ = stdout.write_all(&screen.reset()).and_then(|()| stdout.flush());
        }
        if let Some(status) = filter.status {
            return Ok(status);
        }
        let text = fs::read(log).unwrap_or_default();
        ui::say(format!("the serial log {} ends with:", log.display()));
        // An error means that nobody reads it: there is nobody to tell.
        let _ = writeln!(std::io::stderr(), "{}", self.excerpt(&text));
        ui::say(undone(&ending));
        Ok(undone_status(&ending))
    }

    /// The end of the serial log `text`, as it is told of a command that did not end: without
    /// what moves a cursor, and without our own mark.
    fn excerpt(&self, text: &[u8]) -> String {
        let text = ui::plain(text);
        let lines: Vec<&str> = text.lines().filter(|line| !line.contains(&self.mark)).collect();
        cmd::tail(&lines.join("\n"), 25)
    }
}

/// Prints `text`; `false` if nobody reads it any more.
fn print(stdout: &mut Stdout, screen: &mut Option<Screen>, text: &[u8]) -> Result<bool> {
    let shown = screen.as_mut().map(|screen| screen.filter(text));
    let text = shown.as_deref().unwrap_or(text);
    match stdout.write_all(text).and_then(|()| stdout.flush()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(error).context("cannot write what the command prints"),
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

    /// Bytes held at the end of the run that are the command's, if it did not end: they were no
    /// beginning of the mark.
    fn rest(&mut self) -> Vec<u8> {
        let held = std::mem::take(&mut self.held);
        if self.begun && !held.starts_with(&self.end) { held } else { Vec::new() }
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

/// Output from the first line on that may be the hypervisor's, or the kernel's last words.
///
/// They come over the same line as what the command prints, and nothing in the bytes proves
/// whose they are: a command may print the log of another run. So nothing is cut out; it is
/// only kept back until it is known whether the command ends. If it does, all of it is the
/// command's output, as it always was. If the run ends without, none of it is.
#[derive(Debug, Default)]
struct Doubt {
    held: Vec<u8>,
    /// When the line came that began it.
    since: Option<Instant>,
}

/// How long output is kept back: the hypervisor's dump of a guest and its last line take less.
const PATIENCE: Duration = Duration::from_secs(20);
/// How much of it: a dump of 64 vCPUs has less.
const MOST_HELD: usize = 1 << 20;

impl Doubt {
    /// Takes output; gives back what is the command's beyond doubt, or was kept for too long.
    fn feed(&mut self, bytes: &[u8], now: Instant) -> Vec<u8> {
        self.held.extend_from_slice(bytes);
        if self.since.is_none() {
            let (at, is_whole) = sign(&self.held);
            self.since = is_whole.then_some(now);
            return self.held.drain(..at).collect();
        }
        if self.is_over(now) { self.all() } else { Vec::new() }
    }

    /// Nothing has come for a while: gives back the beginning of a line that was not finished,
    /// and what was kept for too long.
    fn relent(&mut self, now: Instant) -> Vec<u8> {
        if self.since.is_none() || self.is_over(now) { self.all() } else { Vec::new() }
    }

    fn is_over(&self, now: Instant) -> bool {
        self.held.len() > MOST_HELD
            || self.since.is_some_and(|since| now.duration_since(since) > PATIENCE)
    }

    /// Everything that is held.
    fn all(&mut self) -> Vec<u8> {
        self.since = None;
        std::mem::take(&mut self.held)
    }

    /// Bytes that are held and are the command's, if it did not end.
    fn rest(&mut self) -> Vec<u8> {
        if self.since.is_none() { self.all() } else { Vec::new() }
    }
}

/// How lines of the hypervisor begin; one may stand behind a guest's unfinished line.
const STEWARD: &[u8] = b"steward: ";
/// How lines begin that Linux prints, whatever its log level, when it comes to its end.
const LAST_WORDS: [&[u8]; 4] = [b"Kernel panic - not syncing", b"reboot: ", b"sysrq: ", b"BUG: "];

/// Beginning of the first line of the hypervisor or of Linux's end, and whether it is there to
/// be recognised: where not, it is the place of what may become one with more bytes.
fn sign(bytes: &[u8]) -> (usize, bool) {
    for (at, byte) in bytes.iter().enumerate() {
        let here = bytes.get(at..).unwrap_or_default();
        let found = match byte {
            b's' => begins(here, STEWARD),
            b'[' => last_words(here),
            _ => Some(false),
        };
        if found != Some(false) {
            return (at, found.is_some());
        }
    }
    (bytes.len(), false)
}

/// Whether `bytes` begin with `what`; `None` if more of them may.
fn begins(bytes: &[u8], what: &[u8]) -> Option<bool> {
    if bytes.len() < what.len() && what.starts_with(bytes) {
        return None;
    }
    Some(bytes.starts_with(what))
}

/// Whether `bytes` begin as a line of Linux's end does: `[   12.345678] reboot: `; `None` if
/// more of them may.
fn last_words(bytes: &[u8]) -> Option<bool> {
    // Seconds have five places or more, microseconds six.
    let time = bytes.iter().skip(1).take_while(|byte| matches!(byte, b' ' | b'.' | b'0'..=b'9'));
    let length = 1 + time.count();
    if length > 24 {
        return Some(false);
    }
    match begins(bytes.get(length..).unwrap_or_default(), b"] ")? {
        false => Some(false),
        true => {
            let text = bytes.get(length + 2..).unwrap_or_default();
            let found = LAST_WORDS.map(|words| begins(text, words));
            if found.contains(&Some(true)) {
                Some(true)
            } else if found.contains(&None) {
                None
            } else {
                Some(false)
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

    /// Standard output for a command's output `pieces`, by whether it ends.
    fn shown(pieces: &[&[u8]], ends: bool) -> String {
        let now = Instant::now();
        let mut doubt = Doubt::default();
        let mut out = Vec::new();
        for piece in pieces {
            out.extend(doubt.feed(piece, now));
        }
        out.extend(if ends { doubt.all() } else { doubt.rest() });
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn the_hypervisors_lines_are_no_output_of_a_command_that_did_not_end() {
        for last in [
            "steward: ERROR: guest \"debian\" reported a panic\nvCPU 0: RIP 0\n",
            "[    3.141592] Kernel panic - not syncing: sysrq triggered crash\r\n",
            "[12345678.000001] reboot: System halted\r\nsteward: end: status=0 reason=x\n",
        ] {
            let whole = format!("a [1] steward\nb{last}");
            let bytes = whole.as_bytes();
            for at in 0..bytes.len() {
                let pieces = [&bytes[..at], &bytes[at..]];
                assert_eq!(shown(&pieces, false), "a [1] steward\nb", "{whole} cut at {at}");
                assert_eq!(shown(&pieces, true), whole, "all of it, of one that ended");
            }
        }
        // Text that only begins like such a line is the command's.
        for text in ["a steward:", "[    1.", "[    1.0] reboot", "[ 0.1] usb 1-1: new", "[[["] {
            assert_eq!(shown(&[text.as_bytes()], false), text);
        }
    }

    #[test]
    fn doubtful_output_is_not_kept_for_ever() {
        let start = Instant::now();
        let mut doubt = Doubt::default();
        assert_eq!(doubt.feed(b"a\nsteward: x\nb\n", start), b"a\n");
        assert_eq!(doubt.relent(start + PATIENCE), b"");
        assert_eq!(doubt.relent(start + PATIENCE * 2), b"steward: x\nb\n");
        assert_eq!(doubt.feed(b"c\n", start + PATIENCE * 2), b"c\n");
        // A prompt is shown though a line may go on behind it.
        assert_eq!(doubt.feed(b"name: [", start), b"name: ");
        assert_eq!(doubt.relent(start), b"[");
        doubt.feed(b"steward: ", start);
        assert!(doubt.feed(&vec![0; MOST_HELD], start).len() > MOST_HELD);
    }

    #[test]
    fn output_that_looked_like_the_mark_is_output() {
        let mut filter = Filter::new("m");
        assert_eq!(filter.feed(b"STEWARD-BEGIN-m\nYES"), b"YE");
        assert_eq!(filter.rest(), b"S");
        let mut filter = Filter::new("m");
        assert_eq!(filter.feed(b"STEWARD-BEGIN-m\naSTEWARD-END-m-"), b"a");
        assert_eq!(filter.rest(), b"");
    }

    #[test]
    fn the_excerpt_has_neither_mark_nor_escape_sequences() {
        let command = Command { text: String::new(), mark: "m-1".to_owned() };
        let log = b"STEWARD-BEGIN-m-1\na\r\n\rsteward> \x1b[Kwhy debian\r\n";
        assert_eq!(command.excerpt(log), "a\nsteward> why debian");
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
