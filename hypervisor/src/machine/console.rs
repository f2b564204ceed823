//! A guest's console: what it sends goes to the machine's serial port while the
//! operator looks at it, and is kept in a ring while not.

use crate::drivers::serial;
use core::sync::atomic::{AtomicBool, Ordering};
use spin::Mutex;
use vmm::operator::Ring;

/// See the [module](self).
#[derive(Debug)]
pub(super) struct Console {
    /// The operator looks at it.
    attached: AtomicBool,
    kept: Mutex<Ring>,
}

impl Console {
    /// A console that nobody looks at; `kept` takes what it is sent.
    pub(super) const fn new(kept: Ring) -> Self {
        Self { attached: AtomicBool::new(false), kept: Mutex::new(kept) }
    }

    /// Takes what the guest sent; how many bytes, from the start. While the
    /// operator looks, it is no more than the serial port takes.
    pub(super) fn write(&self, bytes: &[u8]) -> usize {
        let mut kept = self.kept.lock();
        if self.is_attached() {
            return if kept.is_empty() { serial::CONSOLE.write_for_guest(bytes) } else { 0 };
        }
        kept.push(bytes);
        bytes.len()
    }

    /// Takes all of what the guest sent: what the serial port has no room for is
    /// kept, and shown later.
    pub(super) fn put(&self, bytes: &[u8]) {
        let mut kept = self.kept.lock();
        let sent = if self.is_attached() && kept.is_empty() {
            serial::CONSOLE.write_for_guest(bytes)
        } else {
            0
        };
        kept.push(bytes.get(sent..).unwrap_or_default());
    }

    /// How many bytes [`write`](Self::write) would take.
    pub(super) fn room(&self) -> usize {
        if !self.is_attached() {
            usize::MAX
        } else if self.kept.lock().is_empty() {
            serial::CONSOLE.room_for_guest()
        } else {
            0
        }
    }

    /// Whether the operator looks at it.
    pub(super) fn is_attached(&self) -> bool {
        self.attached.load(Ordering::Relaxed)
    }

    /// The operator looks at it from now on; returns how many bytes were lost.
    pub(super) fn attach(&self) -> u64 {
        let mut kept = self.kept.lock();
        self.attached.store(true, Ordering::Relaxed);
        kept.begin()
    }

    /// The operator looks elsewhere.
    pub(super) fn detach(&self) {
        let _kept = self.kept.lock();
        self.attached.store(false, Ordering::Relaxed);
    }

    /// Shows what was kept, as far as the serial port takes it.
    pub(super) fn show(&self) {
        let mut kept = self.kept.lock();
        while self.is_attached() && !kept.is_empty() {
            let sent = serial::CONSOLE.write_for_guest(kept.front());
            if sent == 0 {
                return;
            }
            kept.consume(sent);
        }
    }

    /// Bytes that wait to be looked at, and bytes that were lost.
    pub(super) fn unread(&self) -> (u64, u64) {
        let kept = self.kept.lock();
        (kept.len() as u64, kept.dropped())
    }

    /// Bytes of memory that it takes.
    pub(super) fn memory(&self) -> u64 {
        (size_of::<Self>() + self.kept.lock().memory()) as u64
    }
}
