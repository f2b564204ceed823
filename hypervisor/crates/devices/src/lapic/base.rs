//! IA32_APIC_BASE and the modes of the APIC (SDM: "x2APIC State Transitions").

use super::message::ApicMode;
use super::reg::{Lvt, LvtEntry};
use super::{DeliveryMode, Effect, Gp, Lapic};
use x86defs::msr::{APIC_BASE_BSP, APIC_BASE_ENABLE, APIC_BASE_X2APIC};

/// Address of the registers in xAPIC mode, unless the guest moves them.
pub const APIC_BASE_ADDRESS: u64 = 0xfee0_0000;

/// Bits 7:0 and 9, and what no physical address has.
const RESERVED: u64 = 0x2ff | u64::MAX << 52;
/// Everything but the address.
const FLAGS: u64 = APIC_BASE_BSP | APIC_BASE_X2APIC | APIC_BASE_ENABLE;

/// IA32_APIC_BASE as it reads, with the registers at `base`.
pub(super) const fn register(base: u64, mode: ApicMode, bootstrap: bool) -> u64 {
    let mode = match mode {
        ApicMode::Disabled => 0,
        ApicMode::XApic => APIC_BASE_ENABLE,
        ApicMode::X2Apic => APIC_BASE_ENABLE | APIC_BASE_X2APIC,
    };
    base | mode | if bootstrap { APIC_BASE_BSP } else { 0 }
}

/// Whether IA32_APIC_BASE can read `value` in this mode: a page below 2^52 and its flags.
pub(super) const fn is_register(value: u64, mode: ApicMode, bootstrap: bool) -> bool {
    value & RESERVED == 0 && value == register(value & !FLAGS, mode, bootstrap)
}

impl Lapic {
    /// Address of the registers in memory; `None` but in xAPIC mode.
    #[inline]
    #[must_use]
    pub const fn window(&self) -> Option<u64> {
        match self.s.mode {
            ApicMode::XApic => Some(self.s.apic_base & !FLAGS),
            ApicMode::Disabled | ApicMode::X2Apic => None,
        }
    }

    /// Whether they stand in memory where they do after a reset: nowhere else does a
    /// CPU help with them.
    #[inline]
    #[must_use]
    pub fn is_in_place(&self) -> bool {
        self.window() == Some(APIC_BASE_ADDRESS)
    }

    /// The mode.
    #[inline(always)]
    #[must_use]
    pub const fn mode(&self) -> ApicMode {
        self.s.mode
    }

    /// RDMSR of IA32_APIC_BASE.
    #[inline]
    #[must_use]
    pub const fn apic_base(&self) -> u64 {
        self.s.apic_base
    }

    /// WRMSR to IA32_APIC_BASE. The bootstrap flag is read-only, its value in
    /// `value` ignored. Switching off forgets everything but the identity.
    ///
    /// # Errors
    /// [`Gp`] for a reserved bit, or a change of mode that the manual forbids:
    /// x2APIC to xAPIC, disabled to x2APIC. The caller checks the limits that the
    /// guest's physical addresses and its RAM set.
    pub(super) fn write_apic_base(&mut self, value: u64) -> Result<Effect, Gp> {
        if value & RESERVED != 0 {
            return Err(Gp);
        }
        let base = value & !FLAGS;
        let new = match (value & APIC_BASE_ENABLE != 0, value & APIC_BASE_X2APIC != 0) {
            (false, false) => ApicMode::Disabled,
            (true, false) => ApicMode::XApic,
            (true, true) if self.has_x2apic => ApicMode::X2Apic,
            (_, true) => return Err(Gp),
        };
        match (self.s.mode, new) {
            (ApicMode::Disabled, ApicMode::X2Apic) | (ApicMode::X2Apic, ApicMode::XApic) => {
                return Err(Gp);
            }
            (old, new) if old == new && base == self.s.apic_base & !FLAGS => {
                return Ok(Effect::None);
            }
            (old, new) if old == new => {}
            (_, ApicMode::Disabled) => {
                self.clear();
            }
            (_, ApicMode::XApic | ApicMode::X2Apic) => {
                // "The upper half of the ICR is not preserved", nor are logical
                // destination and format of the mode that is left.
                self.s.icr_high = 0;
                self.s.ldr = 0;
                self.s.dfr = u32::MAX;
            }
        }
        self.s.mode = new;
        self.shown = false;
        self.s.apic_base = register(base, new, self.s.bootstrap);
        Ok(Effect::IdentityChanged)
    }

    /// Sets the APIC up as firmware leaves it on the bootstrap processor, for
    /// guests that start without firmware: enabled, LINT0 lets the 8259s
    /// through, LINT1 takes NMIs (SDM: "Virtual Wire Mode").
    pub fn set_up_virtual_wire(&mut self) {
        self.s.svr.set_enabled(true);
        self.shown = false;
        self.put_lvt(Lvt::Lint0, LvtEntry::new().with_mode(DeliveryMode::ExtInt));
        self.put_lvt(Lvt::Lint1, LvtEntry::new().with_mode(DeliveryMode::Nmi));
    }
}
