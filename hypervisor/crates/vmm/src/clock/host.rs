//! [`HostClock`]: the wall clock of the machine itself.

use super::HostTime;
use core::sync::atomic::{AtomicU64, Ordering, fence};
use x86defs::Low;
use x86defs::time::Scale;

/// The origin that the clock is reckoned from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Base {
    /// A moment, as a tick of the TSC.
    tsc: u64,
    /// Nanoseconds since 1970-01-01 UTC at that moment.
    nanos: u64,
    /// How fast the TSC counts.
    scale: Scale,
}

/// A [`Base`] in memory.
#[derive(Debug)]
struct Slot([AtomicU64; 3]);

impl Slot {
    const fn new() -> Self {
        Self([const { AtomicU64::new(0) }; 3])
    }

    #[inline]
    fn load(&self) -> Base {
        let [tsc, nanos, scale] = self.0.each_ref().map(|word| word.load(Ordering::Relaxed));
        let scale = Scale { multiplier: scale.low32(), shift: (scale >> 32).low8().cast_signed() };
        Base { tsc, nanos, scale }
    }

    fn store(&self, base: Base) {
        let Base { tsc, nanos, scale: Scale { multiplier, shift } } = base;
        let scale = u64::from(multiplier) | u64::from(shift.cast_unsigned()) << 32;
        for (word, value) in self.0.iter().zip([tsc, nanos, scale]) {
            word.store(value, Ordering::Relaxed);
        }
    }
}

/// The machine's wall clock, reckoned from one moment by the rate of the TSC. Any CPU may read
/// it at any time, without a lock; it must not be changed by two at a time.
#[derive(Debug)]
pub struct HostClock {
    /// Two, because the slot that is changed is never the slot that is read.
    slots: [Slot; 2],
    /// How often the clock was changed; the lowest bit says which slot is read.
    changes: AtomicU64,
}

impl HostClock {
    /// A clock that shows 1970 at the tick `tsc`.
    #[must_use]
    pub fn new(tsc: u64, scale: Scale) -> Self {
        let slots = [Slot::new(), Slot::new()];
        if let Some(first) = slots.first() {
            first.store(Base { tsc, nanos: 0, scale });
        }
        Self { slots, changes: AtomicU64::new(0) }
    }

    #[inline]
    fn base(&self) -> Base {
        let [even, odd] = &self.slots;
        loop {
            let changes = self.changes.load(Ordering::Acquire);
            let base = if changes & 1 == 0 { even.load() } else { odd.load() };
            // A writer of this slot has counted the change to the other one before.
            fence(Ordering::Acquire);
            if self.changes.load(Ordering::Relaxed) == changes {
                return base;
            }
        }
    }

    fn put(&self, base: Base) {
        let changes = self.changes.load(Ordering::Relaxed);
        let [even, odd] = &self.slots;
        fence(Ordering::Release);
        if changes & 1 == 0 {
            odd.store(base)
        } else {
            even.store(base)
        }
        self.changes.store(changes.wrapping_add(1), Ordering::Release);
    }

    /// The time at the tick `tsc`, which may be before the clock was set.
    #[inline]
    #[must_use]
    pub fn at(&self, tsc: u64) -> HostTime {
        let base = self.base();
        let passed = tsc.wrapping_sub(base.tsc);
        let wall = if passed.cast_signed() >= 0 {
            base.nanos.saturating_add(base.scale.nanos(passed))
        } else {
            base.nanos.saturating_sub(base.scale.nanos(base.tsc.wrapping_sub(tsc)))
        };
        HostTime { tsc, wall }
    }

    /// Sets the clock: `nanos` since 1970-01-01 UTC had passed at the tick `tsc`.
    pub fn set(&self, tsc: u64, nanos: u64) {
        self.put(Base { tsc, nanos, ..self.base() });
    }

    /// The TSC counts as `scale` says, and always has: time since the clock was set is
    /// reckoned anew.
    pub fn correct(&self, scale: Scale) {
        self.put(Base { scale, ..self.base() });
    }
}
