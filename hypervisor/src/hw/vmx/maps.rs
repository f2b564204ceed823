//! Bitmaps: which ports and MSRs a guest may touch by itself. Every port and
//! MSR exits but those that the VMCS switches with the guest, and the base
//! that SWAPGS swaps, which [`super::syscall`] switches
//! (SDM: "I/O-Bitmap Addresses", "MSR-Bitmap Address").

use crate::error::HostError;
use crate::mm;
use devices::lapic::{Lapic, Reg};
use spin::Once;
use x86defs::vmcs::BITMAP_SIZE;
use x86defs::{HostPhysAddr, Msr};

/// May be read and written.
const PASSED_THROUGH: [Msr; 6] = [
    Msr::FS_BASE,
    Msr::GS_BASE,
    Msr::KERNEL_GS_BASE,
    Msr::SYSENTER_CS,
    Msr::SYSENTER_ESP,
    Msr::SYSENTER_EIP,
];

/// May be read: a write is rare, and noting it spares four reads at every exit.
const READABLE: [Msr; 4] = [Msr::STAR, Msr::LSTAR, Msr::CSTAR, Msr::SFMASK];

/// Where the half for writes begins.
const WRITES: usize = 0x800;

/// The bitmaps that all guests share.
#[derive(Clone, Copy, Debug)]
pub(super) struct Maps {
    pub(super) io_a: HostPhysAddr,
    pub(super) io_b: HostPhysAddr,
    pub(super) msr: HostPhysAddr,
    /// With the task priority of a virtualized x2APIC.
    pub(super) msr_priority: HostPhysAddr,
    /// With all registers that the CPU virtualizes.
    pub(super) msr_apic: HostPhysAddr,
}

static MAPS: Once<Maps> = Once::new();

/// Byte and bit of `msr` in the half for reads.
const fn position(msr: Msr) -> Option<(usize, u32)> {
    let (base, first) = match msr.0 {
        0..=0x1fff => (0, 0),
        0xc000_0000..=0xc000_1fff => (0x400, 0xc000_0000),
        _ => return None,
    };
    let bit = msr.0 - first;
    Some((base + (bit / 8) as usize, bit % 8))
}

fn full_page() -> Result<HostPhysAddr, HostError> {
    let page = mm::allocate_page().ok_or(HostError::OutOfMemory("VT-x's bitmaps"))?;
    bytes(page).fill(0xff);
    Ok(page)
}

fn bytes(page: HostPhysAddr) -> &'static mut [u8] {
    let pointer = mm::direct(page) as *mut u8;
    // SAFETY: the page is ours for good, mapped at its direct address, and
    // nobody else has it until the maps are published.
    unsafe { core::slice::from_raw_parts_mut(pointer, BITMAP_SIZE) }
}

/// A bitmap that also opens these registers of the x2APIC.
fn msr_bitmap(
    read: impl Iterator<Item = Reg>,
    written: impl Iterator<Item = Reg>,
) -> Result<HostPhysAddr, HostError> {
    let page = full_page()?;
    let map = bytes(page);
    let x2apic = |reg: Reg| Msr(Msr::X2APIC_FIRST.0 + u32::from(reg.0));
    let passed = PASSED_THROUGH.into_iter();
    for msr in passed.clone().chain(READABLE).chain(read.map(x2apic)) {
        if let Some((byte, bit)) = position(msr) {
            map[byte] &= !(1 << bit);
        }
    }
    for msr in passed.chain(written.map(x2apic)) {
        if let Some((byte, bit)) = position(msr) {
            map[WRITES + byte] &= !(1 << bit);
        }
    }
    Ok(page)
}

/// The bitmaps, built at the first call.
pub(super) fn get() -> Result<Maps, HostError> {
    if let Some(maps) = MAPS.get() {
        return Ok(*maps);
    }
    let none = || core::iter::empty();
    let priority = || core::iter::once(Reg::TPR);
    let written = || [Reg::TPR, Reg::EOI, Reg::SELF_IPI].into_iter();
    let maps = Maps {
        io_a: full_page()?,
        io_b: full_page()?,
        msr: msr_bitmap(none(), none())?,
        msr_priority: msr_bitmap(priority(), priority())?,
        msr_apic: msr_bitmap(Lapic::readable_in_page(), written())?,
    };
    Ok(*MAPS.call_once(|| maps))
}
