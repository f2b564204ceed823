//! What the fuzz targets run: one function of bytes for each.

pub mod bundle;
pub mod control;
pub mod emulator;
pub mod input;
pub mod loaders;
pub mod machine;
pub mod monitor;
pub mod page_walk;
