//! The control line: requests of programs over the machine's second serial port.

use super::Operator;
use super::uploads::UploadMemory;
use crate::cpu::asm;
use crate::drivers::serial;
use crate::machine::World;
use crate::mm;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use control::Attempt;
use control::answer::Hello;
use control::protocol::uploads::MAX_UPLOADS;
use control::protocol::{self, Input, Request, Session, Uploads};

/// Bytes that are taken from the line in one go.
const PIECE: usize = 512;

/// See the [module](self).
#[derive(Debug)]
pub(super) struct Control {
    session: Session,
    pub(super) uploads: Uploads<UploadMemory>,
    /// Bytes that came and were not looked at yet.
    input: Vec<u8>,
    /// Bytes to be sent, and how many of them were.
    out: Vec<u8>,
    sent: usize,
    /// The request that is tried again, as a vCPU was busy.
    waiting: Option<Attempt<Request>>,
    boot: String,
}

impl Control {
    pub(super) fn new(world: &World) -> Self {
        let free = mm::frame_counts().free;
        Self {
            session: Session::new(),
            uploads: Uploads::new(UploadMemory, free * 4096),
            input: Vec::new(),
            out: Vec::new(),
            sent: 0,
            waiting: None,
            boot: format!("{:016x}", world.boot.wall ^ world.boot.tsc.rotate_left(32)),
        }
    }

    pub(super) fn hello(&self) -> Hello {
        let count = u32::try_from(MAX_UPLOADS).unwrap_or(u32::MAX);
        protocol::hello(env!("CARGO_PKG_VERSION"), &self.boot, count, self.uploads.limit())
    }

    /// Whether all answers are on their way.
    pub(super) fn is_quiet(&self) -> bool {
        serial::CONTROL.stands_still()
            || self.waiting.is_none() && self.out.is_empty() && !serial::CONTROL.drain()
    }

    /// Whether a request is to be tried again.
    pub(super) const fn waits(&self) -> bool {
        self.waiting.is_some()
    }

    fn flush(&mut self) {
        let rest = self.out.get(self.sent..).unwrap_or_default();
        self.sent += serial::CONTROL.write(rest);
        if self.sent >= self.out.len() {
            self.out.clear();
            self.sent = 0;
        }
    }
}

impl Operator {
    /// Answers what came. One answer after the other: more is read when the last
    /// one is out.
    pub(super) fn serve_control(&mut self, world: &'static World) {
        self.control.flush();
        let mut buffer = [0; PIECE];
        if let Some(attempt) = self.control.waiting.take() {
            self.answer(world, attempt);
        }
        while self.control.out.is_empty() && !self.control.waits() {
            if self.control.input.is_empty() {
                let count = serial::CONTROL.read(&mut buffer);
                self.control.input.extend_from_slice(buffer.get(..count).unwrap_or_default());
            }
            if self.control.input.is_empty() {
                return;
            }
            let (taken, input) = self.control.session.feed(&self.control.input);
            self.control.input.drain(..taken);
            match input {
                None => {}
                Some(Input::Answer(line)) => self.control.out = line,
                Some(Input::Request(request)) => {
                    let until = asm::rdtsc() + world.patience();
                    self.answer(world, Attempt::new(request, until));
                }
            }
            self.control.flush();
        }
    }

    fn answer(&mut self, world: &'static World, attempt: Attempt<Request>) {
        let outcome = self.perform(world, attempt.what.operation.clone());
        if attempt.goes_on(&outcome, asm::rdtsc()) {
            self.control.waiting = Some(attempt);
        } else {
            self.control.out = self.control.session.finish(&attempt.what, outcome);
        }
    }
}
