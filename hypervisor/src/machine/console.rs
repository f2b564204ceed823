//! A guest's console: what it sends goes to the machine's serial port while the
//! operator looks at it, and is kept in a ring while not. On its way to the port it
//! passes a filter: no guest types at the operator's terminal, and what it changed there is
//! put back when somebody else gets it.

use crate::drivers::serial;
use alloc::vec::Vec;
use arrayvec::ArrayVec;
use chipset::ConsoleSink;
use control::{Ring, Screen, screen};
use core::sync::atomic::{AtomicBool, Ordering};
use spin::Mutex;

/// See the [module](self).
#[derive(Debug)]
pub(crate) struct Console {
    /// The operator looks at it.
    attached: AtomicBool,
    output: Mutex<Output>,
}

/// Output of the guest that is not shown yet.
#[derive(Debug)]
struct Output {
    /// The newest output, as it came.
    kept: Ring,
    passage: Passage,
}

/// The way to the serial port.
#[derive(Debug)]
struct Passage {
    /// `None`: all passes.
    screen: Option<Screen>,
    /// Bytes that have passed the filter and had no room yet; they go in one piece.
    ready: ArrayVec<u8, READY>,
}

/// Most bytes that one byte may bring out of the filter: a whole sequence, or what remains of a
/// broken character, and the byte itself.
const READY: usize = screen::LONGEST + 8;

impl Passage {
    /// Sends what was ready; whether there is nothing more of it.
    fn is_clear(&mut self) -> bool {
        if serial::CONSOLE.write_whole_for_guest(&self.ready) {
            self.ready.clear();
        }
        self.ready.is_empty()
    }

    /// Sends bytes; how many were taken, from the start.
    fn send(&mut self, bytes: &[u8]) -> usize {
        let mut taken = 0;
        while self.is_clear()
            && let Some(rest @ [first, ..]) = bytes.get(taken..)
        {
            let Some(screen) = &mut self.screen else {
                return taken + serial::CONSOLE.write_for_guest(rest);
            };
            let plain = screen.plain(rest);
            if plain == 0 {
                screen.feed(*first, &mut |part| {
                    // There is room for all that one byte brings.
                    let _ = self.ready.try_extend_from_slice(part);
                });
                taken += 1;
                continue;
            }
            let sent = serial::CONSOLE.write_for_guest(rest.get(..plain).unwrap_or_default());
            taken += sent;
            if sent < plain {
                break;
            }
        }
        taken
    }

    /// Bytes still to be sent when the terminal goes to somebody else: those that were ready, which
    /// count as shown, and those that put the terminal back. Nothing is known of an output that is
    /// not filtered: that is for programs.
    fn last(&mut self) -> Vec<u8> {
        let mut last = self.ready.to_vec();
        self.ready.clear();
        last.extend(self.screen.as_mut().map(Screen::reset).unwrap_or_default());
        last
    }
}

impl ConsoleSink for Console {
    /// While the operator looks, it is no more than the serial port takes.
    fn room(&self) -> usize {
        if !self.is_attached() {
            return usize::MAX;
        }
        let Output { kept, passage } = &mut *self.output.lock();
        if kept.is_empty() && passage.is_clear() { serial::CONSOLE.room_for_guest() } else { 0 }
    }

    /// Bytes for which the serial port has no room are kept, and shown later.
    fn put(&self, bytes: &[u8]) {
        let Output { kept, passage } = &mut *self.output.lock();
        let sent = if self.is_attached() && kept.is_empty() { passage.send(bytes) } else { 0 };
        kept.push(bytes.get(sent..).unwrap_or_default());
    }
}

impl Console {
    /// A console that nobody looks at; `kept` takes what it is sent, `screen` filters what
    /// is shown of it.
    pub(crate) const fn new(kept: Ring, screen: Option<Screen>) -> Self {
        let passage = Passage { screen, ready: ArrayVec::new_const() };
        Self { attached: AtomicBool::new(false), output: Mutex::new(Output { kept, passage }) }
    }

    /// Whether the operator looks at it.
    pub(crate) fn is_attached(&self) -> bool {
        self.attached.load(Ordering::Relaxed)
    }

    /// The operator looks at it from now on; returns how many bytes were lost.
    pub(crate) fn attach(&self) -> u64 {
        let mut output = self.output.lock();
        self.attached.store(true, Ordering::Relaxed);
        output.kept.begin()
    }

    /// Bytes that bring the terminal back to where the guest's programs had it, now that the
    /// operator looks.
    pub(crate) fn again(&self) -> Vec<u8> {
        self.output.lock().passage.screen.as_mut().map(Screen::again).unwrap_or_default()
    }

    /// The operator looks elsewhere: returns what the terminal gets first.
    #[must_use]
    pub(crate) fn detach(&self) -> Vec<u8> {
        let Output { passage, .. } = &mut *self.output.lock();
        match self.attached.swap(false, Ordering::Relaxed) {
            true => passage.last(),
            false => Vec::new(),
        }
    }

    /// The guest is no more, and whatever its programs counted on: returns what the terminal
    /// gets, if the operator looks.
    #[must_use]
    pub(crate) fn end(&self) -> Vec<u8> {
        let Output { passage, .. } = &mut *self.output.lock();
        if let Some(screen) = &mut passage.screen {
            screen.forget();
        }
        match self.is_attached() {
            true => passage.last(),
            false => Vec::new(),
        }
    }

    /// Shows what was kept, as far as the serial port takes it.
    pub(crate) fn show(&self) {
        let Output { kept, passage } = &mut *self.output.lock();
        while self.is_attached() && passage.is_clear() && !kept.is_empty() {
            let sent = passage.send(kept.front());
            if sent == 0 {
                return;
            }
            kept.consume(sent);
        }
    }

    /// Bytes that wait to be looked at, and bytes that were lost.
    pub(crate) fn unread(&self) -> (u64, u64) {
        let Output { kept, passage } = &*self.output.lock();
        let waiting = kept.len() as u64 + passage.ready.len() as u64;
        (waiting, kept.dropped())
    }

    /// Bytes of memory that it takes.
    pub(crate) fn memory(&self) -> u64 {
        (size_of::<Self>() + self.output.lock().kept.memory()) as u64
    }
}
