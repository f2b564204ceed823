//! Hypercall numbers and structures shared by hypervisor, guests and tests.
//!
//! A guest calls with VMCALL where CPUID leaf 0 says "GenuineIntel" and with
//! VMMCALL elsewhere. RAX holds the call's number, RBX, RCX, RDX and RSI its
//! arguments; the call returns a status in RAX. Numbers with
//! [`STEWARD_BIT`] clear are KVM's and mean what they mean there
//! ([`kvm`]); numbers from [`STEWARD_BASE`] on are Steward's own ([`Call`]).
//!
//! All registers but those that a call is said to return in are kept. Outside
//! of 64-bit mode only the low halves of the registers count, and only they
//! are written.
//!
//! ```
//! use hvabi::{Call, Registers, Status};
//!
//! // A guest loads these registers, executes VMCALL or VMMCALL, and looks at
//! // what RAX has become.
//! let call = Call::ConsoleWrite { address: 0x10_0000, length: 5 };
//! let registers = Registers::from(call);
//! assert_eq!(registers.rax, 0xd354_0001);
//! assert_eq!(Call::try_from(registers), Ok(call));
//! assert_eq!(Status::from_rax(0), Ok(()));
//! assert_eq!(Status::from_rax(-14i64 as u64), Err(Some(Status::Fault)));
//! ```
#![no_std]
#![forbid(unsafe_code)]
#![cfg_attr(
    not(test),
    deny(clippy::indexing_slicing, clippy::unwrap_used, clippy::expect_used, clippy::panic)
)]

mod call;
pub mod kvm;
mod names;
mod status;

pub use call::{Call, Features, Registers, Reply, ShutDownKind};
pub use names::{CallName, CallSet};
pub use status::Status;

/// Set in RAX for every call that is Steward's own and clear in KVM's.
pub const STEWARD_BIT: u64 = 1 << 31;
/// Bits 30:16 of RAX in every call of Steward's: "ST".
pub const STEWARD_TAG: u64 = 0x5354;
/// RAX of Steward's call number 0; calls are counted in bits 15:0.
pub const STEWARD_BASE: u64 = STEWARD_BIT | STEWARD_TAG << 16;
/// The version of this interface, as [`Call::Version`] returns it. It is
/// raised when a call changes its meaning; a new call sets a feature bit.
pub const INTERFACE_VERSION: u32 = 1;
/// The most bytes that one [`Call::ConsoleWrite`] takes.
pub const CONSOLE_WRITE_MAX: u32 = 4096;

/// CPUID leaf with Steward's signature, unless the guest's settings put KVM's there
/// (it is 0x100 further then, as is the next): EAX is the highest leaf of this range,
/// EBX, ECX and EDX hold [`CPUID_SIGNATURE`].
pub const CPUID_LEAF_SIGNATURE: u32 = 0x4000_0000;
/// CPUID leaf with [`INTERFACE_VERSION`] in EAX and [`Features`] in EBX.
pub const CPUID_LEAF_INTERFACE: u32 = 0x4000_0001;
/// CPUID leaf with the TSC's frequency in EAX and the local APIC timer's in
/// EBX, both in kHz, where other hypervisors have it too.
pub const CPUID_LEAF_TIMING: u32 = 0x4000_0010;
/// What EBX, ECX and EDX of [`CPUID_LEAF_SIGNATURE`] spell, in this order.
pub const CPUID_SIGNATURE: [u8; 12] = *b"StewardStewd";
