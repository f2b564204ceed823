//! Tiny guest kernels.
#![no_std]
