//! The trace port: the exits of a test guest, written down for it to read.
//!
//! A guest that has the debug ports switches it on and off, and reads the result, through the
//! ports from [`TRACE_PORT`](config::layout::TRACE_PORT) on. While it is on, the hot handler
//! declines everything ([`TracePort::hold`]), so that each exit comes by.

use alloc::vec::Vec;
use core::sync::atomic::{AtomicU64, Ordering};
use devices::AccessError;
use serde::{Deserialize, Serialize};
use spin::Mutex;
use state::Saved;
use x86defs::bits::{Low, high32};
use x86defs::{Rflags, Width};

/// Flags with which the hot handler leaves an instruction to the general code.
pub const HOT_DECLINES: Rflags = Rflags::TF.union(Rflags::RF);

/// How many exits are kept one by one; the digest covers all.
const KEPT: usize = 256;

/// One exit: kind, what distinguishes it, RIP, a hash of registers and flags.
pub type Record = [u32; 4];

/// Exits that were written down since the trace was switched on.
#[derive(Debug, Default)]
struct Written {
    records: Vec<Record>,
    count: u32,
    digest: u64,
    /// The word that the guest reads next.
    next: usize,
}

/// The saved state of a [`TracePort`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct TraceState {
    on: bool,
    records: Vec<Record>,
    count: u32,
    digest: u64,
    next: u64,
}

impl Saved for TraceState {
    const NAME: &'static str = "trace-port";
    const VERSION: u16 = 1;
}

/// The trace of one guest.
#[derive(Debug)]
pub struct TracePort {
    hold: AtomicU64,
    written: Mutex<Written>,
}

impl Default for TracePort {
    fn default() -> Self {
        Self { hold: AtomicU64::new(HOT_DECLINES.bits()), written: Mutex::default() }
    }
}

impl TracePort {
    /// Ports that the device covers.
    pub const PORT_COUNT: u16 = 8;
    /// Offset written with 1 (on, and all forgotten) or 0 (off); read: how many exits.
    const CONTROL: u16 = 0;
    /// Offset written with the number of a word, read as that word and then
    /// the next ones: the digest (low, high), then four of each record.
    const WORDS: u16 = 4;

    pub(crate) fn save(&self) -> TraceState {
        let Written { records, count, digest, next } = &*self.written.lock();
        TraceState {
            on: self.is_on(),
            records: records.clone(),
            count: *count,
            digest: *digest,
            next: u64::try_from(*next).unwrap_or(u64::MAX),
        }
    }

    pub(crate) fn restore(&self, state: TraceState) {
        let TraceState { on, mut records, count, digest, next } = state;
        records.truncate(KEPT);
        let next = usize::try_from(next).unwrap_or(usize::MAX);
        *self.written.lock() = Written { records, count, digest, next };
        self.set_on(on);
    }

    fn set_on(&self, on: bool) {
        let hold = if on { HOT_DECLINES | Rflags::RESERVED1 } else { HOT_DECLINES };
        self.hold.store(hold.bits(), Ordering::Relaxed);
    }

    /// Flags of the guest with which the hot handler declines: while the trace
    /// is on, also the one that is always set.
    #[inline]
    pub fn hold(&self) -> Rflags {
        Rflags::from_bits_retain(self.hold.load(Ordering::Relaxed))
    }

    /// Whether exits are written down.
    #[inline]
    pub fn is_on(&self) -> bool {
        self.hold().contains(Rflags::RESERVED1)
    }

    /// Writes a record down.
    pub fn note(&self, record: Record) {
        let mut written = self.written.lock();
        written.count = written.count.wrapping_add(1);
        written.digest = record.iter().fold(written.digest, |d, word| mix(d, (*word).into()));
        if written.records.len() < KEPT {
            written.records.push(record);
        }
    }

    /// IN from one of the ports.
    ///
    /// # Errors
    /// Anything but 32 bits at the two registers.
    pub(crate) fn port_read(&self, offset: u16, width: Width) -> Result<u32, AccessError> {
        let mut written = self.written.lock();
        match (offset, width) {
            (Self::CONTROL, Width::B4) => Ok(written.count),
            (Self::WORDS, Width::B4) => {
                let word = match written.next {
                    0 => written.digest.low32(),
                    1 => high32(written.digest),
                    n => {
                        let record = written.records.get((n - 2) / 4);
                        record.and_then(|r| r.get((n - 2) % 4)).copied().unwrap_or(0)
                    }
                };
                written.next = written.next.saturating_add(1);
                Ok(word)
            }
            _ => Err(AccessError::NoRegister),
        }
    }

    /// OUT to one of the ports.
    ///
    /// # Errors
    /// Anything but 32 bits at the two registers.
    pub fn port_write(&self, offset: u16, width: Width, value: u32) -> Result<(), AccessError> {
        match (offset, width) {
            (Self::CONTROL, Width::B4) => {
                if value == 1 {
                    *self.written.lock() = Written::default();
                }
                self.set_on(value == 1);
                Ok(())
            }
            (Self::WORDS, Width::B4) => {
                self.written.lock().next = usize::try_from(value).unwrap_or(usize::MAX);
                Ok(())
            }
            _ => Err(AccessError::NoRegister),
        }
    }
}

/// One step of a hash (a multiplication, so that order counts).
#[must_use]
pub const fn mix(hash: u64, word: u64) -> u64 {
    (hash ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_state_is_laid_out_as_it_was() {
        state::golden::check(env!("CARGO_MANIFEST_DIR"), || {
            let trace = TracePort::default();
            trace.port_write(0, Width::B4, 1).unwrap();
            trace.note([1, 2, 3, u32::MAX]);
            trace.port_read(4, Width::B4).unwrap();
            trace.save()
        });
    }

    #[test]
    fn it_is_off_until_the_guest_switches_it_on() {
        let trace = TracePort::default();
        assert!(!trace.is_on());
        assert_eq!(trace.hold(), HOT_DECLINES);
        trace.port_write(0, Width::B4, 1).unwrap();
        assert!(trace.is_on());
        assert!(trace.hold().contains(HOT_DECLINES | Rflags::RESERVED1));
        trace.port_write(0, Width::B4, 0).unwrap();
        assert!(!trace.is_on());
        assert_eq!(trace.hold(), HOT_DECLINES);
        assert_eq!(trace.port_write(0, Width::B1, 1), Err(AccessError::NoRegister));
        assert_eq!(trace.port_read(2, Width::B4), Err(AccessError::NoRegister));
    }
}
