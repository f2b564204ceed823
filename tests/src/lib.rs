//! Boots the image under emulators and checks what guests do.
//!
//! A [`case::Case`] says what to boot, on which machine, and has a script that
//! talks to it through a [`drive::Drive`]. [`cases::all`] lists them, the planted
//! faults with the case that must notice each are in [`planted`], and [`runner`]
//! runs them, two at a time. Each run's serial log stays in
//! `target/test-logs/NAME.log`. `cargo xtask test` is the way in.
#![forbid(unsafe_code)]

pub mod case;
pub mod cases;
pub mod drive;
mod iso;
pub mod lockstep;
pub mod planted;
mod refusals;
pub mod runner;
mod scenes;
mod small_init;
mod starts;
mod steal;
mod stick;
