//! The one deadline of a CPU while a vCPU runs on it: the least of the local
//! APIC's timer and everything else that is due. The loop sets it before each
//! entry; the hot handler moves it when the guest programs its timer.

/// The timer that ends a guest's turn at its deadline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TimerKind {
    /// The timer of the machine's local APIC, through its interrupt.
    Machine,
    /// A timer of the backend's own that counts while the guest runs: once in
    /// 2^`shift` ticks of the TSC.
    Own {
        /// 0 to 31.
        shift: u8,
    },
}

/// A deadline that never comes.
pub const NEVER: u64 = u64::MAX;

/// The deadline of the CPU that runs a vCPU. All times are the host's TSC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HotTimer {
    /// The timer that is armed.
    pub kind: TimerKind,
    /// Guest ticks less the host's TSC, modulo 2^64.
    pub offset: u64,
    /// When something but the local APIC's timer is due.
    others: u64,
    /// The deadline that the timer is armed for.
    pub armed: u64,
    /// Least time of the guest behind an entry, whatever is due: a device could ring so fast that
    /// the guest never went on.
    least: u64,
    /// Tick at which the guest has had that time. It is set at each entry and not at each write of
    /// the guest's timer: a guest that wrote its timer again and again would push everything that
    /// is due before itself.
    floor: u64,
    /// Ticks after which a wake-up that is owed must be made.
    debt: u64,
}

impl HotTimer {
    /// A timer that is not armed, of a guest that has `least` ticks behind each entry, and whose
    /// vCPUs owe devices a wake-up for `debt` ticks at the most.
    #[must_use]
    pub const fn new(least: u64, debt: u64) -> Self {
        Self {
            kind: TimerKind::Machine,
            offset: 0,
            others: NEVER,
            armed: NEVER,
            least,
            floor: 0,
            debt,
        }
    }

    /// Whether what is owed since the tick `since` is to be paid at `now`, as the vCPU is out of
    /// its guest anyway: a burst of marks is over then.
    #[must_use]
    pub const fn pays(&self, since: u64, now: u64) -> bool {
        now.wrapping_sub(since) >= self.least
    }

    /// A device is owed a wake-up from `now` on. Returns whether the deadline has moved.
    #[inline]
    pub fn owes_since(&mut self, now: u64) -> bool {
        self.others = self.others.min(now.wrapping_add(self.debt));
        let at = self.armed.min(self.others).max(self.floor);
        core::mem::replace(&mut self.armed, at) != at
    }

    /// The loop enters the guest, `now` being the TSC: something but the local APIC's timer
    /// is due at `others`, that timer at `due`.
    pub fn enter(&mut self, others: u64, due: u64, now: u64) {
        self.others = others;
        // A TSC does not come near 2^64.
        self.floor = now.wrapping_add(self.least);
        self.set(due);
    }

    /// The local APIC's timer is due at `due`: the deadline is that or the earlier one of the
    /// others. Returns whether it has moved.
    #[inline(always)]
    pub fn set(&mut self, due: u64) -> bool {
        let at = due.min(self.others).max(self.floor);
        core::mem::replace(&mut self.armed, at) != at
    }

    /// The number that a timer of [`TimerKind::Own`] counts down from, `now` being the TSC: the
    /// timer ends at the deadline or less than one count after it.
    ///
    /// A deadline that has passed gives 0, which ends the turn at the entry. One
    /// count more might never end: it is counted only when a bit of the TSC
    /// changes while the guest runs, and a guest that polls a device in step
    /// with that is always elsewhere then.
    #[inline(always)]
    #[must_use]
    pub const fn counts(&self, shift: u8, now: u64) -> u32 {
        if self.armed <= now {
            return 0;
        }
        let left = (self.armed - now).wrapping_shr(shift as u32);
        #[expect(clippy::cast_possible_truncation, reason = "it was compared")]
        {
            if left < u32::MAX as u64 { left as u32 + 1 } else { u32::MAX }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_is_armed_but_not_too_near() {
        let mut timer = HotTimer::new(100, 250);
        timer.enter(5000, 4000, 1000);
        assert_eq!(timer.armed, 4000);
        assert!(!timer.set(4000));
        assert!(timer.set(NEVER));
        assert_eq!(timer.armed, 5000);
        assert!(timer.set(1001));
        assert_eq!(timer.armed, 1100);
        timer.enter(5000, 3, 2000);
        assert_eq!(timer.armed, 2100, "long past");
        timer.enter(2050, NEVER, 2000);
        assert_eq!(timer.armed, 2100, "the others', too");
    }

    #[test]
    fn a_debt_ends_the_turn() {
        let mut timer = HotTimer::new(100, 250);
        timer.enter(5000, 4000, 1000);
        assert!(timer.owes_since(1010));
        assert_eq!(timer.armed, 1260);
        assert!(!timer.owes_since(1020), "the older one counts");
        // The guest's own timer, set anew, postpones nothing.
        assert!(!timer.set(3000));
        assert!(timer.set(1200));
        assert!(!timer.owes_since(1030));
        assert_eq!(timer.armed, 1200);
        assert!(!timer.pays(1010, 1109) && timer.pays(1010, 1110));
        timer.enter(5000, NEVER, 2000);
        assert_eq!(timer.armed, 5000, "paid");
    }

    #[test]
    fn who_writes_its_timer_all_the_time_postpones_nothing() {
        let mut timer = HotTimer::new(100, 250);
        timer.enter(5000, NEVER, 1000);
        for tsc in 4850..5200 {
            timer.set(tsc + 1_000_000);
            assert_eq!(timer.armed, 5000, "at {tsc}");
        }
    }

    #[test]
    fn counts_end_at_the_deadline_or_just_after() {
        let mut timer = HotTimer::new(0, 0);
        for (shift, left) in [(0, 1), (0, 77), (5, 1), (5, 31), (5, 32), (5, 1_000_001)] {
            timer.set(1000 + left);
            let ticks = u64::from(timer.counts(shift, 1000)) << shift;
            assert!(ticks > left && ticks <= left + (1 << shift), "{left} >> {shift}");
        }
        timer.set(NEVER);
        assert_eq!(timer.counts(5, 0), u32::MAX);
        timer.set(1000);
        for tsc in [1000, 1001, NEVER] {
            assert_eq!(timer.counts(5, tsc), 0, "it must not wait for a count");
        }
    }
}
