//! The APIC timer (SDM: "APIC Timer", "TSC-Deadline Mode").
//!
//! The count is not kept but computed: `expiry_ns` is when it reaches zero, on
//! the VM's nanosecond line, so a periodic timer does not drift. The bus clock
//! is 1 GHz. A masked entry counts on and only raises nothing.

use super::Lapic;
use super::message::Trigger;
use super::reg::{LvtEntry, TimerMode};
use super::state::NEVER_NS;
use super::ticks::Ticks;

/// A periodic timer raises at most one interrupt in this many nanoseconds, so
/// that a guest cannot flood its CPU; the count itself is truthful, and
/// periods in between are merged as a busy CPU would merge them.
pub(super) const MIN_PERIOD_NS: u64 = 20_000;

/// Timer mode and mask in the timer's entry.
const TIMER_MODE_AND_MASK: u32 =
    LvtEntry::new().with_timer_mode(TimerMode::Reserved).with_masked(true).into_bits();
/// An entry in TSC-deadline mode that is not masked.
const TSC_DEADLINE_OPEN: u32 = LvtEntry::new().with_timer_mode(TimerMode::TscDeadline).into_bits();
/// More ticks than any machine runs for: decades at 10 GHz.
const FAR_AHEAD: u64 = 1 << 62;

impl Lapic {
    #[inline(always)]
    pub(super) const fn timer_lvt(&self) -> LvtEntry {
        let [timer, ..] = self.s.lvt;
        timer
    }

    /// Time at which [`advance`](Self::advance) must be called, if ever: the timer would
    /// raise an interrupt then.
    #[inline(always)]
    #[must_use]
    pub const fn deadline(&self) -> Option<Ticks> {
        if self.s.deadline.0 == u64::MAX || self.timer_lvt().masked() {
            None
        } else {
            Some(self.s.deadline)
        }
    }

    /// Time has come to `now`. Returns whether the timer requested its interrupt.
    #[inline(always)]
    pub fn advance(&mut self, now: Ticks) -> bool {
        if now.0 < self.s.deadline.0 { false } else { self.fire(now) }
    }

    /// The guest's time-stamp counter now.
    #[inline(always)]
    #[must_use]
    pub(super) const fn guest_tsc(&self, now: Ticks) -> u64 {
        now.0.wrapping_add(self.s.tsc_offset)
    }

    /// WRMSR to IA32_TSC_DEADLINE. 0 disarms; a value that is not in the future
    /// fires at once; outside TSC-deadline mode the write is ignored. Look at
    /// [`deadline`](Self::deadline) afterwards.
    #[inline(always)]
    pub fn write_tsc_deadline(&mut self, guest_value: u64, now: Ticks) {
        if !matches!(self.timer_lvt().timer_mode(), TimerMode::TscDeadline) {
            return;
        }
        // Compared as the guest's counter, so that an offset of either sign is right.
        let ahead = guest_value.saturating_sub(self.guest_tsc(now));
        if ahead == 0 || now.0 >= self.s.deadline.0 {
            self.write_tsc_deadline_slowly(guest_value, now);
        } else {
            self.s.tsc_deadline = guest_value;
            self.s.deadline = Ticks(now.0.saturating_add(ahead));
        }
    }

    /// Ticks by which a write of `guest_value` to IA32_TSC_DEADLINE would put the timer's
    /// interrupt ahead. `None` if the write does more or less than that: if it disarms or
    /// fires at once, or if the timer is masked or in another mode, or has fired and that
    /// is still to be noticed.
    #[inline(always)]
    #[must_use]
    pub fn tsc_deadline_ahead(&self, guest_value: u64, now: Ticks) -> Option<u64> {
        let ahead = guest_value.wrapping_sub(self.guest_tsc(now));
        // Mode and mask in one comparison. A deadline that is not ahead is far ahead modulo
        // 2^64, and one that is so far ahead can be left to the general code.
        let simple = self.timer_lvt().into_bits() & TIMER_MODE_AND_MASK == TSC_DEADLINE_OPEN;
        (simple && ahead.wrapping_sub(1) < FAR_AHEAD && now.0 < self.s.deadline.0).then_some(ahead)
    }

    /// Does the write for which [`tsc_deadline_ahead`](Self::tsc_deadline_ahead) has
    /// just told `ahead`.
    #[inline(always)]
    pub fn move_tsc_deadline(&mut self, guest_value: u64, now: Ticks, ahead: u64) {
        self.s.tsc_deadline = guest_value;
        // A VM's ticks stay below 2^63: no overflow.
        self.s.deadline = Ticks(now.0.wrapping_add(ahead));
    }

    /// A write that disarms or fires, or finds that the one before has to.
    #[cold]
    #[inline(never)]
    fn write_tsc_deadline_slowly(&mut self, guest_value: u64, now: Ticks) {
        // An interrupt that was due before the write has happened.
        self.advance(now);
        self.arm_tsc_deadline(guest_value, now);
    }

    fn arm_tsc_deadline(&mut self, guest_value: u64, now: Ticks) {
        self.s.tsc_deadline = guest_value;
        if guest_value == 0 {
            self.s.deadline = Ticks::NEVER;
            return;
        }
        let ahead = guest_value.saturating_sub(self.guest_tsc(now));
        self.s.deadline = Ticks(now.0.saturating_add(ahead));
        if ahead == 0 {
            self.fire(now);
        }
    }

    /// RDMSR of IA32_TSC_DEADLINE: 0 when it is not armed, or has fired.
    #[inline]
    #[must_use]
    pub(super) const fn tsc_deadline(&self, now: Ticks) -> u64 {
        if now.0 >= self.s.deadline.0 { 0 } else { self.s.tsc_deadline }
    }

    /// The guest's TSC is `now + offset` from now on. An armed deadline keeps
    /// its value in terms of the guest's TSC.
    pub fn set_tsc_offset(&mut self, offset: u64, now: Ticks) {
        self.advance(now);
        self.s.tsc_offset = offset;
        if self.s.tsc_deadline != 0 {
            self.arm_tsc_deadline(self.s.tsc_deadline, now);
        }
    }

    /// Does what is due when the deadline has passed.
    #[cold]
    fn fire(&mut self, now: Ticks) -> bool {
        let entry = self.timer_lvt();
        match entry.timer_mode() {
            TimerMode::Periodic => {
                let now_ns = self.ratio.to_nanos(now);
                let period = self.period_ns().max(1);
                let late = now_ns.saturating_sub(self.s.expiry_ns);
                self.s.expiry_ns = self
                    .s
                    .expiry_ns
                    .saturating_add((late / period).saturating_add(1).saturating_mul(period));
                let next = if period >= MIN_PERIOD_NS {
                    self.s.expiry_ns
                } else {
                    now_ns.saturating_add(MIN_PERIOD_NS)
                };
                self.s.deadline = self.ratio.to_ticks(next);
            }
            TimerMode::OneShot | TimerMode::TscDeadline | TimerMode::Reserved => self.disarm(),
        }
        !entry.masked() && self.accept(entry.vector(), Trigger::Edge)
    }

    const fn disarm(&mut self) {
        self.s.deadline = Ticks::NEVER;
        self.s.tsc_deadline = 0;
        self.s.expiry_ns = NEVER_NS;
    }

    /// How far the divide configuration shifts a count, 0 to 7.
    const fn divide_shift(&self) -> u32 {
        let divide = self.s.divide as u32;
        ((divide >> 1 & 4 | divide & 3) + 1) & 7
    }

    const fn period_ns(&self) -> u64 {
        (self.s.initial_count as u64) << self.divide_shift()
    }

    /// The count now.
    pub(super) fn current_count(&self, now: Ticks) -> u32 {
        if self.s.expiry_ns == NEVER_NS {
            return 0;
        }
        let now_ns = self.ratio.to_nanos(now);
        let left = if now_ns < self.s.expiry_ns {
            self.s.expiry_ns - now_ns
        } else {
            match (self.timer_lvt().timer_mode(), self.period_ns()) {
                (TimerMode::Periodic, period @ 1..) => {
                    period - (now_ns - self.s.expiry_ns) % period
                }
                _ => 0,
            }
        };
        let shift = self.divide_shift();
        u32::try_from(left.saturating_add((1 << shift) - 1) >> shift).unwrap_or(u32::MAX)
    }

    /// Makes the count `count` at `now`, with the divisor in force.
    fn start(&mut self, count: u32, now: Ticks) {
        if count == 0 {
            self.disarm();
            return;
        }
        let left = u64::from(count) << self.divide_shift();
        self.s.expiry_ns = self.ratio.to_nanos(now).saturating_add(left);
        self.s.deadline = self.ratio.to_ticks(self.s.expiry_ns);
    }

    /// A write to the initial count: it starts the count, or stops it with 0.
    pub(super) fn write_initial_count(&mut self, count: u32, now: Ticks) {
        self.advance(now);
        if self.timer_lvt().timer_mode().counts() {
            self.s.initial_count = count;
            self.start(count, now);
        }
    }

    /// A write to the divide configuration: the count goes on from where it is.
    pub(super) fn write_divide(&mut self, divide: u8, now: Ticks) {
        self.advance(now);
        let count = self.current_count(now);
        self.s.divide = divide;
        if self.s.expiry_ns != NEVER_NS {
            self.start(count, now);
        }
    }

    /// A write to the timer's entry. A change to or from TSC-deadline mode
    /// disarms; between one-shot and periodic the count goes on.
    pub(super) fn write_timer_lvt(&mut self, entry: LvtEntry, now: Ticks) {
        self.advance(now);
        let (old, new) = (self.timer_lvt().timer_mode(), entry.timer_mode());
        let count = self.current_count(now);
        let [timer, ..] = &mut self.s.lvt;
        *timer = entry;
        if old == new {
            return;
        }
        if !(old.counts() && new.counts()) {
            self.disarm();
            self.s.initial_count = 0;
        } else if self.s.expiry_ns != NEVER_NS {
            self.start(count, now);
        }
    }
}
