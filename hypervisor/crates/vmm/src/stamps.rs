//! Every exit stamped: the measured image's own accounting (feature `stamp-exits`).
//!
//! The entry assembly of both backends reads the TSC behind each exit and before each entry, also
//! where the hot handler serves the exit, and adds what has passed since the last reading to a
//! place of [`Stamps`], which stands behind the general registers: the assembly knows its layout.
//! [`Stopwatch`](crate::stopwatch::Stopwatch), which the ordinary image has, is held against it.

use core::fmt;

/// A vCPU's time in ticks of the host's TSC, to the exit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Stamps {
    /// The last stamp.
    pub mark: u64,
    /// In the guest, with the instructions of the entry code that no stamp encloses.
    pub guest: u64,
    /// In exits that the hot handler served.
    pub hot: u64,
    /// In all else: other exits, and switches.
    pub cold: u64,
    /// Exits.
    pub exits: u64,
}

impl Stamps {
    /// The vCPU gets a CPU, at this TSC.
    pub fn begin(&mut self, tsc: u64) {
        self.mark = tsc;
    }

    /// The vCPU's CPU goes to another, at this TSC.
    pub fn end(&mut self, tsc: u64) {
        self.cold = self.cold.wrapping_add(tsc.saturating_sub(self.mark));
        self.mark = tsc;
    }

    /// The sum of these times and another vCPU's.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self {
            mark: 0,
            guest: self.guest.wrapping_add(other.guest),
            hot: self.hot.wrapping_add(other.hot),
            cold: self.cold.wrapping_add(other.cold),
            exits: self.exits.wrapping_add(other.exits),
        }
    }

    /// Sum of the stamps, if each exit takes `unstamped` instructions that no stamp encloses,
    /// and `services` ticks were spent for the guest beside its vCPUs.
    #[must_use]
    pub fn sum(self, unstamped: u64, services: u64) -> StampedSum {
        let moved = self.exits.saturating_mul(unstamped).min(self.guest);
        StampedSum {
            guest: self.guest - moved,
            outside: self.hot.saturating_add(self.cold).saturating_add(moved),
            services,
        }
    }
}

/// Ticks in the guest and outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StampedSum {
    /// In the guest.
    pub guest: u64,
    /// In the hypervisor, on the vCPUs' time.
    pub outside: u64,
    /// In the hypervisor, beside the vCPUs' time.
    pub services: u64,
}

/// The share outside the guest, to a hundredth of a percent.
impl fmt::Display for StampedSum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let outside = u128::from(self.outside) + u128::from(self.services);
        let total = (outside + u128::from(self.guest)).max(1);
        let parts = (outside * 10_000 + total / 2) / total;
        write!(f, "outside {}.{:02} %", parts / 100, parts % 100)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;

    #[test]
    fn what_no_stamp_encloses_is_moved_over() {
        let one = Stamps { mark: 7, guest: 9_000, hot: 100, cold: 200, exits: 10 };
        let mut other = Stamps::default();
        other.begin(1000);
        other.end(1300);
        // On another CPU the TSC may be a little behind.
        other.end(1299);
        let sum = one.plus(other).sum(40, 400);
        assert_eq!(sum, StampedSum { guest: 8_600, outside: 1_000, services: 400 });
        assert_eq!(sum.to_string(), "outside 14.00 %");
        assert_eq!(one.sum(u64::MAX, 0).guest, 0);
        assert_eq!(Stamps::default().sum(1, 0).to_string(), "outside 0.00 %");
    }
}
