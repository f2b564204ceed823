//! Numbers of the interface: the calls' tag, its version, its CPUID leaves.

/// Set in RAX for every call that is Steward's own and clear in KVM's.
pub const STEWARD_BIT: u64 = 1 << 31;
/// Bits 30:16 of RAX in every call of Steward's: "ST".
pub const STEWARD_TAG: u64 = 0x5354;
/// RAX of Steward's call number 0; calls are counted in bits 15:0.
pub const STEWARD_BASE: u64 = STEWARD_BIT | STEWARD_TAG << 16;
/// The version of this interface, as [`Call::Version`](crate::Call::Version) returns it. It is
/// raised when a call changes its meaning; a new call sets a feature bit.
pub const INTERFACE_VERSION: u32 = 1;
/// The most bytes that one [`Call::ConsoleWrite`](crate::Call::ConsoleWrite) takes.
pub const CONSOLE_WRITE_MAX: u32 = 4096;

/// CPUID leaf with Steward's signature, unless the guest's settings put KVM's there
/// (it is 0x100 further then, as is the next): EAX is the highest leaf of this range,
/// EBX, ECX and EDX hold [`CPUID_SIGNATURE`].
pub const CPUID_LEAF_SIGNATURE: u32 = 0x4000_0000;
/// CPUID leaf with [`INTERFACE_VERSION`] in EAX and [`Features`](crate::Features) in EBX.
pub const CPUID_LEAF_INTERFACE: u32 = 0x4000_0001;
/// CPUID leaf with the TSC's frequency in EAX and the local APIC timer's in
/// EBX, both in kHz, where other hypervisors have it too.
pub const CPUID_LEAF_TIMING: u32 = 0x4000_0010;
/// Signature that EBX, ECX and EDX of [`CPUID_LEAF_SIGNATURE`] spell, in this order.
pub const CPUID_SIGNATURE: [u8; 12] = *b"StewardStewd";
