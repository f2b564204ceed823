//! KVM's paravirtual interface, as far as Steward speaks it (Linux
//! documentation: "KVM-specific MSRs", "Linux KVM Hypercall", "KVM CPUID
//! bits").

/// The call numbers, in RAX.
pub mod call {
    /// Does nothing and returns 0: a point at which the host looks for
    /// interrupts.
    pub const VAPIC_POLL_IRQ: u64 = 1;
    /// Wakes a halted vCPU, or has its next HLT end at once: RCX is its APIC id.
    pub const KICK_CPU: u64 = 5;
    /// Wall clock and TSC read at one moment: RBX is the physical address of a
    /// [`ClockPairing`](super::ClockPairing), RCX the clock's type.
    pub const CLOCK_PAIRING: u64 = 9;
    /// An interrupt for a set of vCPUs: bit n of RBX, then of RCX, is the APIC id
    /// RDX + n (n counts on from 64 in RCX, outside of 64-bit mode from 32), RSI
    /// the low half of an interrupt command with vector and delivery mode. RAX
    /// is how many were reached.
    pub const SEND_IPI: u64 = 10;
    /// Lets the vCPU whose APIC id is in RBX run instead.
    pub const SCHED_YIELD: u64 = 11;
}

/// [`call::CLOCK_PAIRING`]'s only type: the wall clock.
pub const CLOCK_PAIRING_WALLCLOCK: u64 = 0;

/// Structure that [`call::CLOCK_PAIRING`] writes: 64 bytes, all fields little-endian.
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

/// Signature that EBX, ECX and EDX of KVM's first CPUID leaf spell, in this order.
pub const CPUID_SIGNATURE: [u8; 12] = *b"KVMKVMKVM\0\0\0";

/// Bits of EAX in KVM's second CPUID leaf.
pub mod feature {
    /// kvmclock by the old MSRs 0x11 and 0x12.
    pub const CLOCKSOURCE: u32 = 1 << 0;
    /// Delays between port accesses are not needed.
    pub const NOP_IO_DELAY: u32 = 1 << 1;
    /// kvmclock by the MSRs 0x4b56_4d00 and 0x4b56_4d01.
    pub const CLOCKSOURCE2: u32 = 1 << 3;
    /// Steal time by the MSR 0x4b56_4d03.
    pub const STEAL_TIME: u32 = 1 << 5;
    /// End of interrupt without an exit, by the MSR 0x4b56_4d04.
    pub const PV_EOI: u32 = 1 << 6;
    /// A halted vCPU can be woken by [`call::KICK_CPU`](super::call::KICK_CPU).
    pub const PV_UNHALT: u32 = 1 << 7;
    /// A vCPU that does not run flushes its translations when it runs next, if
    /// [`VCPU_FLUSH_TLB`](super::steal::VCPU_FLUSH_TLB) asks for it.
    pub const PV_TLB_FLUSH: u32 = 1 << 9;
    /// [`call::SEND_IPI`](super::call::SEND_IPI).
    pub const PV_SEND_IPI: u32 = 1 << 11;
    /// [`call::SCHED_YIELD`](super::call::SCHED_YIELD).
    pub const PV_SCHED_YIELD: u32 = 1 << 13;
    /// The guest need not check for time warps between vCPUs.
    pub const CLOCKSOURCE_STABLE: u32 = 1 << 24;
}

/// The structure in guest memory that the MSR 0x4b56_4d03 names
/// (`kvm_steal_time`): offsets of its fields, all little-endian.
///
/// The version is odd while steal time and flags are written; a reader tries again
/// until it sees the same even version before and after.
pub mod steal {
    /// u64: nanoseconds for which the vCPU was ready to run and had no CPU.
    pub const STEAL: u64 = 0;
    /// u32: the version.
    pub const VERSION: u64 = 8;
    /// u32: 0.
    pub const FLAGS: u64 = 12;
    /// u8: [`VCPU_PREEMPTED`] and [`VCPU_FLUSH_TLB`]. Changed by atomic accesses,
    /// without regard to the version.
    pub const PREEMPTED: u64 = 16;

    /// The vCPU has no CPU now.
    pub const VCPU_PREEMPTED: u8 = 1 << 0;
    /// Another vCPU, which saw [`VCPU_PREEMPTED`], wants this one's translations
    /// flushed before it runs again.
    pub const VCPU_FLUSH_TLB: u8 = 1 << 1;
}

/// Bit 0 of the MSRs that name a structure in guest memory: it is in use.
pub const MSR_ENABLED: u64 = 1;

/// Bit 0 of the word that the MSR 0x4b56_4d04 names: the interrupt in service
/// ends when the guest clears it.
pub const EOI_PENDING: u8 = 1 << 0;

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
