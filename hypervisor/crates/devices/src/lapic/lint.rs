//! Interrupts of the pins LINT0 and LINT1 (SDM: "Local Vector Table"). The thermal
//! sensor and performance counters have entries in the table, but never interrupt.

use super::Lapic;
use super::message::{ApicMode, DeliveryMode, Trigger};
use super::reg::{Lvt, LvtEntry};
use x86defs::Vector;

/// A pin of the local APIC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Lint {
    /// Wired to the 8259s' INTR output.
    Lint0 = 1 << 0,
    /// Wired to NMI.
    Lint1 = 1 << 1,
}

impl Lint {
    const fn lvt(self) -> Lvt {
        match self {
            Self::Lint0 => Lvt::Lint0,
            Self::Lint1 => Lvt::Lint1,
        }
    }
}

/// Effect of a local source on the CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum LintEvent {
    /// No effect.
    None,
    /// A vector is requested in the APIC.
    Pending,
    /// Deliver an NMI.
    Nmi,
    /// Deliver an SMI.
    Smi,
    /// Deliver an INIT.
    Init,
}

impl Lapic {
    /// Whether the CPU takes interrupts of the 8259s: LINT0 is open and in
    /// mode ExtINT, or there is no APIC in between.
    #[inline]
    #[must_use]
    pub fn accepts_pic(&self) -> bool {
        let [.., lint0, _, _] = self.s.lvt;
        matches!(self.s.mode, ApicMode::Disabled)
            || !lint0.masked() && matches!(lint0.mode(), DeliveryMode::ExtInt)
    }

    /// Whether `pin` is asserted. Setting that anew does nothing: the local APIC looks at a level
    /// again by itself when its interrupt ends or its entry is written.
    #[inline]
    #[must_use]
    pub const fn is_asserted(&self, pin: Lint) -> bool {
        self.s.lint_asserted & pin as u8 != 0
    }

    /// Sets whether `pin` is asserted. A pin in mode ExtINT causes no event:
    /// see [`accepts_pic`](Self::accepts_pic).
    pub fn set_lint(&mut self, pin: Lint, asserted: bool) -> LintEvent {
        let was = self.s.lint_asserted & pin as u8 != 0;
        if asserted {
            self.s.lint_asserted |= pin as u8;
        } else {
            self.s.lint_asserted &= !(pin as u8);
        }
        let entry = self.lvt(pin.lvt());
        if Self::is_level(pin, entry) {
            self.refresh_level(pin)
        } else if asserted && !was {
            self.signal(entry)
        } else {
            LintEvent::None
        }
    }

    /// An edge at `entry`.
    fn signal(&mut self, entry: LvtEntry) -> LintEvent {
        if entry.masked() || matches!(self.s.mode, ApicMode::Disabled) {
            return LintEvent::None;
        }
        match entry.mode() {
            DeliveryMode::Fixed => {
                if self.accept(entry.vector(), Trigger::Edge) {
                    LintEvent::Pending
                } else {
                    LintEvent::None
                }
            }
            DeliveryMode::Nmi => LintEvent::Nmi,
            DeliveryMode::Smi => LintEvent::Smi,
            DeliveryMode::Init => LintEvent::Init,
            DeliveryMode::ExtInt
            | DeliveryMode::LowestPriority
            | DeliveryMode::Reserved
            | DeliveryMode::StartUp => LintEvent::None,
        }
    }

    /// Only LINT0 in fixed mode can be level-triggered.
    fn is_level(pin: Lint, entry: LvtEntry) -> bool {
        matches!(pin, Lint::Lint0) && entry.level() && matches!(entry.mode(), DeliveryMode::Fixed)
    }

    /// Requests the interrupt of a level-triggered pin if it is due.
    fn refresh_level(&mut self, pin: Lint) -> LintEvent {
        let entry = self.lvt(pin.lvt());
        let due = self.s.lint_asserted & pin as u8 != 0
            && Self::is_level(pin, entry)
            && !entry.masked()
            && !entry.remote_irr();
        if due && self.accept(entry.vector(), Trigger::Level) {
            self.put_lvt(pin.lvt(), entry.with_remote_irr(true));
            LintEvent::Pending
        } else {
            LintEvent::None
        }
    }

    /// A level-triggered vector ended: if LINT0 had asked for it, it may again.
    pub(super) fn end_local_level(&mut self, vector: Vector) {
        let entry = self.lvt(Lvt::Lint0);
        if entry.remote_irr() && entry.vector() == vector {
            self.put_lvt(Lvt::Lint0, entry.with_remote_irr(false));
            let _ = self.refresh_level(Lint::Lint0);
        }
    }

    /// The entry of LINT0 was written: a level that waited at the mask goes on,
    /// and an edge-triggered entry has no level interrupt to remember.
    pub(super) fn lint0_written(&mut self) {
        let entry = self.lvt(Lvt::Lint0);
        if Self::is_level(Lint::Lint0, entry) {
            let _ = self.refresh_level(Lint::Lint0);
        } else {
            self.put_lvt(Lvt::Lint0, entry.with_remote_irr(false));
        }
    }
}
