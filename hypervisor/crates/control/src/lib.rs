//! The operator's side, but for the hardware: what a person types on the
//! machine's console and what a program asks over the control line come to the
//! same [`Operation`]s, whose [`Answer`]s are shown to the one as text and to
//! the other as JSON.
//!
//! ```text
//! keyboard -> console::Keys -> line::Editor -> command::parse ─┐
//!                                                              ├─> Operation
//! control line -> protocol::Session ───────────────────────────┘       │
//!                                                                       v
//! terminal <- report <──────────────────────────────────────────┐   the image
//!                                                               ├── Answer or
//! control line <- protocol::Session::finish <───────────────────┘   Refusal
//! ```
//!
//! Everything is bounded and nothing waits: what a vCPU on its CPU keeps from being
//! answered is [tried again](Attempt); an operation that takes long, such as a stop,
//! is answered when it has begun; [`protocol::EventLog`] tells when
//! it is done. `docs/control.md` describes the protocol.
#![no_std]
#![forbid(unsafe_code)]
#![cfg_attr(
    not(test),
    deny(clippy::indexing_slicing, clippy::unwrap_used, clippy::expect_used, clippy::panic)
)]

extern crate alloc;
#[cfg(test)]
extern crate std;
// The fuzz targets' bodies, which tests include, name the crate as others do.
#[cfg(test)]
extern crate self as control;

mod account;
mod agenda;
pub mod answer;
pub mod attempt;
pub mod backlog;
pub mod command;
pub mod console;
pub mod guests;
pub mod limit;
pub mod line;
pub mod operation;
pub mod protocol;
pub mod refusal;
pub mod report;
pub mod screen;
pub mod status;

pub use account::Account;
pub use agenda::{Agenda, PLACES};
pub use answer::Answer;
pub use attempt::Attempt;
pub use backlog::Backlog;
pub use command::Command;
pub use console::{Keys, Ring, Typed};
pub use guests::{GuestRef, Known};
pub use limit::Limit;
pub use operation::Operation;
pub use refusal::{ErrorCode, Refusal};
pub use screen::Screen;
