//! One end of a control line: requests out, answers in.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Error, Result, bail};
use control::protocol::{MAX_ANSWER, Reply, Request};
use control::{Answer, Operation, Refusal};

/// How often a request is sent at the most. Each time it is the same one, so that
/// Steward does it once.
const ATTEMPTS: u32 = 3;

/// A request's answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Exchange {
    /// The answer's line, as it came.
    pub line: String,
    /// Content of the answer.
    pub outcome: Result<Answer, Refusal>,
}

/// Result of a try; an error is a line that does not work.
pub type Tried = Result<Exchange>;

/// A connection to a control line.
#[derive(Debug)]
pub struct Client {
    path: PathBuf,
    stream: UnixStream,
    /// Bytes that came behind the last line.
    pending: Vec<u8>,
    patience: Duration,
    /// Begins each id, so that no other client has the same.
    prefix: String,
    count: u64,
}

impl Client {
    /// Connects to the socket at `path`; each request waits for its answer at most
    /// as long as `patience`.
    pub fn connect(path: &Path, patience: Duration) -> Result<Self> {
        let stream = open(path)?;
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let prefix = format!("{:x}-{:x}", std::process::id(), since.as_nanos());
        let path = path.to_path_buf();
        Ok(Self { path, stream, pending: Vec::new(), patience, prefix, count: 0 })
    }

    /// Asks, and waits for the answer. If the connection breaks or nothing comes for
    /// a while, the same request is sent again.
    pub fn request(&mut self, operation: Operation) -> Tried {
        self.count += 1;
        let id = format!("{}-{}", self.prefix, self.count);
        let line = Request::new(id.clone(), operation).to_line();
        let mut problem: Option<Error> = None;
        for attempt in 0..ATTEMPTS {
            let ready = if attempt == 0 { Ok(()) } else { self.reconnect() };
            let result = ready.and_then(|()| self.exchange(&id, &line));
            match result {
                Ok(exchange) => return Ok(exchange),
                // The first failure is the cause, and the last one may be what it led to.
                Err(error) => {
                    problem = Some(match problem {
                        None => error,
                        Some(first) => first.context(format!("tried again: {error:#}")),
                    });
                }
            }
        }
        Err(problem.context("never tried")?)
    }

    fn reconnect(&mut self) -> Result<()> {
        self.stream = open(&self.path)?;
        self.pending.clear();
        Ok(())
    }

    fn exchange(&mut self, id: &str, line: &[u8]) -> Tried {
        let until = Instant::now() + self.patience / ATTEMPTS;
        self.stream.set_write_timeout(Some(self.patience))?;
        self.stream.write_all(line).context("the control line takes nothing")?;
        let mut nameless = None;
        loop {
            let Some(line) = self.line(until)? else {
                match nameless {
                    Some(refusal) => bail!("Steward could not read the request: {refusal}"),
                    None => bail!("no answer within {} s", self.patience.as_secs()),
                }
            };
            // A line that is no answer, or another request's, is left over from another client.
            let Ok(reply) = Reply::from_line(&line) else { continue };
            match (reply.id.as_deref(), reply.outcome) {
                (Some(theirs), outcome) if theirs == id => {
                    let line = String::from_utf8(line).context("the answer is not UTF-8")?;
                    return Ok(Exchange { line, outcome });
                }
                (None, Err(refusal)) => nameless = Some(refusal),
                _ => {}
            }
        }
    }

    /// The next line, without its line feed; `None` if it does not come in time.
    fn line(&mut self, until: Instant) -> Result<Option<Vec<u8>>> {
        let mut searched = 0;
        loop {
            let fresh = self.pending.get(searched..).unwrap_or_default();
            if let Some(end) = fresh.iter().position(|byte| *byte == b'\n') {
                let rest = self.pending.split_off(searched + end + 1);
                let mut line = std::mem::replace(&mut self.pending, rest);
                line.pop();
                return Ok(Some(line));
            }
            searched = self.pending.len();
            if searched > MAX_ANSWER {
                bail!("an answer longer than {MAX_ANSWER} bytes");
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            self.stream.set_read_timeout(Some(left))?;
            let mut buffer = [0; 4096];
            match self.stream.read(&mut buffer) {
                Ok(0) => bail!("the control line was closed: the machine may be off"),
                Ok(count) => {
                    self.pending.extend_from_slice(buffer.get(..count).unwrap_or_default())
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if is_timeout(error.kind()) => return Ok(None),
                Err(error) => return Err(error).context("the control line is broken"),
            }
        }
    }
}

fn is_timeout(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::WouldBlock | ErrorKind::TimedOut)
}

fn open(path: &Path) -> Result<UnixStream> {
    let mut stream = UnixStream::connect(path)?;
    // Whoever was here before may have left in the middle of a line.
    stream.write_all(b"\n")?;
    Ok(stream)
}
