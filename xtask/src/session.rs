//! A running machine: its serial port, its end.

use std::fs::File;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, ExitStatus};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::control::Relay;
use crate::emulator::{Launch, Serial};
use crate::scan::EndScanner;
use crate::{advice, cmd, ui};

/// How a run ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ending {
    /// The hypervisor said how, and left.
    Steward {
        /// The run's status.
        status: u8,
        /// Why, in words.
        reason: String,
        /// Then the emulator ended by itself.
        left: bool,
    },
    /// The emulator ended without a last word from the hypervisor.
    Died {
        /// How the emulator ended.
        how: String,
        /// Its last message.
        said: String,
    },
    /// It took longer than it may.
    Timeout(Duration),
    /// The person at the terminal ended it.
    Key,
    /// A signal ended it.
    Signal(i32),
    /// Nobody reads the guest's console any more.
    Closed,
}

impl Ending {
    /// The exit status of `xtask run` that tells this ending.
    pub fn status(&self) -> u8 {
        match self {
            Ending::Steward { status, .. } => *status,
            Ending::Timeout(_) => 124,
            Ending::Died { .. } => 125,
            Ending::Key => 130,
            Ending::Signal(number) => u8::try_from(128 + number).unwrap_or(255),
            Ending::Closed => ui::READER_GONE,
        }
    }

    /// One line for people.
    pub fn describe(&self) -> String {
        match self {
            Ending::Steward { status: 0, reason, .. } => format!("the run ended well: {reason}"),
            Ending::Steward { status, reason, .. } => {
                format!("the run ended with status {status}: {reason}")
            }
            Ending::Died { how, said } if said.is_empty() => {
                format!("the emulator ended ({how}) before Steward said how the run ended")
            }
            Ending::Died { how, said } => {
                format!(
                    "the emulator ended ({how}) before Steward said how the run ended; it said:\n{said}"
                )
            }
            Ending::Timeout(limit) => {
                format!("the run took longer than {} s and was stopped", limit.as_secs())
            }
            Ending::Key => "the run was ended from the keyboard".to_owned(),
            Ending::Signal(number) => format!("the run was ended by signal {number}"),
            Ending::Closed => "nobody reads the console any more".to_owned(),
        }
    }
}

/// An event of the run.
#[derive(Debug)]
pub enum Event {
    /// The machine wrote this to its serial port.
    Output(Vec<u8>),
    /// Nothing within the time given.
    Quiet,
    /// The run is over, and all output has been delivered.
    Ended(Ending),
}

/// After its last line the hypervisor leaves the machine; where that fails, this
/// much silence counts as having left.
const LEAVE_GRACE: Duration = Duration::from_secs(10);

/// How long the machine may take to answer the question that it is asked at the end of its time,
/// and how much silence ends the answer.
const ANSWER: Duration = Duration::from_secs(5);
const SILENCE: Duration = Duration::from_millis(700);

/// A running machine. Dropping it ends the emulator.
pub struct Session {
    child: Child,
    launch: Launch,
    output: Receiver<Vec<u8>>,
    input: Option<Sender<Vec<u8>>>,
    scanner: EndScanner,
    log: File,
    deadline: Option<(Instant, Duration)>,
    /// Keys that are typed at the deadline, so that the log tells what the guests were doing.
    question: Option<Vec<u8>>,
    /// When it was typed.
    asked: Option<Instant>,
    last_output: Instant,
    ended: Option<Ending>,
    /// The control line's socket, where the emulator can't make it itself.
    _control: Option<Relay>,
}

impl Session {
    /// Starts the machine. Its serial output is kept in the file `log` as well.
    pub fn start(launch: &Launch, log: &Path, limit: Option<Duration>) -> Result<Session> {
        if let Some(dir) = log.parent() {
            std::fs::create_dir_all(dir)
                .with_context(|| format!("cannot make {}", dir.display()))?;
        }
        let log = File::create(log).with_context(|| format!("cannot write {}", log.display()))?;
        let (mut command, lines) = launch.command()?;
        let control = match (lines.control, &launch.control) {
            (Some(listener), Some(path)) => Some(Relay::start(listener, path)?),
            _ => None,
        };
        let mut child = command.spawn().with_context(|| format!("cannot start {command:?}"))?;
        let (out_tx, output) = mpsc::channel();
        let (input, in_rx) = mpsc::channel();
        match lines.serial {
            Serial::Pipes => {
                let stdout = child.stdout.take().context("no pipe from the emulator")?;
                let stdin = child.stdin.take().context("no pipe to the emulator")?;
                std::thread::spawn(move || pump_out(stdout, &out_tx));
                std::thread::spawn(move || pump_in(stdin, &in_rx));
            }
            Serial::Socket(listener) => {
                std::thread::spawn(move || serve_socket(&listener, out_tx, in_rx));
            }
        }
        let now = Instant::now();
        Ok(Session {
            child,
            launch: launch.clone(),
            output,
            input: Some(input),
            scanner: EndScanner::new(launch.end_key),
            log,
            deadline: limit.map(|limit| (now + limit, limit)),
            question: None,
            asked: None,
            last_output: now,
            ended: None,
            _control: control,
        })
    }

    /// Has `question` typed when the run's time is over; what comes back is output like any
    /// other, and the run ends behind it.
    pub fn ask_at_deadline(&mut self, question: Vec<u8>) {
        self.question = Some(question);
    }

    /// Whether the question was typed: what comes from now on answers it.
    pub fn is_asked(&self) -> bool {
        self.asked.is_some()
    }

    /// Whether the run is to be ended because of its deadline.
    fn is_overdue(&mut self, deadline: Instant) -> bool {
        if Instant::now() < deadline {
            return false;
        }
        if let Some(question) = self.question.take() {
            self.send(&question);
            self.asked = Some(Instant::now());
        }
        let answers = |asked: Instant| {
            let quiet = self.last_output.max(asked).elapsed();
            asked.elapsed() < ANSWER && quiet < SILENCE
        };
        !self.asked.is_some_and(answers)
    }

    /// Types `bytes` at the machine's serial port.
    pub fn send(&self, bytes: &[u8]) {
        if let Some(input) = &self.input {
            // Nobody listens any more when the machine has just ended.
            let _ = input.send(bytes.to_vec());
        }
    }

    /// Waits for the next event, at most `wait`.
    pub fn next(&mut self, wait: Duration) -> Result<Event> {
        if let Some(ending) = &self.ended {
            return Ok(Event::Ended(ending.clone()));
        }
        let until = Instant::now() + wait;
        loop {
            let now = Instant::now();
            // An end that was announced stands, even if the emulator takes its time to go.
            if let Some((deadline, limit)) = self.deadline
                && self.scanner.end().is_none()
                && self.is_overdue(deadline)
            {
                return self.end(Ending::Timeout(limit));
            }
            let slice = until.saturating_duration_since(now).min(Duration::from_millis(50));
            match self.output.recv_timeout(slice) {
                Ok(bytes) => {
                    self.last_output = Instant::now();
                    self.log.write_all(&bytes).context("cannot write the serial log")?;
                    self.scanner.feed(&bytes);
                    return Ok(Event::Output(bytes));
                }
                // The serial line is closed: the emulator is about to be gone.
                Err(RecvTimeoutError::Disconnected) => {
                    let status = self.wait_or_kill(Duration::from_secs(5))?;
                    return self.left(status);
                }
                Err(RecvTimeoutError::Timeout) => {}
            }
            if let Some(status) = self.child.try_wait()?
                && self.launch.machine.is_bochs()
            {
                // A socket may stay open a little longer than the process.
                if let Ok(bytes) = self.output.recv_timeout(Duration::from_millis(200)) {
                    self.log.write_all(&bytes)?;
                    self.scanner.feed(&bytes);
                    return Ok(Event::Output(bytes));
                }
                return self.left(Some(status));
            }
            if self.scanner.end().is_some() && self.last_output.elapsed() > LEAVE_GRACE {
                return self.left(None);
            }
            if Instant::now() >= until {
                return Ok(Event::Quiet);
            }
        }
    }

    /// Ends the run from our side.
    pub fn stop(&mut self, ending: Ending) -> Result<()> {
        self.end(ending).map(|_| ())
    }

    fn left(&mut self, status: Option<ExitStatus>) -> Result<Event> {
        let ending = match self.scanner.end() {
            Some(end) => Ending::Steward {
                status: end.status,
                reason: end.reason.clone(),
                left: status.is_some(),
            },
            None => {
                let said = std::fs::read_to_string(self.launch.errors()).unwrap_or_default();
                let how = status
                    .map_or_else(|| "it had to be stopped".to_owned(), |status| status.to_string());
                let advice = advice::of(&self.launch, &said);
                let said = cmd::tail(&said, 15);
                let said: Vec<String> =
                    [said].into_iter().chain(advice).filter(|part| !part.is_empty()).collect();
                Ending::Died { how, said: said.join("\n") }
            }
        };
        self.end(ending)
    }

    fn end(&mut self, ending: Ending) -> Result<Event> {
        self.wait_or_kill(Duration::ZERO)?;
        self.ended = Some(ending.clone());
        Ok(Event::Ended(ending))
    }

    fn wait_or_kill(&mut self, patience: Duration) -> Result<Option<ExitStatus>> {
        let until = Instant::now() + patience;
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(Some(status));
            }
            if Instant::now() >= until {
                break;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        // It may end by itself in between: then there is nothing to kill.
        let _ = self.child.kill();
        self.child.wait()?;
        Ok(None)
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn pump_out(mut from: impl Read, to: &Sender<Vec<u8>>) {
    let mut buffer = [0_u8; 4096];
    while let Ok(count) = from.read(&mut buffer) {
        let Some(bytes) = buffer.get(..count).filter(|bytes| !bytes.is_empty()) else { break };
        if to.send(bytes.to_vec()).is_err() {
            break;
        }
    }
}

fn pump_in(mut to: impl Write, from: &Receiver<Vec<u8>>) {
    while let Ok(bytes) = from.recv() {
        if to.write_all(&bytes).and_then(|()| to.flush()).is_err() {
            break;
        }
    }
}

fn serve_socket(listener: &TcpListener, to: Sender<Vec<u8>>, from: Receiver<Vec<u8>>) {
    // The thread waits here for good if the emulator never connects; the process
    // has noticed by then that the emulator is gone.
    let Ok((stream, _)) = listener.accept() else { return };
    let Ok(writer) = stream.try_clone() else { return };
    std::thread::spawn(move || pump_in(writer, &from));
    pump_out(stream, &to);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_ending_has_its_status() {
        let said = |status| Ending::Steward { status, reason: "x".to_owned(), left: true };
        assert_eq!(said(0).status(), 0);
        assert_eq!(said(7).status(), 7);
        assert_eq!(Ending::Timeout(Duration::from_secs(1)).status(), 124);
        assert_eq!(Ending::Died { how: String::new(), said: String::new() }.status(), 125);
        assert_eq!(Ending::Key.status(), 130);
        assert_eq!(Ending::Signal(15).status(), 143);
        assert_eq!(Ending::Closed.status(), 141);
    }
}
