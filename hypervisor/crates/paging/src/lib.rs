//! Page tables: the [guest's own](walk), walked in software as its CPU would,
//! and [those that the host builds](stage2): nested tables and its own; and how a page gets
//! [from one owner's hands](frames) [into a guest's](populate), which [keeps books](holdings).
//!
//! Everything here is pure: tables are read and written through small traits.
#![no_std]
#![forbid(unsafe_code)]
#![cfg_attr(
    not(test),
    deny(
        clippy::arithmetic_side_effects,
        clippy::indexing_slicing,
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic
    )
)]

#[cfg(test)]
extern crate std;

pub mod frames;
pub mod holdings;
pub mod populate;
pub mod stage2;
pub mod walk;
