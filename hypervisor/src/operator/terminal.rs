//! The operator's terminal: one guest's console, or the monitor.

use super::Operator;
use crate::cpu::asm;
use crate::drivers::serial;
use crate::journal;
use crate::machine::World;
use alloc::collections::VecDeque;
use alloc::format;
use alloc::vec::Vec;
use control::command::{self, Command, Completer};
use control::line::{Editor, Entered};
use control::status::Statistics;
use control::{Attempt, Keys, Operation, Typed, report};

/// Seconds between two pictures of `top`.
const TOP_SECONDS: u64 = 1;
/// Beginning of a picture: the screen is cleared.
const CLEAR: &[u8] = b"\x1b[H\x1b[2J";
/// Bytes of output that may wait here; while there are more, nothing is read.
const FULL: usize = 64 << 10;

/// Bytes that are read and wait, while a command does.
const AHEAD: usize = 4096;

/// Content of the terminal.
#[derive(Debug)]
enum View {
    /// The console of the guest with this number.
    Guest(u32),
    /// The monitor's prompt.
    Monitor,
    /// `top`, in the monitor.
    Top {
        /// The picture that the next one is compared with.
        before: Option<Statistics>,
        /// The tick of the next picture.
        due: u64,
    },
}

/// See the [module](self).
#[derive(Debug)]
pub(super) struct Terminal {
    keys: Keys,
    editor: Editor,
    view: View,
    /// Bytes that were read and not looked at yet.
    ahead: VecDeque<u8>,
    /// The command that is tried again, as a vCPU was busy.
    waiting: Option<Attempt<Operation>>,
    /// The guest that was shown last.
    last: u32,
    /// By number, guests that have not taken yet all that was typed for them. Another
    /// console may be shown meanwhile.
    typed: Vec<(u32, VecDeque<u8>)>,
    /// Bytes to be shown, and how many of them were.
    out: Vec<u8>,
    sent: usize,
    /// Lines that the log had when the prompt was last shown.
    logged: u64,
}

impl Terminal {
    pub(super) fn new(escape: u8) -> Self {
        Self {
            keys: Keys::new(escape),
            editor: Editor::new("steward> "),
            view: View::Monitor,
            ahead: VecDeque::new(),
            waiting: None,
            last: 1,
            typed: Vec::new(),
            out: Vec::new(),
            sent: 0,
            logged: 0,
        }
    }

    /// Whether it shows the console of guest `number`.
    pub(super) const fn shows(&self, number: u32) -> bool {
        matches!(self.view, View::Guest(shown) if shown == number)
    }

    /// The guest whose console it shows.
    pub(super) const fn shown(&self) -> Option<u32> {
        match self.view {
            View::Guest(number) => Some(number),
            _ => None,
        }
    }

    /// It shows the console of guest `number`, which knows that.
    pub(super) fn show_guest(&mut self, number: u32) {
        self.view = View::Guest(number);
        self.last = number;
    }

    /// It shows the monitor.
    pub(super) fn show_monitor(&mut self) {
        self.view = View::Monitor;
        self.out.extend_from_slice(b"\r\n");
        self.editor.show(&mut self.out);
    }

    /// Whether a command is to be tried again.
    pub(super) const fn waits(&self) -> bool {
        self.waiting.is_some()
    }

    /// Keeps what was typed for guest `number`.
    fn note(&mut self, number: u32, bytes: &[u8]) {
        let at = self.typed.iter().position(|(known, _)| *known == number);
        let at = at.unwrap_or_else(|| {
            self.typed.push((number, VecDeque::new()));
            self.typed.len() - 1
        });
        if let Some((_, waiting)) = self.typed.get_mut(at)
            // A guest that takes nothing loses what is too much.
            && waiting.len() < FULL
        {
            waiting.extend(bytes);
        }
    }

    /// Fetches what was typed.
    fn read(&mut self) {
        let mut buffer = [0; 16];
        while self.ahead.len() < AHEAD {
            let count = serial::CONSOLE.read(&mut buffer);
            self.ahead.extend(buffer.get(..count).unwrap_or_default());
            if count == 0 {
                break;
            }
        }
    }

    /// Shows lines of ours.
    fn print(&mut self, text: &str) {
        for line in text.lines() {
            self.out.extend_from_slice(line.as_bytes());
            self.out.extend_from_slice(b"\r\n");
        }
    }

    /// Shows bytes of a guest's, or for its sake, at once: lines of ours may be next.
    pub(super) fn pass(&mut self, bytes: &[u8]) {
        self.out.extend_from_slice(bytes);
        self.flush();
    }

    /// Sends what there is room for.
    fn flush(&mut self) {
        let rest = self.out.get(self.sent..).unwrap_or_default();
        self.sent += serial::CONSOLE.write(rest);
        if self.sent >= self.out.len() {
            self.out.clear();
            self.sent = 0;
        }
    }
}

impl Operator {
    /// Takes what was typed.
    pub(super) fn listen(&mut self, world: &'static World) {
        if let Some(attempt) = self.terminal.waiting.take() {
            self.carry_out(world, attempt);
        }
        // Whatever the guest does, the operator is heard.
        while !self.terminal.waits() && self.terminal.out.len() <= FULL {
            self.terminal.read();
            let Some(byte) = self.terminal.ahead.pop_front() else { break };
            self.typed(world, byte);
        }
        if self.terminal.waits() {
            self.terminal.read();
        }
        self.pass_on();
    }

    /// Gives guests what was typed for them, as far as they take it.
    fn pass_on(&mut self) {
        let Self { records, terminal, .. } = self;
        terminal.typed.retain_mut(|(number, bytes)| {
            let record = records.iter().find(|record| record.number == *number);
            // While nobody is there, nobody listens.
            let Some(guest) = record.and_then(|record| record.guest()) else { return false };
            let now = guest.vm.now(asm::rdtsc());
            let taken = guest.vm.board.console_input(bytes.make_contiguous(), now);
            bytes.drain(..taken);
            !bytes.is_empty()
        });
    }

    fn typed(&mut self, world: &'static World, byte: u8) {
        match self.terminal.keys.feed(byte) {
            Typed::Input(bytes) => match self.terminal.view {
                View::Guest(number) => self.terminal.note(number, &bytes),
                View::Monitor => {
                    for byte in bytes {
                        self.edit(world, byte);
                    }
                }
                View::Top { .. } if bytes.is_empty() => {}
                View::Top { .. } => self.terminal.show_monitor(),
            },
            Typed::Attach(number) => match self.at(number) {
                Some(at) => self.attach(at),
                None => journal::note(format_args!("there is no guest {number}")),
            },
            Typed::Monitor => {
                self.detach();
                self.terminal.show_monitor();
            }
            Typed::PowerButton => {
                let record = self.at(self.terminal.last).and_then(|at| self.records.get(at));
                if let Some(guest) = record.and_then(|record| record.guest()) {
                    guest.vm.board.press_power_button();
                }
            }
            Typed::Quit => {}
        }
    }

    fn edit(&mut self, world: &'static World, byte: u8) {
        let mut out = core::mem::take(&mut self.terminal.out);
        let mut editor = core::mem::replace(&mut self.terminal.editor, Editor::new(""));
        let entered = editor.feed(byte, &Completer { guests: &self.known() }, &mut out);
        self.terminal.editor = editor;
        self.terminal.out = out;
        match entered {
            None => return,
            Some(Entered::Cancelled) => {}
            Some(Entered::Line(line)) => match command::parse(&line) {
                Ok(None) => {}
                Ok(Some(Command::Help(text))) => self.terminal.print(&text),
                Ok(Some(Command::Top)) => {
                    self.terminal.view = View::Top { before: None, due: 0 };
                    return;
                }
                Ok(Some(Command::Do(operation))) => {
                    let until = asm::rdtsc() + world.patience();
                    return self.carry_out(world, Attempt::new(operation, until));
                }
                Err(error) => self.terminal.print(&format!("{error}")),
            },
        }
        let Terminal { editor, out, .. } = &mut self.terminal;
        editor.show(out);
    }

    /// Does what was typed, and shows the answer and the prompt.
    fn carry_out(&mut self, world: &'static World, attempt: Attempt<Operation>) {
        let attaches = matches!(attempt.what, Operation::Attach(_));
        let outcome = self.perform(world, attempt.what.clone());
        if attempt.goes_on(&outcome, asm::rdtsc()) {
            self.terminal.waiting = Some(attempt);
            return;
        }
        match outcome {
            Ok(_) if attaches => return,
            Ok(answer) => self.terminal.print(&report::answer(&answer)),
            Err(refusal) => self.terminal.print(&format!("{refusal}")),
        }
        let Terminal { editor, out, .. } = &mut self.terminal;
        editor.show(out);
    }

    /// No guest's console is shown, and the terminal is as if none had been.
    pub(super) fn detach(&mut self) {
        for record in &self.records {
            if record.console.is_attached() {
                self.terminal.pass(&record.console.detach());
                // Output that waited for the line is kept from now on.
                self.machine.world().agenda.note(record.place);
            }
        }
    }

    /// Shows the console of the guest at `at`.
    pub(super) fn attach(&mut self, at: usize) {
        self.detach();
        // Output that waits here comes before the console's.
        self.terminal.flush();
        let Some(record) = self.records.get(at) else { return };
        let dropped = record.console.attach();
        let name = &record.settings.name;
        journal::note(format_args!("console of \"{name}\", {dropped} bytes dropped"));
        self.terminal.pass(&record.console.again());
        record.console.show();
        self.terminal.show_guest(record.number);
    }

    /// Shows what there is to show.
    pub(super) fn show(&mut self, world: &World) {
        let now = asm::rdtsc();
        if let View::Top { before, due } = &mut self.terminal.view
            && *due <= now
            // The last picture must be out.
            && self.terminal.out.is_empty()
        {
            let before = before.take();
            let picture = self.stats(world, None);
            let text = report::top(&picture, before.as_ref());
            self.terminal.out.extend_from_slice(CLEAR);
            self.terminal.print(&text);
            let due = now + TOP_SECONDS * world.frequency.hz();
            self.terminal.view = View::Top { before: Some(picture), due };
        }
        let logged = journal::lines();
        // A command that waits shows the prompt behind its answer.
        let prompts = matches!(self.terminal.view, View::Monitor) && !self.terminal.waits();
        if prompts && logged != self.terminal.logged {
            let Terminal { editor, out, .. } = &mut self.terminal;
            editor.show(out);
        }
        self.terminal.logged = logged;
        self.terminal.flush();
    }
}
