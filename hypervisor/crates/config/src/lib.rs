//! Settings of the hypervisor and its guests: types, limits, how they travel, and the layout
//! of the PC that a guest gets.
//!
//! - [`GuestSettings`] and [`HostSettings`] are the settings; [`limits`] has their ranges.
//! - [`bundle`] is the archive in which settings and files reach the image.
//! - [`layout`] says where things stand in a guest's machine.
//!
//! Whoever defines a guest uses these types: the developer's machine, the image, and the
//! control line between them.
#![no_std]
#![forbid(unsafe_code)]
#![cfg_attr(
    not(test),
    deny(clippy::indexing_slicing, clippy::unwrap_used, clippy::expect_used, clippy::panic)
)]

extern crate alloc;
// The fuzz targets' bodies, which tests include, name the crate as others do.
#[cfg(test)]
extern crate self as config;

pub mod bundle;
mod cpuset;
mod error;
pub mod features;
mod guest;
mod host;
pub mod layout;
mod life;
pub mod limits;
mod plain;
#[cfg(feature = "toml")]
pub mod size;
#[cfg(feature = "toml")]
pub mod toml;
mod values;

pub use cpuset::{CpuSet, MAX_CPUS};
pub use error::GuestFault;
pub use features::{CpuSettings, FeatureSet};
pub use guest::{
    ApicAssist, DebugStatus, GuestSettings, ModuleSettings, Populate, Signature, is_guest_name,
};
pub use host::{ConsoleBytes, HostExit, HostSettings, LogLevel, WhenEmpty};
pub use life::{BackOff, BackOffSettings, OnHalt, OnReset, OnTripleFault, RestartPolicy, Rules};
pub use values::{EscapeKey, Hypercalls, Uuid};

// The Rust in a document, which `cargo test --doc` compiles and runs.
#[cfg(all(doctest, feature = "toml"))]
#[doc = include_str!("../../../../docs/how-to-setting.md")]
mod how_to {}
