//! Definitions of the x86 architecture that every other crate speaks in:
//! addresses, registers, segments, MSR numbers, CPUID leaves, page-table
//! entries, the structures of AMD-V (and VT-x), and [`VmExit`], the
//! vendor-free reason why a guest stopped.
//!
//! Nothing here executes an instruction. The manuals are quoted by section
//! title: `SDM` is Intel's "Software Developer's Manual", `APM` is AMD's
//! "Architecture Programmer's Manual".
#![no_std]
#![forbid(unsafe_code)]
#![cfg_attr(
    not(test),
    deny(clippy::indexing_slicing, clippy::unwrap_used, clippy::expect_used, clippy::panic)
)]

// The fuzz targets' bodies, which tests include, name the crate as others do.
#[cfg(test)]
extern crate self as x86defs;

pub mod acpi;
pub mod addr;
pub mod bits;
pub mod control;
pub mod cpuid;
pub mod event;
pub mod exit;
pub mod fault;
pub mod msr;
pub mod mwait;
pub mod pte;
pub mod reg;
pub mod segment;
pub mod state;
pub mod time;
pub mod vmcb;
pub mod vmcs;

pub use addr::{GuestPhysAddr, GuestVirtAddr, HostPhysAddr};
pub use bits::{Low, Width};
pub use control::{Cr0, Cr4, Efer, Rflags, Xcr0};
pub use event::{Event, EventKind, Exception, Vector};
pub use exit::VmExit;
pub use fault::Gp;
pub use msr::Msr;
pub use reg::{Gpr, SegmentRegister, VectorRegister};
pub use segment::{DescriptorTable, Segment, SegmentAttributes};
pub use state::CpuState;
