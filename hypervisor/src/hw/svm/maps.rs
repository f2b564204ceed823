//! Permission maps: which ports and MSRs a guest may touch by itself.
//! Everything is denied but what the CPU switches with the guest
//! (APM volume 2: "I/O Permissions Map", "MSR Intercepts").

use crate::error::HostError;
use crate::mm::Unsealed;
use spin::Once;
use x86defs::vmcb::{IOPM_SIZE, MSRPM_SIZE};
use x86defs::{HostPhysAddr, Msr};

/// MSRs that VMRUN, VMLOAD and VMSAVE switch, so that the guest's own value
/// is in the register while the guest runs.
const PASSED_THROUGH: [Msr; 10] = [
    Msr::FS_BASE,
    Msr::GS_BASE,
    Msr::KERNEL_GS_BASE,
    Msr::STAR,
    Msr::LSTAR,
    Msr::CSTAR,
    Msr::SFMASK,
    Msr::SYSENTER_CS,
    Msr::SYSENTER_ESP,
    Msr::SYSENTER_EIP,
];

/// The maps that all guests share.
#[derive(Clone, Copy, Debug)]
pub(super) struct Maps {
    pub(super) io: HostPhysAddr,
    pub(super) msr: HostPhysAddr,
    /// Virtual address of the first of them.
    #[cfg(feature = "check-entries")]
    address: u64,
}

static MAPS: Once<Maps> = Once::new();

/// Byte and bit of `msr`'s read permission; the write bit is the next one.
const fn position(msr: Msr) -> Option<(usize, u32)> {
    let (base, first) = match msr.0 {
        0..=0x1fff => (0, 0),
        0xc000_0000..=0xc000_1fff => (0x800, 0xc000_0000),
        0xc001_0000..=0xc001_1fff => (0x1000, 0xc001_0000),
        _ => return None,
    };
    let bit = (msr.0 - first) * 2;
    Some((base + (bit / 8) as usize, bit % 8))
}

/// Virtual address of the maps, once they are there.
#[cfg(feature = "check-entries")]
pub(in crate::hw) fn address() -> Option<u64> {
    MAPS.get().map(|maps| maps.address)
}

/// The maps, built at the first call and read-only from then on.
pub(super) fn get() -> Result<Maps, HostError> {
    if let Some(maps) = MAPS.get() {
        return Ok(*maps);
    }
    let mut memory = Unsealed::new(IOPM_SIZE + MSRPM_SIZE, "AMD-V's permission maps")?;
    let io = memory.frames();
    let msr = HostPhysAddr::new(io.as_u64() + IOPM_SIZE as u64);
    #[cfg(feature = "check-entries")]
    let address = memory.address();
    let all = memory.bytes();
    all.fill(0xff);
    let msr_map = &mut all[IOPM_SIZE..];
    for (byte, bit) in PASSED_THROUGH.iter().filter_map(|msr| position(*msr)) {
        msr_map[byte] &= !(3 << bit);
    }
    memory.seal();
    Ok(*MAPS.call_once(|| Maps {
        io,
        msr,
        #[cfg(feature = "check-entries")]
        address,
    }))
}
