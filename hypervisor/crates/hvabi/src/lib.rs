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
mod interface;
pub mod kvm;
mod names;
mod status;

pub use call::{Call, Features, Registers, Reply, ShutDownKind};
pub use interface::{
    CONSOLE_WRITE_MAX, CPUID_LEAF_INTERFACE, CPUID_LEAF_SIGNATURE, CPUID_LEAF_TIMING,
    CPUID_SIGNATURE, INTERFACE_VERSION, STEWARD_BASE, STEWARD_BIT, STEWARD_TAG,
};
pub use names::{CallName, CallSet};
pub use status::Status;
