//! A saved machine: a list of sections, each with a name, an instance, a version and a checksum.
//!
//! A type with a section of its own implements [`Saved`], which gives that a name and a
//! version. [`Writer`] makes sections of such states, and [`Sections`] makes states of sections.
//! A saved machine comes from outside: a reader believes nothing, and each [`StateError`] names
//! the section and the cure. `docs/state.md` has the format. Fuzz target: `state`.
#![no_std]
#![forbid(unsafe_code)]
#![cfg_attr(
    not(any(test, feature = "golden")),
    deny(clippy::indexing_slicing, clippy::unwrap_used, clippy::expect_used, clippy::panic)
)]

extern crate alloc;

mod error;
mod format;
#[cfg(feature = "golden")]
pub mod golden;
mod reader;
mod saved;
#[cfg(test)]
mod tests;
mod writer;

pub use error::{SectionName, StateError};
pub use format::{FORMAT, MOST_NAME, MOST_PAYLOAD, MOST_SECTIONS};
pub use reader::Sections;
pub use saved::{ReadPrevious, Saved, decode};
pub use writer::Writer;
