//! Rules of registers that other parts of the machine hold.

use x86defs::Gp;
use x86defs::{Cr0, Efer, GuestPhysAddr};

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

/// WRMSR of IA32_APIC_BASE, as far as it depends on the guest: where the local APIC
/// may move. `physical_bits` is the width of the guest's physical addresses.
///
/// # Errors
/// [`Gp`] for a page beyond the guest's physical addresses, as on hardware; and for
/// one of RAM, which the other vCPUs go on to see there and the nested tables of all
/// are one.
pub fn apic_base(
    value: u64,
    physical_bits: u32,
    is_ram: impl FnOnce(GuestPhysAddr) -> bool,
) -> Result<(), Gp> {
    let page = value & !0xfff;
    let fits = page.checked_shr(physical_bits).unwrap_or(0) == 0;
    if fits && !is_ram(GuestPhysAddr::new(page)) { Ok(()) } else { Err(Gp) }
}
