//! The machine's end of the control line: bytes in, requests and answers out.

use crate::answer::Answer;
use crate::operation::Operation;
use crate::protocol::wire::{Request, reply};
use crate::protocol::{MAX_ANSWER, MAX_LINE};
use crate::refusal::{ErrorCode, Refusal};
use alloc::collections::VecDeque;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

/// Answers that are remembered.
const REMEMBERED: usize = 64;
/// Bytes that they may have together.
const REMEMBERED_BYTES: usize = 64 << 10;

/// Result of a line that came in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// Do this, and [`finish`](Session::finish) it before more is fed.
    Request(Request),
    /// There is nothing to do: send this line.
    Answer(Vec<u8>),
}

#[derive(Debug)]
struct Remembered {
    id: String,
    digest: u64,
    line: Vec<u8>,
}

/// The state of the control line.
#[derive(Debug, Default)]
pub struct Session {
    line: Vec<u8>,
    /// The line is longer than it may be: the rest of it is skipped.
    overlong: bool,
    /// Answers to requests that changed something, the oldest first.
    answers: VecDeque<Remembered>,
}

impl Session {
    /// A session at the beginning of a line.
    #[must_use]
    pub const fn new() -> Self {
        Self { line: Vec::new(), overlong: false, answers: VecDeque::new() }
    }

    /// Takes bytes up to the end of a line: returns how many, at least one if
    /// there are any, and what the line came to.
    pub fn feed(&mut self, bytes: &[u8]) -> (usize, Option<Input>) {
        let end = bytes.iter().position(|byte| *byte == b'\n');
        let piece = bytes.get(..end.unwrap_or(bytes.len())).unwrap_or_default();
        if !self.overlong {
            if self.line.len() + piece.len() > MAX_LINE {
                self.overlong = true;
                // An overlong line of blanks still is one that needs an answer.
                self.line = Vec::new();
            } else {
                self.line.extend_from_slice(piece);
            }
        }
        match end {
            None => (piece.len(), None),
            Some(end) => (end + 1, self.end_of_line()),
        }
    }

    /// Bytes of a line that has not ended.
    #[must_use]
    pub const fn pending(&self) -> usize {
        self.line.len()
    }

    fn end_of_line(&mut self) -> Option<Input> {
        let line = core::mem::take(&mut self.line);
        if core::mem::take(&mut self.overlong) {
            let message = format!("the line is longer than {MAX_LINE} bytes");
            let refusal = Refusal::new(ErrorCode::TooLong, message);
            return Some(Input::Answer(reply(None, Err(&refusal))));
        }
        if line.trim_ascii().is_empty() {
            return None;
        }
        let request = match Request::from_line(&line) {
            Ok(request) => request,
            Err((id, refusal)) => {
                return Some(Input::Answer(reply(id.as_deref(), Err(&refusal))));
            }
        };
        let Some(earlier) = self.answers.iter().find(|answer| answer.id == request.id) else {
            return Some(Input::Request(request));
        };
        if earlier.digest == request.digest {
            return Some(Input::Answer(earlier.line.clone()));
        }
        let message = "the id was used for another request: take a new one for each";
        let refusal = Refusal::new(ErrorCode::IdReused, message);
        Some(Input::Answer(reply(Some(&request.id), Err(&refusal))))
    }

    /// The line that answers `request`. If the request could change something, its answer is
    /// remembered for a while: the same line once more gets this answer, and nothing is done a
    /// second time.
    #[must_use]
    pub fn finish(&mut self, request: &Request, outcome: Result<Answer, Refusal>) -> Vec<u8> {
        let mut line = reply(Some(&request.id), outcome.as_ref());
        if line.len() > MAX_ANSWER {
            let message = format!("the answer has {} bytes: ask for less", line.len());
            let refusal = Refusal::new(ErrorCode::TooLarge, message);
            line = reply(Some(&request.id), Err(&refusal));
        }
        if changes(&request.operation) {
            self.remember(request, line.clone());
        }
        line
    }

    fn remember(&mut self, request: &Request, line: Vec<u8>) {
        self.answers.push_back(Remembered { id: request.id.clone(), digest: request.digest, line });
        let mut bytes: usize = self.answers.iter().map(|answer| answer.line.len()).sum();
        // The newest stays, whatever its size.
        while self.answers.len() > REMEMBERED
            || (bytes > REMEMBERED_BYTES && self.answers.len() > 1)
        {
            let Some(gone) = self.answers.pop_front() else { break };
            bytes -= gone.line.len();
        }
    }
}

/// Whether doing the operation twice may be something else than doing it once.
const fn changes(operation: &Operation) -> bool {
    match operation {
        Operation::Hello
        | Operation::List
        | Operation::Stats(_)
        | Operation::Dump { .. }
        | Operation::Trace { .. }
        | Operation::Why(_)
        | Operation::Memory
        | Operation::Cpus
        | Operation::Events { .. }
        | Operation::DryRun(_)
        // The offset of a piece makes it safe to repeat, and there are many pieces.
        | Operation::UploadChunk { .. } => false,
        Operation::Attach(_)
        | Operation::Pause(_)
        | Operation::Resume(_)
        | Operation::Stop { .. }
        | Operation::Kill(_)
        | Operation::Start(_)
        | Operation::Restart { .. }
        | Operation::Log(_)
        | Operation::Reboot
        | Operation::PowerOff
        | Operation::UploadBegin { .. }
        | Operation::UploadEnd { .. }
        | Operation::UploadDelete { .. }
        | Operation::Define(_)
        | Operation::Delete(_) => true,
    }
}
