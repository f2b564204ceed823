//! Hypercall numbers and structures shared by hypervisor, guests and tests.
#![no_std]
#![forbid(unsafe_code)]
