//! Output for the person at the terminal besides the guest's: everything goes to
//! standard error, so that standard output is the guest's console alone, or what a
//! command was asked for ([`Out`]).

use std::io::{self, IsTerminal, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// Prints one line.
pub fn say(text: impl AsRef<str>) {
    // An error means that nobody reads it: there is nobody to tell.
    let _ = writeln!(io::stderr(), "xtask: {}", text.as_ref());
}

/// The exit status of a program whose reader has gone away, as a shell shows it:
/// 128 and SIGPIPE's number.
pub const READER_GONE: u8 = 141;

/// Nobody reads standard output any more.
static GONE: AtomicBool = AtomicBool::new(false);

/// Standard output. If its reader has closed the pipe (`| head`), that is an error like
/// any other, and [`reader_is_gone`] says so from then on: it is no failure to be told.
#[derive(Debug, Default)]
pub struct Out;

impl Out {
    fn note<T>(result: io::Result<T>) -> io::Result<T> {
        result.inspect_err(|error| {
            if error.kind() == io::ErrorKind::BrokenPipe {
                GONE.store(true, Ordering::Relaxed);
            }
        })
    }
}

impl Write for Out {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Self::note(io::stdout().write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        Self::note(io::stdout().flush())
    }
}

/// Whether the reader of standard output has gone away.
pub fn reader_is_gone() -> bool {
    GONE.load(Ordering::Relaxed)
}

/// Output of a machine as text: without escape sequences and other control characters.
pub fn plain(bytes: &[u8]) -> String {
    let text = Escapes::default().strip(bytes);
    let keeps = |c: &char| !c.is_control() || matches!(c, '\n' | '\t');
    String::from_utf8_lossy(&text).chars().filter(keeps).collect()
}

/// Strips a stream of all escape sequences (ECMA-48: "Control functions").
#[derive(Debug, Default)]
pub(crate) struct Escapes {
    place: Place,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Place {
    #[default]
    Text,
    /// Behind ESC, and perhaps intermediate bytes.
    Escape,
    /// Behind CSI.
    Control,
    /// In a string for the terminal.
    String,
}

impl Escapes {
    /// Text of the next bytes.
    pub(crate) fn strip(&mut self, bytes: &[u8]) -> Vec<u8> {
        const ESC: u8 = 0x1b;
        let mut out = Vec::with_capacity(bytes.len());
        for &byte in bytes {
            self.place = match (self.place, byte) {
                (_, ESC) => Place::Escape,
                (Place::Escape, b'[') => Place::Control,
                (Place::Escape, b']' | b'P' | b'X' | b'^' | b'_') => Place::String,
                (Place::Escape, b' '..=b'/') => Place::Escape,
                (Place::Control, b' '..=b'?') => Place::Control,
                // Strings end with BEL; one that nobody ends ends with its line.
                (Place::String, 0x07 | b'\n') => Place::Text,
                (Place::String, _) => Place::String,
                (Place::Escape | Place::Control, _) => Place::Text,
                (Place::Text, _) => {
                    out.push(byte);
                    Place::Text
                }
            };
        }
        out
    }
}

/// One slow step. On a terminal a spinner with the time it has taken; otherwise
/// a line when it starts and one when it ends.
pub struct Step {
    name: String,
    start: Instant,
    bar: Option<ProgressBar>,
}

impl Step {
    /// Starts a step called `name`.
    pub fn new(name: impl Into<String>) -> Step {
        let name = name.into();
        let bar = if std::io::stderr().is_terminal() {
            let bar = ProgressBar::new_spinner();
            if let Ok(style) =
                ProgressStyle::with_template("{spinner} {prefix} [{elapsed}] {wide_msg}")
            {
                bar.set_style(style);
            }
            bar.set_prefix(name.clone());
            bar.enable_steady_tick(Duration::from_millis(120));
            Some(bar)
        } else {
            say(format!("{name} ..."));
            None
        };
        Step { name, start: Instant::now(), bar }
    }

    /// Says what the step is at, where that can be shown without a new line.
    pub fn detail(&self, text: &str) {
        if let Some(bar) = &self.bar {
            bar.set_message(text.trim().to_owned());
        }
    }

    /// Ends the step well.
    pub fn done(self) {
        let seconds = self.start.elapsed().as_secs_f32();
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        say(format!("{}: done in {seconds:.1} s", self.name));
    }
}

impl Drop for Step {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// Bytes that go by: on a terminal a bar with the rate, otherwise a line at the start and
/// one at the end.
pub struct Bytes {
    name: String,
    total: u64,
    start: Instant,
    bar: Option<ProgressBar>,
}

impl Bytes {
    /// Starts; `total` bytes are to come.
    pub fn new(name: impl Into<String>, total: u64) -> Bytes {
        let name = name.into();
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new(total);
            if let Ok(style) = ProgressStyle::with_template(
                "{prefix} {wide_bar} {bytes} of {total_bytes}, {bytes_per_sec}, {eta} left",
            ) {
                bar.set_style(style);
            }
            bar.set_prefix(name.clone());
            bar
        });
        if bar.is_none() {
            say(format!("{name} {} ...", size(total)));
        }
        Bytes { name, total, start: Instant::now(), bar }
    }

    /// So many more have gone by.
    pub fn add(&self, bytes: u64) {
        if let Some(bar) = &self.bar {
            bar.inc(bytes);
        }
    }

    /// Ends well.
    pub fn done(self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        let took = self.start.elapsed();
        let millis = u64::try_from(took.as_millis()).unwrap_or(u64::MAX).max(1);
        let rate = size(self.total.saturating_mul(1000) / millis);
        say(format!(
            "{}: {} in {:.1} s, {rate}/s",
            self.name,
            size(self.total),
            took.as_secs_f32()
        ));
    }
}

impl Drop for Bytes {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// Bytes as a person writes them.
pub fn size(bytes: u64) -> String {
    indicatif::HumanBytes(bytes).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_text_has_no_control_sequences() {
        let text =
            b"\x1b[2J\x1b[01;01H\x1b[=3hBds\x1b]0;title\x07Dxe\x1b(0 a\x1b[31mb\x1b[0m\r\n\tc\x08";
        assert_eq!(plain(text), "BdsDxe ab\n\tc");
        let mut escapes = Escapes::default();
        let whole: Vec<u8> = text.iter().flat_map(|byte| escapes.strip(&[*byte])).collect();
        assert_eq!(whole, Escapes::default().strip(text), "a byte at a time");
    }
}
