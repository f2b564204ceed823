//! Interrupts between CPUs: what other CPUs and devices may touch of a vCPU's
//! interrupt state, and who a message is for.
//!
//! [`Posted`] is a vCPU's mailbox, [`Routes`] the directory of a VM's local
//! APICs. Both are atomics only. The vCPU itself, on the CPU that runs it,
//! takes its mail and gives vectors to its [`devices::lapic::Lapic`]
//! (SDM: "Posted-Interrupt Processing" has the same shape).

mod posted;
mod route;

pub use posted::{Posted, Requests, Taken};
pub use route::{MAX_VCPUS, Routes, VcpuSet, VcpuSetIter, send};

#[cfg(test)]
mod tests;
