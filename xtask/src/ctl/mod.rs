//! `ctl`: the client of the control protocol (`docs/control.md`).
//!
//! [`client`] keeps the connection, [`create`] makes guests of files,
//! [`prometheus`] and [`perfetto`] say answers in other programs' formats.

pub mod client;
pub mod create;
pub mod perfetto;
pub mod prometheus;
#[cfg(test)]
mod tests;

use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};
use config::LogLevel;
use control::operation::STOP_SECONDS;
use control::protocol::MAX_EVENTS;
use control::status::Statistics;
use control::{Answer, GuestRef, Operation, report};

use crate::paths;
use crate::ui::Out;
use client::{Client, Exchange, Tried};
use create::{Description, Source};

/// The exit status where Steward refused the operation.
pub const REFUSED: u8 = 3;
/// The exit status where a dry run says no.
pub const NOT_POSSIBLE: u8 = 4;

/// How often `--follow` and `top` ask.
const PERIOD: Duration = Duration::from_secs(1);

/// Options of `ctl`.
#[derive(Debug, Args)]
pub struct CtlOptions {
    /// The control line's socket, as `run --control` made it [default: target/steward/control.sock]
    #[arg(long, value_name = "PATH", global = true)]
    pub socket: Option<PathBuf>,
    /// Print the answer as JSON, as Steward gave it
    #[arg(long, global = true)]
    pub json: bool,
    /// Give up after this many seconds without an answer
    #[arg(long, value_name = "SECONDS", default_value_t = 10, global = true)]
    pub timeout: u64,
    /// The task.
    #[command(subcommand)]
    pub task: Task,
}

/// Names a guest.
#[derive(Debug, Args)]
pub struct OneGuest {
    /// The guest's name or number
    pub guest: String,
}

/// Names a guest, and how long it has to stop.
#[derive(Debug, Args)]
pub struct Stopping {
    /// The guest's name or number
    pub guest: String,
    /// End it by force after this many seconds
    #[arg(long, default_value_t = STOP_SECONDS, value_name = "N")]
    pub seconds: u32,
}

/// Names a guest, and maybe one of its vCPUs.
#[derive(Debug, Args)]
pub struct OneVcpu {
    /// The guest's name or number
    pub guest: String,
    /// Of this vCPU alone
    #[arg(long, value_name = "N")]
    pub vcpu: Option<u32>,
}

/// A task.
#[derive(Debug, Subcommand)]
pub enum Task {
    /// The Steward that answers, and its bounds
    Hello,
    /// The guests, their state and size
    List,
    /// Show this guest's console on the machine's first serial port
    Attach(OneGuest),
    /// Halt a guest's vCPUs and its time
    Pause(OneGuest),
    /// Let a paused guest go on
    Resume(OneGuest),
    /// Press a guest's power button, then end it by force
    Stop(Stopping),
    /// End a guest now
    Kill(OneGuest),
    /// Start a guest that is defined or has ended
    Start(OneGuest),
    /// Stop a guest, then start it again
    Restart(Stopping),
    /// Statistics of a guest, or of the machine and all guests
    Stats {
        /// The guest's name or number
        guest: Option<String>,
        /// Print Prometheus' text format, under libvirt-exporter's names where it has them
        #[arg(long)]
        prometheus: bool,
    },
    /// The guests' use of the machine: since the start, then again every second
    Top {
        /// How often; for ever, if nothing is said
        #[arg(long, value_name = "N")]
        count: Option<u32>,
    },
    /// Registers, page walk and code
    Dump(OneVcpu),
    /// The last exits
    Trace {
        /// The vCPU.
        #[command(flatten)]
        of: OneVcpu,
        /// Print a trace for the timeline viewer Perfetto
        #[arg(long)]
        perfetto: bool,
    },
    /// Events that a guest's vCPUs wait for, and what is in the way
    Why(OneGuest),
    /// The machine's memory and who has it
    Mem,
    /// The machine's CPUs and what they run
    Cpus,
    /// Log this level and what is graver
    Log {
        /// off, error, warn, info, debug or trace
        #[arg(value_parser = crate::run::parse_level)]
        level: LogLevel,
    },
    /// Start the machine again; guests are not asked
    Reboot,
    /// Switch the machine off; guests are not asked
    Poweroff,
    /// The machine's events
    Events {
        /// The number of the last event that is known already
        #[arg(long, default_value_t = 0, value_name = "N")]
        since: u64,
        /// Wait for more, for ever
        #[arg(long)]
        follow: bool,
    },
    /// Send a file for guests
    Upload {
        /// The file
        file: PathBuf,
        /// Its name there [default: the file's name]
        #[arg(long)]
        name: Option<String>,
    },
    /// Forget a file that no guest is made of
    DeleteUpload {
        /// Its name there
        name: String,
    },
    /// Define a guest whose files are uploaded already
    Define(Description),
    /// Could this guest be defined and started now? Status 4 if not
    DryRun(Description),
    /// Upload files from here, define a guest of them, and start it
    Create(Description),
    /// Forget a guest that does not run
    Delete(OneGuest),
}

/// Path of the control line's socket, if nobody says.
pub fn default_socket() -> PathBuf {
    paths::target().join("steward/control.sock")
}

/// Does it; returns the status to exit with.
pub fn ctl(options: &CtlOptions) -> Result<u8> {
    let socket = options.socket.clone().unwrap_or_else(default_socket);
    let client =
        Client::connect(&socket, Duration::from_secs(options.timeout)).with_context(|| {
            format!(
                "cannot connect to {}: was `cargo xtask run` started with `--control`?",
                socket.display()
            )
        })?;
    Ctl { client, json: options.json, out: Out }.perform(&options.task)
}

/// A client with its output.
struct Ctl<W> {
    client: Client,
    json: bool,
    out: W,
}

impl<W: Write> Ctl<W> {
    fn perform(&mut self, task: &Task) -> Result<u8> {
        let operation = match task {
            Task::Hello => Operation::Hello,
            Task::List => Operation::List,
            Task::Attach(of) => Operation::Attach(named(of)),
            Task::Pause(of) => Operation::Pause(named(of)),
            Task::Resume(of) => Operation::Resume(named(of)),
            Task::Stop(Stopping { guest, seconds }) => {
                Operation::Stop { guest: GuestRef::typed(guest), seconds: *seconds }
            }
            Task::Kill(of) => Operation::Kill(named(of)),
            Task::Start(of) => Operation::Start(named(of)),
            Task::Restart(Stopping { guest, seconds }) => {
                Operation::Restart { guest: GuestRef::typed(guest), seconds: *seconds }
            }
            Task::Stats { guest, prometheus } => {
                let operation = Operation::Stats(guest.as_deref().map(GuestRef::typed));
                return if *prometheus { self.prometheus(operation) } else { self.once(operation) };
            }
            Task::Top { count } => return self.top(*count),
            Task::Dump(of) => Operation::Dump { guest: GuestRef::typed(&of.guest), vcpu: of.vcpu },
            Task::Trace { of, perfetto } => {
                let guest = GuestRef::typed(&of.guest);
                let operation = Operation::Trace { guest, vcpu: of.vcpu };
                return if *perfetto { self.perfetto(operation) } else { self.once(operation) };
            }
            Task::Why(of) => Operation::Why(named(of)),
            Task::Mem => Operation::Memory,
            Task::Cpus => Operation::Cpus,
            Task::Log { level } => Operation::Log(*level),
            Task::Reboot => Operation::Reboot,
            Task::Poweroff => Operation::PowerOff,
            Task::Events { since, follow } => return self.events(*since, *follow),
            Task::Upload { file, name } => {
                let name = create::upload_name(file, name.as_deref())?;
                return self.show(|client| create::upload(client, file, &name));
            }
            Task::DeleteUpload { name } => Operation::UploadDelete { name: name.clone() },
            Task::Define(description) => {
                Operation::Define(Box::new(description.settings(Source::Uploads)?))
            }
            Task::DryRun(description) => {
                Operation::DryRun(Box::new(description.settings(Source::Uploads)?))
            }
            Task::Create(description) => {
                return self.show(|client| create::create(client, description));
            }
            Task::Delete(of) => Operation::Delete(named(of)),
        };
        self.once(operation)
    }

    fn once(&mut self, operation: Operation) -> Result<u8> {
        self.show(|client| client.request(operation))
    }

    /// Shows how the last request of `tried` was answered.
    fn show(&mut self, tried: impl FnOnce(&mut Client) -> Tried) -> Result<u8> {
        let exchange = tried(&mut self.client)?;
        if self.json {
            self.out.write_all(exchange.line.as_bytes())?;
            self.out.write_all(b"\n")?;
        }
        Ok(match exchange.outcome {
            Ok(answer) => {
                if !self.json {
                    self.out.write_all(report::answer(&answer).as_bytes())?;
                }
                match answer {
                    Answer::Verdict(verdict) if !verdict.possible => NOT_POSSIBLE,
                    _ => 0,
                }
            }
            Err(refusal) => {
                if !self.json {
                    crate::ui::say(format!("refused: {refusal}"));
                }
                REFUSED
            }
        })
    }

    /// An answer to go on with, or the status to exit with.
    fn answer(&mut self, operation: Operation) -> Result<Result<Exchange, u8>> {
        let exchange = self.client.request(operation)?;
        if exchange.outcome.is_ok() {
            return Ok(Ok(exchange));
        }
        self.show(|_| Ok(exchange)).map(Err)
    }

    fn prometheus(&mut self, operation: Operation) -> Result<u8> {
        match self.answer(operation)? {
            Err(status) => Ok(status),
            Ok(exchange) => {
                self.out.write_all(prometheus::text(&stats(exchange)?).as_bytes())?;
                Ok(0)
            }
        }
    }

    fn perfetto(&mut self, operation: Operation) -> Result<u8> {
        match self.answer(operation)? {
            Err(status) => Ok(status),
            Ok(Exchange { outcome: Ok(Answer::Trace(trace)), .. }) => {
                let trace = perfetto::trace(&trace)?;
                serde_json::to_writer(&mut self.out, &trace)?;
                self.out.write_all(b"\n")?;
                Ok(0)
            }
            Ok(exchange) => bail!("that is no trace: {}", exchange.line),
        }
    }

    fn top(&mut self, count: Option<u32>) -> Result<u8> {
        let mut before: Option<Statistics> = None;
        let mut left = count;
        loop {
            let exchange = match self.answer(Operation::Stats(None))? {
                Ok(exchange) => exchange,
                Err(status) => return Ok(status),
            };
            if self.json {
                self.out.write_all(exchange.line.as_bytes())?;
                self.out.write_all(b"\n")?;
            }
            let now = stats(exchange)?;
            if !self.json {
                self.out.write_all(report::top(&now, before.as_ref()).as_bytes())?;
            }
            self.out.flush()?;
            before = Some(now);
            left = left.map(|left| left.saturating_sub(1));
            if left == Some(0) {
                return Ok(0);
            }
            std::thread::sleep(PERIOD);
        }
    }

    fn events(&mut self, mut since: u64, follow: bool) -> Result<u8> {
        loop {
            let exchange = match self.answer(Operation::Events { since, max: MAX_EVENTS })? {
                Ok(exchange) => exchange,
                Err(status) => return Ok(status),
            };
            let Ok(Answer::Events(found)) = &exchange.outcome else {
                bail!("those are no events: {}", exchange.line)
            };
            if self.json {
                for event in &found.events {
                    serde_json::to_writer(&mut self.out, event)?;
                    self.out.write_all(b"\n")?;
                }
            } else {
                self.out.write_all(report::events(found).as_bytes())?;
            }
            self.out.flush()?;
            since = found.next;
            if found.events.is_empty() {
                if !follow {
                    return Ok(0);
                }
                std::thread::sleep(PERIOD);
            }
        }
    }
}

fn named(of: &OneGuest) -> GuestRef {
    GuestRef::typed(&of.guest)
}

fn stats(exchange: Exchange) -> Result<Statistics> {
    match exchange.outcome {
        Ok(Answer::Stats(stats)) => Ok(*stats),
        _ => bail!("those are no statistics: {}", exchange.line),
    }
}
