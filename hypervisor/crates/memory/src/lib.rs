//! Memory of guests and host: the [guest's own page tables](walk), walked in software as its
//! CPU would, and [those that the host builds](stage2), with the [tags](mod@tags) of their
//! cached translations; [what stands where](slots) in a [guest's memory](space), and the frames
//! [behind it](backing); how a frame gets [from one owner's hands](frames) into a
//! guest's, which [keeps books](holdings), and [back](debts); and [copies](transfer) to and from a
//! guest's RAM, which the hypervisor sees through its [`Window`].
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

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod addresses;
pub mod backing;
pub mod debts;
pub mod frames;
pub mod holdings;
pub mod limbo;
#[cfg(all(test, feature = "loom"))]
mod orders;
mod ram;
pub mod slots;
pub mod space;
pub mod stage2;
mod sync;
pub mod tags;
pub mod transfer;
pub mod walk;
mod window;

pub use ram::{GuestMemory, GuestRam, HotRam, MemoryError, read_each};
pub use window::Window;
