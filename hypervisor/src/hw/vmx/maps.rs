//! Bitmaps: which ports and MSRs a guest may touch by itself. Every port and
//! MSR exits but those that the VMCS switches with the guest, and the base
//! that SWAPGS swaps, which [`super::syscall`] switches
//! (SDM: "I/O-Bitmap Addresses", "MSR-Bitmap Address").

use crate::error::HostError;
use crate::mm::Unsealed;
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

/// Offset of the half for writes.
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
    /// Virtual address of the first of them.
    #[cfg(feature = "check-entries")]
    address: u64,
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

/// Makes `map`, which denies everything, a bitmap that passes what guests have for
/// themselves and also opens these registers of the x2APIC.
fn open_msrs(map: &mut [u8], read: impl Iterator<Item = Reg>, written: impl Iterator<Item = Reg>) {
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
}

/// Virtual address of the bitmaps, once they are there.
#[cfg(feature = "check-entries")]
pub(in crate::hw) fn address() -> Option<u64> {
    MAPS.get().map(|maps| maps.address)
}

/// The bitmaps, built at the first call and read-only from then on.
pub(super) fn get() -> Result<Maps, HostError> {
    if let Some(maps) = MAPS.get() {
        return Ok(*maps);
    }
    let mut memory = Unsealed::new(5 * BITMAP_SIZE, "VT-x's bitmaps")?;
    let frames = memory.frames();
    let page = |number: u64| HostPhysAddr::new(frames.as_u64() + number * BITMAP_SIZE as u64);
    let maps = Maps {
        io_a: page(0),
        io_b: page(1),
        msr: page(2),
        msr_priority: page(3),
        msr_apic: page(4),
        #[cfg(feature = "check-entries")]
        address: memory.address(),
    };
    let none = || core::iter::empty();
    let priority = || core::iter::once(Reg::TPR);
    let written = || [Reg::TPR, Reg::EOI, Reg::SELF_IPI].into_iter();
    let all = memory.bytes();
    all.fill(0xff);
    let mut msr_maps = all.chunks_exact_mut(BITMAP_SIZE).skip(2);
    let mut next = || msr_maps.next().unwrap_or_default();
    open_msrs(next(), none(), none());
    open_msrs(next(), priority(), priority());
    open_msrs(next(), Lapic::readable_in_page(), written());
    memory.seal();
    Ok(*MAPS.call_once(|| maps))
}
