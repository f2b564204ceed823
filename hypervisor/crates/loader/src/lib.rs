//! Puts a guest's kernel, its initial ramdisk or modules and its command line
//! into the guest's memory, and says how its first vCPU starts.
//!
//! Which protocol an image speaks is seen from the image: Linux's boot
//! protocols of 64 and 32 bits (`linux`), PVH (`pvh`) or Multiboot 1 (`multiboot`), the last two
//! for ELF images; a Multiboot header wins over a PVH note, as in other loaders. Images that
//! are made for other machines (firmware, GRUB for Xen) are known by name (`foreign`).
//! Everything is checked before anything is written, and a refusal ([`LoadError`]) names the
//! field, the segment or the numbers that don't fit.
//!
//! A kernel may have gigabytes: what looks at every byte of it is done in pieces
//! ([`Loading::check`], [`Loading::write`]).
//!
//! The loaders see images as untrusted bytes: every read is bounded and every
//! sum checked. Fuzz target: `loaders`.
#![no_std]
#![forbid(unsafe_code)]
#![cfg_attr(
    not(test),
    deny(clippy::indexing_slicing, clippy::unwrap_used, clippy::expect_used, clippy::panic)
)]

extern crate alloc;
// The fuzz targets' bodies, which tests include, name the crate as others do.
#[cfg(test)]
extern crate self as loader;

mod acpi;
mod bytes;
pub mod e820;
mod elf;
mod entry;
mod error;
mod foreign;
mod linux;
mod loading;
mod mptable;
mod multiboot;
mod place;
mod pvh;
mod rom;
mod settings;
mod smbios;
mod tables;
#[cfg(test)]
mod tests;

pub use error::{Format, LoadError};
pub use loading::{Loading, load};
pub use settings::{LoadSettings, Module};
pub use tables::{TableAddresses, TablesConfig, TablesError, write_tables};
