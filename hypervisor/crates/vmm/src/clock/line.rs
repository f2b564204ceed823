//! The time of a guest as a straight line over the host's TSC.

use serde::{Deserialize, Serialize};
use x86defs::time::{Nanos, Scale};

/// Whether a guest's time runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Motion {
    /// Add this to the host's TSC to get guest ticks.
    Running { offset: u64 },
    /// Ticks stand still here.
    Paused { ticks: u64 },
}

/// The time of a guest, but for its wall clock: ticks and nanoseconds over the host's TSC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeline {
    pub(super) scale: Scale,
    pub(super) motion: Motion,
}

impl Timeline {
    /// Guest ticks when the host's TSC is `host_tsc`. CPUs whose TSCs are a
    /// hair apart may ask about a moment before the start: that is 0.
    #[inline]
    #[must_use]
    pub fn ticks(&self, host_tsc: u64) -> u64 {
        match self.motion {
            Motion::Running { offset } => {
                let ticks = host_tsc.wrapping_add(offset);
                if ticks.cast_signed() < 0 { 0 } else { ticks }
            }
            Motion::Paused { ticks } => ticks,
        }
    }

    /// Guest ticks less the host's TSC, modulo 2^64, while the guest's time runs.
    #[inline]
    #[must_use]
    pub const fn offset(&self) -> Option<u64> {
        match self.motion {
            Motion::Running { offset } => Some(offset),
            Motion::Paused { .. } => None,
        }
    }

    /// The guest's time when the host's TSC is `host_tsc`.
    #[inline]
    #[must_use]
    pub fn now(&self, host_tsc: u64) -> Nanos {
        Nanos(self.scale.nanos(self.ticks(host_tsc)))
    }

    /// The host's TSC when the guest's time reaches `at`, for arming a timer: 0 where that was
    /// before the host's TSC began, `u64::MAX` for the end of all time. `None` while the guest is
    /// paused.
    #[inline]
    #[must_use]
    pub fn host_tsc_at(&self, at: Nanos) -> Option<u64> {
        match self.motion {
            Motion::Running { offset } => {
                if at == Nanos(u64::MAX) {
                    return Some(u64::MAX);
                }
                // Ticks start at 0, and host TSCs below 2^63 never wrap within a lifetime. The
                // offset has a sign.
                let ticks = self.scale.ticks(at.0).min(u64::MAX >> 1).cast_signed();
                match ticks.checked_sub(offset.cast_signed()) {
                    Some(host) => Some(u64::try_from(host).unwrap_or(0)),
                    None => Some(u64::MAX),
                }
            }
            Motion::Paused { .. } => None,
        }
    }
}
