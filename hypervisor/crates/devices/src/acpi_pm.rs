//! ACPI's fixed power-management hardware: the PM1 event and control blocks,
//! the power-management timer, and the system control interrupt.
//!
//! The machine has no system-management mode: FADT.SMI_CMD is 0, the hardware
//! is always in ACPI mode and SCI_EN reads 1. There are no general-purpose
//! events. [`AcpiPm`]'s offsets count from the PM1a event block:
//!
//! | offset | bytes | register |
//! |---|---|---|
//! | 0 | 2 | PM1 status |
//! | 2 | 2 | PM1 enable |
//! | 4 | 2 | PM1 control |
//! | 8 | 4 | PM timer |
//!
//! The owner drives the SCI with [`AcpiPm::irq`] (level-triggered) and looks at
//! [`AcpiPm::take_sleep`] after a write. ACPI: "ACPI Hardware Specification",
//! "PM1 Event Grouping", "PM1 Control Grouping", "Power Management Timer".

use bitflags::bitflags;
use serde::{Deserialize, Serialize};
use state::Saved;
use x86defs::{Low, Width};

use crate::clock::Clock;
use crate::{AccessError, Device, PortDevice, RestoreError, Timed};
use x86defs::time::Nanos;

/// The PM timer's frequency in hertz.
const TIMER_FREQUENCY: u32 = 3_579_545;
const CLOCK: Clock = Clock::new(TIMER_FREQUENCY);

bitflags! {
    /// Bits of the PM1 status and enable registers.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    struct Events: u16 {
        const TIMER = 1 << 0;
        const GLOBAL = 1 << 5;
        const POWER_BUTTON = 1 << 8;
        /// The clock's alarm as a wake-up: it can be enabled, as drivers try
        /// whatever the FADT says, but there is no sleep to wake from and the
        /// status never shows.
        const RTC = 1 << 10;
    }

    /// PM1 control.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    struct Control: u16 {
        const SCI_ENABLE = 1 << 0;
        const BUS_MASTER_RELOAD = 1 << 1;
        const GLOBAL_RELEASE = 1 << 2;
        const SLEEP_TYPE = 7 << 10;
        const SLEEP_ENABLE = 1 << 13;
    }
}

/// Bits of PM1 control that keep what is written: SCI_EN is always 1, the
/// global release and the sleep enable bits always read 0.
const CONTROL_KEPT: Control = Control::BUS_MASTER_RELOAD.union(Control::SLEEP_TYPE);
const SLEEP_TYPE_SHIFT: u32 = 10;

/// How many bits the PM timer has: FADT's flag TMR_VAL_EXT tells the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum TimerWidth {
    /// 24 bits: wraps every 4.69 s.
    Bits24,
    /// 32 bits: wraps every 20 minutes.
    Bits32,
}

impl TimerWidth {
    /// The number of the highest bit; its change sets the timer's status.
    fn top_bit(self) -> u32 {
        match self {
            Self::Bits24 => 23,
            Self::Bits32 => 31,
        }
    }
}

/// The power-management registers. See the module's description.
#[derive(Clone, Debug)]
pub struct AcpiPm {
    width: TimerWidth,
    status: Events,
    enable: Events,
    control: Control,
    /// The sleep type of a request that the owner has not taken yet.
    sleep: Option<u8>,
    /// Moment for which the timer's status is right.
    seen: Nanos,
}

impl AcpiPm {
    /// Ports that the registers cover from the PM1a event block on.
    pub const PORT_COUNT: u16 = 12;

    /// Registers as after power-on.
    #[must_use]
    pub fn new(width: TimerWidth) -> Self {
        Self {
            width,
            status: Events::empty(),
            enable: Events::empty(),
            control: Control::empty(),
            sleep: None,
            seen: Nanos(0),
        }
    }

    /// The level of the system control interrupt.
    #[must_use]
    pub fn irq(&self) -> bool {
        self.status.intersects(self.enable)
    }

    /// Somebody presses the power button: the guest's operating system is
    /// asked to shut down.
    pub fn press_power_button(&mut self) {
        self.status |= Events::POWER_BUTTON;
    }

    /// The sleep state that the guest has asked for since this was called
    /// last: the value of SLP_TYP, 0 to 7, which the DSDT's `\_Sx` objects name.
    pub fn take_sleep(&mut self) -> Option<u8> {
        self.sleep.take()
    }

    /// The PM timer at `now`.
    fn timer(&self, now: Nanos) -> u32 {
        let ticks = CLOCK.ticks(now).low32();
        match self.width {
            TimerWidth::Bits24 => ticks & 0x00ff_ffff,
            TimerWidth::Bits32 => ticks,
        }
    }

    /// How often the timer's top bit has changed.
    fn toggles(&self, now: Nanos) -> u64 {
        CLOCK.ticks(now) >> self.width.top_bit()
    }

    /// All registers, as bytes.
    fn image(&self, now: Nanos) -> u128 {
        let control = self.control | Control::SCI_ENABLE;
        u128::from(self.status.bits())
            | u128::from(self.enable.bits()) << 16
            | u128::from(control.bits()) << 32
            | u128::from(self.timer(now)) << 64
    }

    fn write_byte(&mut self, offset: u16, value: u8) {
        let odd = offset & 1 != 0;
        let bits = if odd { u16::from(value) << 8 } else { value.into() };
        let lane = if odd { 0xff00_u16 } else { 0x00ff };
        match offset {
            // Writing ones clears them.
            0 | 1 => self.status.remove(Events::from_bits_truncate(bits)),
            2 | 3 => {
                let kept = self.enable.bits() & !lane;
                self.enable = Events::from_bits_truncate(kept | bits);
            }
            4 | 5 => {
                let kept = self.control.bits() & !lane;
                self.control = Control::from_bits_truncate(kept | bits) & CONTROL_KEPT;
                // The global release bit would call the firmware; there is none.
                if bits & Control::SLEEP_ENABLE.bits() != 0 {
                    let sleep_type = (self.control & Control::SLEEP_TYPE).bits();
                    self.sleep = Some(u32::from(sleep_type >> SLEEP_TYPE_SHIFT).low8());
                }
            }
            // Nothing there, and the timer, which is for reading.
            _ => {}
        }
    }
}

/// The width in bytes, if an access of it lies within the registers.
fn check(offset: u16, width: Width) -> Result<u16, AccessError> {
    let bytes = match width {
        Width::B1 => 1,
        Width::B2 => 2,
        Width::B4 => 4,
        Width::B8 => return Err(AccessError::Width),
    };
    match offset.checked_add(bytes) {
        Some(end) if end <= AcpiPm::PORT_COUNT => Ok(bytes),
        _ => Err(AccessError::NoRegister),
    }
}

impl PortDevice for AcpiPm {
    fn port_read(&mut self, offset: u16, width: Width, now: Nanos) -> Result<u32, AccessError> {
        check(offset, width)?;
        self.advance(now);
        let value = self.image(now) >> (offset * 8);
        Ok(width.truncate(value.low32().into()).low32())
    }

    fn port_write(
        &mut self,
        offset: u16,
        width: Width,
        value: u32,
        now: Nanos,
    ) -> Result<(), AccessError> {
        let count = check(offset, width)?;
        self.advance(now);
        for (at, byte) in (offset..offset + count).zip(value.to_le_bytes()) {
            self.write_byte(at, byte);
        }
        Ok(())
    }
}

impl Timed for AcpiPm {
    fn next_deadline(&self) -> Option<Nanos> {
        let wanted = self.enable.contains(Events::TIMER) && !self.status.contains(Events::TIMER);
        wanted.then(|| {
            let toggle = self.toggles(self.seen).saturating_add(1);
            CLOCK.when(toggle.saturating_mul(1 << self.width.top_bit()))
        })
    }

    fn advance(&mut self, now: Nanos) {
        if now > self.seen {
            if self.toggles(now) != self.toggles(self.seen) {
                self.status |= Events::TIMER;
            }
            self.seen = now;
        }
    }
}

/// The saved state of an [`AcpiPm`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AcpiPmState {
    width: TimerWidth,
    status: u16,
    enable: u16,
    control: u16,
    sleep: Option<u8>,
    seen: Nanos,
}

impl Saved for AcpiPmState {
    const NAME: &'static str = "acpi-pm";
    const VERSION: u16 = 1;
}

impl Device for AcpiPm {
    type State = AcpiPmState;

    fn save(&self) -> AcpiPmState {
        AcpiPmState {
            width: self.width,
            status: self.status.bits(),
            enable: self.enable.bits(),
            control: self.control.bits(),
            sleep: self.sleep,
            seen: self.seen,
        }
    }

    fn restore(&mut self, state: AcpiPmState) -> Result<(), RestoreError> {
        if state.width != self.width {
            return Err(RestoreError("ACPI: the PM timer's width differs"));
        }
        let control = Control::from_bits(state.control).filter(|c| CONTROL_KEPT.contains(*c));
        let (Some(status), Some(enable), Some(control)) =
            (Events::from_bits(state.status), Events::from_bits(state.enable), control)
        else {
            return Err(RestoreError("ACPI: impossible PM1 register"));
        };
        if state.sleep.is_some_and(|sleep| sleep > 7) {
            return Err(RestoreError("ACPI: impossible sleep type"));
        }
        let (sleep, seen) = (state.sleep, state.seen);
        *self = Self { width: self.width, status, enable, control, sleep, seen };
        Ok(())
    }

    fn reset(&mut self) {
        *self = Self { seen: self.seen, ..Self::new(self.width) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Subject, device_properties};

    const NOW: Nanos = Nanos(0);

    fn pm() -> AcpiPm {
        AcpiPm::new(TimerWidth::Bits32)
    }

    fn read(pm: &mut AcpiPm, offset: u16, width: Width) -> u32 {
        pm.port_read(offset, width, NOW).unwrap()
    }

    fn write(pm: &mut AcpiPm, offset: u16, width: Width, value: u32) {
        pm.port_write(offset, width, value, NOW).unwrap();
    }

    #[test]
    fn bounds() {
        let mut pm = pm();
        assert_eq!(pm.port_read(0, Width::B8, NOW), Err(AccessError::Width));
        assert_eq!(pm.port_read(9, Width::B4, NOW), Err(AccessError::NoRegister));
        assert_eq!(pm.port_read(u16::MAX, Width::B2, NOW), Err(AccessError::NoRegister));
        assert_eq!(pm.port_write(12, Width::B1, 0, NOW), Err(AccessError::NoRegister));
        assert!(pm.port_read(8, Width::B4, NOW).is_ok());
    }

    #[test]
    fn power_button_interrupts_when_enabled() {
        let mut pm = pm();
        pm.press_power_button();
        assert!(!pm.irq());
        assert_eq!(read(&mut pm, 0, Width::B2), 0x0100);
        write(&mut pm, 2, Width::B2, 0xffff);
        assert_eq!(read(&mut pm, 2, Width::B2), 0x0521, "only events that exist");
        assert!(pm.irq());
        write(&mut pm, 0, Width::B2, 0x00ff);
        assert!(pm.irq(), "zeros clear nothing");
        write(&mut pm, 1, Width::B1, 0x01);
        assert!(!pm.irq());
        assert_eq!(read(&mut pm, 0, Width::B4), 0x0521_0000);
        write(&mut pm, 0, Width::B4, 0x0020_0100);
        assert_eq!(read(&mut pm, 3, Width::B1), 0x00);
        assert_eq!(read(&mut pm, 2, Width::B1), 0x20);
    }

    #[test]
    fn always_in_acpi_mode() {
        let mut pm = pm();
        assert_eq!(read(&mut pm, 4, Width::B2), 0x0001);
        write(&mut pm, 4, Width::B2, 0x0006);
        assert_eq!(read(&mut pm, 4, Width::B2), 0x0003, "global release reads 0");
    }

    #[test]
    fn sleep_requests() {
        let mut pm = pm();
        write(&mut pm, 4, Width::B2, 5 << 10);
        assert_eq!(pm.take_sleep(), None, "the type alone does nothing");
        assert_eq!(read(&mut pm, 4, Width::B2), 0x1401);
        write(&mut pm, 4, Width::B2, 5 << 10 | 1 << 13);
        assert_eq!(read(&mut pm, 4, Width::B2), 0x1401, "sleep enable reads 0");
        assert_eq!(pm.take_sleep(), Some(5));
        assert_eq!(pm.take_sleep(), None);
        write(&mut pm, 5, Width::B1, 0x3c);
        assert_eq!(pm.take_sleep(), Some(7), "bytes count as well");
        write(&mut pm, 4, Width::B1, 0xff);
        assert_eq!(pm.take_sleep(), None);
    }

    #[test]
    fn timer_counts_exactly() {
        let day = Nanos(86_400 * x86defs::time::NANOS_PER_SECOND);
        let ticks = 86_400_u64 * 3_579_545;
        assert_eq!(pm().port_read(8, Width::B4, day).unwrap(), ticks.low32());
        assert_eq!(pm().port_read(8, Width::B2, day).unwrap(), ticks.low32() & 0xffff);
        let narrow = AcpiPm::new(TimerWidth::Bits24).port_read(8, Width::B4, day).unwrap();
        assert_eq!(narrow, ticks.low32() & 0xff_ffff);
    }

    #[test]
    fn timer_status_follows_the_top_bit() {
        for (width, bit) in [(TimerWidth::Bits24, 23), (TimerWidth::Bits32, 31)] {
            let mut pm = AcpiPm::new(width);
            assert_eq!(pm.next_deadline(), None);
            write(&mut pm, 2, Width::B2, 1);
            for n in 1..5 {
                let due = pm.next_deadline().unwrap();
                assert_eq!(due, CLOCK.when(n << bit));
                pm.advance(Nanos(due.0 - 1));
                assert!(!pm.irq());
                pm.advance(due);
                assert!(pm.irq());
                assert_eq!(pm.next_deadline(), None);
                pm.port_write(0, Width::B2, 1, due).unwrap();
                assert!(!pm.irq());
            }
        }
    }

    #[test]
    fn reset_clears_registers() {
        let mut pm = pm();
        pm.press_power_button();
        write(&mut pm, 2, Width::B4, 0x3c02_0100);
        assert!(pm.irq());
        pm.reset();
        assert!(!pm.irq());
        assert_eq!(pm.take_sleep(), None);
        assert_eq!(read(&mut pm, 0, Width::B4), 0);
        assert_eq!(read(&mut pm, 4, Width::B2), 1);
    }

    #[test]
    fn impossible_states_are_refused() {
        let mut pm = pm();
        let good = pm.save();
        for bad in [
            AcpiPmState { width: TimerWidth::Bits24, ..good.clone() },
            AcpiPmState { status: 2, ..good.clone() },
            AcpiPmState { enable: 0x8000, ..good.clone() },
            AcpiPmState { control: 0x2000, ..good.clone() },
            AcpiPmState { control: 0x0001, ..good.clone() },
            AcpiPmState { sleep: Some(8), ..good.clone() },
        ] {
            assert!(pm.restore(bad).is_err());
            assert_eq!(pm.save(), good);
        }
    }

    impl Subject for AcpiPm {
        fn fresh() -> Self {
            Self::new(TimerWidth::Bits24)
        }

        fn act(&mut self, what: u8, _value: u32, now: Nanos) -> u64 {
            match what % 3 {
                0 => self.press_power_button(),
                1 => return self.take_sleep().map_or(8, u64::from),
                _ => self.advance(now),
            }
            0
        }

        fn look(&self) -> u64 {
            self.next_deadline().map_or(u64::MAX, |due| due.0 << 1) ^ u64::from(self.irq())
        }
    }

    device_properties!(AcpiPm, 12);
}
