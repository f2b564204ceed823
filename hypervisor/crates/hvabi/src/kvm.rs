//! KVM's paravirtual interface, as far as Steward speaks it (Linux
//! documentation: "KVM-specific MSRs", "Linux KVM Hypercall", "KVM CPUID
//! bits").

/// The call numbers, in RAX.
pub mod call {
    /// Does nothing and returns 0: a point at which the host looks for
    /// interrupts.
    pub const VAPIC_POLL_IRQ: u64 = 1;
    /// Old memory-management batch; removed from KVM.
    pub const MMU_OP: u64 = 2;
    /// PowerPC only.
    pub const FEATURES: u64 = 3;
    /// PowerPC only.
    pub const PPC_MAP_MAGIC_PAGE: u64 = 4;
    /// Wakes a halted vCPU: RCX is its APIC id.
    pub const KICK_CPU: u64 = 5;
    /// Wall clock and TSC read at one moment: RBX is the physical address of a
    /// [`ClockPairing`](super::ClockPairing), RCX the clock's type.
    pub const CLOCK_PAIRING: u64 = 9;
    /// An interrupt for a set of vCPUs.
    pub const SEND_IPI: u64 = 10;
    /// Lets the vCPU whose APIC id is in RBX run instead.
    pub const SCHED_YIELD: u64 = 11;
    /// Encryption state of guest memory.
    pub const MAP_GPA_RANGE: u64 = 12;
}

/// [`call::CLOCK_PAIRING`]'s only type: the wall clock.
pub const CLOCK_PAIRING_WALLCLOCK: u64 = 0;

/// What [`call::CLOCK_PAIRING`] writes: 64 bytes, all fields little-endian.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ClockPairing {
    /// Seconds since 1970-01-01 UTC.
    pub seconds: u64,
    /// Nanoseconds within the second.
    pub nanoseconds: u64,
    /// The guest's TSC at that moment.
    pub tsc: u64,
}

impl ClockPairing {
    /// Size in guest memory, in bytes.
    pub const SIZE: usize = 64;

    /// The bytes in guest memory: the fields above, flags (0) and padding.
    #[must_use]
    pub fn to_bytes(self) -> [u8; Self::SIZE] {
        let mut bytes = [0; Self::SIZE];
        let fields = [self.seconds, self.nanoseconds, self.tsc];
        for (chunk, field) in bytes.chunks_exact_mut(8).zip(fields) {
            chunk.copy_from_slice(&field.to_le_bytes());
        }
        bytes
    }
}

/// What EBX, ECX and EDX of KVM's first CPUID leaf spell, in this order.
pub const CPUID_SIGNATURE: [u8; 12] = *b"KVMKVMKVM\0\0\0";

/// Bits of EAX in KVM's second CPUID leaf.
pub mod feature {
    /// kvmclock by the old MSRs 0x11 and 0x12.
    pub const CLOCKSOURCE: u32 = 1 << 0;
    /// Delays between port accesses are not needed.
    pub const NOP_IO_DELAY: u32 = 1 << 1;
    /// kvmclock by the MSRs 0x4b56_4d00 and 0x4b56_4d01.
    pub const CLOCKSOURCE2: u32 = 1 << 3;
    /// The guest need not check for time warps between vCPUs.
    pub const CLOCKSOURCE_STABLE: u32 = 1 << 24;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clock_pairing_layout() {
        let bytes = ClockPairing { seconds: 1, nanoseconds: 0x0203, tsc: u64::MAX }.to_bytes();
        assert_eq!(bytes[0], 1);
        assert_eq!(bytes[8..10], [3, 2]);
        assert_eq!(bytes[16..24], [0xff; 8]);
        assert_eq!(bytes[24..], [0; 40]);
    }
}
