//! The person's terminal as the machine's serial console.
//!
//! Every byte typed goes to the machine, Ctrl-C too. Only the escape key, `Ctrl-]`
//! where no configuration names another, is ours: with `q` it ends the run. With any
//! other key it goes to the machine, where `p` presses the guest's power button, and
//! the escape key itself types one.

use std::io::{ErrorKind, IsTerminal, Read, Write};
use std::sync::mpsc::{self, Receiver};
use std::time::Duration;

use anyhow::{Context, Result};

use config::EscapeKey;
use control::Screen;

use crate::session::{Ending, Event, Session};
use crate::ui::Escapes;

/// How the run can be ended, for the line at the start.
pub fn help(escape: EscapeKey) -> String {
    format!("{escape} then q ends the run, {escape} then p presses the guest's power button")
}

/// Request from the keyboard.
#[derive(Debug, PartialEq, Eq)]
enum Typed {
    Bytes(Vec<u8>),
    Quit,
}

/// Recognises the escape key in what is typed.
#[derive(Debug, Default)]
struct Keys {
    escape: EscapeKey,
    escaped: bool,
}

impl Keys {
    fn feed(&mut self, bytes: &[u8]) -> Vec<Typed> {
        let escape = self.escape.byte();
        let mut out = Vec::new();
        let mut plain = Vec::new();
        for &byte in bytes {
            match (std::mem::take(&mut self.escaped), byte) {
                (false, byte) if byte == escape => self.escaped = true,
                (true, b'q' | b'Q') => {
                    if !plain.is_empty() {
                        out.push(Typed::Bytes(std::mem::take(&mut plain)));
                    }
                    out.push(Typed::Quit);
                }
                // The machine knows the key too (`p` presses the guest's power button).
                (true, other) => plain.extend([escape, other]),
                (false, other) => plain.push(other),
            }
        }
        if !plain.is_empty() {
            out.push(Typed::Bytes(plain));
        }
        out
    }
}

/// The terminal in raw mode; restored when dropped, on a panic and on a signal.
struct Raw {
    on: bool,
}

impl Raw {
    fn enter(wanted: bool) -> Result<Raw> {
        if wanted {
            crossterm::terminal::enable_raw_mode()
                .context("cannot put the terminal in raw mode")?;
            // `panic = "abort"` runs no destructors, but it runs the hook.
            let hook = std::panic::take_hook();
            std::panic::set_hook(Box::new(move |info| {
                let _ = crossterm::terminal::disable_raw_mode();
                hook(info);
            }));
        }
        Ok(Raw { on: wanted })
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        if self.on {
            // Nothing can be done where it fails; the terminal is gone then.
            let _ = crossterm::terminal::disable_raw_mode();
        }
    }
}

/// A raw terminal does not return the carriage at a line feed; our hypervisor's
/// lines end in a bare one.
#[derive(Debug, Default)]
struct Carriage {
    last: u8,
}

impl Carriage {
    fn translate(&mut self, bytes: &[u8]) -> Vec<u8> {
        let mut out = Vec::with_capacity(bytes.len() + 16);
        for &byte in bytes {
            if byte == b'\n' && self.last != b'\r' {
                out.push(b'\r');
            }
            out.push(byte);
            self.last = byte;
        }
        out
    }
}

/// Changes of the terminal by the machine's output that would outlast the run.
#[derive(Debug, Default)]
struct Traces {
    screen: Screen,
    /// Bytes that the terminal got, and those of them that a filter would have let through.
    given: usize,
    passed: usize,
}

impl Traces {
    /// The terminal gets `bytes`.
    fn note(&mut self, bytes: &[u8]) {
        self.given += bytes.len();
        for &byte in bytes {
            self.screen.feed(byte, &mut |part| self.passed += part.len());
        }
    }

    /// Sequences that put the terminal back. Not all that it gets was filtered: Linux's output
    /// without a hypervisor is not.
    fn undo(&mut self) -> Vec<u8> {
        if self.given != self.passed {
            self.screen.doubt();
        }
        self.screen.reset()
    }
}

/// Output of a machine before the hypervisor's first line is its firmware's, which clears the
/// screen and homes the cursor: what stood there, how the run is ended among it, would be gone.
/// The firmware's text passes, its escape sequences don't.
#[derive(Debug, Default)]
struct Firmware {
    escapes: Escapes,
    line: Vec<u8>,
    over: bool,
}

impl Firmware {
    fn filter(&mut self, bytes: &[u8]) -> Vec<u8> {
        /// How the hypervisor's lines begin.
        const FIRST: &[u8] = b"steward: ";
        let mut out = Vec::with_capacity(bytes.len());
        for byte in bytes {
            if self.over {
                out.push(*byte);
                continue;
            }
            for byte in self.escapes.strip(&[*byte]) {
                out.push(byte);
                match byte {
                    b'\r' | b'\n' => self.line.clear(),
                    _ if self.line.len() < FIRST.len() => self.line.push(byte),
                    _ => {}
                }
                self.over = self.line == FIRST;
            }
        }
        out
    }
}

/// Connects terminal and machine until the run ends. `escape` is the key that is ours;
/// `boots_steward` says that the hypervisor's lines follow those of a firmware.
pub fn attach(session: &mut Session, escape: EscapeKey, boots_steward: bool) -> Result<Ending> {
    let typing = std::io::stdin().is_terminal();
    let raw = Raw::enter(typing)?;
    let mut stdout = std::io::stdout();
    let (mut traces, mut carriage) = (Traces::default(), Carriage::default());
    let firmware = Firmware { over: !boots_steward, ..Firmware::default() };
    let ending = connect(session, escape, typing, firmware, &mut carriage, &mut traces);
    if stdout.is_terminal() {
        // A failure means that the terminal is gone.
        let _ = stdout.write_all(&traces.undo()).and_then(|()| stdout.flush());
    }
    drop(raw);
    if carriage.last != b'\n' && carriage.last != 0 {
        // Nobody may be there to see it.
        let _ = writeln!(std::io::stderr());
    }
    ending
}

/// Passes on what is printed and what is typed.
fn connect(
    session: &mut Session,
    escape: EscapeKey,
    typing: bool,
    mut firmware: Firmware,
    carriage: &mut Carriage,
    traces: &mut Traces,
) -> Result<Ending> {
    let signals = signals()?;
    let typed = read_stdin();
    let mut keys = Keys { escape, escaped: false };
    let mut stdout = std::io::stdout();
    let shows = stdout.is_terminal();
    loop {
        // Input waits for at most this long: short enough for a typist.
        match session.next(Duration::from_millis(10))? {
            Event::Output(bytes) => {
                let bytes = if shows { firmware.filter(&bytes) } else { bytes };
                if shows {
                    traces.note(&bytes);
                }
                let bytes = if typing && shows { carriage.translate(&bytes) } else { bytes };
                if let Err(error) = stdout.write_all(&bytes).and_then(|()| stdout.flush()) {
                    session.stop(Ending::Closed)?;
                    if error.kind() != ErrorKind::BrokenPipe {
                        return Err(error).context("cannot write what the guest prints");
                    }
                    return Ok(Ending::Closed);
                }
            }
            Event::Quiet => {}
            Event::Ended(ending) => return Ok(ending),
        }
        if let Ok(signal) = signals.try_recv() {
            session.stop(Ending::Signal(signal))?;
            return Ok(Ending::Signal(signal));
        }
        let mut quit = false;
        while let Ok(bytes) = typed.try_recv() {
            if !typing {
                session.send(&bytes);
                continue;
            }
            for typed in keys.feed(&bytes) {
                match typed {
                    Typed::Bytes(bytes) => session.send(&bytes),
                    Typed::Quit => quit = true,
                }
            }
        }
        if quit {
            session.stop(Ending::Key)?;
            return Ok(Ending::Key);
        }
    }
}

/// Signals that end a run, as they come.
pub(crate) fn signals() -> Result<Receiver<i32>> {
    use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
    let mut signals = signal_hook::iterator::Signals::new([SIGHUP, SIGINT, SIGTERM])
        .context("cannot catch signals")?;
    let (tx, rx) = mpsc::channel();
    std::thread::spawn(move || {
        for signal in signals.forever() {
            if tx.send(signal).is_err() {
                break;
            }
        }
    });
    Ok(rx)
}

/// Bytes that are typed, as they come. The end of the input ends nothing.
fn read_stdin() -> Receiver<Vec<u8>> {
    let (tx, rx) = mpsc::channel();
    std::thread::spawn(move || {
        let mut stdin = std::io::stdin();
        let mut buffer = [0_u8; 1024];
        while let Ok(count) = stdin.read(&mut buffer) {
            let Some(bytes) = buffer.get(..count).filter(|bytes| !bytes.is_empty()) else { break };
            if tx.send(bytes.to_vec()).is_err() {
                break;
            }
        }
    });
    rx
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(text: &[u8]) -> Typed {
        Typed::Bytes(text.to_vec())
    }

    #[test]
    fn ctrl_c_and_friends_go_to_the_guest() {
        assert_eq!(Keys::default().feed(b"a\x03\x04\x1a"), [bytes(b"a\x03\x04\x1a")]);
    }

    #[test]
    fn the_escape_key_quits_even_in_two_pieces() {
        let mut keys = Keys::default();
        assert_eq!(keys.feed(b"x\x1d"), [bytes(b"x")]);
        assert_eq!(keys.feed(b"q"), [Typed::Quit]);
    }

    #[test]
    fn the_escape_key_goes_on_with_other_keys() {
        let mut keys = Keys::default();
        assert_eq!(keys.feed(b"\x1d\x1dq"), [bytes(b"\x1d\x1dq")]);
        assert_eq!(keys.feed(b"\x1dx"), [bytes(b"\x1dx")]);
    }

    #[test]
    fn another_key_can_be_the_escape_key() {
        let escape = EscapeKey::parse("Ctrl-A").unwrap();
        let mut keys = Keys { escape, escaped: false };
        assert_eq!(keys.feed(b"\x1dq\x01\x01\x01q"), [bytes(b"\x1dq\x01\x01"), Typed::Quit]);
    }

    #[test]
    fn a_run_leaves_the_terminal_as_it_was() {
        let undo = |output: &[u8]| {
            let mut traces = Traces::default();
            traces.note(output);
            traces.undo()
        };
        assert_eq!(undo(b"boot\r\n\x1b[1;32mroot\x1b[0m# \xc3\xa9"), b"");
        assert_eq!(undo(b"\x1b[?25l\x1b[8m"), b"\x1b[0m\x1b[?25h");
        assert_eq!(undo(b"\x1b[?1049h\x1b[m"), b"\x1b[?1049l\x1b[0m\x1b(B\x0f\x1b[?7h");
        // Sequences that no filter lets through, and one that the end came in the middle of.
        for output in [&b"\x1b[?1000h"[..], b"\x1b[=3h\x1b[2J", b"\x1b]0;title", b"\x1b[3"] {
            let all = undo(output);
            let mouse_off = all.windows(8).any(|part| part == b"\x1b[?1000l");
            assert!(mouse_off && all.starts_with(b"\x1b[0m"), "{all:?}");
        }
    }

    #[test]
    fn the_firmware_does_not_clear_the_screen() {
        let text = b"\x1b[2J\x1b[01;01H\x1b[=3hBdsDxe: loading\r\nsteward: memory\r\n\x1b[31mred";
        let kept = b"BdsDxe: loading\r\nsteward: memory\r\n\x1b[31mred";
        assert_eq!(Firmware::default().filter(text), kept);
        let mut firmware = Firmware::default();
        let pieces: Vec<u8> = text.chunks(1).flat_map(|byte| firmware.filter(byte)).collect();
        assert_eq!(pieces, kept);
        // Without a firmware nothing is left out.
        let mut bare = Firmware { over: true, ..Firmware::default() };
        assert_eq!(bare.filter(b"\x1b[2J"), b"\x1b[2J");
    }

    #[test]
    fn a_bare_line_feed_gets_its_carriage_return() {
        let mut carriage = Carriage::default();
        assert_eq!(carriage.translate(b"a\nb\r"), b"a\r\nb\r");
        assert_eq!(carriage.translate(b"\nc"), b"\nc");
    }
}
