//! [`LapicState`]: all that a guest could notice of a local APIC; reset, INIT,
//! save and restore.

use super::Lapic;
use super::base::{APIC_BASE_ADDRESS, is_register, register};
use super::bitmap::VectorSet;
use super::message::{ApicIdentity, ApicMode};
use super::reg::{Esr, IcrLow, Lvt, LvtEntry, Reg, Svr};
use super::ticks::Ticks;
use crate::{Device, RestoreError};
use serde::{Deserialize, Serialize};
use state::Saved;

/// The timer does not count.
pub(super) const NEVER_NS: u64 = u64::MAX;

/// The state of a local APIC. Times are the VM's own; where the new host's TSC
/// runs at another rate, the VM's ticks must be scaled before they are used.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LapicState {
    pub(super) irr: VectorSet,
    pub(super) isr: VectorSet,
    pub(super) tmr: VectorSet,
    pub(super) tpr: u8,
    /// The highest vector in service; 0 for none.
    pub(super) isr_top: u8,
    pub(super) svr: Svr,
    pub(super) lvt: [LvtEntry; 6],
    /// Time at which the timer next acts.
    pub(super) deadline: Ticks,
    /// Value that the guest wrote to IA32_TSC_DEADLINE; 0 when disarmed.
    pub(super) tsc_deadline: u64,
    /// The guest's TSC less the VM's ticks, modulo 2^64.
    pub(super) tsc_offset: u64,
    /// Time at which the count reaches zero, in nanoseconds of VM time.
    pub(super) expiry_ns: u64,
    pub(super) initial_count: u32,
    pub(super) divide: u8,
    pub(super) id: u32,
    pub(super) bootstrap: bool,
    pub(super) mode: ApicMode,
    /// IA32_APIC_BASE as it reads: the registers' address in xAPIC mode, and `mode` and
    /// `bootstrap`.
    pub(super) apic_base: u64,
    /// xAPIC mode's logical destination; x2APIC mode derives its own.
    pub(super) ldr: u32,
    pub(super) dfr: u32,
    pub(super) icr_low: u32,
    pub(super) icr_high: u32,
    pub(super) esr: Esr,
    /// Errors since the last write to ESR.
    pub(super) esr_logged: Esr,
    /// Levels of the pins, a bit each.
    pub(super) lint_asserted: u8,
}

impl Saved for LapicState {
    const NAME: &'static str = "lapic";
    const VERSION: u16 = 1;
}

impl LapicState {
    /// After power-up (SDM: "Local APIC State After Power-Up or Reset").
    pub(super) const fn power_up(id: u32, bootstrap: bool) -> Self {
        Self {
            irr: VectorSet::EMPTY,
            isr: VectorSet::EMPTY,
            tmr: VectorSet::EMPTY,
            tpr: 0,
            isr_top: 0,
            svr: Svr::RESET,
            lvt: [LvtEntry::RESET; 6],
            deadline: Ticks::NEVER,
            tsc_deadline: 0,
            tsc_offset: 0,
            expiry_ns: NEVER_NS,
            initial_count: 0,
            divide: 0,
            id,
            bootstrap,
            mode: ApicMode::XApic,
            apic_base: register(APIC_BASE_ADDRESS, ApicMode::XApic, bootstrap),
            ldr: 0,
            dfr: u32::MAX,
            icr_low: 0,
            icr_high: 0,
            esr: Esr::empty(),
            esr_logged: Esr::empty(),
            lint_asserted: 0,
        }
    }

    /// Refuses a state that can't have come from [`Lapic::save`].
    fn check(&self) -> Result<(), RestoreError> {
        let require = |holds: bool, what| if holds { Ok(()) } else { Err(RestoreError(what)) };
        let sets = [self.irr, self.isr, self.tmr];
        require(!sets.iter().any(VectorSet::has_illegal), "local APIC: a vector below 16")?;
        require(self.isr_top == self.isr.highest_or_zero(), "local APIC: highest in service")?;
        require(self.svr.into_bits() & !Svr::WRITABLE == 0, "local APIC: spurious vector")?;
        for (number, entry) in self.lvt.iter().enumerate() {
            let reg = Reg(Reg::LVT_FIRST.0.wrapping_add(u8::try_from(number).unwrap_or(0)));
            let writable = Lvt::from_reg(reg).map_or(0, Lvt::writable);
            let allowed = writable | LvtEntry::REMOTE_IRR;
            require(entry.into_bits() & !allowed == 0, "local APIC: vector table")?;
            require(self.svr.enabled() || entry.masked(), "local APIC: disabled, not masked")?;
        }
        require(self.divide & !super::registers::DIVIDE_WRITABLE == 0, "local APIC: divisor")?;
        require(self.icr_low & !IcrLow::WRITABLE == 0, "local APIC: command")?;
        require(self.dfr | 0x0fff_ffff == self.dfr, "local APIC: destination format")?;
        require(self.ldr & 0x00ff_ffff == 0, "local APIC: logical destination")?;
        require(Esr::all().contains(self.esr | self.esr_logged), "local APIC: errors")?;
        require(self.lint_asserted & !3 == 0, "local APIC: pins")?;
        require(is_register(self.apic_base, self.mode, self.bootstrap), "local APIC: base")?;
        require(
            self.mode != ApicMode::Disabled
                || self.irr.is_empty() && self.isr.is_empty() && !self.svr.enabled(),
            "local APIC: switched off with interrupts",
        )
    }
}

impl Lapic {
    /// INIT reached the CPU: as after power-up, but for the identity, the mode and
    /// the base (SDM: "Local APIC State After It Receives an INIT-Deassert IPI",
    /// "x2APIC State Transitions").
    pub fn init(&mut self) {
        let (mode, apic_base) = (self.s.mode, self.s.apic_base);
        self.clear();
        self.s.mode = mode;
        self.s.apic_base = apic_base;
    }

    /// As after power-up, but for what is not the APIC's own: the TSC's offset
    /// and the levels at the pins.
    pub(super) fn clear(&mut self) {
        let tsc_offset = self.s.tsc_offset;
        let lint_asserted = self.s.lint_asserted;
        self.s = LapicState::power_up(self.s.id, self.s.bootstrap);
        self.shown = false;
        self.s.tsc_offset = tsc_offset;
        self.s.lint_asserted = lint_asserted;
    }

    /// The identity register as it reads.
    pub(super) const fn id_register(&self) -> u32 {
        match self.s.mode {
            ApicMode::X2Apic => self.s.id,
            ApicMode::XApic | ApicMode::Disabled => self.s.id << 24,
        }
    }

    /// The logical destination register as it reads.
    pub(super) const fn ldr(&self) -> u32 {
        match self.s.mode {
            ApicMode::X2Apic => ApicIdentity::x2apic_ldr(self.s.id),
            ApicMode::XApic | ApicMode::Disabled => self.s.ldr,
        }
    }
}

impl Device for Lapic {
    type State = LapicState;

    fn save(&self) -> LapicState {
        self.s.clone()
    }

    /// The state must belong to an APIC with this one's identity and role.
    fn restore(&mut self, state: LapicState) -> Result<(), RestoreError> {
        if state.id != self.s.id || state.bootstrap != self.s.bootstrap {
            return Err(RestoreError("local APIC: another CPU's state"));
        }
        state.check()?;
        self.s = state;
        self.shown = false;
        Ok(())
    }

    /// Power-up state. Identity, role, TSC offset and pin levels stay.
    fn reset(&mut self) {
        self.clear();
    }
}
