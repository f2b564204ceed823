//! The real-time clock: an MC146818 with its calendar, alarm, periodic and
//! update interrupts, and 114 bytes of battery-backed memory.
//!
//! [`Rtc`] is set once from the host's time and then runs in the guest's. The
//! registers hold what a chip's would, byte for byte, and are brought up to
//! date whenever somebody looks; so a guest that sets them has set the clock.
//! [`Rtc::irq`] is the level of ISA interrupt 8: high until register C is read.
//! Offset 0 is port 0x70 (index), offset 1 port 0x71 (data).
//!
//! Data sheet: "MC146818 Real-Time Clock Plus RAM", chapters "Registers",
//! "Update Cycle" and "Interrupts". The daylight-saving bit reads back and has
//! no effect, as in all PC chip sets of this century (Intel PCH data sheet,
//! "Register B", DSLSWS).

use alloc::vec::Vec;
use serde::{Deserialize, Serialize};
use state::Saved;
use x86defs::{Low, Width};

use crate::ports::PortRange;
use crate::{AccessError, Device, PortDevice, RestoreError, Timed};
use x86defs::time::{NANOS_PER_SECOND, Nanos};

mod alarm;
mod calendar;
#[cfg(test)]
mod tests;

use alarm::{Alarm, Field};
use calendar::{Date, Format, SECONDS_PER_DAY};

/// Bytes behind the index port, clock registers included.
const CMOS_SIZE: usize = 128;
/// How long the update-in-progress bit is set before the time changes:
/// 244 µs ahead of the update cycle and the cycle's 1,984 µs.
const UPDATE_IN_PROGRESS: u64 = 244_000 + 1_984_000;
/// The first update comes half a second after the divider is released.
const HALF_SECOND: u64 = NANOS_PER_SECOND / 2;
/// The crystal, in hertz: the periodic interrupt counts its clocks.
const CRYSTAL: u128 = 32_768;

/// Registers by index.
mod reg {
    pub(super) const SECONDS: u8 = 0;
    pub(super) const SECONDS_ALARM: u8 = 1;
    pub(super) const MINUTES: u8 = 2;
    pub(super) const MINUTES_ALARM: u8 = 3;
    pub(super) const HOURS: u8 = 4;
    pub(super) const HOURS_ALARM: u8 = 5;
    pub(super) const WEEKDAY: u8 = 6;
    pub(super) const DAY: u8 = 7;
    pub(super) const MONTH: u8 = 8;
    pub(super) const YEAR: u8 = 9;
    pub(super) const A: u8 = 0xa;
    pub(super) const B: u8 = 0xb;
    pub(super) const C: u8 = 0xc;
    pub(super) const D: u8 = 0xd;
    /// The century, as ACPI's FADT says.
    pub(super) const CENTURY: u8 = 0x32;
    /// Registers of the time and the date.
    pub(super) const TIME: [u8; 8] = [SECONDS, MINUTES, HOURS, WEEKDAY, DAY, MONTH, YEAR, CENTURY];
}

/// Register A.
mod a {
    pub(super) const UPDATE_IN_PROGRESS: u8 = 1 << 7;
    pub(super) const RATE: u8 = 0xf;
    pub(super) const DIVIDER_SHIFT: u8 = 4;
    /// The divider for a 32,768 Hz crystal, the only one that a PC has.
    pub(super) const DIVIDER_32768: u8 = 0b010;
}

/// Register B.
mod b {
    pub(super) const HOURS_24: u8 = 1 << 1;
    pub(super) const BINARY: u8 = 1 << 2;
    pub(super) const SQUARE_WAVE: u8 = 1 << 3;
    pub(super) const UPDATE: u8 = 1 << 4;
    pub(super) const ALARM: u8 = 1 << 5;
    pub(super) const PERIODIC: u8 = 1 << 6;
    pub(super) const SET: u8 = 1 << 7;
}

/// Register C: the flags stand where register B has their enable bits.
const INTERRUPT: u8 = 1 << 7;
/// Register D: the battery has not failed.
const VALID_RAM_AND_TIME: u8 = 1 << 7;

/// The clock. See the module's description.
#[derive(Clone, Debug)]
pub struct Rtc {
    /// All bytes but registers C and D, which are computed.
    cmos: [u8; CMOS_SIZE],
    index: u8,
    /// The periodic, alarm and update flags of register C.
    flags: u8,
    /// Time of an update, in nanoseconds modulo a second.
    phase: u64,
    /// Moment for which the registers are right.
    seen: Nanos,
    /// The guest has set the time.
    set_by_guest: bool,
}

impl Rtc {
    /// Ports of the clock in a PC.
    pub const PORTS: PortRange = PortRange::new(0x70, 2, 0);

    /// A clock that shows `unix_nanos`, nanoseconds since 1970-01-01 UTC, at `now`: the second
    /// that it shows began a fraction of one ago. It is set up as firmware leaves it: BCD,
    /// 24 hours, no interrupts, memory zero.
    #[must_use]
    pub fn new(unix_nanos: u64, now: Nanos) -> Self {
        let mut rtc = Self {
            cmos: [0; CMOS_SIZE],
            index: 0,
            flags: 0,
            phase: 0,
            seen: now,
            set_by_guest: false,
        };
        rtc.set(reg::A, a::DIVIDER_32768 << a::DIVIDER_SHIFT | 6);
        rtc.set(reg::B, b::HOURS_24);
        rtc.put(unix_nanos, now);
        rtc
    }

    /// Corrects the clock: the host has learned that it is `unix_nanos` at `now`. A guest that
    /// has set the clock keeps what it set.
    pub fn correct(&mut self, unix_nanos: u64, now: Nanos) {
        self.advance(now);
        if !self.set_by_guest && self.updates() {
            self.put(unix_nanos, now);
        }
    }

    fn put(&mut self, unix_nanos: u64, now: Nanos) {
        let (seconds, fraction) = (unix_nanos / NANOS_PER_SECOND, unix_nanos % NANOS_PER_SECOND);
        self.phase = (now.0 % NANOS_PER_SECOND + (NANOS_PER_SECOND - fraction)) % NANOS_PER_SECOND;
        self.seen = now;
        let days = seconds / SECONDS_PER_DAY;
        // The first day of Unix time was a Thursday, the fifth day of a week.
        self.set(reg::WEEKDAY, ((days + 4) % 7 + 1).low8());
        self.show(Date::from_unix_days(days), seconds % SECONDS_PER_DAY);
    }

    /// The level of interrupt line 8.
    #[must_use]
    pub fn irq(&self) -> bool {
        self.flags & self.get(reg::B) != 0
    }

    fn get(&self, index: u8) -> u8 {
        self.cmos.get(usize::from(index & 0x7f)).copied().unwrap_or(0)
    }

    fn set(&mut self, index: u8, value: u8) {
        if let Some(byte) = self.cmos.get_mut(usize::from(index & 0x7f)) {
            *byte = value;
        }
    }

    fn format(&self) -> Format {
        let b = self.get(reg::B);
        Format { binary: b & b::BINARY != 0, hours_24: b & b::HOURS_24 != 0 }
    }

    /// Whether the divider runs: any other setting resets it, or is for a
    /// crystal that is not there.
    fn divider_runs(&self) -> bool {
        self.get(reg::A) >> a::DIVIDER_SHIFT & 7 == a::DIVIDER_32768
    }

    /// Whether the time goes on.
    fn updates(&self) -> bool {
        self.divider_runs() && self.get(reg::B) & b::SET == 0
    }

    /// Writes a date and a second of the day into the registers, all but the
    /// day of the week.
    fn show(&mut self, date: Date, time: u64) {
        let format = self.format();
        self.set(reg::SECONDS, format.encode(time % 60));
        self.set(reg::MINUTES, format.encode(time / 60 % 60));
        self.set(reg::HOURS, format.encode_hour(time / 3_600));
        self.set(reg::DAY, format.encode(date.day));
        self.set(reg::MONTH, format.encode(date.month));
        self.set(reg::YEAR, format.encode(date.year % 100));
        self.set(reg::CENTURY, format.encode(date.year / 100 % 100));
    }

    /// The second of the day in the registers.
    fn time_of_day(&self) -> u64 {
        let format = self.format();
        let [seconds, minutes] =
            [reg::SECONDS, reg::MINUTES].map(|index| format.decode(self.get(index)));
        format.decode_hour(self.get(reg::HOURS)) * 3_600 + minutes * 60 + seconds
    }

    fn date(&self) -> Date {
        let format = self.format();
        let [day, month, year, century] = [reg::DAY, reg::MONTH, reg::YEAR, reg::CENTURY]
            .map(|index| format.decode(self.get(index)));
        Date { year: century * 100 + year, month, day }
    }

    fn alarm(&self) -> Alarm {
        let format = self.format();
        let field = |index, hour: bool| match self.get(index) {
            0xc0.. => Field::Any,
            value if hour => Field::Exactly(format.decode_hour(value)),
            value => Field::Exactly(format.decode(value)),
        };
        Alarm {
            hour: field(reg::HOURS_ALARM, true),
            minute: field(reg::MINUTES_ALARM, false),
            second: field(reg::SECONDS_ALARM, false),
        }
    }

    /// Lets `seconds` updates happen.
    fn update(&mut self, seconds: u64) {
        let time = self.time_of_day();
        let alarm = self.alarm().seconds_until(time % SECONDS_PER_DAY);
        if alarm.is_some_and(|after| after <= seconds) {
            self.flags |= b::ALARM;
        }
        self.flags |= b::UPDATE;
        let total = time.saturating_add(seconds);
        let days = total / SECONDS_PER_DAY;
        let date = Date::from_days(self.date().days().saturating_add(days));
        self.show(date, total % SECONDS_PER_DAY);
        if days > 0 {
            let weekday = u64::from(self.get(reg::WEEKDAY)).max(1) - 1;
            self.set(reg::WEEKDAY, ((weekday + days) % 7 + 1).low8());
        }
    }

    /// Nanoseconds on the divider's own scale, where updates fall on whole
    /// seconds.
    fn divider_time(&self, now: Nanos) -> u128 {
        u128::from(now.0) + u128::from(NANOS_PER_SECOND - self.phase)
    }

    /// Time of the guest at a time on the divider's scale.
    fn guest_time(&self, divider_time: u128) -> Nanos {
        let time = divider_time.saturating_sub(u128::from(NANOS_PER_SECOND - self.phase));
        Nanos(u64::try_from(time).unwrap_or(u64::MAX))
    }

    /// Updates of the time up to `now`, counted from some beginning.
    fn seconds(&self, now: Nanos) -> u128 {
        self.divider_time(now) / u128::from(NANOS_PER_SECOND)
    }

    /// Clocks of the crystal between periodic interrupts.
    fn period(&self) -> Option<u128> {
        match self.get(reg::A) & a::RATE {
            0 => None,
            // The two lowest settings wrap round to 256 and 128 Hz.
            rate @ (1 | 2) => Some(1 << (rate + 6)),
            rate => Some(1 << (rate - 1)),
        }
    }

    fn periods(&self, now: Nanos, period: u128) -> u128 {
        self.divider_time(now) * CRYSTAL / u128::from(NANOS_PER_SECOND) / period
    }

    fn update_in_progress(&self, now: Nanos) -> bool {
        let into_second = self.divider_time(now) % u128::from(NANOS_PER_SECOND);
        self.updates() && into_second >= u128::from(NANOS_PER_SECOND - UPDATE_IN_PROGRESS)
    }

    fn write_a(&mut self, value: u8, now: Nanos) {
        let ran = self.divider_runs();
        self.set(reg::A, value & !a::UPDATE_IN_PROGRESS);
        if self.divider_runs() && !ran {
            self.phase = (now.0 % NANOS_PER_SECOND + HALF_SECOND) % NANOS_PER_SECOND;
            self.set_by_guest = true;
        }
    }

    fn write_b(&mut self, value: u8) {
        // Setting SET takes the update interrupt's enable bit away.
        let lost = if value & b::SET != 0 { b::UPDATE } else { 0 };
        self.set(reg::B, value & !lost);
    }

    fn read_c(&mut self) -> u8 {
        let interrupt = if self.irq() { INTERRUPT } else { 0 };
        core::mem::take(&mut self.flags) | interrupt
    }
}

impl PortDevice for Rtc {
    fn port_read(&mut self, offset: u16, width: Width, now: Nanos) -> Result<u32, AccessError> {
        if width != Width::B1 {
            return Err(AccessError::Width);
        }
        if offset != 1 {
            // The index can't be read back.
            return Err(AccessError::NoRegister);
        }
        self.advance(now);
        let value = match self.index {
            reg::A if self.update_in_progress(now) => self.get(reg::A) | a::UPDATE_IN_PROGRESS,
            reg::C => self.read_c(),
            reg::D => VALID_RAM_AND_TIME,
            index => self.get(index),
        };
        Ok(value.into())
    }

    fn port_write(
        &mut self,
        offset: u16,
        width: Width,
        value: u32,
        now: Nanos,
    ) -> Result<(), AccessError> {
        if width != Width::B1 {
            return Err(AccessError::Width);
        }
        let value = value.low8();
        match offset {
            // Bit 7 masks NMIs: the machine's devices raise none.
            0 => self.index = value & 0x7f,
            1 => {
                self.advance(now);
                match self.index {
                    reg::A => self.write_a(value, now),
                    reg::B => self.write_b(value),
                    // These registers are for reading only.
                    reg::C | reg::D => {}
                    index => {
                        self.set_by_guest |= reg::TIME.contains(&index);
                        self.set(index, value);
                    }
                }
            }
            _ => return Err(AccessError::NoRegister),
        }
        Ok(())
    }
}

impl Timed for Rtc {
    /// The next moment at which an enabled interrupt raises the line.
    fn next_deadline(&self) -> Option<Nanos> {
        let enabled = self.get(reg::B);
        if self.irq() {
            // The line is up already, and register C tells the rest.
            return None;
        }
        let mut next = None;
        let mut consider = |time: u128| {
            next = Some(next.map_or(time, |earlier: u128| earlier.min(time)));
        };
        let second = u128::from(NANOS_PER_SECOND);
        if self.updates() {
            let update = self.seconds(self.seen) + 1;
            if enabled & b::UPDATE != 0 {
                consider(update * second);
            }
            if enabled & b::ALARM != 0
                && let Some(after) =
                    self.alarm().seconds_until(self.time_of_day() % SECONDS_PER_DAY)
            {
                consider((update - 1 + u128::from(after)) * second);
            }
        }
        if enabled & b::PERIODIC != 0
            && self.divider_runs()
            && let Some(period) = self.period()
        {
            let clocks = (self.periods(self.seen, period) + 1) * period;
            consider((clocks * second).div_ceil(CRYSTAL));
        }
        next.map(|time| self.guest_time(time))
    }

    fn advance(&mut self, now: Nanos) {
        if now <= self.seen {
            return;
        }
        if self.updates() {
            let seconds = self.seconds(now).saturating_sub(self.seconds(self.seen));
            if let Ok(seconds @ 1..) = u64::try_from(seconds) {
                self.update(seconds);
            }
        }
        if self.divider_runs()
            && let Some(period) = self.period()
            && self.periods(now, period) > self.periods(self.seen, period)
        {
            self.flags |= b::PERIODIC;
        }
        self.seen = now;
    }
}

/// The saved state of an [`Rtc`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RtcState {
    cmos: Vec<u8>,
    index: u8,
    flags: u8,
    phase: u64,
    seen: Nanos,
    set_by_guest: bool,
}

impl Saved for RtcState {
    const NAME: &'static str = "rtc";
    const VERSION: u16 = 1;
}

impl Device for Rtc {
    type State = RtcState;

    fn save(&self) -> RtcState {
        RtcState {
            cmos: self.cmos.to_vec(),
            index: self.index,
            flags: self.flags,
            phase: self.phase,
            seen: self.seen,
            set_by_guest: self.set_by_guest,
        }
    }

    fn restore(&mut self, state: RtcState) -> Result<(), RestoreError> {
        let RtcState { cmos, index, flags, phase, seen, set_by_guest } = state;
        let cmos: [u8; CMOS_SIZE] =
            cmos.try_into().map_err(|_| RestoreError("RTC: the memory has not 128 bytes"))?;
        if index > 0x7f || flags & !(b::PERIODIC | b::ALARM | b::UPDATE) != 0 {
            return Err(RestoreError("RTC: impossible index or flags"));
        }
        if phase >= NANOS_PER_SECOND {
            return Err(RestoreError("RTC: the phase is not within a second"));
        }
        *self = Self { cmos, index, flags, phase, seen, set_by_guest };
        Ok(())
    }

    /// The reset pin clears interrupts, not the time or the memory, which the
    /// battery keeps.
    fn reset(&mut self) {
        let enabled = b::PERIODIC | b::ALARM | b::UPDATE | b::SQUARE_WAVE;
        self.set(reg::B, self.get(reg::B) & !enabled);
        self.flags = 0;
        self.index = 0;
    }
}
