//! A guest's console: what it sends goes to the machine's serial port while the
//! operator looks at it, and is kept in a ring while not.

use crate::drivers::serial;
use alloc::collections::VecDeque;
use alloc::string::String;
use core::sync::atomic::{AtomicBool, Ordering};
use spin::Mutex;

/// Bytes that are kept while nobody looks.
const RING: usize = 16 << 10;

/// See the [module](self).
#[derive(Debug)]
pub(super) struct Console {
    /// The guest's name.
    pub(super) name: String,
    /// The operator looks at it.
    attached: AtomicBool,
    kept: Mutex<Kept>,
}

#[derive(Debug)]
struct Kept {
    bytes: VecDeque<u8>,
    /// Bytes that there was no room for.
    dropped: u64,
}

impl Console {
    pub(super) fn new(name: &str) -> Self {
        let kept = Kept { bytes: VecDeque::with_capacity(RING), dropped: 0 };
        Self { name: name.into(), attached: AtomicBool::new(false), kept: Mutex::new(kept) }
    }

    /// Takes what the guest sent; how many bytes, from the start. While the
    /// operator looks, it is no more than the serial port takes.
    pub(super) fn write(&self, bytes: &[u8]) -> usize {
        let mut kept = self.kept.lock();
        if self.attached.load(Ordering::Relaxed) {
            return if kept.bytes.is_empty() { serial::write(bytes) } else { 0 };
        }
        for byte in bytes {
            if kept.bytes.len() == RING {
                kept.bytes.pop_front();
                kept.dropped += 1;
            }
            kept.bytes.push_back(*byte);
        }
        bytes.len()
    }

    /// How many bytes [`write`](Self::write) would take.
    pub(super) fn room(&self) -> usize {
        if !self.attached.load(Ordering::Relaxed) {
            RING
        } else if self.kept.lock().bytes.is_empty() {
            serial::room()
        } else {
            0
        }
    }

    /// The operator looks at it from now on; returns how many bytes were lost.
    pub(super) fn attach(&self) -> u64 {
        let mut kept = self.kept.lock();
        self.attached.store(true, Ordering::Relaxed);
        core::mem::take(&mut kept.dropped)
    }

    /// The operator looks elsewhere.
    pub(super) fn detach(&self) {
        let _kept = self.kept.lock();
        self.attached.store(false, Ordering::Relaxed);
    }

    /// Shows what was kept, as far as the serial port takes it.
    pub(super) fn show(&self) {
        let mut kept = self.kept.lock();
        while self.attached.load(Ordering::Relaxed) && !kept.bytes.is_empty() {
            let (first, _) = kept.bytes.as_slices();
            let sent = serial::write(first);
            if sent == 0 {
                return;
            }
            kept.bytes.drain(..sent);
        }
    }
}
