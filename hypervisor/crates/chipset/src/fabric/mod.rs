//! Interrupts between CPUs: the part of a vCPU's interrupt state that other CPUs and
//! devices may touch, and the targets of messages.
//!
//! [`Posted`] is a vCPU's mailbox, [`Routes`] the directory of a VM's local
//! APICs. Both are atomics only. The vCPU itself, on the CPU that runs it,
//! takes its mail and gives vectors to its [`devices::lapic::Lapic`]
//! (SDM: "Posted-Interrupt Processing" has the same shape).

mod posted;
mod route;

pub use posted::{Posted, Requests, Taken};
pub use route::{Routes, VcpuSet, VcpuSetIter, send};

#[cfg(test)]
mod tests;
