//! Steward.
#![no_std]
