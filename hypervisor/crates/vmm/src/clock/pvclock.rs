//! The two structures of kvmclock in guest memory (Linux documentation:
//! "KVM-specific MSRs"). A writer makes the version odd, writes, and makes it
//! even; a reader tries again until it sees the same even version twice.

use bitflags::bitflags;
use memory::{GuestMemory, MemoryError};
use x86defs::GuestPhysAddr;
use x86defs::time::Scale;

bitflags! {
    /// Flags of [`PvClockInfo`].
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct PvClockFlags: u8 {
        /// Time read on different vCPUs is monotonic.
        const TSC_STABLE = 1 << 0;
        /// The guest was paused; the guest clears this itself.
        const GUEST_STOPPED = 1 << 1;
    }
}

/// `pvclock_vcpu_time_info`: a vCPU's time is `system_time` plus the TSC's
/// distance from `tsc_timestamp`, scaled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PvClockInfo {
    /// Version, even.
    pub version: u32,
    /// The vCPU's TSC at `system_time`.
    pub tsc_timestamp: u64,
    /// Nanoseconds since the guest was started, at `tsc_timestamp`.
    pub system_time: u64,
    /// Ticks to nanoseconds.
    pub scale: Scale,
    /// Flags.
    pub flags: PvClockFlags,
}

impl PvClockInfo {
    /// Bytes in guest memory.
    pub const SIZE: usize = 32;
    /// Offset of the flags.
    const FLAGS: u64 = 29;

    /// The structure as it lies in guest memory.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; Self::SIZE] {
        let mut bytes = [0; Self::SIZE];
        let (head, tail) = bytes.split_at_mut(24);
        let fields = [u64::from(self.version), self.tsc_timestamp, self.system_time];
        for (chunk, field) in head.chunks_exact_mut(8).zip(fields) {
            chunk.copy_from_slice(&field.to_le_bytes());
        }
        let [m0, m1, m2, m3] = self.scale.multiplier.to_le_bytes();
        let [shift] = self.scale.shift.to_le_bytes();
        tail.copy_from_slice(&[m0, m1, m2, m3, shift, self.flags.bits(), 0, 0]);
        bytes
    }

    /// The flags of a structure in guest memory.
    ///
    /// # Errors
    /// [`MemoryError`] where there is no RAM.
    pub(super) fn read_flags(
        memory: &impl GuestMemory,
        address: GuestPhysAddr,
    ) -> Result<PvClockFlags, MemoryError> {
        let mut flags = [0];
        memory.read(address.wrapping_add(Self::FLAGS), &mut flags)?;
        let [flags] = flags;
        Ok(PvClockFlags::from_bits_truncate(flags))
    }

    /// Writes the structure. The guest may read at any moment.
    ///
    /// # Errors
    /// [`MemoryError`] where there is no writable RAM.
    pub(super) fn write(
        &self,
        memory: &impl GuestMemory,
        address: GuestPhysAddr,
    ) -> Result<(), MemoryError> {
        let [_, _, _, _, body @ ..] = self.to_bytes();
        write_versioned(memory, address, self.version, &body)
    }
}

/// `pvclock_wall_clock`: the wall clock when the guest's time was 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WallClock {
    /// Seconds since 1970-01-01 UTC.
    pub seconds: u32,
    /// Nanoseconds within the second.
    pub nanoseconds: u32,
}

impl WallClock {
    /// Writes the structure, with the version that follows the one it has.
    ///
    /// # Errors
    /// [`MemoryError`] where there is no writable RAM.
    pub(super) fn write(
        &self,
        memory: &impl GuestMemory,
        address: GuestPhysAddr,
    ) -> Result<(), MemoryError> {
        let mut version = [0; 4];
        memory.read(address, &mut version)?;
        // An odd version was there before the guest used the place.
        let version = (u32::from_le_bytes(version) | 1).wrapping_add(1);
        let [s0, s1, s2, s3] = self.seconds.to_le_bytes();
        let [n0, n1, n2, n3] = self.nanoseconds.to_le_bytes();
        write_versioned(memory, address, version, &[s0, s1, s2, s3, n0, n1, n2, n3])
    }
}

/// Writes `body` behind a version of four bytes, odd in between and `version` afterwards. If a part
/// of the structure is not in RAM, nothing is written: the guest that asked for it gets a fault and
/// goes on with the old structure.
fn write_versioned<const BODY: usize>(
    memory: &impl GuestMemory,
    address: GuestPhysAddr,
    version: u32,
    body: &[u8; BODY],
) -> Result<(), MemoryError> {
    memory.read(address.wrapping_add(4), &mut [0; BODY])?;
    memory.write(address, &version.wrapping_sub(1).to_le_bytes())?;
    memory.write(address.wrapping_add(4), body)?;
    memory.write(address, &version.to_le_bytes())
}

/// Address of the structure in a value of the MSR KVM_SYSTEM_TIME; `None` if bit 0 is clear.
pub(super) const fn system_time_address(value: u64) -> Option<GuestPhysAddr> {
    if value & 1 != 0 { Some(GuestPhysAddr::new(value & !3)) } else { None }
}
