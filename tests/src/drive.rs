//! A case's hold on its machine: wait for text, type, look at how it ended.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, bail, ensure};
use control::{Answer, Operation};
use xtask::ctl::client::Client;
use xtask::session::{Ending, Event, Session};

/// A machine under test.
pub struct Drive {
    session: Session,
    /// Everything it has printed, with what is not UTF-8 replaced.
    text: String,
    /// Offset in `text` at which the last expected text ended.
    seen: usize,
    ending: Option<Ending>,
    /// Bytes that may be the beginning of a character.
    pending: Vec<u8>,
    /// The control line's socket.
    control: PathBuf,
}

impl Drive {
    /// Takes a session over.
    pub fn new(session: Session) -> Drive {
        Drive {
            session,
            text: String::new(),
            seen: 0,
            ending: None,
            pending: Vec::new(),
            control: PathBuf::new(),
        }
    }

    /// The machine's control line is at `path`.
    pub fn control_at(&mut self, path: PathBuf) {
        self.control = path;
    }

    /// A client of the machine's control line.
    pub fn client(&self) -> Result<Client> {
        Client::connect(&self.control, Duration::from_secs(90))
    }

    /// Asks over the control line; it must be done.
    pub fn ask(&self, client: &mut Client, operation: Operation) -> Result<Answer> {
        let asked = format!("{operation:?}");
        let answer = client.request(operation)?.outcome;
        answer.map_err(|refusal| anyhow!("{asked:.200}: refused: {refusal}"))
    }

    /// Enters a command of the monitor, which the terminal shows, and returns what
    /// it printed.
    pub fn monitor(&mut self, command: &str) -> Result<String> {
        self.send(&format!("{command}\r"));
        // The echo, then the answer up to the next prompt.
        self.expect(&format!("{command}\r\n"), 30)?;
        let from = self.seen;
        self.expect("steward> ", 30)?;
        Ok(self.text.get(from..self.seen).unwrap_or_default().replace('\r', ""))
    }

    /// Everything that was printed so far.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Types `text`.
    pub fn send(&self, text: &str) {
        self.session.send(text.as_bytes());
    }

    /// Waits until `wanted` is printed after what was last waited for.
    pub fn expect(&mut self, wanted: &str, seconds: u64) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(seconds);
        loop {
            let rest = self.text.get(self.seen..).unwrap_or_default();
            if let Some(at) = rest.find(wanted) {
                self.seen += at + wanted.len();
                return Ok(());
            }
            if let Some(ending) = &self.ending {
                bail!("waited for {wanted:?}, and {}", ending.describe());
            }
            if Instant::now() >= deadline {
                bail!("waited {seconds} s for {wanted:?}");
            }
            self.step()?;
        }
    }

    /// Runs `command` at a shell and returns what it printed.
    pub fn shell(&mut self, command: &str, seconds: u64) -> Result<String> {
        // The mark is typed in two pieces, so that the echo is not taken for it. Nothing waits for
        // the echo: a message of the kernel may stand in the middle of it.
        self.send(&format!("{command}; echo DONE'-'MARK\n"));
        let from = self.seen;
        self.expect("DONE-MARK", seconds)?;
        let to = self.seen.saturating_sub("DONE-MARK".len());
        // Text that is typed before the shell is ready comes back twice.
        let answer = self.text.get(from..to).unwrap_or_default();
        let answer = answer.rsplit("DONE'-'MARK\r\n").next().unwrap_or_default();
        Ok(answer.replace('\r', ""))
    }

    /// Waits for the run's end, which must have this status.
    pub fn ends(&mut self, status: u8) -> Result<String> {
        loop {
            if let Some(ending) = &self.ending {
                if ending.status() != status {
                    bail!(
                        "ended with status {} instead of {status}: {}",
                        ending.status(),
                        ending.describe()
                    );
                }
                return Ok(match ending {
                    Ending::Steward { reason, .. } => reason.clone(),
                    other => other.describe(),
                });
            }
            self.step()?;
        }
    }

    /// Waits until the run is over with `status`, and the machine has switched itself off.
    pub fn leaves(&mut self, status: u8) -> Result<()> {
        self.ends(status)?;
        let left = matches!(self.ending, Some(Ending::Steward { left: true, .. }));
        ensure!(left, "the machine is still on");
        Ok(())
    }

    fn step(&mut self) -> Result<()> {
        match self.session.next(Duration::from_millis(100))? {
            Event::Output(bytes) => {
                self.pending.extend(bytes);
                let whole = match std::str::from_utf8(&self.pending) {
                    Err(error) if error.error_len().is_none() => error.valid_up_to(),
                    _ => self.pending.len(),
                };
                let bytes: Vec<u8> = self.pending.drain(..whole).collect();
                self.text.push_str(&String::from_utf8_lossy(&bytes));
            }
            Event::Quiet => {}
            Event::Ended(ending) => self.ending = Some(ending),
        }
        Ok(())
    }
}
