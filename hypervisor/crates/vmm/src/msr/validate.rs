//! Rules of registers that other parts of the machine hold.

use super::Gp;
use x86defs::{Cr0, Efer, msr};

/// WRMSR of EFER: the new value (SDM: "Extended Feature Enable Register";
/// APM: "Extended Feature Enable Register (EFER)"). LMA is not software's: it
/// follows LME and CR0.PG, and a written value does not count.
///
/// # Errors
/// [`Gp`] where a bit is set that `allowed` lacks, or LME changes while paging
/// is on.
pub fn efer(old: Efer, value: u64, allowed: Efer, cr0: Cr0) -> Result<Efer, Gp> {
    let written = Efer::from_bits(value).ok_or(Gp)?;
    if !allowed.contains(written - Efer::LMA) {
        return Err(Gp);
    }
    if cr0.contains(Cr0::PG) && (old ^ written).contains(Efer::LME) {
        return Err(Gp);
    }
    Ok((written - Efer::LMA) | (old & Efer::LMA))
}

/// WRMSR of IA32_APIC_BASE: the new value (SDM: "x2APIC State Transitions").
///
/// # Errors
/// [`Gp`] for a reserved bit, x2APIC mode without the enable bit, the ways
/// from x2APIC mode to xAPIC mode and from disabled to x2APIC mode, and for a
/// base other than the usual one: no CPU in a guest moves its local APIC.
pub fn apic_base(old: u64, value: u64) -> Result<u64, Gp> {
    const MODE: u64 = msr::APIC_BASE_ENABLE | msr::APIC_BASE_X2APIC;
    // The bootstrap bit is read-only: what is written to it does not count.
    let address = value & !(MODE | msr::APIC_BASE_BSP);
    if address != crate::layout::LAPIC_BASE {
        return Err(Gp);
    }
    let illegal = matches!(
        (old & MODE, value & MODE),
        (_, msr::APIC_BASE_X2APIC) | (MODE, msr::APIC_BASE_ENABLE) | (0, MODE)
    );
    if illegal { Err(Gp) } else { Ok(address | value & MODE | old & msr::APIC_BASE_BSP) }
}
